from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kit.errors import InputError
from kit.splits import (
    Positions,
    cut_groups,
    cut_random,
    cut_time,
    group_folds,
    k_folds,
    leave_one_out,
    time_folds,
)
from kit.times import Gap

GROUPS = some.lists(some.integers(0, 12), min_size=2, max_size=200).map(np.array)
TIMES = some.lists(some.integers(-50, 50), min_size=2, max_size=200).map(np.array)
FRACTIONS = some.floats(0.01, 0.99)


def everything(array: np.ndarray) -> np.ndarray:
    return np.arange(len(array))


def is_once(parts: Positions, n_rows: int) -> bool:
    return sorted(np.concatenate(parts).tolist()) == list(range(n_rows))


def test_classes_keep_their_shares_and_every_row_is_once() -> None:
    strata = np.repeat([0, 1], [80, 20])
    kept, taken = cut_random(everything(strata), fraction=0.25, seed=0, strata=strata)
    assert is_once((kept, taken), 100)
    assert np.bincount(strata[taken]).tolist() == [20, 5]


@settings(deadline=None, max_examples=60)
@given(GROUPS, FRACTIONS, some.integers(0, 5))
def test_a_group_is_never_on_both_sides(groups: np.ndarray, fraction: float, seed: int) -> None:
    if len(np.unique(groups)) < 2:
        return
    kept, taken = cut_groups(everything(groups), groups=groups, fraction=fraction, seed=seed)
    assert is_once((kept, taken), len(groups))
    assert len(kept)
    assert len(taken)
    assert not set(groups[kept]) & set(groups[taken])


@settings(deadline=None, max_examples=60)
@given(GROUPS, some.floats(0.05, 0.6))
def test_no_single_group_would_bring_the_share_closer(groups: np.ndarray, fraction: float) -> None:
    names, counts = np.unique(groups, return_counts=True)
    if len(names) < 3:
        return
    kept, taken = cut_groups(everything(groups), groups=groups, fraction=fraction, seed=0)
    wanted = fraction * len(groups)
    off = abs(len(taken) - wanted)
    chosen = np.isin(names, groups[taken])
    if chosen.sum() < len(names) - 1:
        assert all(abs(len(taken) + count - wanted) >= off for count in counts[~chosen])
    assert off <= max(counts)
    del kept


def test_groups_are_chosen_by_the_seed() -> None:
    groups = np.arange(1000) // 10
    chosen = [cut_groups(everything(groups), groups=groups, fraction=0.2, seed=seed)[1] for seed in (0, 0, 1)]
    assert [len(part) for part in chosen] == [200, 200, 200]
    assert chosen[0].tolist() == chosen[1].tolist() != chosen[2].tolist()


def test_one_huge_group_is_not_held_out() -> None:
    groups = np.repeat([0, 1, 2, 3], [900, 40, 40, 20])
    for seed in range(5):
        _, taken = cut_groups(everything(groups), groups=groups, fraction=0.1, seed=seed, leave=2)
        assert 0 not in groups[taken]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="there are 2 groups and 3 are needed"):
        cut_groups(np.arange(4), groups=np.array([0, 0, 1, 1]), fraction=0.5, seed=0, leave=2)


@settings(deadline=None, max_examples=100)
@given(TIMES, FRACTIONS, some.integers(0, 10))
def test_what_stays_is_earlier_by_the_gap(times: np.ndarray, fraction: float, gap: int) -> None:
    if len(np.unique(times)) < 2:
        return
    try:
        kept, taken = cut_time(everything(times), times=times, fraction=fraction, gap=Gap(gap), say=str)
    except InputError as error:
        assert gap > 0
        assert "leaves no row" in error.message  # noqa: PT017 - both outcomes are right, each in its case
        return
    assert times[kept].max() < times[taken].min()
    assert times[kept].max() <= times[taken].min() - gap
    left_out = np.setdiff1d(everything(times), np.concatenate([kept, taken]))
    assert (times[left_out] > times[taken].min() - max(gap, 1)).all()
    assert (times[left_out] < times[taken].min()).all()


def test_the_boundary_lies_at_the_moment_nearest_to_the_share() -> None:
    times = np.array([5, 1, 1, 3, 3, 3, 3, 2, 4, 5])
    kept, taken = cut_time(everything(times), times=times, fraction=0.3, say=str)
    assert sorted(times[taken]) == [4, 5, 5]
    assert len(kept) == 7
    _, taken = cut_time(everything(times), times=times, fraction=0.45, say=str)
    assert sorted(times[taken]) == [4, 5, 5]  # 3 or 7 rows: equal times do not straddle


def test_times_of_nanoseconds_are_compared_exactly() -> None:
    start = 1_700_000_000_000_000_000
    times = start + np.array([3, 1, 2, 0])
    kept, taken = cut_time(everything(times), times=times, fraction=0.25, gap=Gap(2), say=str)
    assert (kept.tolist(), taken.tolist()) == ([1, 3], [0])


def test_a_gap_that_leaves_nothing_is_given_as_it_was_written_before_the_moment_it_ends_at() -> None:
    times = np.array([50, 10, 30, 40, 20]) * 86400
    with pytest.raises(InputError, match="the gap of 100d leaves no row before 2024-02-03"):
        cut_time(
            np.array([1, 2, 3]),
            times=times,
            fraction=0.5,
            gap=Gap(100 * 86400, "100d"),
            say={2: "2024-02-03"}.__getitem__,
        )


def test_too_few_times_are_refused() -> None:
    with pytest.raises(InputError, match="there are 1 different times and 2 are needed"):
        cut_time(np.arange(4), times=np.ones(4), fraction=0.5, say=str)


# folds


def test_each_row_is_tested_once_in_every_kind_of_fold() -> None:
    labels, groups = np.arange(60) % 3, np.arange(60) // 5
    for folds in (
        k_folds(60, n_folds=4, seed=0),
        k_folds(60, n_folds=4, seed=0, strata=labels),
        leave_one_out(60),
        group_folds(groups, n_folds=4),
    ):
        tested = []
        for train, test in folds:
            assert is_once((train, test), 60)
            tested += test.tolist()
        assert sorted(tested) == list(range(60))


def test_stratified_folds_keep_the_shares_and_grouped_ones_the_groups() -> None:
    labels, groups = np.arange(60) % 3, np.arange(60) // 5
    for _, test in k_folds(60, n_folds=4, seed=0, strata=labels):
        assert np.bincount(labels[test]).tolist() == [5, 5, 5]
    for train, test in group_folds(groups, n_folds=4):
        assert not set(groups[train]) & set(groups[test])


@settings(deadline=None, max_examples=60)
@given(TIMES, some.integers(2, 5))
def test_time_folds_train_on_the_past_alone_and_grow(times: np.ndarray, n_folds: int) -> None:
    if len(np.unique(times)) < n_folds + 1:
        return
    lengths, tested = [], []
    for train, test in time_folds(times, n_folds=n_folds, say=str):
        assert times[train].max() < times[test].min()
        lengths.append(len(train))
        tested += test.tolist()
    assert len(lengths) == n_folds
    assert lengths == sorted(lengths)
    assert len(tested) == len(set(tested))


def test_a_gap_keeps_time_folds_apart() -> None:
    times = np.random.default_rng(0).permutation(100)
    sizes = []
    for train, test in time_folds(times, n_folds=4, gap=Gap(7), say=str):
        assert times[train].max() == times[test].min() - 7
        sizes.append((len(train), len(test)))
    assert sizes == [(14, 20), (34, 20), (54, 20), (74, 20)]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: k_folds(3, n_folds=4, seed=0), "there are 3 rows for 4 folds"),
        (
            lambda: k_folds(9, n_folds=4, seed=0, strata=np.array([0] * 6 + [1] * 3)),
            "the smallest class has 3 rows for 4 folds",
        ),
        (lambda: group_folds(np.array([0, 0, 1]), n_folds=3), "there are 2 groups for 3 folds"),
        (
            lambda: time_folds(np.array([1, 1, 2]), n_folds=2, say=str),
            "there are 2 different times for 2 folds",
        ),
        (
            lambda: time_folds(np.arange(9), n_folds=2, gap=Gap(5, "5 weeks"), say="day {}".format),
            "the gap of 5 weeks leaves no row before day 3",
        ),
        (lambda: leave_one_out(1), "there are 1 rows"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(make: Callable[[], Iterator[Positions]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(make())
