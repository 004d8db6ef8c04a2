"""Bundles as one file: a plain tar with exactly one possible byte sequence per content.

``pack`` writes sorted members with fixed header fields; ``unpack`` accepts only archives that
``pack`` could have written, so links, devices, odd paths, hidden extras and truncation have no way
in. Whether the content can be trusted is for ``kit.seal`` to say, and what it means is for
``kit.bundle``. Runs on a device: standard library only.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kit import files as kit_files
from kit.errors import ConflictError, InputError, VerificationError

SUFFIX = ".bundle"
"""How a bundle's file name ends."""

BUNDLE_FILES = (
    "bom.cdx.json",
    "golden/inputs.npz",
    "golden/outputs.npz",
    "licenses.txt",
    "manifest.json",
    "model.bin",
    "model.onnx",
    "model.sig",
    "model.tflite",
    "model.xml",
    "preprocessing.json",
    "profile.json",
    "provenance.json",
    "signature.json",
)
"""Every file a bundle may hold."""

MAX_BYTES = 1 << 30
"""Most bytes an archive's members may hold together."""

MAX_MEMBERS = 64
"""Most members of an archive."""

_BLOCK_BYTES = 512
_CHUNK_BYTES = 1 << 20
_END = bytes(2 * _BLOCK_BYTES)
_FETCH_HINT = "fetch the bundle again from where it was exported"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder entry",
    b"6": "a named pipe",
}


def pack(folder: Path, path: Path) -> str:
    """Write a folder as one archive: whole under its name, or not at all.

    Args:
        folder: A sealed folder; its files must be among ``BUNDLE_FILES``.
        path: The archive to write; an older one is replaced.

    Returns:
        The sha256 of the archive, in hexadecimal. Equal folders give equal archives.

    Raises:
        InputError: The folder holds something that does not belong into a bundle, or too much.
        UnavailableError: The disk is full or the folder cannot be written.
    """
    entries = [entry for entry in sorted(folder.rglob("*")) if entry.is_symlink() or not entry.is_dir()]
    names = sorted(entry.relative_to(folder).as_posix() for entry in entries)
    archive = io.BytesIO()
    for name in names:
        file = folder / name
        if name not in BUNDLE_FILES or file.is_symlink() or not file.is_file():
            raise InputError(
                f"{name!r} in {folder} does not belong into a bundle",
                hint=f"a bundle holds {', '.join(BUNDLE_FILES)}",
            )
        data = file.read_bytes()
        if archive.tell() + len(data) > MAX_BYTES:
            raise InputError(f"{folder} holds more than {MAX_BYTES >> 20} MiB, too much for a bundle")
        archive.write(_header(name, len(data)))
        archive.write(data)
        archive.write(bytes(-len(data) % _BLOCK_BYTES))
    if not names:
        raise InputError(f"{folder} holds no files to pack")
    archive.write(_END)
    data = archive.getvalue()
    kit_files.write_atomic(path, data)
    return kit_files.sha256_bytes(data)


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into a new folder: all of it, or nothing.

    Nothing in the folder may be used before ``kit.bundle.open_bundle`` has let it pass.

    Args:
        path: An archive that ``pack`` wrote.
        folder: Where the files shall stand; must not exist.

    Raises:
        VerificationError: The archive is not one ``pack`` writes: a member is absolute, climbs out
            with ``..``, is a link, a device or a duplicate, is no file of a bundle; the archive is
            truncated, too large, or goes on after its end. The sentence names the member.
        ConflictError: The folder exists.
        UnavailableError: The archive cannot be read, the disk is full.
    """
    if folder.is_symlink() or folder.exists():
        raise ConflictError(f"{folder} already exists", hint="name a folder that does not exist yet")
    try:
        archive = path.open("rb")
    except OSError as error:
        raise InputError(
            f"bundle {path} cannot be read: {error.strerror}", hint="name a file that `kit export` wrote"
        ) from error
    with archive, kit_files.atomic_folder(folder) as work:
        for name, n_bytes in _members(archive, path):
            target = work / name
            target.parent.mkdir(exist_ok=True)
            with target.open("xb") as file:
                _copy(archive, file, n_bytes, where=f"{path}, member {name!r}")


def _members(archive: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """Yield each member's name and size with the archive standing at its first byte."""
    seen: set[str] = set()
    total = 0
    while True:
        block = archive.read(_BLOCK_BYTES)
        if block == _END[:_BLOCK_BYTES]:
            if archive.read(_BLOCK_BYTES) != _END[_BLOCK_BYTES:] or not seen:
                raise VerificationError(f"{path} is truncated or holds no files", hint=_FETCH_HINT)
            if archive.read(1):
                raise VerificationError(f"{path} goes on after the end of its archive", hint=_FETCH_HINT)
            return
        if len(block) < _BLOCK_BYTES:
            raise VerificationError(f"{path} is truncated", hint=_FETCH_HINT)
        name, n_bytes = _checked(block, path)
        if name in seen:
            raise VerificationError(f"{path} holds {name!r} twice", hint=_FETCH_HINT)
        if seen and name < max(seen):
            raise VerificationError(f"{path} holds {name!r} out of order", hint=_FETCH_HINT)
        seen.add(name)
        total += n_bytes
        if len(seen) > MAX_MEMBERS or total > MAX_BYTES:
            raise VerificationError(
                f"{path}, member {name!r}: more than {MAX_MEMBERS} members or {MAX_BYTES >> 20} MiB"
            )
        yield name, n_bytes
        if any(archive.read(-n_bytes % _BLOCK_BYTES)):
            raise VerificationError(f"{path}, member {name!r}: data hides in its padding", hint=_FETCH_HINT)


def _checked(block: bytes, path: Path) -> tuple[str, int]:
    """Read a header, and refuse every one that ``_header`` would not have written."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise VerificationError(f"{path} is not a bundle: {error}", hint=_FETCH_HINT) from error
    name = info.name
    where = f"{path}, member {name!r}"
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = _KINDS.get(info.type, f"of the unknown type {info.type!r}")
        raise VerificationError(f"{where} is {kind}, not a plain file", hint=_FETCH_HINT)
    if name.startswith("/") or "\\" in name:
        raise VerificationError(f"{where} is not a relative path", hint=_FETCH_HINT)
    if ".." in name.split("/"):
        raise VerificationError(f"{where} climbs out of its folder", hint=_FETCH_HINT)
    if name not in BUNDLE_FILES:
        raise VerificationError(f"{where} is no file of a bundle", hint=_FETCH_HINT)
    if info.size > MAX_BYTES:
        raise VerificationError(f"{where} holds {info.size} bytes, more than {MAX_BYTES >> 20} MiB")
    if info.size < 0 or _header(name, info.size) != block:
        raise VerificationError(f"{where} has a header that no kit writes", hint=_FETCH_HINT)
    return name, info.size


def _copy(source: BinaryIO, target: BinaryIO, n_bytes: int, *, where: str) -> None:
    while n_bytes:
        data = source.read(min(n_bytes, _CHUNK_BYTES))
        if not data:
            raise VerificationError(f"{where}: the archive is truncated", hint=_FETCH_HINT)
        target.write(data)
        n_bytes -= len(data)


def _header(name: str, n_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = n_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
