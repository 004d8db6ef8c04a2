"""Tell a fleet server how the device does: its status, and what it has counted.

Both arrive at least once and are told apart by their numbers, so that sending again changes nothing: a status
by its ``seq``, a record by its ``id``. Of several statuses only the last is of interest. Records leave the
ring when the server says that it has them. Nothing waits: what could not be sent goes with the next
``deliver``.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from edge.agent.device import Device
from edge.agent.pulling.answers import BarredError, BusyError, RefusedError, require
from edge.agent.pulling.client import Client, HttpClient, read_body
from edge.agent.pulling.credentials import authorization
from edge.agent.pulling.source import Source
from kit.errors import InputError, KitError, UnavailableError

MAX_RECORDS = 500
"""Most records of one request."""

MAX_SENT_BYTES = 768 << 10
"""Most bytes of one request; a server takes 1 MiB."""

_MAX_BATCHES = 20
_LONGEST_WAIT_S = 900.0

_log = logging.getLogger("kit.agent")

Record = Mapping[str, Any]


class Ring(Protocol):
    """Whatever keeps records until they are delivered, oldest first."""

    def peek(self, n: int) -> Sequence[Record]:
        """Give up to so many of the oldest records."""
        ...

    def drop(self, ids: Sequence[str]) -> None:
        """Forget records that were delivered."""
        ...


class Uplink:
    """Sends to one fleet server for one device; a static source gets nothing.

    Args:
        device: Whose token is shown.
        source: Where to send.
        client: Carries the requests; None opens connections of its own.
        monotonic_s: A clock that only goes forward.
        chance: Gives numbers from 0 to 1, so that many devices do not send at the same moment.
    """

    def __init__(
        self,
        device: Device,
        source: Source,
        *,
        client: Client | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._device = device
        self._source = source
        self._client = client or HttpClient(ca_file=source.ca_file)
        self._monotonic_s, self._chance = monotonic_s, chance
        self._status: bytes | None = None
        self._due_s = float("-inf")
        self._failures = 0
        self._said = ""

    def wait_s(self) -> float:
        """Say in how many seconds it makes sense to send again; 0 for now."""
        return max(0.0, self._due_s - self._monotonic_s())

    def report(self, status: Mapping[str, Any]) -> bool:
        """Send a status, in place of one that has not arrived yet.

        Returns:
            Whether the server has it; otherwise ``deliver`` sends it later.
        """
        if self._source.server is None:
            return False
        self._status = json.dumps(status, allow_nan=False).encode()
        return self._attempt(self._send_status)

    def deliver(self, ring: Ring) -> int:
        """Send what has not arrived: the last status, and records of the ring.

        Returns:
            How many records the server has taken; they have left the ring.
        """
        if self._source.server is None:
            return 0
        n_taken = 0
        for _ in range(_MAX_BATCHES):
            taken: list[str] = []
            if not self._attempt(functools.partial(self._send_records, ring, taken)) or not taken:
                break
            n_taken += len(taken)
        return n_taken

    def _attempt(self, send: Callable[[], None]) -> bool:
        """Send; say whether it arrived, and otherwise when to try again."""
        if self.wait_s() > 0:
            return False
        try:
            self._send_status()
            send()
        except KitError as error:
            self._failures += 1
            wait_s = min(2.0 ** min(self._failures - 1, 20), _LONGEST_WAIT_S)
            if isinstance(error, BusyError) and error.retry_s is not None:
                wait_s = max(1.0, error.retry_s)
            elif not isinstance(error, UnavailableError):  # refused or barred: nothing here mends that soon
                wait_s = _LONGEST_WAIT_S
            self._due_s = self._monotonic_s() + wait_s * (1 + 0.2 * self._chance())
            if error.message != self._said:
                _log.warning(f"warning: nothing can be reported: {error.message}")
            self._said = error.message
            return False
        self._failures = 0
        self._said = ""
        return True

    def _send_status(self) -> None:
        status = self._status
        if status is None:
            return
        try:
            self._post("/v1/report", status, allowed=(200, 202, 204))
        except RefusedError as error:
            _log.warning(f"the server refuses this device's status: {error.message}")
        self._status = None

    def _send_records(self, ring: Ring, taken: list[str]) -> None:
        """Send one batch, and drop what the server has; a record it refuses alone is dropped, too."""
        records = list(ring.peek(MAX_RECORDS))
        while records:
            body = _body(records)
            if len(records) > 1 and len(body) > MAX_SENT_BYTES:
                records = records[: len(records) // 2]
                continue
            try:
                answer = self._post("/v1/telemetry", body, allowed=(200,))
            except RefusedError as error:
                if len(records) > 1:  # one of them is what it refuses: find it, so that the others arrive
                    records = records[: len(records) // 2]
                    continue
                _log.warning(f"the server refuses record {records[0]['id']}: {error.message}; it is dropped")
                taken.append(str(records[0]["id"]))
            else:
                sent = {str(each["id"]) for each in records}
                taken.extend(sent & set(_taken(answer)))
            ring.drop(taken)
            return

    def _post(self, path: str, body: bytes, *, allowed: tuple[int, ...]) -> bytes:
        url = self._source.url(path)
        headers = dict(authorization(self._device.folder, self._source))
        if not headers:
            raise BarredError("this device has no token")
        headers["Content-Type"] = "application/json"
        response = self._client.request("POST", url, headers=headers, body=body)
        return read_body(require(response, url=url, allowed=allowed), url=url)


def _body(records: Sequence[Record]) -> bytes:
    return json.dumps({"records": list(records)}, separators=(",", ":"), allow_nan=False).encode()


def _taken(answer: bytes) -> list[str]:
    try:
        taken = json.loads(answer.decode("utf-8"))["taken"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("the server does not say which records it has") from error
    if not isinstance(taken, list) or not all(isinstance(each, str) for each in taken):
        raise InputError("the server does not say which records it has")
    return taken
