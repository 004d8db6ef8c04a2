"""Bootstrap intervals: what a figure might have been on other rows of the same kind.

Rows are drawn with replacement, as often as there are rows, and the figure is taken on each such
resample; the percentiles of those figures bound the interval. Two models are compared on the same
resamples (paired), so rows that are hard for both cancel out. Rows that belong together are drawn together:
drawn one by one, they would pass for more evidence than they are. Knows metrics only as functions of weighted
rows.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13 (percentile intervals);
Davison and Hinkley, "Bootstrap Methods and their Application" (1997), sec. 3.8 (whole groups); Hall et al.,
"On Blocking Rules for the Bootstrap with Dependent Data" (1995) (blocks of the cube root of all rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kit.errors import InputError
from kit.metrics import Statistic

#: Weights held at a time: what stays in a processor's cache is summed three times as fast.
_MAX_CELLS = 1 << 17


@dataclass(frozen=True)
class Interval:
    """Bounds of a figure, or of a difference between two.

    Attributes:
        low: Lower bound; minus infinity where too many resamples do not determine the figure.
        high: Upper bound, likewise.
        n_undefined: Resamples that do not determine the figure; each counts as the worst on both sides.
    """

    low: float
    high: float
    n_undefined: int

    @property
    def is_bounded(self) -> bool:
        """Whether both bounds are numbers."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True, eq=False)
class Draw:
    """Which rows are drawn together.

    Attributes:
        kind: Each row by itself, whole groups, or blocks of rows that follow each other in time.
        groups: The group or block of each row, from 0, shape (n_rows,); None where rows are drawn one by one.
        n_groups: How many groups or blocks there are; 0 likewise.
    """

    kind: Literal["rows", "groups", "blocks"] = "rows"
    groups: np.ndarray | None = None
    n_groups: int = 0

    @classmethod
    def of_groups(cls, codes: np.ndarray) -> Draw:
        """Draw rows of one group together.

        Args:
            codes: The same number for rows of the same group, shape (n_rows,).
        """
        names, groups = np.unique(codes, return_inverse=True)
        return cls("groups", groups, len(names))

    @classmethod
    def of_times(cls, times: np.ndarray) -> Draw:
        """Draw rows that follow each other in time together, as many as the cube root of all.

        Args:
            times: Later is larger, shape (n_rows,); rows of one time are taken in the order they stand.
        """
        n_rows = len(times)
        length = max(1, round(n_rows ** (1 / 3)))
        groups = np.empty(n_rows, dtype=np.int64)
        groups[np.argsort(times, kind="stable")] = np.arange(n_rows) // length
        return cls("blocks", groups, -(-n_rows // length))


INDEPENDENT = Draw()


@dataclass(frozen=True)
class Bootstrap:
    """How resamples are drawn.

    Attributes:
        resamples: How many, at least 1.
        confidence: Share of the resamples inside the interval, above 0 and below 1.
        seed: The same seed gives the same interval.
        draw: Which rows are drawn together.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0
    draw: Draw = INDEPENDENT

    def interval(self, statistic: Statistic, *, n_rows: int) -> Interval:
        """Bound one figure; see ``intervals``."""
        return self.intervals({"": statistic}, n_rows=n_rows)[""]

    def difference(self, first: Statistic, second: Statistic, *, n_rows: int) -> Interval:
        """Bound first minus second, both on the same resamples; see ``intervals``."""
        return self.interval(difference(first, second), n_rows=n_rows)

    def intervals(self, statistics: Mapping[str, Statistic], *, n_rows: int) -> dict[str, Interval]:
        """Bound figures, all on the same resamples.

        Args:
            statistics: The figures of weighted rows, all of the same rows in the same order.
            n_rows: How many rows they take, at least 1.

        Raises:
            InputError: There are no rows.
        """
        if not statistics:
            return {}
        found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
        for weights in self.weights(n_rows):
            for name, statistic in statistics.items():
                found[name].append(statistic(weights))
        return {name: self.bounds(np.concatenate(values)) for name, values in found.items()}

    def weights(self, n_rows: int) -> Iterator[np.ndarray]:
        """Draw the resamples, some at a time: how often each row is in each, shape (n_some, n_rows).

        Raises:
            InputError: There are no rows.
        """
        if n_rows < 1:
            raise InputError("a bootstrap needs at least one row", hint="hold out more rows")
        generator = np.random.default_rng(self.seed)
        groups = self.draw.groups
        n_drawn = n_rows if groups is None else self.draw.n_groups
        some = max(1, min(self.resamples, _MAX_CELLS // n_rows))
        for start in range(0, self.resamples, some):
            size = min(some, self.resamples - start)
            drawn = generator.integers(0, n_drawn, size=(size, n_drawn))
            drawn += np.arange(size)[:, None] * n_drawn
            counts = np.bincount(drawn.ravel(), minlength=size * n_drawn).reshape(size, n_drawn)
            if groups is not None:
                counts = np.take(counts, groups, axis=1)
            yield counts.astype(np.float64)

    def bounds(self, values: np.ndarray) -> Interval:
        """Take the percentiles of what the resamples gave.

        Args:
            values: One per resample; NaN where it does not determine the figure.
        """
        undefined = np.isnan(values)
        tail = (1 - self.confidence) / 2
        # The order statistic further out is taken, and what is undefined counts as the worst: a doubt
        # never makes the interval shorter.
        low = np.quantile(np.where(undefined, -np.inf, values), tail, method="lower")
        high = np.quantile(np.where(undefined, np.inf, values), 1 - tail, method="higher")
        return Interval(float(low), float(high), int(undefined.sum()))


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Take one figure minus another on the same weighted rows."""
    return lambda weights: first(weights) - second(weights)
