"""Which tensor a network reads as it is, and the rows that are made up for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jobs.preparation.raw import blank_rows, edge_rows, raw_input
from kit.errors import ProjectError
from kit.signature import Signature
from kit.tensors import TensorSpec, check_tensor


def ids(
    dtype: str = "int64", minimum: float | None = 0, maximum: float | None = 9, **more: Any
) -> TensorSpec:
    return TensorSpec("ids", dtype, (-1, 4), columns=("ids",), minimum=minimum, maximum=maximum, **more)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature("regression", inputs, (TensorSpec("value", "float32", (-1,)),))


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_one_tensor_of_numbers_is_read_as_it_is(dtype: str) -> None:
    spec = ids(dtype)
    assert raw_input(signature(spec)) is spec


def test_numbers_need_no_bounds() -> None:
    spec = ids("float32", minimum=None, maximum=None)
    assert raw_input(signature(spec)) is spec


@pytest.mark.parametrize(
    "specs, said",
    [
        ((), "names $"),
        ((ids("string", None, None),), r"names ids \(string\)"),
        ((ids("float64"),), r"names ids \(float64\)"),
        ((ids("float32", nullable=True),), r"names ids \(float32, nullable\)"),
        ((ids(), ids("float32")), r"names ids \(int64\), ids \(float32\)"),
    ],
)
def test_any_other_input_has_to_be_prepared(specs: tuple[TensorSpec, ...], said: str) -> None:
    with pytest.raises(ProjectError, match=said) as caught:
        raw_input(signature(*specs))
    assert "[[prepare.features]]" in str(caught.value.hint)


@pytest.mark.parametrize(
    "minimum, maximum, lacking",
    [(None, 9, "no minimum;"), (0, None, "no maximum;"), (None, None, "no minimum and no maximum;")],
)
def test_integers_need_both_bounds(minimum: float | None, maximum: float | None, lacking: str) -> None:
    with pytest.raises(ProjectError, match=f"'ids' is int32 and has {lacking}") as caught:
        raw_input(signature(ids("int32", minimum, maximum)))
    assert "fails on any other" in str(caught.value.hint)


def test_an_estimator_reads_no_integers() -> None:
    with pytest.raises(ProjectError, match="an estimator reads one input of float32"):
        raw_input(signature(ids()), integers=False)


@pytest.mark.parametrize(
    "spec, value",
    [
        (ids("float32", 5, 9), 0.0),
        (ids("int64", 0, 9), 0),
        (ids("int32", -4, 9), 0),
        (ids("int64", 2.5, 9), 3),
        (ids("int64", -9, -1.5), -2),
    ],
)
def test_blank_rows_hold_zero_or_the_allowed_integer_nearest_to_it(spec: TensorSpec, value: float) -> None:
    rows = blank_rows(spec, n_rows=3)
    assert (rows.dtype, rows.shape) == (np.dtype(spec.dtype), (3, 4))
    assert np.unique(rows).tolist() == [value]


@pytest.mark.parametrize(
    "spec, values",
    [
        (ids("int64", 0, 9), [0, 9]),
        (ids("int64", 0.5, 9.5), [1, 9]),
        (ids("int32", -1e12, 1e12), [-(2**31), 2**31 - 1]),
    ],
)
def test_edge_rows_hold_the_smallest_and_the_largest_allowed_integer(
    spec: TensorSpec, values: list[int]
) -> None:
    rows = check_tensor(spec, edge_rows(spec))
    assert rows.tolist() == [[value] * 4 for value in values]


def test_floats_have_no_edge_rows() -> None:
    rows = edge_rows(ids("float32"))
    assert (rows.dtype, rows.shape) == (np.float32, (0, 4))
