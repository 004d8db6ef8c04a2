"""Rows of a quarantine read again: text cells get their types back, lines stay refused.

A quarantine is a Parquet table a run has written: ``origin_file``, ``origin_row``, ``reason``, the columns
that were read and, of what could not be parsed, ``line``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.batch.sources.cells import as_strings, convert_table
from jobs.batch.sources.pieces import Chunk, Reading, Refused
from kit.tables import TableFile, require_columns

#: The columns every quarantine has, and the one that holds text nobody could parse.
MARKS = ("origin_file", "origin_row", "reason")
LINE = "line"


def columns_to_read(names: Sequence[str], reading: Reading, *, file: TableFile) -> list[str]:
    """Choose the columns of a file with types of its own.

    Args:
        names: Those it has.
        reading: What is wanted.
        file: The file, for messages.

    Raises:
        InputError: A wanted column is missing; in a quarantine of lines alone it may be.
    """
    held = LINE in names and set(MARKS) <= set(names)
    require_columns(names, () if held else reading.columns, file=file)
    wanted = [name for name in reading.columns if name in names]
    return [*wanted, *(name for name in (LINE, "reason") if held and name not in wanted)]


def typed_chunk(reading: Reading, table: pa.Table, *, file: TableFile, row: int) -> Chunk:
    """Make a chunk of rows of a file with types of its own.

    Args:
        reading: What is wanted.
        table: The columns ``columns_to_read`` gave.
        file: The file.
        row: Number in the file of the first row.

    Raises:
        InputError: A row of a quarantine holds neither a line nor a wanted column.
    """
    rows = np.arange(row, row + table.num_rows, dtype=np.int64)
    refused: tuple[Refused, ...] = ()
    if LINE in table.column_names and "reason" in table.column_names:
        table, rows, refused = _without_lines(reading, table, file=file, rows=rows)
    before = table.select(list(reading.columns))
    after, bad, reason = convert_table(before, types=reading.types)
    if len(bad):
        refused += tuple(
            Refused(
                file.name,
                int(rows[position]),
                reason(position),
                as_strings(before, position=position, columns=reading.columns),
            )
            for position in bad.tolist()
        )
        rows = np.delete(rows, bad)
    return Chunk(after, file.name, rows, tuple(sorted(refused, key=lambda each: each.row)))


def _without_lines(
    reading: Reading, table: pa.Table, *, file: TableFile, rows: np.ndarray
) -> tuple[pa.Table, np.ndarray, tuple[Refused, ...]]:
    """Take out the rows that hold a line instead of cells."""
    is_line = np.asarray(pc.is_valid(table.column(LINE)))
    reasons, lines = table.column("reason"), table.column(LINE)
    refused = tuple(
        Refused(file.name, int(rows[at]), str(reasons[at]), {LINE: str(lines[at])})
        for at in np.flatnonzero(is_line).tolist()
    )
    kept = table.filter(pa.array(~is_line))
    if kept.num_rows:
        require_columns(kept.column_names, reading.columns, file=file)
    for name in reading.columns:
        if name not in kept.column_names:
            kept = kept.append_column(name, pa.nulls(0))
    return kept, rows[~is_line], refused
