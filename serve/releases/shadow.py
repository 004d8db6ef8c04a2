"""A shadow: a version that answers some requests unseen, to be compared with the answers that were given.

It never answers and never delays an answer: what does not fit its short queue, or comes while others wait, is
dropped and counted. What runs the version is given to it; how answers compare is ``comparison``'s.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from kit.tensors import Tensors
from serve.releases.comparison import Counts, compare

_MAX_WAITING = 32
_MAX_WAITING_BYTES = 16_000_000
_INLINE_VALUES = 50_000  # about half a millisecond of arithmetic; more is compared in a thread


@dataclass(frozen=True)
class _Waiting:
    inputs: Tensors
    answers: Tensors
    seconds: float
    n_bytes: int


class Shadow:
    """Asks one version, one request at a time, on the event loop it was made on.

    Args:
        digest: Of the version.
        run: Gives the version's answers; may raise, may be slow.
        busy: Says whether requests wait for an engine now; then the shadow is not asked.
        counts: What was counted before, where the shadow is the same as before.
    """

    def __init__(
        self,
        digest: str,
        *,
        run: Callable[[Tensors], Awaitable[Tensors]],
        busy: Callable[[], bool] = lambda: False,
        counts: Counts | None = None,
    ) -> None:
        self.digest = digest
        self._run = run
        self._busy = busy
        self.counts = counts or Counts()
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._n_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def offer(self, inputs: Tensors, answers: Tensors, *, seconds: float) -> bool:
        """Hand over an answered request to be compared later; never waits.

        Args:
            inputs: Validated; must not change afterwards.
            answers: What the client was given; must not change afterwards.
            seconds: What the answer had taken.

        Returns:
            Whether there was room for it.
        """
        n_bytes = sum(each.nbytes for each in inputs.values()) + sum(each.nbytes for each in answers.values())
        full = len(self._waiting) >= _MAX_WAITING or self._n_bytes + n_bytes > _MAX_WAITING_BYTES
        if self._closed or full or self._busy():
            self.counts += Counts(dropped=1)
            return False
        self._waiting.append(_Waiting(inputs, answers, seconds, n_bytes))
        self._n_bytes += n_bytes
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        return True

    def told(self) -> dict[str, Any]:
        """Give the counters for the replica's file, with the version they are about."""
        return {"digest": self.digest, **self.counts.to_json()}

    def close(self) -> None:
        """Ask no more; what waits is forgotten."""
        self._closed = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        """Ask until nothing waits."""
        try:
            while self._waiting:
                waiting = self._waiting.popleft()
                self._n_bytes -= waiting.n_bytes
                self.counts += await self._asked(waiting)
        finally:
            self._task = None

    async def _asked(self, waiting: _Waiting) -> Counts:
        began_s = time.monotonic()
        try:
            shadow = await self._run(waiting.inputs)
        except Exception:  # whatever a version under trial raises is a figure here, and nobody else's trouble
            return Counts(errors=1)
        seconds = time.monotonic() - began_s
        if sum(each.size for each in waiting.answers.values()) > _INLINE_VALUES:
            found = await asyncio.to_thread(compare, waiting.answers, shadow)
        else:
            found = compare(waiting.answers, shadow)
        return found + Counts(seconds=seconds, answer_seconds=waiting.seconds)
