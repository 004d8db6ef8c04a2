"""First answers: of versions that are registered and not loaded, and of an endpoint without a replica."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import psutil
from asking import post, protocol_json, wrong
from kit_endpoint import Endpoint, Place, Setting, running
from reporting import Report, table
from subjects import large

_PORT = 18700
_WANTED_VERSION_MS, _WANTED_ZERO_S = 500, 1.2
_ZERO_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Waking:
    """One first answer of an endpoint without replicas, in seconds from the request.

    Attributes:
        answer_s: Until the answer.
        process_s: Until the new replica's process began; below zero when Ray had one waiting; None when no
            replica was started for it.
        ready_s: Until the replica had loaded its models.
    """

    answer_s: float
    process_s: float | None
    ready_s: float | None


def measure_cold(given: argparse.Namespace, place: Place) -> Report:
    """Ask versions that nobody asked before, then an endpoint that has gone to sleep."""
    subjects = tuple(large(seed=seed) for seed in range(given.versions + 1))
    with running(place, "large", Setting(subjects, _PORT)) as endpoint:
        endpoint.release("set", "1=100", *(f"{index + 1}=0" for index in range(1, len(subjects))))
        first_ms = [_first_ms(endpoint, index) for index in range(1, len(subjects))]
        again_ms = [_first_ms(endpoint, index) for index in range(1, len(subjects))]
    zero = _from_zero(given, place)
    p50_ms, p95_ms = np.percentile(first_ms, (50, 95))
    facts = {
        "versions": given.versions,
        "megabytes": len(subjects[0].onnx) / 1e6,
        "first_p50_ms": float(p50_ms),
        "first_p95_ms": float(p95_ms),
        "first_ms": first_ms,
        "again_p50_ms": statistics.median(again_ms),
        "from_zero": [asdict(each) for each in zero],
    }
    head = ["first answer", "tries", "median", "p95", "wanted"]
    rows = [
        [
            f"of a version of {facts['megabytes']:.0f} MB that is not loaded",
            str(given.versions),
            f"{p50_ms:.0f} ms",
            f"{p95_ms:.0f} ms",
            f"p95 {_WANTED_VERSION_MS} ms",
        ],
        ["of the same again", str(given.versions), f"{facts['again_p50_ms']:.1f} ms", "", ""],
    ]
    answer_s = [each.answer_s for each in zero]
    cells = [f"{statistics.median(answer_s):.2f} s", f"{max(answer_s):.2f} s (slowest)"]
    rows.append(["from zero replicas", str(len(zero)), *cells, f"{_WANTED_ZERO_S:g} s"])
    return Report("cold", "First answers", facts, f"{table(head, rows)}\n\n{_steps(zero)}")


def _steps(zero: list[Waking]) -> str:
    """Say where the time from zero replicas went, by medians."""
    full = [each for each in zero if each.process_s is not None and each.ready_s is not None]
    if not full:
        return "From zero replicas no replica was started before the answer."
    process_s = max(0.0, statistics.median(each.process_s or 0.0 for each in full))
    begun = f"{process_s:.2f} s until the replica's process began" if process_s else "its process had waited"
    ready_s = statistics.median(each.ready_s or 0.0 for each in full)
    answer_s = statistics.median(each.answer_s for each in full)
    return (
        f"From zero replicas, medians: {begun}, {ready_s - process_s:.2f} s until it had imported and "
        f"loaded, {answer_s - ready_s:.2f} s until it had answered."
    )


def _first_ms(endpoint: Endpoint, index: int) -> float:
    """Ask a version, numbered from 0, once; gives the time its answer took."""
    subject = endpoint.setting.subjects[index]
    row = subject.rows(1, seed=index)
    path = f"/v2/models/{subject.name}/versions/{index + 1}/infer"
    return _timed_s(endpoint, path, index=index, row=row) * 1000


def _timed_s(endpoint: Endpoint, path: str, *, index: int, row: np.ndarray) -> float:
    request = protocol_json(row)
    began = time.perf_counter()
    status, _, body = post(endpoint.setting.port, path, request)
    taken_s = time.perf_counter() - began
    if reason := wrong(status, body, row=row, subject=endpoint.setting.subjects[index]):
        raise SystemExit(f"{path} answers wrongly: {reason}")
    return taken_s


def _from_zero(given: argparse.Namespace, place: Place) -> list[Waking]:
    """Wait until the last replica has gone, ask, and so on."""
    setting = Setting((large(seed=0),), _PORT + 1, flags=("--replicas=0", "--max-replicas=1"))
    found = []
    with running(place, "zero", setting) as endpoint:
        for _ in range(given.rounds):
            _wait_for_zero(endpoint)
            row = endpoint.subject.rows(1, seed=0)
            asked = datetime.now(UTC)
            answer_s = _timed_s(endpoint, endpoint.path, index=0, row=row)
            found.append(_waking(endpoint, asked, answer_s=answer_s))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def _waking(endpoint: Endpoint, asked: datetime, *, answer_s: float) -> Waking:
    """Read from the new replica's process and its log when it began and when it was ready."""
    pids = endpoint.server.replica_pids()
    if not pids:
        return Waking(answer_s, None, None)
    process_s = psutil.Process(pids[0]).create_time() - asked.timestamp()
    events = [
        event
        for path in (endpoint.project / ".kit" / "serve" / "log").glob("*.jsonl")
        for event in map(json.loads, path.read_text().splitlines())
        if event.get("event") == "replica_started" and event.get("pid") == pids[0]
    ]
    ready_s = (datetime.fromisoformat(events[0]["time"]) - asked).total_seconds() if events else None
    return Waking(answer_s, process_s, ready_s)


def _wait_for_zero(endpoint: Endpoint) -> None:
    began = time.monotonic()
    while endpoint.server.replica_pids():
        if time.monotonic() - began > _ZERO_TIMEOUT_S:
            raise SystemExit(f"there are replicas after {_ZERO_TIMEOUT_S:g} s without a request")
        time.sleep(1.0)
    time.sleep(1.0)
