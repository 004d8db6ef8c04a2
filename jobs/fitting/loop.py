"""What the training loop is told and what it gives back; the loop itself is ``jobs.fitting.trainer``.

Only values: nothing here trains, and nothing knows of Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.fitting.losses import ClassWeights, class_weights_of
from jobs.fitting.memory import OutOfMemoryError, out_of_memory
from kit.errors import SettingsError
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
        class_weights: ``balanced``, or one weight per class; empty for none.
        teacher_weight: Share of a teacher's answers in the loss, from 0 to 1.
        temperature: Softness of the teacher's answers, above 0; 1 leaves them as they are.
        whole_step: Rows per step and worker when ``batch_size`` had to shrink; 0 when it has not.
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
    accumulation_steps: int = 1
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "constant"
    warmup_epochs: int = 0
    clip_norm: float | None = None
    precision: str = "float32"
    gradient_checkpointing: bool = False
    class_weights: ClassWeights = ()
    device: str = "auto"
    auto_batch: bool = False
    teacher_weight: float = 0.0
    temperature: float = 1.0
    whole_step: int = 0

    @classmethod
    def of(
        cls,
        settings: TrainSettings,
        *,
        project: Project,
        n_classes: int,
        classes: Sequence[int | str] = (),
        **changes: Any,
    ) -> FitConfig:
        """Take what the loop needs from the settings of train.

        Args:
            settings: Of train.
            project: Whose folder holds the factory.
            n_classes: How many classes; 0 for regression.
            classes: Their names, in the order of the labels; needed where ``class_weights`` names them.
            changes: Stand in for settings of the same name.

        Raises:
            SettingsError: ``class_weights`` do not fit the classes; fp16 is to run on a CPU.
        """
        shared = cls.__dataclass_fields__.keys() & TrainSettings.model_fields.keys()
        values = {name: getattr(settings, name) for name in shared} | changes
        weights = class_weights_of(values.pop("class_weights"), n_classes=n_classes, classes=classes)
        fit = cls(folder=str(project.folder), n_classes=n_classes, class_weights=weights, **values)
        if fit.device == "cpu":
            fit.check_precision("cpu")
        return fit

    @property
    def rows_per_step(self) -> int:
        """Rows of one worker in one step."""
        return self.whole_step or self.batch_size * self.accumulation_steps

    def check_precision(self, device: str) -> None:
        """Refuse fp16 on a CPU, which would be slow and has no scaler.

        Args:
            device: ``cpu`` or ``cuda``.

        Raises:
            SettingsError: The precision is fp16 and the device is a CPU.
        """
        if self.precision == "fp16" and device == "cpu":
            raise SettingsError(
                "precision = fp16 needs a GPU, and this training runs on CPUs", hint="set precision to bf16"
            )

    def with_batch(self, batch_size: int) -> FitConfig:
        """Give the same training in smaller batches: a step still takes as many rows."""
        rows = self.rows_per_step
        steps = math.ceil(rows / batch_size)
        return replace(self, batch_size=batch_size, accumulation_steps=steps, whole_step=rows)

    def halved(self) -> FitConfig | None:
        """Give the same training in batches of half the size; None where one row is left, or nobody asked."""
        return self.with_batch(self.batch_size // 2) if self.auto_batch and self.batch_size > 1 else None

    def out_of_memory(self) -> OutOfMemoryError:
        """Say that memory ran out with this batch."""
        return out_of_memory(
            batch_size=self.batch_size,
            gradient_checkpointing=self.gradient_checkpointing,
            auto_batch=self.auto_batch,
        )


@dataclass
class Epoch:
    """Figures of one pass over the training rows.

    Attributes:
        epoch: From 1.
        train_loss: Mean loss over the training rows.
        validation_loss: Mean loss over the validation rows.
        seconds: How long it took, validation included.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    seconds: float = field(default=0.0, compare=False)


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epochs: Those that are done.
        best_epoch: Whose validation loss is the smallest, from 1; 0 before the first.
        rows_done: Training rows passed in the epoch after them, by all workers.
        totals: Sum of the loss over those, by worker.
        seconds: Spent in that epoch.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    rows_done: int = 0
    totals: list[float] = field(default_factory=list, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Progress:
        """Read what a checkpoint says."""
        values = {name: kept[name] for name in cls.__dataclass_fields__}
        return cls(**values | {"epochs": [Epoch(**each) for each in kept["epochs"]]})

    @property
    def best_loss(self) -> float:
        """The smallest validation loss so far; infinite before the first epoch."""
        return self.epochs[self.best_epoch - 1].validation_loss if self.best_epoch else math.inf


@dataclass(frozen=True)
class Fitted:
    """A fitted model and how it came to be.

    Attributes:
        model: A ``torch.nn.Module`` with its best weights, on the CPU, or a fitted estimator.
        epochs: Figures of each epoch; empty for an estimator.
        best_epoch: Whose weights were kept, from 1; 0 for an estimator.
        used: What it ran with in the end, where that can differ from what was asked for: ``batch_size``,
            ``accumulation_steps``, ``workers``, ``device``; empty for an estimator.
        code: Digest of the project's Python when the fit began; empty where nobody took it.
    """

    model: Any
    epochs: tuple[Epoch, ...]
    best_epoch: int
    used: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""


def read_fitted(network: torch.nn.Module, folder: Path) -> Fitted:
    """Give a network the best weights of a checkpoint.

    Args:
        network: As the factory built it; changed.
        folder: What ``Trainer.save`` wrote.
    """
    import torch

    network.load_state_dict(torch.load(folder / BEST, weights_only=True, map_location="cpu"))
    progress = Progress.of(json.loads((folder / PROGRESS).read_text()))
    return Fitted(network, tuple(progress.epochs), progress.best_epoch, read_used(folder))


def read_used(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint was trained with; see ``Fitted.used``.

    Args:
        folder: What ``Trainer.save`` wrote.
    """
    kept: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
    return {name: value for name, value in kept.items() if name not in Progress.__dataclass_fields__}
