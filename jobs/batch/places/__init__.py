"""Where a batch run writes: a folder or a prefix on S3, held by one driver, every file whole or absent.

Both kinds promise the same of a file: it appears whole, it can be created once, and of two writers that
meet at one name the later one compares. It knows names and bytes, nothing of shards or ledgers.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from kit import files
from kit.errors import ConflictError, InputError, KitError, SettingsError, UnavailableError
from kit.s3 import ADDRESS_RULE, shown

#: What a driver holds a place by: in a folder, in a bucket. Neither is among a place's entries.
LOCK = "_run/lock"
LEASE = "_run/lease.json"
HOLDS = (LOCK, LEASE)

_log = logging.getLogger("kit")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, order=True)
class Entry:
    """One file of a place: its name relative to it, and its size."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Pace:
    """How a driver shows that it lives, where the kernel cannot say so (S3).

    Attributes:
        renew_s: Seconds between two renewals of the lease.
        dead_after_s: How long a lease stays unchanged, by the clock of whoever watches it, until its owner
            counts as dead. Clocks of two machines are never compared.
        clock: Seconds that only grow.
        wait: Sleeps for a number of seconds.
    """

    renew_s: float = 5.0
    dead_after_s: float = 20.0
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep


class Place(Protocol):
    """An output place.

    Names are relative POSIX paths without ``.`` and ``..``; spaces and any alphabet are welcome. A name with
    a part that starts with ``.`` is temporary: nothing can be put there, and ``entries`` leaves it out.

    Every method raises ``InputError`` for a name that breaks these rules, and ``UnavailableError`` when the
    disk is full or the server does not answer (S3: after about a minute of attempts).
    """

    @property
    def uri(self) -> str:
        """The address the place was opened with."""

    def read(self, name: str) -> bytes | None:
        """Give the bytes of a file, or None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it, in one step."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; of several that try at once, one succeeds.

        Returns:
            Whether this call made the file, even when its first answer was lost on the way.
        """

    def spool(self, name: str) -> Path:
        """Choose a local path, different at each call, where a file is written before ``put_file``.

        In a folder that is beside the final place; else in a temporary folder that goes when this object
        does, so keep the one until the other is put. ``spooled`` also removes it when writing fails.
        """

    def put_file(self, name: str, path: Path, *, sha256: str, mark: str | None = None) -> None:
        """Move a spooled file to its name in one step; ``path`` is gone afterwards, also after an error.

        The first writer creates the name. A later one compares: equal bytes are left as they are, others are
        replaced and a warning says so, unless ``mark`` is there. So a process that was given up for dead and
        comes back cannot change a file that has been committed; before that, the last one replaces a file
        whole, and who commits digests of its own must look at the file once more if it loses the commit.

        Args:
            name: Final name.
            path: The spooled file.
            sha256: Of its bytes, 64 lower-case hexadecimal digits.
            mark: Name of the file by which this one is committed.

        Raises:
            ConflictError: The file is committed with other bytes.
            InputError: The file is too large for one upload (S3: 5 GiB).
        """

    def settle(self) -> None:
        """Have the names of all files survive a power cut, too; their bytes do since they were put.

        Before that a name may be lost, so whoever relies on one looks for it after a restart. It is called
        once, before the record that says that all is done: flushing a folder at every file took half of the
        time of a fast run.
        """

    def entries(self, prefix: str = "") -> list[Entry]:
        """List all files whose names start with ``prefix``, in all folders, sorted by name.

        Temporary files and what the place is held by (``HOLDS``) are left out.
        """

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Stream a file's bytes.

        Raises:
            NotFoundError: There is no such file.
        """

    def delete(self, names: Iterable[str]) -> None:
        """Remove files, and folders this leaves empty; what is not there is passed over.

        ``HOLDS`` may be named by whoever holds the place, last.
        """

    def held(self) -> AbstractContextManager[threading.Event]:
        """Keep the place for this driver while the block runs.

        Yields:
            An event that is set should another driver have taken the place, because this one did not show
            for long that it lives; it must stop then.

        Raises:
            ConflictError: Another driver has it; its host and process are named.
        """

    def leftovers(self) -> list[str]:
        """List files of this kit that processes which died have half-written. Of S3 there are none."""

    def clear_leftovers(self) -> None:
        """Remove ``leftovers``; only for who holds the place, before it lets anybody write."""


def open_place(uri: str, *, pace: Pace | None = None) -> Place:
    """Choose the place an address means; nothing is created or contacted yet.

    A place does not survive pickling: open it in the process that uses it. Threads may share it.

    Args:
        uri: A folder, or ``s3://bucket/prefix``.
        pace: How the place is held.

    Raises:
        SettingsError: The address is neither, or holds a query string, a fragment or credentials.
    """
    from jobs.batch.places.bucket import BucketPlace
    from jobs.batch.places.folder import FolderPlace

    if uri.startswith("s3://"):
        return BucketPlace(uri, pace=pace or Pace())
    if not uri or "\0" in uri or uri.startswith("~") or _SCHEME.match(uri):
        raise SettingsError(f"{shown(uri)!r} is not an output address", hint=ADDRESS_RULE)
    return FolderPlace(Path(uri))


@contextlib.contextmanager
def spooled(place: Place, name: str) -> Iterator[Path]:
    """Give a path to write a file to before it is put; whatever is left there at the end is removed.

    Raises:
        DiskFullError: The disk is full.
        UnavailableError: It refuses otherwise.
    """
    path = place.spool(name)
    try:
        with disk_errors(path):
            yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say in one sentence what a disk refuses, whatever it is."""
    try:
        with files.disk_errors(path):
            yield
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be used: {error.strerror or str(error)[:200] or type(error).__name__}",
            hint="check the folder and the disk",
        ) from error


def checked_name(name: str) -> str:
    """Refuse a name that leaves the place, or that could not be stored by both kinds of place."""
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts) or not _encodable(name):
        raise InputError(
            f"{name!r} is not the name of a file in an output",
            hint="write a relative path with / between folders, without . and ..",
        )
    return name


def final_name(name: str) -> str:
    """Refuse also a temporary name, which ``entries`` would not list."""
    if is_temporary(checked_name(name)):
        raise InputError(f"{name!r} is a temporary name", hint="do not let a part of it start with a dot")
    return name


def is_temporary(name: str) -> bool:
    """Say whether a part of a name starts with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def held_by_another(uri: str, *, host: object, pid: object, since: object) -> ConflictError:
    """Word the refusal of a place that another driver has."""
    return ConflictError(
        f"the output {uri} is held by another run (host {host}, pid {pid}, since {since})",
        hint="wait until that run has ended, or choose another output",
    )


def committed_differently(name: str, *, uri: str, mark: str) -> KitError:
    """Word the refusal to replace a committed file."""
    return ConflictError(
        f"{name} in {uri} is committed by {mark} with other bytes than these",
        hint="leave the file as it is; another process has finished this part of the run",
    )


def warn_of_replacing(name: str, *, uri: str) -> None:
    """Say that a file without a commit is replaced by other bytes."""
    _log.warning("%s in %s was left without a commit and is replaced by other bytes", name, uri)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
