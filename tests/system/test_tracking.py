"""What MLflow is told: asked of its own database store and of its own HTTP server."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.tracking import check_tracking, masked, tracked
from kit.errors import InputError, MissingDependencyError, UnavailableError
from kit.files import sha256_file
from kit.model_version import ModelVersion, Parts, write_model_version
from kit.project import Project
from kit.registry import VersionRecord

mlflow = pytest.importorskip("mlflow.tracking")
pytest.importorskip("flask")
ROOT = Path(__file__).resolve().parents[2]

#: mlflow's own application, on a port the system chose.
SERVER = """
import sys
from werkzeug.serving import make_server
from mlflow.server import app
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Store:
    """An MLflow to talk to, and a client of it for the tests to look with."""

    uri: str
    client: Any
    server: subprocess.Popen[str] | None


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    folder.mkdir()
    database = f"sqlite:///{folder / 'server.db'}"
    settings = {
        "_MLFLOW_SERVER_FILE_STORE": database,
        "_MLFLOW_SERVER_REGISTRY_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "files"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    return server, f"http://127.0.0.1:{int(server.stdout.readline())}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server, uri = start_server(tmp_path_factory.mktemp("mlflow") / "server")
    yield uri
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with mlflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("empty") / "store.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def project(tmp_path: Path, tabular_project: Path) -> Project:
    return Project.open(tabular_project)


@pytest.fixture
def database(tmp_path: Path, empty_database: bytes, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "store.db").write_bytes(empty_database)
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return Store(uri, mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri), None)


@pytest.fixture
def version(project: Project, tmp_path: Path, tiny_parts: Parts) -> VersionRecord:
    """A signed version in the project's store and registry."""
    folder = tmp_path / "made"
    digest = write_model_version(tiny_parts, folder=folder, key=project.signing_key())
    uri = project.store().put(folder, digest=digest)
    return project.registry().register(project.name, digest=digest, uri=uri, summary={})


def only_run(client: Any, project: Project) -> Any:
    experiment = client.get_experiment_by_name(project.name)
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_without_an_address_nothing_is_imported_and_nothing_happens(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from jobs.tracking import check_tracking, tracked\n"
        "check_tracking()\n"
        "with tracked(None, 'train') as tracker:\n"
        "    tracker.log_parameters({'a': 1}); tracker.log_epoch({'epoch': 1, 'loss': 2.0})\n"
        "    tracker.log_artifact(Path('kit.toml')); tracker.register(None)\n"
        "    with tracker.child('trial 1') as inner: inner.log_metrics({'a': 1.0})\n"
        "print(tracker.on, 'mlflow' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout.split(), ended.stderr) == (["False", "False"], "")
    assert list(tmp_path.iterdir()) == []


def test_an_address_without_the_package_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match="mlflow is not installed") as caught:
        check_tracking()
    assert "pip install 'batch-edge-kit[mlflow]'" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["database", "server"])
def test_a_run_its_curves_its_files_and_its_version_are_there(
    kind: str, project: Project, version: VersionRecord, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "database":
        uri = request.getfixturevalue("database").uri
    else:
        uri = request.getfixturevalue("served")
        request.getfixturevalue("monkeypatch").setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    report = tmp_path / "report.html"
    report.write_text("<p>seen</p>")
    with tracked(project, "train") as tracker:
        assert tracker.on
        tracker.log_parameters(
            {"train": {"epochs": 2, "at": "ray://me:hunter2@host:1"}, **{f"p{i}": i for i in range(120)}}
        )
        for epoch in (1, 2):
            tracker.log_epoch({"epoch": epoch, "train_loss": 1.0 / epoch, "note": "no number"})
        tracker.log_metrics({"accuracy": 0.75, "auc": float("nan"), "by": {"slice": np.float64(0.5)}})
        tracker.log_artifact(report)
        tracker.log_artifact(tmp_path / "was never written")
        tracker.register(version)
    run = only_run(client, project)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"train {project.name}@1")
    assert (run.data.params["train.epochs"], run.data.params["p119"]) == ("2", "119")
    assert run.data.params["train.at"] == "ray://me:***@host:1"
    curve = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics == {"train_loss": 0.5, "accuracy": 0.75, "by.slice": 0.5}
    (registered,) = client.search_model_versions(f"name = '{project.name}'")
    files = ModelVersion.open(project.store().fetch(version.digest), trusted=project.trusted())
    assert registered.tags == {
        "kit.number": "1",
        "kit.digest": version.digest,
        "kit.key_id": files.key_id,
    }
    assert registered.run_id == run.info.run_id
    copy = Path(client.download_artifacts(run.info.run_id, "model", str(tmp_path)))
    assert ModelVersion.open(copy, trusted=project.trusted(), digest=version.digest).name == "tiny"
    assert registered.source.endswith("/model")
    kept = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert kept == {"model", "report.html"}
    assert sha256_file(copy / "model.onnx") == sha256_file(files.model_path)


def test_the_same_digest_is_registered_once(
    project: Project, version: VersionRecord, database: Store
) -> None:
    for _ in range(2):
        with tracked(project, "train") as tracker:
            tracker.register(version)
    assert len(database.client.search_model_versions(f"name = '{project.name}'")) == 1


def test_a_run_says_how_it_ended_and_an_unfinished_one_is_continued(
    project: Project, database: Store
) -> None:
    def ending(error: BaseException, *, changed: str) -> None:
        with tracked(project, "train", identity="abc") as tracker:
            tracker.log_parameters({"rows": 3, "changed": changed})
            raise error

    with pytest.raises(InputError):
        ending(InputError("no rows"), changed="before")
    assert only_run(database.client, project).info.status == "FAILED"
    with pytest.raises(KeyboardInterrupt):
        ending(KeyboardInterrupt(), changed="after")
    run = only_run(database.client, project)
    assert (run.info.status, run.data.params["changed"]) == ("KILLED", "before")
    with tracked(project, "train", identity="abc") as tracker:
        assert tracker.on
    assert only_run(database.client, project).info.status == "FINISHED"
    with tracked(project, "train", identity="abc"):
        pass
    experiment = database.client.get_experiment_by_name(project.name)
    assert len(database.client.search_runs([experiment.experiment_id])) == 2


def test_trials_are_runs_inside_the_study(project: Project, database: Store) -> None:
    with tracked(project, "tune") as tracker, tracker.child("trial 3") as trial:
        trial.log_parameters({"width": 8})
        trial.log_epoch({"epoch": 1, "validation_loss": 0.5})
    experiment = database.client.get_experiment_by_name(project.name)
    runs = {run.info.run_name: run for run in database.client.search_runs([experiment.experiment_id])}
    assert runs["trial 3"].data.tags["mlflow.parentRunId"] == runs["tune"].info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["trial 3"].data.metrics == {"validation_loss": 0.5}


def test_a_server_that_does_not_answer_is_an_error_before_work_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9/path")
    for ask in (check_tracking, tracked(project, "train").__enter__):
        with pytest.raises(UnavailableError, match=r"http://me:\*\*\*@127\.0\.0\.1:9/path") as caught:
            ask()
        assert "hunter2" not in caught.value.message
        assert "start the tracking server" in str(caught.value.hint)


def test_a_server_that_fails_on_the_way_costs_one_warning_and_no_training(
    tmp_path: Path,
    project: Project,
    version: VersionRecord,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server, uri = start_server(tmp_path / "server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("http://", "http://me:hunter2@"))
    with caplog.at_level(logging.WARNING, logger="kit"), tracked(project, "train") as tracker:
        tracker.log_epoch({"epoch": 1, "loss": 1.0})
        assert tracker.on
        server.kill()
        server.wait()
        tracker.log_epoch({"epoch": 2, "loss": 0.5})
        tracker.log_metrics({"accuracy": 1.0})
        tracker.register(version)
        with tracker.child("trial 1") as inner:
            inner.log_metrics({"a": 1.0})
    assert not tracker.on
    (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING and each.name == "kit"]
    assert "failed and is told nothing more of this run" in warning.getMessage()
    assert "hunter2" not in caplog.text


def test_nobody_outside_is_told(
    tmp_path: Path, tabular_project: Path, served: str, empty_database: bytes
) -> None:
    # In a process that does not look like a test or CI to mlflow, which would be quiet by itself there.
    program = """
import json, os, sys
asked = []
def hear(event, arguments):
    if event in ("socket.connect", "socket.sendto"): asked.append(str(arguments[1]))
    if event in ("socket.getaddrinfo", "socket.gethostbyname"): asked.append(str(arguments[0]))
sys.addaudithook(hear)
from pathlib import Path
from jobs.tracking import tracked
from kit.project import Project
project = Project.open(Path(sys.argv[1]))
for uri in sys.argv[2:]:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    with tracked(project, "train") as tracker:
        tracker.log_parameters({"a": 1})
        tracker.log_metrics({"b": 2.0})
        tracker.log_artifact(project.folder / "kit.toml")
        assert tracker.on
import mlflow.telemetry.client as telemetry
print(json.dumps([asked, telemetry.get_telemetry_client() is None]))
"""
    (tmp_path / "store.db").write_bytes(empty_database)
    hidden = ("PYTEST", "CI", "GITHUB", "MLFLOW", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tabular_project), f"sqlite:///{tmp_path / 'store.db'}", served],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    asked, silent = json.loads(ended.stdout)
    assert silent
    assert asked, "the tracking server itself was not asked"
    assert all("127.0.0.1" in each for each in asked)


def test_passwords_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-1234")
    assert masked("no http://u:pw@h:1/p?x=1 today") == "no http://u:***@h:1/p?x=1 today"
    assert (
        masked("postgresql://u:long-secret@h/db: long-secret is wrong")
        == "postgresql://u:***@h/db: *** is wrong"
    )
    assert masked("Bearer tok-1234") == "Bearer ***"
    assert masked("http://h/a@b and sqlite:///x.db") == "http://h/a@b and sqlite:///x.db"
