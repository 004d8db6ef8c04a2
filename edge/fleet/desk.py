"""The desk: what the fleet answers to a device, as values, with no socket and no event loop.

``edge.fleet.server`` carries it over HTTP; a simulated fleet asks it directly. Polls are answered from memory
alone: who may ask, and every device's offer as bytes. Whatever else a device sends is one transaction. What
was remembered is thrown away when somebody else has changed the database, and made again.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.fleet import bodies, enrolment, rollouts, shelf, telemetry
from edge.fleet.limits import Buckets, Rate
from edge.fleet.offers import BundleFacts, DeltaFacts, GroupView, Standing, offer, wanted
from edge.fleet.store import Store, advance, clock_s, set_fact
from kit.errors import InputError, KitError, UnavailableError
from kit.files import read_json, sha256_bytes

_log = logging.getLogger("kit.fleet")
_ARCHIVE = re.compile(r"/v1/bundles/([0-9a-f]{64})\.bundle")
_DELTA = re.compile(r"/v1/deltas/([0-9a-f]{64})-([0-9a-f]{64})\.delta")
_MAX_TICK_S = 30.0
_ASKS, _TELLS = Rate(per_s=2.0, burst=120.0), Rate(per_s=0.5, burst=30.0)
_ENROLS = Rate(per_s=0.5, burst=20.0)


@dataclass(frozen=True)
class Limits:
    """How much the desk takes.

    Attributes:
        poll_s: When a device is told to ask again.
        max_telemetry_bytes: Most that telemetry takes in the database.
        min_free_bytes: Room the disk must have for telemetry to be taken.
        asks: How often one device may ask.
        tells: How often one device may tell.
        enrols: How often one address may try a code.
    """

    poll_s: int = 60
    max_telemetry_bytes: int = 512 << 20
    min_free_bytes: int = 256 << 20
    asks: Rate = _ASKS
    tells: Rate = _TELLS
    enrols: Rate = _ENROLS


@dataclass(frozen=True)
class Request:
    """What a device asks: header names in lower case, ``client`` its address."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    client: str = ""


@dataclass(frozen=True)
class Answer:
    """What it gets: a body, or a file whose digest is its ETag."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None


@dataclass
class _Memory:
    """What polls are answered from."""

    tokens: dict[str, bytes]
    standings: dict[str, Standing]
    groups: dict[str, GroupView]
    bundles: dict[str, BundleFacts]
    deltas: dict[tuple[str, str], DeltaFacts]
    keyring: tuple[int, bytes] | None
    offers: dict[str, tuple[Standing, str, bytes]] = field(default_factory=dict)


class Desk:
    """Answers devices.

    Args:
        store: The fleet's database.
        limits: How much it takes.
        keyring: The file of the newest keyring; it need not exist.
        now_ns: The wall clock, Unix time in nanoseconds.
        monotonic_s: A clock that only goes forward, for rates.
    """

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits | None = None,
        keyring: Path | None = None,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.limits = limits or Limits()
        self._keyring = keyring
        self._now_ns, self._monotonic_s = now_ns, monotonic_s
        self._asks, self._tells = Buckets(self.limits.asks), Buckets(self.limits.tells)
        self._enrols = Buckets(self.limits.enrols)
        self._heard: dict[str, tuple[float, int]] = {}
        self._clock_s = 0.0
        self._version = -1
        self._keyring_mtime_ns = -1
        self._memory = self._load()

    @property
    def live(self) -> bool:
        """Whether a rollout goes on."""
        return any(group.digest is not None for group in self._memory.groups.values())

    def tick(self, elapsed_s: float) -> bool:
        """Let the fleet's clock go on, and every rollout take a step.

        Args:
            elapsed_s: How long the desk has been open since the last tick; of a machine that slept, half a
                minute counts.

        Returns:
            Whether a rollout changed.
        """
        heard, self._heard = self._heard, {}
        with self.store.changing() as db:
            self._clock_s = advance(db, min(elapsed_s, _MAX_TICK_S))
            set_fact(db, "served_ns", self._now_ns())
            enrolment.heard(db, heard)
            changed = rollouts.drive(db)
            groups = rollouts.groups(db) if changed else {}
        if not all(each.live for each in changed):  # what was taken back has changed, too
            self._memory = self._load()
        elif changed:
            self._memory = dataclasses.replace(self._memory, groups=groups, offers={})
        return bool(changed)

    def refresh(self) -> None:
        """Look whether somebody else has changed the database, or the keyring has."""
        if self.store.version() != self._version or self._keyring_stamp() != self._keyring_mtime_ns:
            self.reload()

    def reload(self) -> None:
        """Throw away what polls are answered from, and read it again."""
        self._memory = self._load()

    def answer(self, request: Request) -> Answer:
        """Answer a request; whatever goes wrong becomes a status."""
        try:
            return self._answer(request)
        except InputError as error:
            return _refusal(400, error.message)
        except UnavailableError as error:
            _log.warning(error.message)
            return _refusal(503, "the server has no room or no database", retry_s=60)
        except KitError as error:
            _log.error(error.message)
            return _refusal(500, "the server cannot answer this")

    def poll(self, request: Request) -> Answer:
        """Answer ``GET /v1/offer`` from memory."""
        device = self._caller(request)
        if isinstance(device, Answer):
            return device
        wait_s = self._asks.take(device, now_s=self._monotonic_s())
        if wait_s:
            return _refusal(429, "too many requests", retry_s=wait_s)
        etag, body = self._offer(device)
        headers = {"etag": etag, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Answer(304, headers=headers)
        return Answer(200, body, {**headers, "content-type": "application/json"})

    def _answer(self, request: Request) -> Answer:
        if request.method == "POST" and request.path == "/v1/enrol":
            return self._enrol(request)
        if request.method == "GET" and request.path == "/v1/offer":
            return self.poll(request)
        device = self._caller(request)
        if isinstance(device, Answer):
            return device
        rates = self._tells if request.method == "POST" else self._asks
        wait_s = rates.take(device, now_s=self._monotonic_s())
        if wait_s:
            return _refusal(429, "too many requests", retry_s=wait_s)
        if request.method == "POST" and request.path == "/v1/report":
            return self._report(device, request.body)
        if request.method == "POST" and request.path == "/v1/telemetry":
            return self._telemetry(device, request.body)
        if request.method in ("GET", "HEAD"):
            return self._file(request.path)
        return _refusal(404, "there is no such address")

    def _caller(self, request: Request) -> str | Answer:
        """Say who asks, and remember that it did."""
        device = enrolment.bearer(request.headers.get("authorization", ""), self._memory.tokens)
        if device is None:
            refused = _refusal(401, "the token is unknown")
            return dataclasses.replace(refused, headers={**refused.headers, "www-authenticate": "Bearer"})
        self._heard[device] = (self._clock_s, self._now_ns())
        return device

    def _enrol(self, request: Request) -> Answer:
        wait_s = self._enrols.take(request.client, now_s=self._monotonic_s())
        if wait_s:
            return _refusal(429, "too many tries", retry_s=wait_s)
        _check_size(request.body, bodies.MAX_ENROL_BYTES)
        said = bodies.read_enrolment(request.body)
        with self.store.changing() as db:
            made = enrolment.enrol(db, said, now_ns=self._now_ns())
            standing = None if made is None else enrolment.find(db, made[0]).standing
        if made is None or standing is None:
            return _refusal(403, "the code is unknown, used or out of date")
        self._memory.standings[made[0]] = standing
        self._memory.tokens[made[0]] = enrolment.hashed(made[1])
        return _json(201, {"device": made[0], "token": made[1], "poll_s": self.limits.poll_s})

    def _report(self, device: str, body: bytes) -> Answer:
        _check_size(body, bodies.MAX_STATUS_BYTES)
        status = bodies.read_status(body)
        with self.store.changing() as db:
            fresh = enrolment.take_status(db, device, status, now_ns=self._now_ns())
            standing = enrolment.find(db, device).standing if fresh else None
        if standing is not None:
            self._memory.standings[device] = standing
        return Answer(204)

    def _telemetry(self, device: str, body: bytes) -> Answer:
        _check_size(body, bodies.MAX_TELEMETRY_BYTES)
        records = bodies.read_records(body)
        if shelf.free_bytes(self.store.folder) < self.limits.min_free_bytes:
            raise UnavailableError(f"the disk of {self.store.folder} is nearly full; no telemetry is taken")
        with self.store.changing() as db:
            taken = telemetry.take(db, device, records, max_bytes=self.limits.max_telemetry_bytes)
        return _json(200, {"taken": taken})

    def _file(self, path: str) -> Answer:
        if path == "/v1/keyring.json" and self._memory.keyring is not None:
            return Answer(200, self._memory.keyring[1], {"content-type": "application/json"})
        if match := _ARCHIVE.fullmatch(path):
            facts = self._memory.bundles.get(match[1])
            if facts is not None:
                return _download(shelf.archive_path(self.store.folder, match[1]), sha256=facts.sha256)
        if match := _DELTA.fullmatch(path):
            delta = self._memory.deltas.get((match[1], match[2]))
            if delta is not None:
                return _download(shelf.delta_path(self.store.folder, match[1], match[2]), sha256=delta.sha256)
        return _refusal(404, "there is no such address")

    def _offer(self, device: str) -> tuple[str, bytes]:
        """Give a device's offer: made once, as long as the device stands as it does."""
        memory = self._memory
        standing = memory.standings[device]
        made = memory.offers.get(device)
        if made is None or made[0] is not standing:
            group = memory.groups.get(standing.group, GroupView())
            what = wanted(standing, group, memory.bundles)
            base = standing.seen.digest
            body = offer(
                what,
                bundles=memory.bundles,
                delta=memory.deltas.get((base, what.digest)) if base and what.digest else None,
                override=group.overrides.get(what.digest or ""),
                keyring=None if memory.keyring is None else memory.keyring[0],
                poll_s=self.limits.poll_s,
            )
            data = json.dumps(body, separators=(",", ":")).encode()
            made = memory.offers[device] = (standing, f'"{sha256_bytes(data)[:32]}"', data)
        return made[1], made[2]

    def _load(self) -> _Memory:
        """Read the database anew; what devices are offered is made again when they ask."""
        version = self.store.version()  # first: what changes while it is read is read again
        stamp = self._keyring_stamp()
        keyring = self._read_keyring()
        with self.store.reading() as db:
            memory = _Memory(
                tokens=enrolment.tokens(db),
                standings={each.id: each.standing for each in enrolment.known(db)},
                groups=rollouts.groups(db),
                bundles=shelf.facts(db),
                deltas=shelf.deltas(db),
                keyring=keyring,
            )
            self._clock_s = clock_s(db)
        self._version, self._keyring_mtime_ns = version, stamp
        return memory

    def _keyring_stamp(self) -> int:
        if self._keyring is not None:
            with contextlib.suppress(OSError):
                return self._keyring.stat().st_mtime_ns
        return 0

    def _read_keyring(self) -> tuple[int, bytes] | None:
        """Read the newest keyring; devices verify it, and here only its counter is looked at."""
        if self._keyring is None or not self._keyring.is_file():
            return None
        try:
            return keyring_counter(read_json(self._keyring)), self._keyring.read_bytes()
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("the keyring %s is not offered: %s", self._keyring, error)
            return None


def keyring_counter(envelope: Mapping[str, Any]) -> int:
    """Read a keyring's counter out of its envelope."""
    payload = json.loads(base64.b64decode(envelope["payload"]))
    return int(payload["counter"])


def _check_size(body: bytes, most: int) -> None:
    if len(body) > most:
        raise InputError(f"the body is larger than {most} bytes")


def _download(path: Path, *, sha256: str) -> Answer:
    if not path.is_file():
        _log.error("%s is missing", path)
        return _refusal(404, "the file is gone")
    return Answer(200, headers={"etag": f'"{sha256}"', "cache-control": "private, immutable"}, file=path)


def _json(status: int, body: Mapping[str, Any]) -> Answer:
    return Answer(status, json.dumps(body).encode(), {"content-type": "application/json"})


def _refusal(status: int, sentence: str, *, retry_s: float = 0.0) -> Answer:
    headers = {"content-type": "application/json"}
    if retry_s:
        headers["retry-after"] = str(int(retry_s))
    return Answer(status, json.dumps({"error": sentence}).encode(), headers)
