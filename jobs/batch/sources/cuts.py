"""Where a table's files are cut, and which pieces make a shard. The same files give the same shards.

What it costs to find out is bounded: small files are not opened, footers are read many at a time, a text
file is scanned once and only when it is larger than a shard.

A row group cannot be entered in its middle: who wants its last rows decodes the ones before. So a group is
split only where it holds many shards' rows, and then into at most eight ranges: together they decode it
4.5 times over, which is less work than most models are. A shard per ``shard_rows`` of a group of 30 million
rows would decode it sixty times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from jobs.batch.sources import delimited, ipc, jsonl, parquet
from jobs.batch.sources.opening import SMALL_BYTES, opened
from jobs.batch.sources.pieces import Piece, Reading
from kit.tables import TableFile

SHARD_ROWS = 125_000
SHARD_BYTES = 64 << 20
_MAX_IMAGES = 4096
_OPENERS = 16  # S3 answers each request late but many at once
_SCANNERS = 4
_SPLIT_FROM = 4  # times shard_rows
_MAX_RANGES = 8
_CUTS_PER_SHARD = 8  # how finely text is cut, so that shards come near their rows
_FILES_PER_SHARD = 256  # small ones; each costs a few requests, however small it is


@dataclass(frozen=True)
class _Unit:
    """What is not cut further: a piece, its rows where known, its bytes."""

    piece: Piece
    size_bytes: int


@dataclass
class _Shard:
    """A shard while it is filled."""

    pieces: list[Piece] = field(default_factory=list)
    n_rows: int = 0
    size_bytes: int = 0

    def has_room(self, unit: _Unit, *, shard_rows: int, shard_bytes: int) -> bool:
        """Say whether a shard with the unit comes nearer to what is wanted than one without it."""
        if not self.pieces:
            return True
        rows = self.n_rows + (unit.piece.n_rows or 0)
        nearer = rows <= shard_rows or rows - shard_rows <= shard_rows - self.n_rows
        return nearer and self.size_bytes + unit.size_bytes <= shard_bytes

    def add(self, unit: _Unit) -> None:
        """Add a unit; one that continues the last piece makes it longer."""
        piece, last = unit.piece, self.pieces[-1] if self.pieces else None
        if last is not None and _continues(last, piece):
            known = last.n_rows is not None and piece.n_rows is not None
            self.pieces[-1] = replace(
                last,
                length=(last.length or 0) + (piece.length or 0),
                n_rows=(last.n_rows or 0) + (piece.n_rows or 0) if known else None,
            )
        else:
            self.pieces.append(piece)
        self.n_rows += piece.n_rows or 0
        self.size_bytes += unit.size_bytes


def cut(
    reading: Reading,
    files: Sequence[TableFile],
    *,
    shard_rows: int = SHARD_ROWS,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[tuple[Piece, ...], ...]:
    """Cut a table into shards.

    Args:
        reading: How it is read.
        files: Its files, in the order of the rows.
        shard_rows: Rows of a shard, roughly.
        shard_bytes: Most bytes of a shard, as they are stored; a row group, a record batch or a file with
            quotes that is larger is a shard of its own.

    Returns:
        The pieces of each shard, in the order of the rows; every row of the table is in one piece.

    Raises:
        InputError: A file is not what its name says, or has changed since it was listed.
        UnavailableError: S3 does not answer or refuses.
    """
    units = _units(reading, files, shard_rows=shard_rows, shard_bytes=shard_bytes)
    shards: list[tuple[Piece, ...]] = []
    shard = _Shard()
    for unit in units:
        if unit.piece.file.format != "image" and not unit.piece.row:
            unit = replace(unit, size_bytes=unit.size_bytes + shard_bytes // _FILES_PER_SHARD)
        full = len(shard.pieces) >= _MAX_IMAGES
        if full or not shard.has_room(unit, shard_rows=shard_rows, shard_bytes=shard_bytes):
            shards.append(tuple(shard.pieces))
            shard = _Shard()
        shard.add(unit)
    if shard.pieces:
        shards.append(tuple(shard.pieces))
    return tuple(shards)


def _units(
    reading: Reading, files: Sequence[TableFile], *, shard_rows: int, shard_bytes: int
) -> Iterator[_Unit]:
    """Look into the files that are worth it, many at a time, and give the units of all in their order."""
    inside = partial(_inside, reading, shard_rows=shard_rows, shard_bytes=shard_bytes)
    footed = [file for file in files if file.format in ("parquet", "ipc") and file.size_bytes >= SMALL_BYTES]
    scanned = [file for file in files if file.format in ("csv", "jsonl") and file.size_bytes > shard_bytes]
    with ThreadPoolExecutor(_OPENERS) as openers, ThreadPoolExecutor(_SCANNERS) as scanners:
        found = dict(zip([file.path for file in footed], openers.map(inside, footed), strict=True))
        found |= zip([file.path for file in scanned], scanners.map(inside, scanned), strict=True)
    for file in files:
        if file.path in found:
            yield from found[file.path]
        elif file.size_bytes or file.format == "image":
            yield _Unit(Piece(file, n_rows=1 if file.format == "image" else None), file.size_bytes)


def _inside(reading: Reading, file: TableFile, *, shard_rows: int, shard_bytes: int) -> list[_Unit]:
    """Find the units of a file."""
    with opened(reading.uri, file) as source:
        if file.format == "parquet":
            groups = parquet.row_groups(source, size_bytes=file.size_bytes)
            return list(_ranges(file, groups, shard_rows=shard_rows))
        if file.format == "ipc":
            batches = ipc.batch_rows(source)
            return [_whole(file)] if batches is None else list(_record_batches(file, batches))
        every = max(min(shard_bytes // _CUTS_PER_SHARD, 8 << 20), 1)
        if file.format == "csv":
            found = delimited.find_cuts(source, name=file.name, size_bytes=file.size_bytes, every_bytes=every)
        else:
            found = jsonl.find_cuts(source, size_bytes=file.size_bytes, every_bytes=every)
    if found is None:
        return [_whole(file)]
    places, n_rows = found
    ends = [*((place.first, place.row) for place in places[1:]), (file.size_bytes, n_rows)]
    return [
        _Unit(Piece(file, place.first, end - place.first, place.row, row - place.row), end - place.first)
        for place, (end, row) in zip(places, ends, strict=True)
    ]


def _whole(file: TableFile) -> _Unit:
    return _Unit(Piece(file), file.size_bytes)


def _ranges(file: TableFile, groups: Iterable[parquet.Group], *, shard_rows: int) -> Iterator[_Unit]:
    """Give a file's row groups, very large ones as ranges of about the same number of rows."""
    first = 0
    for group in groups:
        n_ranges = 1
        if group.rows > _SPLIT_FROM * shard_rows:
            n_ranges = min(-(-group.rows // shard_rows), _MAX_RANGES)
        starts = [group.rows * index // n_ranges for index in range(n_ranges + 1)]
        for start, stop in pairwise(starts):
            size = group.size_bytes * (stop - start) // group.rows
            yield _Unit(Piece(file, first + start, stop - start, first + start, stop - start), size)
        first += group.rows


def _record_batches(file: TableFile, rows: Sequence[int]) -> Iterator[_Unit]:
    total, row = max(sum(rows), 1), 0
    for index, n_rows in enumerate(rows):
        yield _Unit(Piece(file, index, 1, row, n_rows), file.size_bytes * n_rows // total)
        row += n_rows


def _continues(last: Piece, piece: Piece) -> bool:
    if last.length is None or last.file.path != piece.file.path:
        return False
    return last.first + last.length == piece.first
