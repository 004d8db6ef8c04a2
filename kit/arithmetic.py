"""Arithmetic that training, the exported graph and a device repeat alike: filling, measuring, interpolating.

Everything is computed in float64 and rounded to float32 once, at the end. Training calls these functions
and ``kit.steps`` does on a device; ``jobs.exporting.converters`` writes the same operations into a graph.
It knows nothing of how the numbers were fitted. Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_ROWS_AT_A_TIME = 256


def fill_by_chain(
    values: np.ndarray,
    *,
    start: np.ndarray,
    targets: Sequence[int],
    weights: np.ndarray,
    intercepts: np.ndarray,
    bounds: np.ndarray,
) -> np.ndarray:
    """Fill missing values by a chain of linear predictions, each from all other columns.

    Args:
        values: Shape (n_rows, n_columns); NaN where missing.
        start: What stands for a missing value before the first prediction, shape (n_columns,).
        targets: The column each prediction fills, in order, n_predictions of them.
        weights: Shape (n_predictions, n_columns); 0 for the target itself.
        intercepts: Shape (n_predictions,).
        bounds: Smallest and largest value a prediction may have, shape (2, n_columns).

    Returns:
        float32, shape (n_rows, n_columns), without NaN.

    Source: van Buuren and Groothuis-Oudshoorn, "mice: Multivariate Imputation by Chained
    Equations in R", J. Stat. Software 45(3), 2011; one imputation, its expectation.
    """
    missing = np.isnan(values)
    filled = np.where(missing, start, values.astype(np.float64))
    for target, weight, intercept in zip(targets, weights, intercepts):
        absent = missing[:, target]
        predicted = (filled[absent] * weight).sum(axis=1) + intercept
        filled[absent, target] = np.clip(predicted, bounds[0, target], bounds[1, target])
    return filled.astype(np.float32)


def fill_by_neighbors(
    values: np.ndarray, *, donors: np.ndarray, means: np.ndarray, neighbors: int
) -> np.ndarray:
    """Fill missing values by the mean over the nearest donors that have the value.

    The distance is Euclidean over the columns both rows have, scaled up for those they do not;
    of equally near donors the first counts.

    Args:
        values: Shape (n_rows, n_columns); NaN where missing.
        donors: Shape (n_donors, n_columns); NaN where missing.
        means: What stands in where a row shares no column with any donor, shape (n_columns,).
        neighbors: Donors averaged, 1 or more.

    Returns:
        float32, shape (n_rows, n_columns), without NaN.

    Source: Troyanskaya et al., "Missing value estimation methods for DNA microarrays",
    Bioinformatics 17(6), 2001, with equal weights.
    """
    filled = values.astype(np.float64)
    wanting = np.flatnonzero(np.isnan(values).any(axis=1))
    for start in range(0, len(wanting), _ROWS_AT_A_TIME):
        rows = wanting[start : start + _ROWS_AT_A_TIME]
        distances = _squared_distances(filled[rows], donors)
        some = filled[rows]
        for column in range(values.shape[1]):
            absent = np.isnan(some[:, column])
            if absent.any():
                has = ~np.isnan(donors[:, column])
                usable = np.where(has, distances[absent], np.inf)
                nearest = np.argsort(usable, axis=1, kind="stable")[:, : min(neighbors, int(has.sum()))]
                counted = np.isfinite(np.take_along_axis(usable, nearest, axis=1))
                total = np.where(counted, donors[nearest, column], 0.0).sum(axis=1)
                count = counted.sum(axis=1)
                some[absent, column] = np.where(count > 0, total / np.maximum(count, 1), means[column])
        filled[rows] = some
    return filled.astype(np.float32)


def _squared_distances(rows: np.ndarray, donors: np.ndarray) -> np.ndarray:
    """Sum squares column by column, in order: no rearrangement, so the graph's ties are the same ties."""
    total = np.zeros((len(rows), len(donors)))
    shared = np.zeros((len(rows), len(donors)))
    for column in range(rows.shape[1]):
        both = ~np.isnan(rows[:, column, None]) & ~np.isnan(donors[None, :, column])
        difference = np.where(both, rows[:, column, None] - donors[None, :, column], 0.0)
        total = total + difference * difference
        shared = shared + both
    return np.where(shared > 0, total * rows.shape[1] / np.maximum(shared, 1), np.inf)


def rank(
    values: np.ndarray,
    *,
    knots: Sequence[np.ndarray],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
) -> np.ndarray:
    """Place values among a column's quantiles, 0 to 1, linearly between two of them.

    Args:
        values: Shape (n_rows, n_columns), without NaN.
        knots: Per column, the distinct quantiles, ascending.
        before: Per column and knot, the lowest share at which it is the quantile.
        after: Likewise, the highest; a value many rows share lies in the middle of the two.

    Returns:
        float32, shape (n_rows, n_columns).
    """
    ranked = np.empty(values.shape, dtype=np.float32)
    for column, known in enumerate(knots):
        first, last = before[column], after[column]
        wide = np.clip(values[:, column].astype(np.float64), known[0], known[-1])
        place = np.searchsorted(known, wide, side="right") - 1
        gap, rise, middle = rank_tables(known, first, last)
        between = last[place] + rise[place] * ((wide - known[place]) / gap[place])
        ranked[:, column] = np.where(wide == known[place], middle[place], between)
    return ranked


def rank_tables(
    knots: np.ndarray, before: np.ndarray, after: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give, per knot, the distance to the next, the rise up to it, and the rank of the knot itself."""
    gap, rise = np.ones(len(knots)), np.zeros(len(knots))
    gap[:-1], rise[:-1] = np.diff(knots), before[1:] - after[:-1]
    middle = 0.5 * (before + after)
    middle[-1], middle[0] = after[-1], before[0]
    return gap, rise, middle


def measure(values: np.ndarray, *, statistics: Sequence[str]) -> np.ndarray:
    """Measure each row of a column of lists, ignoring what is missing.

    Args:
        values: Shape (n_rows, length), in order of time; NaN where missing.
        statistics: Names from ``STATISTICS``.

    Returns:
        float32, shape (n_rows, len(statistics)); NaN where a row has no value at all. The
        standard deviation is that of the values themselves (divided by their number); the slope
        is the least-squares change per position, 0 where there is one value.
    """
    wide = values.astype(np.float64)
    present = ~np.isnan(wide)
    count = present.sum(axis=1)
    parts = [STATISTICS[name](wide, present, np.maximum(count, 1)) for name in statistics]
    measured = np.stack(parts, axis=1)
    return np.where(count[:, None] > 0, measured, np.nan).astype(np.float32)


def _first(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.take_along_axis(wide, present.argmax(axis=1)[:, None], axis=1)[:, 0]


def _last(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    return _first(wide[:, ::-1], present[:, ::-1], count)


def _moved(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Subtract each row's first value, so that equal values sum to exactly 0 in any order."""
    return np.where(present, wide - _first(wide, present, count)[:, None], 0.0)


def _mean(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.asarray(_first(wide, present, count) + _moved(wide, present, count).sum(axis=1) / count)


def _std(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    moved = _moved(wide, present, count)
    centred = np.where(present, moved - (moved.sum(axis=1) / count)[:, None], 0.0)
    return np.asarray(np.sqrt((centred * centred).sum(axis=1) / count))


def _minimum(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(present, wide, np.inf).min(axis=1))


def _maximum(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(present, wide, -np.inf).max(axis=1))


def _slope(wide: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    places = np.arange(wide.shape[1], dtype=np.float64)
    middle = (present * places).sum(axis=1) / count
    away = np.where(present, places - middle[:, None], 0.0)
    spread = (away * away).sum(axis=1)
    rise = (away * _moved(wide, present, count)).sum(axis=1)
    return np.where(spread > 0, rise / np.where(spread > 0, spread, 1.0), 0.0)


#: What can be measured over a list: of its values, which are there, and how many (1 or more).
STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "mean": _mean,
    "std": _std,
    "minimum": _minimum,
    "maximum": _maximum,
    "first": _first,
    "last": _last,
    "slope": _slope,
}
