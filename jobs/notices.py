"""What EC2 says to a spot instance: asked of the metadata service on its own link.

Knows nothing of Ray, nor of what is done about a notice.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from kit.errors import UnavailableError

_log = logging.getLogger("kit")

#: Where the metadata service listens, under the name that the AWS libraries read.
ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_ENDPOINT = "http://169.254.169.254"
_TOKEN_LIFE_S = 6 * 3600
_TIMEOUT_S = 1.0
#: Seconds between two questions; EC2 announces the end 120 s ahead.
POLL_S = 2.0
_START_TRIES = 5


@dataclass(frozen=True)
class Notice:
    """What EC2 says about a spot instance.

    Attributes:
        action: ``terminate``, ``stop``, ``hibernate``, or ``rebalance`` for a recommendation.
        deadline_s: When, in seconds since 1970; infinity where nothing was said.
    """

    action: str
    deadline_s: float


class Metadata:
    """The instance metadata service of this machine, version 2: every question carries a token.

    Args:
        endpoint: Its address; taken from the environment, or the fixed one, when left out.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or _ENDPOINT).rstrip("/")
        self._token = ""
        # It is on this machine's own link: a proxy of the environment cannot reach it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def life_cycle(self) -> str:
        """Say how the instance was bought: ``spot``, ``on-demand`` or ``scheduled``.

        Raises:
            UnavailableError: No metadata service answers.
        """
        return (self._get("/latest/meta-data/instance-life-cycle") or b"").decode("ascii", "replace").strip()

    def notice(self, *, rebalance: bool = False) -> Notice | None:
        """Ask whether the instance will be taken away.

        Args:
            rebalance: Whether a recommendation to leave, which often comes earlier, counts as well.

        Raises:
            UnavailableError: The service does not answer, or not in words it is known for.
        """
        said = self._get("/latest/meta-data/spot/instance-action")
        if said is not None:
            return _parsed(said, when="time")
        said = self._get("/latest/meta-data/events/recommendations/rebalance") if rebalance else None
        return _parsed(said, when="noticeTime") if said is not None else None

    def _get(self, path: str) -> bytes | None:
        """Read a path; None where there is nothing. A token that has run out is renewed once."""
        for last in (False, True):
            if not self._token:
                life = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
                status, said = self._ask("PUT", "/latest/api/token", headers=life)
                if status != 200:
                    raise UnavailableError(f"the metadata service gives no token: HTTP {status}")
                self._token = said.decode("ascii", "replace")
            status, said = self._ask("GET", path, headers={"X-aws-ec2-metadata-token": self._token})
            if status == 200:
                return said
            if status == 404:
                return None
            if status != 401 or last:
                break
            self._token = ""
        raise UnavailableError(f"the metadata service answers {path} with HTTP {status}")

    def _ask(self, method: str, path: str, *, headers: Mapping[str, str]) -> tuple[int, bytes]:
        request = urllib.request.Request(self._endpoint + path, method=method, headers=dict(headers))
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b""
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"no metadata service answers at {self._endpoint}: {error}") from error


def _parsed(said: bytes, *, when: str) -> Notice:
    try:
        record = json.loads(said)
        moment_s = datetime.fromisoformat(record[when]).timestamp()
        action = str(record.get("action", "rebalance"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnavailableError(f"the metadata service says {said[:100]!r}, which is no notice") from error
    return Notice(action, math.inf if action == "rebalance" else moment_s)


def notices(metadata: Metadata, *, rebalance: bool, stop: threading.Event) -> Iterator[Notice]:
    """Ask every two seconds and give what is said, each thing once; ends after the notice that is final.

    A service that does not answer is asked again: a notice stands for two minutes.

    Args:
        metadata: Of this machine.
        rebalance: See ``Metadata.notice``.
        stop: Ends it.
    """
    silent = False
    while not stop.is_set():
        try:
            notice = metadata.notice(rebalance=rebalance)
            silent = False
        except UnavailableError as error:
            notice = None
            if not silent:
                _log.warning("%s; asking on", error.message)
            silent = True
        if notice is not None:
            yield notice
            if notice.action != "rebalance":
                return
            rebalance = False
        stop.wait(POLL_S)


def is_spot(metadata: Metadata) -> bool:
    """Say whether this machine is a spot instance; one without a metadata service is not.

    The service may need a moment after the machine has started, so silence counts after five questions.
    """
    for number in range(_START_TRIES):
        if number:
            time.sleep(POLL_S / 2)
        with contextlib.suppress(UnavailableError):
            return metadata.life_cycle() == "spot"
    return False
