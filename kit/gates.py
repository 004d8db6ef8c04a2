"""Gates: rules a candidate must pass before it may be promoted.

A floor holds a metric against a fixed bound. A bounded loss holds it against the champion, and is
decided on the unlucky end of a paired bootstrap interval: what the candidate may have lost must be
allowed, not what it seems to have lost. What cannot be decided does not pass, and says why. Knows numbers
and labels alone; who is champion and what answers rows is ``jobs.judge``'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from kit.bootstrap import Bootstrap, Draw, Interval, difference
from kit.errors import InputError, nearest
from kit.metrics import LOSSES, Outputs, Statistic, UndefinedMetricError, score, statistic

Kind = Literal["floor", "max_loss"]
_TOO_FEW = "are fewer than min_rows ="
_TOO_FEW_GROUPS = "groups are fewer than"
_OTHER_QUESTION = "the champion was trained on another question"
#: Fewest groups on which a loss is decided where rows are drawn by group: of fewer, the percentiles are too
#: narrow. Source: Cameron and Miller, "A Practitioner's Guide to Cluster-Robust Inference" (2015), sec. VI.
MIN_GROUPS = 30


@dataclass(frozen=True)
class GateResult:
    """How a candidate did at one gate.

    Attributes:
        metric: What was measured: a metric, ``latency`` or ``size``.
        value: What the candidate reached: the metric, milliseconds per row, or bytes; None where it was not
            measured.
        bound: What it had to reach (or stay under, for losses); for ``max_loss``, how much worse than the
            champion it may be, in the metric's unit, or as a share for latency and size.
        passed: Whether it did.
        kind: ``floor`` or ``max_loss``.
        champion: What the champion reached, for ``max_loss``.
        low: Lower bound of the interval of candidate minus champion; for latency, of the growth as a share.
        high: Upper bound of it.
        n_rows: Held-out rows, or paired timings for latency, that the interval rests on.
        reason: Why it was not decided, or what else must be known about it; empty when nothing.
    """

    metric: str
    value: float | None
    bound: float
    passed: bool
    kind: Kind = "floor"
    champion: float | None = None
    low: float | None = None
    high: float | None = None
    n_rows: int | None = None
    reason: str = ""

    @property
    def _undecided(self) -> str:
        return f"{self.metric} was not decided: {self.reason}"

    def describe(self) -> str:
        """Say in a phrase what was reached and what was asked, or why nothing was decided."""
        if self.value is None or (self.kind == "max_loss" and self.champion is None):
            return f"{self.metric}: {self.reason}" if self.passed else self._undecided
        if self.kind == "floor":
            return f"{self.metric} is {self.value:.4f}, the gate {self.bound:g}"
        if self.metric == "size":
            return (
                f"size is {self.value:,.0f} bytes, the champion's {self.champion:,.0f}, "
                f"the gate allows {self.bound:.0%} more"
            )
        if self.low is None or self.high is None:
            return self._undecided
        if self.metric == "latency":
            return (
                f"latency is {self.value:.4f} ms, {self.high:+.0%} on the champion's at the unlucky end, "
                f"the gate allows {self.bound:+.0%}"
            )
        worst = self.high if self.metric in LOSSES else -self.low
        return (
            f"{self.metric} is {self.value:.4f} and may be {worst:.4f} worse than the champion's "
            f"{self.champion:.4f}, the gate allows {self.bound:g}"
        )


@dataclass(frozen=True)
class Judgement:
    """Results of every gate, with what they were decided by.

    Attributes:
        results: One for each gate.
        champion: Digest of the version it was held against; None when there was none.
        rules: The gates' settings.
    """

    results: tuple[GateResult, ...]
    champion: str | None
    rules: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return all(result.passed for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON."""
        return {
            "results": [asdict(result) for result in self.results],
            "champion": self.champion,
            "rules": self.rules,
        }

    @classmethod
    def from_json(cls, value: Any) -> Judgement | None:
        """Read it back; None where the value is no judgement."""
        try:
            results = tuple(GateResult(**each) for each in value["results"])
            return cls(results, value["champion"], dict(value["rules"]))
        except (KeyError, TypeError, ValueError):
            return None


def check_floors(
    metrics: Mapping[str, float],
    floors: Mapping[str, float],
    *,
    undefined: Mapping[str, str] | None = None,
) -> tuple[GateResult, ...]:
    """Hold a candidate's metrics against fixed bounds.

    Args:
        metrics: Metric to value.
        floors: Metric to the bound: a floor, or a ceiling for losses.
        undefined: Metric to the reason the rows do not determine it; a floor on it is not passed.

    Raises:
        InputError: A floor names a metric that was not measured.
    """
    unknown = undefined or {}
    results = []
    for metric, bound in sorted(floors.items()):
        if metric in unknown:
            results.append(GateResult(metric, None, bound, passed=False, reason=unknown[metric]))
            continue
        if metric not in metrics:
            raise InputError(f"the gate {metric!r} was not measured", hint=nearest(metric, metrics))
        value = metrics[metric]
        passed = value <= bound if metric in LOSSES else value >= bound
        results.append(GateResult(metric, value, bound, passed))
    return tuple(results)


def check_max_loss(
    bounds: Mapping[str, float],
    *,
    labels: np.ndarray,
    candidate: Outputs,
    champion: Outputs,
    bootstrap: Bootstrap,
    min_rows: int,
) -> tuple[GateResult, ...]:
    """Hold a candidate's metrics against the champion's, on the same rows.

    Args:
        bounds: Metric to the most it may be worse, in its unit.
        labels: The truth, shape (n_rows,).
        candidate: The candidate's outputs for these rows.
        champion: The champion's outputs for them.
        bootstrap: How the interval of the difference is made; where it draws groups, fewer than
            ``MIN_GROUPS`` decide nothing.
        min_rows: Fewest rows on which anything is decided.

    Raises:
        InputError: A metric does not fit the task.
    """
    n_rows = len(labels)
    results = {
        metric: GateResult(metric, None, bound, passed=False, kind="max_loss", n_rows=n_rows)
        for metric, bound in sorted(bounds.items())
    }
    reason = _why_undecided(candidate, champion, n_rows=n_rows, min_rows=min_rows, draw=bootstrap.draw)
    if reason:
        return tuple(replace(gate, reason=reason) for gate in results.values())
    shifts: dict[str, Statistic] = {}
    for metric, gate in results.items():
        try:
            figures = [score(metric, labels, each) for each in (candidate, champion)]
        except UndefinedMetricError as error:
            results[metric] = replace(gate, reason=error.message)
            continue
        results[metric] = replace(gate, value=figures[0], champion=figures[1])
        shifts[metric] = difference(*(statistic(metric, labels, each) for each in (candidate, champion)))
    for metric, interval in bootstrap.intervals(shifts, n_rows=n_rows).items():
        results[metric] = _decided(results[metric], interval, resamples=bootstrap.resamples)
    return tuple(results.values())


def _why_undecided(candidate: Outputs, champion: Outputs, *, n_rows: int, min_rows: int, draw: Draw) -> str:
    """Say why these rows or answers decide nothing; empty where they do."""
    if n_rows < min_rows:
        return f"{n_rows} rows {_TOO_FEW} {min_rows}"
    if draw.kind == "groups" and draw.n_groups < MIN_GROUPS:
        return (
            f"the {n_rows} rows are of {draw.n_groups} groups, which are drawn whole, and {draw.n_groups} "
            f"{_TOO_FEW_GROUPS} {MIN_GROUPS}"
        )
    for name, each in (("candidate", candidate), ("champion", champion)):
        if not all(np.isfinite(each[key]).all() for key in ("probabilities", "value") if key in each):
            return f"the {name} answers some of the rows with values that are not finite"
    return ""


def _decided(gate: GateResult, interval: Interval, *, resamples: int) -> GateResult:
    if not interval.is_bounded:
        return replace(
            gate,
            reason=f"{gate.metric} is not defined on {interval.n_undefined} of {resamples} resamples "
            f"of the {gate.n_rows} rows; too few of them are of some class",
        )
    worst = interval.high if gate.metric in LOSSES else -interval.low
    return replace(gate, low=interval.low, high=interval.high, passed=_within(worst, gate.bound))


def check_latency(
    bound: float, *, candidate_ms: np.ndarray, champion_ms: np.ndarray, bootstrap: Bootstrap
) -> GateResult:
    """Hold the time of one row against the champion's.

    Args:
        bound: The most it may rise, as a share: 1.0 is twice the time.
        candidate_ms: Times taken in turns with the champion's, shape (n_calls,).
        champion_ms: Likewise; the two at one index met the same disturbances.
        bootstrap: How the interval of the ratio of medians is made.
    """
    generator = np.random.default_rng(bootstrap.seed)
    drawn = generator.integers(0, len(candidate_ms), size=(bootstrap.resamples, len(candidate_ms)))
    ratios = np.median(candidate_ms[drawn], axis=1) / np.median(champion_ms[drawn], axis=1)
    interval = bootstrap.bounds(ratios - 1)
    return GateResult(
        "latency",
        float(np.median(candidate_ms)),
        bound,
        passed=_within(interval.high, bound),
        kind="max_loss",
        champion=float(np.median(champion_ms)),
        low=interval.low,
        high=interval.high,
        n_rows=len(candidate_ms),
    )


def check_size(bound: float, *, candidate_bytes: int, champion_bytes: int) -> GateResult:
    """Hold the size of the model file against the champion's.

    Args:
        bound: The most it may grow, as a share: 1.0 is twice the size.
        candidate_bytes: Size of the candidate's ``model.onnx``.
        champion_bytes: Size of the champion's, above 0.
    """
    growth = candidate_bytes / champion_bytes - 1
    return GateResult(
        "size",
        float(candidate_bytes),
        bound,
        passed=_within(growth, bound),
        kind="max_loss",
        champion=float(champion_bytes),
    )


def undecided(bounds: Mapping[str, float], *, reason: str, passed: bool = False) -> tuple[GateResult, ...]:
    """Give the results of gates that could not be, or need not be, decided.

    Args:
        bounds: Metric to the most it may be worse.
        reason: Why.
        passed: True where there is nothing to hold the candidate against.
    """
    return tuple(
        GateResult(metric, None, bound, passed=passed, kind="max_loss", reason=reason)
        for metric, bound in sorted(bounds.items())
    )


def other_question(differs: str) -> str:
    """Give the reason why nothing is decided against a champion that answers something else.

    Args:
        differs: In what, as ``kit.lineage`` says it.
    """
    return f"{_OTHER_QUESTION}: {differs}"


def next_step(results: Iterable[GateResult]) -> str:
    """Say what helps a version past the gates it did not pass: training, more rows or the same question."""
    failed = [result for result in results if not result.passed]
    if any(result.reason.startswith(_OTHER_QUESTION) for result in failed):
        return "restore [data] label and [[prepare.windows]] in kit.toml and train again"
    if failed and all(_TOO_FEW_GROUPS in result.reason for result in failed):
        return "hold out more groups (test_fraction under [data])"
    if failed and all(_TOO_FEW in result.reason for result in failed):
        return "hold out more rows (test_fraction under [data]), or lower min_rows under [gates]"
    return "train better"


def failures(results: Iterable[GateResult]) -> str:
    """Describe every gate that was not passed, in one sentence; empty when all were."""
    return "; ".join(result.describe() for result in results if not result.passed)


def _within(worst: float, bound: float) -> bool:
    return worst <= bound + 1e-12  # written so that NaN fails; the margin is rounding's
