"""Ask a source what to run, and fetch it: when, how often, and what is believed.

    puller = Puller(device, source)
    while True:
        woken.wait(puller.wait_s())
        offer = puller.look()          # asks when it is time to; None when there is nothing to do
        if offer is not None and offer.kind == INSTALL:
            puller.fetch(offer)        # into incoming/, whole and under its name, or it goes on later

Nothing here sleeps or gives up for good because of a network; ``wait_s`` says when to come back. What a
source refuses for good (4xx) is not asked again until its offer changes. It installs nothing.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from edge.agent.device import KEYRING_NAME, Device
from edge.agent.pulling import patching
from edge.agent.pulling.answers import BarredError, BusyError, RefusedError, require
from edge.agent.pulling.client import Client, HttpClient, read_body, shown
from edge.agent.pulling.credentials import authorization, read_token
from edge.agent.pulling.download import Wanted, download, n_fetched, sweep
from edge.agent.pulling.ledger import Ledger
from edge.agent.pulling.offer import INSTALL, RETURN, STAY, Delta, KeyringNotice, Offer, read_offer
from edge.agent.pulling.source import Source
from edge.agent.state import State
from kit import files
from kit.archive import SUFFIX
from kit.errors import InputError, KitError, NotFoundError, UnavailableError

LEDGER_NAME = "pull.json"

_JITTER = 0.2
_NOTICE_GAP_S = 5.0
_FIRST_POLL_S = 60.0

_log = logging.getLogger("kit.agent")


class Puller:
    """Asks one source for one device.

    Args:
        device: A prepared device whose lock the caller holds.
        source: Where to ask, and how much.
        client: Carries the requests; None opens connections of its own.
        monotonic_s: A clock that only goes forward.
        wall_s: The wall clock, for a day's bytes and the hours of the day.
        chance: Gives numbers from 0 to 1, so that many devices do not ask at the same moment.
    """

    def __init__(
        self,
        device: Device,
        source: Source,
        *,
        client: Client | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._device = device
        self._source = source
        self._client = client or HttpClient(ca_file=source.ca_file)
        self._monotonic_s, self._wall_s, self._chance = monotonic_s, wall_s, chance
        self._ledger = Ledger(device.folder / LEDGER_NAME, daily_bytes=source.daily_bytes, wall_s=wall_s)
        self._due_s = monotonic_s()
        self._asked_s = float("-inf")
        self._poll_s = _FIRST_POLL_S
        self._failures = 0
        self._held_s = float("-inf")
        self._fetch_failures = 0
        self._fetch_due_s = float("-inf")
        self._etag: str | None = None
        self._offer: Offer | None = None
        self._identity = ""
        self._fetched = ""
        self._bad_deltas: set[str] = set()
        self._keyring_counter = 0
        self._barred_token: str | None = None
        self._said = ""

    @property
    def poll_s(self) -> float:
        """How often the source wants to be asked, in seconds."""
        return self._poll_s

    def wait_s(self) -> float:
        """Say in how many seconds there is something to do for ``look``."""
        return max(0.0, self._due_s - self._monotonic_s())

    def notice(self) -> None:
        """Ask soon, because somebody said so; whoever says so often is not asked for more often."""
        soon_s = max(self._monotonic_s(), self._asked_s + _NOTICE_GAP_S, self._held_s)
        spread_s = min(_NOTICE_GAP_S, _JITTER * self._poll_s) * self._chance()
        self._due_s = min(self._due_s, soon_s + spread_s)

    def look(self) -> Offer | None:
        """Ask the source when it is time to.

        Returns:
            An offer to install or to return to what ran before; None when there is nothing to do now.

        Raises:
            UnavailableError: The device's disk is full or cannot be written.
        """
        if self.wait_s() > 0:
            return None
        self._asked_s = self._monotonic_s()
        try:
            self._ask()
        except BarredError as error:
            self._barred_token = read_token(self._device.folder) or ""
            self._offer = None
            self._later(self._poll_s)
            self._say(f"{error.message}; {error.hint}")
        except RefusedError as error:
            self._offer = None
            self._later(self._poll_s)
            self._say(f"there is no offer: {error.message}")
        except UnavailableError as error:
            self._again(error)
            return None
        except KitError as error:
            self._offer = None
            self._later(self._poll_s)
            self._say(f"the offer is void: {error.message}")
        if self._offer is None:
            return None
        if self._offer.keyring is not None:
            self._fetch_keyring(self._offer.keyring)
        return self._wanted(self._offer)

    def fetch(self, offer: Offer) -> Path:
        """Fetch what is offered, or the rest of it, into ``incoming/``.

        Args:
            offer: What ``look`` returned, of the kind ``install``.

        Returns:
            The bundle's place in ``incoming/``.

        Raises:
            UnavailableError: It could not be fetched now; ``wait_s`` says when to look again.
            KitError: It never will: the source refuses it, or has another file. It is not asked for again.
        """
        before = self._n_fetched(offer)
        try:
            path = self._fetch(offer)
        except UnavailableError as error:
            self._fetch_failures = 1 if self._n_fetched(offer) > before else self._fetch_failures + 1
            self._fetch_due_s = self._monotonic_s() + self._wait_s(error, failures=self._fetch_failures)
            self._due_s = min(self._due_s, self._fetch_due_s)
            raise
        except KitError as error:
            self._ledger.forget(self._identity)
            _log.warning(f"the offer of {offer.digest[:12]} is of no use: {error.message}")
            raise
        self._fetch_failures = 0
        self._fetched = self._identity
        return path

    def _ask(self) -> None:
        """Bring ``_offer`` up to what the source says now."""
        if self._barred_token is not None:
            if (read_token(self._device.folder) or "") == self._barred_token:
                self._later(self._poll_s)
                return
            self._barred_token = None
        url = self._source.offer
        headers = self._headers()
        if self._etag is not None and self._offer is not None:
            headers["If-None-Match"] = self._etag
        response = self._client.request("GET", url, headers=headers)
        if response.status == 304 and self._offer is not None:
            response.close()
        else:
            body = read_body(require(response, url=url, allowed=(200,)), url=url)
            self._etag = response.headers.get("etag")
            offer = read_offer(body, url=url)
            self._offer, self._poll_s = offer, offer.poll_s
            self._identity = self._etag or files.sha256_bytes(body)
        self._failures = 0
        self._later(self._poll_s)
        self._said = ""

    def _wanted(self, offer: Offer) -> Offer | None:
        """Give the offer when this device shall follow it."""
        state = self._state()
        if offer.kind == INSTALL and offer.digest == state.current:
            self._fetched = ""  # should it be damaged later, it may come again
        if offer.kind == RETURN and offer.digest == state.current and state.staged is not None:
            return offer  # what is on trial shall go
        if offer.kind == STAY or offer.digest in (state.current, state.staged):
            return None
        if offer.kind == RETURN:
            if offer.digest in state.good:
                return offer
            self._say(f"the source wants {offer.digest[:12]} back, which is no slot of this device")
            return None
        if offer.digest in state.rejected or self._identity == self._ledger.forgotten:
            return None
        if self._path(offer).exists():
            return None
        if (
            self._fetched == self._identity
        ):  # it came, was taken, and is neither confirmed nor rejected by name
            report = state.last_report
            self._ledger.forget(self._identity)
            detail = report.detail if report is not None else "it was not installed"
            _log.warning(f"the offer of {offer.digest[:12]} is of no use: {detail}")
            return None
        if self._monotonic_s() < self._fetch_due_s:
            self._due_s = min(self._due_s, self._fetch_due_s)
            return None
        closed_s = self._source.opens_in_s(datetime.datetime.fromtimestamp(self._wall_s()))
        if closed_s:
            self._say(f"{offer.digest[:12]} waits for the hours in which bundles may be fetched")
            return None
        return offer

    def _fetch(self, offer: Offer) -> Path:
        incoming = self._device.incoming
        headers = self._headers()
        delta = self._delta(offer)
        sweep(incoming, kept=(offer.sha256,) if delta is None else (offer.sha256, delta.sha256))
        self._check_room(offer)
        part: Path | None = None
        if delta is not None:
            wanted = Wanted(delta.url, delta.size_bytes, delta.sha256)
            try:
                patch = download(self._client, wanted, folder=incoming, headers=headers, ledger=self._ledger)
                part = patching.rebuild(self._device, delta.source, patch=patch, offer=offer)
            except UnavailableError:
                raise
            except KitError as error:
                self._bad_deltas.add(delta.sha256)
                _log.warning(f"the delta from {delta.source[:12]} is of no use: {error.message}")
        if part is None:
            wanted = Wanted(offer.url, offer.size_bytes, offer.sha256)
            part = download(self._client, wanted, folder=incoming, headers=headers, ledger=self._ledger)
        path = self._path(offer)
        with files.disk_errors(path):
            if offer.override is not None:  # before the bundle: whoever sees the bundle sees its override
                override = path.with_name(f"{path.name}.override")
                files.write_atomic(override, files.canonical_json(offer.override))
            os.replace(part, path)
            files.sync_folder(incoming)
        sweep(incoming)
        return path

    def _delta(self, offer: Offer) -> Delta | None:
        """Choose the smallest delta that this device can use and that saves something."""
        state = self._state()
        slots = {digest for digest in (state.current, state.previous, state.factory) if digest}
        found = [
            delta
            for delta in offer.deltas
            if delta.source in slots
            and delta.size_bytes < offer.size_bytes
            and delta.sha256 not in self._bad_deltas
        ]
        return min(found, key=lambda delta: delta.size_bytes, default=None)

    def _check_room(self, offer: Offer) -> None:
        """Refuse to begin what the disk cannot hold: the archive and the slot made of it."""
        incoming = self._device.incoming
        with files.disk_errors(incoming):
            stats = os.statvfs(incoming)
        free = stats.f_bavail * stats.f_frsize
        if free < 2 * offer.size_bytes:
            raise UnavailableError(
                f"{self._device.folder} has {free} bytes free; "
                f"the bundle and its slot need {2 * offer.size_bytes}",
                hint="free some space on the device",
            )

    def _fetch_keyring(self, notice: KeyringNotice) -> None:
        """Fetch a newer keyring into ``incoming/``; whether it holds is for the agent to say."""
        known = max(self._keyring_counter, self._state().keyring_counter)
        if notice.counter <= known:
            return
        try:
            response = self._client.request("GET", notice.url, headers=self._headers())
            body = read_body(require(response, url=notice.url, allowed=(200,)), url=notice.url)
            if not isinstance(json.loads(body.decode("utf-8")), dict):
                raise InputError(f"{shown(notice.url)} is no keyring")
        except UnavailableError as error:
            self._again(error)
            return
        except (KitError, ValueError, RecursionError) as error:
            _log.warning(f"the keyring cannot be fetched: {error}")
            self._keyring_counter = notice.counter
            return
        files.write_atomic(self._device.incoming / KEYRING_NAME, body)
        self._keyring_counter = notice.counter

    def _headers(self) -> dict[str, str]:
        return authorization(self._device.folder, self._source)

    def _state(self) -> State:
        try:
            return self._device.state()
        except NotFoundError:  # no agent has run here yet
            return State()

    def _path(self, offer: Offer) -> Path:
        return self._device.incoming / f"{offer.digest}{SUFFIX}"

    def _later(self, wait_s: float) -> None:
        self._due_s = self._monotonic_s() + wait_s * (1 + _JITTER * self._chance())

    def _again(self, error: UnavailableError) -> None:
        self._failures += 1
        self._due_s = self._monotonic_s() + self._wait_s(error, failures=self._failures)
        if isinstance(error, BusyError) and error.retry_s is not None:
            self._held_s = self._due_s
        self._say(error.message)

    def _wait_s(self, error: UnavailableError, *, failures: int) -> float:
        """Give what the source says, or doubling waits from 1 s to its poll time; and a fifth at random."""
        wait_s = min(2.0 ** min(failures - 1, 20), self._poll_s)
        if isinstance(error, BusyError) and error.retry_s is not None:
            wait_s = max(1.0, error.retry_s)
        return wait_s * (1 + _JITTER * self._chance())

    def _n_fetched(self, offer: Offer) -> int:
        names = (offer.sha256, *(delta.sha256 for delta in offer.deltas))
        return sum(n_fetched(self._device.incoming, name) for name in names)

    def _say(self, sentence: str) -> None:
        if sentence != self._said:  # once, not at every try
            _log.warning(f"warning: {sentence}")
        self._said = sentence
