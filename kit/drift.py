"""Drift: whether rows or answers are distributed otherwise than those a model was made with.

The index is the population stability index over the bins of the model's profile, with missing values as a
bin of their own. Bins in which the smaller sample would have fewer than five values are joined with their
neighbours, by the reference alone: rare bins make the index fire on noise. A fixed threshold does that
too: 0.1 is passed by a third of all samples of 100 rows that are no different. So it is the larger of 0.2
and the point that noise passes once in a thousand. Knows counts and the shape of a profile
(``kit.profile``), no model, no file and no report.

Sources: Siddiqi, "Credit Risk Scorecards" (2006), ch. 8 (the index, and 0.2 as a shift that matters);
Yurdakul and Naranjo, "Statistical properties of the population stability index" (2020): without a shift
the index is distributed like chi-squared with B - 1 degrees of freedom, times 1/n + 1/m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kit.errors import InputError

#: An index below this is not called drift, however many rows there are.
FLOOR = 0.2
#: How often noise alone may pass the threshold.
FALSE_ALARMS = 0.001
_MIN_EXPECTED = 5.0
_EMPTY = 0.5  # what an empty bin counts as, where the other sample has values in it

Role = Literal["input", "answer"]


@dataclass(frozen=True)
class Drift:
    """How one column of rows or answers compares with the model's profile.

    Attributes:
        name: The column, or ``label``, ``confidence`` or ``value``.
        role: ``input`` or ``answer``.
        index: Population stability index; None where either side has no values.
        threshold: What it is held against; None likewise.
        drifted: Whether it is above.
        n: Values that were looked at, missing ones included.
        distance: Wasserstein distance in standard deviations of the profile, for information; None for
            categories and where the profile has no spread. Values outside the profile's range count as
            lying at its ends, so it is a lower bound.
        missing: Share of the values that are missing.
        missing_before: The same in the profile.
        unseen: Share of values the profile has none of: numbers outside its range, unknown categories;
            None where it did not keep all its categories.
    """

    name: str
    role: Role
    index: float | None
    threshold: float | None
    drifted: bool
    n: int
    distance: float | None
    missing: float
    missing_before: float
    unseen: float | None


def psi(reference: Sequence[float] | np.ndarray, observed: Sequence[float] | np.ndarray) -> float:
    """Measure how far a distribution moved (population stability index).

    Args:
        reference: Counts per bin, shape (n_bins,), sum > 0.
        observed: Counts on the same bins, sum > 0.

    Returns:
        The index, dimensionless, from 0 for the same shares. A bin that is empty on one side counts as
        half a value there, so that it is finite; one that is empty on both sides counts for nothing.

    Raises:
        InputError: The bins differ in number, or a side has no values.

    Source: Siddiqi, "Credit Risk Scorecards" (2006), ch. 8.
    """
    before, after = _two(reference, observed)
    held = (before > 0) | (after > 0)
    before, after = before[held], after[held]
    shares = np.where(before > 0, before, _EMPTY) / before.sum()
    others = np.where(after > 0, after, _EMPTY) / after.sum()
    return float(np.sum((others - shares) * np.log(others / shares)))


def threshold(*, n_bins: int, n: int, m: int) -> float:
    """Say above which index two samples are called different.

    Args:
        n_bins: Bins that are compared.
        n: Values of the observed sample, at least 1.
        m: Values of the reference, at least 1.

    Returns:
        ``FLOOR``, or where that is more the index that samples of one distribution pass once in a thousand.

    Source: Yurdakul and Naranjo (2020); see the module.
    """
    if n_bins < 2:
        return FLOOR
    from scipy.special import chdtri  # type: ignore[import-untyped]  # scipy ships no types

    return max(FLOOR, float(chdtri(n_bins - 1, FALSE_ALARMS)) * (1 / n + 1 / m))


def wasserstein(
    reference: Sequence[float] | np.ndarray, observed: Sequence[float] | np.ndarray, *, edges: Sequence[float]
) -> float:
    """Measure how far values have to be carried to make one histogram of the other.

    Args:
        reference: Counts per bin, shape (n_bins + 2,): below the first edge, the bins, above the last.
        observed: The same.
        edges: Bounds of the bins, ascending, shape (n_bins + 1,).

    Returns:
        The distance of order 1 in the unit of the edges. Values are spread evenly over their bin; those
        below and above count as lying at the outer edges.

    Raises:
        InputError: The bins and the edges do not belong together, or a side has no values.

    Source: Vallender, "Calculation of the Wasserstein distance between probability distributions on the
    line" (1974): the area between the two distribution functions.
    """
    before, after = _two(reference, observed)
    bounds = np.asarray(edges, dtype=np.float64)
    if len(before) != len(bounds) + 1:
        raise InputError(f"{len(before)} bins do not belong to {len(bounds)} edges; one more is expected")
    gaps = (np.cumsum(before / before.sum()) - np.cumsum(after / after.sum()))[:-1]
    left, right = np.abs(gaps[:-1]), np.abs(gaps[1:])
    crosses = np.sign(gaps[:-1]) * np.sign(gaps[1:]) < 0
    sums = left + right
    means = np.where(crosses, (left**2 + right**2) / np.where(sums > 0, 2 * sums, 1), sums / 2)
    return float(np.sum(means * np.diff(bounds)))


def compare(name: str, *, role: Role, reference: Mapping[str, Any], observed: Mapping[str, Any]) -> Drift:
    """Compare what was observed in a column with the profile's description of it.

    Args:
        name: The column.
        role: Whether it is an input or an answer.
        reference: Its entry in a profile: ``edges`` and ``counts``, or ``categories``; ``missing``.
        observed: ``counts`` on those edges with one bin more at either end for what lies outside, or
            ``categories`` and ``other``, the count of those the profile does not name; ``missing``.

    Raises:
        InputError: The two are not of one kind, or not on the same bins.
    """
    if ("categories" in reference) != ("categories" in observed):
        raise InputError(f"{name!r} was observed as another kind of column than the profile describes")
    before, after = _binned(name, reference, observed)
    gone, gone_before = int(observed["missing"]), int(reference["missing"])
    n, m = int(after.sum()) + gone, int(before.sum()) + gone_before
    index = bound = distance = None
    if n and m:
        joined, counts = joined_bins(before, after, of_total=m, adjacent="edges" in reference)
        pair = np.append(joined, gone_before), np.append(counts, gone)
        index = psi(*pair)
        bound = threshold(n_bins=int(((pair[0] > 0) | (pair[1] > 0)).sum()), n=n, m=m)
        std = reference.get("std")
        if std and before.sum() and after.sum():
            distance = wasserstein(before, after, edges=reference["edges"]) / float(std)
    return Drift(
        name=name,
        role=role,
        index=index,
        threshold=bound,
        drifted=index is not None and bound is not None and index > bound,
        n=n,
        distance=distance,
        missing=gone / n if n else 0.0,
        missing_before=gone_before / m if m else 0.0,
        unseen=_unseen(before, after, n=n, numbers="edges" in reference),
    )


def joined_bins(
    reference: np.ndarray, observed: np.ndarray, *, of_total: int, adjacent: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Join bins until the smaller sample can be expected to have five values in each.

    Args:
        reference: Counts per bin, shape (n_bins,). It alone decides, so that noise has no say.
        observed: Counts on the same bins.
        of_total: Values of the reference, those in no bin included.
        adjacent: Whether only neighbours can be joined; otherwise the rare ones are joined into one bin.

    Returns:
        Both counts on the joined bins.
    """
    least = _MIN_EXPECTED * of_total / max(min(of_total, observed.sum()), 1)
    if not adjacent:
        rare = reference < least
        return (
            np.append(reference[~rare], reference[rare].sum()),
            np.append(observed[~rare], observed[rare].sum()),
        )
    starts, held = [0], 0.0
    for place, count in enumerate(reference):
        if held >= least:
            starts.append(place)
            held = 0.0
        held += count
    if held < least and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(reference, starts), np.add.reduceat(observed, starts)


def _binned(
    name: str, reference: Mapping[str, Any], observed: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Bring both sides to the same bins: the profile's, and what is outside of them."""
    if "categories" in reference:
        known: dict[str, int] = reference["categories"]
        rest = set(observed["categories"]) - set(known)
        other = int(observed.get("other", 0)) + sum(observed["categories"][each] for each in rest)
        after = [*(observed["categories"].get(each, 0) for each in known), other]
        before = [*known.values(), int(reference.get("other", 0))]
    else:
        before, after = [0, *reference["counts"], 0], list(observed["counts"])
        if len(before) != len(after):
            raise InputError(f"{name!r} was observed on {len(after)} bins; the profile has {len(before)}")
    return np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)


def _unseen(before: np.ndarray, after: np.ndarray, *, n: int, numbers: bool) -> float | None:
    if not numbers and before[-1]:
        return None
    outside = float(after[-1] + (after[0] if numbers else 0))
    return outside / n if n else 0.0


def _two(
    reference: Sequence[float] | np.ndarray, observed: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(reference, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    if before.shape != after.shape:
        raise InputError(f"{len(after)} bins cannot be compared with {len(before)}")
    if not (before.sum() > 0 and after.sum() > 0):
        raise InputError("a distribution without values cannot be compared")
    return before, after
