"""Follow one job to its end, through lost connections, and tell a lost job from one that has decided.

Knows neither the command nor how often it is tried; what is shown goes to the logger ``kit.job``.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.submitting.dashboard import Dashboard
from kit.errors import UnavailableError

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

_log = logging.getLogger("kit")
_job_log = logging.getLogger("kit.job")

_POLL_S, _LONGEST_POLL_S = 0.2, 5.0
#: How long a log may stay silent before the dashboard is asked whether the job is still there: a machine
#: that is cut off says no goodbye, and its connections stay open for ever.
_QUIET_S = 15.0
_UNAVAILABLE = 7  # exit code of UnavailableError in kit.errors
_ASKED_FOR = (signal.SIGINT,)  # somebody's Ctrl-C


@dataclass(frozen=True)
class Patience:
    """How long what is lost is waited for.

    Attributes:
        first_pause_s: Between the first try and the second; every further pause is twice the last.
        longest_pause_s: Where the pauses stop to grow.
        reach_s: How long a dashboard that does not answer any more is asked again.
    """

    first_pause_s: float = 5.0
    longest_pause_s: float = 300.0
    reach_s: float = 600.0

    def pause_s(self, tries: int) -> float:
        """Say how long to wait after so many tries, 1 or more."""
        return min(self.first_pause_s * 2.0 ** min(tries - 1, 32), self.longest_pause_s)


def why_lost(status: str, exit_code: int | None, *, message: str | None) -> str | None:
    """Say why a job that has ended did so without its command's verdict.

    Args:
        status: Ray's.
        exit_code: Of the command; None where Ray does not know one, because what ran it died as well.
        message: Ray's own words.

    Returns:
        What happened, to be read after the job's id; None when the command decided (success, a refusal, a
        bug) or somebody stopped it.
    """
    if status != "FAILED":
        return None
    if exit_code is None:
        return f"ended without an exit code ({(message or 'for no known reason').splitlines()[0][:200]})"
    if exit_code == _UNAVAILABLE:
        return "could not reach what it needs (exit code 7)"
    number = -exit_code if exit_code < 0 else exit_code - 128  # Popen's way to tell a signal, and a shell's
    try:
        name = signal.Signals(number)
    except ValueError:
        return None
    return None if name in _ASKED_FOR else f"was killed by {name.name}"


def follow(dashboard: Dashboard, job_id: str, *, reach_s: float) -> JobDetails:
    """Log a job's output from its beginning, each line once, until it has ended.

    Args:
        dashboard: Of the job's cluster.
        job_id: The job.
        reach_s: How long a lost connection is tried again; 0 raises at once.

    Raises:
        NotFoundError: The cluster does not know the job, or not any more: its head was restarted.
        UnavailableError: The connection was lost and did not come back.
        KeyboardInterrupt: The user stopped following.
    """
    shown, pause_s = _Shown(dashboard, job_id), _POLL_S
    gone_since_s: float | None = None
    while True:
        n_before, lost = shown.n_characters, None
        try:
            asyncio.run(shown.tail())
        except UnavailableError as error:
            lost = error
        try:
            details = dashboard.details(job_id)
        except UnavailableError as error:
            lost = error
            if gone_since_s is None and reach_s:
                _log.warning("lost %s: %s; trying for %g s to reach it again", job_id, error.message, reach_s)
            gone_since_s = gone_since_s or time.monotonic()
        else:
            gone_since_s = None
            if details.status.is_terminal():
                shown.flush()
                return details
        gone_s = time.monotonic() - gone_since_s if gone_since_s else 0.0
        if lost is not None and gone_s >= reach_s:
            raise lost
        pause_s = _POLL_S if shown.n_characters > n_before else min(pause_s * 2, _LONGEST_POLL_S)
        time.sleep(pause_s)


class _Shown:
    """What of a job's output has been logged, so that following it anew repeats nothing."""

    def __init__(self, dashboard: Dashboard, job_id: str) -> None:
        self.n_characters = 0
        self._dashboard, self._job_id, self._rest = dashboard, job_id, ""

    async def tail(self) -> None:
        """Log what has not been logged yet, until the output ends.

        Raises:
            UnavailableError: The connection was lost, or the dashboard is silent.
            NotFoundError: The cluster does not know the job.
        """
        chunks = self._dashboard.log(self._job_id)
        at, has_ended, silences = 0, False, 0
        coming = asyncio.ensure_future(anext(chunks, None))
        while True:
            if not (await asyncio.wait({coming}, timeout=_QUIET_S))[0]:
                if has_ended:
                    return  # asyncio.run cancels what still waits
                try:
                    details = await asyncio.to_thread(self._dashboard.details, self._job_id)
                except UnavailableError:
                    silences += 1
                    if silences > 1:
                        raise
                else:
                    has_ended, silences = details.status.is_terminal(), 0
                continue
            chunk = coming.result()
            if chunk is None:
                return
            at += len(chunk)
            self._add(chunk[len(chunk) - max(at - self.n_characters, 0) :] if at > self.n_characters else "")
            coming = asyncio.ensure_future(anext(chunks, None))

    def flush(self) -> None:
        """Log the last line, where the output does not end with a line's end."""
        if self._rest:
            _job_log.info("%s", self._rest)
        self._rest = ""

    def _add(self, text: str) -> None:
        self.n_characters += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            _job_log.info("%s", line)
