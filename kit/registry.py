"""Which versions of which models exist, which of them carries a name, and how that came to be.

One SQLite file: ``versions`` (immutable), ``aliases`` (moved by compare-and-set) and ``events`` (append-only,
every entry holding the hash of the one before). Each call opens the file, does one transaction and closes it,
so any number of processes may share it; it must lie on a local disk, because SQLite's write-ahead log needs
shared memory.

It deliberately does not know what a version contains: it never opens, copies or verifies model files.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError, VerificationError, nearest
from kit.files import canonical_json, sha256_bytes

CHAMPION = "champion"

_logger = logging.getLogger("kit")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NAME_RULE = "use 1 to 63 of a-z 0-9 . _ -, starting with a letter or a digit"
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")  # fits SQLite's 64-bit integers
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_BUSY_TIMEOUT_S = 30.0
_APPLICATION_ID = 0x6B697472  # "kitr": tells our file from any other SQLite database
_FORMAT = 1
_FIRST_HASH = "0" * 64
_OUTSIDE = ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR")
# Every write looks first, in its own transaction, so only damage can break a constraint.
_DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CONSTRAINT")
_SCHEMA = f"""
CREATE TABLE versions (
    model TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, uri TEXT NOT NULL,
    registered_ns INTEGER NOT NULL, summary TEXT NOT NULL,
    PRIMARY KEY (model, number), UNIQUE (model, digest));
CREATE TABLE aliases (
    model TEXT NOT NULL, alias TEXT NOT NULL, digest TEXT NOT NULL, revision INTEGER NOT NULL,
    PRIMARY KEY (model, alias), FOREIGN KEY (model, digest) REFERENCES versions (model, digest));
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT NOT NULL,
    body TEXT NOT NULL, previous_hash TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER events_update BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_delete BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER versions_update BEFORE UPDATE ON versions
    BEGIN SELECT RAISE(ABORT, 'versions are immutable'); END;
CREATE TRIGGER versions_delete BEFORE DELETE ON versions
    BEGIN SELECT RAISE(ABORT, 'versions are immutable'); END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
PRAGMA journal_mode = WAL;
"""


class Unset(enum.Enum):
    """Tell "not given" from None where None means something."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True)
class Reference:
    """Point at one version of a model: by alias, by number, or by the start of its digest.

    Exactly one of ``alias``, ``number`` and ``digest_prefix`` (6 to 64 hexadecimal digits) is not None.
    """

    model: str
    alias: str | None = None
    number: int | None = None
    digest_prefix: str | None = None

    def __str__(self) -> str:
        """Write the reference as ``parse_reference`` reads it."""
        if self.digest_prefix is not None:
            return f"{self.model}@sha256:{self.digest_prefix}"
        return f"{self.model}@{self.alias if self.number is None else self.number}"


@dataclass(frozen=True)
class VersionRecord:
    """Describe one registered version.

    ``number`` counts from 1 per model, ``registered_ns`` is Unix time in nanoseconds, ``summary`` is what was
    given at registration, ``aliases`` are the names the version carries now, sorted.
    """

    model: str
    number: int
    digest: str
    uri: str
    registered_ns: int
    summary: dict[str, Any]
    aliases: tuple[str, ...]


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


def parse_reference(text: str) -> Reference:
    """Read a model reference.

    Args:
        text: ``digits`` (its champion), ``digits@candidate``, ``digits@3`` or ``digits@sha256:ab12cd`` (6 to
            64 lower-case hexadecimal digits).

    Returns:
        What the text points at; whether it exists is for ``Registry.resolve`` to say.

    Raises:
        InputError: The text is none of these.
    """
    model, at, selector = text.partition("@")
    check_model_name(model)
    if not at:
        return Reference(model, alias=CHAMPION)
    if _NUMBER.fullmatch(selector):
        return Reference(model, number=int(selector))
    if selector.startswith("sha256:"):
        prefix = selector.removeprefix("sha256:")
        if not _DIGEST_PREFIX.fullmatch(prefix):
            raise InputError(
                f"{text!r} does not hold a digest", hint="write 6 to 64 of 0-9 a-f after 'sha256:'"
            )
        return Reference(model, digest_prefix=prefix)
    check_alias_name(selector)
    return Reference(model, alias=selector)


def check_model_name(name: str) -> None:
    """Refuse a name no model may have.

    Raises:
        InputError: The name is not 1 to 63 of ``a-z 0-9 . _ -`` starting with a letter or a digit.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a model name", hint=_NAME_RULE)


def check_alias_name(name: str) -> None:
    """Refuse a name no alias may have.

    Raises:
        InputError: The name breaks the rule for model names, is all digits (a version number) or starts with
            ``sha256`` (a digest).
    """
    if not _NAME.fullmatch(name) or name.isdigit() or name.startswith("sha256"):
        raise InputError(
            f"{name!r} is not an alias", hint=f"{_NAME_RULE}, not all digits, not starting with sha256"
        )


class Registry:
    """The versions, aliases and history in one SQLite file.

    Args:
        path: The file. It and its folder are made by the first write; until then there are no models.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def register(self, model: str, *, digest: str, uri: str, summary: dict[str, Any]) -> VersionRecord:
        """Give a version the next number of its model.

        Args:
            model: The model's name.
            digest: The version's digest, 64 lower-case hexadecimal digits.
            uri: Where its files are, as the store returned it.
            summary: What lists shall show (metrics, gates): JSON values, finite numbers.

        Returns:
            The record; the existing one, unchanged, when the model already has this digest.

        Raises:
            InputError: A name, the digest or the summary breaks its rule.
            UnavailableError: The file cannot be written, or was locked for 30 s.
            VerificationError: The file is not a registry, or is damaged.
        """
        check_model_name(model)
        _check_digest(digest)
        if not uri:
            raise InputError(f"{model} cannot be registered without the uri of its files")
        text = canonical_json(summary).decode()
        body = {"digest": digest, "uri": uri, "summary": json.loads(text)}
        self._create()
        with self._transaction("BEGIN IMMEDIATE") as db:
            known = _find(db, Reference(model, digest_prefix=digest))
            if known:
                return known[0]
            last = db.execute("SELECT max(number) FROM versions WHERE model = ?", (model,)).fetchone()[0]
            number = (last or 0) + 1
            at_ns = _append(db, "register", model, body | {"number": number})
            values = (model, number, digest, uri, at_ns, text)
            db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", values)
            record = _find(db, Reference(model, number=number))[0]
        _logger.info("registered %s@%d (%s)", model, number, digest[:12])
        return record

    def versions(self, model: str | None = None) -> list[VersionRecord]:
        """List what is registered, by model name, then number.

        Args:
            model: Only this model's versions; None for all.

        Raises:
            NotFoundError: ``model`` is given and has no versions.
            UnavailableError: The file cannot be read.
            VerificationError: The file is not a registry, or is damaged.
        """
        with self._transaction("BEGIN") as db:
            if model is not None:
                _check_known(db, model)
            return _records(db, "? IS NULL OR v.model = ?", model, model)

    def resolve(self, reference: str) -> VersionRecord:
        """Find the one version a reference points at.

        Args:
            reference: See ``parse_reference``.

        Raises:
            InputError: The text is not a reference, or its digest prefix fits several versions.
            NotFoundError: The model, version, alias or digest is not known.
            UnavailableError: The file cannot be read.
            VerificationError: The file is not a registry, or is damaged.
        """
        parsed = parse_reference(reference)
        with self._transaction("BEGIN") as db:
            return _resolve(db, parsed)

    def promote(
        self, reference: str, *, alias: str = CHAMPION, expect: str | Unset | None = UNSET
    ) -> VersionRecord:
        """Move an alias to a version, in one step with the check that nobody moved it meanwhile.

        Args:
            reference: The version, see ``parse_reference``.
            alias: The alias to move or make.
            expect: The digest the alias must have now; None when it must not exist yet; left out,
                anything goes.

        Returns:
            The version, now carrying the alias. An alias that already stands there is left alone and not
            logged.

        Raises:
            ConflictError: The alias is not where ``expect`` says.
            InputError: The reference, the alias or ``expect`` breaks its rule.
            NotFoundError: The version is not known.
            UnavailableError: The file cannot be written, or was locked for 30 s.
            VerificationError: The file is not a registry, or is damaged.
        """
        parsed = parse_reference(reference)
        check_alias_name(alias)
        if isinstance(expect, str):
            _check_digest(expect)
        with self._transaction("BEGIN IMMEDIATE") as db:
            record = _resolve(db, parsed)
            now = _alias_digest(db, record.model, alias)
            if not isinstance(expect, Unset) and now != expect:
                raise ConflictError(
                    f"{record.model}@{alias} is {_digest_text(now)}, not {_digest_text(expect)} as expected",
                    hint=f"look at what changed: kit models log {record.model}",
                )
            if now == record.digest:
                return record
            record = _move_alias(db, "promote", record, alias=alias, previous=now)
        _logger.info("%s@%s is now version %d", record.model, alias, record.number)
        return record

    def rollback(self, model: str, *, alias: str = CHAMPION) -> VersionRecord:
        """Move an alias to the version it had before; doing it again goes further back.

        Args:
            model: The model's name.
            alias: The alias to move.

        Returns:
            The version that carries the alias now.

        Raises:
            ConflictError: The alias never stood anywhere else.
            InputError: A name breaks its rule.
            NotFoundError: The model or the alias is not known.
            UnavailableError: The file cannot be written, or was locked for 30 s.
            VerificationError: The file is not a registry, is damaged, or its log contradicts the alias.
        """
        check_model_name(model)
        check_alias_name(alias)
        with self._transaction("BEGIN IMMEDIATE") as db:
            current = _resolve(db, Reference(model, alias=alias))
            events = _events(db)
            _check_chain(events, path=self.path)
            history = _histories(events).get((model, alias), [])
            if not history or history[-1] != current.digest:
                raise VerificationError(
                    f"{model}@{alias} is {current.digest} but the log of {self.path} does not say so",
                    hint="run: kit models verify",
                )
            if len(history) == 1:
                raise ConflictError(
                    f"{model}@{alias} stood at no version before {current.number}, it cannot go back",
                    hint=f"choose a version yourself: kit models promote {model}@NUMBER",
                )
            target = _resolve(db, Reference(model, digest_prefix=history[-2]))
            record = _move_alias(db, "rollback", target, alias=alias, previous=current.digest)
        _logger.info("%s@%s is back at version %d", model, alias, record.number)
        return record

    def log(self, model: str | None = None) -> list[Event]:
        """List what happened, oldest first.

        Args:
            model: Only this model's events; None for all.

        Raises:
            NotFoundError: ``model`` is given and not known.
            UnavailableError: The file cannot be read.
            VerificationError: The file is not a registry, is damaged, or holds an entry that is not JSON.
        """
        with self._transaction("BEGIN") as db:
            if model is not None:
                _check_known(db, model)
            return [event for event in _events(db) if model in (None, event.model)]

    def verify_log(self) -> None:
        """Check that every log entry is untouched and that versions and aliases are what the log made them.

        Who can write the file can also write a whole new log; what this finds is an edit, a removal or an
        insertion.

        Raises:
            UnavailableError: The file cannot be read.
            VerificationError: An entry does not hold (its seq is named), or a table contradicts the log.
        """
        with self._transaction("BEGIN") as db:
            found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise VerificationError(
                    f"the registry {self.path} is damaged: {found}", hint="restore it from a copy"
                )
            events = _events(db)
            _check_chain(events, path=self.path)
            logged = {
                (event.model, event.body["number"]): [event.body[key] for key in ("digest", "uri", "summary")]
                for event in events
                if event.kind == "register"
            }
            stored = {(r.model, r.number): [r.digest, r.uri, r.summary] for r in _records(db, "TRUE")}
            for model, number in sorted(logged.keys() | stored.keys(), key=repr):
                if logged.get((model, number)) != stored.get((model, number)):
                    raise VerificationError(
                        f"{model}@{number} is not what the log registered",
                        hint=f"find out who wrote to {self.path}, or restore it from a copy",
                    )
            moved = {key: history[-1] for key, history in _histories(events).items()}
            aliases = {
                (row[0], row[1]): row[2] for row in db.execute("SELECT model, alias, digest FROM aliases")
            }
            for model, alias in sorted(moved.keys() | aliases.keys(), key=repr):
                said, stands = moved.get((model, alias)), aliases.get((model, alias))
                if said != stands:
                    raise VerificationError(
                        f"{model}@{alias} is {_digest_text(stands)}, the log says {_digest_text(said)}",
                        hint=f"find out who wrote to {self.path}, or restore it from a copy",
                    )

    def _exists(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:
            raise UnavailableError(f"the registry {self.path} cannot be read: {error.strerror}") from error

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._sqlite_errors(), contextlib.closing(self._connect()) as db:
            db.execute(begin)
            self._check_format(db)
            yield db
            db.execute("COMMIT")  # whatever raised before, closing rolls back

    def _connect(self) -> sqlite3.Connection:
        if not self._exists():  # an empty registry, so that asking creates nothing on disk
            db = sqlite3.connect(":memory:", isolation_level=None)
            db.executescript(_SCHEMA)
            return db
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        return db

    def _create(self) -> None:
        # Built out of sight and linked into place: nobody ever meets a file without its tables, and of two
        # that create at once one wins.
        if self._exists():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
            try:
                with self._sqlite_errors(), contextlib.closing(sqlite3.connect(work / "new")) as db:
                    db.executescript(_SCHEMA)
                with contextlib.suppress(FileExistsError):
                    self.path.hardlink_to(work / "new")
            finally:
                shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise UnavailableError(
                f"the registry {self.path} cannot be made: {error.strerror}",
                hint="make the folder writable, free some space or choose another folder",
            ) from error

    def _check_format(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise VerificationError(
                f"{self.path} is not a model registry", hint="move it away or name another file"
            )
        written = db.execute("PRAGMA user_version").fetchone()[0]
        if written != _FORMAT:
            raise VerificationError(
                f"{self.path} has registry format {written}, this kit reads {_FORMAT}",
                hint="use the kit that wrote it",
            )

    @contextlib.contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(_OUTSIDE):
                raise UnavailableError(
                    f"the registry {self.path} cannot be used: {error}",
                    hint="make sure it is a writable file on a local disk with room, then try again",
                ) from error
            undecodable = isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in str(error)
            if undecodable or name.startswith(_DAMAGED) or "no such" in str(error):
                raise VerificationError(
                    f"the registry {self.path} is damaged or not a database: {str(error).splitlines()[0]}",
                    hint="restore it from a copy",
                ) from error
            raise  # our SQL is wrong


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"{digest!r} is not a digest", hint="write 64 of 0-9 a-f")


def _digest_text(digest: str | None) -> str:
    return "not set" if digest is None else f"sha256:{digest}"


def _records(db: sqlite3.Connection, where: str, *values: Any) -> list[VersionRecord]:
    rows = db.execute(
        "SELECT model, number, digest, uri, registered_ns, summary,"
        " (SELECT group_concat(alias) FROM aliases a WHERE a.model = v.model AND a.digest = v.digest)"
        f" FROM versions v WHERE {where} ORDER BY model, number",
        values,
    )
    records = []
    for model, number, digest, uri, registered_ns, text, aliases in rows:
        summary = _object(text, f"{model}@{number}")
        names = tuple(sorted(aliases.split(","))) if aliases else ()
        records.append(VersionRecord(model, number, digest, uri, registered_ns, summary, names))
    return records


def _object(text: str, owner: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):  # TypeError: damage made it another column type
        value = None
    if not isinstance(value, dict):
        raise VerificationError(f"the registry's record of {owner} is not a JSON object")
    return value


def _find(db: sqlite3.Connection, reference: Reference) -> list[VersionRecord]:
    if reference.number is not None:
        return _records(db, "v.model = ? AND v.number = ?", reference.model, reference.number)
    if reference.digest_prefix is not None:
        prefix = reference.digest_prefix
        return _records(
            db, "v.model = ? AND substr(v.digest, 1, ?) = ?", reference.model, len(prefix), prefix
        )
    digest = _alias_digest(db, reference.model, reference.alias or CHAMPION)
    return [] if digest is None else _records(db, "v.model = ? AND v.digest = ?", reference.model, digest)


def _resolve(db: sqlite3.Connection, reference: Reference) -> VersionRecord:
    found = _find(db, reference)
    if len(found) == 1:
        return found[0]
    if found:
        fits = ", ".join(f"{record.number} (sha256:{record.digest})" for record in found)
        raise InputError(
            f"{reference} fits several versions: {fits}", hint="write more digits, or the number"
        )
    model = reference.model
    _check_known(db, model)
    last = db.execute("SELECT max(number) FROM versions WHERE model = ?", (model,)).fetchone()[0]
    there_are = "only version 1" if last == 1 else f"versions 1 to {last}"
    if reference.alias == CHAMPION:
        raise NotFoundError(
            f"{model} has no {CHAMPION}, it has {there_are}",
            hint=f"promote one: kit models promote {model}@{last}",
        )
    if reference.alias is not None:
        names = [row[0] for row in db.execute("SELECT alias FROM aliases WHERE model = ?", (model,))]
        raise NotFoundError(f"{model} has no alias {reference.alias!r}", hint=nearest(reference.alias, names))
    what = f"version {reference.number}" if reference.number else f"sha256:{reference.digest_prefix}"
    raise NotFoundError(
        f"{model} has no {what}, it has {there_are}", hint=f"list them: kit models show {model}"
    )


def _check_known(db: sqlite3.Connection, model: str) -> None:
    models = [row[0] for row in db.execute("SELECT DISTINCT model FROM versions")]
    if not models:
        raise NotFoundError(
            f"there is no model {model!r}, there are no models yet", hint="train one: kit train"
        )
    if model not in models:
        raise NotFoundError(f"there is no model {model!r}", hint=nearest(model, models))


def _alias_digest(db: sqlite3.Connection, model: str, alias: str) -> str | None:
    row = db.execute("SELECT digest FROM aliases WHERE model = ? AND alias = ?", (model, alias)).fetchone()
    return None if row is None else str(row[0])


def _move_alias(
    db: sqlite3.Connection, kind: str, record: VersionRecord, *, alias: str, previous: str | None
) -> VersionRecord:
    db.execute(
        "INSERT INTO aliases VALUES (?, ?, ?, 1) ON CONFLICT (model, alias)"
        " DO UPDATE SET digest = excluded.digest, revision = revision + 1",
        (record.model, alias, record.digest),
    )
    body = {"alias": alias, "number": record.number, "digest": record.digest, "previous": previous}
    _append(db, kind, record.model, body)
    return _find(db, Reference(record.model, number=record.number))[0]


def _append(db: sqlite3.Connection, kind: str, model: str, body: dict[str, Any]) -> int:
    last = db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous_hash = (1, _FIRST_HASH) if last is None else (last[0] + 1, last[1])
    event = Event(seq, time.time_ns(), kind, model, body, previous_hash, hash="")
    text = canonical_json(body).decode()
    values = (seq, event.at_ns, kind, model, text, previous_hash, _event_hash(event))
    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return event.at_ns


def _event_hash(event: Event) -> str:
    return sha256_bytes(canonical_json({key: value for key, value in vars(event).items() if key != "hash"}))


def _events(db: sqlite3.Connection) -> list[Event]:
    rows = db.execute("SELECT seq, at_ns, kind, model, body, previous_hash, hash FROM events ORDER BY seq")
    return [
        Event(seq, at_ns, kind, model, _object(body, f"event {seq}"), previous_hash, digest)
        for seq, at_ns, kind, model, body, previous_hash, digest in rows
    ]


def _check_chain(events: list[Event], *, path: Path) -> None:
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


def _histories(events: list[Event]) -> dict[tuple[str, str], list[str]]:
    # Per model and alias the digests it stood at, as a stack: a rollback takes the newest off, so that a
    # second one goes two versions back instead of forth again.
    histories: dict[tuple[str, str], list[str]] = {}
    for event in events:
        if event.kind == "register":
            continue
        history = histories.setdefault((event.model, event.body["alias"]), [])
        if event.kind == "rollback":
            history.pop()
        else:
            history.append(event.body["digest"])
    return histories
