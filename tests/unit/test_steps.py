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


def test_each_column_is_rounded_to_float32_once_whatever_stands_beside_it():
    document = {
        "format": 1,
        "n_features": 2,
        "blocks": [{"kind": "number", "columns": [["count", 0], ["size", 0]], "operations": []}],
    }
    count = np.array([[2**60 + 2**36 + 1]])
    tensors = {"count": count, "size": np.zeros((1, 1), dtype=np.float32)}
    features = Steps.from_json(document).apply(tensors)["features"]
    assert (
        features[0, 0] == count.astype(np.float32)[0, 0] != count.astype(np.float64).astype(np.float32)[0, 0]
    )


def test_codes_of_numbers_are_found_as_float32_and_the_last_of_equal_categories_counts():
    block = {
        "kind": "number",
        "columns": [["x", 0]],
        "operations": [{"op": "ordinal", "categories": [[0.1, 0, 3.0, 3.0]], "unknown": -1}],
    }
    steps = Steps.from_json({"format": 1, "n_features": 1, "blocks": [block]})
    x = np.array([0.1, -0.0, 3, np.nan, 4], dtype=np.float32)
    assert steps.apply({"x": x})["features"].ravel().tolist() == [0, 1, 3, -1, -1]


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


def block(operations: list[dict[str, Any]], *, n_features: int, n_columns: int = 2) -> Steps:
    columns = [["x", index] for index in range(n_columns)]
    kind = "string" if operations[0]["op"] == "target" else "number"
    blocks = [{"kind": kind, "columns": columns, "operations": operations}]
    return Steps.from_json({"format": 1, "n_features": n_features, "blocks": blocks})


def answers(operations: list[dict[str, Any]], rows: Any, *, n_features: int) -> list[list[float]]:
    dtype = object if isinstance(rows[0][0], str) else np.float32
    values = np.array(rows, dtype=dtype)
    steps = block(operations, n_features=n_features, n_columns=values.shape[1])
    return steps.apply({"x": values})["features"].tolist()


NAN = float("nan")


def test_limits_clip_or_flag():
    limits = {"low": [0.0, -1.0], "high": [1.0, 1.0]}
    rows = [[-3, 0], [1, 5]]
    assert answers([{"op": "clip", **limits}], rows, n_features=2) == [[0, 0], [1, 1]]
    assert answers([{"op": "flag", **limits}], rows, n_features=2) == [[1, 0], [0, 1]]


def test_a_chain_of_predictions_fills_from_the_other_column_within_its_bounds():
    chain = {
        "op": "chain",
        "start": [1.0, 10.0],
        "targets": [0, 1],
        "weights": [[0.0, 2.0], [3.0, 0.0]],
        "intercepts": [1.0, 0.0],
        "bounds": [[0.0, 0.0], [9.0, 100.0]],
    }
    filled = answers([chain], [[NAN, 3], [4, NAN], [NAN, NAN], [5, 6]], n_features=2)
    assert filled == [[7, 3], [4, 12], [9, 27], [5, 6]]


def test_the_nearest_donors_that_have_a_value_give_it_and_the_first_of_equals():
    neighbors = {
        "op": "neighbors",
        "donors": [[0.0, 1.0], [2.0, 3.0], [1.0, None], [2.0, 9.0]],
        "means": [5.0, 6.0],
        "neighbors": 1,
    }
    filled = answers([neighbors], [[1, NAN], [2, NAN], [NAN, 8], [NAN, NAN]], n_features=2)
    assert filled == [[1, 1], [2, 3], [2, 8], [5, 6]]


def test_statistics_of_a_list_skip_what_is_missing():
    measured = {"op": "statistics", "lengths": [3], "statistics": ["mean", "first", "last", "slope", "std"]}
    assert answers([measured], [[NAN, 2, 4], [1, NAN, NAN]], n_features=5) == [
        [3, 2, 4, 2, 1],
        [1, 1, 1, 0, 0],
    ]


def test_ranks_lie_between_their_neighbours_and_in_the_middle_of_a_tie():
    ranks = {
        "op": "quantile",
        "knots": [[0.0, 2.0, 4.0]],
        "before": [[0.0, 0.25, 1.0]],
        "after": [[0.0, 0.75, 1.0]],
    }
    rows = [[-9], [0], [1], [2], [3], [9]]
    assert answers([ranks], rows, n_features=1) == [[0], [0], [0.125], [0.5], [0.875], [1]]


def test_target_means_stand_for_categories_and_an_average_for_unseen_ones():
    target = {
        "op": "target",
        "categories": [["a", "b"], ["c"]],
        "means": [[[0.1, 0.9], [0.2, 0.8]], [[0.5, 0.5]]],
        "unknown": [[0.3, 0.7], [0.4, 0.6]],
    }
    select = {"op": "select", "columns": [1, 2]}
    found = answers([target, select], [["b", "c"], ["?", "a"]], n_features=2)
    np.testing.assert_allclose(found, [[0.8, 0.5], [0.7, 0.4]], rtol=1e-6)


@pytest.mark.parametrize(
    "operation, message",
    [
        ({"op": "clip", "low": [0.0], "high": [1.0, 1.0]}, "'low' must hold 2 entries"),
        ({"op": "select", "columns": [2]}, "positions of columns"),
        ({"op": "statistics", "lengths": [3], "statistics": ["mean"]}, "make up 2 columns"),
        ({"op": "statistics", "lengths": [2], "statistics": ["median"]}, "names of statistics"),
        ({"op": "neighbors", "donors": [[1.0]], "means": [1.0, 1.0], "neighbors": 1}, "rows of 2 numbers"),
        ({"op": "neighbors", "donors": [[1.0, 2.0]], "means": [1.0, 1.0], "neighbors": 0}, "from 1"),
        (
            {"op": "quantile", "knots": [[1.0], [1.0]], "before": [[], [0.0]], "after": [[0.0], [0.0]]},
            "do not fit together",
        ),
        (
            {
                "op": "chain",
                "start": [0.0, 0.0],
                "targets": [0],
                "weights": [],
                "intercepts": [0.0],
                "bounds": [[0.0, 0.0], [1.0, 1.0]],
            },
            "do not fit together",
        ),
    ],
)
def test_an_operation_whose_parts_do_not_fit_is_refused(operation: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        block([operation], n_features=2)
