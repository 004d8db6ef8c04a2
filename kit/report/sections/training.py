"""The training section: the newest run and the champion's, with curves and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.registry import VersionRecord
from kit.report.plots import training as plots
from kit.report.records.making import TrainRecord

_MAX_CONFUSIONS = 5


@dataclass(frozen=True)
class Training:
    """A training run as it is shown."""

    run: TrainRecord
    is_champion: bool
    curves: str | None
    confusion: str | None
    confusions: tuple[tuple[str, str, int, int], ...]


def trainings(runs: Sequence[TrainRecord], champion: VersionRecord | None) -> tuple[Training, ...]:
    """Show the newest run and, where that is another one, the champion's."""
    crowned = [run for run in runs if champion is not None and run.digest == champion.digest][:1]
    shown = [*runs[:1], *(run for run in crowned if run != runs[0])]
    return tuple(
        _training(run, name=f"training-{index}", is_champion=run in crowned)
        for index, run in enumerate(shown)
    )


def _training(run: TrainRecord, *, name: str, is_champion: bool) -> Training:
    curves = matrix = None
    losses = [
        (each.epoch, each.train_loss, each.validation_loss)
        for each in run.epochs
        if each.train_loss is not None and each.validation_loss is not None
    ]
    if losses:
        curves = plots.training_curves(
            [epoch for epoch, _, _ in losses],
            [train for _, train, _ in losses],
            [validation for _, _, validation in losses],
            best_epoch=run.best_epoch,
            name=f"{name}-curves",
        )
    wrong: list[tuple[str, str, int, int]] = []
    if run.has_confusion:
        if len(run.classes) <= plots.MAX_CLASSES:
            matrix = plots.confusion(run.confusion, run.classes, name=f"{name}-confusion")
        wrong = [
            (run.classes[true], run.classes[answered], count, sum(line))
            for true, line in enumerate(run.confusion)
            for answered, count in enumerate(line)
            if count and true != answered
        ]
        wrong.sort(key=lambda each: -each[2])
    return Training(run, is_champion, curves, matrix, tuple(wrong[:_MAX_CONFUSIONS]))
