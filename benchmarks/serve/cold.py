"""First answers: of versions that are registered and not loaded, and of an endpoint without a replica."""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
from asking import post, protocol_json, wrong
from kit_endpoint import Endpoint, Place, Setting, running
from reporting import Report, table
from subjects import large

_PORT = 18700
_WANTED_VERSION_MS, _WANTED_ZERO_S = 500, 1.2
_ZERO_TIMEOUT_S = 300.0


def measure_cold(given: argparse.Namespace, place: Place) -> Report:
    """Ask versions that nobody asked before, then an endpoint that has gone to sleep."""
    subjects = tuple(large(seed=seed) for seed in range(given.versions + 1))
    with running(place, "large", Setting(subjects, _PORT)) as endpoint:
        endpoint.release("set", "1=100", *(f"{index + 1}=0" for index in range(1, len(subjects))))
        first_ms = [_first_ms(endpoint, index) for index in range(1, len(subjects))]
        again_ms = [_first_ms(endpoint, index) for index in range(1, len(subjects))]
    zero_s = _from_zero(given, place)
    p50_ms, p95_ms = np.percentile(first_ms, (50, 95))
    facts = {
        "versions": given.versions,
        "megabytes": len(subjects[0].onnx) / 1e6,
        "first_p50_ms": float(p50_ms),
        "first_p95_ms": float(p95_ms),
        "first_ms": first_ms,
        "again_p50_ms": statistics.median(again_ms),
        "from_zero_s": zero_s,
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
    if zero_s:
        median_s, most_s = statistics.median(zero_s), max(zero_s)
        cells = [f"{median_s:.2f} s", f"{most_s:.2f} s (slowest)", f"{_WANTED_ZERO_S:g} s"]
        rows.append(["from zero replicas", str(len(zero_s)), *cells])
    return Report("cold", "First answers", facts, table(head, rows))


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


def _from_zero(given: argparse.Namespace, place: Place) -> list[float]:
    """Wait until the last replica has gone, ask, and so on."""
    setting = Setting((large(seed=0),), _PORT + 1, flags=("--replicas=0", "--max-replicas=1"))
    found = []
    with running(place, "zero", setting) as endpoint:
        for _ in range(given.rounds):
            _wait_for_zero(endpoint)
            row = endpoint.subject.rows(1, seed=0)
            found.append(_timed_s(endpoint, endpoint.path, index=0, row=row))
            print(f"from zero replicas: {found[-1]:.2f} s", file=sys.stderr, flush=True)
    return found


def _wait_for_zero(endpoint: Endpoint) -> None:
    began = time.monotonic()
    while endpoint.server.replica_pids():
        if time.monotonic() - began > _ZERO_TIMEOUT_S:
            raise SystemExit(f"there are replicas after {_ZERO_TIMEOUT_S:g} s without a request")
        time.sleep(1.0)
    time.sleep(1.0)
