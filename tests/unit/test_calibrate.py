from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.calibrate import check_overlap, check_rows, choose_rows
from kit.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
VALIDATION = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    share=st.floats(0.2, 1.0),
    seed=st.integers(0, 9),
)
def test_every_class_gets_its_share_to_within_one_row(counts: list[int], share: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    n_rows = max(10, int(share * len(labels)))
    if n_rows > len(labels):
        return
    chosen = choose_rows(labels, n_rows=n_rows, seed=seed)
    assert len(np.unique(chosen)) == n_rows
    for label, count in enumerate(counts):
        expected = n_rows * count / len(labels)
        assert abs(np.sum(labels[chosen] == label) - expected) <= 1


def test_the_same_seed_chooses_the_same_rows_and_another_seed_others() -> None:
    labels = np.arange(300) % 3
    first = choose_rows(labels, n_rows=30, seed=0)
    np.testing.assert_array_equal(first, choose_rows(labels, n_rows=30, seed=0))
    assert set(first) != set(choose_rows(labels, n_rows=30, seed=1))


def test_a_regressions_values_are_covered_evenly() -> None:
    values = np.random.default_rng(0).permutation(1000).astype(np.float32)
    chosen = np.sort(values[choose_rows(values, n_rows=10, seed=0)])
    np.testing.assert_array_equal(chosen, np.arange(50, 1000, 100))


def test_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="200 calibration rows are asked for, but there are 150"):
        choose_rows(np.zeros(150), n_rows=200, seed=0)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="9 calibration rows are too few"):
        choose_rows(np.zeros(150), n_rows=9, seed=0)
    with pytest.raises(InputError, match="3 calibration rows are too few"):
        check_rows(ROWS[:3], VALIDATION, name="x")


def test_rows_of_the_same_distribution_pass() -> None:
    check_rows(ROWS, VALIDATION, name="x")
    check_rows(ROWS[:10], VALIDATION, name="x")
    with pytest.raises(InputError):  # the same rows on another scale do not
        check_rows(ROWS * 16, VALIDATION, name="x")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows * 255,
        lambda rows: rows / 16,
        lambda rows: rows + 1,
        lambda rows: (rows - 5) * 40,
    ],
)
def test_rows_on_another_scale_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="on another scale than the validation rows: 'x' has mean"):
        check_rows(wrong(ROWS), VALIDATION, name="x")


def test_unnormalised_images_are_refused() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(100, 1, 8, 8)).astype(np.float32)
    with pytest.raises(InputError, match="another scale"):
        check_rows(pixels, pixels[:40] / 255, name="image")
    with pytest.raises(InputError, match="another scale"):
        check_rows(pixels / 255, pixels[:40] / 127.5 - 1, name="image")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_names_its_row(value: float) -> None:
    rows = ROWS.copy()
    rows[17, 3] = value
    with pytest.raises(InputError, match=rf"calibration row 17 has {value} at position 3 of 'x'"):
        check_rows(rows, VALIDATION, name="x")
    with pytest.raises(InputError, match="validation row 17"):
        check_rows(VALIDATION, rows, name="x")


def test_constant_rows_are_refused() -> None:
    with pytest.raises(InputError, match="nothing but 3 in 'x'"):
        check_rows(np.full((20, 4), 3, np.float32), VALIDATION, name="x")


def test_calibration_rows_that_are_test_rows_are_refused() -> None:
    check_overlap(ROWS, VALIDATION)
    with pytest.raises(InputError, match="2 of 202 calibration rows are test rows too, the first is row 200"):
        check_overlap(np.concatenate([ROWS, VALIDATION[:2]]), VALIDATION)
