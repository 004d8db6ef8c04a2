"""A log that remembers what happened: entries in a table that chain by hash.

An append-only table; every entry holds the hash of the one before, so an edit, an insertion, or a removal
before the newest entry shows. That the end was cut off shows only against a newest hash kept elsewhere. It is
handed an open SQLite connection inside a transaction and never opens a file; what an entry means is for
the log's owners to say (``kit.registry``, ``edge.fleet.store``).
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

RESTORE_HINT = "restore it from a copy"
_FIRST_HASH = "0" * 64


@dataclass(frozen=True)
class Event:
    """Describe one entry of a log.

    ``kind`` is what happened and ``subject`` to whom; ``at_ns`` is Unix time in nanoseconds; ``hash`` is the
    sha256 of the canonical JSON of all other fields, ``previous_hash`` the hash of the entry before (zeros
    for the first).
    """

    seq: int
    at_ns: int
    kind: str
    subject: str
    body: dict[str, Any]
    previous_hash: str
    hash: str


@dataclass(frozen=True)
class EventLog:
    """The log of one kind of database.

    Attributes:
        owner: Whose it is, for messages: ``registry``.
        subject: What its entries are about, as the column and the hashed text call it: ``model``.
    """

    owner: str
    subject: str

    @property
    def schema(self) -> str:
        """The statements that make its table."""
        return f"""
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, {self.subject} TEXT NOT NULL,
    body TEXT NOT NULL, previous_hash TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER events_update BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_delete BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""

    def append(
        self,
        db: sqlite3.Connection,
        kind: str,
        *,
        subject: str,
        body: Mapping[str, Any],
        at_ns: int | None = None,
    ) -> int:
        """Add an entry to the end of the log.

        Args:
            db: Inside a transaction that may write.
            kind: What happened.
            subject: To whom: the model's name, say.
            body: More about it, JSON-ready; finite numbers.
            at_ns: When, Unix time in nanoseconds; now when left out.

        Returns:
            When, Unix time in nanoseconds.

        Raises:
            VerificationError: The newest entry is damaged, so nothing can be chained to it.
        """
        last = db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        seq, previous_hash = (0, _FIRST_HASH) if last is None else last
        if not isinstance(seq, int) or not isinstance(previous_hash, str) or seq >= 1 << 62:
            raise VerificationError(
                f"the newest entry of the {self.owner}'s log is damaged", hint=RESTORE_HINT
            )
        moment_ns = time.time_ns() if at_ns is None else at_ns
        event = Event(seq + 1, moment_ns, kind, subject, dict(body), previous_hash, hash="")
        text = canonical_json(event.body).decode()
        values = (event.seq, event.at_ns, kind, subject, text, previous_hash, self._hash(event))
        db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return event.at_ns

    def read(self, db: sqlite3.Connection, *, last: int | None = None) -> list[Event]:
        """Read the log, oldest first; ``check_chain`` says whether to believe it.

        Args:
            db: Inside a transaction.
            last: Only so many, the newest; None for all.

        Raises:
            VerificationError: The body of an entry is not a JSON object; its seq is named.
        """
        columns = f"seq, at_ns, kind, {self.subject}, body, previous_hash, hash"
        rows = db.execute(
            f"SELECT * FROM (SELECT {columns} FROM events ORDER BY seq DESC LIMIT ?) ORDER BY seq",
            (-1 if last is None else last,),
        )
        return [
            Event(seq, at_ns, kind, subject, self.json_object(body, of=f"event {seq}"), previous_hash, digest)
            for seq, at_ns, kind, subject, body, previous_hash, digest in rows
        ]

    def check_chain(self, events: list[Event], *, path: Path) -> None:
        """Recompute every hash and compare it with what the entry and the next one hold.

        Args:
            events: The whole log, oldest first.
            path: What to call the database.

        Raises:
            VerificationError: An entry does not hold; the first such seq is named.
        """
        previous_hash = _FIRST_HASH
        for seq, event in enumerate(events, start=1):
            try:
                expected = self._hash(event)
            except (TypeError, InputError):  # damage made a column bytes, or a number NaN
                expected = ""
            if (event.seq, event.previous_hash, event.hash) != (seq, previous_hash, expected):
                raise VerificationError(
                    f"event {seq} in the log of {path} was altered, removed or inserted", hint=RESTORE_HINT
                )
            previous_hash = event.hash

    def json_object(self, text: Any, *, of: str) -> dict[str, Any]:
        """Read a JSON object out of a column.

        Raises:
            VerificationError: It is none; the message names what it is a record ``of``.
        """
        try:
            value = json.loads(text)
        except (TypeError, ValueError, RecursionError):  # TypeError: damage made it another column type
            value = None
        if not isinstance(value, dict):
            raise VerificationError(
                f"the {self.owner}'s record of {of} is not a JSON object", hint=RESTORE_HINT
            )
        return value

    def _hash(self, event: Event) -> str:
        fields = {key: value for key, value in vars(event).items() if key not in ("hash", "subject")}
        return sha256_bytes(canonical_json({**fields, self.subject: event.subject}))
