"""Releases while two replicas are under full load: what fails, when they are in force, and whom canaries get.

Two clocks say when: the replicas' own, and a client that asks over and over which version answers.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from kit_endpoint import Endpoint, Place, Setting, running
from reporting import Report, number, table
from subjects import mlp
from wrk import Target

_PORT = 18800
_CONNECTIONS = 32
_LONGEST_S = 600.0
_BEFORE_S, _AFTER_S = 1.5, 1.0
_CANARIES = (0.1, 10.0)
_CANARY_S = 15.0
_WANTED_S = 1.0
_VERSION = "kit-version"


@dataclass(frozen=True)
class Change:
    """One change of the release.

    Attributes:
        title: What was done.
        in_force_s: From the making of the release until the last replica had it in force, as replicas say.
        seen_s: From then until a client last met the version before.
        called_s: The whole command.
    """

    title: str
    in_force_s: float
    seen_s: float
    called_s: float


def measure_release(given: argparse.Namespace, place: Place) -> Report:
    """Release and roll back under load, then count who meets a canary."""
    setting = Setting((mlp(), mlp(seed=1)), _PORT, flags=("--replicas=2",))
    with running(place, "release", setting) as endpoint:
        request = endpoint.request()
        target = Target(endpoint.url, request.file(place.bodies, "release.body"), request.headers)
        load = target.start(connections=_CONNECTIONS, seconds=_LONGEST_S)
        with _Watcher(endpoint) as watcher:
            changes = _changes(endpoint, watcher, rounds=given.rounds)
        found = load.stop()
        canaries = [
            _canary(endpoint, percent, target=replace(target, count=_VERSION)) for percent in _CANARIES
        ]
    failed = found.refused + found.broken + watcher.failed
    facts = {
        "requests": found.requests + watcher.asked,
        "per_second": found.per_second,
        "failed": failed,
        "changes": [vars(each) for each in changes],
        "canaries": canaries,
    }
    return Report("release", "Releases under full load, two replicas", facts, _text(facts, changes))


def _changes(endpoint: Endpoint, watcher: _Watcher, *, rounds: int) -> list[Change]:
    found = []
    for index in range(rounds):
        loads = ", loads the version" if not index else ""
        for title, old, words in (
            (f"release of version 2{loads}", "1", ("set", "2=100")),
            ("rollback", "2", ("rollback",)),
        ):
            time.sleep(_BEFORE_S)
            told = endpoint.release(*words)
            time.sleep(_AFTER_S)
            made_ns = told["release"]["made_ns"]
            since_ns = max(each["since_ns"] for each in told["replicas"])
            last_ns = watcher.last_ns(old)
            change = Change(
                title, (since_ns - made_ns) / 1e9, max(last_ns - made_ns, 0) / 1e9, told["called_s"]
            )
            print(change, file=sys.stderr, flush=True)
            found.append(change)
    return found


def _canary(endpoint: Endpoint, percent: float, *, target: Target) -> dict[str, Any]:
    """Give version 2 a share and count by whom requests are answered."""
    endpoint.release("set", f"1={100 - percent:g}", f"2={percent:g}")
    counts = target.drive(connections=_CONNECTIONS, seconds=_CANARY_S).counts
    total, answered = sum(counts.values()), counts.get("200 2", 0)
    expected = total * percent / 100
    deviation = (expected * (1 - percent / 100)) ** 0.5
    return {
        "percent": percent,
        "requests": total,
        "by_canary": answered,
        "expected": expected,
        "standard_deviations_off": (answered - expected) / deviation,
        "counts": counts,
    }


def _text(facts: dict[str, Any], changes: list[Change]) -> str:
    head = ["", "times", "in force everywhere after s", "slowest", "old version last seen after s (slowest)"]
    rows = []
    for title in dict.fromkeys(each.title for each in changes):
        these = [each for each in changes if each.title == title]
        in_force = [each.in_force_s for each in these]
        seen_s = max(each.seen_s for each in these)
        row = [title, str(len(these)), number(statistics.median(in_force)), number(max(in_force))]
        rows.append([*row, number(seen_s)])
    said = (
        f"{facts['failed']} of {facts['requests']:,} requests failed, at {facts['per_second']:,.0f}/s "
        f"(wanted: none; in force in under {_WANTED_S:g} s)."
    )
    shares = table(
        ["canary", "requests", "answered by it", "expected", "standard deviations off"],
        [
            [
                f"{each['percent']:g} %",
                f"{each['requests']:,}",
                f"{each['by_canary']:,}",
                f"{each['expected']:,.0f}",
                f"{each['standard_deviations_off']:+.1f}",
            ]
            for each in facts["canaries"]
        ],
    )
    return f"{table(head, rows)}\n\n{said}\n\n{shares}"


class _Watcher:
    """A client that asks all the time and notes when it last met each version."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._last_ns: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.asked = self.failed = 0

    def __enter__(self) -> _Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def last_ns(self, version: str) -> int:
        """Say when a version last answered, Unix time in nanoseconds; 0 for never."""
        return self._last_ns.get(version, 0)

    def _ask(self) -> None:
        request = self._endpoint.request(seed=1)
        connection = http.client.HTTPConnection("127.0.0.1", self._endpoint.setting.port, timeout=10)
        while not self._over.is_set():
            self.asked += 1
            try:
                connection.request("POST", self._endpoint.path, request.body, dict(request.headers))
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self.failed += 1
                connection.close()
                continue
            self.failed += answer.status != 200
            self._last_ns[answer.headers.get(_VERSION, "")] = time.time_ns()
        connection.close()
