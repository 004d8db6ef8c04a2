"""Files that are either whole or absent: atomic writes, digests and canonical JSON.

Every file the kit leaves behind goes through here, so a full disk or an interrupt never leaves
a half-written one under its final name. Runs on a device: standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.errors import DiskFullError, InputError, UnavailableError

_CHUNK_BYTES = 1 << 20
# What systems answer to a hard link where there are none.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
# What systems answer to a change of permissions where there are none.
_NO_PERMISSIONS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Permissions, a file where a folder should be or the reverse, a name that is too long, a broken disk.
_NOT_WRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.EIO),
)


def canonical_json(value: Any) -> bytes:
    """Write a value as JSON whose bytes depend on the value alone.

    Args:
        value: Mappings with string keys, sequences, strings, finite numbers, booleans, None.

    Returns:
        UTF-8, keys sorted, two-space indent, one newline at the end.

    Raises:
        InputError: The value holds NaN, an infinity or half a character, which JSON cannot say.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except ValueError as error:  # a UnicodeEncodeError, for half of a surrogate pair, is one too
        raise InputError(f"a value cannot be written as JSON: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: The file is absent, not JSON, or its top level is not an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__} where an object is expected")
    return value


def sha256_bytes(data: bytes) -> str:
    """Hash bytes; returns 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash a file in pieces of one MiB; returns 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(files: Mapping[str, str]) -> str:
    """Name a set of files by their content.

    Args:
        files: Relative POSIX path to the sha256 of that file's bytes.

    Returns:
        The sha256 over the sorted ``path NUL digest NEWLINE`` records, in hexadecimal.
    """
    records = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
    return sha256_bytes(records.encode())


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, settled: bool = True) -> None:
    """Replace a file in one step: the old bytes, or the new ones, never a mixture.

    Args:
        path: Where the bytes shall stand; missing parent folders are made.
        data: All of the file.
        mode: Permission bits of the new file.
        settled: Whether the name survives a power cut, too, when this returns; the bytes do in any case.

    Raises:
        UnavailableError: The disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                _set_mode(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        if settled:
            sync_folder(path.parent)


def _set_mode(handle: int, mode: int) -> None:
    """Set permission bits; cards and shares without any are well enough for what others may read."""
    try:
        os.fchmod(handle, mode)
    except OSError as error:
        if error.errno not in _NO_PERMISSIONS:
            raise
        if not mode & 0o044:
            raise UnavailableError(
                "a file would be there for others to read: the file system knows no permissions",
                hint="choose a folder on another one",
            ) from error


def create_once(path: Path, data: bytes, *, mode: int = 0o644, settled: bool = True) -> bool:
    """Write a file unless there is one: of several that try at once, one succeeds.

    Args:
        path: Where the bytes shall stand; missing parent folders are made.
        data: All of the file.
        mode: Permission bits of the new file.
        settled: See ``write_atomic``.

    Returns:
        Whether this call made the file; False leaves the one that was there untouched.

    Raises:
        UnavailableError: The disk is full or the folder cannot be written.
    """
    if os.path.lexists(path):
        return False
    work = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with disk_errors(path):
        try:
            write_atomic(work, data, mode=mode, settled=False)
            try:
                os.link(work, path)  # unlike a rename, refuses to replace
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if not _create_in_place(path, data, mode=mode):
                    return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(work)
        if settled:
            sync_folder(path.parent)
    return True


def _create_in_place(path: Path, data: bytes, *, mode: int) -> bool:
    """Create a file where there are no hard links (FAT cards): exclusive, but whole only at its end."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise
    return True


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder out of sight and show it under its name only when it is whole.

    Yields a new empty folder beside ``path``. When the block ends, its files and folders are flushed
    to disk and the folder is renamed to ``path``; if a folder with that name appeared meanwhile, it
    stays and ours is dropped (content-addressed names make the two equal). When the block
    raises, nothing remains.

    Raises:
        UnavailableError: The disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            with contextlib.suppress(OSError):  # a card without permissions
                os.chmod(work, 0o755)
            yield work
            for entry in sorted(work.rglob("*"), reverse=True):  # what is inside before its folder
                if entry.is_dir() and not entry.is_symlink():
                    sync_folder(entry)
                elif entry.is_file() and not entry.is_symlink():
                    with entry.open("rb") as opened:
                        os.fsync(opened.fileno())
            sync_folder(work)  # without a journal (FAT) a rename can outlive what it names
            try:
                os.rename(work, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync_folder(path.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network and FAT file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say in one sentence what a disk refuses; errors that are not a disk's stay as they are.

    Raises:
        DiskFullError: It has no room.
        UnavailableError: The folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk that holds {path} is full; nothing was left half-written",
                hint="free some space or choose another folder, then run the same command again",
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise UnavailableError(
                f"{path} cannot be written: {error.strerror}",
                hint="make the folder writable or choose another one",
            ) from error
        raise
