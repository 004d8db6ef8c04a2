"""Calls in turns, so that what the machine does meanwhile hits everybody alike.

A turn is some calls of one row, one after the other, as a device makes them; who comes after whom changes
from round to round. Ratios are taken within a round, where both met the same machine. A file is opened
several times and each turn asks one of them: two that were opened alike differ by 5 % while they live.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_TURN_S = 0.02
_MAX_CALLS = 200
_FEWEST_CALLS = 4
_FEWEST_ROUNDS = 40
_WARM_UP_CALLS = 5

Call = Callable[[np.ndarray], object]


def take_turns(
    calls: Mapping[str, Sequence[Call]], rows: np.ndarray, *, seconds: float
) -> dict[str, list[float]]:
    """Time calls of one row.

    Args:
        calls: What is timed, by name: the same file, opened a few times.
        rows: Asked about in a cycle.
        seconds: How long in all, roughly.

    Returns:
        The median of every turn, in ms; equally many for all.
    """
    order, shuffler = list(calls), random.Random(0)
    n_calls = {name: max(_calls_of_a_turn(call, rows) for call in each) for name, each in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(found[order[0]]) < _FEWEST_ROUNDS:
        shuffler.shuffle(order)
        for name in order:
            call = shuffler.choice(calls[name])
            found[name].append(_turn(call, rows, n_calls=n_calls[name]))
    return found


@dataclass(frozen=True)
class Ratio:
    """One's latency by the other's.

    Attributes:
        value: The median over rounds.
        margin: How far another run's median would lie from it, 19 times of 20.
        n_rounds: How many rounds.
    """

    value: float
    margin: float
    n_rounds: int

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Compare the turns of two, round by round."""
        found = [a / b for a, b in zip(above, below, strict=True)]
        low, middle, high = statistics.quantiles(found, n=4)
        # The notch of a box plot: McGill, Tukey and Larsen, "Variations of Box Plots" (1978).
        return cls(middle, 1.57 * (high - low) / math.sqrt(len(found)), len(found))


def _calls_of_a_turn(call: Call, rows: np.ndarray) -> int:
    for index in range(_WARM_UP_CALLS):
        call(_row(rows, index))
    taken_ms = _turn(call, rows, n_calls=_FEWEST_CALLS)
    return min(_MAX_CALLS, max(_FEWEST_CALLS, round(_TURN_S * 1e3 / taken_ms)))


def _turn(call: Call, rows: np.ndarray, *, n_calls: int) -> float:
    """Time some calls after a first one, which finds the caches as another contestant left them."""
    call(_row(rows, 0))
    seconds = []
    for index in range(n_calls):
        row = _row(rows, index)
        began_s = time.perf_counter()
        call(row)
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds) * 1e3


def _row(rows: np.ndarray, index: int) -> np.ndarray:
    start = index % len(rows)
    return rows[start : start + 1]
