"""The training loop without Ray: what it does to weights, and what a factory may not do."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from jobs.alone import alone
from jobs.cluster import is_disk_full
from jobs.fitting.loop import WEIGHTS, FitConfig
from jobs.fitting.network import build_network, check_network
from jobs.fitting.trainer import Trainer
from jobs.train import train
from kit.errors import ConflictError, InputError, ProjectError, SettingsError
from kit.init import init
from kit.keypair import generate_key
from kit.project import Project
from kit.settings import InitSettings, TrainSettings

KIT_TOML = """
[project]
name = "line"

[data]
path = "rows.parquet"
label = "side"
inputs = [{ name = "x", columns = ["a", "b"] }]

[model]
factory = "model:build"
parameters = { %s }
"""


def config(**changes: Any) -> FitConfig:
    values = {
        "folder": "nowhere",
        "n_classes": 2,
        "epochs": 6,
        "batch_size": 8,
        "learning_rate": 0.05,
        "weight_decay": 0.0,
        "patience_epochs": 6,
        "seed": 0,
        "threads": 1,
    }
    return FitConfig(**{**values, **changes})


def arrays(n_rows: int = 50) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n_rows + 10, 2)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(np.int64)
    return {"train_x": x[:-10], "train_y": y[:-10], "validation_x": x[-10:], "validation_y": y[-10:]}


def trainer(*, chosen: FitConfig | None = None, network: Any = None, n_rows: int = 50) -> Trainer:
    torch.manual_seed(0)
    network = network or torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(2, 2))
    return Trainer(network, chosen or config(), arrays(n_rows), device=torch.device("cpu"), rank=0, world=1)


def run(each: Trainer, folder: Path, *, interval_s: float = 3600.0) -> tuple[list[int], list[int]]:
    """Run a trainer that checkpoints into a folder.

    Returns:
        The epochs that were heard, and those after which it was kept.
    """
    heard: list[int] = []
    kept: list[int] = []

    def keep() -> None:
        kept.append(len(each.progress.epochs))
        each.save(folder)

    each.run(hear=lambda figures: heard.append(figures["epoch"]), keep=keep, interval_s=interval_s)
    return heard, kept


def weights(each: Trainer) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in each.best.items()}


def test_every_epoch_is_heard_and_the_last_one_is_kept(tmp_path: Path) -> None:
    each = trainer()
    assert run(each, tmp_path) == ([1, 2, 3, 4, 5, 6], [6])
    assert each.progress.epochs[-1].train_loss < each.progress.epochs[0].train_loss


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer()
    run(whole, tmp_path)
    half = trainer(chosen=config(epochs=3))
    run(half, tmp_path)
    again = trainer()
    again.resume(tmp_path)
    assert run(again, tmp_path) == ([4, 5, 6], [6])
    assert again.progress == whole.progress
    assert weights(again).keys() == weights(whole).keys()
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], value)


def test_a_checkpoint_is_kept_when_the_interval_has_passed(tmp_path: Path) -> None:
    assert run(trainer(), tmp_path, interval_s=0.0)[1] == [1, 2, 3, 4, 5, 6]


def test_patience_ends_training_with_the_best_weights(tmp_path: Path) -> None:
    each = trainer(chosen=config(epochs=200, patience_epochs=2, learning_rate=1.0))
    run(each, tmp_path)
    losses = [epoch.validation_loss for epoch in each.progress.epochs]
    assert len(losses) == each.progress.best_epoch + 2
    assert losses[each.progress.best_epoch - 1] == min(losses)


def test_a_finished_training_that_is_resumed_does_nothing(tmp_path: Path) -> None:
    run(trainer(), tmp_path)
    again = trainer()
    again.resume(tmp_path)
    assert run(again, tmp_path) == ([], [])


def test_divergence_names_the_epoch_and_the_learning_rate(tmp_path: Path) -> None:
    class Broken(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * math.nan

    with pytest.raises(InputError, match="loss of epoch 1 is not finite") as caught:
        run(trainer(network=Broken(2, 2)), tmp_path)
    assert "learning_rate (now 0.05)" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_single_leftover_row_is_skipped_for_batch_normalisation(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    each = trainer(network=network, n_rows=49, chosen=config(epochs=1, batch_size=16))
    run(each, tmp_path)
    assert math.isfinite(each.progress.epochs[0].train_loss)


def project(folder: Path, *, code: str, parameters: str = "") -> Project:
    (folder / "kit.toml").write_text(KIT_TOML % parameters)
    (folder / "model.py").write_text(code)
    return Project.open(folder)


LINEAR = "from torch import nn\n\n\ndef build(*, n_classes, width=3):\n    return nn.Linear(2, n_classes)\n"


@pytest.mark.parametrize(
    "code, parameters, message, hint",
    [
        (LINEAR, "widht = 4", "takes no parameter 'widht'", "did you mean 'width'"),
        ("build = 3", "", "is a value of type int, not a function", None),
        ("def build():\n    return 3", "", "returned a value of type int", "torch.nn.Module"),
        ("def build():\n    1 / 0", "", "failed: ZeroDivisionError", "correct the function"),
        ("def other():\n    pass", "", "has no 'build'", "it defines other"),
        ("import nothing_like_this", "", "cannot be imported", "check model.py"),
    ],
)
def test_a_factory_that_cannot_work_is_named(
    tmp_path: Path, code: str, parameters: str, message: str, hint: str | None
) -> None:
    with pytest.raises(ProjectError, match=message) as caught:
        build_network(project(tmp_path, code=code, parameters=parameters), n_features=2, n_classes=2)
    assert hint is None or hint in str(caught.value.hint)


def test_a_factory_gets_what_it_asks_for(tmp_path: Path) -> None:
    network = build_network(project(tmp_path, code=LINEAR), n_features=2, n_classes=5)
    assert network.out_features == 5


ANSWERING = """
from torch import nn


class Answering(nn.Linear):
    def forward(self, x):
        return %s


def build(*, n_classes):
    return Answering(2, n_classes)
"""
ROWS = np.zeros((2, 2), dtype=np.float32)


def test_a_network_with_the_right_answers_passes() -> None:
    flat = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    for network, n_classes in ((torch.nn.Linear(2, 3), 3), (torch.nn.Linear(2, 1), 0), (flat, 0)):
        check_network(network, rows=ROWS, n_classes=n_classes)
        assert network.training  # it is handed on to be trained


@pytest.mark.parametrize(
    "n_inputs, n_outputs, n_classes, message",
    [
        (5, 3, 3, r"cannot read rows of shape \[2\]"),
        (2, 4, 3, r"\(2, 4\), but \(2, 3\) is needed"),
        (2, 2, 0, r"\(2, 2\), but \(2, 1\) is needed"),
    ],
)
def test_a_network_of_the_wrong_shape_is_refused(
    n_inputs: int, n_outputs: int, n_classes: int, message: str
) -> None:
    with pytest.raises(ProjectError, match=message):
        check_network(torch.nn.Linear(n_inputs, n_outputs), rows=ROWS, n_classes=n_classes)


@pytest.mark.parametrize(
    "answer, message",
    [
        ("self.missing(x)", "no attribute 'missing'"),
        ("super().forward(x)[:, :1]", r"answers 2 rows with \(2, 1\), but \(2, 2\) is needed"),
        ("[super().forward(x)]", "answers 2 rows with list"),
    ],
)
def test_a_network_that_cannot_work_is_refused_before_ray_starts(
    tmp_path: Path, answer: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = project(tmp_path, code=ANSWERING % answer)
    x = np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    sides = np.where(x.sum(axis=1) > 0, "right", "left").tolist()
    parquet.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "side": sides}), tmp_path / "rows.parquet")
    generate_key(opened.signing_key_path())
    with caplog.at_level(logging.INFO, logger="kit"), pytest.raises(ProjectError, match=message):
        train(opened, opened.command("train", TrainSettings, {}))
    assert "starting Ray" not in caplog.text


def test_a_full_disk_is_recognised_behind_whatever_wrapped_it(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).symlink_to("/dev/full")  # every write to it finds the disk full
    with pytest.raises(OSError, match="No space left") as caught:
        trainer().save(tmp_path)
    assert is_disk_full(caught.value)
    wrapped = RuntimeError("upload failed")
    wrapped.__cause__ = ValueError("in a worker")
    wrapped.__cause__.__cause__ = caught.value
    assert is_disk_full(wrapped)
    assert is_disk_full(RuntimeError("AWS said: No space left on device"))
    assert not is_disk_full(OSError(2, "No such file"))


def test_a_second_training_of_the_same_identity_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    with alone(folder, "0123"), pytest.raises(ConflictError, match="run 0123"), alone(folder, "0123"):
        pass
    (folder / "0123.lock").touch()  # left by a run that was killed
    with alone(folder, "0123"):
        pass
    assert list(folder.iterdir()) == []


def test_a_seed_no_generator_takes_is_refused(tmp_path: Path) -> None:
    opened = project(tmp_path, code=LINEAR)
    with pytest.raises(SettingsError, match="seed"):
        opened.command("train", TrainSettings, {"seed": 2**32})
    (tmp_path / "kit.toml").write_text((KIT_TOML % "").replace("[data]", f"[data]\nseed = {2**32}"))
    with pytest.raises(SettingsError, match="seed"):
        Project.open(tmp_path)


@pytest.mark.filterwarnings("error")
def test_the_templates_network_answers_a_regression_and_a_zero_layer_is_refused_in_words(
    tmp_path: Path,
) -> None:
    for name in ("demo", "zero"):
        init(InitSettings(name=str(tmp_path / name), template="tabular"))
    project = Project.open(tmp_path / "demo")
    rows = np.zeros((2, 5), dtype=np.float32)
    check_network(build_network(project, n_features=5, n_classes=0), rows=rows, n_classes=0)
    model = tmp_path / "zero" / "model.py"
    model.write_text(model.read_text().replace("n_classes or 1", "n_classes"))
    zero = build_network(Project.open(tmp_path / "zero"), n_features=5, n_classes=0)
    with pytest.raises(ProjectError, match="the network answers 2 rows with") as caught:
        check_network(zero, rows=rows, n_classes=0)
    assert "n_classes or 1" in str(caught.value.hint)
