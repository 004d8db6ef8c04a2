"""An output place in a folder: atomic renames, hard links that refuse to replace, one lock of the kernel.

It knows names and bytes, nothing of shards or ledgers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jobs.batch.places import (
    HOLDS,
    LOCK,
    Entry,
    checked_name,
    committed_differently,
    disk_errors,
    final_name,
    held_by_another,
    is_temporary,
    warn_of_replacing,
)
from kit.errors import NotFoundError, UnavailableError
from kit.files import canonical_json, create_once, sha256_file, sync_folder, write_atomic

# The names kit.files and spool() give to what is not finished: a dot, the final name, random letters.
_LEFTOVER = re.compile(r"\..+\.([0-9a-f]{16}|[a-z0-9_]{8})")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderPlace:
    """A folder as an output place; see ``Place``.

    Args:
        root: The folder, made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def uri(self) -> str:
        """The folder as it was given."""
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        """Give a file's bytes, or None; see ``Place.read``."""
        path = self.root / checked_name(name)
        with disk_errors(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        """Replace a file in one step; see ``Place.put``."""
        write_atomic(self.root / final_name(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; see ``Place.create``."""
        return create_once(self.root / final_name(name), data, settled=False)

    def spool(self, name: str) -> Path:
        """Choose a path beside the final one; see ``Place.spool``."""
        path = self.root / final_name(name)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{secrets.token_hex(8)}")

    def put_file(self, name: str, path: Path, *, sha256: str, mark: str | None = None) -> None:
        """Flush a spooled file to disk and give it its name; see ``Place.put_file``."""
        target = self.root / final_name(name)
        try:
            with disk_errors(target):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                if not _linked(path, target) and not _is(target, path=path, sha256=sha256):
                    if mark is not None and (self.root / checked_name(mark)).exists():
                        raise committed_differently(name, uri=self.uri, mark=mark)
                    if target.exists():
                        warn_of_replacing(name, uri=self.uri)
                    os.replace(path, target)
        finally:
            path.unlink(missing_ok=True)

    def settle(self) -> None:
        """Flush every folder, once for all files in it; see ``Place.settle``."""
        with disk_errors(self.root):
            for folder, _, _ in os.walk(self.root):
                sync_folder(Path(folder))

    def entries(self, prefix: str = "") -> list[Entry]:
        """List files by name; see ``Place.entries``."""
        return sorted(
            Entry(name, size_bytes)
            for name, size_bytes in self._files(prefix)
            if not is_temporary(name) and name not in HOLDS
        )

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Stream a file; see ``Place.open``."""
        path = self.root / checked_name(name)
        with disk_errors(path):
            try:
                file = path.open("rb")
            except FileNotFoundError as error:
                raise NotFoundError(f"{self.uri} has no file {name!r}") from error
        with file:
            yield file

    def delete(self, names: Iterable[str]) -> None:
        """Remove files and what folders that empties, but never the root; see ``Place.delete``."""
        for name in names:
            path = self.root / checked_name(name)
            with disk_errors(path):
                path.unlink(missing_ok=True)
                for parent in list(path.relative_to(self.root).parents)[:-1]:
                    if not _removed(self.root / parent):
                        break

    @contextlib.contextmanager
    def held(self) -> Iterator[threading.Event]:
        """Lock ``_run/lock``, which the kernel frees when this process dies; see ``Place.held``.

        The event is never set: nobody can take a lock whose owner lives.
        """
        path = self.root / LOCK
        with disk_errors(path):
            handle = self._locked(path)
        try:
            with disk_errors(path):
                owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
                os.ftruncate(handle, 0)
                os.pwrite(handle, canonical_json(owner), 0)
            yield threading.Event()
        finally:
            if _same_file(handle, path):  # and locked, so the name cannot come to mean another's file
                path.unlink()
            os.close(handle)

    def leftovers(self) -> list[str]:
        """List temporary files by the form of their names; see ``Place.leftovers``."""
        return sorted(
            name
            for name, _ in self._files("")
            if _LEFTOVER.fullmatch(name.rpartition("/")[2]) and not is_temporary(name.rpartition("/")[0])
        )

    def clear_leftovers(self) -> None:
        """Remove what earlier drivers have half-written; see ``Place.clear_leftovers``."""
        self.delete(self.leftovers())

    def _locked(self, path: Path) -> int:
        """Open and lock a file; the lock counts only while the name still means that file."""
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # who let go of it has removed the folder meanwhile
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(handle, path):
                    return handle
            except BlockingIOError:
                owner = _owner(handle)
                os.close(handle)
                raise held_by_another(self.uri, **owner) from None
            except OSError as error:
                os.close(handle)
                if error.errno in _NO_LOCKS:
                    raise UnavailableError(
                        f"the file system of {self.uri} knows no locks, so two runs could not be told apart",
                        hint="choose an output on another file system, or on S3",
                    ) from error
                raise
            os.close(handle)

    def _files(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Give name and size of every file whose name starts with a prefix, in no order."""
        folder = prefix.rpartition("/")[0]
        start = self.root / checked_name(folder) if folder else self.root
        with disk_errors(self.root):
            for parent, _, files in os.walk(start, onerror=_raise_unless_gone):
                for file in files:
                    path = Path(parent, file)
                    name = path.relative_to(self.root).as_posix()
                    if name.startswith(prefix):
                        with contextlib.suppress(FileNotFoundError):  # a temporary one may go at any time
                            yield name, path.stat().st_size


def _linked(path: Path, target: Path) -> bool:
    """Give a file a second, final name unless that one is taken; False also where there are no links."""
    try:
        os.link(path, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _is(target: Path, *, path: Path, sha256: str) -> bool:
    """Say whether the file that is there has the bytes of the one that comes."""
    try:
        return target.stat().st_size == path.stat().st_size and sha256_file(target) == sha256
    except FileNotFoundError:
        return False


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> dict[str, Any]:
    """Read who holds a lock; a lock that was taken just now does not say so yet."""
    try:
        said = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        said = {}
    return {key: said.get(key, "unknown") for key in ("host", "pid", "since")}


def _removed(folder: Path) -> bool:
    """Remove a folder if it is empty."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
