"""Arrow IPC: the file format by its record batches, the stream format from its beginning.

A local file is mapped into memory, not read. A record batch is as large as its writer made it; a compressed
one is unpacked whole, so it bounds the memory that is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from jobs.batch.sources.pieces import Chunk, Piece, Reading
from jobs.batch.sources.quarantined import columns_to_read, typed_chunk
from kit.errors import InputError

_MAGIC = b"ARROW1"


def is_file_format(source: Any) -> bool:
    """Say whether an open file has the index of its record batches that the file format ends with."""
    source.seek(0)
    magic: bytes = source.read(len(_MAGIC))
    source.seek(0)
    return magic == _MAGIC


def read_schema(source: Any) -> pa.Schema:
    """Give a file's columns and types."""
    with ipc.open_file(source) if is_file_format(source) else ipc.open_stream(source) as opened:
        return opened.schema


def batch_rows(source: Any) -> list[int] | None:
    """Count the rows of each record batch; None of a stream, which has no index.

    The count stands before each batch's bytes; pyarrow gives it with a batch, and of that the narrowest field
    is enough: nothing is unpacked but that one.
    """
    if not is_file_format(source):
        return None
    with ipc.open_file(source) as opened:
        schema, n_batches = opened.schema, opened.num_record_batches
    if not len(schema):
        return []
    narrowest = min(range(len(schema)), key=lambda index: _width(schema.field(index).type))
    source.seek(0)
    with ipc.open_file(source, options=ipc.IpcReadOptions(included_fields=[narrowest])) as opened:
        return [opened.get_batch(index).num_rows for index in range(n_batches)]


def _width(kind: pa.DataType) -> int:
    try:
        return kind.bit_width
    except ValueError:  # strings, lists
        return 1 << 16


def read_ipc(reading: Reading, piece: Piece, *, source: Any) -> Iterator[Chunk]:
    """Read a piece of an Arrow file; see ``jobs.batch.sources.read``."""
    row = piece.row
    for batch in _batches(reading, piece, source):
        batch.validate(full=True)  # a damaged file's offsets would be followed otherwise
        table = pa.Table.from_batches([batch])
        rows = max(int(reading.chunk_bytes * table.num_rows / max(table.nbytes, 1)), 1)
        for start in range(0, table.num_rows, rows):
            part = table.slice(start, rows)
            yield typed_chunk(reading, part, file=piece.file, row=row)
            row += part.num_rows


def _batches(reading: Reading, piece: Piece, source: Any) -> Iterator[pa.RecordBatch]:
    schema = read_schema(source)
    is_file = is_file_format(source)
    try:
        names = columns_to_read(schema.names, reading, file=piece.file)
    except InputError:  # only a file without rows may lack a column
        if is_file and not sum(batch_rows(source) or ()):
            return
        raise
    options = ipc.IpcReadOptions(included_fields=sorted(schema.names.index(name) for name in names))
    if is_file:
        with ipc.open_file(source, options=options) as opened:
            stop = opened.num_record_batches if piece.length is None else piece.first + piece.length
            for index in range(piece.first, stop):
                yield opened.get_batch(index)
        return
    with ipc.open_stream(source, options=options) as stream:
        yield from stream
