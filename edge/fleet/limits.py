"""How much one device may ask for: a bucket that refills, so that a burst passes and a flood does not.

In memory, since what a server forgets when it starts again costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

_MAX_BUCKETS = 100_000


@dataclass(frozen=True)
class Rate:
    """How much may come: ``burst`` at once, and ``per_s`` a second from then on."""

    per_s: float
    burst: float


class Buckets:
    """One bucket per caller.

    Args:
        rate: What each may ask for.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._left: dict[Hashable, tuple[float, float]] = {}

    def take(self, caller: Hashable, *, now_s: float) -> float:
        """Count one request.

        Args:
            caller: Whose.
            now_s: Any clock that only goes forward, in seconds.

        Returns:
            0 when it may pass, otherwise in how many seconds the next one may.
        """
        left, at_s = self._left.get(caller, (self._rate.burst, now_s))
        left = min(self._rate.burst, left + max(0.0, now_s - at_s) * self._rate.per_s)
        if left < 1:
            self._left[caller] = (left, now_s)
            return math.ceil((1 - left) / self._rate.per_s)
        if caller not in self._left and len(self._left) >= _MAX_BUCKETS:
            self._left.clear()  # full buckets forgotten: at worst everybody has one burst more
        self._left[caller] = (left - 1, now_s)
        return 0.0
