"""What a device says of itself: its status, numbered so that a server knows which is the newest.

It writes what it is told. See docs/device-protocol.md.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import __version__
from kit.files import write_atomic

if TYPE_CHECKING:
    from edge.agent.state import State

_NAME = "status.seq"
_MAX_REJECTED = 32


class Numbers:
    """Numbers for statuses that only rise, across restarts, and across the loss of their file, too.

    Args:
        folder: The device folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        try:
            self._last = int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            self._last = int(time.time())  # above what was given out before, unless one a second was

    def next(self) -> int:
        """Give the next one; a disk that cannot be written costs nothing until the next start."""
        self._last += 1
        with contextlib.suppress(Exception):  # a status is worth more than its number's file
            write_atomic(self._path, str(self._last).encode())
        return self._last


def make_status(
    state: State,
    *,
    folder: Path,
    seq: int,
    running: str | None,
    health: Mapping[str, Any],
    engines: Mapping[str, str],
) -> dict[str, Any]:
    """Give a status as the protocol has it.

    Args:
        state: The device's.
        folder: Its folder, for the room that is left.
        seq: See ``Numbers``.
        running: Digest of the slot that answers now; None when none does.
        health: What was counted since the bundle was confirmed.
        engines: Engine to version, of what is loaded.
    """
    value = state.to_json()
    rejected = list(dict(state.rejected).items())[-_MAX_REJECTED:]
    free_bytes: int | None = None
    with contextlib.suppress(OSError):
        stats = os.statvfs(folder)
        free_bytes = stats.f_bavail * stats.f_frsize
    return {
        "format": 1,
        "seq": seq,
        "agent": __version__,
        "phase": state.phase,
        "digest": running,
        "previous": state.previous,
        "release": state.release,
        "rejected": dict(rejected),
        "last_report": value["last_report"],
        "keyring": state.keyring_counter,
        "health": dict(health),
        "machine": {
            "machine": platform.machine(),
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
            "engines": dict(engines),
            "free_bytes": free_bytes,
        },
    }
