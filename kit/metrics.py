"""Metrics: how good answers are, by scikit-learn's definitions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np

from kit.errors import InputError, nearest

#: Metrics of each task, the leading one first.
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "auc", "f1_macro", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
#: Metrics of which less is better.
LOSSES = frozenset({"log_loss", "rmse", "mae"})


def leading_metric(task: str) -> str:
    """Name the metric a task is compared by where nothing else is said."""
    return METRICS[task][0]


def score(metric: str, labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
    """Measure answers against the truth.

    Args:
        metric: A name in ``METRICS``.
        labels: Class indices or values, shape (n_rows,).
        outputs: The model's outputs: ``label`` and ``probabilities``, or ``value``.

    Returns:
        The metric, dimensionless except ``rmse`` and ``mae``, which have the label's unit.

    Raises:
        InputError: The metric is unknown or does not fit the outputs, an output is not finite, or the
            rows do not determine the metric.
    """
    known = {
        name: _SCORES[name] for name in METRICS["regression" if "value" in outputs else "classification"]
    }
    if metric not in known:
        raise InputError(f"{metric!r} does not measure this task", hint=nearest(metric, known))
    for name in ("probabilities", "value"):
        if name in outputs and not np.isfinite(outputs[name]).all():
            raise InputError(
                f"{metric!r} cannot be measured: the model's {name!r} holds values that are not finite",
                hint="lower the learning rate, or look for extreme values in the data",
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns and answers NaN, which is refused below
        value = float(known[metric](labels, outputs))
    if not np.isfinite(value):
        raise InputError(
            f"{metric!r} is not defined on these {len(labels)} rows; some class or value is not among them",
            hint="hold out more rows",
        )
    return value


def evaluate(task: str, labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Measure every metric of a task; see ``score``."""
    return {metric: score(metric, labels, outputs) for metric in METRICS[task]}


def _auc(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
    from sklearn.metrics import roc_auc_score

    probabilities = np.asarray(outputs["probabilities"], dtype=np.float64)
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(
        roc_auc_score(labels, probabilities, multi_class="ovr", labels=np.arange(probabilities.shape[1]))
    )


def _log_loss(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
    taken = outputs["probabilities"][np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(taken, np.finfo(np.float64).tiny, 1.0)).mean())


def _f1_macro(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, outputs["label"], average="macro"))


def _r2(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(labels, outputs["value"]))


def _error(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    return outputs["value"].astype(np.float64) - labels.astype(np.float64)


_SCORES: dict[str, Callable[[np.ndarray, Mapping[str, np.ndarray]], float]] = {
    "accuracy": lambda labels, outputs: float(np.mean(outputs["label"] == labels)),
    "auc": _auc,
    "f1_macro": _f1_macro,
    "log_loss": _log_loss,
    "rmse": lambda labels, outputs: float(np.sqrt(np.mean(_error(outputs, labels) ** 2))),
    "mae": lambda labels, outputs: float(np.mean(np.abs(_error(outputs, labels)))),
    "r2": _r2,
}
