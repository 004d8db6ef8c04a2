"""The batch section: the newest run with its pace, its answers and their drift, and a line for every run."""

from __future__ import annotations

from dataclasses import dataclass

from kit.report.plots import batch as plots
from kit.report.plots.data import histogram
from kit.report.records.running import DriftFacts, NodeFacts, PredictRecord

_MAX_RUNS = 40
_MAX_COLUMNS = 60
_MAX_NODES = 20


@dataclass(frozen=True)
class Column:
    """A column beside the profile, and a small drawing of both; empty where there is nothing to draw."""

    facts: DriftFacts
    histogram: str


@dataclass(frozen=True)
class BatchRun:
    """A batch run as it is shown; every ``n_more`` says how many are left out."""

    run: PredictRecord
    throughput: str | None
    stages: str | None
    labels: str | None
    n_more_labels: int
    spread: str | None
    spread_title: str
    columns: tuple[Column, ...]
    n_more_columns: int
    n_drifted: int
    nodes: tuple[NodeFacts, ...]
    n_more_nodes: int


@dataclass(frozen=True)
class Batches:
    """The newest batch run, and all of them."""

    newest: BatchRun
    runs: tuple[PredictRecord, ...]
    n_more_runs: int


def batches(runs: tuple[PredictRecord, ...]) -> Batches | None:
    """Show the newest batch run, and a line for each."""
    if not runs:
        return None
    return Batches(batch_run(runs[0]), runs[:_MAX_RUNS], max(len(runs) - _MAX_RUNS, 0))


def batch_run(run: PredictRecord) -> BatchRun:
    """Show one batch run."""
    labels, n_more_labels = _labels(run)
    spread, spread_title = _spread(run)
    order = sorted(run.drift, key=lambda each: (not each.drifted, -_moved(each), each.name))
    columns = tuple(Column(each, _small(each)) for each in order[:_MAX_COLUMNS])
    return BatchRun(
        run=run,
        throughput=_throughput(run),
        stages=_stages(run),
        labels=labels,
        n_more_labels=n_more_labels,
        spread=spread,
        spread_title=spread_title,
        columns=columns,
        n_more_columns=max(len(order) - _MAX_COLUMNS, 0),
        n_drifted=sum(each.drifted for each in run.drift),
        nodes=run.nodes[:_MAX_NODES],
        n_more_nodes=max(len(run.nodes) - _MAX_NODES, 0),
    )


def _moved(column: DriftFacts) -> float:
    return (column.index or 0.0) / (column.threshold or 1.0)


def _throughput(run: PredictRecord) -> str | None:
    facts = run.throughput
    if len(facts.rows_per_second) < 2:
        return None
    bare = run.bare_rows_per_second * run.actors if run.bare_rows_per_second and run.actors else None
    return plots.throughput(
        facts.rows_per_second,
        bucket_s=facts.bucket_s,
        resumed_at_s=facts.resumed_at_s,
        bare=bare,
        name="batch-throughput",
    )


def _stages(run: PredictRecord) -> str | None:
    shares = [(name, run.stages[name].share) for name in sorted(run.stages, key=_stage_order)]
    return plots.stages(shares, name="batch-stages") if any(share for _, share in shares) else None


def _stage_order(name: str) -> tuple[int, str]:
    known = ("read", "prepare", "infer", "write")
    return (known.index(name) if name in known else len(known), name)


def _labels(run: PredictRecord) -> tuple[str | None, int]:
    """Draw the labels, the most frequent ones where there are many, beside what held-out rows let expect."""
    names = [each for each in run.classes if each in run.labels]
    counts = [(name, run.labels[name]) for name in names] if len(names) == len(run.labels) else []
    counts = counts or list(run.labels.items())
    if not counts:
        return None, 0
    n_more = max(len(counts) - plots.MAX_BARS, 0)
    if n_more:
        counts = sorted(counts, key=lambda each: -each[1])[: plots.MAX_BARS]
    column, shares = run.answer("label"), None
    if column is not None and len(column.reference) == len(column.categories) + 1 and any(column.reference):
        total = sum(column.reference)
        known = dict(zip(column.categories, column.reference, strict=False))
        shares = [known.get(name, 0) / total for name, _ in counts]
    return plots.label_counts(counts, shares=shares, name="labels"), n_more


def _spread(run: PredictRecord) -> tuple[str | None, str]:
    """Draw how sure the answers are, or a regression's numbers."""
    for answer, x_label, title in (
        ("confidence", "confidence: the largest probability", "How sure the answers are"),
        ("value", "answered value", "Answered values"),
    ):
        column = run.answer(answer)
        if column is None or not any(column.observed) or not any(column.reference):
            continue
        if len(column.edges) > 1 and len(column.observed) == len(column.reference) == len(column.edges) + 1:
            drawn = plots.distribution(
                column.observed, column.reference, edges=column.edges, x_label=x_label, name="batch-spread"
            )
            return drawn, title
    return None, ""


def _small(column: DriftFacts) -> str:
    """Draw the profile filled and the run as a line; of many categories, the most frequent."""
    before, after = column.reference, column.observed
    if len(before) != len(after) or not sum(after):
        return ""
    if column.categories and len(before) > plots.MAX_BARS:
        order = sorted(range(len(before)), key=lambda place: -before[place])[: plots.MAX_BARS]
        before, after = tuple(before[place] for place in order), tuple(after[place] for place in order)
    return histogram(before, after, label="the model's profile and this run")
