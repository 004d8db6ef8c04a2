"""Small files that are read again when they change, and the thread that looks.

A replica never looks at a file on behalf of a request: a thread does, four times a second. What the bytes
mean is not known here.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from kit.errors import InputError, KitError

#: ``ray.serve`` is what reaches a replica's log file; "kit" has no handler there.
_logger = logging.getLogger("ray.serve")
_MAX_BYTES = 16 << 20
POLL_S = 0.25
_UNREADABLE = (-1,)

T = TypeVar("T")


class Followed(Generic[T]):
    """The value of a file, as it was when it was last read without an error.

    Args:
        path: The file.
        parse: Makes the value of all its bytes; raises ``KitError`` when they are damaged.
        absent: The value while there is no such file; None refuses to begin without it.
        private: Whether a file that others can read is refused.
        on_change: Called after the value has changed.

    Raises:
        InputError: The file is damaged, cannot be read, is readable by others or is missing.
    """

    def __init__(
        self,
        path: Path,
        *,
        parse: Callable[[bytes], T],
        absent: T | None,
        private: bool = False,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._path = path
        self._parse = parse
        self._absent = absent
        self._private = private
        self._on_change = on_change
        self._seen: tuple[int, ...] | None = None
        self.value: T = self._read()

    def look(self) -> None:
        """Read the file if it has changed; a damaged one is logged and leaves the value as it was."""
        try:
            found = _identity(self._path)
        except OSError as error:
            if self._seen != _UNREADABLE:
                _logger.error("%s cannot be looked at: %s; it stays as it was", self._path, error.strerror)
            self._seen = _UNREADABLE
            return
        if found == self._seen:
            return
        self._seen = found  # so that the same damage is told once
        try:
            self.value = self._read()
        except KitError as error:
            _logger.error("%s; what it held before stays in force", error.message)
            return
        if self._seen is None:
            _logger.warning("%s is gone, and with it what it allowed", self._path)
        if self._on_change is not None:
            self._on_change()

    def _read(self) -> T:
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                self._seen = _facts(facts)
                if self._private:
                    check_private(self._path, facts)
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError as error:
            self._seen = None
            if self._absent is None:
                raise InputError(f"{self._path} does not exist", hint="name an existing file") from error
            return self._absent
        except OSError as error:
            raise InputError(f"{self._path} cannot be read: {error.strerror}") from error
        if len(data) > _MAX_BYTES:
            raise InputError(f"{self._path} is larger than {_MAX_BYTES} bytes", hint="name the right file")
        return self._parse(data)


class Watch:
    """A thread that looks after something again and again, until it is closed.

    Args:
        name: Of the thread.
        look: What it calls; errors are logged and do not end it.
        every_s: Seconds between two calls.
    """

    def __init__(self, name: str, *, look: Callable[[], None], every_s: float = POLL_S) -> None:
        self._look = look
        self._every_s = every_s
        self._woken = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look now rather than at the end of the pause."""
        self._woken.set()

    def close(self) -> None:
        """End the thread; one that waits for the network ends with its process."""
        self._closed = True
        self._woken.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._closed:
            self._woken.wait(self._every_s)
            self._woken.clear()
            if self._closed:
                return
            try:
                self._look()
            except Exception:  # the edge of a thread: a revoked key must stay revocable after a bug
                _logger.exception("%s failed", self._thread.name)


def check_private(path: Path, facts: os.stat_result) -> None:
    """Refuse a file others can read.

    Raises:
        InputError: Its group or the world may read or write it.
    """
    if facts.st_mode & 0o077:
        raise InputError(
            f"others can read {path} (mode {facts.st_mode & 0o777:04o})", hint=f"run: chmod 600 {path}"
        )


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        return _facts(path.stat())
    except FileNotFoundError:
        return None


def _facts(facts: os.stat_result) -> tuple[int, ...]:
    # A replaced file has another inode, an edited one another time; the change time also covers its mode.
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
