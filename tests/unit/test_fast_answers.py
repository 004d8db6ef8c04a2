"""Rules of the short ways that one row takes: to the bit what the long ways say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

from kit.engines.litert import _levels
from kit.errors import InputError
from kit.runner import _softmax_of_row, softmax
from kit.tensors import TensorSpec, check_tensor

FLOATS = some.floats(width=32, allow_nan=True, allow_infinity=True)
ROWS = arrays.arrays(np.float32, some.tuples(some.just(1), some.integers(1, 12)), elements=FLOATS)


@given(ROWS)
def test_shares_of_one_row_are_those_of_many(row: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        found = _softmax_of_row(row, int(row.argmax(axis=1)[0]))
        many = softmax(np.concatenate([row, row]))
    assert found.dtype == np.float32
    assert found[0].tobytes() == many[0].tobytes() or np.isnan(found).tolist() == np.isnan(many[:1]).tolist()


@given(
    ROWS,
    some.floats(1e-6, 1e3),
    some.integers(-128, 127),
    some.sampled_from([np.int8, np.uint8, np.int16]),
)
def test_levels_are_those_of_rounding_and_clipping(row, scale: float, zero_point: int, dtype: type) -> None:
    limits = np.iinfo(dtype)
    with np.errstate(all="ignore"):
        levels = np.clip(np.rint(row / scale) + zero_point, limits.min, limits.max)
        expected = np.where(np.isnan(levels), max(zero_point, limits.min), levels).astype(dtype)
        found = _levels(row, scale, max(zero_point, int(limits.min)), dtype)
    if zero_point >= limits.min:
        np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype


@given(
    arrays.arrays(np.float32, some.tuples(some.integers(0, 3), some.just(4)), elements=FLOATS),
    some.none() | some.floats(-100, 0),
    some.none() | some.floats(0, 100),
    some.booleans(),
)
def test_a_value_is_refused_by_the_rule_it_breaks(
    rows: np.ndarray, low: float | None, high: float | None, nullable: bool
) -> None:
    spec = TensorSpec("x", "float32", (-1, 4), minimum=low, maximum=high, nullable=nullable)
    with np.errstate(invalid="ignore"):
        below = low is not None and bool((rows < np.float32(low)).any())
        above = high is not None and bool((rows > np.float32(high)).any())
    bad = np.isinf(rows).any() or (np.isnan(rows).any() and not nullable) or below or above
    if bad:
        with pytest.raises(InputError, match="input 'x'"):
            check_tensor(spec, rows)
    else:
        assert check_tensor(spec, rows) is rows


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "bool", "float64"])
def test_whole_numbers_without_bounds_are_let_pass_and_with_bounds_are_checked(dtype: str) -> None:
    values = np.array([[0], [1]], dtype=dtype)
    assert check_tensor(TensorSpec("x", dtype, (-1, 1)), values) is values
    if dtype != "bool":
        with pytest.raises(InputError, match=r"row 1: 1.* is above the maximum 0"):
            check_tensor(TensorSpec("x", dtype, (-1, 1), maximum=0), values)
