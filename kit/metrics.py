"""Metrics: how good answers are, by scikit-learn's definitions.

Each metric is written once, over rows that carry counts: with every count 1 it is the metric, and with
the counts of many resamples, one line each, it is the metric on all of them at once (``kit.bootstrap``).
The numbers are scikit-learn's with ``sample_weight``. Where scikit-learn puts a number in place of one that
the rows do not determine (an average precision without a class, an R2 of equal labels, a share of a zero
target), the metric is undefined here and says so. Knows nothing of models, files or gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kit.calibration import error_by_bin
from kit.errors import InputError, nearest

#: Metrics of each task, the leading one first.
METRICS: dict[str, tuple[str, ...]] = {
    "classification": (
        *("accuracy", "auc", "f1_macro", "log_loss", "average_precision", "calibration_error"),
        *("f1_weighted", "precision_macro", "recall_macro"),
    ),
    "regression": ("rmse", "mae", "r2", "mse", "mape"),
}
#: Metrics of which less is better.
LOSSES = frozenset({"calibration_error", "log_loss", "mae", "mape", "mse", "rmse"})


class UndefinedMetricError(InputError):
    """The rows do not determine a metric."""


Outputs = Mapping[str, np.ndarray]
#: A metric over counted rows: weights of shape (n_samples, n_rows), whole numbers from 0 in float64, to
#: values of shape (n_samples,), NaN where a sample's rows do not determine it.
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """What a task's metrics are on some rows.

    Attributes:
        values: Metric to value, of those the rows determine, in the order of ``METRICS``.
        undefined: Metric to the reason it has no value.
    """

    values: dict[str, float]
    undefined: dict[str, str]


@dataclass(frozen=True)
class ClassFigures:
    """How one class is recognised; a figure whose rows are missing is 0, as in scikit-learn.

    Attributes:
        precision: Share of the rows given this class that are of it.
        recall: Share of the rows of this class that are given it.
        f1: Harmonic mean of the two.
        support: Rows of this class.
    """

    precision: float
    recall: float
    f1: float
    support: int


def leading_metric(task: str) -> str:
    """Name the metric a task is compared by where nothing else is said."""
    return METRICS[task][0]


def score(metric: str, labels: np.ndarray, outputs: Outputs) -> float:
    """Measure answers against the truth.

    Args:
        metric: A name in ``METRICS``.
        labels: Class indices or values, shape (n_rows,).
        outputs: The model's outputs: ``label`` and ``probabilities``, or ``value``.

    Returns:
        The metric, dimensionless except ``rmse`` and ``mae``, which have the label's unit, and ``mse``, which
        has its square.

    Raises:
        InputError: The metric is unknown or does not fit the outputs, or an output is not finite.
        UndefinedMetricError: The rows do not determine the metric.
    """
    made = statistic(metric, labels, outputs)
    value = float(made(np.ones((1, len(labels))))[0]) if len(labels) else float("nan")
    if not np.isfinite(value):
        raise UndefinedMetricError(
            f"{metric!r} is not defined on these {len(labels)} rows; {_why_undefined(metric)}",
            hint="hold out more rows",
        )
    return value


def statistic(metric: str, labels: np.ndarray, outputs: Outputs) -> Statistic:
    """Make a metric of weighted rows, to be asked for many samples at once.

    Args:
        metric: A name in ``METRICS``.
        labels: As in ``score``.
        outputs: As in ``score``.

    Raises:
        InputError: The metric is unknown or does not fit the outputs, or an output is not finite.
    """
    known = METRICS["regression" if "value" in outputs else "classification"]
    if metric not in known:
        raise InputError(f"{metric!r} does not measure this task", hint=nearest(metric, known))
    for name in ("probabilities", "value"):
        if name in outputs and not np.isfinite(outputs[name]).all():
            raise InputError(
                f"{metric!r} cannot be measured: the model's {name!r} holds values that are not finite",
                hint="lower the learning rate, or look for extreme values in the data",
            )
    return _STATISTICS[metric](labels, outputs)


def measure(task: str, labels: np.ndarray, outputs: Outputs) -> Measured:
    """Measure every metric of a task that the rows determine.

    Raises:
        InputError: There are no rows, or an output is not finite.
    """
    if not len(labels):
        raise InputError("there are no rows to measure on", hint="hold out more rows")
    values, undefined = {}, {}
    for metric in METRICS[task]:
        value = float(statistic(metric, labels, outputs)(np.ones((1, len(labels))))[0])
        if np.isfinite(value):
            values[metric] = value
        else:
            undefined[metric] = f"not defined on these {len(labels)} rows; {_why_undefined(metric)}"
    return Measured(values, undefined)


def evaluate(task: str, labels: np.ndarray, outputs: Outputs) -> dict[str, float]:
    """Give every metric of a task that the rows determine; see ``measure``, which names the others."""
    return measure(task, labels, outputs).values


def by_class(labels: np.ndarray, answered: np.ndarray, *, n_classes: int) -> tuple[ClassFigures, ...]:
    """Measure each class.

    Args:
        labels: Class indices, shape (n_rows,).
        answered: The model's class indices, shape (n_rows,).
        n_classes: How many classes there are, those without rows included.
    """
    right = np.bincount(labels[labels == answered], minlength=n_classes)
    support = np.bincount(labels, minlength=n_classes)
    given = np.bincount(answered, minlength=n_classes)
    return tuple(
        ClassFigures(
            precision=float(right[each] / max(given[each], 1)),
            recall=float(right[each] / max(support[each], 1)),
            f1=float(2 * right[each] / max(given[each] + support[each], 1)),
            support=int(support[each]),
        )
        for each in range(n_classes)
    )


def sum_by_group(weights: np.ndarray, groups: np.ndarray, *, n_groups: int) -> np.ndarray:
    """Sum weights over the rows of each group.

    Args:
        weights: Shape (n_samples, n_rows).
        groups: A number below ``n_groups`` for each row, shape (n_rows,).
        n_groups: How many groups there are.

    Returns:
        Shape (n_samples, n_groups); 0 for a group without rows.
    """
    sums = np.empty((len(weights), n_groups))
    for line, sample in zip(sums, weights, strict=True):  # twice as fast as a product with one column a group
        line[:] = np.bincount(groups, weights=sample, minlength=n_groups)
    return sums


def _why_undefined(metric: str) -> str:
    if metric == "mape":
        return "a target is 0, so no error is a share of it"
    return "some class or value is not among them"


def _mean(values: np.ndarray) -> Statistic:
    values = np.asarray(values, dtype=np.float64)
    return lambda weights: weights @ values / weights.sum(axis=1)


def _accuracy(labels: np.ndarray, outputs: Outputs) -> Statistic:
    return _mean(outputs["label"] == labels)


def _log_loss(labels: np.ndarray, outputs: Outputs) -> Statistic:
    taken = outputs["probabilities"][np.arange(len(labels)), labels]
    least = float(np.finfo(taken.dtype).eps)  # nothing is more certain than its type can tell from certainty
    return _mean(-np.log(np.clip(taken.astype(np.float64), least, 1 - least)))


def _by_class_mean(figure: str, *, weighted: bool = False) -> Callable[[np.ndarray, Outputs], Statistic]:
    """Average a figure over the classes that occur in the labels or the answers, as scikit-learn does."""

    def make(labels: np.ndarray, outputs: Outputs) -> Statistic:
        n_classes = outputs["probabilities"].shape[1]
        met, pairs = np.unique(labels * n_classes + outputs["label"], return_inverse=True)
        true, answered = np.divmod(met, n_classes)
        hit = np.where(answered == true, true, n_classes)  # misses fall into a group of their own

        def value(weights: np.ndarray) -> np.ndarray:
            counts = sum_by_group(weights, pairs, n_groups=len(met))
            right = sum_by_group(counts, hit, n_groups=n_classes + 1)[:, :n_classes]
            support = sum_by_group(counts, true, n_groups=n_classes)
            given = sum_by_group(counts, answered, n_groups=n_classes)
            below = {"precision": given, "recall": support, "f1": (given + support) / 2}[figure]
            each = np.divide(right, below, out=np.zeros_like(right), where=below > 0)
            share = support if weighted else ((given + support) > 0).astype(np.float64)
            return np.asarray((each * share).sum(axis=1) / share.sum(axis=1))

        return value

    return make


def _one_against_the_rest(
    ranked: Callable[[np.ndarray, np.ndarray], Statistic],
) -> Callable[[np.ndarray, Outputs], Statistic]:
    """Measure a ranking: by the second of two classes, or the mean over each class against the rest."""

    def make(labels: np.ndarray, outputs: Outputs) -> Statistic:
        probabilities = np.asarray(outputs["probabilities"], dtype=np.float64)
        if probabilities.shape[1] == 2:
            binary = ranked(labels == 1, probabilities[:, 1])
            return lambda weights: binary(weights.astype(np.int32))
        # As they are: shares of a float32 sum, made to sum to 1 anew, would order rows that tie.
        each = [ranked(labels == index, probabilities[:, index]) for index in range(probabilities.shape[1])]

        def value(weights: np.ndarray) -> np.ndarray:
            counts = weights.astype(np.int32)  # whole numbers sum in a tenth of the time, and exactly
            return np.asarray(np.mean([one(counts) for one in each], axis=0))

        return value

    return make


def _auc(positive: np.ndarray, scores: np.ndarray) -> Statistic:
    """Area under the ROC curve: the share of pairs of a positive and another row that are ranked right."""
    order, first, behind, found = _ranking(positive, scores)

    def value(counts: np.ndarray) -> np.ndarray:
        ranked = np.take(counts, order, axis=1)
        mine, below = np.take(ranked, found, axis=1).astype(np.int64), _running(ranked)
        total, n_rows = mine.sum(axis=1), below[:, -1]
        # A tie counts half, and among the positives themselves half of all pairs are right.
        both = np.take(below, first, axis=1) + np.take(below, behind, axis=1)
        right_twice = (mine * both).sum(axis=1) - total**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(right_twice / 2 / (total * (n_rows - total)))

    return value


def _average_precision(positive: np.ndarray, scores: np.ndarray) -> Statistic:
    """Mean of the precision at each threshold, weighted by the recall it adds."""
    order, _, behind, found = _ranking(positive, -scores)
    n_found = np.searchsorted(found, behind, side="left")  # positives up to the end of each one's tie

    def value(counts: np.ndarray) -> np.ndarray:
        ranked = np.take(counts, order, axis=1)
        mine, below = np.take(ranked, found, axis=1), _running(ranked)
        hits, shown = np.take(_running(mine), n_found, axis=1), np.take(below, behind, axis=1)
        precision = np.divide(hits, shown, out=np.zeros(hits.shape), where=shown > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((mine * precision).sum(axis=1) / mine.sum(axis=1))

    return value


def _ranking(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort rows by score.

    Returns:
        The order of all rows; and for each positive row in it: where its tie begins, where it has
        ended, and its own place.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    found = np.flatnonzero(positive[order])
    first = np.searchsorted(ranked, ranked[found], side="left")
    return order, first, np.searchsorted(ranked, ranked[found], side="right"), found


def _running(counts: np.ndarray) -> np.ndarray:
    """Sum along the rows: before the first, after the first, and so on; shape (n_samples, n_rows + 1)."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int64)
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums


def _calibration_error(labels: np.ndarray, outputs: Outputs) -> Statistic:
    gaps, bins, n_bins = error_by_bin(labels, outputs["probabilities"])

    def value(weights: np.ndarray) -> np.ndarray:
        summed = sum_by_group(weights * gaps, bins, n_groups=n_bins)
        return np.asarray(np.abs(summed).sum(axis=1) / weights.sum(axis=1))

    return value


def _errors(labels: np.ndarray, outputs: Outputs) -> np.ndarray:
    return np.asarray(outputs["value"].astype(np.float64) - labels.astype(np.float64))


def _mse(labels: np.ndarray, outputs: Outputs) -> Statistic:
    return _mean(_errors(labels, outputs) ** 2)


def _rmse(labels: np.ndarray, outputs: Outputs) -> Statistic:
    squared = _mse(labels, outputs)
    return lambda weights: np.sqrt(squared(weights))


def _mape(labels: np.ndarray, outputs: Outputs) -> Statistic:
    if (labels == 0).any():
        return lambda weights: np.full(len(weights), np.nan)
    least = np.finfo(np.float64).eps  # what scikit-learn divides by at least
    return _mean(np.abs(_errors(labels, outputs)) / np.maximum(np.abs(labels.astype(np.float64)), least))


def _r2(labels: np.ndarray, outputs: Outputs) -> Statistic:
    squared = _errors(labels, outputs) ** 2
    centred = labels.astype(np.float64) - labels.astype(np.float64).mean()
    codes = np.unique(labels, return_inverse=True)[1]

    def value(weights: np.ndarray) -> np.ndarray:
        total = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(axis=1)
        lowest = np.where(weights > 0, codes, len(codes)).min(axis=1)
        equal = lowest == np.where(weights > 0, codes, -1).max(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(equal, np.nan, 1 - weights @ squared / total)

    return value


_STATISTICS: dict[str, Callable[[np.ndarray, Outputs], Statistic]] = {
    "accuracy": _accuracy,
    "auc": _one_against_the_rest(_auc),
    "average_precision": _one_against_the_rest(_average_precision),
    "calibration_error": _calibration_error,
    "f1_macro": _by_class_mean("f1"),
    "f1_weighted": _by_class_mean("f1", weighted=True),
    "log_loss": _log_loss,
    "precision_macro": _by_class_mean("precision"),
    "recall_macro": _by_class_mean("recall"),
    "mae": lambda labels, outputs: _mean(np.abs(_errors(labels, outputs))),
    "mape": _mape,
    "mse": _mse,
    "r2": _r2,
    "rmse": _rmse,
}
