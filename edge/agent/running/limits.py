"""What a model may do before it counts as failed: pure rules over times and outcomes.

It starts nothing, stops nothing and reads no clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the process that holds a model may take.

    Attributes:
        threads: Threads of the engine.
        timeout_s: Longest time for one answer; a process that takes longer is killed.
        start_timeout_s: Longest time from its start to its first answer.
        max_memory_mb: Resident memory above which it is started anew; None takes three times what the
            bundle says it needs, and no less than 256.
        max_restarts: Restarts within ``restarts_within_s`` that are no failure yet.
        restarts_within_s: See there.
        max_wrong: Share of the last ``WINDOW`` answers that may be NaN or a failure of the engine.
        max_body_bytes: Largest body of a request.
        max_waiting: Requests that may wait for the model at once.
        max_samples: Requests of one window whose inputs and answers are kept; 0 keeps none.
    """

    threads: int = 1
    timeout_s: float = 10.0
    start_timeout_s: float = 60.0
    max_memory_mb: float | None = None
    max_restarts: int = 3
    restarts_within_s: float = 60.0
    max_wrong: float = 0.5
    max_body_bytes: int = 16 << 20
    max_waiting: int = 32
    max_samples: int = 0


WINDOW = 100
"""Answers over which wrong ones are counted."""

LEAST_WRONG = 20
"""Wrong answers that must have come together before any share of them is a failure."""

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 60.0
_LEAST_MEMORY_MB = 256.0
_MEMORY_TIMES = 3.0


class Restarts:
    """Decides whether a process that ended is started again, and when.

    Args:
        limits: How many restarts in which time are no failure.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._times: deque[float] = deque()
        self.total = 0
        self._in_a_row = 0

    def ended(self, *, now_s: float) -> float | None:
        """Take note of an end.

        Args:
            now_s: Monotonic time.

        Returns:
            How long to wait before the next start, in seconds; None when it has ended too often.
        """
        self.total += 1
        self._times.append(now_s)
        while self._times and now_s - self._times[0] > self._limits.restarts_within_s:
            self._times.popleft()
        if len(self._times) > self._limits.max_restarts:
            return None
        wait_s = _FIRST_WAIT_S * 2 ** (len(self._times) - 1)
        return float(min(wait_s, _LONGEST_WAIT_S))

    def last_resort(self) -> float:
        """Give the wait of a process that has failed and has nothing to stand in for it, in seconds."""
        self._in_a_row += 1
        return float(min(2.0**self._in_a_row, _LONGEST_WAIT_S))


class Answers:
    """Decides from its last answers whether a model has failed.

    Args:
        limits: Which share may be wrong.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_wrong = limits.max_wrong
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._wrong = 0

    def right(self) -> None:
        """Take note of a right answer."""
        if self._wrong or len(self._last) < WINDOW:
            self._add(False)

    def wrong(self) -> bool:
        """Take note of a wrong one; says whether the model has failed with it."""
        self._add(True)
        return self._wrong >= LEAST_WRONG and self._wrong > self._max_wrong * len(self._last)

    def _add(self, wrong: bool) -> None:
        if len(self._last) == WINDOW:
            self._wrong -= self._last[0]
        self._last.append(wrong)
        self._wrong += wrong


def memory_limit_bytes(limits: Limits, *, needed_mb: float | None) -> int:
    """Say how much memory a process may have in use.

    Args:
        limits: What was configured.
        needed_mb: What the bundle's manifest says it needs; None when it says nothing.
    """
    if limits.max_memory_mb is not None:
        return int(limits.max_memory_mb * 1e6)
    return int(max(_LEAST_MEMORY_MB, _MEMORY_TIMES * (needed_mb or 0.0)) * 1e6)
