"""Which versions are in memory, who uses them, and who has to go.

One pool per replica, on one event loop: between two awaits nothing else runs, so it needs no lock, and every
change is complete before anybody else looks. Loading happens in threads of its own, one load per version
however many wait for it. A version that somebody uses is never closed.

It does not know what it holds, beyond its size and how to close it, and decides nothing about traffic:
``want`` says what releases need. A size is known only after a load, so the process needs room for the loads
under way beside the budget.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Generic

from kit.errors import ConflictError, KitError
from serve.models.entries import Entry, R, room_for
from serve.models.failures import BudgetError, closing, copy, for_clients, known, late
from serve.models.loads import Loads
from serve.models.versions import State
from serve.version_key import VersionKey

_logger = logging.getLogger("kit")
_BACK_OFF_S = 1.0
_MAX_BACK_OFF_S = 60.0


class Pool(Generic[R]):
    """Loaded versions within a budget of memory. All but ``load`` happens on the running loop it is made on.

    Args:
        load: Loads a version; blocking, called in a thread.
        max_bytes: What all loaded versions may take together.
        keep_s: How long a version stays that no release wants, after its last use.
        on_change: Called soon after a version's state changed.
        loads_at_once: Most loads at the same time.
        executor: Where loads run, with room for one more than ``loads_at_once``; own threads when None.
    """

    def __init__(
        self,
        load: Callable[[VersionKey], R],
        *,
        max_bytes: int,
        keep_s: float = 300.0,
        on_change: Callable[[VersionKey, State], None] | None = None,
        loads_at_once: int = 2,
        executor: Executor | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._on_change = on_change
        self._loads = Loads(
            load,
            at_once=loads_at_once,
            executor=executor,
            on_end=self._loaded,
            on_needless=self._forget,
        )
        self._entries: dict[VersionKey, Entry[R]] = {}
        self._ready: dict[VersionKey, Entry[R]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def total_bytes(self) -> int:
        """What all loaded versions take now."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def lease(self, key: VersionKey) -> R | None:
        """Use a loaded version at once; ``release`` gives it back. None when it is not loaded."""
        entry = self._ready.get(key)
        if entry is None:
            return None
        entry.users += 1
        return entry.resource

    def release(self, key: VersionKey) -> None:
        """Give a version back, whatever became of it meanwhile.

        Raises:
            ConflictError: It was given back more often than it was leased: a bug of the caller.
        """
        entry = self._entries.get(key)
        if entry is None or not entry.users:
            raise ConflictError(f"{key} was given back more often than it was leased")
        entry.users -= 1
        if not entry.users and (entry.leaving or not entry.wanted):
            self._unused(entry)

    async def acquire(self, key: VersionKey, *, deadline_s: float) -> R:
        """Use a version, loading it first where that is needed; ``release`` gives it back.

        Args:
            key: Which one.
            deadline_s: When waiting is worthless, by ``time.monotonic``.

        Raises:
            DeadlineError: It was not loaded in time; the load goes on for others.
            ModelError: It failed on its golden samples, now or shortly before.
            UnavailableError: It could not be loaded, does not fit, or the replica is closing.
            VerificationError: It is not what was signed. None of these messages tells where things lie.
        """
        outcome = await self._wait(key, deadline_s=deadline_s)
        if isinstance(outcome, KitError):
            raise for_clients(key, outcome)
        return outcome

    async def load(self, key: VersionKey) -> None:
        """Load a version, at once even if that failed a moment ago; time alone does not unload it again.

        Raises:
            KitError: What the load failed of, with all an operator needs.
        """
        outcome = await self._wait(key, deadline_s=None)
        if isinstance(outcome, KitError):
            raise copy(outcome)
        self._entries[key].pinned = True
        self.release(key)

    async def unload(self, key: VersionKey) -> None:
        """Take a version out of memory and wait until its last user has left it; nothing to do is fine.

        Returns early when somebody asks for the version again meanwhile, which keeps it.

        Raises:
            ConflictError: A release needs it.
        """
        entry = self._entries.get(key)
        if entry is None:
            return
        if entry.wanted:
            raise ConflictError(f"{key} has traffic", hint="take it out of the release first: kit release")
        entry.pinned = False
        if entry.status == "FAILED":
            self._forget(entry)
            return
        gone: asyncio.Future[None] = self._loop.create_future()
        entry.gone.add(gone)
        try:
            self._leave(entry)
            await gone
        finally:
            entry.gone.discard(gone)

    def want(self, keys: Iterable[VersionKey]) -> None:
        """Say what the releases need now: it is loaded in the background, and kept while it fits.

        What failed is tried again, later and later, for as long as it is wanted.
        """
        wanted, now_s = frozenset(keys), time.monotonic()
        for entry in self._entries.values():
            if entry.wanted and entry.key not in wanted:
                entry.wanted = False
                entry.idle_at_s = now_s
                self._changed(entry)
        for key in () if self._closed else sorted(wanted):
            entry = self._entry(key)
            if not entry.wanted or isinstance(entry.error, BudgetError):
                entry.wanted = True
                self._changed(entry)
                self._start(entry, at_once=True)
        self._loads.pump()
        self._arm()

    def states(self) -> dict[VersionKey, State]:
        """Describe every version the pool has something to do with."""
        return {key: entry.state() for key, entry in self._entries.items()}

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Let nobody in any more, wait for users, and close everything.

        What is still used after ``timeout_s`` seconds is left open: the end of the process ends it.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        gone: list[asyncio.Future[None]] = []
        for entry in list(self._entries.values()):
            entry.wanted = entry.pinned = False
            entry.tell(closing())
            if entry.resource is None:
                self._forget(entry)
                continue
            gone.append(self._loop.create_future())
            entry.gone.add(gone[-1])
            self._leave(entry)
        if gone:
            await asyncio.wait(gone, timeout=timeout_s)
        for entry in self._entries.values():
            _logger.warning("%s is left open: it still has %d users", entry.key, entry.users)
        self._loads.close()

    async def _wait(self, key: VersionKey, *, deadline_s: float | None) -> R | KitError:
        """Lease a version once it is loaded; without a deadline, even if it failed a moment ago."""
        resource = self.lease(key)
        if resource is not None:
            return resource
        if self._closed:
            return closing()
        remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
        if remaining_s is not None and remaining_s <= 0:
            raise late(key)
        entry = self._entry(key)
        error = self._start(entry, at_once=deadline_s is None)
        if error is not None:
            return error
        if entry.resource is not None:
            entry.users += 1
            return entry.resource
        waiter: asyncio.Future[R | KitError] = self._loop.create_future()
        entry.waiters.add(waiter)
        self._loads.pump()
        timer = None if remaining_s is None else self._loop.call_later(remaining_s, _expire, waiter, key)
        try:
            return await waiter
        except asyncio.CancelledError:
            leased = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if leased and not isinstance(waiter.result(), KitError):
                self.release(key)  # it was leased in the moment its task was cancelled
            raise
        finally:
            entry.waiters.discard(waiter)
            if timer is not None:
                timer.cancel()

    def _entry(self, key: VersionKey) -> Entry[R]:
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key)
        return entry

    def _start(self, entry: Entry[R], *, at_once: bool) -> KitError | None:
        """Bring a version on its way: it stays, is queued, or remains failed; the reason when it does not."""
        if entry.status == "FAILED" and not at_once and time.monotonic() < entry.retry_at_s:
            return entry.error
        if entry.leaving:
            if entry.resource is not None:
                try:
                    self._make_room(entry)
                except BudgetError as error:
                    return copy(error)
                self._ready[entry.key] = entry
            entry.leaving = False
            entry.settle()
            self._changed(entry)
        elif entry.status in ("FAILED", "UNAVAILABLE"):
            entry.status = "LOADING"
            entry.error = None
            self._loads.queue(entry)
            self._changed(entry)
        return None

    def _loaded(self, entry: Entry[R], future: asyncio.Future[R]) -> None:
        """Let a load's outcome in, whatever happened while it ran."""
        raised = future.exception()
        if raised is not None:
            self._fail(entry, known(entry.key, raised))
        elif self._closed:
            future.result().close()
        else:
            entry.resource = future.result()
            entry.size_bytes = entry.resource.memory_bytes
            try:
                if not entry.leaving:
                    self._make_room(entry)
                self._let_in(entry, entry.resource)
            except BudgetError as error:
                self._dispose(entry)
                self._fail(entry, copy(error))
        self._arm()

    def _let_in(self, entry: Entry[R], resource: R) -> None:
        entry.status, entry.failures = "READY", 0
        entry.loaded_at_s, entry.idle_at_s = time.time(), time.monotonic()
        entry.users += entry.tell(resource)
        if not entry.leaving:
            self._ready[entry.key] = entry
            self._changed(entry)
        elif not entry.users:
            self._drop(entry)

    def _fail(self, entry: Entry[R], error: KitError) -> None:
        if self._closed:
            return
        _logger.warning("%s could not be loaded: %s", entry.key, error.message)
        entry.tell(error)
        if entry.leaving:
            self._forget(entry)
            return
        entry.status, entry.error = "FAILED", error
        pause_s = min(_MAX_BACK_OFF_S, _BACK_OFF_S * 2.0 ** min(entry.failures, 10))
        entry.failures += 1
        entry.retry_at_s = time.monotonic() + pause_s
        self._changed(entry)

    def _make_room(self, entry: Entry[R]) -> None:
        for each in room_for(entry, self._entries.values(), max_bytes=self._max_bytes):
            self._leave(each)

    def _leave(self, entry: Entry[R]) -> None:
        """Close a version now, or as soon as it is loaded and its last user has left."""
        if entry.is_idle:
            self._drop(entry)
        elif not entry.leaving:
            self._ready.pop(entry.key, None)
            entry.leaving = True
            self._changed(entry)

    def _unused(self, entry: Entry[R]) -> None:
        """Take note that the last user of a version left that no release needs."""
        if entry.leaving:
            self._drop(entry)
            return
        entry.idle_at_s = time.monotonic()
        if not entry.pinned:
            self._arm_at(entry.idle_at_s + self._keep_s)

    def _drop(self, entry: Entry[R]) -> None:
        self._dispose(entry)
        if entry.wanted and not self._closed:  # it had to leave, and is wanted again
            entry.leaving, entry.status = False, "UNAVAILABLE"
            self._start(entry, at_once=True)
            self._loads.pump()
        else:
            self._forget(entry)

    def _dispose(self, entry: Entry[R]) -> None:
        """Close a resource, and let its last reference die in a thread: freeing an engine takes some ms."""
        last, entry.resource = [entry.resource], None
        self._ready.pop(entry.key, None)
        entry.size_bytes, entry.loaded_at_s = 0, None
        if last[0] is not None:
            last[0].close()
        self._loads.free(last)

    def _forget(self, entry: Entry[R]) -> None:
        self._entries.pop(entry.key, None)
        entry.status, entry.leaving, entry.error = "UNAVAILABLE", False, None
        entry.settle()
        self._changed(entry)

    def _changed(self, entry: Entry[R]) -> None:
        if self._on_change is not None:
            self._loop.call_soon(self._on_change, entry.key, entry.state())

    def _arm(self) -> None:
        """Set the timer for whatever is due next."""
        times_s = [entry.due_s(keep_s=self._keep_s) for entry in self._entries.values()]
        due_s = min((each for each in times_s if each is not None), default=None)
        if due_s is not None:
            self._arm_at(due_s)

    def _arm_at(self, due_s: float) -> None:
        if self._closed or (self._timer is not None and self._timer_s <= due_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._loop.call_later(max(0.0, due_s - time.monotonic()), self._tend)

    def _tend(self) -> None:
        """Do what is due: unload what nobody used in a while, try wanted versions again."""
        self._timer = None
        now_s = time.monotonic()
        for entry in list(self._entries.values()):
            due_s = entry.due_s(keep_s=self._keep_s)
            if due_s is None or due_s > now_s:
                continue
            if entry.status != "FAILED":
                self._leave(entry)
            elif entry.wanted:
                self._start(entry, at_once=True)
            else:
                self._forget(entry)
        self._loads.pump()
        self._arm()


def _expire(waiter: asyncio.Future[R | KitError], key: VersionKey) -> None:
    if not waiter.done():
        waiter.set_exception(late(key))
