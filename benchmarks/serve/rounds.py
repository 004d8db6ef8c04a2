"""Servers taking turns under the same load, so that what the machine does meanwhile hits them alike."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asking import Request
from servers import Server
from wrk import Load, Target

_WARM_S = 1
_IDLE_S = 2.0


@dataclass(frozen=True)
class Stand:
    """A server that can be asked.

    Attributes:
        name: What results call it; one server may have several stands.
        server: Its processes.
        url: Where it is asked.
        request: What it is asked.
        fresh: Whether each body differs.
    """

    name: str
    server: Server
    url: str
    request: Request
    fresh: bool = False


@dataclass(frozen=True)
class Turn:
    """One turn of one server.

    Attributes:
        per_second: Answers a second.
        p50_ms: Median latency.
        p99_ms: Latency that one of a hundred exceeds.
        cpu_us: CPU time of all processes of the server, in microseconds for each answer.
        failed: Requests refused, and connections broken.
        load: The machine's load average of a minute, just before.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: int
    load: float


Turns = dict[tuple[str, int], list[Turn]]
#: Gives what one stand's turn came to: (stand, connections, seconds).
Take = Callable[[Stand, int, float], Turn]


def take_turn(stand: Stand, connections: int, seconds: float, *, folder: Path) -> Turn:
    """Load one server with wrk and read what it used."""
    body = stand.request.file(folder, f"{stand.name}.body")
    load, before_s = round(os.getloadavg()[0], 2), stand.server.cpu_s()
    target = Target(stand.url, body, stand.request.headers, fresh=stand.fresh)
    found = target.drive(connections=connections, seconds=seconds)
    return turn_of(found, cpu_s=stand.server.cpu_s() - before_s, load=load)


def turn_of(found: Load, *, cpu_s: float, load: float) -> Turn:
    """Put a turn's figures together."""
    return Turn(
        per_second=found.per_second,
        p50_ms=found.p50_ms,
        p99_ms=found.p99_ms,
        cpu_us=cpu_s * 1e6 / max(found.requests, 1),
        failed=found.refused + found.broken,
        load=load,
    )


def take_turns(
    stands: list[Stand], *, connections: tuple[int, ...], rounds: int, seconds: float, take: Take
) -> Turns:
    """Give every stand one turn a round and number of connections, in an order that rotates and turns round.

    The servers that are not on turn stand still: an idle Ray takes up to a tenth of a core. A short turn that
    is not counted goes before each.

    Args:
        stands: Who.
        connections: Kept busy at a time.
        rounds: How often.
        seconds: Of one turn.
        take: Runs a turn.

    Raises:
        SystemExit: A request failed.
    """
    found: Turns = {}
    on_turn: Server | None = None
    for each in {id(stand.server): stand.server for stand in stands}.values():
        each.pause()
    for index in range(rounds):
        first = index % len(stands)
        order = [*stands[first:], *stands[:first]]
        for number in connections:
            for stand in order if index % 2 == 0 else reversed(order):
                if stand.server is not on_turn:
                    if on_turn is not None:
                        on_turn.pause()
                    stand.server.resume()
                    on_turn = stand.server
                on_turn.settle()
                take(stand, number, _WARM_S)
                turn = take(stand, number, seconds)
                print(_line(stand.name, number, turn), file=sys.stderr, flush=True)
                if turn.failed:
                    raise SystemExit(f"{stand.name}: {turn.failed} requests failed\n{stand.server.said()}")
                found.setdefault((stand.name, number), []).append(turn)
    for stand in stands:
        stand.server.resume()
    return found


def idle_shares(stands: list[Stand]) -> dict[str, float]:
    """Measure which share of one core each server takes while nobody asks: others' turns suffer from that."""
    for stand in stands:
        stand.server.settle()
    before = [stand.server.cpu_s() for stand in stands]
    time.sleep(_IDLE_S)
    return {
        stand.name: round((stand.server.cpu_s() - began_s) / _IDLE_S, 3)
        for stand, began_s in zip(stands, before, strict=True)
    }


def median(turns: list[Turn], name: str) -> float:
    """Give the median of one figure."""
    return float(statistics.median(getattr(turn, name) for turn in turns))


def ratio(above: list[Turn], below: list[Turn], name: str = "per_second") -> float:
    """Give the median over rounds of one server's figure by another's."""
    return statistics.median(getattr(a, name) / getattr(b, name) for a, b in zip(above, below, strict=True))


def facts_of(turns: list[Turn]) -> dict[str, Any]:
    """Give medians, and every turn."""
    names = ("per_second", "p50_ms", "p99_ms", "cpu_us")
    return {**{name: median(turns, name) for name in names}, "turns": [asdict(turn) for turn in turns]}


def _line(name: str, connections: int, turn: Turn) -> str:
    figures = f"{turn.per_second:.0f}/s, p99 {turn.p99_ms:.2f} ms, {turn.cpu_us:.0f} us CPU, load {turn.load}"
    return f"{name} x{connections}: {figures}"
