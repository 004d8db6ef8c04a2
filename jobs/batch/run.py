"""The loop of a batch run: shards to actors, records back, until all are done or it has to stop.

What a shard is, what is done with it and where it is written others know. Interrupted once, it
lets the shards in flight finish; interrupted twice, it stops at once.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from jobs.batch.actor import AT_A_TIME, Ready
from jobs.batch.ledger import Commit
from jobs.batch.plan import Shard
from jobs.batch.pool import Blame, Member, Pool
from jobs.cluster import translated
from kit.errors import ConflictError, DiskFullError, KitError, UnavailableError

_log = logging.getLogger("kit")
_WAIT_S = 0.5
_MAX_DEATHS = 3
_MAX_REFUSALS = 5  # of a storage, over one shard
_FIRST_PAUSE_S = 1.0
_STOPPERS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Run:
    """A run that is going on.

    Attributes:
        pool: Who works.
        shards: What is left to do, in order.
        on_start: Called with the first actor that is ready and the first shard; gives the rows per call
            of the engine for all.
        on_commit: Called with each record; may raise to end the run.
        on_tick: Called about twice a second.
        lost: Says whether the output folder was taken away from this driver.
    """

    pool: Pool
    shards: Sequence[Shard]
    on_start: Callable[[Member, Shard], int]
    on_commit: Callable[[Commit], None]
    on_tick: Callable[[Pool], None]
    lost: Callable[[], bool]
    queue: deque[Shard] = field(default_factory=deque)
    later: list[tuple[float, Shard]] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    flying: dict[Any, tuple[Member, Shard]] = field(default_factory=dict)
    batch_rows: int | None = None

    def __post_init__(self) -> None:
        self.queue.extend(self.shards)
        places = {shard.name: shard.place for shard in self.shards}
        self.blame = Blame(most=_MAX_DEATHS, place_of=places.__getitem__, alive=self.pool.has)

    def go(self) -> None:
        """Do all shards.

        Raises:
            KeyboardInterrupt: It was interrupted; what was in flight is done.
            KitError: What an actor raised, or the outside world does not go along.
        """
        with _interrupts() as interrupted:
            while self.queue or self.later or self.flying:
                if self.lost():
                    raise ConflictError(
                        "another run took the output folder over, because this one could not renew its claim",
                        hint="wait until the other has ended, then run the same command again",
                    )
                if interrupted.is_set() and not self.flying:
                    raise KeyboardInterrupt
                self._step(stopping=interrupted.is_set())
                self.on_tick(self.pool)

    def _step(self, *, stopping: bool) -> None:
        import ray

        now_s = time.monotonic()
        self.queue.extend(shard for due_s, shard in self.later if due_s <= now_s)
        self.later = [each for each in self.later if each[0] > now_s]
        if not stopping:
            self.pool.adjust(shards_left=len(self.queue) + len(self.later) + len(self.flying))
            self._give()
        starting = {each.starting: each for each in self.pool.members if each.ready is None}
        waited = [*self.flying, *(() if stopping else starting)]
        if not waited:
            threading.Event().wait(_WAIT_S)
            return
        for ref in ray.wait(waited, num_returns=1, timeout=_WAIT_S)[0]:
            if ref in starting:
                self._started(starting[ref])
            else:
                self._ended(ref)

    def _give(self) -> None:
        """Hand shards out, to every actor one before any gets two; a suspected shard runs alone."""
        while self.queue and self.batch_rows is not None:
            shard = self.queue[0]
            most = 1 if self.blame.suspected(shard.name) else AT_A_TIME
            member = self.pool.free(most=most, closed=self.blame.suspected)
            if member is None:
                return
            self.queue.popleft()
            member.shards.add(shard.name)
            self.flying[member.handle.run.remote(shard, self.batch_rows)] = member, shard

    def _started(self, member: Member) -> None:
        import ray

        try:
            with translated():
                ready: Ready = ray.get(member.starting)
                self.pool.started(member, ready)
                if self.batch_rows is None and self.queue:
                    self.batch_rows = self.on_start(member, self.queue[0])
        except _deaths():
            self._died(member)

    def _ended(self, ref: Any) -> None:
        import ray

        member, shard = self.flying.pop(ref)
        member.shards.discard(shard.name)
        try:
            with translated():
                commit: Commit = ray.get(ref)
        except _deaths():
            self.queue.appendleft(shard)
            if not self._died(member) and member.ready is not None:
                self.blame.add(shard.name, node=member.ready.node)
        except DiskFullError:
            raise
        except UnavailableError as error:
            self._put_off(shard, error)
        else:
            self.on_commit(commit)

    def _put_off(self, shard: Shard, error: KitError) -> None:
        """Try a shard again after a while; give up when its storage refuses time and again."""
        count = self.refusals[shard.name] = self.refusals.get(shard.name, 0) + 1
        if count > _MAX_REFUSALS:
            raise error
        pause_s = _FIRST_PAUSE_S * 2 ** (count - 1)
        _log.info("%s again in %g s: %s", shard.name, pause_s, error.message)
        self.later.append((time.monotonic() + pause_s, shard))

    def _died(self, member: Member) -> bool:
        """Let an actor that died be replaced; says whether that was nobody's fault."""
        if member not in self.pool.members:  # said already, over another of its shards
            return True
        innocent = self.pool.lost(member)
        _log.info("a worker %s; its shards are given to others", "lost its node" if innocent else "died")
        return innocent


def _deaths() -> tuple[type[Exception], ...]:
    from ray import exceptions

    return exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.WorkerCrashedError


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Have the first signal set an event, and the second one interrupt; on the main thread alone."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        _log.warning("interrupted: the shards in flight are finished first; once more stops at once")

    before = {number: signal.signal(number, hear) for number in _STOPPERS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
