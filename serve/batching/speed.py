"""How long an engine call takes, learnt from the calls themselves.

One estimate per power of two of rows: a call of few rows costs mostly its fixed part, and what many rows cost
is seldom a straight line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np

from kit.inference.finite import Run
from kit.tensors import Tensors

_SIZES = 34
_MEASURE_S = 0.5
_MEASURE_TIMES = 3
#: A call moves an estimate by this share of the difference; a slow one (a pause of the process, a page fault)
#: counts as at most so many times the estimate.
_SHARE = 0.2
_MOST_TIMES = 8.0


def measure(run: Run, inputs: Tensors, *, max_rows: int) -> Iterator[tuple[int, float]]:
    """Time calls of 1 to ``max_rows`` repeated rows, for about half a second at most.

    Args:
        run: The engine.
        inputs: One validated row.
        max_rows: Most rows of one call.

    Yields:
        A number of rows and the seconds its fastest call took.
    """
    end_s = time.perf_counter() + _MEASURE_S
    for n_rows in sorted({min(size, max_rows) for size in (1, 8, 64, max_rows)}):
        rows = {name: np.repeat(array[:1], n_rows, axis=0) for name, array in inputs.items()}
        fastest_s = math.inf
        for _ in range(_MEASURE_TIMES):
            start_s = time.perf_counter()
            try:
                run(rows)
            except MemoryError:
                return
            now_s = time.perf_counter()
            fastest_s = min(fastest_s, now_s - start_s)
            if now_s > end_s:
                break
        yield n_rows, fastest_s
        if time.perf_counter() > end_s:
            return


class Speed:
    """Seconds of a call by its number of rows.

    Args:
        down: The share by which a call that is faster than its estimate moves it. A large one, for what a
            call takes when nothing is in its way; the same as upwards, for what is to be expected.
    """

    __slots__ = ("_down", "_seconds")

    def __init__(self, *, down: float = _SHARE) -> None:
        self._down = down
        self._seconds = [0.0] * _SIZES

    def learn(self, n_rows: int, seconds: float) -> None:
        """Take note of a call."""
        size = n_rows.bit_length()
        known = self._seconds[size]
        if not known:
            self._seconds[size] = seconds
        elif seconds < known:
            self._seconds[size] = known + self._down * (seconds - known)
        else:
            self._seconds[size] = known + _SHARE * (min(seconds, _MOST_TIMES * known) - known)

    def seconds(self, n_rows: int) -> float:
        """Estimate a call; infinite while nothing is known.

        A size that never ran takes at most what the next larger one takes, or as much per row as the next
        smaller one.
        """
        size = n_rows.bit_length()
        known = self._seconds
        if known[size]:
            return known[size]
        for larger in range(size + 1, _SIZES):
            if known[larger]:
                return known[larger]
        for smaller in range(size - 1, -1, -1):
            if known[smaller]:
                return known[smaller] * n_rows / max(1, 1 << smaller >> 1)
        return math.inf
