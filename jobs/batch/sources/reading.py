"""Rows of a piece as a stream of chunks, whatever the format; the file is looked at before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from jobs.batch.sources.opening import opened
from jobs.batch.sources.pieces import Chunk, Piece, Reading


def read(reading: Reading, piece: Piece) -> Iterator[Chunk]:
    """Read a piece.

    The rows of its chunks and those they refuse are the piece's rows, each once. Whether the file was the
    planned one to the end is known when the iterator has ended; nothing may be committed before.

    Args:
        reading: How the table is read.
        piece: What of it.

    Returns:
        Chunks of about ``reading.chunk_bytes``, in the order of the file, one at a time: memory does not grow
        with the file. A chunk may hold no rows but refused ones.

    Raises:
        InputError: The file is gone, has changed, lacks a column, or is not what its name says.
        UnavailableError: S3 does not answer or refuses.
    """
    return read_pieces(reading, (piece,))


def read_pieces(reading: Reading, pieces: Sequence[Piece]) -> Iterator[Chunk]:
    """Read the pieces of a shard one after the other; images, each a piece, up to 64 in a chunk.

    Raises:
        InputError: See ``read``.
        UnavailableError: See ``read``.
    """
    for is_image, group in groupby(pieces, key=lambda piece: piece.file.format == "image"):
        if is_image:
            from jobs.batch.sources.images import read_images

            yield from read_images(reading, list(group))
        else:
            for piece in group:
                yield from _read_table(reading, piece)


def _read_table(reading: Reading, piece: Piece) -> Iterator[Chunk]:
    from jobs.batch.sources.delimited import read_csv
    from jobs.batch.sources.ipc import read_ipc
    from jobs.batch.sources.jsonl import read_jsonl
    from jobs.batch.sources.parquet import read_parquet

    read_format = {"parquet": read_parquet, "ipc": read_ipc, "csv": read_csv, "jsonl": read_jsonl}
    with opened(reading.uri, piece.file) as source:
        if piece.file.size_bytes:
            yield from read_format[piece.file.format](reading, piece, source=source)
