"""The registry's memory: what happened to which model, in entries that chain by hash.

An append-only table; every entry holds the hash of the one before, so an edit, an insertion, or a removal
before the newest entry shows. That the end was cut off shows only against a newest hash kept elsewhere. It is
handed an open SQLite connection inside a transaction and never opens a file.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import InputError, VerificationError
from kit.files import canonical_json, sha256_bytes

SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT NOT NULL,
    body TEXT NOT NULL, previous_hash TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER events_update BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_delete BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""

_FIRST_HASH = "0" * 64
_RESTORE_HINT = "restore it from a copy"


@dataclass(frozen=True)
class Event:
    """Describe one entry of the log.

    ``kind`` is register, promote or rollback; ``at_ns`` is Unix time in nanoseconds; ``hash`` is the sha256
    of the canonical JSON of all other fields, ``previous_hash`` the hash of the entry before (zeros for the
    first).
    """

    seq: int
    at_ns: int
    kind: str
    model: str
    body: dict[str, Any]
    previous_hash: str
    hash: str


def append(db: sqlite3.Connection, kind: str, *, model: str, body: Mapping[str, Any]) -> int:
    """Add an entry to the end of the log.

    Args:
        db: Inside a transaction that may write.
        kind: register, promote or rollback.
        model: The model's name.
        body: What happened, JSON-ready; finite numbers.

    Returns:
        When, Unix time in nanoseconds.

    Raises:
        VerificationError: The newest entry is damaged, so nothing can be chained to it.
    """
    last = db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous_hash = (0, _FIRST_HASH) if last is None else last
    if not isinstance(seq, int) or not isinstance(previous_hash, str) or seq >= 1 << 62:
        raise VerificationError("the newest entry of the registry's log is damaged", hint=_RESTORE_HINT)
    event = Event(seq + 1, time.time_ns(), kind, model, dict(body), previous_hash, hash="")
    text = canonical_json(event.body).decode()
    values = (event.seq, event.at_ns, kind, model, text, previous_hash, _event_hash(event))
    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return event.at_ns


def read_events(db: sqlite3.Connection) -> list[Event]:
    """Read the whole log, oldest first; ``check_chain`` says whether to believe it.

    Raises:
        VerificationError: The body of an entry is not a JSON object; its seq is named.
    """
    rows = db.execute("SELECT seq, at_ns, kind, model, body, previous_hash, hash FROM events ORDER BY seq")
    return [
        Event(seq, at_ns, kind, model, json_object(body, owner=f"event {seq}"), previous_hash, digest)
        for seq, at_ns, kind, model, body, previous_hash, digest in rows
    ]


def check_chain(events: list[Event], *, path: Path) -> None:
    """Recompute every hash and compare it with what the entry and the next one hold.

    Args:
        events: The whole log, oldest first.
        path: What to call the registry.

    Raises:
        VerificationError: An entry does not hold; the first such seq is named.
    """
    previous_hash = _FIRST_HASH
    for seq, event in enumerate(events, start=1):
        try:
            expected = _event_hash(event)
        except (TypeError, InputError):  # damage made a column bytes, or a number NaN
            expected = ""
        if (event.seq, event.previous_hash, event.hash) != (seq, previous_hash, expected):
            raise VerificationError(
                f"event {seq} in the log of {path} was altered, removed or inserted",
                hint="restore it from a copy",
            )
        previous_hash = event.hash


def check_tables(
    events: list[Event],
    *,
    versions: Mapping[tuple[str, int], list[Any]],
    aliases: Mapping[tuple[str, str], str],
    path: Path,
) -> None:
    """Compare what the tables hold with what the log says was put there.

    Args:
        events: The whole log, its chain checked.
        versions: Model and number to registered_ns, digest, uri and summary.
        aliases: Model and alias to digest.
        path: What to call the registry.

    Raises:
        VerificationError: A version or an alias is not what the log made it.
    """
    hint = f"find out who wrote to {path}, or restore it from a copy"
    logged = {
        (event.model, _entry(event, "number")): [
            event.at_ns,
            *(_entry(event, key) for key in ("digest", "uri", "summary")),
        ]
        for event in events
        if event.kind == "register"
    }
    for model, number in sorted({*logged, *versions}, key=repr):
        if logged.get((model, number)) != versions.get((model, number)):
            raise VerificationError(f"{model}@{number} is not what the log registered", hint=hint)
    moved = {key: history[-1] for key, history in histories(events).items() if history}
    for model, alias in sorted({*moved, *aliases}, key=repr):
        said, stands = moved.get((model, alias)), aliases.get((model, alias))
        if said != stands:
            raise VerificationError(
                f"{model}@{alias} is {digest_text(stands)}, the log says {digest_text(said)}", hint=hint
            )


def histories(events: list[Event]) -> dict[tuple[str, str], list[str]]:
    """Follow every alias through the log.

    Returns:
        Model and alias to the digests it stood at, as a stack: a rollback takes the newest off, so that a
        second one goes two versions back instead of forth again.

    Raises:
        VerificationError: An entry lacks what its kind needs, or takes back what was never done.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for event in events:
        if event.kind == "register":
            continue
        history = found.setdefault((event.model, str(_entry(event, "alias"))), [])
        if event.kind != "rollback":
            history.append(str(_entry(event, "digest")))
        elif history:
            history.pop()
        else:
            raise VerificationError(
                f"event {event.seq} of the registry's log takes back what was never done", hint=_RESTORE_HINT
            )
    return found


def json_object(text: Any, *, owner: str) -> dict[str, Any]:
    """Read a JSON object out of a column.

    Raises:
        VerificationError: It is none; the message names ``owner``.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):  # TypeError: damage made it another column type
        value = None
    if not isinstance(value, dict):
        raise VerificationError(f"the registry's record of {owner} is not a JSON object", hint=_RESTORE_HINT)
    return value


def digest_text(digest: str | None) -> str:
    """Write a digest for a message; None is "not set"."""
    return "not set" if digest is None else f"sha256:{digest}"


def _entry(event: Event, key: str) -> Any:
    if key not in event.body:
        raise VerificationError(f"event {event.seq} of the registry's log has no {key!r}", hint=_RESTORE_HINT)
    return event.body[key]


def _event_hash(event: Event) -> str:
    return sha256_bytes(canonical_json({key: value for key, value in vars(event).items() if key != "hash"}))
