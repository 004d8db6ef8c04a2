"""The training loop: what runs inside each Ray Train worker.

Gets arrays, gives back weights through checkpoints and figures through reports. It knows
nothing of tables, registries or exports. Torch is imported when the loop starts.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.cluster import is_disk_full
from kit.errors import InputError, KitError, ProjectError, UnavailableError, nearest
from kit.project import Project

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.pt"
BEST = "best.pt"
PROGRESS = "progress.json"

#: Time between checkpoints. Each waits for Ray's controller to notice it, so one per epoch would
#: cost a small network most of its time.
_CHECKPOINT_INTERVAL_S = 2.0


@dataclass(frozen=True)
class FitConfig:
    """What a worker needs to know.

    Attributes:
        folder: The project's folder; where it does not exist, the working folder is used.
        n_classes: How many classes; 0 for regression.
        epochs, batch_size, learning_rate, weight_decay, patience_epochs, seed, threads: As in
            ``TrainSettings``.
    """

    folder: str
    n_classes: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience_epochs: int
    seed: int
    threads: int


@dataclass
class Epoch:
    """Figures of one pass over the training rows.

    Attributes:
        epoch: From 1.
        train_loss: Mean loss over the training rows.
        validation_loss: Mean loss over the validation rows.
    """

    epoch: int
    train_loss: float
    validation_loss: float


@dataclass
class _Progress:
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best_loss(self) -> float:
        return self.epochs[self.best_epoch - 1].validation_loss if self.best_epoch else math.inf


def build_network(project: Project, *, n_features: int, n_classes: int) -> torch.nn.Module:
    """Call the project's factory.

    Args:
        project: Names the factory and its parameters.
        n_features: Columns the network reads after preprocessing, offered to a factory that
            takes ``n_features``.
        n_classes: Likewise; 0 for regression.

    Raises:
        ProjectError: The factory does not take a parameter, fails, or returns no module.
    """
    import torch

    settings = project.settings.model
    factory = project.load_object(settings.factory)
    if not callable(factory):
        raise ProjectError(
            f"{settings.factory!r} is a value of type {type(factory).__name__}, not a function"
        )
    takes = inspect.signature(factory).parameters
    free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    for name in settings.parameters:
        if name not in takes and not free:
            raise ProjectError(
                f"the factory {settings.factory!r} takes no parameter {name!r}", hint=nearest(name, takes)
            )
    offered = {"n_features": n_features, "n_classes": n_classes}
    arguments = {name: value for name, value in offered.items() if name in takes} | settings.parameters
    try:
        network = factory(**arguments)
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(
            f"the factory {settings.factory!r} failed: {type(error).__name__}: {error}",
            hint="correct the function or [model.parameters] in kit.toml",
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise ProjectError(
            f"the factory {settings.factory!r} returned a value of type {type(network).__name__}",
            hint="return a torch.nn.Module",
        )
    return network


def check_network(network: torch.nn.Module, *, rows: np.ndarray, n_classes: int) -> None:
    """Refuse a network that cannot read the rows, or answers in another shape than the task needs.

    Args:
        network: What the factory returned; left in training mode.
        rows: A few rows as the network will read them.
        n_classes: Answers per row; 0 for regression, which needs one value.

    Raises:
        ProjectError: Calling it fails, or the answer has another shape.
    """
    import torch

    network.eval()
    try:
        with torch.no_grad():
            answer = network(torch.from_numpy(np.array(rows)))
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(
            f"the network cannot read rows of shape {list(rows.shape[1:])}: {type(error).__name__}: {error}",
            hint="correct the network's forward or the shape in [[data.inputs]]",
        ) from error
    network.train()
    wanted = [(len(rows), n_classes)] if n_classes else [(len(rows),), (len(rows), 1)]
    found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    if found not in wanted:
        raise ProjectError(
            f"the network answers {len(rows)} rows with {found}, but {wanted[-1]} is needed",
            hint="return one logit per class" if n_classes else "return one value per row",
        )


def loop(config: dict[str, Any]) -> None:
    """Train on this worker; Ray Train calls it on each.

    A refusal is told to the listener first: Ray starts the loop again after any failure, and
    what a user has to correct is not worth a second try.

    Args:
        config: ``fit`` (a FitConfig as a dict), ``arrays`` (a reference to train and validation
            arrays) and ``listener`` (an actor that hears of each epoch and of a refusal).
    """
    import ray

    listener = config["listener"]
    if ray.get(listener.refusal.remote()) is not None:
        return
    try:
        _train(FitConfig(**config["fit"]), ray.get(config["arrays"]), listener=listener)
    except KitError as error:
        ray.get(listener.refuse.remote(error))
        raise
    except Exception as error:  # torch, pyarrow and Ray each wrap the system's error in their own
        if not is_disk_full(error):
            raise
        refusal = disk_full()
        ray.get(listener.refuse.remote(refusal))
        raise refusal from error


def disk_full() -> UnavailableError:
    """Say that a checkpoint found no room; trying again would not make any."""
    return UnavailableError(
        "the disk is full; a checkpoint of the training cannot be written",
        hint="free some space, then run the same command again: it continues from the last checkpoint",
    )


def _train(fit: FitConfig, arrays: dict[str, np.ndarray], *, listener: Any) -> None:
    import ray
    import torch
    from ray import train
    from ray.train.torch import get_device, prepare_model

    torch.set_num_threads(fit.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(fit.seed)
    folder = Path(fit.folder)
    project = Project.open(folder if folder.is_dir() else Path.cwd())
    network = build_network(
        project, n_features=int(np.prod(arrays["train_x"].shape[1:])), n_classes=fit.n_classes
    )
    context = train.get_context()
    trainer = _Trainer(
        prepare_model(network),
        fit,
        arrays,
        device=get_device(),
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    trainer.resume(train.get_checkpoint())
    told: list[Any] = []

    def tell(figures: dict[str, Any]) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # what is shown decides nothing
            ray.get(told)  # an asynchronous actor may take two calls in either order
        told[:] = [listener.hear.remote(figures)]

    trainer.run(hear=tell, keep=trainer.report)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(told)


class _Trainer:
    """One worker's network, optimizer and place in the training."""

    def __init__(
        self,
        network: torch.nn.Module,
        fit: FitConfig,
        arrays: dict[str, np.ndarray],
        *,
        device: Any,
        rank: int,
        world: int,
    ) -> None:
        import torch

        self.network = network
        self.fit = fit
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        self.loss: Callable[..., torch.Tensor] = (
            torch.nn.functional.cross_entropy if fit.n_classes else torch.nn.functional.mse_loss
        )
        self.rank, self.world, self.device = rank, world, device
        self.data = {
            name: torch.from_numpy(np.array(array)).to(device)  # a copy: Ray's arrays are read-only
            for name, array in arrays.items()
        }
        self.progress = _Progress()
        self.best: dict[str, torch.Tensor] = {}

    @property
    def plain(self) -> torch.nn.Module:
        """The network without the wrapper data-parallel training puts around it."""
        inner: torch.nn.Module = getattr(self.network, "module", self.network)
        return inner

    def resume(self, checkpoint: Any) -> None:
        """Go on where the last checkpoint stood; None starts from the beginning."""
        import torch

        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / WEIGHTS, weights_only=True)
            self.best = torch.load(Path(folder) / BEST, weights_only=True)
            kept = json.loads((Path(folder) / PROGRESS).read_text())
        self.plain.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = _Progress([Epoch(**each) for each in kept["epochs"]], kept["best_epoch"])

    def finished(self) -> bool:
        """Say whether the last epoch is done or patience has run out."""
        done = len(self.progress.epochs)
        return done >= self.fit.epochs or done - self.progress.best_epoch >= self.fit.patience_epochs

    def run(
        self,
        *,
        hear: Callable[[dict[str, Any]], Any],
        keep: Callable[[], None],
        interval_s: float = _CHECKPOINT_INTERVAL_S,
    ) -> None:
        """Train until finished.

        Args:
            hear: Told of each epoch by the first worker.
            keep: Called on every worker at the same epochs: when ``interval_s`` have passed on any of
                them since the last time, and at the end.
            interval_s: Time between checkpoints.

        Raises:
            InputError: A loss is not finite.
        """
        kept_at_s = time.monotonic()
        while not self.finished():
            epoch = len(self.progress.epochs) + 1
            due = time.monotonic() - kept_at_s >= interval_s
            train_loss, validation_loss, n_due = self._agreed(self._pass(epoch), self._validate(), float(due))
            figures = Epoch(epoch, train_loss / self.world, validation_loss / self.world)
            if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
                raise InputError(
                    f"training diverged: the loss of epoch {epoch} is not finite",
                    hint=f"lower learning_rate (now {self.fit.learning_rate:g}), or scale the inputs",
                )
            self._note(figures)
            if self.rank == 0:
                hear(asdict(figures))
            if n_due or self.finished():
                keep()
                kept_at_s = time.monotonic()

    def _note(self, figures: Epoch) -> None:
        better = figures.validation_loss < self.progress.best_loss
        self.progress.epochs.append(figures)
        if better:
            self.progress.best_epoch = figures.epoch
            self.best = {
                name: value.detach().cpu().clone() for name, value in self.plain.state_dict().items()
            }

    def report(self) -> None:
        """Report a checkpoint to Ray Train, which waits for every worker; the first one brings the files."""
        from ray import train

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                self.save(Path(folder))
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report(asdict(self.progress.epochs[-1]), checkpoint=checkpoint)

    def save(self, folder: Path) -> None:
        """Write what ``resume`` reads: weights, the best weights, the optimizer, the figures."""
        import torch

        state = {"network": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()}
        for name, content in ((WEIGHTS, state), (BEST, self.best)):
            packed = BytesIO()  # written by Python, which tells a full disk from other failures
            torch.save(content, packed)
            (folder / name).write_bytes(packed.getvalue())
        (folder / PROGRESS).write_text(json.dumps(asdict(self.progress)))

    def _pass(self, epoch: int) -> float:
        """One pass over this worker's share of the rows, in an order that depends on seed and epoch."""
        import torch

        torch.manual_seed(self.fit.seed * 100_003 + epoch)  # dropout: the same after a resume
        order = np.random.default_rng([self.fit.seed, epoch]).permutation(len(self.data["train_x"]))
        share = len(order) // self.world  # equal, so that every worker takes as many steps
        mine = torch.from_numpy(order[self.rank * share : (self.rank + 1) * share])
        self.network.train()
        total = 0.0
        for start in range(0, len(mine), self.fit.batch_size):
            rows = mine[start : start + self.fit.batch_size]
            if len(rows) < 2 <= len(mine):  # batch normalisation cannot learn from one row
                continue
            loss = self._loss(self.data["train_x"][rows], self.data["train_y"][rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / max(len(mine), 1)

    def _validate(self) -> float:
        import torch

        self.network.eval()
        total, n_rows = 0.0, len(self.data["validation_x"])
        with torch.no_grad():
            for start in range(0, n_rows, 4096):
                x = self.data["validation_x"][start : start + 4096]
                total += float(self._loss(x, self.data["validation_y"][start : start + 4096])) * len(x)
        return total / n_rows

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        answer = self.network(x)
        return self.loss(answer.reshape(y.shape) if y.is_floating_point() else answer, y)

    def _agreed(self, *figures: float) -> list[float]:
        """Sum figures over the workers, so that every one decides alike."""
        if self.world == 1:
            return list(figures)
        import torch

        summed = torch.tensor(figures, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return [float(figure) for figure in summed]
