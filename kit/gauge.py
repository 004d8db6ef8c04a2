"""Gauge a bundle: how fast it loads and answers here, what memory and power it takes, whether it is right.

A figure of load time or memory is one of the process it was taken in, so ``gauge_in_child`` takes it in a
fresh one: ``python -m kit.gauge FOLDER`` prints it as one line of JSON. It trusts the folder it is given
(open it with ``kit.bundle.open_bundle`` first) and knows nothing of budgets. Runs on a device: standard
library, numpy and one engine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kit import golden
from kit.child import CODE_FOLDER, run_child
from kit.engines import ENGINES
from kit.errors import EXIT_CODES, InputError, KitError, ModelError, UnavailableError, VerificationError
from kit.files import digest_of, sha256_file
from kit.machine import Machine, peak_bytes, resident_bytes, this_machine
from kit.power import SYSTEM, find_meter, measure_energy
from kit.runner import Runner
from kit.seal import SIGNATURE_NAME
from kit.tensors import Tensors

TIMEOUT_S = 600.0
"""Longest time a gauge may take; a TensorRT engine is built while it loads, which takes minutes."""

N_CALLS = 200
"""Timed calls of one row; enough for a 99th percentile that is not the slowest call."""

NOT_MEASURED = "not measured"
"""How the words about a figure begin that this machine does not give."""

_KINDS = {kind.__name__: kind for kind, _ in EXIT_CODES}
_LEAST_CALLS = 3
_WARM_UP_CALLS = 20
_WARM_UP_S = 1.0
_LATENCY_S = 10.0
_THROUGHPUT_S = 0.5
_POWER_S = 2.0


@dataclass(frozen=True)
class Gauge:
    """What a bundle showed on a machine.

    Attributes:
        name: Name of the model.
        target: Target of the bundle.
        release: Its release counter.
        digest: Names the content that was measured, as ``kit.bundle.Bundle.digest`` does.
        engine: Engine that ran it.
        runtime: The engine's package.
        runtime_version: Its version.
        device: Where it computed: cpu, or tensorrt for a GPU.
        threads: Threads of the engine; 0 left it the choice.
        load_s: From a process without the runtime to a model that is ready.
        first_answer_s: From there on the same clock to the first answer.
        n_calls: Calls behind the next three.
        p50_ms: Median time to answer one row, preprocessing included.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        batch_rows: Rows of one call at the file's largest batch.
        rows_per_s: Rows answered in a second in such calls.
        memory_before_mb: Resident memory with Python and numpy alone; None where the system does not tell.
        memory_loaded_mb: With the runtime and the model; None likewise.
        memory_peak_mb: The most during all of this.
        watts: Mean power while it answered such calls; None where it was not measured.
        millijoules_per_row: Energy of one row in them; None likewise.
        power: What measured power and what that includes, or ``not measured: `` and why.
        golden_passed: Whether it answers its golden rows within the manifest's bounds.
        golden_reason: The bound it breaks; empty when passed.
        agreement: Share of golden rows with the reference's label; None for regression.
        output_error: Mean difference on golden rows, in the manifest's unit; None when not finite.
        machine: What it was measured on.
    """

    name: str
    target: str
    release: int
    digest: str
    engine: str
    runtime: str
    runtime_version: str
    device: str
    threads: int
    load_s: float
    first_answer_s: float
    n_calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    batch_rows: int
    rows_per_s: float
    memory_before_mb: float | None
    memory_loaded_mb: float | None
    memory_peak_mb: float
    watts: float | None
    millijoules_per_row: float | None
    power: str
    golden_passed: bool
    golden_reason: str
    agreement: float | None
    output_error: float | None
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """Give the gauge as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Gauge:
        """Read a gauge that another machine may have written.

        Raises:
            InputError: An entry is missing, unknown or of another type; the sentence names it.
        """
        checked = _checked(cls, value, where="the gauge")
        return cls(**{**checked, "machine": Machine(**checked["machine"])})


def gauge(folder: Path, *, threads: int, n_calls: int = N_CALLS) -> Gauge:
    """Measure a bundle in this process; see ``Gauge`` for what each figure is.

    Args:
        folder: An unpacked bundle, verified.
        threads: Threads of the engine; 0 leaves it the choice.
        n_calls: Timed calls of one row; fewer where they would take more than ten seconds.

    Raises:
        VerificationError: The manifest or the golden rows are not ones this kit can read.
        MissingDependencyError: The bundle's engine is not installed.
        InputError: The runtime refuses the file, or fails on its golden rows.
    """
    inputs = golden.read_tensors(folder / "golden" / "inputs.npz")
    n_rows = len(next(iter(inputs.values()), ()))
    if not n_rows:
        raise VerificationError(f"{folder.name} has no golden rows to measure with")
    rows = [{name: array[index : index + 1] for name, array in inputs.items()} for index in range(n_rows)]
    before = resident_bytes()
    began_s = time.perf_counter()
    runner = Runner.open(folder, threads=threads)
    load_s = time.perf_counter() - began_s
    loaded = resident_bytes()
    runner.run(rows[0])
    first_answer_s = time.perf_counter() - began_s
    report = runner.check_golden()
    taken_ms = _time_rows(runner, rows, n_calls=n_calls)
    p50_ms, p95_ms, p99_ms = (float(each) for each in np.percentile(taken_ms, (50, 95, 99)))
    batch = _batch(runner.manifest, inputs)
    batch_rows = len(next(iter(batch.values())))
    rows_per_s = batch_rows * _calls_per_s(lambda: runner.run(batch))
    watts, joules, power = _power(runner, batch)
    return Gauge(
        name=str(runner.manifest["name"]),
        target=str(runner.manifest["target"]),
        release=int(runner.manifest["release"]),
        digest=_digest(folder),
        engine=runner.engine.name,
        runtime=runtime_package(runner.engine.name),
        runtime_version=runner.engine.version,
        device=runner.engine.device,
        threads=threads,
        load_s=round(load_s, 6),
        first_answer_s=round(first_answer_s, 6),
        n_calls=len(taken_ms),
        p50_ms=round(p50_ms, 5),
        p95_ms=round(p95_ms, 5),
        p99_ms=round(p99_ms, 5),
        batch_rows=batch_rows,
        rows_per_s=round(rows_per_s, 2),
        memory_before_mb=_megabytes(before),
        memory_loaded_mb=_megabytes(loaded),
        memory_peak_mb=round(peak_bytes() / 1e6, 2),
        watts=watts,
        millijoules_per_row=None if joules is None else round(1e3 * joules / batch_rows, 6),
        power=power,
        golden_passed=report.passed,
        golden_reason=report.reason,
        agreement=report.agreement,
        output_error=report.output_error if math.isfinite(report.output_error) else None,
        machine=this_machine(),
    )


def gauge_in_child(
    folder: Path,
    *,
    threads: int,
    n_calls: int = N_CALLS,
    python: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Gauge:
    """Measure a bundle in a fresh process.

    Args:
        folder: An unpacked bundle, verified.
        threads: Threads of the engine; 0 leaves it the choice.
        n_calls: Timed calls of one row.
        python: An interpreter that has the kit and the bundle's runtime; None for this one.
        timeout_s: How long the child may take before it is killed.

    Raises:
        ModelError: The child crashed or hung.
        KitError: What the child raised, of the same kind and in the same words.
    """
    place = folder.resolve()
    program = str(python.absolute()) if python else sys.executable  # a link of an environment stays one
    command = [program, "-m", "kit.gauge", str(place), "--threads", str(threads)]
    command += ["--calls", str(n_calls), "--timeout-s", f"{timeout_s:g}"]
    try:
        # Another interpreter has a kit of its own; a bundle's folder holds nothing Python could import.
        ended = run_child(command, folder=place if python else CODE_FOLDER, timeout_s=timeout_s)
    except OSError as error:
        raise InputError(f"{program} cannot be started: {error.strerror}") from error
    refusal = ended.found.get("error")
    if isinstance(refusal, dict):
        raise _KINDS.get(str(refusal.get("kind")), KitError)(
            str(refusal.get("message")), hint=refusal.get("hint")
        )
    if ended.trouble:
        raise ModelError(
            f"measuring {folder.name} {ended.trouble}",
            hint="run the bundle's model file by itself in its runtime to see why",
        )
    return Gauge.from_json(ended.found)


def runtime_package(engine: str) -> str:
    """Name the package that an engine which has been opened runs on."""
    module, package, _ = ENGINES[engine]
    return str(getattr(importlib.import_module(module), "PACKAGE", package))


def main(arguments: list[str] | None = None) -> int:
    """Be the child of ``gauge_in_child``: print a gauge, or what was wrong, as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m kit.gauge", description="Measure an unpacked bundle.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the bundle, verified")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the engine")
    parser.add_argument("--calls", type=int, default=N_CALLS, metavar="N", help="timed calls of one row")
    parser.add_argument("--timeout-s", type=float, default=TIMEOUT_S, metavar="S", help="longest time")
    parsed = parser.parse_args(arguments)
    # Should who asked die, nobody is left to stop a hanging runtime but the system's own timer.
    signal.alarm(math.ceil(parsed.timeout_s) + 5)
    try:
        found = gauge(parsed.folder, threads=parsed.threads, n_calls=parsed.calls).to_json()
    except KitError as error:
        refusal = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        found = {"error": refusal}
    sys.stdout.write(json.dumps(found, sort_keys=True, allow_nan=False) + "\n")
    return 1 if "error" in found else 0


def _time_rows(runner: Runner, rows: list[Tensors], *, n_calls: int) -> list[float]:
    """Time answers to one row at a time, in a cycle, after a warm-up; milliseconds each."""
    end_s = time.perf_counter() + _WARM_UP_S
    for call in range(_WARM_UP_CALLS):
        runner.run(rows[call % len(rows)])
        if time.perf_counter() > end_s:
            break
    taken_ms: list[float] = []
    end_s = time.perf_counter() + _LATENCY_S
    while len(taken_ms) < n_calls and (len(taken_ms) < _LEAST_CALLS or time.perf_counter() < end_s):
        row = rows[len(taken_ms) % len(rows)]
        began_s = time.perf_counter()
        runner.run(row)
        taken_ms.append((time.perf_counter() - began_s) * 1e3)
    return taken_ms


def _batch(manifest: Mapping[str, Any], inputs: Tensors) -> Tensors:
    """Give a batch of the file's largest size, golden rows in a cycle."""
    size = max((int(each) for each in manifest.get("batch_sizes", ())), default=1)
    return {name: array[np.arange(size) % len(array)] for name, array in inputs.items()}


def _calls_per_s(call: Callable[[], object]) -> float:
    call()
    n_calls = 0
    began_s = time.perf_counter()
    while True:
        call()
        n_calls += 1
        taken_s = time.perf_counter() - began_s
        if taken_s >= _THROUGHPUT_S:
            return n_calls / taken_s


def _power(runner: Runner, batch: Tensors) -> tuple[float | None, float | None, str]:
    """Give mean watts, joules of a call, and what measured them or why nothing did."""
    try:
        meter = find_meter(SYSTEM, on_cpu=runner.engine.device == "cpu")
        energy = measure_energy(meter, lambda: runner.run(batch), for_s=_POWER_S)
    except UnavailableError as error:
        return None, None, f"{NOT_MEASURED}: {error.message}"
    return round(energy.joules / energy.seconds, 3), energy.joules / energy.n_calls, meter.source


def _digest(folder: Path) -> str:
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    named.pop(SIGNATURE_NAME, None)
    return digest_of(named)


def _megabytes(n_bytes: int | None) -> float | None:
    return None if n_bytes is None else round(n_bytes / 1e6, 2)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


#: A field's type, as it is written down, to what JSON may hold for it.
_RULES: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "Machine": lambda value: isinstance(value, dict) and bool(_checked(Machine, value, where="its machine")),
}


def _checked(cls: type[Gauge] | type[Machine], value: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    rules = {field.name: str(field.type) for field in fields(cls)}
    for name, kind in rules.items():
        if name not in value:
            raise InputError(f"{where} lacks {name!r}")
        if not _RULES[kind](value[name]):
            raise InputError(f"{where} has {name} = {str(value[name])[:40]!r}, which is no {kind}")
    for name in value:
        if name not in rules:
            raise InputError(f"{where} has {name[:40]!r}, which no gauge writes")
    return dict(value)


if __name__ == "__main__":
    sys.exit(main())
