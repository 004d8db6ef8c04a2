"""Columns of a table, or of rows of JSON, as arrays of a tensor's dtype; what is no such value is named.

Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.tensors import DTYPES, TensorSpec, first_row


def read_column(spec: TensorSpec, column: str, values: Any) -> np.ndarray:
    """Bring one column to a tensor's dtype.

    Args:
        spec: The tensor.
        column: The column's name, for what is said of a wrong value.
        values: An array or list of N values, or of N lists.

    Returns:
        Shape (N,), or (N, row_size) where the column holds whole rows.

    Raises:
        InputError: A value is missing or of another kind, or the rows differ in length.
    """
    width = spec.row_size if len(spec.columns) == 1 else 1
    if isinstance(values, np.ndarray) and values.dtype == DTYPES[spec.dtype] and spec.dtype != "string":
        array = values
    elif spec.dtype == "string":
        try:
            array = np.array(values, dtype=object)
        except ValueError as error:
            raise InputError(f"column {column!r} holds rows of different lengths") from error
        array[array == None] = ""  # noqa: E711 - elementwise, which "is None" is not
    else:
        array = _numbers(spec, column, values)
    if array.ndim == 1 and width == 1:
        return array
    if array.ndim >= 1 and array.size == len(array) * width:
        return array.reshape(len(array), width) if width > 1 else array.reshape(len(array))
    raise InputError(f"column {column!r} does not hold {width} values in every row (input {spec.name!r})")


def missing_column(spec: TensorSpec, column: str, there: Iterable[Any]) -> InputError:
    """Say that a column a tensor is made of is not there, and which one is nearest."""
    return InputError(
        f"column {column!r} is missing (input {spec.name!r} needs it)",
        hint=nearest(column, [str(name) for name in there]),
    )


def refuse_truth(spec: TensorSpec, column: str, row: int, value: Any) -> None:
    """Refuse JSON's true and false where a number is expected.

    Raises:
        InputError: The value is one of them, or a list that has one.
    """
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if item is True or item is False:
            raise _no_number(spec, column, row, item)


def _numbers(spec: TensorSpec, column: str, values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        values = _parsed(spec, column, values)
    dtype = DTYPES[spec.dtype]
    if values.dtype.kind not in "fiub":
        raise InputError(
            f"column {column!r} holds values of type {values.dtype}; {spec.dtype} is expected "
            f"(input {spec.name!r})"
        )
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=dtype)
    with np.errstate(invalid="ignore"):
        cast = np.asarray(values).astype(dtype)
    wrong = cast != values
    if wrong.any():
        row = first_row(wrong)
        value = np.atleast_1d(values[row])[np.atleast_1d(wrong[row])][0]
        if value != value:
            raise InputError(f"column {column!r}, row {row}: a value is missing (input {spec.name!r})")
        raise InputError(f"column {column!r}, row {row}: {value} is not a whole {spec.dtype}")
    return cast


def _parsed(spec: TensorSpec, column: str, values: Sequence[Any]) -> np.ndarray:
    """Turn JSON-like values into numbers, naming the first row that is none."""
    missing = float("nan") if DTYPES[spec.dtype].kind == "f" else None
    rows: list[Any] = []
    for row, value in enumerate(values):
        if isinstance(value, str) and value.startswith("["):  # a list in a CSV cell
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise InputError(f"column {column!r}, row {row}: {value[:40]!r} is no JSON list") from error
            if spec.dtype != "bool":
                refuse_truth(spec, column, row, value)
        if value is None:
            value = missing
        items = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        if value is None:
            raise InputError(f"column {column!r}, row {row}: a value is missing (input {spec.name!r})")
        for item in items:
            if not isinstance(item, (int, float, np.number, np.bool_)):
                raise _no_number(spec, column, row, item)
        if missing is None:
            value = [_whole(item) for item in items] if items is value else _whole(value)
        rows.append(value)
    if not rows:
        return np.empty((0,), dtype=DTYPES[spec.dtype])
    try:
        # Whole numbers beyond 64 bits are numbers too where the input is a float.
        array = np.array(rows, dtype=np.float64 if missing is not None else None)
    except ValueError as error:
        raise InputError(f"column {column!r} holds rows of different lengths") from error
    except OverflowError:
        array = np.array(rows, dtype=object)
    if array.dtype == object:
        raise InputError(f"column {column!r} holds a number too large for {spec.dtype}")
    return array


def _no_number(spec: TensorSpec, column: str, row: int, item: Any) -> InputError:
    return InputError(
        f"column {column!r}, row {row}: {item!r} is not a number (input {spec.name!r} is {spec.dtype})"
    )


def _whole(item: Any) -> Any:
    # One float among whole numbers would make numpy round them all to float64.
    return int(item) if isinstance(item, float) and item.is_integer() else item
