"""The training loop over arrays: what one worker does, whoever runs it.

Gets a network and arrays, gives back weights and figures through what its caller hands it. It
knows nothing of Ray, tables, registries or exports. Torch is imported when a trainer is made.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError
from kit.project import Project
from kit.settings import TrainSettings

if TYPE_CHECKING:
    import torch

WEIGHTS = "weights.pt"
BEST = "best.pt"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class FitConfig:
    """What the loop needs to know.

    Attributes:
        folder: The project's folder; where it does not exist, the working folder is used.
        n_classes: How many classes; 0 for regression.
        epochs ... checkpoint_interval_s: As in ``TrainSettings``.
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
    checkpoint_interval_s: float = 2.0

    @classmethod
    def of(cls, settings: TrainSettings, *, project: Project, n_classes: int, **changes: Any) -> FitConfig:
        """Take what the loop needs from the settings of train.

        Args:
            settings: Of train.
            project: Whose folder holds the factory.
            n_classes: How many classes; 0 for regression.
            changes: Stand in for settings of the same name.
        """
        shared = cls.__dataclass_fields__.keys() & TrainSettings.model_fields.keys()
        values = {name: getattr(settings, name) for name in shared} | changes
        return cls(folder=str(project.folder), n_classes=n_classes, **values)


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


@dataclass(frozen=True)
class Fitted:
    """A fitted model and how it came to be.

    Attributes:
        model: A ``torch.nn.Module`` with its best weights, on the CPU, or a fitted estimator.
        epochs: Figures of each epoch; empty for an estimator.
        best_epoch: Whose weights were kept, from 1; 0 for an estimator.
    """

    model: Any
    epochs: tuple[Epoch, ...]
    best_epoch: int


def read_fitted(network: torch.nn.Module, folder: Path) -> Fitted:
    """Give a network the best weights of a checkpoint.

    Args:
        network: As the factory built it; changed.
        folder: What ``Trainer.save`` wrote.
    """
    import torch

    network.load_state_dict(torch.load(folder / BEST, weights_only=True))
    kept = json.loads((folder / PROGRESS).read_text())
    return Fitted(network, tuple(Epoch(**each) for each in kept["epochs"]), kept["best_epoch"])


class Trainer:
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

    def resume(self, folder: Path) -> None:
        """Go on where the checkpoint in a folder stood; see ``save``."""
        import torch

        state = torch.load(folder / WEIGHTS, weights_only=True)
        self.best = torch.load(folder / BEST, weights_only=True)
        kept = json.loads((folder / PROGRESS).read_text())
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
        interval_s: float,
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
