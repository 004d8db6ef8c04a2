"""The link: what a device says to its source and hears from it, on a thread of its own.

A network that is slow or gone keeps nobody else waiting. It fetches and delivers; what is installed or taken
back is for ``edge.agent.service``, which it wakes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from edge.agent.config import Config
from edge.agent.device import Device
from edge.agent.pulling.notices import Notices
from edge.agent.pulling.offer import RETURN
from edge.agent.pulling.puller import Puller
from edge.agent.pulling.source import read_source
from edge.agent.pulling.uplink import Uplink
from edge.agent.telemetry.ring import Ring
from kit.errors import KitError

_LONGEST_WAIT_S = 60.0

_log = logging.getLogger("kit.agent")


class Link:
    """Asks the source, fetches, reports and delivers, until it is stopped.

    Args:
        device: Whose.
        config: Names the source.
        ring: What is to be delivered.
        wake: Called when something was fetched.
        take_back: Called with the digest that the source wants back.
    """

    def __init__(
        self,
        device: Device,
        config: Config,
        *,
        ring: Ring,
        wake: Callable[[], None],
        take_back: Callable[[str], None],
    ) -> None:
        assert config.source is not None
        source = read_source(config.source, folder=device.folder)
        self._puller = Puller(device, source)
        self._uplink = Uplink(device, source)
        self._ring = ring
        self._wake, self._take_back = wake, take_back
        self._woken = threading.Event()
        self._noticed = threading.Event()
        self._stopped = False
        self._status: Mapping[str, Any] | None = None
        self._notices = Notices(source.mqtt, _Both(self._noticed, self._woken)) if source.mqtt else None
        self._thread = threading.Thread(target=self._work, name="link", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._notices is not None:
            self._notices.start()
        self._thread.start()

    def report(self, status: Mapping[str, Any]) -> None:
        """Send a status as soon as the network allows; an older one that waits is forgotten."""
        self._status = status
        self._woken.set()

    def stop(self, *, within_s: float) -> None:
        """End; a request under way is given up after a while."""
        self._stopped = True
        self._woken.set()
        if self._notices is not None:
            self._notices.stop()
        self._thread.join(within_s)

    def _work(self) -> None:
        while not self._stopped:
            try:
                self._once()
            except KitError as error:
                _log.warning(f"warning: {error.message}")
            except Exception:  # a bug in what only adds to the device must not end it
                _log.exception("the link to the source failed")
            wait_s = min(self._puller.wait_s(), _LONGEST_WAIT_S)
            self._woken.wait(max(wait_s, 0.05))
            self._woken.clear()

    def _once(self) -> None:
        status, self._status = self._status, None
        if status is not None:
            self._uplink.report(status)
        if self._noticed.is_set():
            self._noticed.clear()
            self._puller.notice()
        offer = self._puller.look()
        if offer is not None and offer.kind == RETURN:
            self._take_back(offer.digest)
        elif offer is not None and not self._stopped:
            self._puller.fetch(offer)
            self._wake()
        if not self._stopped:
            self._uplink.deliver(self._ring)


class _Both(threading.Event):
    """An event that sets another one, too: that a notice came, and that there is something to do."""

    def __init__(self, noticed: threading.Event, woken: threading.Event) -> None:
        super().__init__()
        self._noticed, self._other = noticed, woken

    def set(self) -> None:
        """Set both."""
        self._noticed.set()
        self._other.set()
