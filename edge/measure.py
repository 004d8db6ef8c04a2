"""Measure a file against the reference: metric, agreement, output error, latency, budgets.

Whatever answers rows can be measured; this module knows neither runtimes nor files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.errors import InputError
from kit.metrics import LOSSES, score
from kit.runner import label_agreement, output_error
from kit.tensors import Tensors

Answer = Callable[[Tensors], Tensors]

ACCURACY = "accuracy"
"""Fault: other answers than the reference's."""

_BATCH_ROWS = 1024
_WARM_UP_CALLS = 20
_MAX_CALLS_S = 4.0
_SLOWER_SHARE = 1.05
_SLOWER_MS = 0.03
_GAIN_SHARE = 0.95
_SMALL_BYTES = 100_000
_MAX_CLASSES = 50
_ERROR_BINS = 40


@dataclass(frozen=True)
class Latency:
    """How long one row takes, in milliseconds: the median and the 95th percentile."""

    p50_ms: float
    p95_ms: float

    def to_json(self) -> dict[str, float]:
        """Give both as JSON."""
        return {"p50": round(self.p50_ms, 4), "p95": round(self.p95_ms, 4)}


@dataclass(frozen=True)
class Comparison:
    """A target's answers beside the reference's, on the same held-out rows.

    Attributes:
        metric: The metric's name.
        reference: The reference's value of it.
        value: The target's value of it.
        drop: How much worse the target is; below 0 when it is better. For a loss, the rise as a
            share of the reference's loss, so it has no unit either.
        agreement: Share of rows with the reference's label; None for regression.
        output_error: Mean difference in standard deviations of the reference's outputs.
        n_rows: How many rows were compared.
    """

    metric: str
    reference: float
    value: float
    drop: float
    agreement: float | None
    output_error: float
    n_rows: int


@dataclass(frozen=True)
class Figures:
    """What was measured of one file.

    Attributes:
        comparison: With the reference, on held-out rows.
        size_bytes: Size of the bundle.
        model_bytes: Size of the model files in it.
        float_bytes: Size of the same engine's float32 files; None where nothing here runs them.
        latency: Of one row; None likewise.
        float_latency: Of the same engine's float32 file, taking turns; None likewise.
        memory_mb: Most resident memory of a fresh process that loads and runs it; None likewise.
        load_s: Time such a process takes to be ready; None likewise.
    """

    comparison: Comparison
    size_bytes: int
    model_bytes: int
    float_bytes: int | None = None
    latency: Latency | None = None
    float_latency: Latency | None = None
    memory_mb: float | None = None
    load_s: float | None = None

    @property
    def slowdown(self) -> float | None:
        """How many times the latency of float32 it takes; None where either is not known."""
        if self.latency is None or self.float_latency is None:
            return None
        return self.latency.p50_ms / self.float_latency.p50_ms

    @property
    def gains_nothing(self) -> bool:
        """Whether it is neither smaller nor faster than float32, and not so small that headers decide."""
        if self.float_bytes is None or self.float_bytes < _SMALL_BYTES or self.slowdown is None:
            return False
        return self.model_bytes > self.float_bytes * _GAIN_SHARE and self.slowdown > _GAIN_SHARE

    @property
    def is_slower(self) -> bool:
        """Whether it is slower than float32 by more than two such measurements differ by anyhow."""
        if self.latency is None or self.float_latency is None:
            return False
        limit_ms = self.float_latency.p50_ms * _SLOWER_SHARE + _SLOWER_MS
        return self.latency.p50_ms > limit_ms


@dataclass(frozen=True)
class Budgets:
    """What a target may cost; see ``kit.settings.ExportSettings``."""

    max_metric_drop: float
    max_output_error: float
    max_size_mb: float
    max_latency_ms: float
    max_memory_mb: float
    max_slowdown: float | None = None

    def broken(self, figures: Figures) -> dict[str, str]:
        """Name every figure that is over its budget.

        Returns:
            Kind of the fault (``accuracy``, ``size``, ``latency`` or ``memory``) to what is said about it;
            empty when every budget is kept.
        """
        comparison = figures.comparison
        latency_ms = None if figures.latency is None else figures.latency.p50_ms
        size_mb = figures.size_bytes / 1e6
        slowdown = float("inf") if self.max_slowdown is None else self.max_slowdown
        drop, error = comparison.drop, comparison.output_error
        rows: tuple[tuple[str, str, float | None, float, str], ...] = (
            (ACCURACY, f"{comparison.metric} drop", drop, self.max_metric_drop, "max_metric_drop"),
            (ACCURACY, "output error", error, self.max_output_error, "max_output_error"),
            ("size", "size in MB", size_mb, self.max_size_mb, "max_size_mb"),
            ("latency", "median latency in ms", latency_ms, self.max_latency_ms, "max_latency_ms"),
            ("memory", "resident memory in MB", figures.memory_mb, self.max_memory_mb, "max_memory_mb"),
            ("latency", "share of float32's latency", figures.slowdown, slowdown, "max_slowdown"),
        )
        faults: dict[str, str] = {}
        for kind, name, figure, budget, key in rows:
            if figure is not None and not figure <= budget:  # written so that NaN is over every budget
                said = f"{name} {figure:.4g} is above {key} = {budget:g}"
                faults[kind] = f"{faults[kind]}; {said}" if kind in faults else said
        return faults


def answer_all(answer: Answer, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Answer many rows in batches of bounded size."""
    n_rows = len(next(iter(tensors.values())))
    parts = [
        answer({name: array[start : start + _BATCH_ROWS] for name, array in tensors.items()})
        for start in range(0, n_rows, _BATCH_ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def output_scale(reference: Mapping[str, np.ndarray]) -> float:
    """Give the standard deviation of the reference's raw outputs, the unit of output errors.

    Raises:
        InputError: The reference answers every row alike.
    """
    outputs = reference["logits" if "logits" in reference else "value"]
    scale = float(np.std(outputs, dtype=np.float64))
    if not scale > 0 or not np.isfinite(scale):
        raise InputError(
            "the model gives every held-out row the same answer, so nothing can be compared",
            hint="train it longer, or check its data",
        )
    return scale


def compare(
    reference: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    metric: str,
    scale: float,
) -> Comparison:
    """Compare a target's answers with the reference's.

    Args:
        reference: The reference's answers, shape (n_rows, ...) each.
        found: The target's answers to the same rows.
        labels: The truth, shape (n_rows,).
        metric: A name in ``kit.metrics.METRICS``.
        scale: See ``output_scale``.
    """
    before, after = score(metric, labels, reference), score(metric, labels, found)
    if metric in LOSSES:
        drop = (after - before) / before if before else (0.0 if after == before else float("inf"))
    else:
        drop = before - after
    return Comparison(
        metric=metric,
        reference=before,
        value=after,
        drop=drop,
        agreement=label_agreement(found, reference),
        output_error=output_error(found, reference, scale=scale),
        n_rows=len(labels),
    )


def measure_latency(
    answers: Mapping[str, Answer], tensors: Mapping[str, np.ndarray], *, n_calls: int = 200
) -> dict[str, Latency]:
    """Time answers to one row at a time, taking turns so that all meet the same disturbances.

    Args:
        answers: What is timed, by name.
        tensors: Rows to ask about, in a cycle.
        n_calls: Timed calls of each, after a warm-up.

    Returns:
        The latency of each.
    """
    n_rows = len(next(iter(tensors.values())))
    rows = [{name: array[index : index + 1] for name, array in tensors.items()} for index in range(n_rows)]
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    end_s = time.perf_counter() + _MAX_CALLS_S
    for call in range(-_WARM_UP_CALLS, n_calls):
        if call > _WARM_UP_CALLS and time.perf_counter() > end_s:
            break
        row = rows[call % n_rows]
        for name, answer in answers.items():
            start = time.perf_counter()
            answer(row)
            elapsed = time.perf_counter() - start
            if call >= 0:
                seconds[name].append(elapsed)
    return {
        name: Latency(*(float(value) * 1e3 for value in np.percentile(taken, (50, 95))))
        for name, taken in seconds.items()
    }


def confusion(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], *, classes: Sequence[object]
) -> dict[str, Any] | None:
    """Count how often a target says one class where the reference says another.

    Args:
        reference: The reference's answers.
        found: The target's answers to the same rows.
        classes: What the labels stand for.

    Returns:
        ``labels`` and ``counts``, a row per label of the reference, a column per label of the target; None
        for regression and where a page could not show it.
    """
    if "label" not in reference or not 1 < len(classes) <= _MAX_CLASSES:
        return None
    n = len(classes)
    counts = np.bincount(reference["label"] * n + found["label"], minlength=n * n).reshape(n, n)
    return {"labels": [str(each) for each in classes], "counts": counts.tolist()}


def error_histogram(
    reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], *, scale: float
) -> dict[str, Any] | None:
    """Count signed output errors, in standard deviations of the reference's outputs.

    Returns:
        ``edges`` and ``counts``; None where an output is not finite.
    """
    name = "logits" if "logits" in reference else "value"
    errors = (found[name].astype(np.float64) - reference[name]).reshape(-1) / scale
    if not np.isfinite(errors).all():
        return None
    end = float(np.abs(errors).max()) or 1e-6
    counts, edges = np.histogram(errors, bins=_ERROR_BINS, range=(-end, end))
    return {"edges": [float(f"{each:.6g}") for each in edges], "counts": counts.tolist()}
