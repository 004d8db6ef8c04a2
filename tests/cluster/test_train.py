"""Training on a real local Ray: what survives a kill, and what is refused at once."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.memory import OutOfMemoryError
from jobs.fitting.network import build_network
from jobs.fitting.workers import fit_on_workers
from jobs.preparation.prepared import prepare_rows
from jobs.train import train
from kit.errors import GateError, InputError, UnavailableError
from kit.gates import GateResult
from kit.project import Project
from kit.settings import TrainSettings

pytestmark = pytest.mark.timeout(480)


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
    lab: Any, trained: Any, one_ray: None, tmp_path: Path, at: Any, caplog: pytest.LogCaptureFixture
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
        _, said = driver.communicate(timeout=60)
        assert driver.returncode == -number
        if number == signal.SIGINT:
            assert said.rstrip().endswith("KeyboardInterrupt"), said
        else:  # Ray's agents ask a dead Ray for a minute before they go
            started = [each for each in started if "Agent" not in names[each.pid]]
        assert psutil.wait_procs(started, timeout=30)[1] == []
    assert project.registry().versions() == []

    killed: list[int] = []

    def kill_the_worker() -> None:
        for worker in lab.processes("RayTrainWorker"):
            killed.append(worker.pid)
            worker.kill()

    at("epoch", kill_the_worker)
    with caplog.at_level(logging.INFO, logger="kit"):
        result = train(project, settings(project))
    assert killed
    assert 1 not in epochs_shown(caplog)
    assert epochs_shown(caplog)[-1] == 24
    assert [each.epoch for each in result.epochs] == list(range(1, 25))
    assert result.candidate.version.digest == trained.result.candidate.version.digest
    signatures = [
        (each.store().fetch(result.candidate.version.digest) / "model.sig").read_bytes()
        for each in (project, trained.project)
    ]
    assert signatures[0] == signatures[1]


def test_a_training_that_diverges_is_refused_once_in_one_sentence(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path
) -> None:
    project = with_parameters(lab.twin(trained.project, tmp_path / "blobs"), "{ pause_s = 0.0, bad = true }")
    workers = lab.count_builds(project)
    with pytest.raises(InputError, match="the loss of epoch 1 is not finite") as caught:
        train(project, settings(project))
    assert "learning_rate" in str(caught.value.hint)
    assert workers() == 1
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


def fit_two(project: Project, storage: Path, *, hear: Any, may_stop: bool) -> Fitted:
    prepared = prepare_rows(project)
    chosen = settings(project, workers=2, epochs=300, patience_epochs=300)
    return fit_on_workers(
        project,
        chosen,
        prepared.arrays,
        fit=FitConfig.of(chosen, project=project, n_classes=3),
        build=partial(build_network, n_features=prepared.n_features, n_classes=3),
        storage=storage,
        identity="two",
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

    project = lab.twin(trained.project, tmp_path / "blobs")
    fitted = fit_two(project, tmp_path, hear=hear, may_stop=True)
    assert heard == [1, 2] == [each.epoch for each in fitted.epochs]


def test_an_error_of_who_hears_stops_the_workers_and_is_raised(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path
) -> None:
    heard: list[int] = []

    def hear(figures: dict[str, Any]) -> None:
        heard.append(figures["epoch"])
        if len(heard) == 2:
            raise UnavailableError("the ledger does not answer")

    project = lab.twin(trained.project, tmp_path / "blobs")
    with pytest.raises(UnavailableError, match="the ledger does not answer"):
        fit_two(project, tmp_path, hear=hear, may_stop=False)
    assert heard == [1, 2]
    (kept,) = (tmp_path / "two").rglob("progress.json")
    assert 2 <= len(json.loads(kept.read_text())["epochs"]) < 10


def test_a_training_without_memory_says_so_and_goes_on_in_smaller_batches_when_it_may(
    lab: Any, trained: Any, one_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    greedy = "{ pause_s = 0.0, greedy = true }"
    project = with_parameters(lab.twin(trained.project, tmp_path / "blobs"), greedy)
    with pytest.raises(OutOfMemoryError, match="batch_size = 16") as caught:
        train(project, settings(project, batch_size=16, epochs=3))
    assert "--auto-batch" in str(caught.value.hint)
    with caplog.at_level(logging.INFO, logger="kit"):
        result = train(project, settings(project, batch_size=16, epochs=3, auto_batch=True))
    assert "continuing the interrupted run" in caplog.text
    assert "batch_size = 16; going on with 8" in caplog.text
    used = json.loads(result.record.read_bytes())["used"]
    assert used["batch_size"] * used["accumulation_steps"] == 16
    assert used["batch_size"] in (4, 8)  # 4 where 8 GiB are not promised either


def test_more_workers_than_cpus_are_refused(trained: Any, one_ray: None) -> None:
    with pytest.raises(InputError, match="workers = 1000, but this machine has"):
        train(trained.project, settings(trained.project, workers=1000))


def test_a_candidate_that_misses_a_gate_is_registered_but_not_promoted(trained: Any) -> None:
    made = trained.result.candidate
    missed = replace(made, gates=(GateResult("accuracy", 0.5, 0.9, passed=False),), promoted=False)
    with pytest.raises(GateError, match=r"blobs@1 was not promoted: accuracy is 0\.5000, the gate 0\.9"):
        missed.require_passed()
    replace(missed, wanted=False).require_passed()
    trained.result.require_passed()
