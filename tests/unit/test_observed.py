from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jobs.batch.observed import compare, merge
from kit.errors import InputError
from kit.files import canonical_json
from kit.observed import MAX_COLUMNS, Observed
from kit.profile import profile
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("x", "float32", (-1, 2), ("a", "b"), nullable=True),
        TensorSpec("g", "string", (-1,), ("g",), nullable=True),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes")),
        TensorSpec("probabilities", "float32", (-1, 2)),
    ),
)


def rows(n_rows: int, *, seed: int = 0, shift: float = 0.0) -> tuple[Tensors, Tensors]:
    random = np.random.default_rng(seed)
    sure = random.random(n_rows).astype(np.float32)
    inputs = {
        "x": random.standard_normal((n_rows, 2)).astype(np.float32) + np.float32(shift),
        "g": random.choice(np.array(["u", "v", ""], dtype=object), n_rows),
    }
    return inputs, {
        "label": (sure > 0.5).astype(np.int64),
        "probabilities": np.stack([1 - sure, sure], axis=1),
    }


def profiled(signature: Signature = SIGNATURE) -> dict[str, Any]:
    """A profile as it comes back from a version's file."""
    inputs, outputs = rows(3000)
    found: dict[str, Any] = json.loads(canonical_json(profile(inputs, signature=signature, outputs=outputs)))
    return found


def cut(tensors: Tensors, start: int, stop: int) -> Tensors:
    return {name: array[start:stop] for name, array in tensors.items()}


def observed(inputs: Tensors, outputs: Tensors, *, chunk_rows: int) -> dict[str, Any]:
    noted = Observed(profiled(), signature=SIGNATURE)
    for start in range(0, len(outputs["label"]), chunk_rows):
        stop = start + chunk_rows
        noted.observe(cut(inputs, start, stop), cut(outputs, start, stop))
    return noted.to_json()


@pytest.mark.parametrize("n_rows", [900, 1025, 7001])
def test_what_is_observed_does_not_depend_on_the_chunks(n_rows: int) -> None:
    inputs, outputs = rows(n_rows)
    found = [canonical_json(observed(inputs, outputs, chunk_rows=size)) for size in (1, 37, 500, n_rows)]
    assert len(set(found)) == 1


def test_labels_are_counted_in_full_and_the_rest_over_few_rows() -> None:
    inputs, outputs = rows(5000)
    found = observed(inputs, outputs, chunk_rows=600)
    assert (found["n_rows"], found["n_sampled"]) == (5000, 625)
    n_yes = int(outputs["label"].sum())
    assert found["outputs"]["label"]["categories"] == {"no": 5000 - n_yes, "yes": n_yes}
    column = found["columns"]["a"]
    assert sum(column["counts"]) + column["missing"] == 625


def test_few_rows_are_all_counted_as_the_profile_counts_them() -> None:
    inputs, outputs = rows(800, seed=1)
    inputs["x"][:3] = [[np.nan, -99], [99, 0], [0, np.nan]]
    found = observed(inputs, outputs, chunk_rows=100)["columns"]
    for place, name in enumerate("ab"):
        values = inputs["x"][:, place].astype(np.float64)
        edges = profiled()["columns"][name]["edges"]
        assert found[name]["counts"][1:-1] == np.histogram(values[~np.isnan(values)], bins=edges)[0].tolist()
        assert found[name]["missing"] == 1
    assert (found["a"]["counts"][-1] > 0, found["b"]["counts"][0] > 0) == (True, True)


def test_values_on_the_bounds_fall_where_the_profile_put_them() -> None:
    """Whole numbers, a constant, and the smallest and largest value lie on bounds."""
    signature = Signature("", (TensorSpec("x", "float64", (-1, 3), ("a", "b", "c")),), ())
    values = np.stack([np.arange(1000) % 7, np.full(1000, 2.5), np.arange(1000) % 2], axis=1).astype(
        np.float64
    )
    described = profile({"x": values}, signature=signature)
    noted = Observed(described, signature=signature)
    noted.observe({"x": values}, {"y": np.zeros(1000)})
    merged = noted.to_json()
    for name in "abc":
        assert merged["columns"][name]["counts"] == [0, *described["columns"][name]["counts"], 0]
    assert [each.index for each in compare(described, merged)] == [0.0, 0.0, 0.0]


def test_strings_are_counted_by_the_profiles_categories() -> None:
    inputs, outputs = rows(4)
    inputs["g"] = np.array(["u", "", "other", "u"], dtype=object)
    assert observed(inputs, outputs, chunk_rows=4)["columns"]["g"] == {
        "categories": {"u": 2},
        "other": 1,
        "missing": 1,
    }


def test_shards_add_up_to_what_one_would_have_seen() -> None:
    inputs, outputs = rows(900)
    parts = [
        observed(cut(inputs, at, at + 300), cut(outputs, at, at + 300), chunk_rows=100)
        for at in (0, 300, 600)
    ]
    merged = merge([*parts, {}])
    assert merged == observed(inputs, outputs, chunk_rows=900)
    assert merge([]) == {"n_rows": 0, "n_sampled": 0, "columns": {}, "outputs": {}}
    assert parts[0]["n_rows"] == 300  # adding up changes none of them


def test_shards_of_two_profiles_are_not_added_up() -> None:
    with pytest.raises(InputError, match="'a' was counted on 2 bins by one shard and on 3 by another"):
        merge([{"columns": {"a": {"counts": [1] * n, "missing": 0}}} for n in (2, 3)])


def test_what_has_moved_comes_first_and_answers_are_compared_too() -> None:
    inputs, outputs = rows(2000, seed=2)
    inputs["x"][:, 1] += 2
    found = compare(profiled(), merge([observed(inputs, outputs, chunk_rows=512)]))
    assert [(found[0].name, found[0].drifted)] == [("b", True)]
    assert {(each.name, each.role) for each in found if not each.drifted} == {
        ("a", "input"),
        ("g", "input"),
        ("label", "answer"),
        ("confidence", "answer"),
    }


def test_a_profile_without_answers_gives_no_drift_of_answers() -> None:
    inputs, outputs = rows(500)
    old = profiled()
    del old["outputs"]
    noted = Observed(old, signature=SIGNATURE)
    noted.observe(inputs, outputs)
    assert noted.labels == tuple(np.bincount(outputs["label"]).tolist())
    assert {each.role for each in compare(old, noted.to_json())} == {"input"}


def test_categories_that_an_old_profile_dropped_do_not_pass_for_unseen_ones() -> None:
    signature = Signature("", (TensorSpec("g", "string", (-1,), ("g",)),), ())
    values = np.array([f"c{index % 400}" for index in range(4000)], dtype=object)
    old = profile({"g": values}, signature=signature)
    del old["columns"]["g"]["other"]
    noted = Observed(old, signature=signature)
    noted.observe({"g": values}, {"y": np.zeros(4000)})
    (found,) = compare(old, noted.to_json())
    assert (found.drifted, found.unseen) == (False, None)


def test_a_regressions_values_are_counted_and_its_infinities_are_missing() -> None:
    signature = Signature(
        "regression", (TensorSpec("x", "float32", (-1,), ("a",)),), (TensorSpec("value", "float32", (-1,)),)
    )
    values = np.linspace(0, 1, 500, dtype=np.float32)
    described = profile({"x": values}, signature=signature, outputs={"value": values})
    noted = Observed(described, signature=signature)
    noted.observe({"x": values}, {"value": np.where(values > 0.99, np.inf, values).astype(np.float32)})
    found = noted.to_json()["outputs"]
    assert list(found) == ["value"]
    assert found["value"]["missing"] == int((values > 0.99).sum())
    assert noted.labels == ()


def test_a_shard_of_refused_rows_leaves_nothing_but_a_count() -> None:
    noted = Observed(profiled(), signature=SIGNATURE)
    noted.observe({}, {})
    inputs, outputs = rows(3)
    noted.observe(cut(inputs, 0, 0), cut(outputs, 0, 0))
    found = noted.to_json()
    assert (found["n_rows"], found["n_sampled"], found["columns"], noted.labels) == (0, 0, {}, (0, 0))
    assert all(each.index is None for each in compare(profiled(), found))


def test_images_are_looked_at_over_fewer_rows() -> None:
    signature = Signature("", (TensorSpec("x", "uint8", (-1, 3, 64, 64), ("image",)),), ())
    values = np.zeros((200, 3, 64, 64), dtype=np.uint8)
    described = profile({"x": values[:5]}, signature=signature)
    noted = Observed(described, signature=signature)
    for start in range(0, 200, 10):
        noted.observe({"x": values[start : start + 10]}, {"y": np.zeros(10)})
    found = noted.to_json()
    assert found["n_sampled"] == 50
    assert sum(found["columns"]["image"]["counts"]) == 50 * 3 * 64 * 64


def test_a_wide_table_leaves_a_small_record() -> None:
    names = tuple(f"c{index}" for index in range(1000))
    signature = Signature("", (TensorSpec("x", "float32", (-1, 1000), names),), ())
    values = np.random.default_rng(0).standard_normal((50, 1000)).astype(np.float32)
    noted = Observed(profile({"x": values}, signature=signature), signature=signature)
    noted.observe({"x": values}, {"y": np.zeros(50)})
    found = noted.to_json()
    assert list(found["columns"]) == list(names[:MAX_COLUMNS])
    assert len(json.dumps(found)) < 40_000
