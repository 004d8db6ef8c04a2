"""The trial: does this slot answer rightly and in time on this machine?

``examine`` measures a verified slot in the process that calls it. ``run_trial`` does so in a child
process, because a model file can crash or hang whoever loads it. Neither decides what happens to the
slot (``edge.agent.install`` does).
"""

from __future__ import annotations

import dataclasses
import math
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from edge.agent.admission import require_runs
from edge.agent.device import Device
from kit import golden
from kit.bundle import Bundle
from kit.child import CODE_FOLDER, run_child
from kit.errors import GateError, KitError
from kit.machine import peak_bytes
from kit.runner import Runner

TIMEOUT_S = 60.0
"""Longest time a trial may take."""

THREADS = 1
"""Engine threads of the agent: in the trial as in every prediction, so the latency is the one promised."""

_N_CALLS = 50
_MEASURE_S = 2.0


@dataclass(frozen=True)
class Examination:
    """What a slot showed when it was asked its golden rows.

    Attributes:
        digest: The slot that ran.
        name: Name of the model.
        target: Target of the bundle.
        release: Release counter of the bundle.
        engine: Engine that ran it.
        engine_version: Version of that engine's runtime.
        n_rows: Golden rows asked.
        agreement: Share of rows whose label equals the reference's; None for regression.
        output_error: Mean absolute difference to the reference's outputs, in the bundle's unit; None
            when it is not finite.
        median_latency_ms: Median time to answer one row, preprocessing included.
        max_latency_ms: The bundle's budget; None when it has none.
        memory_mb: Most resident memory of this process so far, in MB of 10^6 bytes.
        reason: The first rule it breaks; empty when it passed.
    """

    digest: str
    name: str
    target: str
    release: int
    engine: str
    engine_version: str
    n_rows: int
    agreement: float | None
    output_error: float | None
    median_latency_ms: float
    max_latency_ms: float | None
    memory_mb: float
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Give the examination as a JSON object."""
        return dataclasses.asdict(self)


def examine(bundle: Bundle) -> Examination:
    """Ask a verified slot its golden rows and measure how long one row takes.

    Args:
        bundle: What is in the slot, opened just now.

    Raises:
        KitError: The slot cannot answer at all: an engine is missing, or refuses the file.
    """
    runner = Runner.open(bundle.folder, threads=THREADS)
    report = runner.check_golden()
    latency_ms = _median_latency_ms(runner)
    budgets = runner.manifest.get("budgets", {})
    limit = budgets.get("max_latency_ms")
    memory_mb = peak_bytes() / 1e6
    max_memory_mb = budgets.get("max_memory_mb")
    reason = f"golden rows: {report.reason}" if report.reason else ""
    if not reason and limit is not None and latency_ms > limit:
        reason = f"one row takes {latency_ms:.3g} ms, above the budget of {limit:g} ms"
    if not reason and max_memory_mb is not None and memory_mb > max_memory_mb:
        reason = f"it takes {memory_mb:.0f} MB of memory, above the budget of {max_memory_mb:g} MB"
    return Examination(
        digest=bundle.digest,
        name=str(runner.manifest["name"]),
        target=str(runner.manifest["target"]),
        release=bundle.release,
        engine=runner.engine.name,
        engine_version=runner.engine.version,
        n_rows=report.n_rows,
        agreement=report.agreement,
        output_error=report.output_error if math.isfinite(report.output_error) else None,
        median_latency_ms=latency_ms,
        max_latency_ms=limit,
        memory_mb=memory_mb,
        reason=reason,
    )


def examine_as_child(device: Device, *, digest: str) -> dict[str, Any]:
    """Be the child of ``run_trial``: verify a slot and examine it.

    Returns:
        The examination as JSON, or ``digest`` and ``reason`` alone when the slot cannot answer at all.
    """
    # Should the agent die, nobody is left to stop a hanging trial but the system's own timer.
    signal.alarm(int(TIMEOUT_S) + 5)
    try:
        bundle = device.open_slot(digest)
        require_runs(bundle.manifest)
        return examine(bundle).to_json()
    except KitError as error:
        return {"digest": digest, "reason": f"{error.message}; {error.hint}" if error.hint else error.message}


def run_trial(device: Device, digest: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Examine a slot in a child process.

    Args:
        device: The folder the slot is in.
        digest: The slot.
        timeout_s: How long the child may take before it is killed.

    Returns:
        The child's examination as JSON.

    Raises:
        GateError: The child crashed, hung, broke a rule or examined another slot.
    """
    command = [sys.executable, "-m", "edge.agent", "trial", str(device.folder.resolve()), digest]
    ended = run_child(command, folder=CODE_FOLDER, timeout_s=timeout_s)
    found = ended.found
    if ended.trouble:
        raise GateError(str(found.get("reason") or f"the trial {ended.trouble}"))
    if found.get("digest") != digest:
        raise GateError(f"the trial ran {str(found.get('digest'))[:12]} instead of {digest[:12]}")
    return found


def _median_latency_ms(runner: Runner) -> float:
    inputs = golden.read_tensors(runner.folder / "golden" / "inputs.npz")
    row = {name: array[:1] for name, array in inputs.items()}
    durations = []
    started = time.perf_counter()
    for _ in range(_N_CALLS):
        before = time.perf_counter()
        runner.run(row)
        after = time.perf_counter()
        durations.append((after - before) * 1e3)
        if after - started > _MEASURE_S:
            break
    return statistics.median(durations)
