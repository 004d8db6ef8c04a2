"""How many bytes of bundles a device may fetch today, kept over restarts.

Days are those of the device's clock. Each has its own count, so that a clock which jumps to another day and
back neither loses a day's count nor stops the device until that day comes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.agent.pulling.answers import BusyError
from kit import files
from kit.errors import InputError

_DAY_S = 86_400
_KEPT_DAYS = 4
_SAVED_BYTES = 1 << 20


class Ledger:
    """What pulling remembers over restarts: bytes of the last days, and the offer that is of no use.

    Args:
        path: Where it is kept.
        daily_bytes: Most bytes a day; None for no limit.
        wall_s: The wall clock, Unix time in seconds.
    """

    def __init__(
        self, path: Path, *, daily_bytes: int | None = None, wall_s: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._daily_bytes = daily_bytes
        self._wall_s = wall_s
        self._unsaved = 0
        value: dict[str, Any] = {}
        with contextlib.suppress(InputError):  # lost or damaged: at worst one day's bytes are counted anew
            value = files.read_json(path)
        days = value.get("days")
        self._days: dict[str, int] = {
            day: count
            for day, count in (days.items() if isinstance(days, dict) else ())
            if isinstance(count, int) and not isinstance(count, bool) and count >= 0
        }
        forgotten = value.get("forgotten")
        self._forgotten = forgotten if isinstance(forgotten, str) else ""

    @property
    def forgotten(self) -> str:
        """Names the offer that is of no use; empty when there is none."""
        return self._forgotten

    def forget(self, identity: str) -> None:
        """Remember that an offer is of no use, until another one comes."""
        self._forgotten = identity
        self.save()

    def left(self) -> int | None:
        """Say how many bytes may still be fetched today; None for no limit.

        Raises:
            BusyError: None may; it says when the next day begins.
        """
        if self._daily_bytes is None:
            return None
        left = self._daily_bytes - self._days.get(self._today(), 0)
        if left <= 0:
            error = BusyError(f"today's {self._daily_bytes} bytes have been fetched")
            error.retry_s = _DAY_S - self._wall_s() % _DAY_S
            raise error
        return left

    def spend(self, n_bytes: int) -> None:
        """Count bytes that were fetched."""
        if self._daily_bytes is None:
            return
        day = self._today()
        self._days[day] = self._days.get(day, 0) + n_bytes
        while len(self._days) > _KEPT_DAYS:
            del self._days[next(iter(self._days))]
        self._unsaved += n_bytes
        if self._unsaved >= _SAVED_BYTES:
            self.save()

    def save(self) -> None:
        """Write what is remembered.

        Raises:
            UnavailableError: The disk is full or the folder cannot be written.
        """
        self._unsaved = 0
        value = {"days": self._days, "forgotten": self._forgotten}
        files.write_atomic(self._path, files.canonical_json(value))

    def settle(self) -> None:
        """Write what has been counted since it was last written."""
        if self._unsaved:
            self.save()

    def _today(self) -> str:
        return str(int(self._wall_s() // _DAY_S))
