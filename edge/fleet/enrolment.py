"""Devices in the fleet's database: how one comes in, what it last told, and how it goes.

A device comes in with a one-time code and gets a token of its own. Both are 100 random bits or more, which
nobody guesses, so a plain sha256 of them is kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.fleet.bodies import Enrolment, Status, is_name
from edge.fleet.offers import Standing
from edge.fleet.rollout import Seen
from edge.fleet.store import clock_s, note
from kit.errors import ConflictError, InputError, NotFoundError, nearest

PULL, PATH, SSH = "pull", "path", "ssh"
"""How a bundle reaches a device: it asks for it, or ``kit flash`` brings it."""

_CODE_BYTES = 15
_MAX_MOMENTS = 200
_COLUMNS = (
    "id, name, kind, place, in_group, added_ns, seq, phase, digest, previous, release, rejected, answers,"
    " errors, status, heard_s, heard_ns"
)


@dataclass(frozen=True)
class Known:
    """A device as the fleet knows it.

    Attributes:
        id: Its id.
        name: What people call it.
        kind: ``pull``, ``path`` or ``ssh``.
        place: Where ``kit flash`` finds it; empty for one that pulls.
        group: The group it is in.
        added_ns: When it came in, Unix time in nanoseconds.
        standing: What it last told, as far as offers depend on it.
        status: The rest of its last status.
        heard_ns: When it was last heard of; None for never.
    """

    id: str
    name: str
    kind: str
    place: str
    group: str
    added_ns: int
    standing: Standing
    status: Mapping[str, Any]
    heard_ns: int | None


def make_code(db: sqlite3.Connection, *, name: str, group: str, hours: float) -> str:
    """Make a one-time code with which a device may come in.

    Args:
        db: Inside a transaction that may write.
        name: What the device shall be called.
        group: The group it shall be in.
        hours: For how long the code holds.

    Returns:
        The code; it is nowhere else.

    Raises:
        ConflictError: There is a device of that name.
        InputError: A name breaks the rule.
    """
    _check_free(db, name, group)
    text = base64.b32encode(secrets.token_bytes(_CODE_BYTES)).decode().lower()
    code = "-".join(text[place : place + 4] for place in range(0, len(text), 4))
    expires_ns = time.time_ns() + round(hours * 3.6e12)
    db.execute("DELETE FROM codes WHERE name = ? AND used_ns IS NULL", (name,))  # the newest alone holds
    db.execute(
        "INSERT INTO codes (hash, name, in_group, expires_ns) VALUES (?, ?, ?, ?)",
        (_hash(_normal(code)), name, group, expires_ns),
    )
    note(db, "invited", subject=name, body={"group": group, "hours": hours})
    return code


def enrol(db: sqlite3.Connection, said: Enrolment, *, now_ns: int) -> tuple[str, str] | None:
    """Let a device in.

    Args:
        db: Inside a transaction that may write.
        said: What it said.
        now_ns: Unix time in nanoseconds.

    Returns:
        Its id and its token, which is nowhere else; None when its code is unknown, used or out of date.
    """
    hashed = _hash(_normal(said.code))
    row = db.execute(
        "SELECT name, in_group FROM codes WHERE hash = ? AND used_ns IS NULL AND expires_ns > ?",
        (hashed, now_ns),
    ).fetchone()
    if row is None or db.execute("SELECT 1 FROM devices WHERE name = ?", (row[0],)).fetchone():
        return None
    name, group = row
    device = f"d{secrets.token_hex(6)}"
    token = f"kitd_{device}_{secrets.token_urlsafe(32)}"
    db.execute("UPDATE codes SET used_ns = ?, device = ? WHERE hash = ?", (now_ns, device, hashed))
    _insert(db, device, name=name, kind=PULL, place="", group=group, token=_hash(token))
    db.execute(
        "UPDATE devices SET status = ?, heard_s = ?, heard_ns = ? WHERE id = ?",
        (json.dumps({"machine": said.machine}), clock_s(db), now_ns, device),
    )
    note(db, "enrolled", subject=name, body={"device": device, "group": group})
    return device, token


def add_place(db: sqlite3.Connection, *, name: str, place: str, group: str) -> str:
    """Register a device that ``kit flash`` brings bundles to.

    Args:
        db: Inside a transaction that may write.
        name: What it shall be called.
        place: ``path:...`` or ``ssh://...``.
        group: The group it shall be in.

    Returns:
        Its id.

    Raises:
        ConflictError: There is a device of that name.
        InputError: A name breaks the rule.
    """
    _check_free(db, name, group)
    device = f"d{secrets.token_hex(6)}"
    kind = PATH if place.startswith("path:") else SSH
    _insert(db, device, name=name, kind=kind, place=place, group=group, token=None)
    note(db, "added", subject=name, body={"device": device, "group": group, "place": place})
    return device


def remove(db: sqlite3.Connection, name: str) -> Known:
    """Forget a device: its token counts no more, and what it told is deleted.

    Raises:
        NotFoundError: Nobody knows the name.
    """
    known = find(db, name)
    db.execute("DELETE FROM devices WHERE id = ?", (known.id,))
    note(db, "removed", subject=known.name, body={"device": known.id, "group": known.group})
    return known


def withdraw_code(db: sqlite3.Connection, name: str) -> bool:
    """Make a code that nobody has used yet worthless; says whether there was one."""
    gone = db.execute("DELETE FROM codes WHERE name = ? AND used_ns IS NULL", (name,)).rowcount
    if gone:
        note(db, "uninvited", subject=name, body={})
    return bool(gone)


def invited(db: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """List the codes nobody has used: name, group and until when."""
    rows = db.execute(
        "SELECT name, in_group, expires_ns FROM codes WHERE used_ns IS NULL AND expires_ns > ? ORDER BY name",
        (time.time_ns(),),
    )
    return [tuple(row) for row in rows]


def known(db: sqlite3.Connection, *, group: str | None = None) -> list[Known]:
    """List the devices by name; only those of a group, when it is given."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM devices WHERE ? IS NULL OR in_group = ? ORDER BY name", (group, group)
    ).fetchall()
    withdrawn = _withdrawn(db)
    return [_known(row, withdrawn.get(row[0], {})) for row in rows]


def find(db: sqlite3.Connection, name: str) -> Known:
    """Find a device by name or id.

    Raises:
        NotFoundError: Nobody knows it.
    """
    for column in ("id", "name"):
        row = db.execute(f"SELECT {_COLUMNS} FROM devices WHERE {column} = ?", (name,)).fetchone()
        if row is not None:
            break
    if row is None:
        names = [each[0] for each in db.execute("SELECT name FROM devices")]
        raise NotFoundError(f"there is no device {name!r}", hint=nearest(name, names))
    return _known(row, _withdrawn(db, row[0]).get(row[0], {}))


def tokens(db: sqlite3.Connection) -> dict[str, bytes]:
    """Give every device's hashed token by id."""
    rows = db.execute("SELECT id, token FROM devices WHERE token IS NOT NULL")
    return {device: bytes.fromhex(token) for device, token in rows}


def bearer(header: str, known_tokens: Mapping[str, bytes]) -> str | None:
    """Say which device an ``Authorization`` header is of; None when it is nobody's."""
    scheme, _, token = header.partition(" ")
    parts = token.split("_", 2)
    if scheme.lower() != "bearer" or len(parts) != 3 or parts[0] != "kitd":
        return None
    kept = known_tokens.get(parts[1])
    return parts[1] if kept is not None and hmac.compare_digest(kept, hashed(token)) else None


def hashed(token: str) -> bytes:
    """Hash a token as ``tokens`` gives it."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def take_status(db: sqlite3.Connection, device: str, status: Status, *, now_ns: int) -> bool:
    """Keep what a device told; one that is not newer than the last changes nothing.

    Args:
        db: Inside a transaction that may write.
        device: Its id.
        status: What it told.
        now_ns: Unix time in nanoseconds.

    Returns:
        Whether it was new.
    """
    row = db.execute("SELECT seq, phase, digest, status FROM devices WHERE id = ?", (device,)).fetchone()
    if row is None or status.seq <= row[0]:
        return False
    db.execute(
        "UPDATE devices SET seq = ?, phase = ?, digest = ?, previous = ?, release = ?, rejected = ?,"
        " answers = ?, errors = ?, status = ?, heard_s = ?, heard_ns = ? WHERE id = ?",
        (
            *(status.seq, status.phase, status.digest, status.previous, status.release),
            *(
                json.dumps(dict(status.rejected)),
                status.answers,
                status.errors,
                json.dumps(dict(status.body)),
            ),
            *(clock_s(db), now_ns, device),
        ),
    )
    before, report = json.loads(row[3]).get("last_report", {}), status.body["last_report"]
    if report and report != before:
        _remember(db, device, now_ns, what=report["status"], detail=report["detail"], digest=report["digest"])
    elif status.digest != row[2]:
        _remember(db, device, now_ns, what="runs", detail="", digest=status.digest)
    return True


def heard(db: sqlite3.Connection, when: Mapping[str, tuple[float, int]]) -> None:
    """Keep when devices were last heard of: id to the fleet's time in s and Unix time in ns."""
    db.executemany(
        "UPDATE devices SET heard_s = max(heard_s, ?), heard_ns = ? WHERE id = ?",
        [(at_s, at_ns, device) for device, (at_s, at_ns) in when.items()],
    )


def moments(db: sqlite3.Connection, device: str) -> list[dict[str, Any]]:
    """List what happened on a device, newest first."""
    rows = db.execute(
        "SELECT at_ns, what, detail, digest FROM moments WHERE device = ? ORDER BY rowid DESC", (device,)
    )
    return [dict(zip(("at_ns", "what", "detail", "digest"), row, strict=True)) for row in rows]


def _remember(
    db: sqlite3.Connection, device: str, now_ns: int, *, what: str, detail: str, digest: str | None
) -> None:
    db.execute("INSERT INTO moments VALUES (?, ?, ?, ?, ?)", (device, now_ns, what, detail, digest or None))
    db.execute(
        "DELETE FROM moments WHERE device = ? AND rowid <="
        " (SELECT rowid FROM moments WHERE device = ? ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
        (device, device, _MAX_MOMENTS),
    )


def _withdrawn(db: sqlite3.Connection, device: str | None = None) -> dict[str, dict[str, str | None]]:
    """Find the bundles that were taken back from devices, and what each ran before.

    Of the bundles a device has, and its group's: those whose last rollout was stopped or aborted, or in which
    the device failed.
    """
    which, values = ("", ()) if device is None else ("d.id = ? AND ", (device,))
    rows = db.execute(
        "SELECT m.device, r.digest, m.before, r.status = 'done' AND m.outcome <> 'failed'"
        " FROM devices d JOIN groups g ON g.name = d.in_group JOIN members m ON m.device = d.id"
        f" JOIN rollouts r ON r.id = m.rollout WHERE {which}r.status NOT IN ('running', 'paused')"
        " AND r.digest IN (d.digest, d.previous, g.confirmed) ORDER BY r.began_ns",
        values,
    )
    found: dict[str, dict[str, str | None]] = {}
    for each, digest, before, went_well in rows:
        if went_well:
            found.get(each, {}).pop(digest, None)
        else:
            found.setdefault(each, {})[digest] = before
    return found


def _known(row: tuple[Any, ...], withdrawn: Mapping[str, str | None]) -> Known:
    (device, name, kind, place, group, added_ns, seq, phase, digest, previous, release) = row[:11]
    (rejected, answers, errors, status, heard_s, heard_ns) = row[11:]
    seen = Seen(heard_s, digest, phase, json.loads(rejected), answers, errors)
    standing = Standing(device, name, group, seen, previous, release, seq, withdrawn)
    return Known(device, name, kind, place, group, added_ns, standing, json.loads(status), heard_ns)


def _insert(
    db: sqlite3.Connection, device: str, *, name: str, kind: str, place: str, group: str, token: str | None
) -> None:
    db.execute("INSERT INTO groups (name) VALUES (?) ON CONFLICT DO NOTHING", (group,))
    db.execute(
        "INSERT INTO devices (id, name, kind, place, in_group, token, added_ns) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (device, name, kind, place, group, token, time.time_ns()),
    )


def _check_free(db: sqlite3.Connection, name: str, group: str) -> None:
    for what, text in (("device", name), ("group", group)):
        if not is_name(text):
            raise InputError(
                f"a {what} cannot be called {text!r}", hint="use a-z, 0-9, dots, dashes and underscores"
            )
    if db.execute("SELECT 1 FROM devices WHERE name = ?", (name,)).fetchone():
        raise ConflictError(
            f"there is a device {name!r} already",
            hint=f"choose another name, or first run: kit devices remove {name}",
        )


def _normal(code: str) -> str:
    return code.lower().replace("-", "").strip()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
