"""Measure a target against the reference: metric, agreement, output error, latency, budgets.

Whatever answers rows can be measured; this module knows neither runtimes nor files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kit.errors import InputError
from kit.metrics import LOSSES, score
from kit.runner import label_agreement, output_error
from kit.signature import Tensors

Answer = Callable[[Tensors], Tensors]

_BATCH_ROWS = 1024
_WARM_UP_CALLS = 20


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
class Budgets:
    """What a target may cost; see ``kit.settings.ExportSettings``."""

    max_metric_drop: float
    max_output_error: float
    max_size_mb: float
    max_latency_ms: float

    def broken(self, comparison: Comparison, *, size_bytes: int, latency: Latency) -> str:
        """Name every figure that is over its budget; empty when none is."""
        figures = (
            (f"{comparison.metric} drop", comparison.drop, self.max_metric_drop, "max_metric_drop"),
            ("output error", comparison.output_error, self.max_output_error, "max_output_error"),
            ("size in MB", size_bytes / 1e6, self.max_size_mb, "max_size_mb"),
            ("median latency in ms", latency.p50_ms, self.max_latency_ms, "max_latency_ms"),
        )
        return "; ".join(
            f"{name} {figure:.4g} is above {key} = {budget:g}"
            for name, figure, budget, key in figures
            if not figure <= budget  # written so that NaN is over every budget
        )


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
    for call in range(-_WARM_UP_CALLS, n_calls):
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
