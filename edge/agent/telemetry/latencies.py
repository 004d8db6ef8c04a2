"""How long answers took and how requests ended, in one window and since a bundle was confirmed.

Counts in fixed bins, so that a month takes no more room than a minute. Without numpy: it is kept where no
model is.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Any

EDGES_MS: tuple[float, ...] = (
    *(0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0),
    *(100.0, 150.0, 200.0, 300.0, 500.0, 700.0, 1000.0, 2000.0, 5000.0, 10000.0),
)
"""Upper bounds of the bins but the last, in ms."""

OK = "ok"

#: How a request that was not answered ended, by its status.
_WORDS = {
    400: "invalid",
    401: "unauthorized",
    404: "not_found",
    405: "method",
    409: "conflict",
    413: "too_large",
    429: "overloaded",
    500: "model",
    503: "unavailable",
    504: "deadline",
}
#: What callers did wrong; the model is not to blame.
_CALLERS = frozenset({"invalid", "unauthorized", "not_found", "method", "too_large"})


def outcome_of(status: int) -> str:
    """Say in one word how a request ended that got this status."""
    return OK if status == 200 else _WORDS.get(status, "internal")


class Latencies:
    """Counts requests; any thread may."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._window = _Counted()
        self._total = _Counted()

    def add(self, outcome: str, seconds: float) -> None:
        """Count one request.

        Args:
            outcome: How it ended, in one word.
            seconds: How long it took.
        """
        place = bisect_left(EDGES_MS, seconds * 1e3)
        with self._lock:
            self._window.add(outcome, place)
            self._total.add(outcome, place)

    def take(self) -> dict[str, Any]:
        """Give what was counted since the last time, and begin anew.

        Returns:
            ``answers``, ``errors`` by word, ``edges_ms`` and ``counts`` of the answers' latencies.
        """
        with self._lock:
            window, self._window = self._window, _Counted()
        return {
            "answers": sum(window.counts),
            "errors": dict(window.errors),
            "edges_ms": list(EDGES_MS),
            "counts": window.counts,
        }

    def health(self) -> dict[str, Any]:
        """Say how well requests ended since ``forget``; what callers did wrong is no error of the device."""
        with self._lock:
            counts, errors = list(self._total.counts), dict(self._total.errors)
        return {
            "answers": sum(counts),
            "errors": sum(n for word, n in errors.items() if word not in _CALLERS),
            "p50_ms": _quantile_ms(counts, 0.5),
            "p95_ms": _quantile_ms(counts, 0.95),
        }

    def forget(self) -> None:
        """Begin ``health`` anew: another bundle answers."""
        with self._lock:
            self._total = _Counted()


class _Counted:
    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES_MS) + 1)
        self.errors: dict[str, int] = {}

    def add(self, outcome: str, place: int) -> None:
        if outcome == OK:
            self.counts[place] += 1
        else:
            self.errors[outcome] = self.errors.get(outcome, 0) + 1


def _quantile_ms(counts: list[int], share: float) -> float | None:
    """Give a quantile, spread evenly over its bin; None without answers."""
    total = sum(counts)
    if not total:
        return None
    left = share * total
    for place, count in enumerate(counts):
        if count and left <= count:
            low = EDGES_MS[place - 1] if place else 0.0
            high = EDGES_MS[place] if place < len(EDGES_MS) else low
            return round(low + (high - low) * left / count, 4)
        left -= count
    return EDGES_MS[-1]
