"""Images: each is a row, some at a time are decoded together, a damaged one is refused by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa

from jobs.batch.sources.opening import opened
from jobs.batch.sources.pieces import Chunk, Piece, Reading, Refused
from kit.errors import InputError
from kit.images import FILE_COLUMN, READERS, ImageLayout, decode_image, label_of
from kit.tables import TableFile

_AT_ONCE = 64


def read_images(reading: Reading, pieces: Sequence[Piece]) -> Iterator[Chunk]:
    """Read images, up to 64 a chunk.

    Raises:
        InputError: An image is gone or has changed since the run was planned.
        UnavailableError: S3 does not answer or refuses.
    """
    layout = reading.layout
    if layout is None:
        raise InputError(f"{pieces[0].file.name} is an image, and a table was planned")
    size = int(np.prod(layout.shape))
    n_images = max(min(_AT_ONCE, reading.chunk_bytes // size), 1)
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(pieces), n_images):
            files = [piece.file for piece in pieces[start : start + n_images]]
            pixels = np.empty((len(files), size), dtype=np.uint8)
            reasons = list(pool.map(partial(_read_into, reading.uri, layout), files, pixels))
            yield _chunk(reading, layout, files, pixels, reasons)


def _read_into(uri: str, layout: ImageLayout, file: TableFile, row: np.ndarray) -> str | None:
    """Decode an image into its row; returns why that cannot be."""
    with opened(uri, file) as source:
        content = source.read()
    if not content:
        return f"{file.name} holds no bytes"
    try:
        if layout.label is not None:
            label_of(file, layout)
        row[:] = decode_image(content, name=file.name, layout=layout).reshape(-1)
    except InputError as error:
        return str(error)
    return None


def _chunk(
    reading: Reading,
    layout: ImageLayout,
    files: Sequence[TableFile],
    pixels: np.ndarray,
    reasons: Sequence[str | None],
) -> Chunk:
    good = [at for at, reason in enumerate(reasons) if reason is None]
    kept = pixels if len(good) == len(files) else pixels[good]
    names = [files[at].name for at in good]
    columns = {
        layout.column: pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), pixels.shape[1]),
        FILE_COLUMN: pa.array(names, pa.string()),
    }
    if layout.label is not None:
        columns[layout.label] = pa.array([label_of(files[at], layout) for at in good], pa.string())
    return Chunk(
        pa.table(columns).select(list(reading.columns)),
        files[0].name,
        np.zeros(len(good), dtype=np.int64),
        tuple(
            Refused(files[at].name, 0, reason, {FILE_COLUMN: files[at].name})
            for at, reason in enumerate(reasons)
            if reason is not None
        ),
        tuple(names),
    )
