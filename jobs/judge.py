"""Holding a version against the gates: floors, and how much worse than the champion it may be.

Both models answer the same rows on onnxruntime; what their answers are worth is decided in
``kit.gates``. It trains, registers and promotes nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.bootstrap import INDEPENDENT, Bootstrap, Draw
from kit.engines import Engine, open_engine
from kit.errors import NotFoundError
from kit.gates import (
    GateResult,
    Judgement,
    check_floors,
    check_latency,
    check_max_loss,
    check_size,
    other_question,
    undecided,
)
from kit.lineage import question_difference
from kit.metrics import measure
from kit.model_version import ModelVersion
from kit.project import Project
from kit.registry import VersionRecord
from kit.rows import Part
from kit.signature import Signature
from kit.tensors import Tensors

_BATCH_ROWS = 1024
_WARM_UP_CALLS = 20
_TIMED_CALLS = 200
#: Bounds of max_loss that are costs, not metrics.
_COSTS = ("latency", "size")


@dataclass(frozen=True)
class Contender:
    """What stands for champion.

    Attributes:
        model_path: Its ``model.onnx``, verified or made by this process.
        signature: Its inputs and outputs.
        outputs: Its answers to the rows.
        data: What its lineage says about the data it was trained on.
        digest: Its digest; None where it is not sealed yet.
    """

    model_path: Path
    signature: Signature
    outputs: Tensors
    data: Mapping[str, Any]
    digest: str | None = None


def judge(
    project: Project,
    contender: Contender,
    *,
    rows: Part,
    champion: ModelVersion | None,
    table: str | None = None,
    draw: Draw = INDEPENDENT,
) -> Judgement:
    """Hold a version against every gate of the project.

    Args:
        project: Whose gates.
        contender: What is judged.
        rows: What the contender's outputs answer.
        champion: What it is held against; None when there is none.
        table: Fingerprint of the labelled table the rows are; None where they are those held out when the
            contender was trained.
        draw: Which of the rows a bootstrap draws together.

    Raises:
        InputError: The contender's answers are not finite, or there are no rows.
    """
    gates = project.settings.gates
    measured = measure(contender.signature.task, rows.labels, contender.outputs)
    results = list(
        check_floors(measured.values, dict[str, float](gates.floors.items()), undefined=measured.undefined)
    )
    results += _losses(project, contender, rows=rows, champion=champion, table=table, draw=draw)
    return Judgement(
        results=tuple(results),
        champion=champion.digest if champion is not None else None,
        rules=gates.model_dump(mode="json", exclude={"floors"}),
    )


def find_champion(project: Project) -> tuple[VersionRecord, ModelVersion] | None:
    """Open the project's champion, verified; None when there is none yet.

    Raises:
        VerificationError: A file or the signature does not hold.
    """
    try:
        record = project.registry().resolve(project.name)
    except NotFoundError:
        return None
    return project.open_version(f"{record.model}@{record.number}")


def answer_rows(engine: Engine, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Answer rows in batches of bounded size."""
    n_rows = len(next(iter(tensors.values())))
    parts = [
        engine.run({name: array[start : start + _BATCH_ROWS] for name, array in tensors.items()})
        for start in range(0, max(n_rows, 1), _BATCH_ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def signature_difference(candidate: Signature, champion: Signature) -> str:
    """Say why two models cannot answer the same rows in the same terms; empty when they can.

    Args:
        candidate: One model's inputs and outputs.
        champion: The other's.
    """
    if candidate.task != champion.task:
        return f"it answers a {candidate.task} and the champion a {champion.task}"
    if candidate.classes != champion.classes:
        only = sorted(map(str, set(candidate.classes) ^ set(champion.classes)))
        return f"its classes are not the champion's; they differ in {', '.join(only[:5]) or 'their order'}"
    if candidate.inputs != champion.inputs:
        return "its inputs are not the champion's, so the two cannot answer the same rows"
    return ""


def _losses(
    project: Project,
    contender: Contender,
    *,
    rows: Part,
    champion: ModelVersion | None,
    table: str | None,
    draw: Draw,
) -> list[GateResult]:
    gates = project.settings.gates
    bounds = dict[str, float](gates.max_loss.items())
    if champion is None:
        return list(undecided(bounds, reason="there is no champion yet", passed=True))
    if champion.digest == contender.digest:
        return list(undecided(bounds, reason="it is the champion", passed=True))
    results = []
    if "size" in bounds:
        sizes = {
            "candidate_bytes": contender.model_path.stat().st_size,
            "champion_bytes": champion.model_path.stat().st_size,
        }
        results.append(check_size(bounds.pop("size"), **sizes))
    differs = signature_difference(contender.signature, champion.signature)
    trained_on = champion.manifest.get("lineage", {}).get("data", {})
    asked = question_difference(trained_on, contender.data)
    if differs or asked:
        differs = differs or other_question(asked)
        return [*undecided(bounds, reason=differs), *results]
    if not bounds:
        return results
    of_metrics = {metric: bound for metric, bound in bounds.items() if metric not in _COSTS}
    compared = check_max_loss(
        of_metrics,
        labels=rows.labels,
        candidate=contender.outputs,
        champion=answer_rows(_open(champion.model_path, champion.signature), rows.tensors),
        bootstrap=Bootstrap(gates.resamples, gates.confidence, gates.seed, draw),
        min_rows=gates.min_rows,
    )
    results += _noted(compared, candidate=contender.data, champion=trained_on, table=table)
    if "latency" in bounds:
        # Both are opened anew: a session that has answered a batch is a quarter slower on single rows.
        candidate_ms, champion_ms = _timed(
            _open(contender.model_path, contender.signature),
            _open(champion.model_path, champion.signature),
            rows.tensors,
        )
        results.append(
            check_latency(
                bounds["latency"],
                candidate_ms=candidate_ms,
                champion_ms=champion_ms,
                bootstrap=Bootstrap(gates.resamples, gates.confidence, gates.seed),
            )
        )
    return results


def _noted(
    results: Iterable[GateResult],
    *,
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any],
    table: str | None,
) -> list[GateResult]:
    """Add to each result what must be known of who has learned from the rows."""
    if table is None:
        note = _may_have_seen(candidate, champion)
    else:
        note = _have_learned(table, candidate=candidate, champion=champion)
    return [
        replace(result, reason="; ".join(each for each in (result.reason, note) if each))
        for result in results
    ]


def _open(path: Path, signature: Signature) -> Engine:
    return open_engine(path, engine="onnxruntime", threads=1, signature=signature)


def _may_have_seen(candidate: Mapping[str, Any], champion: Mapping[str, Any]) -> str:
    """Say whether the champion may have been trained on the candidate's held-out rows."""
    both = "both are measured on the candidate's held-out rows, and the champion may have seen some of them"
    if not champion.get("fingerprint"):
        return f"what the champion was trained on is not known; {both}"
    if champion["fingerprint"] != candidate.get("fingerprint"):
        return f"the champion was trained on other data ({champion['fingerprint'][:12]}); {both}"
    if champion.get("held_out") != candidate.get("held_out"):
        return f"the champion was trained on another split of the same data; {both}"
    return ""


def _have_learned(table: str, *, candidate: Mapping[str, Any], champion: Mapping[str, Any]) -> str:
    """Say which of the two was trained on rows of a labelled table."""
    learned = [
        name
        for name, data in (("the candidate", candidate), ("the champion", champion))
        if data.get("fingerprint") == table
    ]
    if learned:
        return (
            f"{' and '.join(learned)} {'was' if len(learned) == 1 else 'were'} trained on rows of this table"
        )
    return "whether one of the two has learned from rows of this table is not known"


def _timed(
    candidate: Engine, champion: Engine, tensors: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Time one row at a time, in turns, so that both meet the same disturbances; milliseconds."""
    n_rows = len(next(iter(tensors.values())))
    rows = [
        {name: array[index : index + 1] for name, array in tensors.items()}
        for index in range(min(n_rows, _TIMED_CALLS))
    ]
    taken_ms = np.zeros((_TIMED_CALLS, 2))
    engines = (candidate, champion)
    for call in range(_WARM_UP_CALLS):
        for engine in engines:
            engine.run(rows[call % len(rows)])
    collecting = gc.isenabled()
    gc.disable()
    try:
        for call in range(_TIMED_CALLS):
            row = rows[call % len(rows)]
            for place in (0, 1) if call % 2 else (1, 0):
                start_ns = time.perf_counter_ns()
                engines[place].run_validated(row)
                taken_ms[call, place] = (time.perf_counter_ns() - start_ns) / 1e6
    finally:
        if collecting:
            gc.enable()
    return taken_ms[:, 0], taken_ms[:, 1]
