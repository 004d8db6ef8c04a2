"""Cross-validation: the project trained again on folds, each measured on rows it did not see.

All rows take part, the held-out ones too: it estimates how well this project trains on rows like these. Early
stopping watches rows taken from each fold's training part. Settings are chosen by ``kit tune``, not by this.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jobs.evaluation.refit import Refit
from kit.errors import InputError
from kit.metrics import METRICS, measure
from kit.rows import FoldKind, Rows, Split, SplitKind

_log = logging.getLogger("kit")

#: Of the outputs that metrics are measured on, which JSON does not keep.
_DTYPES = {"label": np.int64, "probabilities": np.float32, "value": np.float32}
#: Leaving out each of more rows than this would train for days.
_MAX_LEFT_OUT = 1000
#: How early stopping's rows are taken; the others as [data] says.
_CARVED: dict[FoldKind, SplitKind] = {"grouped": "grouped", "time-series": "time"}


@dataclass(frozen=True)
class CrossValidation:
    """What the folds gave.

    Attributes:
        kind: How the folds were made.
        folds: Metrics of each fold, of those its rows determine.
        mean: Metric to its mean over the folds; leaving one out, the metric over all rows together.
        std: Metric to its standard deviation over the folds; empty when rows are left out one by one.
        undefined: Metrics that at least one fold's rows do not determine, so that they have no mean.
    """

    kind: FoldKind
    folds: tuple[dict[str, float], ...]
    mean: dict[str, float]
    std: dict[str, float]
    undefined: tuple[str, ...]


def check_folds(rows: Rows, *, kind: FoldKind, n_folds: int) -> None:
    """Refuse folds that cannot be made, before anything is trained.

    Raises:
        InputError: There are too few rows, classes, groups or times for the folds, or too many rows to
            leave out one by one.
        SettingsError: [data] group or time is needed.
    """
    n_rows = len(rows.everything.rows)
    if kind == "leave-one-out" and n_rows > _MAX_LEFT_OUT:
        raise InputError(
            f"leaving out each of {n_rows} rows would train {n_rows} times; {_MAX_LEFT_OUT} rows are the "
            "most",
            hint="use --cross-validation k-fold",
        )
    for train, test in rows.folds(kind, n_folds=n_folds):
        _fold(rows, train, test, kind=kind)


def cross_validate(refit: Refit, rows: Rows, *, kind: FoldKind, n_folds: int) -> CrossValidation:
    """Train and measure on every fold.

    Args:
        refit: How the project is trained.
        rows: All rows.
        kind: How the folds are made.
        n_folds: How many folds, 2 or more; leaving one out has as many as there are rows.

    Raises:
        InputError: As for ``check_folds``; training diverged.
    """
    check_folds(rows, kind=kind, n_folds=n_folds)
    folds = list(rows.folds(kind, n_folds=n_folds))
    done = []
    for number, (train, test) in enumerate(folds, start=1):
        work = partial(_measured, refit, rows, (train, test), kind=kind)
        done.append(refit.remembered(f"{kind}-{number}-of-{len(folds)}", work))
        _log.info("fold %d of %d is measured", number, len(folds))
    return _summary(kind, done, task=refit.project.settings.project.task)


def _fold(rows: Rows, train: np.ndarray, test: np.ndarray, *, kind: FoldKind) -> Split:
    """Make a fold a split of its own: what early stopping watches comes out of its training rows."""
    kept, watched = rows.carve(train, kind=_CARVED.get(kind))
    return rows.split(train=kept, validation=watched, test=test)


def _measured(
    refit: Refit, rows: Rows, positions: tuple[np.ndarray, np.ndarray], *, kind: FoldKind
) -> dict[str, Any]:
    fold = _fold(rows, *positions, kind=kind)
    outputs = refit.answer(fold)(fold.test.tensors)
    measured = measure(refit.project.settings.project.task, fold.test.labels, outputs)
    kept = {name: outputs[name].tolist() for name in _DTYPES if name in outputs}
    return {"metrics": measured.values, "labels": fold.test.labels.tolist(), "outputs": kept}


def _summary(kind: FoldKind, done: list[dict[str, Any]], *, task: str) -> CrossValidation:
    folds = tuple(
        {metric: each["metrics"][metric] for metric in METRICS[task] if metric in each["metrics"]}
        for each in done
    )
    everywhere = [metric for metric in METRICS[task] if all(metric in fold for fold in folds)]
    if kind == "leave-one-out":
        labels = np.concatenate([np.array(each["labels"]) for each in done])
        outputs = {
            name: np.concatenate([np.array(each["outputs"][name], dtype=_DTYPES[name]) for each in done])
            for name in done[0]["outputs"]
        }
        together = measure(task, labels, outputs)
        return CrossValidation(kind, folds, together.values, {}, tuple(together.undefined))
    figures = {metric: [fold[metric] for fold in folds] for metric in everywhere}
    return CrossValidation(
        kind,
        folds,
        {metric: float(np.mean(values)) for metric, values in figures.items()},
        {metric: float(np.std(values, ddof=1)) for metric, values in figures.items()},
        tuple(metric for metric in METRICS[task] if metric not in everywhere),
    )
