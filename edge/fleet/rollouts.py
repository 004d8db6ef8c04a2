"""Rollouts in the fleet's database: begun, driven step by step, paused, resumed and aborted.

What a step decides is for ``edge.fleet.rollout`` to say. Whatever changes a rollout is one transaction that
reads it first, so of two operators one is told what the other has done.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge.fleet import rollout as deciding
from edge.fleet.enrolment import PULL
from edge.fleet.offers import GroupView
from edge.fleet.plan import Plan, in_order
from edge.fleet.rollout import LIVE, Member, Rollout, Seen
from edge.fleet.store import clock_s, note
from kit.errors import ConflictError, NotFoundError, nearest

_COLUMNS = (
    "id, in_group, digest, plan, members_in_order, status, wave, soaking_s, paused_s, reason, began_ns,"
    " ended_ns"
)


@dataclass(frozen=True)
class Kept:
    """A rollout, and what the database knows beside it.

    Attributes:
        rollout: As it stands.
        group: Whose devices it reaches.
        began_ns: When it began, Unix time in nanoseconds.
        ended_ns: When it ended; None while it goes on.
    """

    rollout: Rollout
    group: str
    began_ns: int
    ended_ns: int | None


def roster(db: sqlite3.Connection, group: str) -> list[str]:
    """List the devices of a group that a rollout can reach: those that pull.

    Raises:
        NotFoundError: There is no such group.
        ConflictError: It has none.
    """
    names = [row[0] for row in db.execute("SELECT name FROM groups ORDER BY name")]
    if group not in names:
        raise NotFoundError(f"there is no group {group!r}", hint=nearest(group, names))
    devices = [
        row[0] for row in db.execute("SELECT id FROM devices WHERE in_group = ? AND kind = ?", (group, PULL))
    ]
    if not devices:
        raise ConflictError(
            f"group {group!r} has no device that asks for bundles",
            hint=f"let one in: kit devices add NAME --group {group}",
        )
    return devices


def begin(
    db: sqlite3.Connection, *, group: str, digest: str, name: str, plan: Plan, override: str | None = None
) -> Rollout:
    """Begin a rollout; a server drives it.

    Args:
        db: Inside a transaction that may write.
        group: Whose devices.
        digest: A bundle on the shelf.
        name: Of the bundle's model, for the rollout's own name.
        plan: What to do.
        override: A paper that lets the bundle in where its release is not above a device's.

    Raises:
        ConflictError: Another rollout of the group goes on, or its last one has confirmed this bundle.
        NotFoundError: There is no such group.
    """
    devices = roster(db, group)
    check_free(db, group=group, digest=digest)
    made = Rollout(
        id=f"{name}-{digest[:8]}-{secrets.token_hex(2)}",
        digest=digest,
        plan=plan,
        order=in_order(devices, salt=digest),
    )
    db.execute(
        "INSERT INTO rollouts (id, in_group, digest, plan, members_in_order, override, status, wave, reason,"
        " began_ns) VALUES (?, ?, ?, ?, ?, ?, ?, 0, '', ?)",
        (
            *(made.id, group, digest, json.dumps(plan.to_json()), json.dumps(made.order)),
            *(override, made.status, time.time_ns()),
        ),
    )
    note(
        db,
        "rollout",
        subject=made.id,
        body={"group": group, "digest": digest, "plan": plan.to_json(), "devices": len(devices)},
    )
    return made


def check_free(db: sqlite3.Connection, *, group: str, digest: str) -> None:
    """Refuse a rollout that has nothing to do, or would run beside another.

    Raises:
        ConflictError: Another rollout of the group goes on, or its last one has confirmed this bundle.
    """
    other = db.execute(
        "SELECT id, status FROM rollouts WHERE in_group = ? AND status IN (?, ?)", (group, *LIVE)
    ).fetchone()
    if other is not None:
        raise ConflictError(
            f"rollout {other[0]} of group {group!r} is {other[1]}",
            hint=f"wait for its end, or run: kit fleet abort {other[0]}",
        )
    confirmed = db.execute("SELECT confirmed FROM groups WHERE name = ?", (group,)).fetchone()
    if confirmed is not None and confirmed[0] == digest:
        raise ConflictError(
            f"group {group!r} runs {digest[:12]} already", hint="its devices get it without a rollout"
        )


def load(db: sqlite3.Connection, rollout: str) -> Kept:
    """Read a rollout.

    Raises:
        NotFoundError: There is none of that id.
    """
    row = db.execute(f"SELECT {_COLUMNS} FROM rollouts WHERE id = ?", (rollout,)).fetchone()
    if row is None:
        names = [each[0] for each in db.execute("SELECT id FROM rollouts")]
        raise NotFoundError(f"there is no rollout {rollout!r}", hint=nearest(rollout, names))
    return _kept(db, row)


def listed(
    db: sqlite3.Connection, *, live: bool = False, group: str | None = None, last: int = 50
) -> list[Kept]:
    """List rollouts, newest first; only those that go on, or of one group, where that is asked for."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM rollouts WHERE (NOT ? OR status IN (?, ?)) AND (? IS NULL OR in_group = ?)"
        " ORDER BY began_ns DESC, rowid DESC LIMIT ?",
        (live, *LIVE, group, group, last),
    ).fetchall()
    return [_kept(db, row) for row in rows]


def drive(db: sqlite3.Connection) -> list[Rollout]:
    """Let every running rollout take one step; gives those that changed, as they stand now."""
    now_s, changed = clock_s(db), []
    for kept in listed(db, live=True, last=-1):
        before = kept.rollout
        after, happened = deciding.step(before, _seen(db, before, kept.group), now_s=now_s)
        if after != before:
            _save(db, before, after)
            changed.append(after)
        for each in happened:
            body = {"what": each.what, "detail": each.detail, "device": each.device}
            note(db, "rollout_step", subject=after.id, body=body)
        if after.status == deciding.DONE:
            db.execute("UPDATE groups SET confirmed = ? WHERE name = ?", (after.digest, kept.group))
    return changed


def pause(db: sqlite3.Connection, rollout: str, *, by: str) -> Kept:
    """Let no further device begin.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It is not running.
    """
    now_s = clock_s(db)
    return _act(db, rollout, "paused", by=by, change=lambda each: deciding.pause(each, now_s=now_s))


def resume(db: sqlite3.Connection, rollout: str, *, by: str) -> Kept:
    """Go on with a paused rollout.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It is not paused.
    """
    now_s = clock_s(db)
    return _act(db, rollout, "resumed", by=by, change=lambda each: deciding.resume(each, now_s=now_s))


def abort(db: sqlite3.Connection, rollout: str, *, by: str) -> Kept:
    """End a rollout; its devices return.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It has ended.
    """
    return _act(db, rollout, "aborted", by=by, change=deciding.abort)


ACTIONS: dict[str, Callable[..., Kept]] = {"pause": pause, "resume": resume, "abort": abort}


def groups(db: sqlite3.Connection) -> dict[str, GroupView]:
    """Give every group, as far as its devices' offers depend on it."""
    overrides: dict[str, dict[str, Any]] = {}
    papers = db.execute("SELECT in_group, digest, override FROM rollouts WHERE override IS NOT NULL")
    for group, digest, paper in papers:
        overrides.setdefault(group, {})[digest] = json.loads(paper)
    views = {
        name: GroupView(digest, overrides=overrides.get(name, {}))
        for name, digest in db.execute("SELECT name, confirmed FROM groups")
    }
    for kept in listed(db, live=True, last=-1):
        made = kept.rollout
        views[kept.group] = dataclasses.replace(
            views[kept.group],
            rollout=made.id,
            digest=made.digest,
            status=made.status,
            members=made.members,
        )
    return views


def _act(
    db: sqlite3.Connection, rollout: str, kind: str, *, by: str, change: Callable[[Rollout], Rollout]
) -> Kept:
    kept = load(db, rollout)
    after = change(kept.rollout)
    _save(db, kept.rollout, after)
    note(db, kind, subject=rollout, body={"by": by})
    return load(db, rollout)


def _save(db: sqlite3.Connection, before: Rollout, after: Rollout) -> None:
    ended_ns = None if after.live else time.time_ns()
    db.execute(
        "UPDATE rollouts SET status = ?, wave = ?, soaking_s = ?, paused_s = ?, reason = ?, ended_ns = ?"
        " WHERE id = ?",
        (after.status, after.wave, after.soaking_s, after.paused_s, after.reason, ended_ns, after.id),
    )
    gone = set(before.members) - set(after.members)
    db.executemany(
        "DELETE FROM members WHERE rollout = ? AND device = ?", [(after.id, each) for each in gone]
    )
    db.executemany(
        "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (rollout, device) DO UPDATE SET"
        " released_s = excluded.released_s, outcome = excluded.outcome, reason = excluded.reason",
        [
            (after.id, device, each.released_s, each.outcome, each.reason, each.before)
            for device, each in after.members.items()
            if before.members.get(device) != each
        ],
    )


def _kept(db: sqlite3.Connection, row: tuple[Any, ...]) -> Kept:
    (name, group, digest, plan, order, status, wave, soaking_s, paused_s, reason, began_ns, ended_ns) = row
    members = {
        device: Member(released_s, outcome, why, before)
        for device, released_s, outcome, why, before in db.execute(
            "SELECT device, released_s, outcome, reason, before FROM members WHERE rollout = ?", (name,)
        )
    }
    standing = Rollout(
        id=name,
        digest=digest,
        plan=Plan.from_json(json.loads(plan)),
        order=tuple(json.loads(order)),
        status=status,
        wave=wave,
        members=members,
        soaking_s=soaking_s,
        paused_s=paused_s,
        reason=reason,
    )
    return Kept(standing, group, began_ns, ended_ns)


def _seen(db: sqlite3.Connection, rollout: Rollout, group: str) -> dict[str, Seen]:
    rows = db.execute(
        "SELECT id, heard_s, digest, phase, rejected, answers, errors FROM devices WHERE in_group = ?",
        (group,),
    )
    order = set(rollout.order)
    return {
        device: Seen(
            heard_s, digest, phase, {} if rejected == "{}" else json.loads(rejected), answers, errors
        )
        for device, heard_s, digest, phase, rejected, answers, errors in rows
        if device in order
    }
