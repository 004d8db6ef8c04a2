"""What a batch run shows: the facts of ``report.json`` and of the project's record, and the page.

Made of the ledger's records, of how long nodes held actors and of the model's profile alone, so that it
can be made again. Knows no actor and draws nothing itself.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.batch.cost import Stay, cost, union, worked
from jobs.batch.observed import compare, merge
from kit.observed import MAX_COLUMNS

if TYPE_CHECKING:
    from jobs.batch.ledger import Commit
    from kit.project import Project

STAGES = ("read", "prepare", "infer", "write")
_MAX_BUCKETS = 60
_MIN_BUCKET_S = 0.25
_MAX_REASONS = 10
_MAX_NODES = 100
_MAX_DRAWN = 60  # columns whose counts are kept, the most moved first
#: A longer time in which nobody worked ends a sitting, and is not counted.
_PAUSE_S = 60.0


@dataclass(frozen=True)
class About:
    """What a run is.

    Attributes:
        model: The version, as ``name@number``.
        digest: Its digest.
        engine: What ran it.
        input: The table.
        output: The output folder.
        classes: What each label stands for; empty for regression.
        retry: Number of the retry of the quarantine; None is the run itself.
    """

    model: str
    digest: str
    engine: str
    input: str
    output: str
    classes: tuple[str, ...] = ()
    retry: int | None = None


def build(
    about: About,
    commits: Sequence[Commit],
    *,
    stays: Sequence[Stay],
    prices: Mapping[str, float],
    engine: Mapping[str, Any],
    profile: Mapping[str, Any],
) -> dict[str, Any]:
    """Put a run's facts together.

    Args:
        about: What it is.
        commits: The records of all its shards, those of earlier sittings included.
        stays: When which node held each actor of this sitting.
        prices: Market to US dollars per hour of a node.
        engine: ``batch_rows`` and ``rows_per_second`` of the engine alone, in one actor; None where it was
            not measured.
        profile: The model's.

    Returns:
        JSON-ready facts; ``kit.report.records.running.PredictRecord`` reads them.
    """
    done = [*worked(commits), *stays]
    sittings = union(((each.from_s, each.to_s) for each in done), gap_s=_PAUSE_S)
    seconds = sum(to_s - from_s for from_s, to_s in sittings)
    rows_out = sum(each.rows_out for each in commits)
    parts = [file for each in commits for file in each.files]
    bare = engine.get("rows_per_second")
    reasons: Counter[str] = Counter()
    for each in commits:
        reasons.update(each.reasons)
    return {
        **asdict(about),
        "classes": list(about.classes),
        "batch_rows": engine.get("batch_rows"),
        "rows_in": sum(each.rows_in for each in commits),
        "rows_out": rows_out,
        "rows_refused": sum(each.rows_refused for each in commits),
        "n_shards": len(commits),
        "n_parts": len(parts),
        "n_bytes": sum(file.size_bytes for file in parts),
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows_out / seconds, 1) if seconds else 0.0,
        "n_sittings": len(sittings),
        "throughput": _throughput(commits, sittings),
        "stages": _stages(commits),
        "bare_rows_per_second": bare,
        **_pace(commits, stays, bare=bare),
        "cost": asdict(cost(done, prices=prices, n_rows=rows_out)),
        "labels": _labels(commits, about.classes),
        "reasons": dict(reasons.most_common(_MAX_REASONS)),
        "n_reasons": len(reasons),
        "nodes": _nodes(commits, stays),
        **_drift(commits, profile),
    }


def preload() -> None:
    """Import what the page is drawn with, 1 s of a short run, where it is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("kit.report.plots.batch")
        importlib.import_module("matplotlib.figure")
        importlib.import_module("scipy.special")


def write_page(project: Project, facts: Mapping[str, Any]) -> bytes:
    """Write the page about one run.

    Args:
        project: Whose model ran.
        facts: What ``build`` gave.

    Returns:
        One self-contained HTML document.

    Raises:
        InputError: The facts are not those of a run.
        MissingDependencyError: Jinja or matplotlib is not installed.
    """
    from kit.report import batch_report

    return batch_report(project, facts)


def _throughput(commits: Sequence[Commit], sittings: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Spread the rows of each shard over the time it took, and count them in equal spans of working time."""
    starts = np.array([from_s for from_s, _ in sittings])
    lengths = np.array([to_s - from_s for from_s, to_s in sittings])
    total_s = float(lengths.sum())
    if not total_s or not commits:
        return {"bucket_s": 0.0, "rows_per_second": [], "resumed_at_s": []}
    before = np.concatenate([[0.0], np.cumsum(lengths)])

    def at(moments: np.ndarray) -> np.ndarray:
        sitting = np.clip(np.searchsorted(starts, moments, side="right") - 1, 0, len(starts) - 1)
        passed: np.ndarray = before[sitting] + np.clip(moments - starts[sitting], 0.0, lengths[sitting])
        return passed

    begun = at(np.array([each.started_s for each in commits]))
    ended = np.maximum(at(np.array([each.ended_s for each in commits])), begun + 1e-6)
    rows = np.array([each.rows_in for each in commits], dtype=np.float64)
    n_buckets = int(np.clip(total_s / _MIN_BUCKET_S, 1, _MAX_BUCKETS))
    bounds = np.linspace(0.0, total_s, n_buckets + 1)
    reached = [float((np.clip((bound - begun) / (ended - begun), 0.0, 1.0) * rows).sum()) for bound in bounds]
    bucket_s = total_s / n_buckets
    return {
        "bucket_s": round(bucket_s, 4),
        "rows_per_second": [round(each, 1) for each in (np.diff(reached) / bucket_s).tolist()],
        "resumed_at_s": [round(each, 3) for each in before[1:-1].tolist()],
    }


def _stages(commits: Sequence[Commit]) -> dict[str, dict[str, float]]:
    sums = {stage: sum(each.seconds.get(stage, 0.0) for each in commits) for stage in STAGES}
    total = sum(sums.values())
    return {
        stage: {"seconds": round(spent, 3), "share": round(spent / total, 4) if total else 0.0}
        for stage, spent in sums.items()
    }


def _pace(commits: Sequence[Commit], stays: Sequence[Stay], *, bare: float | None) -> dict[str, Any]:
    """Hold this sitting's pace against what its actors would answer if they did nothing but infer."""
    if not stays:
        return {"actors": None, "efficiency": None}
    begun_s, ended_s = min(each.from_s for each in stays), max(each.to_s for each in stays)
    actor_seconds = sum(each.to_s - each.from_s for each in stays)
    rows = sum(each.rows_in for each in commits if each.started_s >= begun_s)
    possible = (bare or 0.0) * actor_seconds
    return {
        "actors": round(actor_seconds / (ended_s - begun_s), 2) if ended_s > begun_s else None,
        "efficiency": round(rows / possible, 4) if possible and rows else None,
    }


def _labels(commits: Sequence[Commit], classes: Sequence[str]) -> dict[str, int]:
    counts = [0] * len(classes)
    for each in commits:
        for place, count in enumerate(each.labels):
            counts[place] += count
    return dict(zip(map(str, classes), counts, strict=True))


def _nodes(commits: Sequence[Commit], stays: Sequence[Stay]) -> list[dict[str, Any]]:
    """Say what each node did, the one with the most rows first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for stay in (*worked(commits), *stays):
        held = found.setdefault(
            (stay.node, stay.market),
            {"node": stay.node, "market": stay.market, "spans": [], "n_shards": 0, "rows": 0},
        )
        held["spans"].append((stay.from_s, stay.to_s))
    for each in commits:
        held = found[each.node, each.market]
        held["n_shards"] += 1
        held["rows"] += each.rows_in
    for held in found.values():
        held["seconds"] = round(sum(to_s - from_s for from_s, to_s in union(held.pop("spans"))), 3)
    return sorted(found.values(), key=lambda held: (-held["rows"], held["node"]))[:_MAX_NODES]


def _drift(commits: Sequence[Commit], profile: Mapping[str, Any]) -> dict[str, Any]:
    """Compare what was observed with the profile, column by column, with the counts a drawing needs."""
    merged = merge(each.observed for each in commits)
    found = compare(profile, merged)
    answers = profile.get("outputs", {}).get("columns", {})
    sides = {"input": (profile["columns"], merged["columns"]), "answer": (answers, merged["outputs"])}
    columns = []
    for place, each in enumerate(found):
        facts = asdict(each)
        if place < _MAX_DRAWN or each.role == "answer":
            facts |= _counts(*(side[each.name] for side in sides[each.role]))
        columns.append(facts)
    return {
        "observed": {
            "n_rows": merged["n_rows"],
            "n_sampled": merged["n_sampled"],
            "n_columns": len(merged["columns"]),
            "n_columns_left": max(len(profile["columns"]) - MAX_COLUMNS, 0),
        },
        "profile": {"n_rows": profile["n_rows"], "n_held_out": profile.get("outputs", {}).get("n_rows")},
        "drift": columns,
    }


def _counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    if "categories" in before:
        names = list(before["categories"])
        counts = [after["categories"].get(name, 0) for name in names]
        return {
            "categories": names,
            "reference": [*before["categories"].values(), before.get("other", 0)],
            "observed": [*counts, after["other"]],
        }
    return {"edges": before["edges"], "reference": [0, *before["counts"], 0], "observed": after["counts"]}
