"""Studies on a real local Ray: what survives a kill, what a failing trial costs, where the ledger lies."""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from jobs.alone import alone
from jobs.cluster import connected
from jobs.tune import TuneResult, tune
from jobs.tuning.plan import plan_study, work_of
from jobs.tuning.running import _free_room
from jobs.tuning.space import Space
from kit import local_ray
from kit.errors import ConflictError, InputError, ProjectError, SettingsError
from kit.project import Project
from kit.settings import TuneSettings

#: Four trials of eight epochs, whose values decide everything about them.
TUNE = """
[tune]
search = "random"
scheduler = "none"
trials = 4

[tune.space.train]
learning_rate = { log = [1e-3, 1e-1] }
"""

#: A factory whose ``mood`` decides how a trial ends.
MOODS = """

import signal

class Moody(Blobs):
    def __init__(self, mood, **more):
        super().__init__(bad=mood == "diverges", greedy=False, **more)
        self.mood = mood

    def forward(self, x):
        if self.training and self.mood == "crashes":
            raise KeyError("no such row")
        if self.training and self.mood == "takes all":
            torch.empty(1 << 60)
        if self.training and self.mood == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super().forward(x)
        if not self.training and self.mood == "stubborn" and answer.sum() > 1e9:  # which no graph can hold
            return -answer
        return answer


def moody(*, pause_s, n_classes, mood="good"):
    return Moody(mood, pause_s=pause_s, n_classes=n_classes)
"""


def settings(project: Project, **flags: Any) -> TuneSettings:
    return project.command("tune", TuneSettings, flags)


def make(lab: Any, trained: Any, folder: Path, *, pause_s: float = 0.0, more: str = TUNE) -> Project:
    """Write a project whose trials take eight epochs."""
    lab.twin(trained.project, folder)
    text = (folder / "kit.toml").read_text()
    text = text.replace("pause_s = 0.03", f"pause_s = {pause_s}").replace(
        "epochs = 24\nbatch", "epochs = 8\nbatch"
    )
    (folder / "kit.toml").write_text(text + more)
    with (folder / "model.py").open("a") as code:
        code.write(MOODS)
    return Project.open(folder)


def ledger_of(project: Project) -> dict[int, dict[str, Any]]:
    files = sorted((project.state / "tune").glob("*/trials/*.json"))
    return {record["number"]: record for record in (json.loads(file.read_text()) for file in files)}


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def facts(result: TuneResult) -> list[tuple[Any, ...]]:
    return [
        (each.number, each.parameters, each.status, each.value, each.best_epoch) for each in result.trials
    ]


@pytest.fixture(scope="module")
def plain(lab: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, TuneResult]:
    """A study nobody disturbed."""
    project = make(lab, trained, tmp_path_factory.mktemp("plain") / "blobs", pause_s=0.02)
    left = project.state / "tune" / plan_study(project, settings(project)).identity / "trials" / "0009.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")  # by a removal that was killed
    return project, tune(project, settings(project))


def test_the_best_trials_best_weights_become_a_candidate_that_names_its_study(
    plain: tuple[Project, TuneResult],
) -> None:
    project, result = plain
    values = [each.value for each in result.trials]
    assert [each.status for each in result.trials] == ["finished"] * 4
    assert result.best.value == min(value for value in values if value is not None)
    losses = [each["validation_loss"] for each in result.best.epochs]
    assert losses[result.best.best_epoch - 1] == min(losses) == result.best.value
    _, version = project.open_version("blobs@candidate")
    lineage = version.manifest["lineage"]
    assert lineage["study"]["parameters"] == result.best.parameters
    assert lineage["train"]["learning_rate"] == result.best.parameters["learning_rate"]
    record = json.loads(result.record.read_bytes())
    assert (record["best"], record["version"], len(record["trials"])) == (result.best.number, 1, 4)
    assert sum(record["importance"].values()) == pytest.approx(1.0, abs=1e-3)
    study = project.state / "tune" / result.study
    assert sorted(each.name for each in study.iterdir()) in (
        ["study.json", "trials"],
        ["checkpoints", "study.json", "trials"],
    )
    assert not list(study.glob("checkpoints/*"))
    assert len(list(study.glob("trials/*"))) == 4, "what a killed removal had left is still there"


def test_a_study_whose_driver_and_worker_are_killed_ends_as_if_nothing_had_happened(
    lab: Any,
    trained: Any,
    plain: tuple[Project, TuneResult],
    tmp_path: Path,
    at: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    project = make(lab, trained, tmp_path / "blobs", pause_s=0.02)
    driver = lab.start(project, "tune", {})

    def one_ended_another_trains() -> bool:
        states = [each["status"] for each in ledger_of(project).values()]
        running = [number for number, each in ledger_of(project).items() if each["status"] == "running"]
        curves = [
            curve
            for number in running
            for curve in (project.state / "tune").glob(f"*/checkpoints/{number:04d}/curve.json")
        ]
        return driver.poll() is not None or ("finished" in states and bool(curves))

    lab.await_event(one_ended_another_trains)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=300)
    assert driver.returncode == -signal.SIGKILL
    before = ledger_of(project)
    lab.await_event(lambda: not lab.processes())

    killed: list[int] = []

    def kill_a_trial() -> None:
        for worker in lab.processes("ray::ImplicitFunc")[:1]:
            killed.append(worker.pid)
            worker.kill()

    at("finished", kill_a_trial)
    with caplog.at_level(logging.INFO, logger="kit"):
        result = tune(project, settings(project))
    assert killed
    assert said(caplog, "continuing the study")
    for number, trial in before.items():
        assert result.trials[number - 1].parameters == trial["parameters"]
        if trial["status"] == "finished":
            assert not said(caplog, f"trial {number} finished"), "it was run again"
    assert facts(result) == facts(plain[1])
    assert result.candidate.version.digest == plain[1].candidate.version.digest


@pytest.mark.parametrize(
    "space, error, message",
    [
        ("parameters]\npause = { uniform = [0.0, 0.1] }", ProjectError, "takes no parameter 'pause'"),
        ("parameters]\nmood = { integer = [1, 2] }", ProjectError, "takes no parameter 'mood'"),
        ("train]\nlearning_rat = { log = [1e-3, 1e-1] }", SettingsError, "'learning_rat' is not a key"),
    ],
)
def test_a_space_with_a_wrong_name_is_refused_before_ray_starts(
    lab: Any,
    trained: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    space: str,
    error: type[InputError],
    message: str,
) -> None:
    project = make(lab, trained, tmp_path / "blobs", more=f"[tune.space.{space}\n")
    with caplog.at_level(logging.INFO, logger="kit"), pytest.raises(error, match=message):
        tune(project, settings(project))
    assert not said(caplog, "starting Ray")


def test_two_checkouts_that_share_the_storage_do_not_write_one_study_together(
    lab: Any, trained: Any, tmp_path: Path
) -> None:
    one, other = (make(lab, trained, tmp_path / name / "blobs") for name in ("one", "other"))
    storage = str(tmp_path / "studies")
    plan = plan_study(one, settings(one, storage=storage))
    with alone(plan.lock_folder, plan.identity), pytest.raises(ConflictError, match="is going on already"):
        tune(other, settings(other, storage=storage))


class _Door(http.server.BaseHTTPRequestHandler):
    """Passes requests on to an S3, and refuses every write while it is shut."""

    protocol_version = "HTTP/1.1"
    target = ""
    shut = threading.Event()
    refused = 0

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _pass(self) -> None:
        body = self._body()
        if type(self).shut.is_set() and self.command in ("PUT", "POST"):
            type(self).refused += 1
            self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
            return
        dropped = ("transfer-encoding", "content-length", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        inner = http.client.HTTPConnection(urlsplit(self.target).netloc, timeout=30)
        inner.request(self.command, self.path, body=body, headers=headers)
        answer = inner.getresponse()
        content = answer.read()
        self._answer(answer.status, dict(answer.getheaders()), content)
        inner.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815  # names the server calls


@pytest.fixture
def door(s3_endpoint: str) -> Iterator[str]:
    """The address of an S3 that can be made to refuse writes."""
    _Door.target, _Door.refused = s3_endpoint, 0
    _Door.shut.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Door)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_study_on_an_s3_that_refuses_writes_for_a_while_loses_nothing(
    lab: Any,
    trained: Any,
    plain: tuple[Project, TuneResult],
    tmp_path: Path,
    door: str,
    s3_environment: pytest.MonkeyPatch,
    at: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import boto3

    s3_environment.setenv("AWS_ENDPOINT_URL", door)
    boto3.client("s3").create_bucket(Bucket="studies")
    project = make(lab, trained, tmp_path / "blobs", pause_s=0.02)

    def shut() -> None:
        _Door.shut.set()
        threading.Thread(target=open_again, daemon=True).start()

    def open_again() -> None:
        lab.await_event(lambda: _Door.refused > 2)
        _Door.shut.clear()

    at("trial 1 finished", shut)
    with caplog.at_level(logging.INFO, logger="kit"):
        result = tune(project, settings(project, storage="s3://studies/here"))
    assert _Door.refused > 2
    assert facts(result) == facts(plain[1])
    client = boto3.client("s3")
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="studies")["Contents"]]
    assert sorted(key.partition(result.study)[2] for key in keys if not key.endswith("/")) == [
        "/study.json",
        *(f"/trials/{number:04d}.json" for number in range(1, 5)),
    ]


def test_a_scheduler_stops_trials_and_optuna_learns_from_those_of_an_earlier_driver(
    lab: Any, trained: Any, tmp_path: Path, at: Any
) -> None:
    project = make(lab, trained, tmp_path / "blobs")
    chosen = {"search": "optuna", "scheduler": "asha", "grace_epochs": 2, "trials": 8, "concurrent": 1}

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    at("trial 3 ", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune(project, settings(project, **chosen))
    before = ledger_of(project)
    result = tune(project, settings(project, **chosen))
    assert len(result.trials) == 8
    assert "stopped" in {each.status for each in result.trials}
    assert all(result.trials[number - 1].parameters == each["parameters"] for number, each in before.items())
    rates = {each.parameters["learning_rate"] for each in result.trials}
    assert len(rates) == 8


def test_a_population_whose_driver_is_killed_goes_on_with_the_values_it_had_taken_over(
    lab: Any, trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = make(lab, trained, tmp_path / "blobs", pause_s=0.02)
    chosen = {"search": "pbt", "trials": 3, "perturb_epochs": 2}
    space = Space.of(settings(project).space)
    drawn = {number: space.sample(np.random.default_rng([0, number])) for number in (1, 2, 3)}
    driver = lab.start(project, "tune", chosen)

    def curves() -> list[Path]:
        return list((project.state / "tune").glob("*/checkpoints/*/curve.json"))

    def taken_over() -> dict[int, Any]:
        assert driver.poll() is None, "nobody took over anything"
        if len(curves()) < 3:  # the third may not have begun yet
            return {}
        now = {number: each["parameters"] for number, each in ledger_of(project).items()}
        return {number: values for number, values in now.items() if values != drawn[number]}

    changed = lab.await_event(taken_over)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=300)
    lab.await_event(lambda: not lab.processes())
    begun = {json.loads(curve.read_text())[0]["train_loss"] for curve in curves()}
    with caplog.at_level(logging.INFO, logger="kit"):
        result = tune(project, settings(project, **chosen))
    assert said(caplog, "continuing the study")
    assert [each.status for each in result.trials] == ["finished"] * 3
    assert [len(each.epochs) for each in result.trials] == [8] * 3
    assert {each.epochs[0]["train_loss"] for each in result.trials} <= begun, "one began anew"
    assert all(result.trials[number - 1].parameters != drawn[number] for number in changed)
    written = {number: each["parameters"] for number, each in ledger_of(project).items()}
    assert written == {each.number: each.parameters for each in result.trials}


@pytest.fixture(scope="module")
def shared_ray(trained: Any) -> Iterator[str]:
    """The address of a Ray of two CPUs which the tests from here on join; those above have one each."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(local_ray.OPTIONS, "num_cpus", 2)
        with connected(None, project=trained.project):
            yield ray.get_runtime_context().gcs_address


#: A driver that holds room on a Ray until its input ends.
HOLDER = """
import sys, ray
from jobs.cluster import show_token
from ray.util.placement_group import placement_group

show_token()
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
group = placement_group([{"CPU": 1}])
assert group.wait(300)
print(group.id.hex(), flush=True)
sys.stdin.read()
"""


def test_room_of_a_killed_trial_is_freed_and_that_of_another_driver_is_not(shared_ray: str) -> None:
    from ray.util import placement_group, placement_group_table, remove_placement_group

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, shared_ray],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    theirs = holder.stdout.readline().strip()
    ours, tunes = placement_group([{"CPU": 1}]), placement_group([{"CPU": 0.0, "memory": 1.0}])
    assert tunes.wait(300)
    _free_room()
    states = {
        each: placement_group_table()[each]["state"] for each in (theirs, ours.id.hex(), tunes.id.hex())
    }
    remove_placement_group(tunes)
    holder.communicate(timeout=300)
    assert list(states.values()) == ["CREATED", "REMOVED", "CREATED"]


def test_a_trial_that_crashes_diverges_dies_takes_all_memory_or_is_no_graph_fails_and_the_study_goes_on(
    lab: Any, trained: Any, tmp_path: Path, shared_ray: str
) -> None:
    moods = ["crashes", "diverges", "takes all", "dies", "stubborn", "good"]  # the last two learn alike
    space = f"[tune]\nsearch = 'grid'\n[tune.space.parameters]\nmood = {{ choice = {moods} }}\n"
    project = make(lab, trained, tmp_path / "blobs", more=space)
    path = project.folder / "kit.toml"
    path.write_text(path.read_text().replace("model:build", "model:moody"))
    project = Project.open(project.folder)
    result = tune(project, settings(project))
    reasons = {each.parameters["mood"]: each.reason for each in result.trials if each.status == "failed"}
    assert reasons["crashes"] == "KeyError: 'no such row'"
    assert "the loss of epoch 1 is not finite" in reasons["diverges"]
    assert reasons["takes all"] == "memory ran out while training with batch_size = 32"
    assert reasons["dies"] == "its process was killed 4 times"
    assert reasons["stubborn"].startswith("it cannot be exported: "), reasons
    assert result.best.parameters == {"mood": "good"}
    stubborn = next(each for each in result.trials if each.parameters["mood"] == "stubborn")
    assert stubborn.value == result.best.value
    record = json.loads(result.record.read_bytes())
    assert [each["reason"] for each in record["trials"]] == [each.reason for each in result.trials]

    path.write_text(path.read_text().replace(str(moods), "['crashes']"))
    project = Project.open(project.folder)
    with pytest.raises(InputError, match=r"none of 1 trials has worked: KeyError: 'no such row'"):
        tune(project, settings(project))


@contextmanager
def terminal(patch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Make standard error a terminal; gives the pieces it was sent, all of them after the block."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end was closed
            while piece := os.read(ours, 1 << 16):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w") as stream:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        yield shown
        patch.undo()
    reader.join(timeout=10)
    os.close(ours)


@pytest.fixture(scope="module")
def forest(
    lab: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory, shared_ray: str
) -> tuple[str, TuneResult, str]:
    """A study of an estimator that MLflow was told of, and what a terminal showed of it."""
    space = """
[tune]
search = "grid"
metric = "accuracy"
[tune.space.parameters]
max_depth = { choice = [1, 8] }
"""
    folder = tmp_path_factory.mktemp("forest") / "blobs"
    make(lab, trained, folder, more=space)
    path = folder / "kit.toml"
    model = 'factory = "model:build"\nparameters = { pause_s = 0.0 }'
    assert model in path.read_text()
    forest = 'estimator = "sklearn.ensemble:RandomForestClassifier"\nparameters = { n_estimators = 5 }'
    text = path.read_text().replace(model, forest)
    begin = text.index("[train]")
    end = text.index("\n[", begin)
    path.write_text(text[:begin] + "[train]\ngolden_rows = 4\n" + text[end:])
    project = Project.open(folder)
    with pytest.MonkeyPatch.context() as patch, terminal(patch) as shown:
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        result = tune(project, settings(project))
    return uri, result, b"".join(shown).decode()


def test_an_estimator_is_tuned_and_the_best_one_becomes_the_candidate(
    forest: tuple[str, TuneResult, str],
) -> None:
    _, result, _ = forest
    assert [each.status for each in result.trials] == ["finished"] * 2
    assert result.best.value == max(each.value or 0.0 for each in result.trials)
    assert result.mode == "max"
    assert result.candidate.version.number == 1


def test_mlflow_is_told_of_every_trial_and_of_the_version(forest: tuple[str, TuneResult, str]) -> None:
    from mlflow.tracking import MlflowClient

    uri, _, _ = forest
    client = MlflowClient(uri, registry_uri=uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    depths = {run.data.params["max_depth"] for run in runs if "max_depth" in run.data.params}
    assert depths == {"1", "8"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(client.search_model_versions("name = 'blobs'")) == 1


def test_a_terminal_shows_a_table_of_the_trials_while_they_run(forest: tuple[str, TuneResult, str]) -> None:
    *_, shown = forest
    assert "1 running" in shown or "2 running" in shown
    assert "2 of 2 trials ended, 0 running" in shown
    assert "max_depth" in shown


def test_trials_of_two_workers_run_after_one_that_was_stopped(
    lab: Any, trained: Any, tmp_path: Path, shared_ray: str
) -> None:
    space = """
[tune]
search = "grid"
grace_epochs = 1
reduction_factor = 2
[tune.space.train]
learning_rate = { choice = [0.03, 1e-6, 0.02] }
"""
    project = make(lab, trained, tmp_path / "blobs", more=space)
    path = project.folder / "kit.toml"
    weights = "class_weights = { red = 1.0, green = 2.0, blue = 1.0 }\nworkers = 2\n"
    path.write_text(path.read_text().replace("epochs = 8\n", f"epochs = 3\n{weights}"))
    project = Project.open(project.folder)
    with pytest.raises(InputError, match="a trial needs 3 CPUs"):
        tune(project, settings(project))
    # On a cluster, which may grow, a trial that waits for its workers takes none of their room.
    chosen = settings(project, address=shared_ray, concurrent=1)
    assert work_of(plan_study(project, chosen)).train.address == shared_ray
    result = tune(project, chosen)
    assert [each.status for each in result.trials] == ["finished", "stopped", "stopped"], result.trials
    assert [len(each.epochs) for each in result.trials] == [3, 1, 2], "one was trained on"
    assert result.best.parameters == {"learning_rate": 0.03}


def test_a_time_budget_ends_trials_and_what_they_reached_counts(
    lab: Any, trained: Any, tmp_path: Path, shared_ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(lab, trained, tmp_path / "blobs", pause_s=0.05)
    path = project.folder / "kit.toml"
    path.write_text(
        path.read_text().replace("epochs = 8\nbatch", "epochs = 5000\nbatch").replace("= 24", "= 5000")
    )
    project = Project.open(project.folder)

    class Clock:
        """Tells Ray Tune that an hour has passed once a trial has told of a hundred epochs."""

        @staticmethod
        def time() -> float:
            curves = (project.state / "tune").glob("*/checkpoints/*/curve.json")
            told = any(len(json.loads(each.read_bytes())) >= 100 for each in curves)
            return time.time() + 3600.0 * told

    monkeypatch.setattr("ray.tune.stopper.timeout.time", Clock)
    result = tune(project, settings(project, trials=2, time_budget_s=3600.0))
    assert {each.status for each in result.trials} <= {"stopped", "failed"}
    assert result.best.status == "stopped"
    assert result.best.reason == "the time budget was spent"
    assert result.candidate.version.number == 1
