"""Preprocessing as data: arithmetic, and what is refused when it is read."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from kit.errors import InputError
from kit.steps import Steps

DOCUMENT: dict[str, Any] = {
    "format": 1,
    "n_features": 9,
    "blocks": [
        {
            "kind": "number",
            "columns": [["numeric", 0], ["numeric", 1]],
            "operations": [
                {"op": "impute", "missing": None, "values": [2.0, 10.0]},
                {"op": "scale", "subtract": [1.0, 10.0], "divide": [2.0, 5.0]},
            ],
        },
        {
            "kind": "number",
            "columns": [["numeric", 2]],
            "operations": [{"op": "affine", "multiply": [0.5], "add": [0.0], "clip": [0.0, 1.0]}],
        },
        {
            "kind": "number",
            "columns": [["numeric", 2]],
            "operations": [{"op": "bins", "edges": [[1.0, 2.0]], "one_hot": True}],
        },
        {
            "kind": "string",
            "columns": [["site", 0]],
            "operations": [
                {"op": "impute", "missing": "", "values": ["a"]},
                {"op": "one_hot", "categories": [["a", "ü"]]},
            ],
        },
        {
            "kind": "string",
            "columns": [["site", 0]],
            "operations": [{"op": "ordinal", "categories": [["a", "ü"]], "unknown": None}],
        },
    ],
}

TENSORS = {
    "numeric": np.array([[np.nan, 15, 1], [5, np.nan, 9]], dtype=np.float32),
    "site": np.array([[""], ["ü"]], dtype=object),
}


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def test_every_operation_gives_its_features_in_order():
    features = Steps.from_json(DOCUMENT).apply(TENSORS)["features"]
    expected = [[0.5, 1, 0.5, 0, 1, 0, 1, 0, np.nan], [2, 0, 1, 0, 0, 1, 0, 1, 1]]
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, np.array(expected, dtype=np.float32))


def test_an_unseen_category_is_all_zeros():
    strange = dict(TENSORS, site=np.array([["never seen"], ["東京"]], dtype=object))
    assert not Steps.from_json(DOCUMENT).apply(strange)["features"][:, 6:8].any()


def test_a_string_tensor_without_an_axis_of_columns_is_read():
    flat = dict(TENSORS, site=TENSORS["site"].reshape(-1))
    steps = Steps.from_json(DOCUMENT)
    np.testing.assert_array_equal(steps.apply(flat)["features"], steps.apply(TENSORS)["features"])


def test_steps_survive_a_trip_through_json():
    steps = Steps.from_json(DOCUMENT)
    again = Steps.from_json(json.loads(json.dumps(steps.to_json())))
    assert again == steps
    assert again.to_json() == DOCUMENT


def test_a_missing_tensor_is_named():
    with pytest.raises(InputError, match="'site' is missing"):
        Steps.from_json(DOCUMENT).apply({"numeric": TENSORS["numeric"]})


FIRST = ["blocks", 0, "operations", 0]


@pytest.mark.parametrize(
    "path, value, message",
    [
        ([*FIRST, "op"], "imputt", "'imputt' is not an operation"),
        ([*FIRST, "extra"], 1, "unknown key 'extra'"),
        ([*FIRST, "values"], [1.0], "2 entries"),
        ([*FIRST, "values"], [1.0, "2"], "numbers only"),
        ([*FIRST, "values"], [1.0, float("nan")], "numbers only"),
        ([*FIRST, "missing"], "", "wrong type"),
        (["blocks", 0, "columns"], [["numeric", -1], ["numeric", 1]], "does not list its columns"),
        (["blocks", 0, "kind"], "text", "kind 'text'"),
        (["blocks", 3, "operations"], [], "leaves strings"),
        (["blocks", 3, "operations", 1, "categories"], [["a", 1]], "strings only"),
        (["blocks", 2, "operations", 0, "one_hot"], 1, "wrong type"),
        (["blocks"], [], "no list of blocks"),
        (["n_features"], 8, "its blocks yield 9"),
        (["format"], 2, "format 2"),
        (["author"], "me", "unknown key 'author'"),
    ],
)
def test_a_document_this_kit_did_not_write_is_refused(path: list[Any], value: Any, message: str):
    with pytest.raises(InputError, match=message):
        Steps.from_json(changed(path, value))


def test_nothing_may_follow_an_encoder():
    operations = list(reversed(DOCUMENT["blocks"][3]["operations"]))
    with pytest.raises(InputError, match="nothing may follow 'one_hot'"):
        Steps.from_json(changed(["blocks", 3, "operations"], operations))


def test_a_tensor_that_is_too_narrow_is_named():
    with pytest.raises(InputError, match="'numeric' has 2 values per row; value 2 is read"):
        Steps.from_json(DOCUMENT).apply(dict(TENSORS, numeric=TENSORS["numeric"][:, :2]))


def test_no_rows_give_no_features():
    none = {name: array[:0] for name, array in TENSORS.items()}
    assert Steps.from_json(DOCUMENT).apply(none)["features"].shape == (0, 9)
