from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kit.drift import FLOOR, Drift, compare, joined_bins, psi, threshold, wasserstein
from kit.errors import InputError
from kit.profile import profile
from kit.signature import Signature
from kit.tensors import TensorSpec

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any)


def reference(values: np.ndarray) -> dict[str, Any]:
    """Describe numbers as a profile does."""
    signature = Signature("", (TensorSpec("x", "float64", (-1,), ("a",)),), ())
    column: dict[str, Any] = profile({"x": values}, signature=signature)["columns"]["a"]
    return column


def observed(values: np.ndarray, *, edges: list[float]) -> dict[str, Any]:
    """Count numbers on a profile's bins by the book, with what lies outside at either end."""
    known = values[~np.isnan(values)]
    inside = np.histogram(known, bins=edges)[0].tolist()
    below, above = int((known < edges[0]).sum()), int((known > edges[-1]).sum())
    return {"counts": [below, *inside, above], "missing": len(values) - len(known)}


def numbers(before: np.ndarray, after: np.ndarray) -> Drift:
    described = reference(before)
    return compare("a", role="input", reference=described, observed=observed(after, edges=described["edges"]))


def test_the_index_is_the_textbooks() -> None:
    by_hand = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert psi([50, 50], [30, 70]) == pytest.approx(by_hand)


@settings(max_examples=30)
@given(COUNTS)
def test_the_same_shares_have_no_index_however_many_rows_there_are(counts: list[int]) -> None:
    assert psi(counts, [7 * count for count in counts]) == pytest.approx(0, abs=1e-12)


@settings(max_examples=30)
@given(COUNTS, st.data())
def test_the_index_is_never_negative_and_always_finite(counts: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(0, 1000), min_size=len(counts), max_size=len(counts)).filter(any))
    assert 0 <= psi(counts, other) < math.inf
    assert psi(counts, other) == pytest.approx(psi(other, counts))


@pytest.mark.parametrize("before,after", [([1, 2], [1, 2, 3]), ([0, 0], [1, 2]), ([1, 2], [0, 0])])
def test_what_cannot_be_compared_is_refused(before: list[int], after: list[int]) -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        psi(before, after)


def test_the_threshold_grows_for_few_rows_and_ends_at_its_floor() -> None:
    quantile = stats.chi2.ppf(0.999, 9)
    assert threshold(n_bins=10, n=100, m=10_000) == pytest.approx(quantile * (1 / 100 + 1 / 10_000))
    assert threshold(n_bins=10, n=100_000, m=10_000) == FLOOR
    assert threshold(n_bins=1, n=3, m=3) == FLOOR


@pytest.mark.parametrize("n", [60, 300, 2000])
def test_noise_alone_is_hardly_ever_called_drift(n: int) -> None:
    """Twenty bins, most of them rare: what a fixed threshold of 0.1 fires on."""
    random = np.random.default_rng(n)
    before = random.standard_normal(5000)
    found = [numbers(before, random.standard_normal(n)) for _ in range(150)]
    assert sum(each.drifted for each in found) <= 2
    if n == 60:
        assert sum(each.index > 0.1 for each in found if each.index is not None) > 20


@pytest.mark.parametrize("n", [300, 50_000])
def test_a_shift_by_a_standard_deviation_is_drift_however_many_rows_there_are(n: int) -> None:
    random = np.random.default_rng(1)
    found = numbers(random.standard_normal(5000), 1 + random.standard_normal(n))
    assert found.drifted
    assert found.distance == pytest.approx(1, abs=0.15)


def test_values_outside_the_range_of_training_are_counted_and_drift() -> None:
    found = numbers(np.linspace(0, 1, 1000), np.linspace(1.5, 2, 500))
    assert (found.drifted, found.unseen) == (True, 1.0)


def test_missing_values_are_a_bin_of_their_own() -> None:
    random = np.random.default_rng(2)
    after = random.standard_normal(1000)
    after[:400] = np.nan
    found = numbers(random.standard_normal(5000), after)
    assert (found.drifted, found.missing, found.missing_before, found.n) == (True, 0.4, 0.0, 1000)


def test_a_column_that_was_empty_in_training_drifts_when_it_is_filled() -> None:
    described = reference(np.array([np.nan] * 100))
    found = compare("a", role="input", reference=described, observed={"counts": [0, 100], "missing": 0})
    assert (found.drifted, found.distance) == (True, None)


def test_a_constant_column_that_stays_so_does_not_drift() -> None:
    found = numbers(np.full(500, 3.0), np.full(300, 3.0))
    assert (found.index, found.drifted) == (0.0, False)


def categories(before: dict[str, int], after: dict[str, int], *, other: int = 0) -> Drift:
    return compare(
        "g",
        role="input",
        reference={"categories": before, "missing": 0},
        observed={"categories": after, "other": other, "missing": 0},
    )


def test_categories_drift_by_their_shares_and_by_unseen_ones() -> None:
    before = {"a": 500, "b": 500}
    assert not categories(before, {"a": 260, "b": 240}).drifted
    assert categories(before, {"a": 450, "b": 50}).drifted
    found = categories(before, {"a": 200, "b": 200}, other=100)
    assert (found.drifted, found.unseen, found.distance) == (True, 0.2, None)


def test_a_thousand_rare_categories_do_not_drift_by_noise() -> None:
    random = np.random.default_rng(3)
    names = [f"c{index}" for index in range(150)]
    before = dict(zip(names, random.multinomial(2000, [1 / 150] * 150).tolist(), strict=True))
    found = [
        categories(before, dict(zip(names, random.multinomial(200, [1 / 150] * 150).tolist(), strict=True)))
        for _ in range(50)
    ]
    assert not any(each.drifted for each in found)


def test_whether_a_category_is_unseen_is_not_said_where_the_profile_did_not_keep_all() -> None:
    found = compare(
        "g",
        role="input",
        reference={"categories": {"a": 90}, "other": 10, "missing": 0},
        observed={"categories": {"a": 90}, "other": 10, "missing": 0},
    )
    assert (found.index, found.unseen) == (0.0, None)


def test_without_rows_nothing_is_said() -> None:
    found = categories({"a": 3}, {})
    assert (found.index, found.threshold, found.drifted, found.n) == (None, None, False, 0)


def test_another_kind_of_column_or_other_bins_are_refused() -> None:
    described = reference(np.arange(10.0))
    with pytest.raises(InputError, match="another kind"):
        compare("a", role="input", reference=described, observed={"categories": {}, "missing": 0})
    with pytest.raises(InputError, match="was observed on 3 bins; the profile has 22"):
        compare("a", role="input", reference=described, observed={"counts": [1, 2, 3], "missing": 0})


def test_joining_bins_keeps_every_value_and_looks_at_the_reference_alone() -> None:
    before, after = np.array([0, 1, 2, 40, 50, 3, 0]), np.array([9, 0, 0, 1, 1, 0, 9])
    joined, counts = joined_bins(before, after, of_total=96, adjacent=True)
    assert (joined.tolist(), counts.tolist()) == ([43, 53], [10, 10])
    rare, rest = joined_bins(before, after, of_total=96, adjacent=False)
    assert (rare.tolist(), rest.tolist()) == ([40, 50, 6], [1, 1, 18])


def test_the_distance_is_how_far_values_are_carried() -> None:
    edges = [0.0, 1.0, 2.0, 3.0]
    assert wasserstein([0, 9, 0, 0, 0], [0, 0, 0, 9, 0], edges=edges) == pytest.approx(2)
    assert wasserstein([0, 1, 1, 1, 0], [0, 1, 1, 1, 0], edges=edges) == 0
    assert wasserstein([5, 0, 0, 0, 0], [0, 0, 0, 0, 5], edges=edges) == pytest.approx(3)
    # Half of one bin to either side: the distribution functions cross in the middle of it.
    assert wasserstein([0, 0, 2, 0, 0], [0, 1, 0, 1, 0], edges=edges) == pytest.approx(1 - 0.25)
    with pytest.raises(InputError, match="do not belong"):
        wasserstein([1, 2], [1, 2], edges=edges)


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_scipys_on_values_that_fill_their_bins(seed: int) -> None:
    random = np.random.default_rng(seed)
    edges = np.linspace(-3, 3, 13)
    one, other = (random.integers(1, 50, 12) for _ in range(2))
    fine = np.linspace(-3, 3, 12 * 40 + 1)
    middles = (fine[:-1] + fine[1:]) / 2
    theirs = stats.wasserstein_distance(middles, middles, np.repeat(one, 40), np.repeat(other, 40))
    ours = wasserstein([0, *one, 0], [0, *other, 0], edges=edges.tolist())
    assert ours == pytest.approx(theirs, abs=2e-3)
