"""A server as a process of its own: started, watched from outside, and ended with all that it started.

Its processes are told by a variable of their environment, which children inherit: a daemon is no descendant
for long. What it answers is not known here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import psutil

_MARK = "KIT_BENCHMARK_SERVER"
_START_S = 240.0
_STOP_S = 60.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Server:
    """A running server.

    Args:
        words: What starts it.
        variables: Its environment.
        log: File that takes what it says.
    """

    def __init__(self, words: list[str], *, variables: Mapping[str, str], log: Path) -> None:
        self._mark = secrets.token_hex(8)
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                words,
                env={**variables, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._pids: list[int] = []

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until(self, answers: Callable[[], bool]) -> float:
        """Wait until it answers; gives the seconds that took.

        Raises:
            SystemExit: It ended, or takes too long.
        """
        began = time.monotonic()
        while not answers():
            if self.process.poll() is not None:
                raise SystemExit(f"a server ended with {self.process.returncode}:\n{self.said()}")
            if time.monotonic() - began > _START_S:
                raise SystemExit(f"a server does not answer after {_START_S:g} s:\n{self.said()}")
            time.sleep(0.1)
        return time.monotonic() - began

    def said(self) -> str:
        """Give the end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def pids(self) -> list[int]:
        """List its living processes."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process.pid)
        return found

    def settle(self) -> None:
        """Remember which processes it has, so that ``cpu_s`` is quick to read."""
        self._pids = self.pids()

    def cpu_s(self) -> float:
        """Sum the CPU time of the processes it had when it was settled, in seconds."""
        ticks = 0
        for pid in self._pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks * _TICK_S

    def replica_pids(self) -> list[int]:
        """List those of its processes that are replicas of Ray Serve."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                if b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def pause(self) -> None:
        """Have all its processes stand still, so that they take nothing from who is on turn."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, and what it leaves behind."""
        self.resume()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_S)
        self._signal(signal.SIGKILL)
        self.process.wait(_STOP_S)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def rss_mb(pid: int) -> float:
    """Read how much memory a process has resident, in MB of 10^6 bytes; 0 when it is gone."""
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss) / 1e6
    return 0.0
