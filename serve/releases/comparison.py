"""How the answers of a shadow compare with those that were given: counters that add up, and their arithmetic.

Pure: tensors in, figures out. Who answers, and when a shadow is asked, is ``shadow``'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from kit.tensors import Tensors

_MAX_DIFFERENCE = 1e100  # far from where sums would overflow


@dataclass(frozen=True)
class Counts:
    """What a shadow was compared with so far; sums, so that replicas add up.

    Attributes:
        compared: Requests it answered.
        errors: Requests it raised on.
        unlike: Requests it answered in another shape, with other outputs, or NaN where there was a number.
        dropped: Requests it was not asked, for want of room.
        labels: Values of whole-number, boolean and string outputs.
        labels_equal: How many of them were the same.
        numbers: Values of floating outputs.
        difference_sum: Sum of their absolute differences.
        difference_max: The largest of them.
        seconds: Time the shadow took for what was compared.
        answer_seconds: Time the answers that were given had taken.
    """

    compared: int = 0
    errors: int = 0
    unlike: int = 0
    dropped: int = 0
    labels: int = 0
    labels_equal: int = 0
    numbers: int = 0
    difference_sum: float = 0.0
    difference_max: float = 0.0
    seconds: float = 0.0
    answer_seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        """Add up what two replicas, or two requests, counted."""
        sums = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(Counts)
            if each.name != "difference_max"
        }
        return Counts(**sums, difference_max=max(self.difference_max, other.difference_max))

    @property
    def agreement(self) -> float | None:
        """Share of equal labels; None without any."""
        return self.labels_equal / self.labels if self.labels else None

    @property
    def mean_difference(self) -> float | None:
        """Mean absolute difference of floating values; None without any."""
        return self.difference_sum / self.numbers if self.numbers else None

    @property
    def slower_ms(self) -> float | None:
        """Mean milliseconds a request took longer, negative where the shadow was faster; None at first."""
        return 1e3 * (self.seconds - self.answer_seconds) / self.compared if self.compared else None

    def to_json(self) -> dict[str, Any]:
        """Give the counters as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        """Read what ``to_json`` gave; anything else counts nothing, since counters decide nothing."""
        known = {each.name: value[each.name] for each in fields(cls) if each.name in value}
        figures = all(isinstance(each, (int, float)) and math.isfinite(each) for each in known.values())
        return cls(**known) if figures else cls()


def total(counts: Iterable[Counts]) -> Counts:
    """Add up what replicas counted."""
    return sum(counts, start=Counts())


def compare(answers: Tensors, shadow: Tensors) -> Counts:
    """Compare what a shadow answers to one request with what was answered.

    Args:
        answers: Output name to values, as given to the client.
        shadow: The same outputs from the shadow; those nobody asked for are not looked at.

    Returns:
        Counters of one request, without times.
    """
    sums: dict[str, Any] = dict.fromkeys(("labels", "labels_equal", "numbers"), 0)
    difference_sum = difference_max = 0.0
    for name, given in answers.items():
        other = shadow.get(name)
        if (
            other is None
            or other.shape != given.shape
            or (other.dtype.kind == "f") != (given.dtype.kind == "f")
        ):
            return Counts(compared=1, unlike=1)
        if given.dtype.kind != "f":
            sums["labels"] += given.size
            sums["labels_equal"] += int(np.count_nonzero(given == other))
            continue
        with np.errstate(invalid="ignore"):  # infinity less infinity, sorted out below
            apart = np.abs(np.subtract(given, other, dtype=np.float64))
        if apart.size and not math.isfinite(apart.max()):
            apart = apart[~((given == other) | (np.isnan(given) & np.isnan(other)))]
            if apart.size and not math.isfinite(apart.max()):
                return Counts(compared=1, unlike=1)
        sums["numbers"] += given.size
        difference_sum += float(apart.sum())
        difference_max = max(difference_max, float(apart.max(initial=0.0)))
    if difference_sum > _MAX_DIFFERENCE:
        return Counts(compared=1, unlike=1)
    return Counts(compared=1, **sums, difference_sum=difference_sum, difference_max=difference_max)
