"""The ring: telemetry records on disk until somebody takes them, never more than fit.

One SQLite file. When it holds too much, the oldest records go and are counted as lost. A full disk, a
read-only one or a damaged file costs records, never an answer: nothing here raises. Ids are
``<start>-<number>``: the start is drawn anew with every process and the number only rises, so that a record
that is delivered twice is known by its id.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

MAX_BYTES = 4 << 20
MAX_ROWS = 10_000
MAX_BODY_BYTES = 60 << 10
"""Largest body; a fleet server takes no larger record."""

_ROW_BYTES = 120  # what a row takes beside its body
_PAGE_BYTES = 4096
_JOURNAL_BYTES = 256 << 10
_CACHE_KIB = 256
_RETRY_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, kind TEXT NOT NULL, at_s REAL NOT NULL,
    digest TEXT, body TEXT NOT NULL, n_bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_id ON records (id);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT OR IGNORE INTO facts VALUES ('lost', 0);
"""

_DAMAGED = ("database disk image is malformed", "file is not a database")
_T = TypeVar("_T")
_log = logging.getLogger("kit.agent")


class Ring:
    """Records of one device; any thread may use it.

    Args:
        path: The file, made when it is not there.
        max_bytes: Most bytes that records may take.
        max_rows: Most records.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, max_rows: int = MAX_ROWS) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._start = secrets.token_hex(6)
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._lost = 0  # not written down yet
        self._retry_s = 0.0
        self._n_rows = self._n_bytes = 0

    def append(self, kind: str, body: Mapping[str, Any], digest: str | None = None) -> bool:
        """Keep a record.

        Args:
            kind: ``window``, ``event`` or ``sample``.
            body: What JSON can hold.
            digest: The bundle it is about.

        Returns:
            Whether it is kept; where not, it is counted as lost.
        """
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
        n_bytes = len(text.encode("utf-8", "replace")) + _ROW_BYTES

        def insert(db: sqlite3.Connection) -> bool:
            self._insert(db, (kind, round(time.time(), 3), digest, text, n_bytes))
            return True

        with self._lock:
            if n_bytes <= MAX_BODY_BYTES and self._try(insert, instead=False):
                return True
            self._lost += 1
            return False

    def peek(self, n_rows: int) -> list[dict[str, Any]]:
        """Give the oldest records, as a fleet server reads them; they stay until ``drop``."""
        names = ("id", "kind", "at_s", "digest", "body")

        def read(db: sqlite3.Connection) -> list[dict[str, Any]]:
            asked = f"SELECT {', '.join(names)} FROM records ORDER BY number LIMIT ?"
            rows = [dict(zip(names, row)) for row in db.execute(asked, (n_rows,))]
            return [{**row, "body": json.loads(row["body"])} for row in rows]

        return self._try(read, instead=[])

    def drop(self, ids: Iterable[str]) -> None:
        """Delete records that were delivered; ids nobody knows are no fault."""

        def delete(db: sqlite3.Connection) -> None:
            with db:
                db.executemany("DELETE FROM records WHERE id = ?", [(each,) for each in ids])
            self._count(db)

        self._try(delete, instead=None)

    @property
    def lost(self) -> int:
        """Records that could not be kept, or had to go before anybody took them."""

        def read(db: sqlite3.Connection) -> int:
            return int(db.execute("SELECT value FROM facts WHERE key = 'lost'").fetchone()[0])

        with self._lock:
            return self._try(read, instead=0) + self._lost

    def __len__(self) -> int:
        """How many records there are."""
        return self._try(lambda db: self._n_rows, instead=0)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                self._db = None

    def _insert(self, db: sqlite3.Connection, row: tuple[str, float, str | None, str, int]) -> None:
        n_rows, n_bytes, lost = self._n_rows + 1, self._n_bytes + row[-1], self._lost
        with db:
            number = db.execute(
                "INSERT INTO records (id, kind, at_s, digest, body, n_bytes) VALUES ('', ?, ?, ?, ?, ?)", row
            ).lastrowid
            db.execute("UPDATE records SET id = ? WHERE number = ?", (f"{self._start}-{number}", number))
            while n_rows > 1 and (n_rows > self._max_rows or n_bytes > self._max_bytes):
                oldest, freed = db.execute(
                    "SELECT number, n_bytes FROM records ORDER BY number LIMIT 1"
                ).fetchone()
                db.execute("DELETE FROM records WHERE number = ?", (oldest,))
                n_rows, n_bytes, lost = n_rows - 1, n_bytes - freed, lost + 1
            if lost:
                db.execute("UPDATE facts SET value = value + ? WHERE key = 'lost'", (lost,))
        self._n_rows, self._n_bytes, self._lost = n_rows, n_bytes, 0

    def _try(self, work: Callable[[sqlite3.Connection], _T], *, instead: _T) -> _T:
        """Do something with the database; where disk or file do not let it, give something instead."""
        with self._lock:
            if self._db is None and time.monotonic() < self._retry_s:
                return instead
            try:
                if self._db is None:
                    self._db = self._open()
                return work(self._db)
            except (sqlite3.Error, OSError, ValueError) as error:
                _log.warning(f"warning: telemetry cannot be kept: {error}")
                self.close()
                self._retry_s = time.monotonic() + _RETRY_S
                if isinstance(error, sqlite3.DatabaseError) and str(error) in _DAMAGED:
                    self._begin_anew()
                return instead

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False, isolation_level="IMMEDIATE")
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last records, nothing else
            db.execute(f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
            db.execute(f"PRAGMA wal_autocheckpoint = {_JOURNAL_BYTES // _PAGE_BYTES}")
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.executescript(_SCHEMA)
            # Pages that hold half as much as they could, and then it is full, whatever was counted.
            db.execute(f"PRAGMA max_page_count = {64 + 2 * self._max_bytes // _PAGE_BYTES}")
            self._count(db)
        except BaseException:
            db.close()
            raise
        os.chmod(self._path, 0o640)
        return db

    def _count(self, db: sqlite3.Connection) -> None:
        row = db.execute("SELECT count(*), coalesce(sum(n_bytes), 0) FROM records").fetchone()
        self._n_rows, self._n_bytes = int(row[0]), int(row[1])

    def _begin_anew(self) -> None:
        """Put a damaged file out of the way; one is kept to be looked at."""
        with contextlib.suppress(OSError):
            os.replace(self._path, self._path.with_name(f"{self._path.name}.damaged"))
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                self._path.with_name(f"{self._path.name}{suffix}").unlink()
        self._retry_s = 0.0
