"""The batch job on a real local Ray: every row once, whatever happens on the way."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import jobs.predict
from jobs.predict import _check_windows, predict
from kit.engines import open_engine
from kit.errors import ConflictError, InputError, UnavailableError, VerificationError
from kit.project import Project
from kit.settings import PredictSettings
from kit.tables import to_tensors

pytestmark = pytest.mark.timeout(240)

N_MANY = 600_000


def settings(project: Project, source: Any, output: Any, **flags: Any) -> PredictSettings:
    given = {"model": "blobs", "input": str(source), "output": str(output), **flags}
    return project.command("predict", PredictSettings, given)


def read(folder: Path) -> pa.Table:
    parts = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([parquet.read_table(part) for part in parts])


def reference(project: Project, table: pa.Table) -> dict[str, np.ndarray]:
    """Answer like the engine alone."""
    _, version = project.open_version("blobs")
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    outputs = engine.run(to_tensors(table, version.signature))
    return {**outputs, "label": np.array(version.signature.classes)[outputs["label"]]}


def test_every_row_of_every_file_is_answered_exactly_like_the_engine_does(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    table = lab.table(2500, seed=1)
    (tmp_path / "in").mkdir()
    parquet.write_table(table.slice(0, 1000), tmp_path / "in" / "a.parquet", row_group_size=300)
    csv.write_csv(table.slice(1000, 700), tmp_path / "in" / "b.csv")
    parquet.write_table(table.slice(1700, 0), tmp_path / "in" / "c.parquet")
    parquet.write_table(table.slice(1700), tmp_path / "in" / "d.parquet")
    chosen = settings(
        trained.project,
        tmp_path / "in",
        tmp_path / "out",
        columns=["id"],
        outputs=["label", "probabilities", "logits"],
        shard_rows=450,
        batch_rows=64,
    )
    result = predict(trained.project, chosen)
    assert (result.rows_in, result.rows_out, result.n_parts) == (2500, 2500, 6)
    answers = read(tmp_path / "out")
    expected = reference(trained.project, table)
    assert answers.column_names == ["id", "label", "probabilities", "logits"]
    assert answers["id"].to_pylist() == list(range(2500))
    assert answers["label"].to_pylist() == expected["label"].tolist()
    for name in ("probabilities", "logits"):
        written = answers[name].combine_chunks().flatten().to_numpy().reshape(2500, 3)
        np.testing.assert_array_equal(written, expected[name])
    assert sum(result.labels.values()) == 2500
    assert result.labels["red"] == int((expected["label"] == "red").sum())
    report = json.loads((tmp_path / "out" / "_report.json").read_bytes())
    assert report["rows_out"] == sum(shard["rows_out"] for shard in report["shards"]) == 2500
    with pytest.raises(ConflictError, match=r"is not empty \(it holds"):
        predict(trained.project, chosen)


def test_a_row_the_signature_forbids_is_named_with_its_file(lab: Any, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    good, bad = lab.table(50), lab.table(50)
    values = bad["c"].to_numpy().copy()
    values[37] = np.nan
    bad = bad.set_column(bad.column_names.index("c"), "c", pa.array(values))
    parquet.write_table(good, tmp_path / "in" / "good.parquet")
    parquet.write_table(bad, tmp_path / "in" / "wrong.parquet")
    with pytest.raises(InputError, match=r"wrong\.parquet: input 'x'.*, row 37") as caught:
        predict(trained.project, settings(trained.project, tmp_path / "in", tmp_path / "out", shard_rows=20))
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out" / "_report.json").exists()


def test_a_table_without_its_windows_is_sent_to_prepare(lab: Any, trained: Any, tmp_path: Path) -> None:
    _, version = trained.project.open_version("blobs")
    chosen = settings(trained.project, "new.parquet", tmp_path / "out")
    older = replace(version, manifest={"lineage": {"prepare": {"windows": [{"name": "c"}]}}})
    with pytest.raises(InputError, match=r"new\.parquet has no column 'c': it is a window") as caught:
        _check_windows(chosen, older, lab.table(5).drop_columns(["c"]))
    assert caught.value.hint == f"kit prepare --input {chosen.input} --output ready, then predict ready"
    _check_windows(chosen, older, lab.table(5))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.drop_columns(["b"]), "column 'b' is missing"),
        (lambda table: table.set_column(2, "b", pa.array(["x"] * len(table))), "'b'"),
        (lambda table: table.set_column(2, "b", pa.nulls(len(table))), "'b'|'x'"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused_before_ray_starts(
    lab: Any, trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, message: str
) -> None:
    parquet.write_table(change(lab.table(10)), tmp_path / "in.parquet")
    with caplog.at_level(logging.INFO, logger="kit"), pytest.raises(InputError, match=message):
        predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    assert "starting Ray" not in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_killed_actor_is_replaced_and_every_row_is_there_once(
    lab: Any, trained: Any, tmp_path: Path, at: Any
) -> None:
    table = lab.table(N_MANY)
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=50_000)
    killed: list[int] = []

    def kill() -> None:
        for actor in lab.processes("ShardActor")[:1]:
            killed.append(actor.pid)
            actor.kill()

    at("part-", kill)
    chosen = settings(
        trained.project, tmp_path / "in.parquet", tmp_path / "out", columns=["id"], shard_rows=50_000
    )
    result = predict(trained.project, chosen)
    assert killed
    assert (result.rows_in, result.rows_out, result.n_parts) == (N_MANY, N_MANY, 12)
    answers = read(tmp_path / "out")
    np.testing.assert_array_equal(answers["id"].to_numpy(), np.arange(N_MANY))
    assert answers["label"].to_pylist() == reference(trained.project, table)["label"].tolist()


def test_a_shard_that_kills_its_worker_is_named_and_not_tried_for_ever(
    lab: Any, trained: Any, tmp_path: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.predict, "_MAX_RESTARTS", 0)
    parquet.write_table(lab.table(N_MANY), tmp_path / "in.parquet", row_group_size=50_000)
    at("part-", lambda: [actor.kill() for actor in lab.processes("ShardActor")])
    chosen = settings(
        trained.project, tmp_path / "in.parquet", tmp_path / "out", shard_rows=50_000, workers=1
    )
    with pytest.raises(
        UnavailableError, match=r"died 1 times over part-0\d+\.parquet \(in\.parquet from row"
    ):
        predict(trained.project, chosen)
    assert not (tmp_path / "out").exists()


def test_a_killed_run_leaves_whole_parts_and_no_report(lab: Any, trained: Any, tmp_path: Path) -> None:
    parquet.write_table(lab.table(N_MANY), tmp_path / "in.parquet", row_group_size=50_000)
    out = tmp_path / "out"
    chosen = {"model": "blobs", "input": str(tmp_path / "in.parquet"), "output": str(out)}
    driver = lab.start(trained.project, "predict", {**chosen, "shard_rows": 50_000, "workers": 1})
    lab.await_event(lambda: list(out.glob("part-*.parquet")) or driver.poll() is not None)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert not (out / "_report.json").exists()
    assert [len(parquet.read_table(part)) for part in out.glob("part-*.parquet")] != []


def test_an_interrupted_run_takes_its_parts_back_so_the_same_command_works(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    parquet.write_table(lab.table(N_MANY), tmp_path / "in.parquet", row_group_size=50_000)
    out = tmp_path / "out"
    chosen = {"model": "blobs", "input": str(tmp_path / "in.parquet"), "output": str(out)}
    driver = lab.start(trained.project, "predict", {**chosen, "shard_rows": 50_000, "workers": 1})
    lab.await_event(lambda: list(out.glob("part-*.parquet")) or driver.poll() is not None)
    driver.send_signal(signal.SIGINT)
    driver.communicate()
    assert driver.returncode != 0
    assert not out.exists()


def test_a_model_that_was_touched_after_the_start_is_not_loaded(
    lab: Any, trained: Any, tmp_path: Path, at: Any
) -> None:
    parquet.write_table(lab.table(20), tmp_path / "in.parquet")
    _, version = trained.project.open_version("blobs")
    whole = version.model_path.read_bytes()

    def flip() -> None:
        version.model_path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    saboteur = at("starting Ray", flip)
    try:
        with pytest.raises(VerificationError, match=r"model\.onnx"):
            predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    finally:
        version.model_path.write_bytes(whole)
    assert saboteur.done
    assert not (tmp_path / "out").exists()


@pytest.fixture
def bucket(s3_endpoint: str, s3_environment: pytest.MonkeyPatch) -> Iterator[Any]:
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    bucket = boto3.session.Session().resource("s3").create_bucket(Bucket="answers")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


def test_a_table_on_s3_is_answered_onto_s3(lab: Any, trained: Any, tmp_path: Path, bucket: Any) -> None:
    table = lab.table(300, seed=2)
    for index in range(2):
        parquet.write_table(table.slice(index * 150, 150), tmp_path / f"{index}.parquet")
        bucket.upload_file(str(tmp_path / f"{index}.parquet"), f"in/{index}.parquet")
    chosen = settings(trained.project, "s3://answers/in", "s3://answers/out", columns=["id"])
    result = predict(trained.project, chosen)
    assert (result.rows_in, result.rows_out) == (300, 300)
    keys = [entry.key for entry in bucket.objects.filter(Prefix="out/")]
    names = sorted(key for key in keys if not key.endswith("/"))  # Arrow leaves a mark for the folder
    assert names == ["out/_report.json", "out/part-00000.parquet", "out/part-00001.parquet"]
    parts = names[1:]
    for name in parts:
        bucket.download_file(name, str(tmp_path / Path(name).name))
    answers = pa.concat_tables([parquet.read_table(tmp_path / Path(name).name) for name in parts])
    assert answers["id"].to_pylist() == list(range(300))
    assert answers["label"].to_pylist() == reference(trained.project, table)["label"].tolist()
    with pytest.raises(ConflictError, match="s3://answers/out is not empty"):
        predict(trained.project, chosen)
