"""How rows are held out: at random, by class, by group, by time; once, or in folds.

Takes arrays and gives positions in them, sorted; it knows nothing of tables, models or settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kit.errors import InputError
from kit.times import NO_GAP, Gap

Positions = tuple[np.ndarray, np.ndarray]


def cut_random(
    candidates: np.ndarray, *, fraction: float, seed: int, strata: np.ndarray | None = None
) -> Positions:
    """Take a share of the rows at random.

    Args:
        candidates: Positions to choose from, shape (n,).
        fraction: Share that is taken, 0 to 1.
        seed: Of the choice.
        strata: Class of each candidate, shape (n,); each keeps its share. None for no regard to it.

    Returns:
        The positions that stay and those that are taken.

    Raises:
        InputError: A side would be empty, or a class too small for both.
    """
    from sklearn.model_selection import train_test_split

    if np.ceil(fraction * len(candidates)) >= len(candidates):
        raise InputError(f"a share of {fraction:g} leaves none of {len(candidates)} rows")
    try:
        kept, taken = train_test_split(candidates, test_size=fraction, random_state=seed, stratify=strata)
    except ValueError as error:
        raise InputError(str(error)) from error
    return np.sort(kept), np.sort(taken)


def cut_groups(
    candidates: np.ndarray, *, groups: np.ndarray, fraction: float, seed: int, leave: int = 1
) -> Positions:
    """Take whole groups that hold about a share of the rows.

    The groups are shuffled, and each is taken if it still fits. What remains to be filled is then
    smaller than any group left, so only one more can come closer, and it is added if it does.

    Args:
        candidates: Positions to choose from, shape (n,).
        groups: Group of each candidate as a whole number, shape (n,).
        fraction: Share of the rows to take, 0 to 1.
        seed: Of the order in which groups are tried.
        leave: Groups that must stay, at least.

    Returns:
        The positions that stay and those that are taken; no group is in both.

    Raises:
        InputError: There are too few groups.
    """
    names, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < leave + 1:
        raise InputError(f"there are {len(names)} groups and {leave + 1} are needed")
    wanted = fraction * len(candidates)
    chosen = np.zeros(len(names), dtype=bool)
    n_rows, n_chosen = 0, 0
    for group in np.random.default_rng(seed).permutation(len(names)):
        if n_rows + counts[group] <= wanted and n_chosen < len(names) - leave:
            chosen[group] = True
            n_rows += int(counts[group])
            n_chosen += 1
    if n_chosen < len(names) - leave:
        smallest = int(np.where(chosen, np.iinfo(np.int64).max, counts).argmin())
        if not n_chosen or abs(n_rows + counts[smallest] - wanted) < abs(n_rows - wanted):
            chosen[smallest] = True
    taken = chosen[members]
    return candidates[~taken], candidates[taken]


def cut_time(
    candidates: np.ndarray,
    *,
    times: np.ndarray,
    fraction: float,
    gap: Gap = NO_GAP,
    leave: int = 1,
    say: Callable[[int], str],
) -> Positions:
    """Take the latest rows.

    Rows of one time stay together: the boundary lies at the moment that comes closest to the share.

    Args:
        candidates: Positions to choose from, in any order of time, shape (n,).
        times: Time of every row, int64 or float64, shape (n_rows,).
        fraction: Share of the candidates to take, 0 to 1.
        gap: In the unit of the times; earlier rows nearer than this to the first row taken are in
            neither part.
        leave: Different moments that must lie before the boundary, at least.
        say: Gives the time of a row at a position in words, for messages.

    Returns:
        The positions that stay and those that are taken; every one that stays is earlier.

    Raises:
        InputError: There are too few different times, or the gap leaves nothing.
    """
    times = times[candidates]
    moments, counts = np.unique(times, return_counts=True)
    if len(moments) < leave + 1:
        raise InputError(f"there are {len(moments)} different times and {leave + 1} are needed")
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])  # rows earlier than each moment
    distance = np.abs(len(candidates) - before - fraction * len(candidates)).astype(float)
    distance[:leave] = np.inf
    start = moments[distance.argmin()]
    earlier = _earlier(times, start, gap)
    if not earlier.any():
        first = say(int(candidates[(times == start).argmax()]))
        raise InputError(f"the gap of {gap.written} leaves no row before {first}")
    return candidates[earlier], candidates[times >= start]


def k_folds(n_rows: int, *, n_folds: int, seed: int, strata: np.ndarray | None = None) -> Iterator[Positions]:
    """Give each row to one of k folds at random.

    Args:
        n_rows: How many rows there are.
        n_folds: How many folds, 2 or more.
        seed: Of the order.
        strata: Class index of each row, shape (n_rows,); each fold gets its share of every class.

    Yields:
        The training and the test positions of each fold.

    Raises:
        InputError: There are fewer rows, or rows of a class, than folds.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    fewest = n_rows if strata is None else int(np.bincount(strata).min())
    if fewest < n_folds:
        where = "there are" if strata is None else "the smallest class has"
        raise InputError(f"{where} {fewest} rows for {n_folds} folds", hint="set fewer folds")
    kind = KFold if strata is None else StratifiedKFold
    splitter = kind(n_splits=n_folds, shuffle=True, random_state=seed)
    yield from _folds(splitter, n_rows, strata=strata)


def leave_one_out(n_rows: int) -> Iterator[Positions]:
    """Leave out each row in turn; yields the training and the test positions, n_rows times."""
    from sklearn.model_selection import LeaveOneOut

    if n_rows < 2:
        raise InputError(f"there are {n_rows} rows; leaving one out needs 2")
    yield from _folds(LeaveOneOut(), n_rows)


def group_folds(groups: np.ndarray, *, n_folds: int) -> Iterator[Positions]:
    """Give each group to one of k folds of about the same size.

    Args:
        groups: Group of each row as a whole number, shape (n_rows,).
        n_folds: How many folds, 2 or more.

    Yields:
        The training and the test positions of each fold; no group is in both.

    Raises:
        InputError: There are fewer groups than folds.
    """
    from sklearn.model_selection import GroupKFold

    n_groups = len(np.unique(groups))
    if n_groups < n_folds:
        raise InputError(f"there are {n_groups} groups for {n_folds} folds", hint="set fewer folds")
    yield from _folds(GroupKFold(n_splits=n_folds), len(groups), groups=groups)


def time_folds(
    times: np.ndarray, *, n_folds: int, gap: Gap = NO_GAP, say: Callable[[int], str]
) -> Iterator[Positions]:
    """Train on what came before and test on what came next, on a history that grows.

    The rows are cut by time into n_folds + 1 stretches of about the same number; fold k tests on the
    stretch k + 1 and trains on all before it. scikit-learn's TimeSeriesSplit counts its gap in rows and
    would cut through equal times.

    Args:
        times: Time of each row, int64 or float64, shape (n_rows,), in any order.
        n_folds: How many folds, 2 or more.
        gap: In the unit of the times; rows nearer than this before a test stretch are left out.
        say: Gives the time of a row at a position in words, for messages.

    Yields:
        The training and the test positions of each fold, from the shortest history to the longest.

    Raises:
        InputError: There are too few different times, or the gap leaves nothing to train on.
    """
    moments, counts = np.unique(times, return_counts=True)
    if len(moments) < n_folds + 1:
        raise InputError(
            f"there are {len(moments)} different times for {n_folds} folds; {n_folds + 1} are needed",
            hint="set fewer folds",
        )
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    starts: list[int] = [0]  # of the stretches, as indices of moments
    for stretch in range(1, n_folds + 1):
        wanted = stretch * len(times) / (n_folds + 1)
        first, last = starts[-1] + 1, len(moments) - (n_folds - stretch)
        starts.append(first + int(np.abs(before[first:last] - wanted).argmin()))
    bounds = [moments[start] for start in starts]
    for stretch in range(1, n_folds + 1):
        start = bounds[stretch]
        train = _earlier(times, start, gap)
        test = times >= start
        if stretch < n_folds:
            test &= times < bounds[stretch + 1]
        if not train.any():
            raise InputError(
                f"the gap of {gap.written} leaves no row before {say(int((times == start).argmax()))}",
                hint="set a shorter gap or fewer folds",
            )
        yield np.flatnonzero(train), np.flatnonzero(test)


def _earlier(times: np.ndarray, start: Any, gap: Gap) -> np.ndarray:
    if not gap.length:
        return np.asarray(times < start)
    if times.dtype.kind == "f":
        return np.asarray(times <= start - gap.length)
    latest = int(start) - math.ceil(gap.length)  # in Python: int64 would wrap around
    if latest < np.iinfo(np.int64).min:
        return np.zeros(len(times), dtype=bool)
    return np.asarray(times <= latest)


def _folds(
    splitter: Any, n_rows: int, *, strata: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Iterator[Positions]:
    for train, test in splitter.split(np.zeros(n_rows), strata, groups):
        yield np.asarray(train), np.asarray(test)
