"""Deltas: what turns one bundle's archive into another's, when that is smaller than the other itself.

A delta is bsdiff's: runs of the old file to which bytes are added, and bytes that are new, as three
compressed streams under a header that names both files by sha256. ``apply`` reads them in pieces, so its
memory does not grow with the files, and believes nothing: sizes, digests and every step are checked, and what
it wrote is deleted unless it is the file that was named. Whether that file is a good bundle is checked as if
it had come whole. ``apply`` runs on a device: standard library and numpy; ``make`` runs where bundles are
offered.

Source: Percival, "Naive differences of executable code" (2003); the format here is this kit's own.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import os
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kit import files as kit_files
from kit.archive import MAX_BYTES
from kit.errors import InputError, MissingDependencyError, VerificationError, install_line

SUFFIX = ".delta"
"""How a delta's file name ends."""

MAX_MADE_BYTES = 128 << 20
"""Largest archive a delta is made for: suffix sorting takes some 20 times its size in memory."""

_MAGIC = b"kit delta 1\n"
# sha256 of old and new; sizes of old and new; sizes of the control and the added stream.
_HEADER = struct.Struct("<32s32sQQQQ")
# One step: a place in the old file, how many of its bytes to add to, how many new bytes follow.
_STEP = struct.Struct("<QQQ")
MAX_STEPS = 1 << 20
"""Most steps of a delta."""

_CHUNK_BYTES = 256 << 10
_MAX_ARCHIVE_BYTES = MAX_BYTES + (1 << 20)
_FETCH_HINT = "fetch the whole bundle instead"

_Step = tuple[int, int, int]


def make(old: Path, new: Path, path: Path) -> int | None:
    """Write what turns one archive into another, if that is smaller than the other.

    Args:
        old: The archive a device has.
        new: The archive it shall have.
        path: Where the delta shall stand; nothing is written there when it would not be smaller.

    Returns:
        Its size in bytes, or None when it would not be smaller than ``new``.

    Raises:
        InputError: An archive cannot be read, or is too large to compare.
        MissingDependencyError: bsdiff4 is not installed.
        UnavailableError: The disk is full or the folder cannot be written.
    """
    try:
        old_data, new_data = old.read_bytes(), new.read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    if max(len(old_data), len(new_data)) > MAX_MADE_BYTES:
        raise InputError(f"{new} is too large for a delta: more than {MAX_MADE_BYTES >> 20} MiB")
    plans = [_searched(old_data, new_data), _aligned(old_data, new_data)]
    plans = [plan for plan in plans if len(plan) <= MAX_STEPS]
    data = min((_packed(old_data, new_data, plan) for plan in plans), key=len, default=new_data)
    if len(data) >= len(new_data):
        return None
    kit_files.write_atomic(path, data)
    return len(data)


def apply(old: Path, delta: Path, new: Path, *, size_bytes: int, sha256: str) -> None:
    """Make an archive from an older one and a delta.

    Args:
        old: The older archive.
        delta: What ``make`` wrote.
        new: Where the archive shall stand; an older file there is replaced.
        size_bytes: The size it must have.
        sha256: The digest it must have, 64 hexadecimal digits.

    Raises:
        VerificationError: The delta is damaged, hostile, or for other files; nothing is left at ``new``.
        UnavailableError: The disk is full or a file cannot be read.
    """
    try:
        with kit_files.disk_errors(new), delta.open("rb") as patch, old.open("rb") as source:
            control, added, fresh = _opened(patch, delta, old=old, size_bytes=size_bytes, sha256=sha256)
            with new.open("wb") as target:
                digest = _rebuild(source, target, _steps(control), added, fresh, size_bytes=size_bytes)
                target.flush()
                os.fsync(target.fileno())
        for stream in (control, added, fresh):
            stream.end()
        if digest != sha256:
            raise VerificationError("the delta does not make the archive that was named", hint=_FETCH_HINT)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


class _Stream:
    """One compressed stream of a delta, read in pieces; no piece is larger than it was asked for."""

    def __init__(self, path: Path, *, start: int, size: int) -> None:
        self._file = path.open("rb")
        self._file.seek(start)
        self._left = size
        self._expander = bz2.BZ2Decompressor()

    def read(self, n_bytes: int) -> bytes:
        """Read so many bytes."""
        pieces = []
        while n_bytes:
            if self._expander.eof:
                raise VerificationError("the delta ends too early", hint=_FETCH_HINT)
            data = b""
            if self._expander.needs_input:
                data = self._file.read(min(self._left, _CHUNK_BYTES))
                if not data:
                    raise VerificationError("the delta is truncated", hint=_FETCH_HINT)
                self._left -= len(data)
            try:
                piece = self._expander.decompress(data, n_bytes)
            except (OSError, ValueError) as error:  # what bz2 raises for bytes it did not write
                raise VerificationError(f"the delta is damaged: {error}", hint=_FETCH_HINT) from error
            pieces.append(piece)
            n_bytes -= len(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Refuse whatever stands behind what was read."""
        with self._file:
            if not self._expander.eof:
                try:
                    more = self._expander.decompress(self._file.read(self._left), 1)
                except (OSError, ValueError) as error:
                    raise VerificationError(f"the delta is damaged: {error}", hint=_FETCH_HINT) from error
                if more or not self._expander.eof:
                    raise VerificationError("the delta goes on after its end", hint=_FETCH_HINT)
                self._left = 0
            if self._left or self._expander.unused_data:
                raise VerificationError("the delta goes on after its end", hint=_FETCH_HINT)


def _opened(
    patch: BinaryIO, path: Path, *, old: Path, size_bytes: int, sha256: str
) -> tuple[_Stream, _Stream, _Stream]:
    """Check a delta's header against both archives, and open its streams."""
    total = os.fstat(patch.fileno()).st_size
    head = patch.read(len(_MAGIC) + _HEADER.size)
    if len(head) < len(_MAGIC) + _HEADER.size or not head.startswith(_MAGIC):
        raise VerificationError(f"{path} is not a delta that this kit reads", hint=_FETCH_HINT)
    old_sha, new_sha, old_size, new_size, n_control, n_added = _HEADER.unpack(head[len(_MAGIC) :])
    if new_size != size_bytes or new_sha.hex() != sha256 or new_size > _MAX_ARCHIVE_BYTES:
        raise VerificationError("the delta makes another archive than was named", hint=_FETCH_HINT)
    if old_size != old.stat().st_size or old_sha.hex() != kit_files.sha256_file(old):
        raise VerificationError("the delta starts from another archive than this one", hint=_FETCH_HINT)
    start, n_fresh = len(head), total - len(head) - n_control - n_added
    if n_fresh < 0:
        raise VerificationError("the delta is truncated", hint=_FETCH_HINT)
    places = ((start, n_control), (start + n_control, n_added), (start + n_control + n_added, n_fresh))
    control, added, fresh = (_Stream(path, start=place, size=size) for place, size in places)
    return control, added, fresh


def _steps(control: _Stream) -> Iterator[_Step]:
    for _ in range(MAX_STEPS):
        yield _STEP.unpack(control.read(_STEP.size))
    raise VerificationError(f"the delta has more than {MAX_STEPS} steps", hint=_FETCH_HINT)


def _rebuild(
    source: BinaryIO,
    target: BinaryIO,
    steps: Iterator[_Step],
    added: _Stream,
    fresh: _Stream,
    *,
    size_bytes: int,
) -> str:
    """Write the new archive; returns its sha256."""
    old_size = os.fstat(source.fileno()).st_size
    digest = hashlib.sha256()
    done = 0
    while done < size_bytes:
        place, n_added, n_fresh = next(steps)
        if not 0 < n_added + n_fresh <= size_bytes - done or place + n_added > old_size:
            raise VerificationError("the delta leads out of its files", hint=_FETCH_HINT)
        source.seek(place)
        for n_bytes in _pieces(n_added):
            before = np.frombuffer(source.read(n_bytes), dtype=np.uint8)
            data = (before + np.frombuffer(added.read(n_bytes), dtype=np.uint8)).tobytes()
            digest.update(data)
            target.write(data)
        for n_bytes in _pieces(n_fresh):
            data = fresh.read(n_bytes)
            digest.update(data)
            target.write(data)
        done += n_added + n_fresh
    return digest.hexdigest()


def _pieces(n_bytes: int) -> Iterator[int]:
    while n_bytes:
        piece = min(n_bytes, _CHUNK_BYTES)
        yield piece
        n_bytes -= piece


def _searched(old: bytes, new: bytes) -> list[_Step]:
    """Plan by what is alike anywhere in the two files, as bsdiff finds it."""
    try:
        from bsdiff4 import core
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "deltas need bsdiff4, which is not installed", hint=install_line("fleet")
        ) from error
    control = np.frombuffer(core.diff(old, new)[0], dtype="<u8")
    sizes = (control & np.uint64(2**63 - 1)).astype(np.int64)  # bsdiff writes sign and size, not complements
    signed = np.where(control >> np.uint64(63) != 0, -sizes, sizes)
    steps, place = [], 0
    for n_added, n_fresh, onward in signed.reshape(-1, 3).tolist():
        if n_added + n_fresh:
            steps.append((place, n_added, n_fresh))
        place += n_added + onward
    return steps


def _aligned(old: bytes, new: bytes) -> list[_Step]:
    """Plan member by member: weights of two trainings differ in each byte, but lie at the same places."""
    before, steps, done = _members(old), [], 0
    for name, (start, size) in _members(new).items():
        place, n_alike = before.get(name, (0, 0))
        n_alike = min(n_alike, size)
        steps += [(0, 0, start - done), (place, n_alike, size - n_alike)]
        done = start + size
    steps.append((0, 0, len(new) - done))
    return [step for step in steps if step[1] + step[2]]


def _members(data: bytes) -> dict[str, tuple[int, int]]:
    """Give each member's place and size, in order; none when it is no archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as opened:
            return {member.name: (member.offset_data, member.size) for member in opened.getmembers()}
    except tarfile.TarError:
        return {}


def _packed(old: bytes, new: bytes, steps: Sequence[_Step]) -> bytes:
    """Write a plan as a delta."""
    before, after = np.frombuffer(old, dtype=np.uint8), np.frombuffer(new, dtype=np.uint8)
    control, added, fresh, done = [], [], [], 0
    for place, n_added, n_fresh in steps:
        control.append(_STEP.pack(place, n_added, n_fresh))
        added.append((after[done : done + n_added] - before[place : place + n_added]).tobytes())
        done += n_added
        fresh.append(new[done : done + n_fresh])
        done += n_fresh
    streams = [bz2.compress(b"".join(pieces), 9) for pieces in (control, added, fresh)]
    shas = [hashlib.sha256(data).digest() for data in (old, new)]
    header = _HEADER.pack(*shas, len(old), len(new), len(streams[0]), len(streams[1]))
    return b"".join((_MAGIC, header, *streams))
