"""The response cache of one model: answers kept for equal requests, and one computation for those that meet.

What a process keeps is ``memory``'s business, what replicas share ``redis``'s, what makes requests equal
``keys``'s. It knows neither engine nor HTTP: it is given a key and what computes the answer. A model whose
answers differ for equal inputs must not have one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from kit.errors import ModelError
from kit.inference.errors import DeadlineError
from kit.tensors import Tensors
from serve.caching.keys import key_of
from serve.caching.memory import MemoryCache, owned
from serve.caching.redis import RedisCache

__all__ = ["MemoryCache", "RedisCache", "ResponseCache", "key_of"]

Compute = Callable[[], Awaitable[Tensors]]


class _Flight:
    """One computation that requests wait for together."""

    __slots__ = ("n_waiting", "task")

    def __init__(self, task: asyncio.Task[tuple[Tensors, bool]]) -> None:
        self.task = task
        self.n_waiting = 0


class ResponseCache:
    """Answers equal requests once. Belongs to one event loop.

    Args:
        memory: What this process keeps.
        shared: What all replicas keep; None for none.
    """

    def __init__(self, memory: MemoryCache, *, shared: RedisCache | None = None) -> None:
        self._memory = memory
        self._shared = shared
        self._flights: dict[bytes, _Flight] = {}
        self._n_hits = 0
        self._n_shared_hits = 0
        self._n_joined = 0
        self._n_misses = 0

    def counts(self) -> dict[str, int]:
        """Tell what happened since the start, and what is kept now.

        Returns:
            Of requests, ``hits``, ``shared_hits``, ``joined`` (answered with an equal one that was in work)
            and ``misses``; of the shared cache, ``errors`` and ``skipped``; of this process's, ``evicted``,
            and what it holds now, ``entries`` and ``bytes``.
        """
        shared = self._shared
        return {
            "hits": self._n_hits,
            "shared_hits": self._n_shared_hits,
            "joined": self._n_joined,
            "misses": self._n_misses,
            "errors": shared.n_errors if shared else 0,
            "skipped": shared.n_skipped if shared else 0,
            "evicted": self._memory.n_evicted,
            "entries": len(self._memory),
            "bytes": self._memory.n_bytes,
        }

    def find(self, key: bytes) -> Tensors | None:
        """Look into this process's memory without waiting; the arrays are read-only and shared."""
        found = self._memory.get(key, now_s=time.monotonic())
        if found is not None:
            self._n_hits += 1
        return found

    async def answer(
        self, key: bytes, compute: Compute, *, deadline_s: float | None = None
    ) -> tuple[Tensors, bool]:
        """Give the kept answer, or the one an equal request is waiting for, or compute it.

        The computation goes on while anybody waits for it, whoever asked first. A failure is not kept: a
        ``ModelError`` concerns all equal requests that wait, anything else (a deadline, a full queue) only
        the one that asked first, and the next one computes.

        Args:
            key: What makes requests equal, see ``key_of``.
            compute: Computes the answer.
            deadline_s: Monotonic time until which somebody else's computation is waited for.

        Returns:
            The answer, whose arrays are read-only and shared, and whether another request computed it.

        Raises:
            DeadlineError: The deadline passed while somebody else's computation was waited for.
            KitError: What ``compute`` raises.
        """
        while True:
            found = self.find(key)
            if found is not None:
                return found, True
            flight = self._flights.get(key)
            if flight is None:
                flight = self._compute(key, compute)
                await self._wait(key, flight, timeout_s=None)
                return flight.task.result()
            await self._wait(key, flight, timeout_s=deadline_s and deadline_s - time.monotonic())
            task = flight.task
            if not task.done():
                raise DeadlineError("the deadline passed while an equal request was answered")
            error = None if task.cancelled() else task.exception()
            if isinstance(error, ModelError):
                raise error
            if error is None and not task.cancelled():
                self._n_joined += 1
                return task.result()[0], True

    def _compute(self, key: bytes, compute: Compute) -> _Flight:
        task = asyncio.get_running_loop().create_task(self._fill(key, compute))
        flight = self._flights[key] = _Flight(task)
        return flight

    async def _fill(self, key: bytes, compute: Compute) -> tuple[Tensors, bool]:
        """Ask the shared cache, else compute, and keep the answer."""
        this = asyncio.current_task()
        try:
            if self._shared is not None and (kept := await self._shared.get(key)) is not None:
                self._n_shared_hits += 1
                self._memory.put(key, kept, now_s=time.monotonic())
                return kept, True
            self._n_misses += 1
            tensors = owned(await compute())
            self._memory.put(key, tensors, now_s=time.monotonic())
            if self._shared is not None:
                self._shared.put(key, tensors)
            return tensors, False
        finally:
            if (flight := self._flights.get(key)) is not None and flight.task is this:
                del self._flights[key]

    async def _wait(self, key: bytes, flight: _Flight, *, timeout_s: float | None) -> None:
        """Wait for a computation; the last who stops waiting ends it."""
        flight.n_waiting += 1
        try:
            await asyncio.wait((flight.task,), timeout=timeout_s)
        finally:
            flight.n_waiting -= 1
            if not flight.n_waiting and not flight.task.done():
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]
