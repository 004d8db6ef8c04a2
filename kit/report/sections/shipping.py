"""The export section: what targets cost and how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.report.formats import SHARES
from kit.report.plots import shipping as plots
from kit.report.records.running import ExportRecord, TargetFacts

#: Metrics that cannot pass 1.
_BOUNDED = frozenset(
    {
        "accuracy",
        "auc",
        "average_precision",
        "f1_macro",
        "f1_weighted",
        "precision_macro",
        "recall_macro",
        "r2",
    }
)


@dataclass(frozen=True)
class Export:
    """The newest figures of every target of one model version."""

    run: ExportRecord
    targets: tuple[TargetFacts, ...]
    by_size: str | None
    by_latency: str | None


def export(runs: Sequence[ExportRecord]) -> Export | None:
    """Put the newest figures of each target together, for the model version exported last."""
    if not runs:
        return None
    run = runs[0]
    targets: dict[str, TargetFacts] = {}
    for each in runs:
        if each.digest == run.digest:
            for target in each.targets:
                targets.setdefault(target.target, target)
    reference, metric = run.reference, run.reference.metric
    factor, unit = (100, " (%)") if metric in SHARES else (1, "")
    value = reference.value * factor
    sizes = [("float ONNX", reference.size_bytes / 1000, value)]
    latencies = [("float ONNX", reference.latency_ms.p50, value)]
    for target in targets.values():
        if target.value is None or target.metric != metric:
            continue
        value = target.value * factor
        if target.size_bytes is not None:
            sizes.append((target.target, target.size_bytes / 1000, value))
        if target.latency_ms is not None:
            latencies.append((target.target, target.latency_ms.p50, value))

    def draw(points: list[tuple[str, float, float]], x_label: str, name: str) -> str | None:
        if len(points) < 2:
            return None
        ceiling = factor if metric in _BOUNDED else None
        return plots.trade_off(points, x_label=x_label, y_label=metric + unit, ceiling=ceiling, name=name)

    by_size = draw(sizes, "size (kB)", "by-size")
    by_latency = draw(latencies, "latency of one row (ms)", "by-latency")
    return Export(run, tuple(targets.values()), by_size, by_latency)
