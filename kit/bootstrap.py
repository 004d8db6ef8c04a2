"""Bootstrap intervals: what a figure might have been on other rows of the same kind.

Rows are drawn with replacement, as often as there are rows, and the figure is taken on each such
resample; the percentiles of those figures bound the interval. Two models are compared on the same
resamples (paired), so rows that are hard for both cancel out. Knows metrics only as functions of weighted
rows.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kit.errors import InputError
from kit.metrics import Statistic

#: Weights held at a time, which bounds the memory of any number of rows and resamples.
_MAX_CELLS = 1 << 20


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


@dataclass(frozen=True)
class Bootstrap:
    """How resamples are drawn.

    Attributes:
        resamples: How many, at least 1.
        confidence: Share of the resamples inside the interval, above 0 and below 1.
        seed: The same seed gives the same interval.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def interval(self, statistic: Statistic, *, n_rows: int) -> Interval:
        """Bound one figure.

        Args:
            statistic: The figure of weighted rows.
            n_rows: How many rows it takes, at least 1.

        Raises:
            InputError: There are no rows.
        """
        return self.bounds(np.concatenate([statistic(weights) for weights in self.weights(n_rows)]))

    def difference(self, first: Statistic, second: Statistic, *, n_rows: int) -> Interval:
        """Bound first minus second, both on the same resamples.

        Args:
            first: One figure of weighted rows.
            second: Another, of the same rows in the same order.
            n_rows: How many rows they take, at least 1.

        Raises:
            InputError: There are no rows.
        """
        return self.bounds(
            np.concatenate([first(weights) - second(weights) for weights in self.weights(n_rows)])
        )

    def weights(self, n_rows: int) -> Iterator[np.ndarray]:
        """Draw the resamples, some at a time: how often each row is in each, shape (n_some, n_rows).

        Raises:
            InputError: There are no rows.
        """
        if n_rows < 1:
            raise InputError("a bootstrap needs at least one row", hint="hold out more rows")
        generator = np.random.default_rng(self.seed)
        some = max(1, min(self.resamples, _MAX_CELLS // n_rows))
        for start in range(0, self.resamples, some):
            size = min(some, self.resamples - start)
            drawn = generator.integers(0, n_rows, size=(size, n_rows))
            drawn += np.arange(size)[:, None] * n_rows
            counts = np.bincount(drawn.ravel(), minlength=size * n_rows)
            yield counts.reshape(size, n_rows).astype(np.float64)

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
