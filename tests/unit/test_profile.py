from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.files import canonical_json
from kit.profile import CONFIDENCE_EDGES, confidence, profile
from kit.signature import Signature
from kit.tensors import TensorSpec


def numbers(values: Any, dtype: str = "float64") -> dict[str, Any]:
    signature = Signature("", (TensorSpec("x", dtype, (-1,), ("a",)),), ())
    found = profile({"x": np.asarray(values, dtype=dtype)}, signature=signature)
    column: dict[str, Any] = found["columns"]["a"]
    return column


def test_a_number_column_is_a_histogram() -> None:
    found = numbers([*range(100), np.nan])
    assert len(found["edges"]) == 21
    assert (found["edges"][0], found["edges"][-1]) == (0, 99)
    assert found["counts"] == [5] * 20
    assert (found["missing"], found["mean"]) == (1, 49.5)
    assert found["std"] == pytest.approx(np.std(np.arange(100)))


def test_a_string_column_counts_its_categories() -> None:
    signature = Signature("", (TensorSpec("s", "string", (-1, 1), ("g",)),), ())
    values = np.array([["b"], ["a"], [""], ["b"]], dtype=object)
    assert profile({"s": values}, signature=signature) == {
        "n_rows": 4,
        "columns": {"g": {"categories": {"b": 2, "a": 1}, "missing": 1}},
    }


def test_only_the_most_frequent_categories_are_kept_and_the_others_are_counted() -> None:
    signature = Signature("", (TensorSpec("s", "string", (-1,), ("g",)),), ())
    values = np.array([f"c{index:03}" for index in range(300)] + ["c299"], dtype=object)
    column = profile({"s": values}, signature=signature)["columns"]["g"]
    assert len(column["categories"]) == 200
    assert next(iter(column["categories"])) == "c299"
    assert (column["other"], sum(column["categories"].values())) == (100, 201)


def test_each_column_of_a_tensor_is_described_and_a_list_column_as_one() -> None:
    signature = Signature(
        "",
        (
            TensorSpec("two", "float32", (-1, 2), ("a", "b")),
            TensorSpec("image", "float32", (-1, 1, 2, 2), ("pixels",)),
        ),
        (),
    )
    tensors = {
        "two": np.array([[0, 10], [1, 11]], dtype=np.float32),
        "image": np.zeros((2, 1, 2, 2), dtype=np.float32),
    }
    columns = profile(tensors, signature=signature)["columns"]
    assert (columns["a"]["mean"], columns["b"]["mean"]) == (0.5, 10.5)
    assert sum(columns["pixels"]["counts"]) == 8


def test_a_column_without_a_value_has_no_histogram() -> None:
    assert numbers([np.nan, np.nan]) == {"edges": [], "counts": [], "missing": 2, "mean": None, "std": None}


@given(st.lists(st.floats(allow_infinity=False), min_size=1, max_size=8))
def test_any_numbers_have_a_histogram_that_counts_them_all(values: list[float]) -> None:
    found = numbers(values)
    known = [value for value in values if not np.isnan(value)]
    assert sum(found["counts"]) == len(known)
    assert found["missing"] == len(values) - len(known)
    assert canonical_json(found)
    if known:
        assert found["edges"] == sorted(set(found["edges"]))
        assert found["edges"][0] <= min(known) <= max(known) <= found["edges"][-1]


@pytest.mark.parametrize("values", [[10**18, 10**18 + 1], [10**18], [2**62, -(2**62)]])
def test_large_whole_numbers_have_a_histogram(values: list[int]) -> None:
    assert sum(numbers(values, "int64")["counts"]) == len(values)


ANSWERS = Signature(
    "classification",
    (TensorSpec("x", "float64", (-1,), ("a",)),),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes", "never")),
        TensorSpec("probabilities", "float32", (-1, 3)),
    ),
)


def test_answers_are_described_by_label_and_confidence_over_their_own_rows() -> None:
    outputs = {
        "label": np.array([1, 0, 1]),
        "probabilities": np.array([[0.1, 0.9, 0], [1.0, 0, 0], [0.2, 0.8, 0]], dtype=np.float32),
    }
    found = profile({"x": np.arange(5.0)}, signature=ANSWERS, outputs=outputs)
    assert (found["n_rows"], found["outputs"]["n_rows"]) == (5, 3)
    columns = found["outputs"]["columns"]
    assert columns["label"] == {"categories": {"no": 1, "yes": 2, "never": 0}, "missing": 0}
    assert columns["confidence"]["edges"] == list(CONFIDENCE_EDGES)
    assert sum(columns["confidence"]["counts"]) == 3
    assert columns["confidence"]["counts"][-1] == 1
    assert canonical_json(found) == canonical_json(
        profile({"x": np.arange(5.0)}, signature=ANSWERS, outputs=outputs)
    )


def test_a_regressions_answers_are_a_histogram() -> None:
    signature = Signature("regression", ANSWERS.inputs, (TensorSpec("value", "float32", (-1,)),))
    outputs = {"value": np.array([1.0, 3.0, np.inf], dtype=np.float32)}
    column = profile({"x": np.arange(5.0)}, signature=signature, outputs=outputs)["outputs"]["columns"][
        "value"
    ]
    assert (column["edges"][0], column["edges"][-1], column["missing"]) == (1, 3, 1)


def test_without_answers_none_are_described() -> None:
    assert "outputs" not in profile({"x": np.arange(5.0)}, signature=ANSWERS)


def test_a_confidence_is_a_probability_even_where_rounding_passed_one() -> None:
    found = confidence(np.array([[1.0000001, 0.0]], dtype=np.float32))
    assert (found.tolist(), found.dtype) == ([1.0], np.float64)
