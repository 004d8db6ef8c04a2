"""The service: what ``python -m edge.agent run`` does until it is told to stop.

It brings the device to its last good slot, has it answer, installs what arrives, lets it run on trial and
confirms it or takes it back, counts, reports, and tells systemd that it lives. It decides nothing about a
bundle (``edge.agent.install``), runs no model (``edge.agent.running``) and opens no connection
(``edge.agent.link``). Intervals are measured on a clock that only goes forward.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from edge.agent.changing import Changes, StoppedError
from edge.agent.config import Config
from edge.agent.device import Device
from edge.agent.running.api import Api, make_key
from edge.agent.running.inbox import Inbox
from edge.agent.running.supervisor import Supervisor
from edge.agent.state import TRIAL, Report, State
from edge.agent.status import Numbers, make_status
from edge.agent.systemd import Notify
from edge.agent.telemetry.latencies import Latencies
from edge.agent.telemetry.ring import Ring
from kit.errors import KitError, UnavailableError

if TYPE_CHECKING:
    from edge.agent.link import Link

SOCKET_NAME = "run/agent.sock"
KEY_NAME = "run/http.key"
RING_NAME = "telemetry.sqlite"

_REPORT_S = 3600.0
_EARLY_REPORT_S = 300.0  # in the hour after a confirmation, while a rollout can still stop
_EARLY_S = 3600.0
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_LINK_STOP_S = 2.0

_log = logging.getLogger("kit.agent")


class Service:
    """The agent of one device.

    Args:
        device: A prepared device whose lock the caller holds until this has ended.
        config: How it runs.
        notify: Who is told how it does.
    """

    def __init__(self, device: Device, config: Config, *, notify: Notify | None = None) -> None:
        self._device, self._config = device, config
        self._notify = notify or Notify()
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._changes = Changes(device.folder, stopping=self._stopping, beat=self._notify.alive)
        self._ring = Ring(device.folder / RING_NAME, max_bytes=int(config.telemetry_mb * (1 << 20)))
        self._latencies = Latencies()
        self._supervisor = Supervisor(
            device.folder, limits=config.limits, told=self._told, beat=self._notify.alive
        )
        self._api = Api(
            self._supervisor, latencies=self._latencies, max_body_bytes=config.limits.max_body_bytes
        )
        self._inbox: Inbox | None = None
        self._link: Link | None = None
        self._numbers = Numbers(device.folder)
        self._wanted_back: str | None = None
        self._said = ""
        self._retry_s, self._failures = 0.0, 0
        self._start_due_s, self._start_failures, self._start_error = 0.0, 0, ""
        self._soak_end_s: float | None = None
        self._window_began_s = time.monotonic()
        self._reported: tuple[Any, ...] = ()
        self._report_due_s = self._confirmed_s = float("-inf")
        self._last_report: Report | None = None

    def stop(self) -> None:
        """Have ``run`` end; callable from a signal handler and from any thread."""
        self._stopping.set()
        self._woken.set()

    def wake(self) -> None:
        """Have ``run`` look now."""
        self._woken.set()

    def run(self) -> None:
        """Serve until ``stop``.

        Raises:
            VerificationError: The state cannot be read.
            UnavailableError: The socket cannot be made.
        """
        try:
            self._begin()
            while not self._stopping.is_set():
                self._woken.clear()
                self._once()
                self._woken.wait(self._pause_s())
        except StoppedError:
            pass
        finally:
            self._end()

    def _begin(self) -> None:
        device, config = self._device, self._config
        state = device.state()
        self._last_report = state.last_report
        # The model that ran before answers at once: its own process verifies it. The rest comes after.
        if state.current is not None and state.staged is None:
            self._start(state.current)
        self._api.listen_at(device.folder / SOCKET_NAME)
        if config.http is not None:
            key = None if config.http.open else make_key(device.folder / KEY_NAME)
            self._api.listen_on(config.http.host, config.http.port, key=key)
        self._attempt(self._changes.recover)
        self._follow()
        if config.inbox is not None:
            folders = config.inbox
            self._inbox = Inbox(
                self._supervisor,
                folder=folders.incoming,
                results=folders.results,
                failed=folders.failed,
                latencies=self._latencies,
                max_bytes=config.limits.max_body_bytes,
            )
            self._inbox.start()
        if config.source is not None:
            from edge.agent.link import Link  # whoever asks nobody needs no TLS in memory

            self._link = Link(
                device, config, ring=self._ring, wake=self.wake, take_back=self._ask_to_take_back
            )
            self._link.start()
        self._notify.ready(self._words())
        _log.info(f"watching {device.incoming}")

    def _once(self) -> None:
        self._notify.alive()
        if self._supervisor.failure:
            self._mend(self._supervisor.failure)
        self._take_back_if_asked()
        self._install_waiting()
        self._soak()
        if self._supervisor.digest is None and time.monotonic() >= self._start_due_s:
            self._follow()
        self._close_window(time.monotonic(), at_end=False)
        self._report_if_due()

    def _end(self) -> None:
        self._notify.stopping()
        self._api.close()
        if self._inbox is not None:
            self._inbox.stop()
        self._close_window(time.monotonic(), at_end=True)
        if self._link is not None:
            self._link.stop(within_s=_LINK_STOP_S)
        self._supervisor.stop()
        self._ring.close()
        self._notify.close()

    def _pause_s(self) -> float:
        now_s = time.monotonic()
        ends = [now_s + self._config.poll_s, self._window_began_s + self._config.window_s]
        if self._soak_end_s is not None:
            ends.append(self._soak_end_s)
        if self._notify.watchdog_s:
            ends.append(now_s + self._notify.watchdog_s / 3)
        return max(0.0, min(ends) - now_s)

    def _start(self, digest: str) -> bool:
        """Have a slot answer; says whether it does."""
        try:
            loaded = self._supervisor.start(digest)
        except KitError as error:
            _log.warning(f"warning: {error.message}")
            self._start_failures += 1
            wait_s = min(_FIRST_WAIT_S * 2**self._start_failures, _LONGEST_WAIT_S)
            self._start_due_s = time.monotonic() + wait_s
            self._start_error = error.message
            return False
        self._start_failures = 0
        self._latencies.forget()
        _log.info(f"{loaded.name} {loaded.version} answers with {loaded.engine} {loaded.engine_version}")
        return True

    def _follow(self) -> None:
        """Have the slot answer that the state names, and note what has happened to the device."""
        state = self._device.state()
        self._note(state)
        digest = state.wanted
        if digest is not None and digest != self._supervisor.digest:
            self._close_window(time.monotonic(), at_end=True)
            if not self._start(digest):
                self._start_failed(state, digest)
                return
        on_trial = state.phase == TRIAL and state.examined
        if on_trial and self._soak_end_s is None:
            self._soak_end_s = time.monotonic() + self._config.trial_s
        elif not on_trial:
            self._soak_end_s = None
        self._notify.status(self._words())

    def _start_failed(self, state: State, digest: str) -> None:
        if state.phase == TRIAL or self._has_other(state):
            self._mend(self._start_error, digest=digest)

    def _mend(self, why: str, *, digest: str | None = None) -> None:
        """Take a slot back that has failed, where there is another one."""
        if time.monotonic() < self._retry_s:
            return  # the disk did not let it be taken back; it is tried again
        state = self._device.state()
        failed = digest or self._supervisor.digest
        if failed is None or not self._has_other(state):
            return  # it is all there is: it goes on being started, slowly
        self._soak_end_s = None
        if self._attempt(lambda: self._changes.revert(why, failed=failed)):
            self._follow()

    def _has_other(self, state: State) -> bool:
        others = {state.previous, state.factory}
        if state.phase == TRIAL:
            others.add(state.current)
        return bool(others - {None, self._supervisor.digest})

    def _ask_to_take_back(self, digest: str) -> None:
        self._wanted_back = digest
        self.wake()

    def _take_back_if_asked(self) -> None:
        if self._wanted_back is None or time.monotonic() < self._retry_s:
            return
        wanted, self._wanted_back = self._wanted_back, None
        state = self._device.state()
        if wanted not in state.good or (wanted == state.current and state.staged is None):
            return
        if self._attempt(lambda: self._changes.revert("the source wants it back", to=wanted)):
            self._follow()

    def _install_waiting(self) -> None:
        if time.monotonic() < self._retry_s:
            return
        state = self._device.state()
        if state.staged is not None and not state.examined:  # a full disk has cut its installation off
            if not self._attempt(self._changes.recover):
                return
            self._follow()
        try:
            waiting = self._device.waiting()
        except UnavailableError as error:
            self._say(error.message)
            return
        for path in waiting:
            if not self._attempt(partial(self._changes.install, path)):
                return
            self._follow()
        if not waiting:
            self._said = ""

    def _soak(self) -> None:
        """Confirm the slot on trial when it has run long enough; a restart is a fault of it."""
        if self._soak_end_s is None:
            return
        if self._supervisor.restarts:
            self._mend("its process had to be started anew while it was on trial")
            return
        loaded = self._supervisor.loaded
        if loaded is None or time.monotonic() < self._soak_end_s:
            return
        self._soak_end_s = None
        if self._attempt(lambda: self._changes.commit(loaded.digest)):
            self._follow()

    def _attempt(self, change: Callable[[], None]) -> bool:
        """Make a change; disks get room again and pulled cards come back, so neither ends the agent."""
        try:
            change()
        except StoppedError:
            raise
        except KitError as error:
            self._failures += 1
            wait_s = min(_FIRST_WAIT_S * 2 ** (self._failures - 1), _LONGEST_WAIT_S)
            self._retry_s = time.monotonic() + wait_s
            self._say(error.message)
            return False
        self._failures, self._retry_s = 0, 0.0
        return True

    def _say(self, trouble: str) -> None:
        if trouble != self._said:  # once, not at every look
            _log.warning(f"warning: {trouble}; it is tried again")
        self._said = trouble

    def _told(self, what: str, why: str) -> None:
        """Hear from the supervisor, on a thread of its own."""
        self._ring.append("event", {"what": what, "detail": why[:300]}, self._supervisor.digest)
        if what == "failed":
            self.wake()

    def _note(self, state: State) -> None:
        """Keep as an event what was decided about a bundle since the last time."""
        report = state.last_report
        if report is None or report == self._last_report:
            return
        self._last_report = report
        if report.status == "confirmed":
            self._confirmed_s = time.monotonic()
        self._ring.append("event", {"what": report.status, "detail": report.detail[:300]}, report.digest)

    def _close_window(self, now_s: float, *, at_end: bool) -> None:
        """Put what was counted into the ring, when the window is over; an empty one is not kept."""
        seconds = now_s - self._window_began_s
        if seconds < self._config.window_s and not at_end:
            return
        self._window_began_s = now_s
        counted = self._latencies.take()
        if not counted["answers"] and not counted["errors"]:
            return
        digest = self._supervisor.digest
        seen = self._supervisor.window()
        samples = seen.pop("samples", [])
        self._ring.append("window", {"seconds": round(seconds, 3), **counted, **seen}, digest)
        for sample in samples:
            self._ring.append("sample", sample, digest)

    def _report_if_due(self) -> None:
        if self._link is None:
            return
        now_s = time.monotonic()
        state = self._device.state()
        loaded = self._supervisor.loaded
        running = loaded.digest if loaded is not None else None
        told = (state.phase, running, state.previous, tuple(state.rejected), state.last_report)
        if told == self._reported and now_s < self._report_due_s:
            return
        self._reported = told
        is_early = now_s - self._confirmed_s < _EARLY_S
        self._report_due_s = now_s + (_EARLY_REPORT_S if is_early else _REPORT_S)
        self._link.report(self._status(state, running))

    def _status(self, state: State, running: str | None) -> Mapping[str, Any]:
        loaded = self._supervisor.loaded
        return make_status(
            state,
            folder=self._device.folder,
            seq=self._numbers.next(),
            running=running,
            health={**self._latencies.health(), "restarts": self._supervisor.restarts},
            engines={loaded.engine: loaded.engine_version} if loaded is not None else {},
        )

    def _words(self) -> str:
        loaded = self._supervisor.loaded
        if loaded is None:
            return "no model answers"
        on_trial = " on trial" if self._soak_end_s is not None else ""
        return f"{loaded.name} {loaded.version} answers{on_trial}"


def serve(device: Device, config: Config) -> None:
    """Run the agent of a device until SIGTERM or SIGINT.

    Args:
        device: A prepared device whose lock the caller holds.
        config: How it runs.

    Raises:
        KitError: It cannot begin; see ``Service.run``.
    """
    service = Service(device, config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.run()
