"""CSV: the header is each file's first line, a cell is text until it is brought to the type of the plan.

A quoted cell may hold newlines, and whether a newline is within quotes is known only to who has read the
file from its beginning. So a file with a quote character anywhere in its rows is not cut: it is one piece,
and pyarrow's streaming reader finds its rows. All other files are read as blocks of whole lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv

from jobs.batch.sources.cells import TYPES, as_strings, cell_text, convert_table
from jobs.batch.sources.lines import Cut, blocks, cuts
from jobs.batch.sources.pieces import Chunk, Piece, Reading, Refused
from kit.errors import InputError
from kit.tables import require_columns

QUOTE = b'"'
_HEADER_BYTES = 1 << 16
_MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True)
class Header:
    """The first line of a file.

    Attributes:
        names: Its columns.
        end: Byte of the file the rows begin at.
    """

    names: tuple[str, ...]
    end: int


@dataclass
class _Lines:
    """The rows pyarrow could not split into cells, as its reader meets them."""

    found: list[Any] = field(default_factory=list)

    def __call__(self, row: Any) -> Literal["skip"]:
        self.found.append(row)
        return "skip"


def read_header(source: Any, *, name: str) -> Header | None:
    """Read the header of a file; None of one that holds blank lines alone.

    Args:
        source: The open file.
        name: Of the file, for messages.

    Raises:
        InputError: It is not a header.
    """
    data, size = b"", _HEADER_BYTES
    while True:
        source.seek(0)
        data = source.read(size)
        start = len(data) - len(data.lstrip(b"\r\n"))
        end = _header_end(data, start)
        if end is not None or len(data) < size:
            break
        size *= 4
        if size > _MAX_HEADER_BYTES:
            raise InputError(f"{name} has no header: its first line is too long", hint="name the columns")
    if start == len(data):
        return None
    line = data[start:end] if end is not None else data[start:]
    try:
        names = _table(line.rstrip(b"\r\n") + b"\n", names=None, types={}, lines=_Lines()).column_names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read as csv: its header: {error}") from error
    return Header(tuple(names), len(data) if end is None else end)


def _header_end(data: bytes, start: int) -> int | None:
    """Give the byte behind the first line's end that is not within quotes."""
    at = start
    while True:
        ends = [place for place in (data.find(b"\n", at), data.find(b"\r", at)) if place >= 0]
        if not ends:
            return None
        at = min(ends) + 1
        if data.count(QUOTE, start, at) % 2 == 0:
            return at


def find_cuts(source: Any, *, name: str, size_bytes: int, every_bytes: int) -> tuple[list[Cut], int] | None:
    """Find where a file may be cut; None where it may not."""
    header = read_header(source, name=name)
    if header is None:
        return None
    return cuts(
        source, first=header.end, stop=size_bytes, every_bytes=every_bytes, spaces_count=True, never=QUOTE
    )


def read_csv(reading: Reading, piece: Piece, *, source: Any) -> Iterator[Chunk]:
    """Read a piece of a CSV file; see ``jobs.batch.sources.read``."""
    header = read_header(source, name=piece.file.name)
    if header is None:
        return
    stop = piece.file.size_bytes if piece.length is None else piece.first + piece.length
    row = piece.row
    first = max(piece.first, header.end)
    for block in blocks(source, first=first, stop=stop, block_bytes=reading.chunk_bytes):
        whole = block.first + len(block.data) >= stop
        if QUOTE in block.data and not whole and piece.length is None:
            source.seek(block.first)
            yield from _stream(reading, piece, header, source=source, row=row)
            return
        chunk = _parse(reading, piece, header, data=block.data, row=row)
        row += chunk.table.num_rows + len(chunk.refused)
        yield chunk


def _parse(reading: Reading, piece: Piece, header: Header, *, data: bytes, row: int) -> Chunk:
    """Parse whole lines: at once where every cell is what it should be, else cell by cell."""
    types: dict[str, pa.DataType] = {
        name: TYPES.get(reading.types.get(name, ""), pa.string()) for name in reading.columns
    }
    if not data.strip(b"\r\n"):
        return _no_rows(reading, piece, types)
    require_columns(list(header.names), reading.columns, file=piece.file)
    lines = _Lines()
    try:
        table = _table(data, names=header.names, types=types, lines=lines)
    except pa.ArrowInvalid:
        lines = _Lines()
        table = _table(data, names=header.names, types=dict.fromkeys(header.names, pa.binary()), lines=lines)
        return _chunk(reading, piece, table, lines=lines.found, row=row)
    if lines.found:
        return _chunk(reading, piece, table, lines=lines.found, row=row)
    rows = np.arange(row, row + table.num_rows, dtype=np.int64)
    return Chunk(table.select(list(reading.columns)), piece.file.name, rows)


def _no_rows(reading: Reading, piece: Piece, types: Mapping[str, pa.DataType]) -> Chunk:
    table = pa.table({name: pa.array([], types[name]) for name in reading.columns})
    return Chunk(table, piece.file.name, np.empty(0, dtype=np.int64))


def _stream(reading: Reading, piece: Piece, header: Header, *, source: Any, row: int) -> Iterator[Chunk]:
    """Let pyarrow find the rows of a file with quotes."""
    require_columns(list(header.names), reading.columns, file=piece.file)
    lines = _Lines()
    options = _options(header.names, dict.fromkeys(header.names, pa.binary()), lines)
    options["read_options"].block_size = reading.chunk_bytes
    before = 0  # rows pyarrow has given or handed to lines
    try:
        opened = csv.open_csv(source, **options)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return
        raise
    with opened:
        for batch in opened:
            behind = before + batch.num_rows
            mine = []
            while lines.found and lines.found[0].number - 1 <= behind:
                mine.append(lines.found.pop(0))
                behind += 1
            table = pa.Table.from_batches([batch])
            yield _chunk(reading, piece, table, lines=mine, row=row + before, offset=before)
            before = behind
    if lines.found:
        yield _chunk(reading, piece, table.slice(0, 0), lines=lines.found, row=row + before, offset=before)


def _chunk(
    reading: Reading, piece: Piece, table: pa.Table, *, lines: Sequence[Any], row: int, offset: int = 0
) -> Chunk:
    """Make a chunk of cells that are still bytes and of the lines that have too many or too few of them.

    Args:
        table: Of the whole lines.
        lines: What pyarrow said of the others; their numbers count from 1 at the reader's first row.
        row: Number in the file of the first row of either kind.
        offset: How many rows the reader had met before that one.
    """
    converted, bad, reason = convert_table(table.select(list(reading.columns)), types=reading.types)
    total = table.num_rows + len(lines)
    broken = np.array([line.number - 1 - offset for line in lines], dtype=np.int64)
    numbers = row + np.setdiff1d(np.arange(total, dtype=np.int64), broken)
    refused = [
        Refused(
            piece.file.name,
            row + int(place),
            f"{line.actual_columns} cells where the header has {line.expected_columns}",
            {"line": line.text},
        )
        for place, line in zip(broken, lines, strict=True)
    ]
    for position in bad.tolist():
        values = as_strings(table, position=position, columns=reading.columns)
        if not _is_utf8(table, position):
            values = {"line": _as_line(table, position)}
        refused.append(Refused(piece.file.name, int(numbers[position]), reason(position), values))
    refused.sort(key=lambda each: each.row)
    return Chunk(converted, piece.file.name, np.delete(numbers, bad), tuple(refused))


def _is_utf8(table: pa.Table, position: int) -> bool:
    try:
        for name in table.column_names:
            value = table.column(name)[position].as_py()
            if isinstance(value, bytes):
                value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_line(table: pa.Table, position: int) -> str:
    """Write a row's cells as a line again, for what cannot be kept as it was."""
    import csv as writing

    line = StringIO()
    cells = [cell_text(table.column(index)[position]) or "" for index in range(table.num_columns)]
    writing.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _options(names: Sequence[str] | None, types: Mapping[str, pa.DataType], lines: _Lines) -> dict[str, Any]:
    return {
        "read_options": csv.ReadOptions(
            use_threads=False, column_names=None if names is None else list(names)
        ),
        "parse_options": csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lines),
        "convert_options": csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, column_types=dict(types), include_columns=list(types)
        ),
    }


def _table(
    data: bytes, *, names: Sequence[str] | None, types: Mapping[str, pa.DataType], lines: _Lines
) -> pa.Table:
    options = _options(names, types, lines)
    options["read_options"].block_size = len(data) + 1  # one block, so that rows are numbered through
    return csv.read_csv(BytesIO(data), **options)
