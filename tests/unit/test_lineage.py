"""Rules of what a version remembers of its data: another signature, table or split is refused by name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.errors import InputError
from kit.lineage import (
    held_out_digest,
    question,
    question_difference,
    require_same_question,
    require_same_rows,
    require_same_signature,
)
from kit.model_version import ModelVersion
from kit.project import Project
from kit.rows import Part, Split

KIT_TOML = """
[project]
name = "tiny"
task = "{task}"

[data]
path = "rows.parquet"
label = "{label}"
seed = {seed}
inputs = [{{ name = "x", columns = ["width", "{column}"], minimum = -10.0, maximum = 10.0 }}]

[model]
factory = "model:build"
"""
CLASSES = ("low", "high")


def project_of(folder: Path, **changes: Any) -> Project:
    values = {"task": "classification", "label": "size", "column": "height", "seed": 0, **changes}
    (folder / "kit.toml").write_text(KIT_TOML.format(**values))
    return Project.open(folder)


def part(*rows: int) -> Part:
    return Part({}, np.zeros(len(rows), dtype=np.int64), np.array(rows))


SPLIT = Split(part(0, 1, 2), part(3), part(4, 5), classes=CLASSES, fingerprint="ab" * 32, n_rows=6)


def trained(version: ModelVersion, project: Project) -> ModelVersion:
    data = {
        "fingerprint": SPLIT.fingerprint,
        "held_out": held_out_digest(SPLIT.test),
        "n_test": 2,
        "n_validation": 1,
        **question(project),
        **project.settings.data.model_dump(mode="json", include={"split", "group", "time", "gap", "seed"}),
    }
    return replace(version, manifest={**version.manifest, "lineage": {"data": data}})


@pytest.mark.parametrize(
    "changes, classes, said",
    [
        ({"task": "regression"}, (), "answers a classification"),
        ({"column": "depth"}, CLASSES, r"\[\[data.inputs\]\] is not what"),
        ({"label": "kind"}, ("low", "tall"), "the label 'kind' has other classes .*: high, tall"),
        ({}, ("high", "low"), "their order differs"),
    ],
)
def test_another_task_input_or_class_is_refused(
    tmp_path: Path, tiny_version: ModelVersion, changes: dict[str, Any], classes: tuple[str, ...], said: str
) -> None:
    require_same_signature(project_of(tmp_path), tiny_version, classes=CLASSES)
    with pytest.raises(InputError, match=said) as caught:
        require_same_signature(project_of(tmp_path, **changes), tiny_version, classes=classes)
    assert "train again" in str(caught.value.hint)


@pytest.mark.parametrize("otherwise", ["", "measure on labelled rows: --data TABLE"])
def test_another_table_or_split_is_refused_with_what_the_user_can_do(
    tmp_path: Path, tiny_version: ModelVersion, otherwise: str
) -> None:
    project = project_of(tmp_path)
    version = trained(tiny_version, project)
    require_same_rows(project, version, SPLIT, otherwise=otherwise)
    seeded = project_of(tmp_path, seed=8)
    for now, split, said in (
        (project, replace(SPLIT, fingerprint="cd" * 32), "which rows were held out is not known"),
        (seeded, replace(SPLIT, test=part(0, 1)), r"hold out other rows .*\(seed = 8, not 0\)"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            require_same_rows(now, version, split, otherwise=otherwise)
        hint = str(caught.value.hint)
        assert "train again" in hint
        assert hint.endswith(f"; or {otherwise}" if otherwise else "train again")


WINDOW = """
[[prepare.windows]]
name = "height"
column = "{column}"
{more}
length = 4
"""


def asking(folder: Path, *, column: str = "power", more: str = "", **changes: Any) -> Project:
    project_of(folder, **changes)
    with (folder / "kit.toml").open("a") as file:
        file.write(WINDOW.format(column=column, more=more))
    return Project.open(folder)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"label": "kind"}, "label = 'kind', not 'size'"),
        ({"column": "temp"}, "the window 'height' has column = 'temp', not 'power'"),
        ({"more": 'group = "place"'}, "the window 'height' has group = 'place', not None"),
        ({"more": 'time = "day"'}, "the window 'height' has time = 'day', not None"),
    ],
)
def test_another_question_is_refused_and_both_are_named(
    tmp_path: Path, tiny_version: ModelVersion, changes: dict[str, Any], said: str
) -> None:
    version = trained(tiny_version, asking(tmp_path))
    require_same_question(asking(tmp_path), version)
    require_same_rows(asking(tmp_path), version, SPLIT)
    now = asking(tmp_path, **changes)
    for refuse in (require_same_question, partial(require_same_rows, split=SPLIT)):
        with pytest.raises(InputError, match=f"asks another question than model 'tiny' .*: {said}") as caught:
            refuse(now, version)
        assert caught.value.hint == (
            "restore [data] label and [[prepare.windows]] in kit.toml, or train again"
        )


def test_a_window_that_came_or_went_is_another_question_and_its_place_is_not(tmp_path: Path) -> None:
    first, second = question(asking(tmp_path)), question(asking(tmp_path, column="temp"))
    assert question_difference({**first, "windows": []}, first) == "without the window 'height'"
    assert question_difference(first, {**first, "windows": []}) == "with the window 'height'"
    other = [{**each, "name": "b"} for each in second["windows"]]
    turned = {"label": "size", "windows": [*other, *first["windows"]]}
    assert question_difference({"label": "size", "windows": [*first["windows"], *other]}, turned) == ""
    assert question_difference(first, {}) == ""  # what is not recorded is not held against anything


def test_rows_are_the_same_in_any_order() -> None:
    assert held_out_digest(part(5, 4)) == held_out_digest(part(4, 5))
    assert held_out_digest(part(4, 6)) != held_out_digest(part(4, 5))
