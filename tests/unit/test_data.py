from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.model_selection import train_test_split

from kit.data import held_out_table, load, load_rows, string_columns
from kit.errors import InputError, SettingsError
from kit.manifest import read_manifest
from kit.project import Project
from kit.rows import FoldKind, Split
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


@pytest.mark.parametrize(
    "labels, message",
    [
        (["3,5"] * 100, "holds strings, such as '3,5'; a regression learns numbers"),
        ([True] * 100, "holds values of type bool, such as True; a regression learns numbers"),
    ],
)
def test_a_label_that_holds_no_numbers_shows_a_value(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(project(tmp_path, task="regression", y=labels))
    assert caught.value.hint


@pytest.mark.parametrize("labels", [[np.nan] * 100, [1e300] * 100])
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


def test_a_constant_value_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the label 'y' is 3 in every row"):
        load(project(tmp_path, task="regression", y=[3.0] * N_ROWS))


def test_the_default_split_is_scikit_learns_and_stays_it(tmp_path: Path) -> None:
    toy = project(tmp_path, more="seed = 7")
    labels = np.array([0, 0, 0, 1] * (N_ROWS // 4))
    for task, strata in (("classification", labels), ("regression", None)):
        if task == "regression":
            toy = project(tmp_path, task=task, more="seed = 7", y=np.arange(N_ROWS) / 2)
        rest, test = train_test_split(np.arange(N_ROWS), test_size=0.2, random_state=7, stratify=strata)
        rest = np.sort(rest)
        again = strata[rest] if strata is not None else None
        train, validation = train_test_split(rest, test_size=0.1, random_state=7, stratify=again)
        assert parts(load(toy)) == [sorted(part.tolist()) for part in (train, validation, test)]


# cleaning

PREPARE = r"""
[[prepare.rules]]
column = "code"
pattern = "[A-Z]\\d+"
otherwise = "drop"
[prepare.duplicates]
keys = ["code"]
keep = "last"
"""


def configure(folder: Path, text: str) -> Project:
    path = folder / "kit.toml"
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
    return Project.open(folder)


def test_cleaned_rows_keep_their_numbers_and_the_held_out_table_is_theirs(tmp_path: Path) -> None:
    codes = [f"Ä{row}" if row % 10 == 0 else f"A{row // 2}" for row in range(N_ROWS)]
    project(tmp_path, code=codes)
    toy = configure(tmp_path, PREPARE)
    split = load(toy)
    expected = [row for row in range(N_ROWS) if row % 10 and (row % 2 or (row + 1) % 10 == 0)]
    assert sorted(row for part in parts(split) for row in part) == expected
    for part in (split.train, split.validation, split.test):
        np.testing.assert_array_equal(part.tensors["x"][:, 0], part.rows.astype(np.float32))
    held_out = held_out_table(toy)
    assert held_out.column("code").to_pylist() == [codes[row] for row in split.test.rows]
    assert held_out.column_names == ["a", "y", "code"]
    assert [(change.step, change.rows_before, change.rows_after) for change in split.changes] == [
        ("rule", 100, 90),
        ("duplicates", 90, 50),
    ]
    assert split.n_rows == N_ROWS


def test_a_rule_reads_what_looks_like_numbers_in_a_csv_as_text(tmp_path: Path) -> None:
    project(tmp_path)
    text = (tmp_path / "kit.toml").read_text(encoding="utf-8").replace("data.parquet", "data.csv")
    rule = '[[prepare.rules]]\ncolumn = "plz"\npattern = "0.*"\notherwise = "drop"\n'
    (tmp_path / "kit.toml").write_text(text + rule, encoding="utf-8")
    rows = "".join(f"{row},{row % 2},{row % 4:02d}\n" for row in range(N_ROWS))
    (tmp_path / "data.csv").write_text(f"a,y,plz\n{rows}", encoding="utf-8")
    assert len(load_rows(Project.open(tmp_path)).table) == N_ROWS


def test_rows_that_cleaning_leaves_none_of_are_refused(tmp_path: Path) -> None:
    project(tmp_path, code=["x"] * N_ROWS)
    toy = configure(tmp_path, PREPARE)
    with pytest.raises(InputError, match=r"no row of data\.parquet is left after cleaning"):
        load(toy)


def test_a_value_refused_after_cleaning_names_its_row_of_the_raw_table(tmp_path: Path) -> None:
    project(tmp_path, code=["x"] + [f"A{row}" for row in range(1, N_ROWS)], a=[0.0, np.inf] + [1.0] * 98)
    toy = configure(tmp_path, PREPARE)
    with pytest.raises(InputError, match="row 1: infinity is not allowed"):
        load(toy)


def test_string_columns_are_the_inputs_and_what_rules_read_but_no_numbers_and_not_the_label(
    tmp_path: Path,
) -> None:
    project(tmp_path)
    rules = "".join(
        f'[[prepare.rules]]\ncolumn = "{column}"\npattern = "."\n'
        for column in ("plz", "a", "y", "plz", "wort")
    )
    text = '[[data.inputs]]\nname = "wort"\ndtype = "string"\n' + rules
    assert string_columns(configure(tmp_path, text)) == ("wort", "plz")


def test_a_window_over_the_label_is_refused_before_the_table_is_read(tmp_path: Path) -> None:
    project(tmp_path)
    toy = configure(tmp_path, '[[prepare.windows]]\nname = "last"\ncolumn = "y"\ntime = "a"\nlength = 3\n')
    (tmp_path / "data.parquet").unlink()
    with pytest.raises(SettingsError, match="the window 'last' has column = 'y', which is the label"):
        load(toy)


def test_the_latest_duplicate_is_kept_by_a_time_that_splits_nothing(tmp_path: Path) -> None:
    project(tmp_path, code=np.arange(N_ROWS) % 50, seen=np.arange(N_ROWS)[::-1])
    duplicates = '[prepare.duplicates]\nkeys = ["code"]\nkeep = "latest"\ntime = "seen"\n'
    assert load_rows(configure(tmp_path, duplicates)).everything.rows.tolist() == list(range(50))


def test_a_window_is_an_input(tmp_path: Path) -> None:
    project(tmp_path, when=np.arange(N_ROWS)[::-1])
    text = (tmp_path / "kit.toml").read_text(encoding="utf-8")
    text = text.replace('columns = ["a"]', 'columns = ["last"]\nshape = [3]')
    text += '[[prepare.windows]]\nname = "last"\ncolumn = "a"\ntime = "when"\nlength = 3\n'
    (tmp_path / "kit.toml").write_text(text, encoding="utf-8")
    split = load(Project.open(tmp_path))
    for row, found in zip(split.train.rows, split.train.tensors["x"], strict=True):
        np.testing.assert_array_equal(
            found, [value if value < 100 else np.nan for value in (row + 2, row + 1, row)]
        )
    assert held_out_table(Project.open(tmp_path)).column_names == ["a", "y", "when", "last"]


def test_images_are_not_resized_where_the_data_is_a_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"images = 'resize' does nothing for data\.parquet") as caught:
        load(project(tmp_path, more='images = "resize"'))
    assert "take images out of [data]" in str(caught.value.hint)


# splits


def test_a_group_stays_together(tmp_path: Path) -> None:
    groups = [f"größe {row // 4}" for row in range(N_ROWS)]
    toy = project(tmp_path, more='split = "grouped"\ngroup = "g"\nid = "g"', g=groups)
    split = load(toy)
    assert [len(part) for part in parts(split)] == [72, 8, 20]
    seen = [{groups[row] for row in part} for part in parts(split)]
    assert sum(len(part) for part in seen) == len(set.union(*seen))
    assert {fact["check"]: fact["found"] for fact in split.leakage} == {
        "id": 0,
        "group": 0,
        "duplicate rows": 0,
    }


def test_the_latest_rows_are_held_out_behind_a_gap(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(N_ROWS)
    days = [str(np.datetime64("2024-01-01") + int(day) // 2) for day in order]  # two rows a day, unsorted
    for when in (days, pa.array(days).cast(pa.date32()), pa.array(days).cast(pa.timestamp("ms"))):
        more = 'split = "time"\ntime = "t"\ngap = "2d"'
        split = load(project(tmp_path, more=more, t=when, y=["no", "yes"] * (N_ROWS // 2)))
        day = order // 2
        train, validation, test = (day[part] for part in parts(split))
        assert (test.min(), len(test)) == (40, 20)
        assert validation.max() <= test.min() - 2
        assert train.max() <= validation.min() - 2
        (change,) = [change for change in split.changes if change.step == "split"]
        assert change.n_values == N_ROWS - sum(len(part) for part in (train, validation, test)) == 4
        assert change.detail == "4 rows are in no part, because of the gap of 2d"


@pytest.mark.parametrize(
    "more, columns, error, message",
    [
        (
            'split = "grouped"\ngroup = "g"',
            {"g": [1, None] * 50},
            InputError,
            "the group 'g' is missing in 50 rows",
        ),
        (
            'split = "grouped"\ngroup = "g"',
            {"g": [1, 2] * 50},
            InputError,
            "there are 2 groups and 3 are needed",
        ),
        ('split = "grouped"\ngroup = "g"', {}, SettingsError, r"\[data\] group names the column 'g'"),
        ('split = "time"\ntime = "t"', {"t": [1, None] * 50}, InputError, "time column 't', row 1"),
        ('split = "time"\ntime = "t"', {"t": [1, 2] * 50}, InputError, "there are 2 different times"),
        (
            'split = "time"\ntime = "t"\ngap = 99',
            {"t": range(100)},
            InputError,
            r"the gap of 99 leaves no row before \d+$",
        ),
        (
            'split = "time"\ntime = "t"\ngap = "1d"',
            {"t": range(100)},
            SettingsError,
            "gap = '1d' is a duration",
        ),
        ('id = "i"', {}, SettingsError, r"\[data\] id names the column 'i'"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(
    tmp_path: Path, more: str, columns: dict[str, Any], error: type[InputError], message: str
) -> None:
    given = {name: pa.array(list(values)) for name, values in columns.items()}
    with pytest.raises(error, match=message) as caught:
        load(project(tmp_path, more=more, **given))
    assert caught.value.hint


@pytest.mark.parametrize("gap", ["'7 days'", "'d'", "-1", "'-1d'", "'7'"])
def test_a_gap_that_is_none_is_refused_before_any_data_is_read(tmp_path: Path, gap: str) -> None:
    with pytest.raises(SettingsError, match="gap"):
        project(tmp_path, more=f"split = 'time'\ntime = 't'\ngap = {gap}")


def test_a_class_that_is_not_learnt_from_is_named(tmp_path: Path) -> None:
    labels = ["no"] * 90 + ["yes"] * 10
    with pytest.raises(InputError, match="class 'yes' of the label 'y' has no row in the training part"):
        load(project(tmp_path, more='split = "time"\ntime = "a"', y=labels))


def test_a_regression_is_not_stratified(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="split = 'stratified' keeps the shares of classes"):
        load(project(tmp_path, task="regression", more='split = "stratified"', y=np.arange(N_ROWS) / 2))


# leakage


def test_an_id_in_two_parts_fails_the_run(tmp_path: Path) -> None:
    ids = [f"Kündin {row // 2}" if row < 50 else None for row in range(N_ROWS)]
    with pytest.raises(
        InputError, match=r"leakage: 'Kündin \d+' of the id 'i' is in the .* ids are in two"
    ) as caught:
        load(project(tmp_path, more='id = "i"', i=ids))
    assert caught.value.hint == "set split = 'grouped' and group = 'i' under [data]"
    assert load(project(tmp_path, more='id = "i"', i=list(range(N_ROWS)))).leakage[0]["found"] == 0


def test_a_training_row_later_than_a_held_out_one_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"leakage: by 't' a training row is of 2024-.* training rows"
    ) as caught:
        load(project(tmp_path, more='time = "t"', t=np.datetime64("2024-01-01") + np.arange(N_ROWS)))
    assert "split = 'time'" in str(caught.value.hint)


def test_equal_rows_in_two_parts_are_counted(tmp_path: Path) -> None:
    split = load(project(tmp_path, a=[1.0] * N_ROWS))
    (fact,) = split.leakage
    assert fact == {
        "check": "duplicate rows",
        "found": 28,
        "detail": "8 validation rows and 20 held-out rows are equal to a training row in every input",
    }


# folds


@pytest.mark.parametrize("kind", ["k-fold", "leave-one-out", "grouped", "time-series"])
def test_folds_become_splits(tmp_path: Path, kind: FoldKind) -> None:
    columns = {"g": np.arange(N_ROWS) // 5, "t": np.arange(N_ROWS)}
    names = {
        "grouped": 'split = "grouped"\ngroup = "g"\nid = "g"',
        "time-series": 'split = "time"\ntime = "t"',
    }
    how: dict[str, Any] = {"grouped": "grouped", "time-series": "time"}
    rows = load_rows(project(tmp_path, more=names.get(kind, ""), **columns))
    folds = list(rows.folds(kind, n_folds=4))
    assert len(folds) == (N_ROWS if kind == "leave-one-out" else 4)
    for train, test in folds[:4]:
        kept, validation = rows.carve(train, kind=how.get(kind))
        split = rows.split(train=kept, validation=validation, test=test)
        assert sorted(parts(split)[0] + parts(split)[1]) == train.tolist()
        assert parts(split)[2] == test.tolist()


def test_folds_need_the_column_they_go_by(tmp_path: Path) -> None:
    rows = load_rows(project(tmp_path))
    for kind, message in (("grouped", "by group, but .data. names none"), ("time-series", "by time, but")):
        with pytest.raises(SettingsError, match=message):
            list(rows.folds(kind, n_folds=2))


@pytest.mark.parametrize(
    "more, kind, kept, hint",
    [
        ('split = "grouped"\ngroup = "g"', "k-fold", "groups together", "use grouped folds"),
        ('split = "grouped"\ngroup = "g"', "leave-one-out", "groups together", "use grouped folds"),
        ('split = "grouped"\ngroup = "g"\ntime = "t"', "time-series", "groups together", "use grouped folds"),
        ('split = "time"\ntime = "t"', "k-fold", "earlier", "use time-series folds"),
        ('split = "time"\ntime = "t"\ngroup = "g"', "grouped", "earlier", "use time-series folds"),
    ],
)
def test_folds_that_break_what_the_split_keeps_are_refused(
    tmp_path: Path, more: str, kind: FoldKind, kept: str, hint: str
) -> None:
    rows = load_rows(project(tmp_path, more=more, g=np.arange(N_ROWS) // 5, t=np.arange(N_ROWS)))
    with pytest.raises(SettingsError, match=f"{kind} folds do not keep .*{kept}, as split =") as caught:
        rows.folds(kind, n_folds=4)
    assert hint in str(caught.value.hint)


def test_a_group_in_two_parts_fails_a_split_that_keeps_groups_together(tmp_path: Path) -> None:
    groups = [f"größe {row // 4}" for row in range(N_ROWS)]
    thirds = dict(zip(("train", "validation", "test"), np.split(np.arange(N_ROWS), [50, 70]), strict=True))
    rows = load_rows(project(tmp_path, more='split = "grouped"\ngroup = "g"', g=groups))
    with pytest.raises(
        InputError, match="leakage: 'größe 12' of the group 'g' is in the training and"
    ) as caught:
        rows.split(**thirds)
    assert "grouped" in str(caught.value.hint)
    loose = load_rows(project(tmp_path, more='group = "g"', g=groups))
    assert [fact["check"] for fact in loose.split(**thirds).leakage] == ["duplicate rows"]


@pytest.mark.parametrize(
    "gap, days", [("1e300", False), ('"99999999999999999999d"', True), ("99999999999", False), ("0.5", False)]
)
def test_a_gap_is_compared_exactly_however_long_it_is(tmp_path: Path, gap: str, days: bool) -> None:
    times = (
        np.datetime64("2024-01-01") + np.arange(N_ROWS)
        if days
        else np.arange(N_ROWS) + np.iinfo(np.int64).min
    )
    rows = load_rows(project(tmp_path, more=f'split = "time"\ntime = "t"\ngap = {gap}', t=times))
    if gap == "0.5":
        assert [len(part) for part in rows.hold_out()] == [72, 8, 20]
        return
    with pytest.raises(InputError, match="leaves no row before"):
        rows.hold_out()


def test_a_gap_beyond_all_time_and_a_share_that_is_everything_are_refused(tmp_path: Path) -> None:
    days = np.datetime64("2024-01-01") + np.arange(N_ROWS)
    with pytest.raises(SettingsError, match="longer than any time"):
        load(project(tmp_path, more=f'split = "time"\ntime = "t"\ngap = "{"9" * 400}d"', t=days))
    with pytest.raises(InputError, match=r"a share of 0\.999 leaves none of 100 rows"):
        load(project(tmp_path, more="test_fraction = 0.999"))


@pytest.mark.parametrize("pattern", ["a{99999999999999}", "(" * 3000 + ")" * 3000, "("])
def test_a_pattern_that_cannot_be_compiled_is_a_setting_to_correct(tmp_path: Path, pattern: str) -> None:
    project(tmp_path)
    with pytest.raises(SettingsError, match="is not a regular expression"):
        load(configure(tmp_path, f"[[prepare.rules]]\ncolumn = 'y'\npattern = '{pattern}'\n"))


@pytest.mark.parametrize("kind", ["hold-out", "folds"])
def test_a_gap_that_leaves_nothing_names_it_and_the_day_as_they_are_written(
    tmp_path: Path, kind: str
) -> None:
    days = pa.array(np.datetime64("2024-01-01", "D") + np.arange(N_ROWS))
    rows = load_rows(project(tmp_path, more='split = "time"\ntime = "t"\ngap = "90d"', t=days))
    with pytest.raises(InputError, match=r"the gap of 90d leaves no row before 2024-0\d-\d\d"):
        rows.hold_out() if kind == "hold-out" else list(rows.folds("time-series", n_folds=4))


# the manifest


def test_a_changed_file_is_named_the_next_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = project(tmp_path)
    with caplog.at_level("INFO", logger="kit"):
        first = load(toy)
        load(toy)
        assert not [line for line in caplog.messages if "last time" in line]
        second = load(project(tmp_path, a=np.arange(N_ROWS)[::-1].astype(np.float32)))
    assert "the data is not what it was the last time: data.parquet changed" in caplog.messages
    assert read_manifest(tmp_path / ".kit" / "data", first.fingerprint).n_rows == N_ROWS
    assert (second.n_files, second.size_bytes) == (1, (tmp_path / "data.parquet").stat().st_size)
