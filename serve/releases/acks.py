"""What every replica says of itself in a file: which release it has in force, and which one failed and why.

``<folder>/<replica>.json``, replaced on every change and every two seconds, removed at the end; one that was
not replaced for ``STALE_S`` belongs to a replica that is dead or stuck. Clocks of machines that share the
folder must agree within a few seconds. There are no secrets in it. It decides nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.files import canonical_json, write_atomic

BEAT_S = 2.0
STALE_S = 10.0
_FORGET_S = 3600.0
_FORMAT = 1


@dataclass(frozen=True)
class EndpointAck:
    """One endpoint in one replica.

    Attributes:
        in_force: Sequence number of the release in force; 0 while there is none.
        since_ns: Since when, Unix time in nanoseconds.
        loading: Sequence number of the release whose versions are being loaded; 0 when there is none.
        failed: Sequence number of the newest release that did not come in force; 0 when there is none.
        reason: Why it did not.
        states: Version number to its state, as whoever loads them says.
        shadow: Counters of the shadow, see ``shadow.Counts``; empty without one.
    """

    in_force: int = 0
    since_ns: int = 0
    loading: int = 0
    failed: int = 0
    reason: str = ""
    states: Mapping[str, Any] = field(default_factory=dict)
    shadow: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ack:
    """One replica.

    Attributes:
        replica: Its name.
        node: Host name of its machine.
        pid: Its process.
        beat_ns: When it wrote this, Unix time in nanoseconds.
        endpoints: Endpoint to what it has of it.
    """

    replica: str
    node: str
    pid: int
    beat_ns: int
    endpoints: Mapping[str, EndpointAck]

    def age_s(self, *, now_ns: int) -> float:
        """Give the seconds since it wrote this, negative where its clock is ahead."""
        return (now_ns - self.beat_ns) / 1e9

    def alive(self, *, now_ns: int) -> bool:
        """Say whether it wrote this just now; a moment far in the future is none, clocks may step."""
        return abs(self.age_s(now_ns=now_ns)) <= STALE_S


def write_ack(folder: Path, ack: Ack) -> None:
    """Replace a replica's file in one step.

    Raises:
        UnavailableError: The disk is full or the folder cannot be written.
    """
    data = canonical_json({"format": _FORMAT, **asdict(ack)})
    write_atomic(_path(folder, ack.replica), data, settled=False)


def remove_ack(folder: Path, *, replica: str) -> None:
    """Remove a replica's file, if there is one."""
    with contextlib.suppress(OSError):
        _path(folder, replica).unlink()


def read_acks(folder: Path) -> tuple[Ack, ...]:
    """Read what all replicas say, dead ones included, by name; a file that does not hold is left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            found.append(_parsed(json.loads(path.read_bytes())))
    return tuple(found)


def living_acks(folder: Path, *, endpoint: str | None = None, now_ns: int | None = None) -> tuple[Ack, ...]:
    """Read what living replicas say.

    Args:
        folder: ``<state>/serve/replicas``.
        endpoint: Only replicas that serve this one.
        now_ns: Unix time in nanoseconds; the clock's when None.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    return tuple(
        each
        for each in read_acks(folder)
        if each.alive(now_ns=now_ns) and (endpoint is None or endpoint in each.endpoints)
    )


def forget_dead(folder: Path) -> None:
    """Remove files of replicas that have been dead for an hour."""
    now_ns = time.time_ns()
    for each in read_acks(folder):
        if abs(each.age_s(now_ns=now_ns)) > _FORGET_S:
            remove_ack(folder, replica=each.replica)


def try_write(folder: Path, ack: Ack) -> bool:
    """Replace a replica's file; False where that cannot be done, which must not end the replica."""
    try:
        write_ack(folder, ack)
    except KitError:
        return False
    return True


def _path(folder: Path, replica: str) -> Path:
    return folder / f"{replica}.json"


def _parsed(value: dict[str, Any]) -> Ack:
    endpoints = {str(name): EndpointAck(**each) for name, each in value["endpoints"].items()}
    return Ack(str(value["replica"]), str(value["node"]), int(value["pid"]), int(value["beat_ns"]), endpoints)
