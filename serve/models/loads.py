"""Loads under way: some at a time, in threads, those that somebody waits for first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Generic

from serve.models.entries import Entry, R
from serve.version_key import VersionKey


class Loads(Generic[R]):
    """Runs blocking loads beside the running loop it is made on.

    Args:
        load: Loads a version; blocking.
        at_once: Most loads at the same time.
        executor: Where they run, with room for one more than ``at_once``; threads of its own when None.
        on_end: Called on the loop with each load's outcome.
        on_needless: Called instead for a version whose load nobody needs by the time its turn comes.
    """

    def __init__(
        self,
        load: Callable[[VersionKey], R],
        *,
        at_once: int,
        executor: Executor | None,
        on_end: Callable[[Entry[R], asyncio.Future[R]], None],
        on_needless: Callable[[Entry[R]], None],
    ) -> None:
        self._load = load
        self._at_once = at_once
        # One thread more, so that freeing never waits for a load.
        self._executor = executor or ThreadPoolExecutor(at_once + 1, thread_name_prefix="kit-load")
        self._on_end = on_end
        self._on_needless = on_needless
        self._queue: list[Entry[R]] = []
        self._n_running = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def queue(self, entry: Entry[R]) -> None:
        """Note a load; ``pump`` starts it."""
        self._queue.append(entry)

    def pump(self) -> None:
        """Start as many queued loads as may run."""
        while self._queue and self._n_running < self._at_once:
            entry = next((each for each in self._queue if each.waiters), self._queue[0])
            self._queue.remove(entry)
            if not entry.waiters and not entry.wanted:
                self._on_needless(entry)
                continue
            self._n_running += 1
            future = self._loop.run_in_executor(self._executor, self._load, entry.key)
            future.add_done_callback(partial(self._end, entry))

    def free(self, last: list[R | None]) -> None:
        """Let a list of resources go in a thread, if it holds the last references: that can take some ms."""
        if not self._closed:
            self._executor.submit(last.clear)

    def close(self) -> None:
        """Start nothing any more; what runs goes on, and ``on_end`` still hears of it."""
        self._closed = True
        self._queue.clear()
        self._executor.shutdown(wait=False)

    def _end(self, entry: Entry[R], future: asyncio.Future[R]) -> None:
        self._n_running -= 1
        self._on_end(entry, future)
        self.pump()
