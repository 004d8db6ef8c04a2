"""Parquet: row groups and what they weigh, and the rows of a range of them as a stream of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from jobs.batch.sources.pieces import Chunk, Piece, Reading
from jobs.batch.sources.quarantined import columns_to_read, typed_chunk

#: Wanted bytes of row groups that are fetched at once; more than this are streamed through small buffers.
_AT_ONCE_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 20
_MAX_ROWS = 1 << 20
_MAX_ROWS_OF_TEXT = 1 << 16  # what a dictionary has made small in the file is large in memory
_TEXT_BYTES = 16  # of a string or a list, where the file does not say more


@dataclass(frozen=True)
class Group:
    """A row group.

    Attributes:
        rows: How many it has.
        size_bytes: About its share of the file.
    """

    rows: int
    size_bytes: int


def row_groups(source: Any, *, size_bytes: int) -> list[Group]:
    """Say what row groups a file has.

    The footer gives sizes per column, which takes long to add up over many files; the file's size is shared
    out by the uncompressed sizes of the groups instead.

    Args:
        source: The open file.
        size_bytes: Its size.
    """
    metadata = parquet.read_metadata(source)
    sizes = [
        (metadata.row_group(index).num_rows, metadata.row_group(index).total_byte_size)
        for index in range(metadata.num_row_groups)
    ]
    total = max(sum(size for _, size in sizes), 1)
    return [Group(rows, size * size_bytes // total) for rows, size in sizes if rows]


def read_parquet(reading: Reading, piece: Piece, *, source: Any) -> Iterator[Chunk]:
    """Read a piece of a Parquet file; see ``jobs.batch.sources.read``.

    Memory: row groups whose wanted columns are small are fetched together; of larger ones each column is
    read through a buffer of its own, a page at a time, so that a chunk and not a row group is held.
    """
    metadata = parquet.read_metadata(source)
    if not metadata.num_rows:
        return
    schema = metadata.schema.to_arrow_schema()
    wanted = columns_to_read(schema.names, reading, file=piece.file)
    groups, skip = _overlapping(metadata, piece)
    packed, plain = _weigh(metadata, groups, wanted)
    at_once = max(packed, default=0) <= _AT_ONCE_BYTES
    # Fetching ahead spares round trips to S3; on a disk it only copies: 87 against 65 ns a row of 32 floats.
    ahead = at_once and reading.uri.startswith("s3://")
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    n_rows = _chunk_rows(schema, wanted, plain / max(rows, 1), reading.chunk_bytes)
    left = rows if piece.length is None else piece.length
    row = piece.row
    with parquet.ParquetFile(
        source, metadata=metadata, pre_buffer=ahead, buffer_size=0 if at_once else _BUFFER_BYTES
    ) as opened:
        for run in _runs(groups, packed):
            for batch in opened.iter_batches(n_rows, row_groups=run, columns=wanted, use_threads=False):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                batch = batch.slice(skip, left)
                skip = 0
                left -= batch.num_rows
                yield typed_chunk(reading, pa.Table.from_batches([batch]), file=piece.file, row=row)
                row += batch.num_rows
                if not left:
                    return


def _overlapping(metadata: Any, piece: Piece) -> tuple[list[int], int]:
    """Find the row groups a piece lies in, and how many rows of the first come before it."""
    groups: list[int] = []
    seen = skip = 0
    stop = metadata.num_rows if piece.length is None else piece.first + piece.length
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if rows and seen + rows > piece.first and seen < stop:
            if not groups:
                skip = piece.first - seen
            groups.append(index)
        seen += rows
    return groups, skip


def _weigh(metadata: Any, groups: Sequence[int], wanted: Sequence[str]) -> tuple[list[int], int]:
    """Give the compressed bytes of the wanted columns by group, and the uncompressed of all."""
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    picked = [
        index
        for index, path in enumerate(paths)
        if path in wanted or any(path.startswith(f"{name}.") for name in wanted)
    ]
    packed, plain = [], 0
    for group in groups:
        columns = [metadata.row_group(group).column(index) for index in picked]
        packed.append(sum(column.total_compressed_size for column in columns))
        plain += sum(column.total_uncompressed_size for column in columns)
    return packed, plain


def _runs(groups: Sequence[int], packed: Sequence[int]) -> Iterator[list[int]]:
    """Put small row groups together, so that chunks need not be as small as they are."""
    run: list[int] = []
    size = 0
    for group, group_bytes in zip(groups, packed, strict=True):
        if run and size + group_bytes > _AT_ONCE_BYTES:
            yield run
            run, size = [], 0
        run.append(group)
        size += group_bytes
    if run:
        yield run


def _chunk_rows(schema: pa.Schema, wanted: Sequence[str], stored_row_bytes: float, chunk_bytes: int) -> int:
    width, fixed = 0.0, True
    for name in wanted:
        try:
            width += schema.field(name).type.bit_width / 8
        except ValueError:  # a type without one: strings, lists
            width, fixed = width + _TEXT_BYTES, False
    most = _MAX_ROWS if fixed else _MAX_ROWS_OF_TEXT
    return max(min(int(chunk_bytes / max(width, stored_row_bytes, 1)), most), 1)
