"""Measure one version on what this machine has, and say how to serve it.

Every engine, device and number of threads that is there runs batches of growing size; one is chosen by the
rows it answers in a second while a request still gets its answer in time. It measures the engine alone:
HTTP and JSON come on top, which is why a small model is bound by its replicas. It starts no server.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from kit.engines import ENGINES, Engine, open_engine
from kit.errors import InputError, KitError, UnavailableError
from kit.model_version import ModelVersion
from kit.tensors import Tensors
from serve.models.loading import EngineChoice, repeat_rows
from serve.models.self_test import check_answers, tolerance_of

_logger = logging.getLogger("kit")
#: Batch sizes that are tried, in rows.
SIZES = (1, 4, 16, 64, 256)
_CALLS = 400
_LEAST_CALLS = 5
_AS_GOOD = 0.95  # what is within 5 % of the best is as good, and the simpler one is taken


@dataclass(frozen=True)
class Measured:
    """How one engine on one device answers batches of one size.

    Attributes:
        engine: The engine.
        device: Where it computes.
        threads: Threads of one call.
        rows: Rows of one call.
        p50_ms: Median time of one call.
        p99_ms: The time that 99 of 100 calls stay below; of few calls, the slowest.
        rows_per_s: Rows one engine answers in a second that does nothing else, by the median.
        n_calls: Calls the figures come from.
    """

    engine: str
    device: str
    threads: int
    rows: int
    p50_ms: float
    p99_ms: float
    rows_per_s: float
    n_calls: int

    @property
    def worst_ms(self) -> float:
        """What a request waits for at worst: the batch before it, and its own."""
        return 2 * self.p99_ms


@dataclass(frozen=True)
class Advice:
    """How to serve a version on this machine, and why.

    Attributes:
        model: The model's name.
        digest: The version's digest.
        cores: CPU cores that were counted on.
        target_ms: The latency that was asked for.
        chosen: What to set in ``[serve]``, its ``rows`` as ``max_batch_rows``, and what to expect.
        is_met: Whether it keeps the target.
        replicas: How many to start.
        rows_per_s: Rows in a second of all replicas together, as far as they do not hinder each other.
        reasons: Why, a sentence each.
        skipped: What was not measured to the end, and why.
        measured: Everything that was measured.
    """

    model: str
    digest: str
    cores: int
    target_ms: float
    chosen: Measured
    is_met: bool
    replicas: int
    rows_per_s: float
    reasons: tuple[str, ...]
    skipped: tuple[str, ...]
    measured: tuple[Measured, ...]

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON-ready values."""
        return asdict(self)


def advise(
    version: ModelVersion, *, target_ms: float = 50.0, cores: int | None = None, budget_s: float = 15.0
) -> Advice:
    """Measure a version and choose how to serve it.

    Args:
        version: An opened version; its golden rows are what is asked.
        target_ms: How long a request may wait for its answer under load, without network and JSON.
        cores: CPU cores to count on; those this process may use when None.
        budget_s: About how long to measure; opening comes on top, which for TensorRT can be minutes.

    Raises:
        InputError: The target is none.
        UnavailableError: Nothing here can run the version.
    """
    if not target_ms > 0:
        raise InputError(f"a target of {target_ms} ms is none", hint="give milliseconds above 0")
    if cores is None:  # macOS has no affinity
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    choices = available(cores)
    inputs, outputs = version.golden()
    inputs = version.signature.validate(inputs)
    measured: list[Measured] = []
    skipped: list[str] = []
    each_s = budget_s / len(choices) / len(SIZES)
    for choice in choices:
        try:
            engine = open_engine(
                version.model_path,
                engine=choice.engine,
                threads=choice.threads,
                signature=version.signature,
                device=choice.device,
            )
            tolerance = tolerance_of(version.manifest, device=engine.device)
            check_answers(engine.run(inputs), outputs, tolerance=tolerance)
            measured += _grow(engine, choice, inputs, target_ms=target_ms, each_s=each_s)
        except (KitError, MemoryError) as error:
            skipped.append(f"{_named(choice)}: {error}")
            _logger.info("left out %s", skipped[-1])
    if not measured:
        raise UnavailableError(f"nothing here can run {version.name}: {'; '.join(skipped)}")
    best, reasons = choose(measured, target_ms=target_ms, cores=cores)
    return Advice(
        model=version.name,
        digest=version.digest,
        cores=cores,
        target_ms=target_ms,
        chosen=best,
        is_met=best.worst_ms <= target_ms,
        replicas=_replicas(best, cores),
        rows_per_s=_on_machine(best, cores),
        reasons=tuple(reasons),
        skipped=tuple(skipped),
        measured=tuple(measured),
    )


def available(cores: int) -> list[EngineChoice]:
    """List what can run a version here: engines with 1, 2, 4 ... threads up to ``cores``, and GPUs."""
    threads = sorted({1, cores} | {2**power for power in range(1, 10) if 2**power < cores})
    engines = [name for name in ("onnxruntime", "openvino") if find_spec(ENGINES[name][1]) is not None]
    choices = [EngineChoice(engine, "cpu", count) for engine in engines for count in threads]
    if "onnxruntime" in engines:
        import onnxruntime

        providers = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
        there = onnxruntime.get_available_providers()
        choices += [
            EngineChoice("onnxruntime", device) for device, name in providers.items() if name in there
        ]
    return choices


def choose(measured: list[Measured], *, target_ms: float, cores: int) -> tuple[Measured, list[str]]:
    """Pick the measurement that answers most rows on the whole machine within the target.

    Args:
        measured: At least one.
        target_ms: The latency to keep.
        cores: CPU cores, which say how many replicas there may be.

    Returns:
        The measurement, and the reasons.
    """
    in_time = [each for each in measured if each.worst_ms <= target_ms]
    if not in_time:
        best = min(measured, key=lambda each: each.p99_ms)
        said = f"nothing keeps {target_ms:g} ms; {_named(best)} comes closest with {best.worst_ms:.1f} ms"
        return best, [f"{said} for a batch of {best.rows} rows behind another"]
    enough = _AS_GOOD * max(_on_machine(each, cores) for each in in_time)
    good = [each for each in in_time if _on_machine(each, cores) >= enough]
    best = min(good, key=_simplicity)
    reasons = [
        f"{_named(best)} answers {best.rows_per_s:.0f} rows/s in batches of {best.rows}; a request waits "
        f"{best.worst_ms:.1f} of {target_ms:g} ms at worst, for the batch before it and its own"
    ]
    rest: dict[str, Measured] = {}
    for each in sorted(in_time, key=lambda each: _on_machine(each, cores), reverse=True):
        rest.setdefault(_named(each), each)
    del rest[_named(best)]
    for each in rest.values():
        share = _on_machine(each, cores) / _on_machine(best, cores)
        reasons.append(f"{_named(each)} would answer {share:.2f} times as much on {cores} cores")
    if best.engine != "onnxruntime" or best.device != "cpu":
        reasons.append("its answers equal those of a batch run within the tolerance, but not bit by bit")
    larger = [each for each in measured if _named(each) == _named(best) and each.rows > best.rows]
    if larger and larger[0].worst_ms > target_ms:
        reasons.append(f"batches of {larger[0].rows} rows would take up to {larger[0].worst_ms:.1f} ms")
    return best, reasons


def _simplicity(each: Measured) -> tuple[bool, bool, int, int]:
    return each.device != "cpu", each.engine != "onnxruntime", each.rows, each.threads


def _on_machine(each: Measured, cores: int) -> float:
    return each.rows_per_s * _replicas(each, cores)


def _replicas(each: Measured, cores: int) -> int:
    return max(1, cores // each.threads) if each.device == "cpu" else 1


def _named(choice: EngineChoice | Measured) -> str:
    threads = f", threads = {choice.threads}" if choice.device == "cpu" else ""
    return f"{choice.engine} on {choice.device}{threads}"


def _grow(
    engine: Engine, choice: EngineChoice, inputs: Tensors, *, target_ms: float, each_s: float
) -> list[Measured]:
    found: list[Measured] = []
    for rows in SIZES:
        seconds = _time(engine.run_validated, repeat_rows(inputs, n_rows=rows), for_s=each_s)
        p50_ms, p99_ms = (float(each) * 1000 for each in np.percentile(seconds, (50, 99), method="higher"))
        where = (choice.engine, engine.device, choice.threads)
        found.append(Measured(*where, rows, p50_ms, p99_ms, 1000 * rows / p50_ms, len(seconds)))
        _logger.info("%s, %d rows: %.2f ms", _named(choice), rows, p50_ms)
        if p50_ms > 2 * target_ms:
            break
    return found


def _time(run: Callable[[Tensors], Tensors], batch: Tensors, *, for_s: float) -> list[float]:
    run(batch)  # does not count
    taken: list[float] = []
    end_s = time.perf_counter() + for_s
    while len(taken) < _LEAST_CALLS or (len(taken) < _CALLS and time.perf_counter() < end_s):
        began_s = time.perf_counter()
        run(batch)
        taken.append(time.perf_counter() - began_s)
    return taken
