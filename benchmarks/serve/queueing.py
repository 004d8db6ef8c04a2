"""A model whose batch takes 20 ms: with as much to do as it likes, and with twice as much as it can.

Clients do not wait for each other here. Closed loops hide a queue: they stop asking as soon as it grows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
from typing import Any

import numpy as np
from kit_endpoint import Endpoint, Place, Setting, running
from open_loop import Outcome, ask, run
from reporting import Report, number, table
from servers import Server, rss_mb
from subjects import slow, slow_run_ms
from wrk import Target

_PORT = 18600
#: Of the overload: 400 rows a second, a wait of at most 1.3 s. The engine is to be what is too small, and not
#: the machine, which the load generator shares.
_SMALL = ("--max-batch-rows=8", "--max-queue-rows=512")
_PER_SECOND = 300.0
_OPEN_S = 15.0
_CAPACITY_CONNECTIONS = 64
_CAPACITY_S = 8.0
_WINDOWS = 10
_WATCH_S = 1.0


def measure_open_loop(given: argparse.Namespace, place: Place) -> Report:
    """Ask 300 times a second, several times over."""
    found = []
    with running(place, "slow", _setting(place, "--max-batch-rows=32")) as endpoint:
        batch_ms = slow_run_ms(endpoint.subject)
        _ask(endpoint, per_second=_PER_SECOND, seconds=2.0, seed=99)
        for turn in range(given.rounds):
            load = round(os.getloadavg()[0], 2)
            outcome = _ask(endpoint, per_second=_PER_SECOND, seconds=_OPEN_S, seed=turn)
            found.append({**_facts(outcome), "load": load})
            print(f"open loop: {found[-1]}", file=sys.stderr, flush=True)
    facts: dict[str, Any] = {
        "per_second": _PER_SECOND,
        "batch_ms": batch_ms,
        **{
            name: statistics.median(each[name] for each in found)
            for name in ("p50_ms", "p99_ms", "late_p99_ms")
        },
        "sent": sum(each["sent"] for each in found),
        "lost": sum(each["lost"] for each in found),
        "turns": found,
    }
    head = ["requests/s", "requests", "lost", "p50 ms (wanted)", "p99 ms", "a batch by itself, ms"]
    row = [f"{_PER_SECOND:g}", f"{facts['sent']:,}", str(facts["lost"]), f"{number(facts['p50_ms'])} (40)"]
    row += [number(facts["p99_ms"]), number(batch_ms)]
    return Report("open_loop", "A 20 ms model that batches, open loop", facts, table(head, [row]))


def measure_overload(given: argparse.Namespace, place: Place) -> Report:
    """Ask twice as often as it can answer, and watch latency and memory."""
    with running(place, "slow", _setting(place, *_SMALL)) as endpoint:
        request = endpoint.request()
        target = Target(endpoint.url, request.file(place.bodies, "slow.body"), request.headers)
        load = target.drive(connections=_CAPACITY_CONNECTIONS, seconds=_CAPACITY_S)
        capacity = load.per_second
        print(f"overload: capacity {capacity:.0f}/s", file=sys.stderr, flush=True)
        outcome, memory_mb = run(
            ask(
                endpoint.setting.port,
                request.http(endpoint.path),
                per_second=2 * capacity,
                seconds=given.seconds,
            ),
            _watch(endpoint.server, seconds=given.seconds),
        )
    windows = _windows(outcome, memory_mb, seconds=given.seconds)
    facts = {"capacity": capacity, "seconds": given.seconds, **_facts(outcome), "windows": windows}
    facts["refused_share"] = outcome.counts().get(429, 0) / outcome.sent
    head = ["seconds", "accepted/s", "p50 ms", "p99 ms", "share of 429", "replica's memory MB"]
    rows = [
        [
            f"{each['since_s']:.0f} to {each['until_s']:.0f}",
            f"{each['accepted_per_second']:,.0f}",
            number(each["p50_ms"]),
            number(each["p99_ms"]),
            f"{each['refused_share']:.2f}",
            f"{each['memory_mb']:.0f}",
        ]
        for each in windows
    ]
    said = (
        f"Capacity {capacity:,.0f} requests/s, asked {2 * capacity:,.0f}; accepted requests: p99 "
        f"{facts['p99_ms'] / 1000:.2f} s (wanted: 2). Answers by status: {facts['counts']}; the generator "
        f"was {facts['late_p99_ms']:.1f} ms late at worst (p99)."
    )
    return Report("overload", "Twice the capacity, open loop", facts, f"{table(head, rows)}\n\n{said}")


def _setting(place: Place, *flags: str) -> Setting:
    return Setting((slow(place.folder),), _PORT, flags=flags)


def _ask(endpoint: Endpoint, *, per_second: float, seconds: float, seed: int) -> Outcome:
    message = endpoint.request().http(endpoint.path)
    (outcome,) = run(ask(endpoint.setting.port, message, per_second=per_second, seconds=seconds, seed=seed))
    found: Outcome = outcome
    return found


def _facts(outcome: Outcome) -> dict[str, Any]:
    p50_ms, p99_ms = _percentiles(outcome.latencies_ms())
    counts = outcome.counts()
    return {
        "sent": outcome.sent,
        "counts": counts,
        "lost": outcome.sent - counts.get(200, 0),
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "late_p99_ms": _percentiles(np.array(outcome.late_ms))[1],
        "connections": outcome.connections,
    }


def _windows(outcome: Outcome, memory_mb: list[float], *, seconds: float) -> list[dict[str, float]]:
    """Cut the time into equal windows, so that what grows is seen."""
    found = []
    length_s = seconds / _WINDOWS
    for index in range(_WINDOWS):
        since_s, until_s = index * length_s, (index + 1) * length_s
        accepted = outcome.latencies_ms(since_s=since_s, until_s=until_s)
        refused = outcome.latencies_ms(status=429, since_s=since_s, until_s=until_s)
        p50_ms, p99_ms = _percentiles(accepted)
        at = memory_mb[int(len(memory_mb) * index / _WINDOWS) : int(len(memory_mb) * (index + 1) / _WINDOWS)]
        found.append(
            {
                "since_s": since_s,
                "until_s": until_s,
                "accepted_per_second": len(accepted) / length_s,
                "refused_share": len(refused) / max(len(refused) + len(accepted), 1),
                "p50_ms": p50_ms,
                "p99_ms": p99_ms,
                "memory_mb": max(at, default=0.0),
            }
        )
    return found


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99)


async def _watch(server: Server, *, seconds: float) -> list[float]:
    """Read the replicas' memory once a second."""
    pids = await asyncio.to_thread(server.replica_pids)
    found = []
    for _ in range(round(seconds / _WATCH_S)):
        found.append(sum(rss_mb(pid) for pid in pids))
        await asyncio.sleep(_WATCH_S)
    return found
