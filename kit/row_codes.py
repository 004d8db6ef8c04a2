"""Equal values as equal whole numbers, so that rows can be compared, grouped and counted.

A missing value equals a missing value (null and NaN alike), and 0.0 equals -0.0, inside lists too. In rows
that are compared a string that is empty is a missing one, as it is to a model. What equal rows mean is for
``kit.cleaning`` and ``kit.leakage`` to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def value_codes(column: Any) -> np.ndarray:
    """Number a column's different values in the order in which they appear.

    Args:
        column: A pyarrow column (chunked or not) of any type, n_rows values.

    Returns:
        int64, shape (n_rows,), from 0; -1 where the value is missing.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array = as_array(column)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), -1, dtype=np.int64)
    if pa.types.is_nested(kind):
        array = _digests(array)
    elif pa.types.is_floating(kind):
        # 16 bits are widened because Arrow computes with wider ones only.
        array = pc.add(array.cast(pa.float64()), 0.0)
        array = pc.if_else(pc.is_nan(array), None, array)
    indices = array.dictionary_encode().indices
    return np.asarray(indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False))


def same_rows(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Number a table's different rows in the order in which they appear.

    Args:
        table: n_rows rows.
        columns: What must be equal; at least one.

    Returns:
        int64, shape (n_rows,), from 0; rows with one number are equal in every column.
    """
    combined = np.zeros(table.num_rows, dtype=np.int64)
    n_different = 1
    for name in columns:
        codes = value_codes(without_empty(table.column(name))) + 1
        n_values = int(codes.max(initial=0)) + 1
        combined = combined * n_values + codes  # fits: at most n_rows times n_rows + 1
        n_different *= n_values
        if n_different > table.num_rows:
            combined, n_different = _dense(combined)
            if n_different == table.num_rows:
                return combined  # no two rows are equal, whatever the other columns hold
    return _dense(combined)[0]


def without_empty(column: Any) -> Any:
    """Give a pyarrow column as one array, an empty string as null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = as_array(column)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return pc.if_else(pc.equal(array, pa.scalar("", array.type)), None, array)
    return array


def as_array(column: Any) -> Any:
    """Give a pyarrow column as one array without a dictionary."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type) and column.nbytes >= 2**31:
            column = column.cast(pa.large_string())  # an array of strings holds less than 2 GiB
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no chunk at all
            column = pa.array([], column.type)
    elif pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def _dense(combined: np.ndarray) -> tuple[np.ndarray, int]:
    import pyarrow as pa

    encoded = pa.array(combined).dictionary_encode()
    return encoded.indices.cast(pa.int64()).to_numpy(zero_copy_only=False), len(encoded.dictionary)


def _digests(array: Any) -> Any:
    """Give lists and structs as the digests of their content, null where they are null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if lists and len(array) and not array.null_count and not pa.types.is_nested(kind.value_type):
        values = array.flatten()
        lengths = pc.list_value_length(array)
        floating = pa.types.is_floating(kind.value_type)
        numeric = floating or (pa.types.is_integer(kind.value_type) and not values.null_count)
        if numeric and pc.min(lengths).as_py() == pc.max(lengths).as_py():
            matrix = values.to_numpy(zero_copy_only=False).reshape(len(array), -1)  # null becomes NaN
            if floating:
                matrix = np.where(np.isnan(matrix), np.nan, matrix + 0)  # one NaN, one zero
            rows = (np.ascontiguousarray(row).tobytes() for row in matrix)
            return pa.array([hashlib.blake2b(row, digest_size=16).digest() for row in rows], pa.binary())
    texts = (None if value is None else repr(_plain(value)) for value in array.to_pylist())
    digests = [
        None
        if text is None
        else hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        for text in texts
    ]
    return pa.array(digests, pa.binary())


def _plain(value: Any) -> Any:
    """Give a nested value in which equal values look alike: missing ones are None, zeros are 0.0."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float):
        return None if value != value else value + 0.0
    return None if value == "" else value
