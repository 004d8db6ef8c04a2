"""Rules of labels: what can be learned from, and what a model that exists may be measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kit.errors import InputError
from kit.labels import read_labels


def read(values: Any, *, classes: Any = None, task: str = "classification") -> tuple[np.ndarray, Any]:
    return read_labels(pa.chunked_array([pa.array(values)]), task=task, name="y", classes=classes)


@pytest.mark.parametrize(
    "values",
    [["", "b"] * 5, pa.array(["a", ""] * 5).dictionary_encode(), pa.array(["", "c"] * 5, "large_string")],
)
def test_an_empty_string_is_a_missing_label_in_every_format(values: Any) -> None:
    with pytest.raises(InputError, match="the label 'y' is missing in 5 rows") as caught:
        read(values)
    assert caught.value.hint
    with pytest.raises(InputError, match="missing in 3 rows"):
        read(["", None, "", "b"], classes=("a", "b"))


@pytest.mark.parametrize(
    "values, message",
    [
        ([1] * 9, "the label 'y' has the one value 1; two"),
        ([True] * 9, "the label 'y' has the one value 1; two"),
        ([1] * 9 + [2], "class 2 of the label 'y' has 1 rows"),
        (["ä"] * 9 + ["b"], "class 'b' of the label 'y' has 1 rows"),
    ],
)
def test_a_message_shows_a_class_as_the_user_knows_it(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(values)


def test_known_classes_keep_their_indices_though_some_are_rare_or_absent() -> None:
    labels, classes = read(["b", "b", "ç"], classes=("ç", "a", "b"))
    assert (labels.tolist(), labels.dtype, classes) == ([2, 2, 0], np.int64, ("ç", "a", "b"))
    assert read([True, True], classes=(0, 1))[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    "values, classes, message, hint",
    [
        (
            ["a", "c", "c"],
            ("a", "b"),
            "has the class 'c' in 2 rows, which the model does not know",
            "valid: a, b",
        ),
        ([3], (1, 2), "has the class 3 in 1 rows", "valid: 1, 2"),
        (["1"], (1, 2), "has the class '1' in 1 rows", "store the label as whole numbers"),
        ([1], ("1", "2"), "has the class 1 in 1 rows", "store the label as strings"),
        ([1.0], (1, 2), "holds values of type double", "store the label as the model learned it"),
    ],
)
def test_a_class_the_model_does_not_know_is_named(values: Any, classes: Any, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(values, classes=classes)
    assert hint in str(caught.value.hint)


def test_values_a_model_is_measured_on_may_all_be_the_same() -> None:
    assert read([3.0, 3.0], task="regression", classes=())[0].tolist() == [3.0, 3.0]
    with pytest.raises(InputError, match="the label 'y' is 3 in every row"):
        read([3.0, 3.0], task="regression")
    with pytest.raises(InputError, match="not finite"):
        read([3.0, np.nan], task="regression", classes=())
