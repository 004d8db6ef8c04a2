"""A circuit breaker: takes a version that fails too often out of the way, and tries it again with care.

It counts answers in a ring of time buckets and decides; whoever asks the version obeys. The time is given to
it, by any clock that runs forward: it does no IO and reads no clock.

    closed     every request may pass; answers are counted over the window
    open       none may pass, until the pause is over
    half-open  a few may pass as probes: as many good answers in a row close it, one failure opens it again
"""

from __future__ import annotations

from typing import Literal

from kit.settings.serving import BreakerSettings

State = Literal["closed", "open", "half-open"]

_BUCKETS = 10


class Breaker:
    """What one version's answers say about it.

    Args:
        settings: When it opens and how it closes again.

    Attributes:
        state: Where it stands; an open one becomes half-open with the first request after the pause.
        n_opened: How often it opened.
    """

    __slots__ = (
        "_bucket",
        "_bucket_s",
        "_failed",
        "_n_answers",
        "_n_failed",
        "_probes_out",
        "_probes_passed",
        "_settings",
        "_total",
        "_until_s",
        "n_opened",
        "state",
    )

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._bucket_s = settings.window_s / _BUCKETS
        self.state: State = "closed"
        self.n_opened = 0
        self._until_s = 0.0
        self._probes_out = 0
        self._probes_passed = 0
        self._bucket = 0
        self._forget()

    def allow(self, now_s: float) -> bool:
        """Say whether a request may pass; whoever passes is expected to report its answer.

        Args:
            now_s: Monotonic time, the same clock in every call.
        """
        if self.state == "closed":
            return True
        if now_s >= self._until_s:
            # The pause is over, or the probes that passed have not answered for as long as a pause lasts.
            self.state = "half-open"
            self._until_s = now_s + self._settings.open_s
            self._probes_out = 0
            self._probes_passed = 0
        if self.state == "open" or self._probes_out >= self._settings.probes:
            return False
        self._probes_out += 1
        return True

    def succeeded(self, now_s: float) -> None:
        """Count a good answer."""
        if self.state == "closed":
            bucket = int(now_s / self._bucket_s)
            if bucket > self._bucket:
                self._roll(bucket)
            self._total[self._bucket % _BUCKETS] += 1
            self._n_answers += 1
        elif self.state == "half-open" and self._probes_out:
            self._probes_out -= 1
            self._probes_passed += 1
            if self._probes_passed >= self._settings.probes:
                self.state = "closed"
                self._forget()

    def failed(self, now_s: float) -> None:
        """Count a failure of the version: it raised, answered NaN, or did not answer in time."""
        if self.state == "half-open":
            self._open(now_s)
        elif self.state == "closed":
            bucket = int(now_s / self._bucket_s)
            if bucket > self._bucket:
                self._roll(bucket)
            self._total[self._bucket % _BUCKETS] += 1
            self._failed[self._bucket % _BUCKETS] += 1
            self._n_answers += 1
            self._n_failed += 1
            enough = self._n_answers >= self._settings.min_requests
            if enough and self._n_failed >= self._settings.failure_share * self._n_answers:
                self._open(now_s)

    def retry_after_s(self, now_s: float) -> float:
        """Say in how many seconds it is worth asking again; 0 when it is now."""
        return 0.0 if self.state == "closed" else max(0.0, self._until_s - now_s)

    def _open(self, now_s: float) -> None:
        self.state = "open"
        self.n_opened += 1
        self._until_s = now_s + self._settings.open_s

    def _roll(self, bucket: int) -> None:
        """Let go of the buckets that fell out of the window."""
        if bucket - self._bucket >= _BUCKETS:
            self._forget()
        else:
            for old in range(self._bucket + 1, bucket + 1):
                place = old % _BUCKETS
                self._n_answers -= self._total[place]
                self._n_failed -= self._failed[place]
                self._total[place] = self._failed[place] = 0
        self._bucket = bucket

    def _forget(self) -> None:
        self._total = [0] * _BUCKETS
        self._failed = [0] * _BUCKETS
        self._n_answers = 0
        self._n_failed = 0
