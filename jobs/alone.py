"""One run of a kind at a time: a lock file that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kit.errors import ConflictError, UnavailableError


@contextmanager
def alone(folder: Path, identity: str) -> Iterator[None]:
    """Keep a second run of the same identity out: both would write the same checkpoints.

    Args:
        folder: Where the lock lies; made where it is missing.
        identity: Of the run.

    Raises:
        ConflictError: The same run is going on already.
        UnavailableError: The lock cannot be written.
    """
    lock = folder / f"{identity}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise UnavailableError(
            f"{lock} cannot be written: {error.strerror}", hint="make the folder writable"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):  # held, or its holder has just left
            taken = True
        if taken:
            raise ConflictError(
                f"the run {identity} of the same data, code and settings is going on already",
                hint="wait until it has ended, or change a setting",
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
