"""What the fleet remembers: one SQLite file, and the log of what happened, chained by hash.

The server and the commands open the same file, on one machine: it is in SQLite's write-ahead mode, so that a
reader never waits. Every change is one transaction, settled on the disk before anybody is told. Secrets are
kept as their sha256. Here are the file, its transactions and its clock; devices, rollouts and telemetry have
modules of their own.

The fleet's clock counts seconds in which a server listened to devices. Deadlines are read on it, so neither a
server that was away nor a wall clock that jumped lets a device look silent.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.errors import UnavailableError, VerificationError
from kit.event_log import RESTORE_HINT, Event, EventLog
from kit.files import disk_errors

LOG = EventLog("fleet", "subject")
_APPLICATION_ID = 0x6B697466  # "kitf"
_FORMAT = 1
_BUSY_TIMEOUT_S = 20.0
_OUTSIDE = ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR")
_SCHEMA = f"""
CREATE TABLE facts (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE groups (name TEXT PRIMARY KEY, confirmed TEXT);
CREATE TABLE bundles (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, target TEXT NOT NULL, release INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, profile TEXT, added_ns INTEGER NOT NULL);
CREATE TABLE deltas (
    base TEXT NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (base, digest));
CREATE TABLE devices (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, place TEXT NOT NULL,
    in_group TEXT NOT NULL REFERENCES groups (name), token TEXT, added_ns INTEGER NOT NULL,
    seq INTEGER NOT NULL DEFAULT -1, phase TEXT NOT NULL DEFAULT 'idle', digest TEXT, previous TEXT,
    release INTEGER NOT NULL DEFAULT 0, rejected TEXT NOT NULL DEFAULT '{{}}',
    answers INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT
    '{{}}', heard_s REAL NOT NULL DEFAULT 0, heard_ns INTEGER);
CREATE INDEX devices_by_group ON devices (in_group);
CREATE TABLE codes (
    hash TEXT PRIMARY KEY, name TEXT NOT NULL, in_group TEXT NOT NULL, expires_ns INTEGER NOT NULL,
    used_ns INTEGER, device TEXT);
CREATE TABLE moments (
    device TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE, at_ns INTEGER NOT NULL, what TEXT NOT
    NULL, detail TEXT NOT NULL, digest TEXT);
CREATE INDEX moments_by_device ON moments (device);
CREATE TABLE telemetry (
    device TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE, id TEXT NOT NULL, kind TEXT NOT NULL,
    at_s REAL NOT NULL, digest TEXT, body TEXT NOT NULL, n_bytes INTEGER NOT NULL,
    PRIMARY KEY (device, id));
CREATE TABLE rollouts (
    id TEXT PRIMARY KEY, in_group TEXT NOT NULL REFERENCES groups (name), digest TEXT NOT NULL,
    plan TEXT NOT NULL, members_in_order TEXT NOT NULL, override TEXT, status TEXT NOT NULL, wave INTEGER NOT
    NULL, soaking_s REAL, paused_s REAL, reason TEXT NOT NULL, began_ns INTEGER NOT NULL, ended_ns INTEGER);
CREATE UNIQUE INDEX one_live_rollout ON rollouts (in_group) WHERE status IN ('running', 'paused');
CREATE TABLE members (
    rollout TEXT NOT NULL REFERENCES rollouts (id), device TEXT NOT NULL, released_s REAL NOT NULL,
    outcome TEXT NOT NULL, reason TEXT NOT NULL, before TEXT, PRIMARY KEY (rollout, device)) WITHOUT ROWID;
CREATE INDEX members_by_device ON members (device);
{LOG.schema.strip()}
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""


class Store:
    """The fleet's database, opened.

    One connection that any thread may use, one at a time.

    Attributes:
        folder: Where it lies, beside the bundles.
        path: The file.
    """

    def __init__(self, folder: Path) -> None:
        """Open the database, and make it where there is none.

        Raises:
            UnavailableError: The file cannot be made or read.
            VerificationError: It is not a fleet's, or of another kit.
        """
        self.folder = folder
        self.path = folder / "fleet.db"
        self._lock = threading.RLock()
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._errors():
            self._db = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._prepare()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that may write; all of it counts, or nothing.

        Raises:
            UnavailableError: The disk is full, or somebody else has written for 20 s.
            VerificationError: The file is damaged.
        """
        with self._transaction("BEGIN IMMEDIATE") as db:
            yield db

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that sees one state of the file throughout."""
        with self._transaction("BEGIN") as db:
            yield db

    def version(self) -> int:
        """Give a number that changes when somebody else has changed the file."""
        with self._lock, self._errors():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def log(self, *, last: int | None = None) -> list[Event]:
        """Read the log, oldest first, the chain of all of it checked.

        Args:
            last: Only so many, the newest, and unchecked; None for all.

        Raises:
            VerificationError: An entry was altered, removed or inserted.
        """
        with self.reading() as db:
            events = LOG.read(db, last=last)
        if last is None:
            LOG.check_chain(events, path=self.path)
        return events

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")  # of two that make it at once, one waits
        try:
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            written = self._db.execute("PRAGMA user_version").fetchone()[0]
            empty = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if empty and application == 0:
                for statement in _statements(_SCHEMA):
                    self._db.execute(statement)
            elif application != _APPLICATION_ID:
                raise VerificationError(
                    f"{self.path} is not a fleet's database", hint="move it away or name another state folder"
                )
            elif written != _FORMAT:
                raise VerificationError(
                    f"{self.path} has format {written}, this kit reads {_FORMAT}",
                    hint="use the kit that wrote it",
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self._db.close()
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(_OUTSIDE):
                raise UnavailableError(
                    f"the fleet's database {self.path} cannot be used: {error}",
                    hint="make sure that it is a writable file on a local disk with room, then try again",
                ) from error
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise VerificationError(
                    f"the fleet's database {self.path} is damaged: {error}", hint=RESTORE_HINT
                ) from error
            raise


def fact(db: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """Read one of the fleet's facts."""
    row = db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
    return default if row is None else row[0]


def set_fact(db: sqlite3.Connection, key: str, value: Any) -> None:
    """Write one of the fleet's facts."""
    db.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )


def clock_s(db: sqlite3.Connection) -> float:
    """Read the fleet's clock, in seconds."""
    return float(fact(db, "clock_s", 0.0))


def advance(db: sqlite3.Connection, seconds: float) -> float:
    """Let the fleet's clock go on; gives the time then."""
    now_s = clock_s(db) + max(0.0, seconds)
    set_fact(db, "clock_s", now_s)
    return now_s


def is_served(db: sqlite3.Connection, *, within_s: float = 30.0) -> bool:
    """Say whether a server has let the clock go on lately."""
    beat_ns = fact(db, "served_ns", 0)
    return abs(time.time_ns() - int(beat_ns)) < within_s * 1e9


def note(
    db: sqlite3.Connection, kind: str, *, subject: str, body: Mapping[str, Any], at_ns: int | None = None
) -> None:
    """Add an entry to the log."""
    LOG.append(db, kind, subject=subject, body=body, at_ns=at_ns)


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements: ``executescript`` would end the transaction it runs in."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
