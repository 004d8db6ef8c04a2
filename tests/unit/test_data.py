from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kit.data import Split, held_out_table, load
from kit.errors import InputError
from kit.project import Project
from kit.tables import read_table

TOML = """
[project]
name = "toy"
task = "{task}"
[data]
path = "data.parquet"
label = "y"
{more}
[[data.inputs]]
name = "x"
columns = ["a"]
nullable = true
[model]
factory = "model:build"
"""
N_ROWS = 100


def project(folder: Path, *, task: str = "classification", more: str = "", **columns: Any) -> Project:
    table = {"a": np.arange(N_ROWS, dtype=np.float32), "y": ["no", "no", "no", "yes"] * (N_ROWS // 4)}
    parquet.write_table(pa.table(table | columns), folder / "data.parquet")
    (folder / "kit.toml").write_text(TOML.format(task=task, more=more), encoding="utf-8")
    return Project.open(folder)


def parts(split: Split) -> list[list[int]]:
    return [part.rows.tolist() for part in (split.train, split.validation, split.test)]


def test_the_split_is_the_same_every_time(tmp_path: Path) -> None:
    toy = project(tmp_path)
    assert parts(load(toy)) == parts(load(toy))
    other = project(tmp_path, more="seed = 1")
    assert parts(load(other)) != parts(load(toy))


def test_a_table_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = project(tmp_path)

    def read_then_lose_a_row(uri: str, **more: Any) -> pa.Table:
        table = read_table(uri, **more)
        parquet.write_table(table.slice(1), uri)
        return table

    monkeypatch.setattr("kit.data.read_table", read_then_lose_a_row)
    for read in (load, held_out_table):
        with pytest.raises(InputError, match=r"data\.parquet changed while it was read"):
            read(toy)


def test_a_category_written_in_digits_is_a_string_where_the_input_says_so(tmp_path: Path) -> None:
    project(tmp_path)
    text = (tmp_path / "kit.toml").read_text(encoding="utf-8")
    text = text.replace("data.parquet", "data.csv").replace("[model]", 'dtype = "string"\n[model]')
    (tmp_path / "kit.toml").write_text(text, encoding="utf-8")
    rows = "".join(f"0{index},{'no' if index % 2 else 'yes'}\n" for index in range(N_ROWS))
    (tmp_path / "data.csv").write_text(f"a,y\n{rows}", encoding="utf-8")
    assert load(Project.open(tmp_path)).train.tensors["x"][0, 0].startswith("0")


def test_every_row_is_in_one_part(tmp_path: Path) -> None:
    split = load(project(tmp_path))
    assert sorted(row for part in parts(split) for row in part) == list(range(N_ROWS))
    assert [len(part) for part in parts(split)] == [72, 8, 20]
    for part in (split.train, split.validation, split.test):
        np.testing.assert_array_equal(part.tensors["x"][:, 0], part.rows.astype(np.float32))
        np.testing.assert_array_equal(part.labels, (part.rows % 4 == 3).astype(np.int64))


def test_classes_keep_their_shares(tmp_path: Path) -> None:
    split = load(project(tmp_path))
    assert split.classes == ("no", "yes")
    for part in (split.train, split.validation, split.test):
        assert part.labels.mean() == 0.25


@pytest.mark.parametrize(
    "labels,classes",
    [
        ([7, 3] * 50, (3, 7)),
        ([True, False] * 50, (0, 1)),
        (pa.array(["b", "a"] * 50).dictionary_encode(), ("a", "b")),
    ],
)
def test_classes_are_sorted_names(tmp_path: Path, labels: Any, classes: tuple[Any, ...]) -> None:
    found = load(project(tmp_path, y=labels)).classes
    assert found == classes
    assert [type(name) for name in found] == [type(name) for name in classes]


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    split = load(project(tmp_path, task="regression", y=np.arange(N_ROWS) / 2))
    assert split.classes == ()
    assert split.test.labels.dtype == np.float32


@pytest.mark.parametrize(
    "labels,message",
    [
        (["a"] * 100, "the label 'y' has the one value 'a'; two classes are needed"),
        (["a"] * 97 + ["b"] * 3, "class 'b' of the label 'y' has 3 rows; 5 are needed"),
        (["a", None] * 50, "the label 'y' is missing in 50 rows"),
        ([None] * 100, "the label 'y' is missing in 100 rows"),
        ([0.5, 1.5] * 50, "the label 'y' holds values of type double; classes are whole numbers or strings"),
        ([b"a", b"b"] * 50, "the label 'y' holds values of type binary"),
        ([[1], [2]] * 50, "the label 'y' holds values of type list"),
    ],
)
def test_a_label_that_names_no_classes_is_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(project(tmp_path, y=labels))


@pytest.mark.parametrize("labels", [[np.nan] * 100, [1e300] * 100, ["a"] * 100, [True] * 100])
def test_a_value_that_is_no_finite_number_is_not_learnt(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(InputError, match="the label 'y' holds values that are not finite"):
        load(project(tmp_path, task="regression", y=labels))


@pytest.mark.parametrize(
    "values", [pa.nulls(N_ROWS), pa.array([None] * N_ROWS, pa.float32()), [np.nan] * 100]
)
def test_a_column_without_a_value_is_named(tmp_path: Path, values: Any) -> None:
    with pytest.raises(InputError, match=r"column 'a' of data\.parquet holds no value at all"):
        load(project(tmp_path, a=values))


def test_a_label_or_a_column_that_is_not_there_comes_with_the_nearest(tmp_path: Path) -> None:
    toy = project(tmp_path)
    table = parquet.read_table(tmp_path / "data.parquet")
    for names, message in ((["a", "Y"], "has no label column 'y'"), (["A", "y"], "column 'a' is missing")):
        parquet.write_table(table.rename_columns(names), tmp_path / "data.parquet")
        with pytest.raises(InputError, match=message) as caught:
            load(toy)
        assert caught.value.hint


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.parquet has no rows"):
        load(project(tmp_path, a=pa.array([], pa.float32()), y=pa.array([], pa.string())))


def test_rows_that_are_too_few_to_split_are_refused(tmp_path: Path) -> None:
    toy = project(tmp_path, a=[1.0] * 10, y=["a", "b"] * 5, more="test_fraction = 0.05")
    with pytest.raises(InputError, match=r"10 rows cannot be split by test_fraction = 0\.05"):
        load(toy)


def test_the_fingerprint_changes_with_a_value(tmp_path: Path) -> None:
    first = load(project(tmp_path)).fingerprint
    assert load(project(tmp_path)).fingerprint == first
    changed = np.arange(N_ROWS, dtype=np.float32)
    changed[50] = 50.5
    assert load(project(tmp_path, a=changed)).fingerprint != first


def test_the_held_out_table_is_the_test_part(tmp_path: Path) -> None:
    toy = project(tmp_path)
    assert held_out_table(toy).column("a").to_pylist() == load(toy).test.rows.tolist()


def test_the_templates_data_can_be_learnt(digits_project: Path, tabular_project: Path) -> None:
    digits, tabular = load(Project.open(digits_project)), load(Project.open(tabular_project))
    assert (digits.n_rows, digits.classes) == (1797, tuple(range(10)))
    assert digits.train.tensors["image"].shape[1:] == (1, 8, 8)
    assert (tabular.n_rows, tabular.classes) == (569, ("benign", "malignant"))
    assert "" in tabular.train.tensors["size_group"]
    assert np.isnan(tabular.train.tensors["measures"]).any()
