"""The actors of a batch run: they come and go, and no shard waits for one that may not come back.

Ray restarts nothing here. An actor that dies is replaced by another one, wherever there is room, and
its shards are given to whoever is there. An actor on a node that is about to go gets no new
shard. Knows nothing of ledgers and tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs.batch.actor import AT_A_TIME, Ready, ShardActor, Work
from jobs.batch.cost import Stay
from jobs.spot import MARKET_LABEL, draining_nodes, market_of
from kit.errors import UnavailableError

_log = logging.getLogger("kit")
_LOOK_S = 1.0
_MAX_FAILED_STARTS = 3
_FIRST_PAUSE_S = 2.0


@dataclass(eq=False)
class Member:
    """One actor.

    Attributes:
        handle: Ray's.
        starting: Reference to its ``prepare``.
        ready: What it answered; None while it starts.
        shards: Names of the shards it works on.
        leaving: Whether its node is about to go.
        since_s: When it was ready, in seconds since 1970.
        attempt: How many starts in a row had failed when it was asked for.
        nodes: The nodes that were there then.
    """

    handle: Any
    starting: Any
    ready: Ready | None = None
    shards: set[str] = field(default_factory=set)
    leaving: bool = False
    since_s: float = 0.0
    attempt: int = 0
    nodes: frozenset[str] = frozenset()


class Pool:
    """Keeps as many actors as the cluster and the work allow, at least one.

    Args:
        work: What each of them does.
        workers: How many; 0 is one for the CPUs of each that are there now.
        gpus: GPUs each of them takes.
    """

    def __init__(self, work: Work, *, workers: int, gpus: float = 0) -> None:
        self._work, self._workers, self._gpus = work, workers, gpus
        self._threads = max(work.threads, 1)
        self.members: list[Member] = []
        self.stays: list[Stay] = []
        self.restarts = 0
        self._failed_starts = 0
        self._start_again_s = float("-inf")
        self._looked_s = float("-inf")
        self._alive: dict[str, dict[str, Any]] = {}

    def adjust(self, *, shards_left: int) -> None:
        """Look at the nodes, and ask for actors that are missing; at most once a second.

        Args:
            shards_left: Shards nobody has finished.
        """
        if time.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = time.monotonic()
        self._look()
        for member in [each for each in self.members if each.leaving and not each.shards]:
            self.dismiss(member)
        staying = sum(not each.leaving for each in self.members)
        wanted = max(1, min(self._workers or self._room(), shards_left))
        if time.monotonic() >= self._start_again_s:
            self.members.extend(self._start() for _ in range(wanted - staying))
        starting = [each for each in self.members if each.ready is None]
        for member in starting[: max(staying - wanted, 0)]:  # waits for room that no shard needs any more
            self.dismiss(member)

    def free(self, *, most: int, closed: Callable[[str], bool]) -> Member | None:
        """Give the actor with the fewest shards that may take another one.

        Args:
            most: Shards it may have then.
            closed: Says of a shard whether nothing may run beside it.
        """
        able = [
            each
            for each in self.members
            if each.ready
            and not each.leaving
            and len(each.shards) < most
            and not any(map(closed, each.shards))
        ]
        return min(able, key=lambda each: len(each.shards), default=None)

    def started(self, member: Member, ready: Ready) -> None:
        """Take note that an actor has loaded its model."""
        member.ready, member.since_s = ready, time.time()
        self._failed_starts = 0

    def lost(self, member: Member) -> bool:
        """Take note that an actor died.

        Returns:
            Whether its node went with it, which is nobody's fault.

        Raises:
            UnavailableError: Actors die again and again before they are ready.
        """
        self._look()
        gone = member.ready is not None and member.ready.node not in self._alive
        self.restarts += 1
        if member.ready is None:
            self._start_failed(member)
        self.dismiss(member)
        self._looked_s = float("-inf")
        return gone or member.leaving

    def dismiss(self, member: Member) -> None:
        """Let an actor go."""
        import ray

        if member in self.members:
            self.members.remove(member)
            if member.ready is not None:
                ready = member.ready
                self.stays.append(Stay(ready.node, ready.market, member.since_s, time.time()))
            ray.kill(member.handle)

    def close(self) -> None:
        """Let all actors go."""
        for member in list(self.members):
            self.dismiss(member)

    def has(self, node: str) -> bool:
        """Say whether a node was there when the pool last looked."""
        return node in self._alive

    @property
    def held(self) -> set[str]:
        """Ids of the nodes that hold actors."""
        return {each.ready.node for each in list(self.members) if each.ready is not None}

    @property
    def nodes(self) -> dict[str, int]:
        """Market to how many nodes of it hold actors."""
        held = {each.ready.node: each.ready.market for each in self.members if each.ready}
        return {market: list(held.values()).count(market) for market in sorted(set(held.values()))}

    def _look(self) -> None:
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's gap
        self._alive = {node["NodeID"]: node for node in nodes if node["Alive"]}
        draining = draining_nodes()
        for member in self.members:
            if member.ready is not None and not member.leaving and member.ready.node in draining:
                member.leaving = True
                _log.info("node %s is about to go; its worker gets no new shard", member.ready.node[:8])

    def _start_failed(self, member: Member) -> None:
        """Count a death before the model was loaded, unless a node took the actor with it.

        Ray learns some seconds after its workers' deaths that a node is gone, and gives it actors until then.
        So actors asked for together count once, and there is a pause before others are asked for.
        """
        if member.attempt != self._failed_starts or not member.nodes <= self._alive.keys():
            return
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise UnavailableError(
                f"workers died {_MAX_FAILED_STARTS} times in a row while they loaded the model",
                hint="give them more memory, or set workers to fewer",
            )
        self._start_again_s = time.monotonic() + _FIRST_PAUSE_S * 2 ** (self._failed_starts - 1)

    def _room(self) -> int:
        resource, each = ("GPU", self._gpus) if self._gpus else ("CPU", float(self._threads))
        total = sum(node["Resources"].get(resource, 0.0) for node in self._alive.values())
        return int(total // each)

    def _start(self) -> Member:
        import ray

        options: dict[str, Any] = {"num_cpus": self._threads, "max_restarts": 0, "max_concurrency": AT_A_TIME}
        if self._gpus:
            options["num_gpus"] = self._gpus
        if any(market_of(node) != "local" for node in self._alive.values()):
            options |= {
                "label_selector": {MARKET_LABEL: "spot"},
                "fallback_strategy": [{"label_selector": {MARKET_LABEL: "on-demand"}}],
            }
        actor: Any = ray.remote(ShardActor).options(**options)
        handle = actor.remote(self._work)
        nodes = frozenset(self._alive)
        return Member(handle, handle.prepare.remote(), attempt=self._failed_starts, nodes=nodes)


class Blame:
    """Counts over which shards workers died, so that one that kills them is named, not tried for ever.

    A worker whose node goes dies before Ray knows of the node, so a death counts only as long as its
    node is there.

    Args:
        most: Deaths over one shard that end the run.
        place_of: Shard's name to where its rows are, for the message.
        alive: Says of a node whether it is there.
    """

    def __init__(self, *, most: int, place_of: Callable[[str], str], alive: Callable[[str], bool]) -> None:
        self._most, self._place_of, self._alive = most, place_of, alive
        self._nodes: dict[str, list[str]] = {}

    def suspected(self, shard: str) -> bool:
        """Say whether a worker died over a shard; it runs alone then, to tell whether it was that one."""
        return bool(self._nodes.get(shard))

    def add(self, shard: str, *, node: str) -> None:
        """Take note that a worker died over a shard.

        Args:
            shard: Its name.
            node: Where the worker was.

        Raises:
            UnavailableError: It was one too many.
        """
        deaths = [each for each in [*self._nodes.get(shard, ()), node] if self._alive(each)]
        self._nodes[shard] = deaths
        if len(deaths) >= self._most:
            raise UnavailableError(
                f"workers died {self._most} times over {shard} ({self._place_of(shard)}); it may have run "
                "out of memory",
                hint="lower batch_rows, shard_rows or workers, then run the same command again: it resumes",
            )
