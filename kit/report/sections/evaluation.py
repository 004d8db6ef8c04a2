"""The evaluation section: the newest measured version, its gates, its errors and its explanations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kit.metrics import LOSSES
from kit.report.plots import bars
from kit.report.plots import evaluation as plots
from kit.report.records.making import ClassFacts, CurvePoint, EvaluateRecord, Fold, Gate, Slice

_MAX_CLASSES = 30
_MAX_SLICES = 25
_MAX_FOLDS = 12
#: Gates on these are decided on growth as a share, not on a difference.
_GROWTHS = frozenset({"latency", "size"})


@dataclass(frozen=True)
class Evaluation:
    """The newest measured version as it is shown; every ``n_more`` says how many are left out."""

    run: EvaluateRecord
    runs: tuple[EvaluateRecord, ...]
    gates: str | None
    calibration: str | None
    classes: tuple[tuple[str, ClassFacts], ...]
    n_more_classes: int
    slices: tuple[Slice, ...]
    n_more_slices: int
    importance: str | None
    n_more_importance: int
    shap: str | None
    n_more_shap: int
    folds: tuple[Fold, ...]
    n_more_folds: int
    learning_curve: str | None
    validation_curve: str | None


def evaluation(runs: tuple[EvaluateRecord, ...]) -> Evaluation | None:
    """Show the newest measured version, and that there were others."""
    if not runs:
        return None
    run = runs[0]
    classes = list(run.by_class.items())
    if len(classes) > _MAX_CLASSES:  # the worst ones are worth the room
        classes.sort(key=lambda each: 1.0 if each[1].f1 is None else each[1].f1)
    folds = run.cross_validation.folds if run.cross_validation else ()
    importance, n_more_importance = _bars(
        [(each.column, each.mean, each.std) for each in run.importance],
        x_label=f"loss of {run.metric} when the column is shuffled",
        name="importance",
    )
    shap, n_more_shap = _bars(
        [(each.column, each.mean_abs, None) for each in run.shap], x_label="mean |SHAP value|", name="shap"
    )
    varied = run.validation_curve
    return Evaluation(
        run=run,
        runs=runs,
        gates=_gates(run.gates),
        calibration=_calibration(run),
        classes=tuple(classes[:_MAX_CLASSES]),
        n_more_classes=max(len(classes) - _MAX_CLASSES, 0),
        slices=run.slices[:_MAX_SLICES],
        n_more_slices=max(len(run.slices) - _MAX_SLICES, 0),
        importance=importance,
        n_more_importance=n_more_importance,
        shap=shap,
        n_more_shap=n_more_shap,
        folds=folds[:_MAX_FOLDS],
        n_more_folds=max(len(folds) - _MAX_FOLDS, 0),
        learning_curve=_curve(run.learning_curve, run, x_label="training rows", name="learning-curve"),
        validation_curve=_curve(varied.values, run, x_label=varied.name, name="validation-curve")
        if varied
        else None,
    )


def loss_of(gate: Gate) -> float | None:
    """Say by how much a candidate is worse than the champion, in the unit its gate is decided in.

    Args:
        gate: One of kind ``max_loss``.

    Returns:
        The loss: a difference, or growth as a share for latency and size; None where it was not measured.
    """
    if gate.value is None or gate.champion is None:
        return None
    if gate.metric in _GROWTHS:
        return gate.value / gate.champion - 1 if gate.champion else None
    return gate.value - gate.champion if gate.metric in LOSSES else gate.champion - gate.value


def interval_of(gate: Gate) -> tuple[float, float] | None:
    """Give the interval of a gate's loss, the lucky end first; None where none was made."""
    if gate.low is None or gate.high is None:
        return None
    worse_is_more = gate.metric in LOSSES or gate.metric in _GROWTHS
    return (gate.low, gate.high) if worse_is_more else (-gate.high, -gate.low)


def _gates(gates: Sequence[Gate]) -> str | None:
    drawn = [bounded for gate in gates if (bounded := _bounded(gate)) is not None]
    return plots.forest(drawn[: plots.MAX_GATES], name="gates") if drawn else None


def _bounded(gate: Gate) -> plots.Bounded | None:
    """Lay a gate out in the unit it is decided in; None where nothing was measured."""
    floor = gate.kind == "floor"
    value = gate.value if floor else loss_of(gate)
    if value is None:
        return None
    low, high = interval_of(gate) or (value, value)
    return plots.Bounded(
        gate.metric if floor else f"{gate.metric}, loss",
        min(low, value),
        value,
        max(high, value),
        gate.bound,
        fails_above=not floor or gate.metric in LOSSES,
        is_loss=not floor,
        passed=gate.passed,
    )


def _calibration(run: EvaluateRecord) -> str | None:
    if run.calibration is None:
        return None
    found = run.calibration
    points = [
        (confidence, accuracy, count)
        for confidence, accuracy, count in zip(found.confidence, found.accuracy, found.counts, strict=False)
        if confidence is not None and accuracy is not None and count
    ]
    return plots.calibration(points, name="calibration") if points else None


def _bars(
    values: list[tuple[str, float, float | None]], *, x_label: str, name: str
) -> tuple[str | None, int]:
    if not values:
        return None, 0
    values.sort(key=lambda each: (-each[1], each[0]))
    drawn = bars.importance(
        values[: bars.MAX_BARS], x_label=x_label, title=f"Columns by {x_label}", name=name
    )
    return drawn, max(len(values) - bars.MAX_BARS, 0)


def _curve(points: Sequence[CurvePoint], run: EvaluateRecord, *, x_label: str, name: str) -> str | None:
    laid = [
        (
            point.value if point.n_rows is None else point.n_rows,
            math.nan if point.train is None else point.train,
            math.nan if point.validation is None else point.validation,
        )
        for point in points
    ]
    if not any(math.isfinite(height) for point in laid for height in point[1:]):
        return None
    title = f"Training and validation rows by {x_label}"
    return plots.curve(laid, x_label=x_label, y_label=run.metric, title=title, name=name)
