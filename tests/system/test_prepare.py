"""Rules of ``kit prepare``: it tells what training would learn from, and lays tables out the same way."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.prepare import PrepareResult, prepare
from kit.cleaning import Change
from kit.cli.show import making
from kit.errors import ConflictError, InputError, SettingsError, UnavailableError
from kit.project import Project
from kit.settings import PrepareSettings
from kit.tables import read_table

N_DAYS, SENSORS = 60, ("north", "south", "süd")
TOML = """
[project]
name = "readings"

[data]
path = "readings.parquet"
label = "state"
time = "day"
split = "time"
gap = 2

[[data.inputs]]
name = "history"
shape = [4]
nullable = true

[[data.inputs]]
name = "numbers"
columns = ["heat", "wind"]
nullable = true

[[data.inputs]]
name = "kind"
dtype = "string"
nullable = true

[[data.inputs]]
name = "note"
dtype = "string"
nullable = true

[model]
factory = "model:build"

[[prepare.rules]]
column = "station"
pattern = "(?i)st-"
otherwise = "replace"

[[prepare.rules]]
column = "operator"
pattern = "[a-z]+"
otherwise = "drop"

[[prepare.rules]]
column = "kind"
pattern = "[a-c]"
otherwise = "missing"

[prepare.duplicates]
keys = ["station", "day"]
keep = "latest"

[[prepare.windows]]
name = "history"
column = "heat"
group = "station"
length = 4

[[prepare.features]]
columns = ["history"]
missing = "mean"
statistics = ["mean", "last"]

[[prepare.features]]
columns = ["heat"]
missing = "median"
outliers = "iqr"
scale = "standard"

[[prepare.features]]
columns = ["wind"]
missing = "mean"
outliers = "z-score"
outlier_action = "drop"
scale = "bins"

[[prepare.features]]
columns = ["kind"]
missing = "most-frequent"
encode = "one-hot"

[[prepare.features]]
columns = ["note"]
text = "tf-idf"
max_terms = 10
"""


def readings() -> dict[str, Any]:
    """A table that gives every step something to do."""
    generator = np.random.default_rng(0)
    stations = [f"{'st-' if index % 2 else 'ST-'}{name}" for index, name in enumerate(SENSORS)] * N_DAYS
    n_rows = len(stations)
    heat = generator.normal(20, 3, n_rows)
    heat[::10] = np.nan
    heat[5] = 900.0
    wind = generator.normal(5, 1, n_rows)
    wind[7] = 80.0
    columns: dict[str, Any] = {
        "station": stations,
        "day": np.repeat(np.arange(N_DAYS), len(SENSORS)),
        "operator": ["B0B" if index in (2, 3) else "bob" for index in range(n_rows)],
        "kind": [("a", "b", "c", "?", None)[index % 5] for index in range(n_rows)],
        "note": [("calm night", "çalm day", "")[index % 3] for index in range(n_rows)],
        "heat": heat,
        "wind": wind,
        "state": [("off", "on")[index // 3 % 2] for index in range(n_rows)],
    }
    return {name: [*values, values[-1]] for name, values in columns.items()}  # the last row once more


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a step of every kind, opened from another folder."""
    folder = tmp_path / "readings"
    folder.mkdir()
    (folder / "kit.toml").write_text(TOML, encoding="utf-8")
    parquet.write_table(pa.table(readings()), folder / "readings.parquet")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return Project.open(folder)


def run(project: Project, **flags: Any) -> PrepareResult:
    return prepare(project, project.command("prepare", PrepareSettings, flags))


def words(path: Path) -> str:
    text = re.sub(r"<(style|svg).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_every_step_is_told_with_what_it_changed(project: Project) -> None:
    result = run(project)
    steps = [(change.step, change.column) for change in result.changes]
    told = [("rule", "station"), ("rule", "operator"), ("rule", "kind"), ("duplicates", None)]
    assert steps[:5] == [*told, ("window", "history")]
    by_step = {(change.step, change.column): change for change in result.changes}
    assert by_step["rule", "operator"].rows_after == by_step["rule", "operator"].rows_before - 2
    assert by_step["duplicates", None].n_values == 1
    assert {"split", "missing", "outliers"} <= {step for step, _ in steps}
    assert result.n_rows == len(SENSORS) * N_DAYS + 1
    assert {leak["check"] for leak in result.leakage} == {"time", "duplicate rows", "window"}


def test_the_record_describes_the_table_as_it_was_read(project: Project) -> None:
    result = run(project)
    assert result.record is not None
    record = json.loads(result.record.read_text(encoding="utf-8"))
    columns = {column["name"]: column for column in record["columns"]}
    assert list(columns) == ["state", "history", "heat", "wind", "kind", "note"]
    assert [column["role"] for column in columns.values()] == ["label", "window", *["input"] * 4]
    assert columns["heat"]["maximum"] == 900.0  # before it is clipped
    assert columns["kind"]["categories"]["?"] == 36  # before it is missing
    assert columns["history"]["kind"] == "list"
    assert sum(columns["wind"]["train_counts"]) == record["split"]["train"]
    assert {part: sum(counts[part] for counts in record["classes"].values()) for part in result.rows} == (
        result.rows
    )
    assert record["data"]["n_files"] == 1
    assert record["n_features"] == len(record["features"]) == result.n_features


def test_the_data_report_stands_alone_and_shows_it(project: Project) -> None:
    path = run(project).report
    assert path == project.folder / "data-report.html"
    text = words(path)
    assert "heat number" in text
    assert "history list, window" in text
    assert "duplicates" in text
    assert "kit prepare" in text
    raw = path.read_text(encoding="utf-8")
    assert raw.count('<svg class="spark"') == 6
    assert "default-src 'none'" in raw
    assert not re.search(r"<(script|iframe|object|embed|img|form|base)\b|@import", raw)


def test_the_same_data_and_settings_give_the_same_record(project: Project) -> None:
    def facts() -> dict[str, Any]:
        record = run(project).record
        assert record is not None
        read: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return {key: value for key, value in read.items() if key != "written_at_s"}

    assert facts() == facts()


def test_prepared_rows_are_the_cleaned_rows_of_each_part_with_all_columns(project: Project) -> None:
    result = run(project, output="prepared")
    assert result.output is not None
    tables = {part: parquet.read_table(Path(result.output) / f"{part}.parquet") for part in result.rows}
    assert {part: table.num_rows for part, table in tables.items()} == result.rows
    assert tables["train"].column_names == [*readings(), "history"]
    assert set(tables["train"]["station"].to_pylist()) == set(SENSORS)
    days = {part: np.array(table["day"].to_pylist()) for part, table in tables.items()}
    assert days["train"].max() + 2 <= days["validation"].min()
    assert np.array(tables["train"]["wind"].to_pylist()).max() < 80  # dropped in training only
    assert sorted(path.name for path in Path(result.output).iterdir()) == [
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_another_table_is_laid_out_row_for_row(project: Project, tmp_path: Path) -> None:
    del (others := readings())["state"]
    parquet.write_table(pa.table(others), tmp_path / "others.parquet")
    result = run(project, input=str(tmp_path / "others.parquet"), output=str(tmp_path / "laid"))
    laid = parquet.read_table(tmp_path / "laid" / "rows.parquet")
    n_rows = len(SENSORS) * N_DAYS + 1
    assert (result.rows, result.report, result.record) == ({"rows": n_rows}, None, None)
    assert laid["day"].to_pylist() == list(others["day"])  # nothing dropped, nothing moved
    assert laid["operator"].to_pylist() == others["operator"]
    assert set(laid["station"].to_pylist()) == set(SENSORS)
    assert laid["kind"].to_pylist() == others["kind"]  # the model's graph makes it missing
    history = np.array(laid["history"].to_pylist(), dtype=np.float64)
    north = [index for index in range(n_rows - 1) if index % len(SENSORS) == 0]
    np.testing.assert_allclose(history[north[5]], np.asarray(others["heat"])[north[2:6]], rtol=1e-6)
    assert not (project.state / "runs").exists()


def test_another_table_is_read_as_the_projects_own(tmp_path: Path) -> None:
    rule = '[[prepare.rules]]\ncolumn = "plz"\npattern = "-"\notherwise = "replace"\n'
    drop = '[[prepare.rules]]\ncolumn = "zone"\npattern = "0\\\\d"\notherwise = "drop"\n'
    inputs = '[project]\nname = "p"\n[data]\npath = "d.csv"\nlabel = "y"\n[[data.inputs]]\nname = "x"\n'
    (tmp_path / "kit.toml").write_text(inputs + '[model]\nfactory = "m:f"\n' + rule + drop, encoding="utf-8")
    (tmp_path / "new.csv").write_text("x,plz,zone\n1,0-1,07\n2,01,7\n", encoding="utf-8")
    run(Project.open(tmp_path), input=str(tmp_path / "new.csv"), output=str(tmp_path / "laid"))
    laid = parquet.read_table(tmp_path / "laid" / "rows.parquet")
    assert laid.to_pydict() == {"x": [1, 2], "plz": ["01", "01"], "zone": ["07", "7"]}


def test_another_table_without_an_input_is_refused_by_name(project: Project, tmp_path: Path) -> None:
    del (others := readings())["wind"]
    parquet.write_table(pa.table(others), tmp_path / "others.parquet")
    with pytest.raises(InputError, match="has no column 'wind'"):
        run(project, input=str(tmp_path / "others.parquet"), output=str(tmp_path / "laid"))
    assert not (tmp_path / "laid").exists()


def test_an_output_that_holds_something_else_is_refused_before_any_work(project: Project) -> None:
    folder = project.folder / "prepared"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"prepared holds something else \(notes\.txt\)"):
        run(project, output="prepared")
    with pytest.raises(ConflictError, match=r"kit\.toml is not a folder"):
        run(project, output="kit.toml")
    assert not (project.state / "runs").exists()


def test_an_earlier_output_is_replaced_as_a_whole(project: Project) -> None:
    first = run(project, output="prepared")
    text = (project.folder / "kit.toml").read_text(encoding="utf-8").replace("gap = 2", "gap = 4")
    (project.folder / "kit.toml").write_text(text, encoding="utf-8")
    second = run(Project.open(project.folder), output="prepared")
    assert first.rows != second.rows
    for part, n_rows in second.rows.items():
        assert parquet.read_metadata(project.folder / "prepared" / f"{part}.parquet").num_rows == n_rows


def test_a_full_disk_leaves_the_earlier_output(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(project, output="prepared").rows

    def full(path: Path, data: bytes) -> None:
        if path.name == "test.parquet":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jobs.prepare.write_atomic", full)
    with pytest.raises(UnavailableError, match="is full"):
        run(project, output="prepared")
    folder = project.folder / "prepared"
    kept = {part: parquet.read_metadata(folder / f"{part}.parquet").num_rows for part in before}
    assert kept == before
    assert not [path.name for path in project.folder.iterdir() if path.name.startswith(".prepared")]


def test_a_report_that_is_an_address_is_refused_before_any_work(project: Project) -> None:
    with pytest.raises(SettingsError, match=r"report = 's3://b/page\.html' is an address"):
        run(project, report="s3://b/page.html")
    assert not project.state.exists()


def test_prepared_rows_go_to_an_empty_place_on_s3(
    project: Project, s3_endpoint: str, s3_environment: pytest.MonkeyPatch
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    bucket = boto3.session.Session().resource("s3").create_bucket(Bucket="prepared")
    try:
        result = run(project, output="s3://prepared/rows")
        assert read_table("s3://prepared/rows").num_rows == sum(result.rows.values())
        with pytest.raises(ConflictError, match="s3://prepared/rows is not empty"):
            run(project, output="s3://prepared/rows")
    finally:
        bucket.objects.all().delete()
        bucket.delete()


def test_a_long_list_of_steps_is_shown_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    changes = [
        Change("rule", "a", 10, 9, 1, "one dropped"),
        *(Change("missing", f"c{index}", 9, 9, index, "") for index in range(30)),
    ]
    making.prepare(PrepareResult("t.csv", 10, {"rows": 9}, changes=tuple(changes), output="there"))
    shown = capsys.readouterr().out
    assert re.search(r"missing +30 columns +9 +9 +435", shown)
    assert re.search(r"rule +a +10 +9 +1 +one dropped", shown)


def test_the_tabular_template_is_prepared_and_shown(
    tabular_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project.open(tabular_project)
    making.prepare(run(project))
    shown = capsys.readouterr().out
    assert "569 rows of" in shown
    assert re.search(r"train +409 +71\.9%", shown)
    assert re.search(r"malignant +\d+ +\d+ +\d+", shown)
    assert "leakage, duplicate rows: 0 validation rows" in shown
    assert shown.endswith("data-report.html\n")


def test_a_regression_is_prepared_without_classes(project: Project) -> None:
    text = (project.folder / "kit.toml").read_text(encoding="utf-8")
    text = text.replace('name = "readings"', 'name = "readings"\ntask = "regression"')
    text = text.replace('label = "state"', 'label = "target"')
    (project.folder / "kit.toml").write_text(text, encoding="utf-8")
    columns: dict[str, Any] = {**readings(), "target": np.linspace(0, 1, len(readings()["day"]))}
    table = pa.table(columns)
    parquet.write_table(table, project.folder / "readings.parquet")
    result = run(Project.open(project.folder))
    assert result.classes == {}
    assert result.report is not None
    assert "target number, label" in words(result.report)
