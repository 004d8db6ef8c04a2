"""Gates: rules a candidate must pass before it may be promoted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kit.errors import InputError, nearest
from kit.metrics import LOSSES


@dataclass(frozen=True)
class GateResult:
    """How a candidate did at one gate.

    Attributes:
        metric: What was measured.
        value: What the candidate reached.
        bound: What it had to reach (or stay under, for losses).
        passed: Whether it did.
    """

    metric: str
    value: float
    bound: float
    passed: bool


def check_floors(metrics: Mapping[str, float], floors: Mapping[str, float]) -> tuple[GateResult, ...]:
    """Hold a candidate's metrics against fixed bounds.

    Args:
        metrics: Metric to value.
        floors: Metric to the bound: a floor, or a ceiling for losses.

    Raises:
        InputError: A floor names a metric that was not measured.
    """
    results = []
    for metric, bound in sorted(floors.items()):
        if metric not in metrics:
            raise InputError(f"the gate {metric!r} was not measured", hint=nearest(metric, metrics))
        value = metrics[metric]
        passed = value <= bound if metric in LOSSES else value >= bound
        results.append(GateResult(metric, value, bound, passed))
    return tuple(results)
