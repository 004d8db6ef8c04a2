"""The batch job on a real local Ray: every row once, in order, answered like the engine does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

from jobs.batch.places import open_place
from jobs.predict import predict
from jobs.runs import runs
from kit.engines import open_engine
from kit.errors import ConflictError, GateError, InputError
from kit.project import Project
from kit.settings import PredictSettings, RunsSettings
from kit.tables import to_tensors

pytestmark = pytest.mark.usefixtures("one_ray")


def settings(project: Project, source: Any, output: Any, **flags: Any) -> PredictSettings:
    given = {"model": "blobs", "output": str(output), **({"input": str(source)} if source else {}), **flags}
    return project.command("predict", PredictSettings, given)


def read(folder: Path) -> pa.Table:
    """Read the answers as anybody would: the folder, as one table."""
    return parquet.read_table(folder)


def reference(project: Project, table: pa.Table) -> dict[str, np.ndarray]:
    """Answer like the engine alone."""
    _, version = project.open_version("blobs")
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    outputs = engine.run(to_tensors(table, version.signature))
    return {**outputs, "label": np.array(version.signature.classes)[outputs["label"]]}


def spoilt(table: pa.Table, rows: list[int], *, column: str = "c") -> pa.Table:
    values = table[column].to_numpy().copy()
    values[rows] = np.nan
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_every_row_of_every_file_is_answered_exactly_like_the_engine_does(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    table = lab.table(3100, seed=1)
    source = tmp_path / "the rows"
    source.mkdir()
    parquet.write_table(table.slice(0, 1000), source / "a.parquet", row_group_size=300)
    csv.write_csv(table.slice(1000, 700), source / "b ü.csv")
    parquet.write_table(table.slice(1700, 0), source / "c.parquet")
    lines = [json.dumps(row) for row in table.slice(1700, 400).to_pylist()]
    (source / "d.jsonl").write_text("\n".join(lines) + "\n")
    feather.write_feather(table.slice(2100, 600), source / "e.feather", chunksize=250)
    parquet.write_table(table.slice(2700), source / "f.parquet")
    chosen = settings(
        trained.project,
        source,
        tmp_path / "out",
        columns=["id"],
        outputs=["label", "probabilities", "logits"],
        origin=True,
        shard_rows=450,
        batch_rows=64,
    )
    result = predict(trained.project, chosen)
    assert (result.rows_in, result.rows_out, result.rows_refused) == (3100, 3100, 0)
    answers = read(tmp_path / "out")
    expected = reference(trained.project, table)
    assert answers.column_names == ["id", "label", "probabilities", "logits", "origin_file", "origin_row"]
    assert answers["id"].to_pylist() == list(range(3100))
    assert answers["label"].to_pylist() == expected["label"].tolist()
    for name in ("probabilities", "logits"):
        written = answers[name].combine_chunks().flatten().to_numpy().reshape(3100, 3)
        np.testing.assert_array_equal(written, expected[name])
    assert answers["origin_file"][1000].as_py() == "b ü.csv"
    assert answers["origin_row"].to_pylist()[1690:1702] == [*range(690, 700), 0, 1]
    assert sum(result.labels.values()) == 3100
    assert result.labels["red"] == int((expected["label"] == "red").sum())
    manifest = json.loads((tmp_path / "out" / "_run" / "manifest.json").read_bytes())
    assert sum(part["rows"] for part in manifest["parts"]) == 3100


def test_the_same_command_again_finds_everything_done_and_another_one_is_refused(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    parquet.write_table(lab.table(300), tmp_path / "in.parquet")
    first = predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    again = predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    assert (again.run_id, again.rows_out, again.n_resumed) == (first.run_id, 300, 1)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after.keys() == files.keys()
    other = settings(trained.project, tmp_path / "in.parquet", tmp_path / "out", columns=["id"])
    with pytest.raises(ConflictError, match=r"holds another run: columns is \['id'\] and was \[\]"):
        predict(trained.project, other)
    parquet.write_table(lab.table(301), tmp_path / "in.parquet")
    with pytest.raises(ConflictError, match=r"in\.parquet has [\d,]+ bytes and had"):
        predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))


def test_a_folder_with_something_else_in_it_is_left_alone(lab: Any, trained: Any, tmp_path: Path) -> None:
    parquet.write_table(lab.table(30), tmp_path / "in.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"is not empty \(it holds thesis\.txt\)"):
        predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_refused_rows_go_to_quarantine_with_their_values_and_come_back_when_corrected(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    table = lab.table(400)
    bad = spoilt(table, [37, 38, 250])
    parquet.write_table(bad, tmp_path / "in.parquet")
    out = tmp_path / "out"
    result = predict(
        trained.project,
        settings(trained.project, tmp_path / "in.parquet", out, columns=["id"], shard_rows=100),
    )
    assert (result.rows_in, result.rows_out, result.rows_refused) == (400, 397, 3)
    assert read(out)["id"].to_pylist() == [each for each in range(400) if each not in (37, 38, 250)]
    aside = parquet.read_table(out / "_quarantine")
    assert aside["origin_row"].to_pylist() == [37, 38, 250]
    assert aside["id"].to_pylist() == [37, 38, 250]
    assert aside["a"].to_pylist() == table["a"].take([37, 38, 250]).to_pylist()
    assert aside["reason"][0].as_py() == "input 'x' (column 'c'): a value is missing (NaN)"
    corrected = aside.set_column(
        aside.column_names.index("c"), "c", table["c"].take([37, 38, 250]).combine_chunks()
    )
    parquet.write_table(corrected, tmp_path / "corrected.parquet")
    again = predict(
        trained.project, settings(trained.project, tmp_path / "corrected.parquet", out, retry_quarantine=True)
    )
    assert (again.rows_in, again.rows_out, again.rows_refused) == (3, 3, 0)
    answers = read(out).sort_by("id")
    assert answers["id"].to_pylist() == list(range(400))
    assert answers["label"].to_pylist() == reference(trained.project, table)["label"].tolist()
    with pytest.raises(InputError, match=r"no row of .*out is in quarantine"):
        predict(trained.project, settings(trained.project, None, out, retry_quarantine=True))
    checked = runs(trained.project, RunsSettings(action="verify", output=str(out)))
    assert checked.wrong == ()


def test_rows_a_retry_refuses_again_stay_in_quarantine(lab: Any, trained: Any, tmp_path: Path) -> None:
    parquet.write_table(spoilt(lab.table(300), [5]), tmp_path / "in.parquet")
    out = tmp_path / "out"
    predict(trained.project, settings(trained.project, tmp_path / "in.parquet", out))
    chosen = settings(trained.project, None, out, retry_quarantine=True, max_bad_rows="100%")
    again = predict(trained.project, chosen)
    assert (again.rows_in, again.rows_out, again.rows_refused) == (1, 0, 1)
    aside = parquet.read_table(out / "_quarantine" / "retry-001-part-00000.parquet")
    assert (aside["origin_file"].to_pylist(), aside["origin_row"].to_pylist()) == (["in.parquet"], [5])


def test_a_corrected_table_that_forgets_a_row_is_refused(lab: Any, trained: Any, tmp_path: Path) -> None:
    parquet.write_table(spoilt(lab.table(300), [5, 6]), tmp_path / "in.parquet")
    out = tmp_path / "out"
    predict(trained.project, settings(trained.project, tmp_path / "in.parquet", out))
    aside = parquet.read_table(out / "_quarantine")
    parquet.write_table(aside.slice(0, 1), tmp_path / "corrected.parquet")
    chosen = settings(trained.project, tmp_path / "corrected.parquet", out, retry_quarantine=True)
    with pytest.raises(InputError, match=r"lacks row 6 of in\.parquet"):
        predict(trained.project, chosen)
    assert not (out / "_run" / "retry-001").exists()


def test_too_many_refused_rows_end_the_run_without_a_manifest_and_a_larger_allowance_resumes_it(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    parquet.write_table(spoilt(lab.table(300), list(range(10))), tmp_path / "in.parquet")
    out = tmp_path / "out"
    with pytest.raises(GateError, match=r"10 rows of 300 were refused.*max_bad_rows = 1% allows 3") as caught:
        predict(trained.project, settings(trained.project, tmp_path / "in.parquet", out))
    assert "a value is missing" in caught.value.message
    assert not (out / "_run" / "manifest.json").exists()
    chosen = settings(trained.project, tmp_path / "in.parquet", out, max_bad_rows=10)
    result = predict(trained.project, chosen)
    assert (result.rows_out, result.rows_refused, result.n_resumed) == (290, 10, 1)


def test_a_poisoned_row_in_every_batch_costs_those_rows_alone(lab: Any, trained: Any, tmp_path: Path) -> None:
    table = lab.table(2000)
    poisoned = list(range(7, 2000, 50))
    csv.write_csv(spoilt(table, poisoned), tmp_path / "in.csv")
    chosen = settings(
        trained.project,
        tmp_path / "in.csv",
        tmp_path / "out",
        columns=["id"],
        batch_rows=50,
        max_bad_rows="2%",
    )
    result = predict(trained.project, chosen)
    assert (result.rows_out, result.rows_refused) == (1960, 40)
    answers = read(tmp_path / "out")
    good = [each for each in range(2000) if each not in poisoned]
    assert answers["id"].to_pylist() == good
    assert answers["label"].to_pylist() == reference(trained.project, table.take(good))["label"].tolist()
    aside = parquet.read_table(tmp_path / "out" / "_quarantine")
    assert aside["id"].to_pylist() == [str(each) for each in poisoned]  # text stays text


def test_lines_that_are_no_rows_are_set_aside_with_their_text(lab: Any, trained: Any, tmp_path: Path) -> None:
    table = lab.table(500)
    csv.write_csv(table, tmp_path / "in.csv")
    lines = (tmp_path / "in.csv").read_text().splitlines()
    lines[11] = "only,two"
    (tmp_path / "in.csv").write_text("\n".join(lines))
    result = predict(trained.project, settings(trained.project, tmp_path / "in.csv", tmp_path / "out"))
    assert (result.rows_in, result.rows_out, result.rows_refused) == (500, 499, 1)
    aside = parquet.read_table(tmp_path / "out" / "_quarantine")
    assert (aside["origin_row"].to_pylist(), aside["line"].to_pylist()) == ([10], ["only,two"])


def test_parts_in_folders_by_value_are_one_table_for_other_programs(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    table = lab.table(1000)
    parquet.write_table(table, tmp_path / "in.parquet")
    chosen = settings(
        trained.project,
        tmp_path / "in.parquet",
        tmp_path / "out",
        columns=["id", "kind"],
        partition_by=["kind"],
        codec="snappy",
        row_group_rows=64,
        shard_rows=300,
    )
    predict(trained.project, chosen)
    found = duckdb.sql(
        f"select id, kind, label from read_parquet('{tmp_path}/out/kind=*/*.parquet', hive_partitioning=true)"
        " order by id"
    ).fetchall()
    assert [row[:2] for row in found] == list(zip(range(1000), table["kind"].to_pylist(), strict=True))
    one = parquet.ParquetFile(next((tmp_path / "out" / "kind=red").glob("*.parquet")))
    assert one.metadata.row_group(0).num_rows <= 64
    assert one.metadata.row_group(0).column(0).compression == "SNAPPY"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.drop_columns(["b"]), "column 'b' is missing|has no column 'b'"),
        (lambda table: table.set_column(2, "b", pa.array(["x"] * len(table))), "'b'"),
        (lambda table: table.set_column(2, "b", pa.nulls(len(table))), "'b'|'x'"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused_before_anything_is_written(
    lab: Any, trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, message: str
) -> None:
    parquet.write_table(change(lab.table(10)), tmp_path / "in.parquet")
    with caplog.at_level(logging.INFO, logger="kit"), pytest.raises(InputError, match=message):
        predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    assert "starting Ray" not in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_second_driver_on_the_same_output_is_refused_while_the_first_lives(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    parquet.write_table(lab.table(100), tmp_path / "in.parquet")
    with (
        open_place(str(tmp_path / "out")).held(),
        pytest.raises(ConflictError, match=r"is held by another run \(host .*, pid"),
    ):
        predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    result = predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    assert result.rows_out == 100


def test_twenty_thousand_tiny_files_are_one_table(lab: Any, trained: Any, tmp_path: Path) -> None:
    table = lab.table(20_000)
    source = tmp_path / "in"
    source.mkdir()
    header = ",".join(table.column_names)
    for row in table.to_pylist():
        values = ",".join(str(value) for value in row.values())
        (source / f"{row['id']:05d}.csv").write_text(f"{header}\n{values}\n")
    result = predict(trained.project, settings(trained.project, source, tmp_path / "out", columns=["id"]))
    assert (result.rows_in, result.rows_out) == (20_000, 20_000)
    assert result.n_parts < 100
    assert read(tmp_path / "out")["id"].to_pylist() == list(range(20_000))
