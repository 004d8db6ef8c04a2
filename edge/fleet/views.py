"""What people are shown of the fleet, as JSON-ready values: for the page, and for the commands.

Everything is read from one state of the database. Words that came from devices have been cleaned by
``edge.fleet.bodies`` and are still only text: who shows them must not read them as anything else.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edge.fleet import enrolment, rollouts, shelf, telemetry
from edge.fleet.enrolment import PULL, Known
from edge.fleet.rollout import CONFIRMED, DONE, FAILED, MIN_ANSWERS, SILENT, WAITING, count, reached
from edge.fleet.rollouts import Kept
from edge.fleet.store import LOG, is_served

GOOD, FAILING, ERRORS, QUIET, EMPTY, BROUGHT = "good", "failing", "errors", "silent", "empty", "brought"
"""Health of a device; ``empty`` runs nothing yet, ``brought`` is one that asks nothing and tells nothing."""

QUIET_S = 900.0
"""After how long without a word a device is shown as silent."""

MAX_ERRORS = 0.02
_LAST_WINDOWS = 200
_MOST_COLUMNS = 12


def health(device: Known, *, now_ns: int) -> str:
    """Say in a word how a device is."""
    if device.kind != PULL:
        return BROUGHT
    seen, report = device.standing.seen, device.status.get("last_report", {})
    if device.heard_ns is None or now_ns - device.heard_ns > QUIET_S * 1e9:
        return QUIET
    if report.get("status") in ("rejected", "fell_back"):
        return FAILING
    if seen.answers >= MIN_ANSWERS and seen.errors > MAX_ERRORS * seen.answers:
        return ERRORS
    return EMPTY if seen.digest is None else GOOD


def device_row(device: Known, *, now_ns: int) -> dict[str, Any]:
    """Describe a device in one row."""
    seen, figures = device.standing.seen, device.status.get("health", {})
    return {
        "id": device.id,
        "name": device.name,
        "group": device.group,
        "kind": device.kind,
        "place": device.place,
        "digest": seen.digest,
        "release": device.standing.release,
        "phase": seen.phase,
        "health": health(device, now_ns=now_ns),
        "answers": seen.answers,
        "errors": seen.errors,
        "p50_ms": figures.get("p50_ms"),
        "p95_ms": figures.get("p95_ms"),
        "heard_ns": device.heard_ns,
        "added_ns": device.added_ns,
    }


def overview(db: sqlite3.Connection, *, now_ns: int | None = None) -> dict[str, Any]:
    """Describe the fleet: groups, bundles by health, rollouts, the newest entries of the log."""
    moment_ns = time.time_ns() if now_ns is None else now_ns
    rows = [device_row(each, now_ns=moment_ns) for each in enrolment.known(db)]
    bundles = shelf.facts(db)
    counted = Counter((row["group"], row["digest"], row["health"]) for row in rows)
    return {
        "now_ns": moment_ns,
        "served": is_served(db),
        "devices": len(rows),
        "health": dict(Counter(row["health"] for row in rows)),
        "groups": [
            {
                "name": name,
                "confirmed": view.confirmed,
                "devices": sum(row["group"] == name for row in rows),
                "bundles": [
                    {"digest": digest, "health": state, "devices": n}
                    for (group, digest, state), n in sorted(counted.items(), key=_by_size)
                    if group == name
                ],
            }
            for name, view in sorted(rollouts.groups(db).items())
        ],
        "bundles": {digest: vars(each) for digest, each in bundles.items()},
        "rollouts": [rollout_row(db, each) for each in rollouts.listed(db, last=10)],
        "log": _log(db, {row["id"]: row["name"] for row in rows}),
    }


def rollout_row(db: sqlite3.Connection, kept: Kept) -> dict[str, Any]:
    """Describe a rollout with its waves."""
    made = kept.rollout
    names = dict(db.execute("SELECT id, name FROM devices").fetchall())
    running = {row[0] for row in db.execute("SELECT id FROM devices WHERE digest = ?", (made.digest,))} & set(
        made.members
    )
    counted = count(made.members)
    return {
        "id": made.id,
        "group": kept.group,
        "digest": made.digest,
        "status": made.status,
        "reason": made.reason,
        "wave": made.wave,
        "plan": made.plan.to_json(),
        "waves": _waves(kept, set(names)),
        "devices": len(made.order),
        "begun": counted.devices,
        "confirmed": counted.confirmed,
        "failed": counted.failed,
        "silent": counted.silent,
        "waiting": counted.waiting,
        "running_it": len(running),
        "failures": [
            {
                "device": device,
                "name": names.get(device, device),
                "outcome": each.outcome,
                "reason": each.reason,
            }
            for device, each in sorted(made.members.items(), key=lambda item: names.get(item[0], item[0]))
            if each.outcome in (FAILED, SILENT)
        ],
        "began_ns": kept.began_ns,
        "ended_ns": kept.ended_ns,
    }


def device_page(db: sqlite3.Connection, name: str, *, now_ns: int | None = None) -> dict[str, Any]:
    """Describe a device: its history, its latencies, how what it sees has drifted.

    Raises:
        NotFoundError: Nobody knows it.
    """
    moment_ns = time.time_ns() if now_ns is None else now_ns
    device = enrolment.find(db, name)
    windows = telemetry.recent(db, device.id, kind="window", last=_LAST_WINDOWS)
    digest = device.standing.seen.digest
    profile = shelf.profile(db, digest) if digest else {}
    return {
        **device_row(device, now_ns=moment_ns),
        "previous": device.standing.previous,
        "rejected": dict(device.standing.seen.rejected),
        "status": dict(device.status),
        "moments": enrolment.moments(db, device.id),
        "events": telemetry.recent(db, device.id, kind="event", last=50)[::-1],
        "windows": [_window(each) for each in windows],
        "drift": telemetry.drift(profile, windows, digest=digest or "")[:_MOST_COLUMNS],
        "rollouts": [
            {"id": row[0], "outcome": row[1], "reason": row[2]}
            for row in db.execute(
                "SELECT m.rollout, m.outcome, m.reason FROM members m JOIN rollouts r ON r.id = m.rollout"
                " WHERE m.device = ? ORDER BY r.began_ns DESC LIMIT 20",
                (device.id,),
            )
        ],
    }


def _log(db: sqlite3.Connection, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Give the newest entries of the log, newest first; devices that are still there by name."""
    entries = []
    for each in LOG.read(db, last=30)[::-1]:
        device = each.body.get("device", "")
        body = {**each.body, "device": names.get(device, device)} if device else each.body
        entries.append({"at_ns": each.at_ns, "kind": each.kind, "subject": each.subject, "body": body})
    return entries


def _waves(kept: Kept, there: set[str]) -> list[dict[str, Any]]:
    """Describe each wave by the devices that it adds to the one before."""
    made, before, rows = kept.rollout, 0, []
    gone = set(made.order) - there
    for place, wave in enumerate(made.plan.waves):
        devices = reached(made, wave=place, gone=gone)
        outcomes = Counter(
            made.members[device].outcome if device in made.members else "later" for device in devices[before:]
        )
        rows.append(
            {
                "label": str(wave),
                "reaches": len(devices),
                "state": _wave_state(kept, place),
                **{outcome: outcomes[outcome] for outcome in (CONFIRMED, FAILED, SILENT, WAITING, "later")},
            }
        )
        before = max(before, len(devices))
    return rows


def _wave_state(kept: Kept, place: int) -> str:
    made = kept.rollout
    if place != made.wave:
        return "passed" if place < made.wave else "later"
    return "now" if made.live else "passed" if made.status == DONE else made.status


def _window(each: Mapping[str, Any]) -> dict[str, Any]:
    body = each["body"]
    edges, counts = _latency(body)
    errors = body.get("errors")
    return {
        "at_s": each["at_s"],
        "digest": each["digest"],
        "answers": _count(body.get("answers")),
        "errors": sum(map(_count, errors.values())) if isinstance(errors, dict) else _count(errors),
        "p50_ms": telemetry.quantile_ms(edges, counts, 0.5),
        "p95_ms": telemetry.quantile_ms(edges, counts, 0.95),
    }


def _latency(body: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    found = body.get("latency")
    if not isinstance(found, dict):
        found = body
    edges, counts = found.get("edges_ms"), found.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list):
        return [], []
    numbers = all(isinstance(each, (int, float)) for each in (*edges, *counts))
    return (edges, counts) if numbers else ([], [])


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def _by_size(item: tuple[tuple[str, str | None, str], int]) -> tuple[int, str]:
    (_, digest, state), n = item
    return -n, f"{digest}{state}"
