"""Fitting without Ray: what is found again after a kill, what memory allows, what seeds decide."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from jobs.fitting.checkpoint import newest, take_up
from jobs.fitting.local import fit_here
from jobs.fitting.loop import BEST, PROGRESS, WEIGHTS, FitConfig, Fitted, read_used
from jobs.fitting.memory import OutOfMemoryError, compute_twice
from jobs.fitting.network import has_idle_weights
from jobs.fitting.trainer import Trainer
from jobs.fitting.workers import refusal_for, with_room
from jobs.train import train
from kit.errors import ConflictError, ProjectError
from kit.keypair import generate_key
from kit.project import Project
from kit.settings import TrainSettings

NOWHERE: Any = None  # a project that the factories of this file do not ask


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def config(**changes: Any) -> FitConfig:
    values = {
        "folder": "nowhere",
        "n_classes": 2,
        "epochs": 5,
        "batch_size": 16,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "patience_epochs": 6,
        "seed": 0,
        "threads": 1,
    }
    return FitConfig(**{**values, **changes})


def arrays(n_rows: int = 48) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n_rows + 10, 2)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(np.int64)
    return {"train_x": x[:-10], "train_y": y[:-10], "validation_x": x[-10:], "validation_y": y[-10:]}


def linear(project: Project) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(2, 2))


def fit(
    *, chosen: FitConfig | None = None, build: Any = linear, hear: Any = lambda figures: None, **more: Any
) -> Fitted:
    return fit_here(NOWHERE, chosen or config(), arrays(), build=build, hear=hear, **more)


def weights(fitted: Fitted) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in fitted.model.state_dict().items()}


def kill_at(epoch: int, heard: list[int]) -> Callable[[dict[str, Any]], None]:
    def hear(figures: dict[str, Any]) -> None:
        if figures["epoch"] == epoch:
            raise Killed
        heard.append(figures["epoch"])

    return hear


def test_an_epoch_whose_checkpoint_was_kept_before_it_was_told_is_told_after_a_kill(tmp_path: Path) -> None:
    heard: list[int] = []
    with pytest.raises(Killed):
        fit(hear=kill_at(3, heard), folder=tmp_path, interval_s=0.0)
    tell = lambda figures: heard.append(figures["epoch"])  # noqa: E731 (one line says it)
    again = fit(hear=tell, folder=tmp_path, interval_s=0.0, told=2)
    assert heard == [1, 2, 3, 4, 5]
    assert weights(again) == weights(fit())
    fit(hear=tell, folder=tmp_path, interval_s=0.0, told=5)
    assert heard == [1, 2, 3, 4, 5], "all of them were told"


class Bounded(torch.nn.Linear):
    """Has memory for so many rows, and counts those of every step."""

    limit = 8
    sizes: list[int]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.sizes.append(len(x))
            if len(x) > self.limit:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().forward(x)


def bounded(project: Project, *, sizes: list[int]) -> torch.nn.Module:
    network = Bounded(2, 2)
    network.sizes = sizes
    return network


def test_a_batch_that_did_not_fit_is_not_tried_again_by_the_next_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []
    chosen = config(batch_size=64, auto_batch=True)
    build = partial(bounded, sizes=sizes)
    with caplog.at_level(logging.INFO, logger="kit"), pytest.raises(Killed):
        fit(chosen=chosen, build=build, hear=kill_at(3, []), folder=tmp_path, interval_s=0.0)
    assert set(sizes) == {48, 24, 16, 8}
    assert "batch_size = 64; going on with batch_size = 32" in caplog.text
    sizes.clear()
    caplog.clear()
    Bounded.limit = 4  # the machine has less memory by now
    try:
        with caplog.at_level(logging.INFO, logger="kit"):
            fitted = fit(chosen=chosen, build=build, folder=tmp_path, interval_s=0.0)
    finally:
        Bounded.limit = 8
    assert set(sizes) == {8, 4}
    assert "batch_size = 8; going on with batch_size = 4" in caplog.text
    assert (fitted.used["batch_size"], fitted.used["accumulation_steps"]) == (4, 16)
    (kept,) = (each for each in tmp_path.iterdir() if each.is_dir())
    assert read_used(kept) == fitted.used


def test_without_auto_batch_the_batch_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    build = partial(bounded, sizes=[])
    with pytest.raises(Killed):
        fit(chosen=config(auto_batch=True), build=build, hear=kill_at(2, []), folder=tmp_path, interval_s=0.0)
    with pytest.raises(OutOfMemoryError, match="batch_size = 16") as caught:
        fit(chosen=config(), build=build, folder=tmp_path, interval_s=0.0)
    assert "--auto-batch" in str(caught.value.hint)


def test_workers_try_smaller_batches_from_the_one_that_was_tried_last(tmp_path: Path) -> None:
    tried: list[int] = []

    def run(given: FitConfig, *, room: int) -> Path:
        tried.append(given.batch_size)
        if given.batch_size > room:
            raise RuntimeError("the worker was killed: running low on memory")  # what Ray's monitor says
        return tmp_path

    chosen = config(batch_size=64, auto_batch=True)
    with_room(partial(run, room=16), chosen, folder=tmp_path / "run")
    with_room(partial(run, room=8), chosen, folder=tmp_path / "run")
    assert tried == [64, 32, 16, 16, 8]
    with pytest.raises(OutOfMemoryError, match="batch_size = 64"):
        with_room(partial(run, room=8), config(batch_size=64), folder=tmp_path / "run")


def drawn(project: Project) -> torch.nn.Module:
    """Draw weights from numpy and from Python, as factories do that were written for another library."""
    network = torch.nn.Linear(2, 2)
    network.weight.data = torch.from_numpy(np.random.normal(size=(2, 2)).astype(np.float32))
    network.bias.data.fill_(random.random())
    return network


def test_equal_runs_have_equal_weights_whatever_generator_a_factory_draws_from() -> None:
    np.random.seed(1)
    random.seed(1)
    first = fit(build=drawn)
    after = np.random.random(), random.random()
    second = fit(build=drawn)
    assert weights(first) == weights(second)
    np.random.seed(1)
    random.seed(1)
    assert after == (np.random.random(), random.random()), "the caller's own generators were moved"


class Noisy(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (np.random.normal() + random.random() if self.training else 0.0)


def test_a_resumed_training_draws_what_the_undisturbed_one_draws(tmp_path: Path) -> None:
    def build(project: Project) -> torch.nn.Module:
        return Noisy(2, 2)

    with pytest.raises(Killed):
        fit(build=build, hear=kill_at(3, []), folder=tmp_path, interval_s=0.0)
    again = fit(build=build, folder=tmp_path, interval_s=0.0)
    assert weights(again) == weights(fit(build=build))


def keep(folder: Path, *, epochs: int) -> Path:
    """Write a checkpoint after so many epochs."""
    each = Trainer(
        linear(NOWHERE), config(epochs=epochs), arrays(), device=torch.device("cpu"), rank=0, world=1
    )
    folder.mkdir(parents=True)
    each.run(hear=lambda figures: None, keep=lambda: each.save(folder), interval_s=3600.0)
    return folder


def test_the_checkpoint_to_go_on_from_is_the_furthest_that_is_whole(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert take_up(tmp_path / "missing") is None
    second = keep(tmp_path / "checkpoint_b", epochs=2)
    keep(tmp_path / "checkpoint_c", epochs=1)
    assert newest(tmp_path) == second
    for name in (PROGRESS, WEIGHTS, BEST):
        cut = keep(tmp_path / f"checkpoint_without_{name}", epochs=3) / name
        cut.write_bytes(cut.read_bytes()[:-20])
        assert newest(tmp_path) == second, f"{name} was cut short"
    (tmp_path / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.')
    assert take_up(tmp_path) == second
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint_b"]


class Aside(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.aside = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(self.used(x))


def test_weights_without_a_gradient_are_found_and_nothing_is_changed_by_looking() -> None:
    rows, network = arrays()["train_x"][:2], Aside()
    before = json.dumps({name: value.tolist() for name, value in network.state_dict().items()})
    assert has_idle_weights(network, rows)
    assert before == json.dumps({name: value.tolist() for name, value in network.state_dict().items()})
    for each in network.aside.parameters():
        each.requires_grad_(False)
    assert not has_idle_weights(network, rows)
    assert not has_idle_weights(linear(NOWHERE), rows)


class Fickle(Aside):
    def forward(self, x: torch.Tensor) -> Any:
        return (self.used if float(x.detach().sum()) > 0 else self.aside)(x)


def test_weights_that_only_some_rows_need_are_refused_in_a_sentence_where_workers_average(
    tmp_path: Path,
) -> None:
    distributed: Any = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        network = torch.nn.parallel.DistributedDataParallel(Fickle())
        each = Trainer(network, config(), arrays(), device=torch.device("cpu"), rank=0, world=1)
        with pytest.raises(RuntimeError) as caught:
            each.run(hear=lambda figures: None, keep=lambda: None, interval_s=3600.0)
    finally:
        distributed.destroy_process_group()
    refusal = refusal_for(caught.value, config())
    assert refusal is not None
    assert "uses other weights for some rows" in refusal.message
    assert refusal_for(ValueError("a typing error of the project"), config()) is None


class Counting(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("n_calls", torch.zeros(()))


def test_layers_that_cannot_be_computed_twice_are_named() -> None:
    layers = torch.nn.BatchNorm1d(2), Counting(), Counting()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Sequential(*layers))
    with pytest.raises(ProjectError, match=r"what these layers keep: 1\.1\.n_calls, 1\.2\.n_calls"):
        compute_twice(network)
    with pytest.raises(ProjectError, match="no stretch of layers"):
        compute_twice(torch.nn.Linear(2, 2))


KIT_TOML = """
[project]
name = "line"

[data]
path = "rows.parquet"
label = "side"
inputs = [{ name = "x", columns = ["a", "b"] }]

[model]
estimator = "sklearn.linear_model:LogisticRegression"
"""


class Once(logging.Handler):
    """Does something the first time the kit says that it exports."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self.action: Callable[[], object] | None = action

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("exporting") and self.action is not None:
            action, self.action = self.action, None
            action()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "kit.toml").write_text(KIT_TOML)
    x = np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    sides = np.where(x.sum(axis=1) > 0, "right", "left").tolist()
    parquet.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "side": sides}), tmp_path / "rows.parquet")
    opened = Project.open(tmp_path)
    generate_key(opened.signing_key_path())
    return opened


@pytest.fixture
def on_export() -> Any:
    logger = logging.getLogger("kit")
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.INFO)
    yield lambda action: logger.addHandler(Once(action))
    logger.setLevel(level)
    logger.handlers = handlers


def test_python_that_was_changed_during_the_training_is_not_signed_as_what_trained(
    project: Project, on_export: Any
) -> None:
    on_export(lambda: (project.folder / "model.py").write_text("changed = True\n"))
    with pytest.raises(ConflictError, match="Python was changed while the model was trained"):
        train(project, project.command("train", TrainSettings, {}))
    assert project.registry().versions() == []
    train(project, project.command("train", TrainSettings, {}))
    assert len(project.registry().versions()) == 1


def test_what_was_learned_is_removed_only_after_mlflow_has_heard_of_the_version(
    project: Project, on_export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    learned: list[Path] = []

    def keep_something() -> None:  # what a network leaves there
        (lock,) = (project.state / "train").glob("*.lock")
        learned.append(lock.with_suffix(""))
        learned[0].mkdir()

    def kill(*given: Any, **named: Any) -> None:
        raise Killed

    on_export(keep_something)
    monkeypatch.setattr(mlflow.MlflowClient, "create_model_version", kill)
    with pytest.raises(Killed):
        train(project, project.command("train", TrainSettings, {}))
    assert learned[0].is_dir()
