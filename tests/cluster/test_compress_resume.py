"""Compressing on a real local Ray: what survives a kill, and what MLflow is told."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.compress import compress, conclude, plan
from jobs.fitting.local import fit_here
from kit.project import Project
from kit.settings import CompressSettings

FLAGS = {"model": "blobs", "method": "quantize", "epochs": 20}


def copy(trained: Any, folder: Path) -> Project:
    shutil.copytree(trained.project.folder, folder)
    return Project.open(folder)


def test_a_compression_killed_on_the_way_ends_with_the_same_version(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed, whole = (copy(trained, tmp_path / name / "blobs") for name in ("killed", "whole"))
    checkpoints = killed.state / "compress"
    driver = lab.start(killed, "compress", FLAGS)
    lab.await_event(
        lambda: any(checkpoints.rglob("progress.json")) or driver.poll() is not None, timeout_s=180
    )
    driver.kill()
    driver.communicate(timeout=300)
    assert driver.returncode == -signal.SIGKILL
    assert [record.number for record in killed.registry().versions("blobs")] == [1]

    with caplog.at_level(logging.INFO, logger="kit"):
        result = compress(killed, killed.command("compress", CompressSettings, FLAGS))
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("continuing the interrupted run") for line in said)
    assert not any(line.startswith("epoch 1:") for line in said)
    assert [each.epoch for each in result.epochs] == list(range(1, len(result.epochs) + 1))
    assert not list(checkpoints.iterdir())

    planned = plan(whole, whole.command("compress", CompressSettings, FLAGS))
    expected = conclude(
        planned,
        fit_here(whole, planned.fit, planned.arrays, build=planned.build, hear=lambda epoch: None),
    )
    assert result.candidate.version.digest == expected.candidate.version.digest
    assert result.candidate.version.number == 2
    assert (result.pays, result.reason) == (expected.pays, expected.reason)


def test_mlflow_is_told_of_a_compression_and_of_its_version(
    trained: Any, one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow.tracking")
    project, uri = copy(trained, tmp_path / "told" / "blobs"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    flags = {"model": "blobs", "method": "prune", "epochs": 2}
    result = compress(project, project.command("compress", CompressSettings, flags))
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("blobs").experiment_id])
    number = result.candidate.version.number
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"compress blobs@{number}")
    assert (run.data.params["compress.method"], run.data.params["train.epochs"]) == ("prune", "2")
    assert run.data.metrics["accuracy"] == result.candidate.metrics["accuracy"]
    assert run.data.metrics["before.operations"] == result.before.operations
    curve = client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in curve] == [each.epoch for each in result.epochs]
    kept = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert kept == {"model", result.record.name}
    (version,) = client.search_model_versions("name = 'blobs'")
    assert version.tags["kit.digest"] == result.candidate.version.digest
