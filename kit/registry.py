"""Which versions of which models exist, which of them carries a name, and how that came to be.

One SQLite file: ``versions`` (immutable), ``aliases`` (moved by compare-and-set) and ``events`` (append-only,
every entry holding the hash of the one before). Each call opens the file, does one transaction and closes it,
so any number of processes may share it on a local disk or a shared one with working POSIX locks (EFS, NFSv4):
SQLite's rollback journal needs locks alone, its write-ahead log would need shared memory.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import alias_history
from kit.alias_history import digest_text
from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError, VerificationError, nearest
from kit.event_log import Event, EventLog
from kit.files import canonical_json
from kit.reference import CHAMPION, Reference, check_alias_name, check_model_name, parse_reference

_logger = logging.getLogger("kit")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BUSY_TIMEOUT_S = 30.0
_APPLICATION_ID = 0x6B697472  # "kitr": tells our file from any other SQLite database
_FORMAT = 1
_OUTSIDE = ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR")
_RESTORE_HINT = "restore it from a copy"
_DAMAGED_RECORD = "the registry's record of {} is damaged"
_LOG = EventLog("registry", "model")
_SCHEMA = f"""
CREATE TABLE versions (
    model TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, uri TEXT NOT NULL,
    registered_ns INTEGER NOT NULL, summary TEXT NOT NULL,
    PRIMARY KEY (model, number), UNIQUE (model, digest));
CREATE TABLE aliases (
    model TEXT NOT NULL, alias TEXT NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (model, alias), FOREIGN KEY (model, digest) REFERENCES versions (model, digest));
{_LOG.schema.strip()}
CREATE TRIGGER versions_update BEFORE UPDATE ON versions
    BEGIN SELECT RAISE(ABORT, 'versions are immutable'); END;
CREATE TRIGGER versions_delete BEFORE DELETE ON versions
    BEGIN SELECT RAISE(ABORT, 'versions are immutable'); END;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
PRAGMA journal_mode = DELETE;
"""


class Unset(enum.Enum):
    """Tell "not given" from None where None means something."""

    UNSET = "unset"


UNSET = Unset.UNSET


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
            number = _last_number(db, model) + 1
            at_ns = _LOG.append(db, "register", subject=model, body=body | {"number": number})
            values = (model, number, digest, uri, at_ns, text)
            db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", values)
            record = _resolve(db, Reference(model, number=number))
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
                    f"{record.model}@{alias} is {digest_text(now)}, not {digest_text(expect)} as expected",
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
            events = _LOG.read(db)
            _LOG.check_chain(events, path=self.path)
            history = alias_history.histories(events).get((model, alias), [])
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
            return [event for event in _LOG.read(db) if model in (None, event.subject)]

    def verify_log(self) -> Event | None:
        """Check that every log entry is untouched and that versions and aliases are what the log made them.

        Finds an edit, an insertion, and a removal before the newest entry. Whoever can write the file can
        also cut the log's end off and set the tables back to match, or write a whole new log: only a newest
        hash that was kept elsewhere shows that.

        Returns:
            The newest entry; None when nothing has happened yet.

        Raises:
            UnavailableError: The file cannot be read.
            VerificationError: An entry does not hold (its seq is named), or a table contradicts the log.
        """
        with self._transaction("BEGIN") as db:
            found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise VerificationError(f"the registry {self.path} is damaged: {found}", hint=_RESTORE_HINT)
            events = _LOG.read(db)
            _LOG.check_chain(events, path=self.path)
            versions = {
                (record.model, record.number): [
                    *(record.registered_ns, record.digest, record.uri, record.summary)
                ]
                for record in _records(db, "TRUE")
            }
            aliases = {
                (row[0], row[1]): row[2] for row in db.execute("SELECT model, alias, digest FROM aliases")
            }
            alias_history.check_tables(events, versions=versions, aliases=aliases, path=self.path)
        return events[-1] if events else None

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
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.close()
            raise
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
                    hint="make sure it is a writable file on a disk with room and locks, then try again",
                ) from error
            if isinstance(error, sqlite3.ProgrammingError):
                raise  # our use of sqlite3 is wrong
            # Everything else, a statement the tables do not fit included: the statements are constant, so
            # only another schema than ours can refuse them.
            raise VerificationError(
                f"the registry {self.path} is damaged or not a database: {str(error).splitlines()[0]}",
                hint=_RESTORE_HINT,
            ) from error


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"{digest!r} is not a digest", hint="write 64 of 0-9 a-f")


def _records(db: sqlite3.Connection, where: str, *values: Any) -> list[VersionRecord]:
    rows = db.execute(
        "SELECT model, number, digest, uri, registered_ns, summary,"
        " (SELECT group_concat(alias) FROM aliases a WHERE a.model = v.model AND a.digest = v.digest)"
        f" FROM versions v WHERE {where} ORDER BY model, number",
        values,
    )
    records = []
    for model, number, digest, uri, registered_ns, text, aliases in rows:
        texts = (model, digest, uri, aliases or "")
        if not all(isinstance(value, str) for value in texts) or not _is_count(number):
            raise VerificationError(_DAMAGED_RECORD.format(f"{model}@{number}"), hint=_RESTORE_HINT)
        summary = _LOG.json_object(text, of=f"{model}@{number}")
        names = tuple(sorted(aliases.split(","))) if aliases else ()
        records.append(VersionRecord(model, number, digest, uri, registered_ns, summary, names))
    return records


def _last_number(db: sqlite3.Connection, model: str) -> int:
    last = db.execute("SELECT max(number) FROM versions WHERE model = ?", (model,)).fetchone()[0]
    if last is not None and not _is_count(last):
        raise VerificationError(_DAMAGED_RECORD.format(f"{model}@{last}"), hint=_RESTORE_HINT)
    return int(last or 0)


def _is_count(value: Any) -> bool:  # columns do not enforce their types, so damage can put anything there
    return isinstance(value, int) and 1 <= value < 1 << 62


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
    last = _last_number(db, model)
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
        f"{model} has no {what}, it has {there_are}", hint=f"list them: kit models list {model}"
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
        "INSERT INTO aliases VALUES (?, ?, ?)"
        " ON CONFLICT (model, alias) DO UPDATE SET digest = excluded.digest",
        (record.model, alias, record.digest),
    )
    body = {"alias": alias, "number": record.number, "digest": record.digest, "previous": previous}
    _LOG.append(db, kind, subject=record.model, body=body)
    return _resolve(db, Reference(record.model, number=record.number))
