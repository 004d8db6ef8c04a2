"""Telemetry in the fleet's database: taken in once, kept in bounds, and read as what the page shows.

A record is known by its device and its id, so one that comes again is dropped and yet called taken. When the
records are more than their bound, the oldest go, of every device alike.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge.fleet.bodies import Record
from edge.fleet.store import fact, set_fact
from kit.drift import Role, compare
from kit.errors import InputError

MAX_PER_DEVICE = 5_000
"""Most records that are kept of one device."""

_DROP_AT_ONCE = 1_000
_BYTES = "telemetry_bytes"
_ROW_BYTES = 200  # what a row takes beside its body


def take(db: sqlite3.Connection, device: str, records: Sequence[Record], *, max_bytes: int) -> list[str]:
    """Keep records.

    Args:
        db: Inside a transaction that may write.
        device: Whose.
        records: What it sent.
        max_bytes: Most that all telemetry of the fleet may take.

    Returns:
        The ids of what is kept, now or before; the device deletes these.
    """
    added = 0
    for record in records:
        n_bytes = len(record.body.encode()) + _ROW_BYTES
        fresh = db.execute(
            "INSERT INTO telemetry VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (device, record.id, record.kind, record.at_s, record.digest, record.body, n_bytes),
        ).rowcount
        added += n_bytes * fresh
    held = int(fact(db, _BYTES, 0)) + added
    held -= _drop_of_device(db, device)
    while held > max_bytes:
        gone = _drop(db, "SELECT rowid FROM telemetry ORDER BY rowid LIMIT ?", (_DROP_AT_ONCE,))
        if not gone:
            break
        held -= gone
    if added:
        set_fact(db, _BYTES, held)
    return [record.id for record in records]


def recount(db: sqlite3.Connection) -> None:
    """Count anew what telemetry takes: a removed device took its own along."""
    total = db.execute("SELECT coalesce(sum(n_bytes), 0) FROM telemetry").fetchone()[0]
    set_fact(db, _BYTES, int(total))


def recent(db: sqlite3.Connection, device: str, *, kind: str, last: int = 200) -> list[dict[str, Any]]:
    """List a device's records of one kind, oldest first: ``at_s``, ``digest`` and ``body``, as written."""
    rows = db.execute(
        "SELECT at_s, digest, body FROM telemetry WHERE device = ? AND kind = ? ORDER BY at_s DESC LIMIT ?",
        (device, kind, last),
    ).fetchall()
    return [{"at_s": at_s, "digest": digest, "body": json.loads(body)} for at_s, digest, body in rows[::-1]]


def quantile_ms(edges: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Read a quantile off a latency histogram, as if the answers of a bin were spread evenly over it.

    Args:
        edges: Upper bounds of the bins but the last, ascending, in ms.
        counts: Answers per bin, one more than edges.
        share: From 0 to 1.

    Returns:
        Milliseconds; the last edge for what lies beyond it, None without answers.
    """
    total = sum(counts)
    if not edges or not total or len(counts) != len(edges) + 1:
        return None
    below, reached = 0.0, 0.0
    for edge, count in zip(edges, counts, strict=False):
        if count and reached + count >= share * total:
            return below + (share * total - reached) / count * (edge - below)
        below, reached = float(edge), reached + count
    return float(edges[-1])


def drift(
    profile: Mapping[str, Any], found: Iterable[Mapping[str, Any]], *, digest: str
) -> list[dict[str, Any]]:
    """Compare what a device has seen lately with what its bundle's model was made with.

    Args:
        profile: The bundle's.
        found: Windows, as ``recent`` gives them.
        digest: The bundle; windows of others are left out.

    Returns:
        Per column what ``kit.drift.compare`` says, those that drifted most first. A column a device counted
        otherwise than the profile does is left out.
    """
    groups: tuple[tuple[Role, Mapping[str, Any]], ...] = (
        ("input", profile.get("columns", {})),
        ("answer", profile.get("outputs", {}).get("columns", {})),
    )
    ours = [each["body"] for each in found if each["digest"] == digest]
    compared = []
    for role, columns in groups:
        for name, reference in columns.items():
            observed = _summed(reference, (_observed(body, role, name) for body in ours))
            if observed is None:
                continue
            try:
                one = compare(name, role=role, reference=reference, observed=observed)
            except (InputError, KeyError, TypeError, ValueError):
                continue
            compared.append(vars(one) | {"reference": reference, "observed": observed})
    return sorted(compared, key=lambda each: -((each["index"] or 0) / (each["threshold"] or 1)))


def _observed(body: Mapping[str, Any], role: Role, name: str) -> Any:
    part = body.get("features" if role == "input" else "prediction")
    return part.get(name) if isinstance(part, dict) else None


def _summed(reference: Mapping[str, Any], parts: Iterable[Any]) -> dict[str, Any] | None:
    """Add windows up, bin by bin; None when none of them fits the profile's bins."""
    n_bins = len(reference.get("categories", ())) + 1 if "categories" in reference else 0
    n_bins = n_bins or len(reference.get("counts", ())) + 2
    total, missing, fits = [0] * n_bins, 0, False
    for part in parts:
        counts = part.get("counts") if isinstance(part, dict) else None
        if not isinstance(counts, list) or len(counts) != n_bins or not all(map(_is_count, counts)):
            continue
        total = [one + other for one, other in zip(total, counts, strict=True)]
        missing += part["missing"] if _is_count(part.get("missing")) else 0
        fits = True
    if not fits:
        return None
    if "categories" in reference:
        names = list(reference["categories"])
        return {
            "categories": dict(zip(names, total, strict=False)),
            "other": total[-1],
            "missing": missing,
        }
    return {"counts": total, "missing": missing}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _drop_of_device(db: sqlite3.Connection, device: str) -> int:
    return _drop(
        db,
        "SELECT rowid FROM telemetry WHERE device = ? ORDER BY rowid DESC LIMIT -1 OFFSET ?",
        (device, MAX_PER_DEVICE),
    )


def _drop(db: sqlite3.Connection, which: str, values: tuple[Any, ...]) -> int:
    """Delete records; gives how many bytes they took."""
    rows = [row[0] for row in db.execute(which, values)]
    if not rows:
        return 0
    marks = ",".join("?" * len(rows))
    total = db.execute(f"SELECT sum(n_bytes) FROM telemetry WHERE rowid IN ({marks})", rows).fetchone()[0]
    db.execute(f"DELETE FROM telemetry WHERE rowid IN ({marks})", rows)
    return int(total)
