"""Who may write to a place on S3: a small object that its owner changes every few seconds.

Whoever finds one watches it: changed means alive, unchanged for long enough means dead, and then it is taken
over. All of it goes through conditional writes, so of two drivers one succeeds, and no clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.batch.places import LEASE, held_by_another
from jobs.batch.places.bucket import BucketPlace
from kit.errors import KitError, UnavailableError
from kit.files import canonical_json

_log = logging.getLogger("kit")
_POLLS_PER_RENEWAL = 4
_RENEWAL_ATTEMPTS = 3
_RENEWAL_TIMEOUT_S = 5.0


@dataclass
class _Lease:
    """What this driver has written into the lease, and the etag it got for it."""

    said: dict[str, Any]
    etag: str


@contextlib.contextmanager
def leased(place: BucketPlace) -> Iterator[threading.Event]:
    """Hold a place by its lease while the block runs.

    Yields:
        An event that is set when another driver has taken the lease.

    Raises:
        ConflictError: Another driver renews it.
        UnavailableError: The server does not answer, or ignores conditions.
    """
    own = _taken(place)
    # The renewals have a connection of their own: they neither wait behind uploads nor spend their attempts.
    quick = BucketPlace(
        place.uri, pace=place.pace, max_attempts=_RENEWAL_ATTEMPTS, read_timeout_s=_RENEWAL_TIMEOUT_S
    )
    lost, stop = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=_renew, args=(quick, own), kwargs={"lost": lost, "stop": stop}, name="kit-lease", daemon=True
    )
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join()
        if not lost.is_set():
            _release(quick, own)


def _taken(place: BucketPlace) -> _Lease:
    """Write the lease: where there is none, where it was let go, or where its owner is dead."""
    said = {
        "owner": secrets.token_hex(8),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "renewals": 0,
        "released": False,
    }
    while True:
        found = place.read_with_etag(LEASE)
        if found is not None and not _said(found[0]).get("released"):
            _watch(place, etag=found[1], owner=_said(found[0]))
        condition = {"IfNoneMatch": "*"} if found is None else {"IfMatch": found[1]}
        etag = place.write(LEASE, canonical_json(said), condition=condition)
        if etag is not None:
            _require_conditions(place, said)
            return _Lease(said, etag)


def _watch(place: BucketPlace, *, etag: str, owner: dict[str, Any]) -> None:
    """Return once a lease has stayed unchanged, or let go, for as long as only a dead owner's does.

    Time in which the server was slow to answer does not count: the owner could not renew then either.
    """
    pace = place.pace
    _log.info(
        "the output %s was held by host %s, pid %s; waiting %g s to see whether that run lives",
        place.uri,
        owner.get("host", "unknown"),
        owner.get("pid", "unknown"),
        pace.dead_after_s,
    )
    since_s = pace.clock()
    while pace.clock() - since_s < pace.dead_after_s:
        pace.wait(pace.renew_s / _POLLS_PER_RENEWAL)
        asked_s = pace.clock()
        found = place.read_with_etag(LEASE)
        if pace.clock() - asked_s > pace.renew_s:
            since_s = pace.clock()
        if found is None or _said(found[0]).get("released"):
            return
        if found[1] != etag:
            said = _said(found[0])
            raise held_by_another(
                place.uri, **{key: said.get(key, "unknown") for key in ("host", "pid", "since")}
            )


def _require_conditions(place: BucketPlace, said: dict[str, Any]) -> None:
    """Refuse a server that writes although a condition does not hold, as some do without a word."""
    released = canonical_json({**said, "released": True})
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"00000000000000000000000000000000"'}):
        if place.write(LEASE, released, condition=condition) is not None:
            raise place.without_conditions()


def _renew(place: BucketPlace, own: _Lease, *, lost: threading.Event, stop: threading.Event) -> None:
    """Change the lease every ``renew_s`` until told to stop, or until it is another's."""
    try:
        while not stop.wait(place.pace.renew_s):
            own.said["renewals"] += 1
            try:
                condition = {"IfMatch": own.etag}
                etag = place.write(LEASE, canonical_json(own.said), condition=condition)
                # An earlier renewal that was given up may have been written all the same, and late.
                etag = etag or _own_etag(place, own)
            except UnavailableError as error:
                _log.warning("the hold on %s could not be renewed yet: %s", place.uri, error.message)
                continue
            if etag is None:
                _log.warning("the output %s was taken by another run", place.uri)
                lost.set()
                return
            own.etag = etag
    except BaseException:
        lost.set()
        raise


def _own_etag(place: BucketPlace, own: _Lease) -> str | None:
    """Give the lease's etag if it is still this driver's."""
    found = place.read_with_etag(LEASE)
    return found[1] if found and _said(found[0]).get("owner") == own.said["owner"] else None


def _release(place: BucketPlace, own: _Lease) -> None:
    """Let the next driver in at once; when that fails, it waits as if this one had been killed."""
    released = canonical_json({**own.said, "released": True})
    try:
        place.write(LEASE, released, condition={"IfMatch": own.etag})
    except KitError as error:
        _log.warning("the hold on %s could not be let go: %s", place.uri, error.message)


def _said(data: bytes) -> dict[str, Any]:
    """Read a lease; what cannot be read is of an unknown owner."""
    try:
        said = json.loads(data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
