"""The export section: what targets cost, how good they are, and every recipe that was tried for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.report.formats import SHARES, digits
from kit.report.plots import shipping as plots
from kit.report.plots import training
from kit.report.records.shipping import (
    ConfusionFacts,
    ExportRecord,
    MachineFacts,
    ReferenceFacts,
    TargetFacts,
)

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
_MAX_PAIRS = 5
#: Most layers kept in float that are named for one recipe.
MAX_KEPT = 12


@dataclass(frozen=True)
class ShownTarget:
    """A target as it is shown; every ``n_more`` says how many are left out.

    Attributes:
        facts: Its newest figures.
        run: The export that measured them.
        confusion: Drawing of the answers beside the reference's; None where all are the same.
        n_differing: How many rows the two answer differently; None where it is not known.
        pairs: Reference's class, target's class, rows and rows of the reference's class, the most first.
        errors: Drawing of the signed output errors.
        layers: Drawing of the layers that add most error.
    """

    facts: TargetFacts
    run: ExportRecord
    confusion: str | None
    n_differing: int | None
    pairs: tuple[tuple[str, str, int, int], ...]
    n_more_pairs: int
    errors: str | None
    layers: str | None
    n_more_layers: int

    @property
    def has_details(self) -> bool:
        """Whether there is more to say than one line."""
        return bool(self.facts.ladder or self.n_differing is not None or self.errors or self.layers)


@dataclass(frozen=True)
class Export:
    """The newest figures of every target of one model version.

    Attributes:
        run: The newest export.
        targets: Every target that was exported, whichever run measured it.
        machines: Those that measured, the newest run's first.
        budgets: What a target might cost, in words.
        has_costs: Whether memory and loading were measured; earlier kits did not.
        by_size: Drawing of the metric against size.
        by_latency: Drawing of the metric against latency.
    """

    run: ExportRecord
    targets: tuple[ShownTarget, ...]
    machines: tuple[MachineFacts, ...]
    budgets: tuple[str, ...]
    has_costs: bool
    by_size: str | None
    by_latency: str | None


def export(runs: Sequence[ExportRecord]) -> Export | None:
    """Put the newest figures of each target together, for the model version exported last."""
    if not runs:
        return None
    run = runs[0]
    newest: dict[str, tuple[TargetFacts, ExportRecord]] = {}
    for each in runs:
        if each.digest == run.digest:
            for facts in each.targets:
                newest.setdefault(facts.target, (facts, each))
    targets = [facts for facts, _ in newest.values()]
    machines = [each.machine for _, each in newest.values() if each.machine is not None]
    return Export(
        run=run,
        targets=tuple(
            _shown(facts, each, name=f"target-{index}") for index, (facts, each) in enumerate(newest.values())
        ),
        machines=tuple(dict.fromkeys([*([run.machine] if run.machine else []), *machines])),
        budgets=_budgets(run),
        has_costs=any(each.memory_mb is not None or each.load_s is not None for each in targets),
        by_size=_trade_off(run, targets, cost="size"),
        by_latency=_trade_off(run, targets, cost="latency"),
    )


def _budgets(run: ExportRecord) -> tuple[str, ...]:
    """Say the budgets that the record holds."""
    settings = run.settings
    sentences = (
        (settings.max_metric_drop, f"{run.reference.metric} at most {{}} worse"),
        (settings.max_output_error, "output error at most {}"),
        (settings.max_size_mb, "size at most {} MB"),
        (settings.max_latency_ms, "median latency at most {} ms"),
        (settings.max_memory_mb, "resident memory at most {} MB"),
    )
    return tuple(said.format(digits(budget)) for budget, said in sentences if budget is not None)


def _trade_off(run: ExportRecord, targets: Sequence[TargetFacts], *, cost: str) -> str | None:
    """Draw the metric against ``size`` or ``latency``; None where no target has both."""
    reference, metric = run.reference, run.reference.metric
    factor, unit = (100, " (%)") if metric in SHARES else (1, "")
    points = []
    for each in targets:
        spent = _spent(each, cost)
        if spent is None or each.value is None or each.metric != metric:
            continue
        engine = each.engine or each.target.partition("-")[0]
        points.append(plots.Point(each.target, engine, spent, each.value * factor, each.passed))
    spent = _spent(reference, cost)
    if not points or spent is None:
        return None
    return plots.trade_off(
        plots.Point("float ONNX", "", spent, reference.value * factor),
        points,
        x_label="size (kB)" if cost == "size" else "latency of one row (ms)",
        y_label=metric + unit,
        ceiling=factor if metric in _BOUNDED else None,
        name=f"by-{cost}",
    )


def _spent(measured: ReferenceFacts | TargetFacts, cost: str) -> float | None:
    """Give the size in kB or the median latency in ms; None where it was not measured."""
    if cost == "size":
        n_bytes = measured.model_bytes if isinstance(measured, TargetFacts) else None
        n_bytes = measured.size_bytes if n_bytes is None else n_bytes
        return None if n_bytes is None else n_bytes / 1000
    return None if measured.latency_ms is None else measured.latency_ms.p50


def _shown(facts: TargetFacts, run: ExportRecord, *, name: str) -> ShownTarget:
    confusion = n_differing = errors = layers = None
    pairs: list[tuple[str, str, int, int]] = []
    found = facts.confusion
    if found is not None and found.is_square:
        pairs = _pairs(found)
        n_differing = sum(n_rows for _, _, n_rows, _ in pairs)
        if pairs and len(found.labels) <= training.MAX_CLASSES:
            confusion = training.confusion(
                found.counts,
                found.labels,
                x_label="the target's class",
                y_label="the reference's class",
                name=f"{name}-confusion",
            )
    if facts.errors is not None and facts.errors.can_be_drawn:
        errors = plots.output_errors(facts.errors.counts, edges=facts.errors.edges, name=f"{name}-errors")
    if facts.layers:
        worst = sorted(facts.layers, key=lambda each: -each.added)[: plots.MAX_LAYERS]
        layers = plots.layer_errors(
            [(each.name, each.kind, each.error, each.added) for each in worst], name=f"{name}-layers"
        )
    return ShownTarget(
        facts=facts,
        run=run,
        confusion=confusion,
        n_differing=n_differing,
        pairs=tuple(pairs[:_MAX_PAIRS]),
        n_more_pairs=max(len(pairs) - _MAX_PAIRS, 0),
        errors=errors,
        layers=layers,
        n_more_layers=max(len(facts.layers) - plots.MAX_LAYERS, 0),
    )


def _pairs(found: ConfusionFacts) -> list[tuple[str, str, int, int]]:
    pairs = [
        (found.labels[before], found.labels[after], n_rows, sum(line))
        for before, line in enumerate(found.counts)
        for after, n_rows in enumerate(line)
        if n_rows and before != after
    ]
    return sorted(pairs, key=lambda each: -each[2])
