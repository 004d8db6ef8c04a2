"""Text cells brought to types, a column at a time; which of them cannot be, and why.

What a cell may be is what pyarrow's CSV reader accepts for the type. Whether the value is allowed
is the signature's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FEW = 4  # cells that are tried one by one
_WORDS = {"int64": "a whole number", "double": "a number", "bool": "true or false", "string": "text in UTF-8"}
_PYTHON: Mapping[str, Callable[[float], object]] = {"double": float, "int64": int, "bool": bool}
#: The types text can be brought to.
TYPES: Mapping[str, pa.DataType] = {
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}


def convert_table(
    table: pa.Table, *, types: Mapping[str, str]
) -> tuple[pa.Table, np.ndarray, Callable[[int], str]]:
    """Bring a table's text columns to their types.

    Args:
        table: n_rows rows; columns of other types than text are left as they are.
        types: Column to a key of ``TYPES``; other columns and other types are left as they are.

    Returns:
        The rows all of whose cells could be brought to their types; the positions of the others, sorted; and
        a function that gives the reason of such a position.
    """
    columns = {name: table.column(name) for name in table.column_names}
    wrong: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        wanted = types.get(name)
        if wanted is None or wanted not in TYPES or not _is_text(column.type) or column.type == TYPES[wanted]:
            continue
        columns[name], bad = convert(column, wanted=wanted)
        if len(bad):
            wrong[name] = bad
    rows = np.unique(np.concatenate(list(wrong.values()))) if wrong else np.empty(0, dtype=np.int64)

    def reason(position: int) -> str:
        name = next(each for each, bad in wrong.items() if position in bad)
        value = cell_text(table.column(name)[position])
        return f"column {name!r}: {value!r} is not {_WORDS[types[name]]}"

    converted = pa.table(list(columns.values()), names=list(columns)) if columns else table
    if len(rows):
        converted = converted.take(pa.array(np.setdiff1d(np.arange(table.num_rows), rows)))
    return converted, rows, reason


def convert(column: Any, *, wanted: str) -> tuple[Any, np.ndarray]:
    """Bring cells to a type.

    Args:
        column: Strings, or bytes that should be UTF-8; the empty string and null are no value.
        wanted: A key of ``TYPES``.

    Returns:
        The values, null where a cell is not of the type, and the positions of those cells, sorted.
    """
    cells = column.combine_chunks()
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.chunk(0) if cells.num_chunks else pa.array([], column.type)
    cells, bad = _cast(cells, pa.string())
    if wanted != "string":
        cells = pc.if_else(
            pc.equal(cells, pa.scalar("")), pa.scalar(None, pa.string()), pc.utf8_trim(cells, " \t")
        )
        values, worse = _cast(cells, TYPES[wanted])
        if len(worse):
            values, worse = _second_try(cells, values, worse, wanted=wanted)
        cells, bad = values, np.union1d(bad, worse)
    return pa.chunked_array([cells]), bad


def cell_text(cell: Any) -> str | None:
    """Give a cell as it was written, with bytes that are no UTF-8 as escapes; null stays None."""
    value = cell.as_py()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None else str(value)


def _cast(cells: Any, kind: pa.DataType) -> tuple[Any, np.ndarray]:
    """Cast cells, halving what fails until the cells that fail are known."""
    parts: list[Any] = []
    bad: list[int] = []

    def part(start: int, stop: int) -> None:
        try:
            parts.append(cells.slice(start, stop - start).cast(kind))
            return
        except pa.ArrowInvalid:
            if stop - start == 1:
                bad.append(start)
                parts.append(pa.array([None], kind))
                return
        width = 1 if stop - start <= _FEW else (stop - start + 1) // 2
        for each in range(start, stop, width):
            part(each, min(each + width, stop))

    part(0, len(cells))
    values = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    return values, np.array(bad, dtype=np.int64)


def _second_try(cells: Any, values: Any, bad: np.ndarray, *, wanted: str) -> tuple[Any, np.ndarray]:
    """Take ``3.0`` for a whole number, ``0x10`` for a number and ``1.0`` for true, as the signature does."""
    other = pa.int64() if wanted == "double" else pa.float64()
    again, _ = _cast(cells.take(pa.array(bad)), other)
    kept: list[object] = []
    for value in again.to_pylist():
        fits = value is not None and (
            wanted == "double"
            or (wanted == "int64" and abs(value) < 2**63 and value.is_integer())
            or (wanted == "bool" and value in (0, 1))
        )
        kept.append(_PYTHON[wanted](value) if fits else None)
    mask = np.zeros(len(cells), dtype=bool)
    mask[bad] = True
    values = pc.replace_with_mask(values, pa.array(mask), pa.array(kept, TYPES[wanted]))
    return values, bad[np.array([value is None for value in kept], dtype=bool)]


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary())


def as_strings(table: pa.Table, *, position: int, columns: Sequence[str]) -> dict[str, str | None]:
    """Give a row's cells as they were written."""
    return {name: cell_text(table.column(name)[position]) for name in columns}
