"""What each setting of train does to the weights, in the loop itself and without Ray."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.fitting.local import fit_here
from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.losses import Loss, class_weights_of
from jobs.fitting.memory import OutOfMemoryError, compute_twice, is_out_of_memory
from jobs.fitting.schedules import plateau_factor, step_factor
from jobs.fitting.trainer import Trainer
from jobs.tuning.trial import reason_of
from kit.errors import InputError, ProjectError, SettingsError
from kit.project import Project
from kit.settings import TrainSettings

KIT_TOML = """
[project]
name = "line"

[data]
path = "rows.parquet"
label = "side"
inputs = [{ name = "x", columns = ["a", "b"] }]

[model]
factory = "model:build"
"""
CONFIG = FitConfig(
    folder="nowhere",
    n_classes=3,
    epochs=4,
    batch_size=16,
    learning_rate=0.02,
    weight_decay=0.01,
    patience_epochs=4,
    seed=0,
    threads=1,
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "line"
    folder.mkdir()
    (folder / "kit.toml").write_text(KIT_TOML)
    return Project.open(folder)


def arrays(n_rows: int = 50, *, n_classes: int = 3) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n_rows + 20, 2)).astype(np.float32)
    y = np.digitize(x.sum(axis=1), [-0.5, 1.0]) if n_classes else x.sum(axis=1)
    y = y.astype(np.int64 if n_classes else np.float32)
    return {"train_x": x[:-20], "train_y": y[:-20], "validation_x": x[-20:], "validation_y": y[-20:]}


def layers(*middle: nn.Module, n_outputs: int = 3) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), *middle, nn.Linear(8, n_outputs))


def fitted(project: Project, *middle: nn.Module, data: Any = None, **changes: Any) -> Fitted:
    fit = replace(CONFIG, **changes)
    return fit_here(
        project,
        fit,
        data or arrays(n_classes=fit.n_classes),
        build=lambda _: layers(*middle, n_outputs=fit.n_classes or 1),
        hear=lambda figures: None,
    )


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([value.double().reshape(-1) for value in model.state_dict().values()]).numpy()


@pytest.mark.parametrize("n_classes, class_weights", [(3, ()), (3, (1.0, 5.0, 0.5)), (0, ())])
def test_accumulated_batches_move_the_weights_like_one_large_batch(
    project: Project, n_classes: int, class_weights: Any
) -> None:
    kind = {"n_classes": n_classes, "class_weights": class_weights}
    whole = fitted(project, batch_size=32, **kind)  # 50 rows: one full step, and an uneven one
    parts = fitted(project, batch_size=8, accumulation_steps=4, **kind)
    np.testing.assert_allclose(flat(parts.model), flat(whole.model), atol=2e-6)
    assert parts.used["accumulation_steps"] == 4
    one_by_one = fitted(project, batch_size=8, **kind)
    assert np.abs(flat(one_by_one.model) - flat(whole.model)).max() > 1e-3


def test_a_batch_that_shrinks_keeps_the_rows_of_a_step() -> None:
    shrunk = replace(CONFIG, batch_size=5, auto_batch=True).halved()
    assert shrunk is not None
    assert (shrunk.batch_size, shrunk.accumulation_steps, shrunk.rows_per_step) == (2, 3, 5)
    assert replace(CONFIG, batch_size=1, auto_batch=True).halved() is None
    assert CONFIG.halved() is None


def test_clipping_bounds_what_one_step_may_change(project: Project) -> None:
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch_size": 50}
    start = flat(layers())
    free = np.linalg.norm(flat(fitted(project, **plain).model) - start)
    bounded = np.linalg.norm(flat(fitted(project, clip_norm=0.01, **plain).model) - start)
    assert free > 0.02 * 0.02
    assert bounded == pytest.approx(0.02 * 0.01, rel=1e-3)


def test_sgd_is_torchs_own(project: Project) -> None:
    ours = fitted(project, optimizer="sgd", momentum=0.8, epochs=2, batch_size=50)
    network, data = layers(), {name: torch.from_numpy(each) for name, each in arrays().items()}
    theirs = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.8, weight_decay=0.01)
    for _ in range(2):
        theirs.zero_grad()
        nn.functional.cross_entropy(network(data["train_x"]), data["train_y"]).backward()  # type: ignore[no-untyped-call]  # torch's gap
        theirs.step()
    np.testing.assert_allclose(flat(ours.model), flat(network), atol=1e-6)


@pytest.mark.parametrize("n_rows, batch_size", [(49, 16), (3, 2), (5, 4), (2, 1)])
def test_batches_without_a_single_row_are_cut_where_that_can_be(n_rows: int, batch_size: int) -> None:
    fit = replace(CONFIG, batch_size=batch_size, accumulation_steps=64)
    trainer = Trainer(layers(), fit, arrays(), device=torch.device("cpu"), rank=0, world=1)
    cut = trainer._batches(torch.arange(n_rows))
    assert torch.equal(torch.cat(cut), torch.arange(n_rows))
    assert batch_size == 1 or min(len(each) for each in cut) > 1
    assert max(len(each) for each in cut) <= max(batch_size, 3)


def factors(schedule: str, *, epochs: int = 12, warmup_epochs: int = 0, per_epoch: int = 10) -> np.ndarray:
    steps = range(epochs * per_epoch)
    return np.array(
        [
            step_factor(
                schedule,
                done=each / per_epoch,
                step=1 / per_epoch,
                epochs=epochs,
                warmup_epochs=warmup_epochs,
            )
            for each in steps
        ]
    )


def torchs(make: Any, n_steps: int) -> np.ndarray:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(n_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(found)


def test_schedules_are_torchs_own() -> None:
    schedulers = torch.optim.lr_scheduler
    cosine = torchs(lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 120), 120)
    np.testing.assert_allclose(factors("cosine"), cosine, atol=1e-9)
    linear = torchs(lambda optimizer: schedulers.LinearLR(optimizer, 1.0, 0.0, 120), 120)
    np.testing.assert_allclose(factors("linear"), linear, atol=1e-9)
    step = torchs(lambda optimizer: schedulers.StepLR(optimizer, 40, 0.1), 120)
    np.testing.assert_allclose(factors("step"), step, atol=1e-9)
    one_cycle = torchs(lambda optimizer: schedulers.OneCycleLR(optimizer, 1.0, total_steps=121), 120)
    np.testing.assert_allclose(factors("one-cycle"), one_cycle, atol=0.03)  # theirs peaks a step earlier
    warm = torchs(lambda optimizer: schedulers.LinearLR(optimizer, 1 / 30, 1.0, 29), 30)
    np.testing.assert_allclose(factors("cosine", warmup_epochs=3)[:30], warm, atol=1e-9)
    assert factors("constant").tolist() == [1.0] * 120


def test_plateau_drops_like_torchs_own() -> None:
    losses = [1.0, 0.9, 0.95, 0.89999, 0.92, 0.91, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, threshold=1e-4)
    for end in range(1, len(losses) + 1):
        scheduler.step(losses[end - 1])
        ours = plateau_factor(losses[:end], patience_epochs=2)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
    assert ours == pytest.approx(1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "one-cycle", "plateau"])
def test_a_schedule_reaches_the_weights(project: Project, schedule: str) -> None:
    scheduled = fitted(project, schedule=schedule, warmup_epochs=1, batch_size=8)
    assert np.abs(flat(scheduled.model) - flat(fitted(project, batch_size=8).model)).max() > 1e-4


def test_bf16_computes_coarsely_and_keeps_weights_in_float32(project: Project) -> None:
    coarse, exact = fitted(project, precision="bf16"), fitted(project)
    assert {value.dtype for value in coarse.model.state_dict().values()} == {torch.float32}
    assert 1e-6 < np.abs(flat(coarse.model) - flat(exact.model)).max() < 0.2
    assert coarse.epochs[-1].validation_loss == pytest.approx(exact.epochs[-1].validation_loss, rel=0.2)


def test_fp16_without_a_gpu_is_refused_with_the_alternative(project: Project) -> None:
    settings = TrainSettings(precision="fp16", device="cpu")
    with pytest.raises(SettingsError, match="fp16 needs a GPU") as caught:
        FitConfig.of(settings, project=project, n_classes=3)
    assert caught.value.hint == "set precision to bf16"
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="fp16 needs a GPU"):
            fitted(project, precision="fp16")
        with pytest.raises(SettingsError, match="torch finds no GPU"):
            fitted(project, device="cuda")


class Blocks(nn.Module):
    """Blocks with dropout and batch normalisation, as a list and as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(2, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32))
            for _ in range(3)
        )
        self.last = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(32, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        answer: torch.Tensor = self.last(x)
        return answer


def test_activations_computed_twice_change_no_result_and_no_name(project: Project) -> None:
    def fit(twice: bool) -> Fitted:
        config = replace(CONFIG, gradient_checkpointing=twice)
        return fit_here(project, config, arrays(), build=lambda _: Blocks(), hear=lambda figures: None)

    plain, twice = fit(False), fit(True)
    assert list(twice.model.state_dict()) == list(plain.model.state_dict())
    np.testing.assert_array_equal(flat(twice.model), flat(plain.model))


def test_activations_computed_twice_are_not_kept() -> None:
    def kept_bytes(network: nn.Module) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(512, 2)).sum()
        return sum(kept.values())

    network = Blocks()
    before = kept_bytes(network)
    compute_twice(network)
    assert kept_bytes(network) < 0.5 * before


def test_a_network_without_stretches_cannot_compute_them_twice() -> None:
    with pytest.raises(ProjectError, match="no stretch of layers") as caught:
        compute_twice(nn.Linear(2, 2))
    assert "nn.Sequential" in str(caught.value.hint)


def test_balanced_weights_let_every_class_count_the_same() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    loss = Loss(labels, n_classes=3, class_weights="balanced")
    assert loss.weights is not None
    shares = [float(loss.weights[each] * (labels == each).sum()) for each in range(3)]
    assert shares == pytest.approx([100 / 3] * 3)
    answers = torch.randn(100, 3)
    given = Loss(labels, n_classes=3, class_weights=tuple(loss.weights.tolist()))
    assert float(given(answers, labels)) == pytest.approx(float(loss(answers, labels)))
    theirs = nn.functional.cross_entropy(answers, labels, weight=loss.weights)
    assert float(loss(answers, labels)) == pytest.approx(float(theirs))


@pytest.mark.parametrize(
    "given, n_classes, message, hint",
    [
        ({"gren": 2.0}, 2, "'gren', which is no class", "did you mean 'green'"),
        ({"green": 0.0}, 2, "weight 0 of class 'green'", "above 0"),
        ("balanced", 0, "the task is regression", "remove class_weights"),
        ({"green": 1.0}, 0, "the task is regression", "remove class_weights"),
    ],
)
def test_class_weights_that_fit_no_class_are_refused(
    given: Any, n_classes: int, message: str, hint: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        class_weights_of(given, n_classes=n_classes, classes=("green", "red"))
    assert hint in str(caught.value.hint)


def test_class_weights_follow_the_order_of_the_classes() -> None:
    assert class_weights_of({"7": 3.0}, n_classes=2, classes=(3, 7)) == (1.0, 3.0)
    assert class_weights_of("none", n_classes=2, classes=(3, 7)) == ()


def test_a_teacher_alone_is_copied_and_a_teacher_without_weight_is_not_heard(project: Project) -> None:
    data = arrays(200)
    turned = np.eye(3, dtype=np.float32)[(data["train_y"] + 1) % 3] * 8  # says the next class, always
    taught = {**data, "train_teacher": turned}
    heard: list[float] = []

    def train_accuracy(**changes: Any) -> float:
        config = replace(CONFIG, epochs=30, patience_epochs=30, learning_rate=0.05, **changes)
        trainer = Trainer(layers(), config, taught, device=torch.device("cpu"), rank=0, world=1)
        trainer.run(
            hear=lambda figures: heard.append(figures["train_loss"]), keep=lambda: None, interval_s=99
        )
        with torch.no_grad():
            answered = trainer.plain(torch.from_numpy(data["train_x"])).argmax(dim=1).numpy()
        return float((answered == (data["train_y"] + 1) % 3).mean())

    assert train_accuracy(teacher_weight=1.0, temperature=2.0) > 0.9
    assert train_accuracy() < 0.1


def test_a_regression_learns_its_teachers_values(project: Project) -> None:
    data = arrays(n_classes=0)
    taught = {**data, "train_teacher": data["train_y"] + 5}
    mixed = fitted(
        project,
        data=taught,
        n_classes=0,
        teacher_weight=0.5,
        epochs=80,
        learning_rate=0.1,
        patience_epochs=80,
    )
    assert mixed.epochs[-1].validation_loss == pytest.approx(2.5**2, rel=0.3)  # half way to the teacher


def test_the_loss_of_a_teacher_is_hintons() -> None:
    answers, teacher, labels = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    mixed = Loss(labels, n_classes=3, teacher_weight=0.7, temperature=4.0)(answers, labels, teacher)
    p, q = torch.softmax(teacher / 4, dim=1), torch.softmax(answers / 4, dim=1)
    divergence = (p * (p / q).log()).sum(dim=1).mean() * 16
    expected = 0.3 * nn.functional.cross_entropy(answers, labels) + 0.7 * divergence
    assert float(mixed) == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_that_says_nothing_is_refused(project: Project) -> None:
    with pytest.raises(InputError, match="no answers of a teacher"):
        fitted(project, teacher_weight=0.5)


@pytest.mark.parametrize("state", ["fresh", "spent"])
def test_two_fits_give_equal_weights_and_leave_torch_as_it_was(project: Project, state: str) -> None:
    if state == "spent":
        torch.rand(random.Random(1).randint(1, 9))
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    first = flat(fitted(project, nn.Dropout(0.4)).model)
    assert torch.equal(drawn, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    np.testing.assert_array_equal(first, flat(fitted(project, nn.Dropout(0.4)).model))


class Killed(BaseException):
    """What stands for a kill: nothing in the loop may catch it."""


class Fragile(nn.Module):
    """Dies once, in the middle of the n-th training step."""

    steps = 0

    def __init__(self, dies_at: int) -> None:
        super().__init__()
        self.layers, self.dies_at = layers(nn.Dropout(0.3), nn.BatchNorm1d(8)), dies_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            Fragile.steps += 1
            if Fragile.steps == self.dies_at:
                raise Killed
        answer: torch.Tensor = self.layers(x)
        return answer


@pytest.mark.parametrize("dies_at", [1, 9, 17])
def test_a_fit_killed_within_an_epoch_goes_on_within_it_to_the_same_weights(
    project: Project, tmp_path: Path, dies_at: int
) -> None:
    heard: list[int] = []

    def fit(dies_at: int, folder: Path | None) -> Fitted:
        Fragile.steps = 0
        config = replace(CONFIG, schedule="cosine", batch_size=8, accumulation_steps=1)
        return fit_here(
            project,
            config,
            arrays(),
            build=lambda _: Fragile(dies_at),
            hear=lambda figures: heard.append(figures["epoch"]),
            folder=folder,
            interval_s=1e-9,  # after every step
        )

    whole = fit(0, None)
    n_steps = Fragile.steps
    heard.clear()
    with pytest.raises(Killed):
        fit(dies_at, tmp_path / "kept")
    again = fit(0, tmp_path / "kept")
    assert Fragile.steps <= n_steps - dies_at + 2  # at most the step that was on its way
    assert heard == [1, 2, 3, 4]
    assert again.epochs == whole.epochs
    np.testing.assert_array_equal(flat(again.model), flat(whole.model))


def test_who_hears_of_an_epoch_can_stop_the_fit(project: Project) -> None:
    heard: list[int] = []

    def hear(figures: dict[str, Any]) -> bool:
        heard.append(figures["epoch"])
        return len(heard) < 2

    stopped = fit_here(project, CONFIG, arrays(), build=lambda _: layers(), hear=hear)
    assert heard == [1, 2] == [each.epoch for each in stopped.epochs]
    assert all(each.seconds > 0 for each in stopped.epochs)


class Greedy(nn.Module):
    """Asks in training for memory that grows with the eleventh power of the rows: 12 rows, 743 GB."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            torch.empty(len(x) ** 11, dtype=torch.uint8)
        answer: torch.Tensor = self.layers(x)
        return answer


def test_memory_that_runs_out_names_the_batch_and_the_next_step(project: Project) -> None:
    config = replace(CONFIG, batch_size=50)
    with pytest.raises(OutOfMemoryError, match="batch_size = 50") as caught:
        fit_here(project, config, arrays(), build=lambda _: Greedy(), hear=lambda figures: None)
    hint = str(caught.value.hint)
    assert "--auto-batch" in hint
    assert "gradient_checkpointing" in hint
    assert "batch_size below 50" in hint


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        ValueError("Unable to allocate 7.28 TiB for an array with shape (1000000, 1000000)"),
        RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("ray.exceptions.OutOfMemoryError: killed, the node is running low on memory"),
    ],
)
def test_a_lack_of_memory_is_recognised_and_told_of_a_trial_whoever_says_it(error: Exception) -> None:
    wrapped = InputError("the estimator cannot be fitted")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert is_out_of_memory(each)
        assert reason_of(each).startswith("it ran out of memory")
    assert not is_out_of_memory(RuntimeError("no memory of it"))


def test_auto_batch_halves_until_it_fits_and_keeps_the_rows_of_a_step(project: Project) -> None:
    heard: list[int] = []
    config = replace(CONFIG, batch_size=50, auto_batch=True)
    small = fit_here(
        project,
        config,
        arrays(),
        build=lambda _: Greedy(),
        hear=lambda figures: heard.append(figures["epoch"]),
    )
    assert small.used["batch_size"] == 6
    assert small.used["accumulation_steps"] == math.ceil(50 / 6)
    assert heard == [1, 2, 3, 4]
    whole = fitted(project, batch_size=50)
    np.testing.assert_allclose(flat(small.model), flat(whole.model), atol=2e-6)


class Hungry(nn.Module):
    """Asks for too much memory from a training step on, unless the batch is small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.steps = layers(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            if self.steps > 9 and len(x) > 8:  # in the third epoch of four steps
                torch.empty(1 << 60, dtype=torch.uint8)
        answer: torch.Tensor = self.layers(x)
        return answer


@pytest.mark.parametrize("interval_s", [0.0, 3600.0])
def test_an_epoch_that_is_done_again_in_smaller_batches_is_heard_once(
    project: Project, tmp_path: Path, interval_s: float
) -> None:
    heard: list[int] = []
    small = fit_here(
        project,
        replace(CONFIG, auto_batch=True),
        arrays(),
        build=lambda _: Hungry(),
        hear=lambda figures: heard.append(figures["epoch"]),
        folder=tmp_path / "kept",
        interval_s=interval_s,
    )
    assert small.used["batch_size"] == 8
    assert heard == [1, 2, 3, 4] == [each.epoch for each in small.epochs]
