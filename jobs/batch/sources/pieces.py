"""What reading passes around: where rows lie, how they are read, what was read, what could not be.

Plain values; everything but a chunk travels and can be written as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.images import ImageLayout
from kit.tables import TableFile

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Piece:
    """Part of one file.

    Attributes:
        file: The file, as it was when the piece was cut.
        first: Where it begins: a row (Parquet), a byte (CSV, JSON Lines), a record batch (Arrow); 0 of a
            whole file.
        length: How much of that there is; None to the end of the file.
        row: Number in the file of its first row, from 0.
        n_rows: Its rows, where they are known without reading it.
    """

    file: TableFile
    first: int = 0
    length: int | None = None
    row: int = 0
    n_rows: int | None = None


@dataclass(frozen=True)
class Refused:
    """A row that could not be read.

    Attributes:
        file: Name of its file.
        row: Its number in the file, from 0.
        reason: Why, as a sentence's beginning without a full stop.
        values: The original cells as strings; ``{"line": text}`` of a line that cannot be parsed;
            ``{"file": name}`` of an image.
    """

    file: str
    row: int
    reason: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a piece, in the order of the file.

    Attributes:
        table: The columns of the reading, in its order, shape (n_rows, n_columns).
        file: Name of the file they come from.
        rows: Their numbers in the file, from 0, int64, shape (n_rows,).
        refused: Rows that could not be read and lie before the next chunk.
        files: Of images: the name of each row's file, shape (n_rows,); empty where all rows are of ``file``.
    """

    table: pa.Table
    file: str
    rows: np.ndarray
    refused: tuple[Refused, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How the files of a table are read; the same for every piece of a run.

    Attributes:
        uri: The table.
        columns: The columns that are needed: the signature's, then the kept ones.
        types: Column to its Arrow type as text. Cells that are text (CSV, a quarantine) are brought to it.
        layout: How images become rows; None of tables.
        chunk_bytes: About how large a chunk is in memory.
    """

    uri: str
    columns: tuple[str, ...]
    types: Mapping[str, str]
    layout: ImageLayout | None = None
    chunk_bytes: int = 4 << 20


def is_text(kind: str) -> bool:
    """Say whether the quarantine keeps a format's cells as strings, because the file itself holds text.

    Args:
        kind: ``TableFile.format``. JSON Lines have types of their own; a line of theirs that cannot be
            parsed is kept whole.
    """
    return kind == "csv"
