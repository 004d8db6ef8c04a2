"""Training on a real local Ray: what survives a kill, and what is refused at once."""

from __future__ import annotations

import json
import logging
import signal
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jobs.fitting import listening as listening_module
from jobs.fitting.listening import listening, refused
from jobs.fitting.loop import BEST, PROGRESS, WEIGHTS, FitConfig, Fitted, Progress
from jobs.fitting.network import build_network
from jobs.fitting.workers import fit_on_workers
from jobs.preparation.prepared import prepare_rows
from jobs.train import train
from kit.errors import GateError, InputError, UnavailableError
from kit.gates import GateResult
from kit.project import Project
from kit.settings import TrainSettings


def settings(project: Project, **flags: Any) -> TrainSettings:
    return project.command("train", TrainSettings, flags)


def checkpoints(project: Project) -> set[Path]:
    return set((project.state / "train").rglob("progress.json"))


def epochs_shown(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [
        int(record.getMessage().split(":")[0].removeprefix("epoch "))
        for record in caplog.records
        if record.getMessage().startswith("epoch ")
    ]


def with_parameters(project: Project, parameters: str) -> Project:
    path = project.folder / "kit.toml"
    path.write_text(path.read_text().replace("{ pause_s = 0.03 }", parameters))
    return Project.open(project.folder)


def test_training_registers_a_candidate_that_has_learnt_and_leaves_no_checkpoints(trained: Any) -> None:
    result = trained.result
    assert trained.project.registry().resolve("blobs@candidate").digest == result.candidate.version.digest
    assert trained.project.registry().resolve("blobs@champion").digest == result.candidate.version.digest
    assert result.candidate.metrics["accuracy"] > 0.8
    assert len(result.epochs) == 24
    assert not list((trained.project.state / "train").iterdir())
    record = json.loads(result.record.read_bytes())
    assert record["digest"] == result.candidate.version.digest
    assert len(record["epochs"]) == 24


def test_a_training_stopped_and_killed_on_the_way_ends_with_the_same_bytes(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = lab.twin(trained.project, tmp_path / "blobs")
    for number in (signal.SIGINT, signal.SIGKILL):
        before = checkpoints(project)
        driver = lab.start(project, "train", {"checkpoint_interval_s": 0.5})
        lab.await_event(
            lambda known=before, running=driver: checkpoints(project) - known or running.poll() is not None
        )
        started = lab.processes(of=driver.pid)
        names = {each.pid: each.name() for each in started}
        assert started
        driver.send_signal(number)
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == -number
        if number == signal.SIGINT:
            assert said.rstrip().endswith("KeyboardInterrupt"), said
        else:  # Ray's agents ask a dead Ray for a minute before they go
            started = [each for each in started if "Agent" not in names[each.pid]]
        assert psutil.wait_procs(started, timeout=120)[1] == []
    assert project.registry().versions() == []

    (snapshot,) = (project.state / "train").rglob("checkpoint_manager_snapshot.json")
    snapshot.write_bytes(snapshot.read_bytes()[:100])  # Ray rewrites it in place, so a kill can leave this
    with (
        caplog.at_level(logging.INFO, logger="kit"),
        pytest.raises(GateError, match="tolerance 1e-12"),
    ):
        train(project, settings(project, parity_tolerance=1e-12))
    assert "continuing the interrupted run" in caplog.text
    assert 1 not in epochs_shown(caplog)
    assert epochs_shown(caplog)[-1] == 24

    caplog.clear()
    with caplog.at_level(logging.INFO, logger="kit"):
        result = train(project, settings(project))
    assert epochs_shown(caplog) == [], "what was learned is exported with another tolerance"
    assert [each.epoch for each in result.epochs] == list(range(1, 25))
    assert result.candidate.version.digest == trained.result.candidate.version.digest
    signatures = [
        (each.store().fetch(result.candidate.version.digest) / "model.sig").read_bytes()
        for each in (project, trained.project)
    ]
    assert signatures[0] == signatures[1]


def test_a_training_without_memory_goes_on_in_smaller_batches_and_one_that_diverges_is_refused_once(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = "{ pause_s = 0.0, greedy = true, bad = true }"
    project = with_parameters(lab.twin(trained.project, tmp_path / "blobs"), bad)
    workers = lab.count_builds(project)
    with (
        caplog.at_level(logging.INFO, logger="kit"),
        pytest.raises(InputError, match="the loss of epoch 1 is not finite") as caught,
    ):
        train(project, settings(project, batch_size=16, auto_batch=True))
    assert "batch_size = 16; going on with 8" in caplog.text
    assert "learning_rate" in str(caught.value.hint)
    assert workers() == 2  # one for each size
    assert project.registry().versions() == []
    assert not list((project.state / "train").iterdir())


def test_two_workers_decide_alike_and_end_with_the_same_bytes_when_one_is_killed(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path, at: Any
) -> None:
    made = {}
    for name, expected in (("whole", 2), ("killed", 4)):
        project = lab.twin(trained.project, tmp_path / name)
        workers = lab.count_builds(project)
        if name == "killed":
            at("epoch 4:", lambda: lab.processes("RayTrainWorker")[0].kill())
        chosen = settings(project, workers=2, patience_epochs=3, epochs=60, checkpoint_interval_s=0.3)
        made[name] = train(project, chosen)
        assert workers() == expected
    whole = made["whole"]
    assert len(whole.epochs) == whole.best_epoch + 3
    assert whole.candidate.metrics["accuracy"] > 0.8
    assert made["killed"].candidate.version.digest == whole.candidate.version.digest


def fit(project: Project, storage: Path, *, hear: Any, workers: int, may_stop: bool = False) -> Fitted:
    prepared = prepare_rows(project)
    chosen = settings(project, workers=workers, epochs=300, patience_epochs=300)
    return fit_on_workers(
        project,
        chosen,
        prepared.arrays,
        fit=FitConfig.of(chosen, project=project, n_classes=3),
        build=partial(build_network, n_features=prepared.n_features, n_classes=3),
        storage=storage,
        identity="run",
        hear=hear,
        may_stop=may_stop,
    )


def test_two_workers_train_no_further_than_the_epoch_after_which_they_are_to_stop(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path
) -> None:
    heard: list[int] = []

    def hear(figures: dict[str, Any]) -> bool:
        heard.append(figures["epoch"])
        return len(heard) < 2

    aside = "{ pause_s = 0.03, aside = true }"  # weights without a gradient stop nobody
    project = with_parameters(lab.twin(trained.project, tmp_path / "blobs"), aside)
    fitted = fit(project, tmp_path, hear=hear, workers=2, may_stop=True)
    assert heard == [1, 2] == [each.epoch for each in fitted.epochs]


def test_an_error_of_who_hears_stops_the_worker_and_is_raised(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path
) -> None:
    heard: list[int] = []
    idle: list[psutil.Process] = []  # what Ray Train starts for who has Ray Datasets or a Ray of others

    def hear(figures: dict[str, Any]) -> None:
        heard.append(figures["epoch"])
        for title in ("DatasetManager", "PlacementGroupCleaner"):
            idle.extend(lab.processes(f"ray::{title}"))
        if len(heard) == 2:
            raise UnavailableError("the ledger does not answer")

    project = lab.twin(trained.project, tmp_path / "blobs")
    with pytest.raises(UnavailableError, match="the ledger does not answer"):
        fit(project, tmp_path, hear=hear, workers=1)
    assert heard == [1, 2]
    assert idle == []
    (kept,) = (tmp_path / "run").rglob("progress.json")
    assert 2 <= len(json.loads(kept.read_text())["epochs"]) < 10


def test_more_workers_than_cpus_are_refused_and_what_was_learned_stays(
    trained: Any, one_ray: None, tmp_path: Path
) -> None:
    learned = tmp_path / "run" / "checkpoint_1"
    learned.mkdir(parents=True)
    (learned / PROGRESS).write_text(json.dumps(asdict(Progress())))
    for name in (WEIGHTS, BEST):
        torch.save({}, learned / name)
    with pytest.raises(InputError, match="workers = 1000, but this machine has"):
        fit(trained.project, tmp_path, hear=None, workers=1000)
    assert learned.is_dir()


def figures_of(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1.0, "validation_loss": 1.0}


def test_whoever_hears_slowly_hears_of_every_epoch(
    one_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    monkeypatch.setattr(listening_module, "_SAY_AFTER_S", 0.05)
    heard: list[int] = []
    slow = threading.Event()  # never set: each epoch takes as long to tell as a slow tracking server does

    def hear(figures: dict[str, Any]) -> None:
        slow.wait(0.05)
        heard.append(figures["epoch"])

    with caplog.at_level(logging.INFO, logger="kit"), listening(hear) as listener:
        for epoch in range(1, 11):
            ray.get(listener.hear.remote(figures_of(epoch)))
    assert heard == list(range(1, 11))
    assert "waiting until its last epochs are told" in caplog.text


def test_a_listener_that_dies_stops_nobody(one_ray: None) -> None:
    import ray

    heard: list[int] = []
    with (
        listening(lambda figures: heard.append(figures["epoch"])) as listener,
        refused(listener),
    ):
        ray.get(listener.hear.remote(figures_of(1), wait=True))
        ray.kill(listener)
    assert heard == [1]


def test_the_error_of_a_training_is_raised_although_its_listener_is_dead(one_ray: None) -> None:
    import ray

    def train_without_listener() -> None:
        with listening() as listener, refused(listener):
            ray.kill(listener)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_without_listener()


def test_a_candidate_that_misses_a_gate_is_registered_but_not_promoted(trained: Any) -> None:
    made = trained.result.candidate
    missed = replace(made, gates=(GateResult("accuracy", 0.5, 0.9, passed=False),), promoted=False)
    with pytest.raises(GateError, match=r"blobs@1 was not promoted: accuracy is 0\.5000, the gate 0\.9"):
        missed.require_passed()
    replace(missed, wanted=False).require_passed()
    trained.result.require_passed()
