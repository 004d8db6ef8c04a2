"""A replica's view of the releases: it sees new ones, brings them in force when they are ready, and says so.

A thread asks for the file after the newest one, which is one failed open; everything that decides runs on
the event loop. A release comes in force in one step, after whoever loads versions has prepared it. One that
cannot be prepared leaves the old one in force and is acknowledged as failed, with the reason; a newer one
takes the place of one that is still being prepared. It does not know how a version is loaded or what a
request is.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import KitError, UnavailableError, VerificationError
from serve.releases import acks
from serve.releases.acks import Ack, EndpointAck
from serve.releases.aliases import AliasFollower
from serve.releases.store import ReleaseStore
from serve.releases.table import Release

_logger = logging.getLogger("kit")
_POLL_S = 0.075
_ALIAS_POLL_S = 0.25
_RETRY_S = 15.0
_MAX_BACK = 16  # releases a replica that has none in force tries before it gives up
_GRACE_S = 1.0  # a disk without hard links shows a file before it is whole
_MAX_REASON = 300


def _nothing(endpoint: str) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Hooks:
    """What the follower asks of the replica; all of it is called on the event loop.

    Attributes:
        prepare: Returns when every version the release needs is loaded, raises when one cannot be. It is
            cancelled when a newer release comes; what it has begun may go on.
        on_release: Puts a prepared release in force; must not wait.
        states: Tells the state of an endpoint's versions for the replica's file, by version number.
        shadow: Tells the counters of an endpoint's shadow for the replica's file.
    """

    prepare: Callable[[Release], Awaitable[None]]
    on_release: Callable[[Release], None]
    states: Callable[[str], Mapping[str, Any]] = _nothing
    shadow: Callable[[str], Mapping[str, Any]] = _nothing


@dataclass(eq=False)
class _Followed:
    """One endpoint, on the event loop."""

    endpoint: str
    in_force: Release | None = None
    since_ns: int = 0
    loading: int = 0
    failed: int = 0
    reason: str = ""
    task: asyncio.Task[None] | None = None
    retry: asyncio.TimerHandle | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Give up what is being prepared, and the next try."""
        if self.task is not None:
            self.task.cancel()
        if self.retry is not None:
            self.retry.cancel()


class Follower:
    """Follows the releases of a replica's endpoints.

    Args:
        store: Where releases are kept.
        hooks: What it asks of the replica.
        folder: ``<state>/serve/replicas``, where replicas say what they have in force.
        replica: This replica's name, made of what a file name may have.
        aliases: Writes releases when an alias moves; None follows none.
    """

    def __init__(
        self,
        store: ReleaseStore,
        *,
        hooks: Hooks,
        folder: Path,
        replica: str,
        aliases: AliasFollower | None = None,
    ) -> None:
        self._store = store
        self._hooks = hooks
        self._folder = folder
        self._replica = replica
        self._aliases = aliases
        self._followed: dict[str, _Followed] = {}
        self._next: dict[str, int] = {}  # what the thread asks for
        self._newest: dict[str, Release] = {}
        self._damaged: dict[str, float] = {}  # endpoint to when the thread first met a damaged file
        self._acks: collections.deque[Ack] = collections.deque(maxlen=1)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._beating: asyncio.Task[None] | None = None

    async def start(self, endpoints: Iterable[str]) -> None:
        """Begin to follow; returns when every endpoint has a release in force or none can be had."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(acks.forget_dead, self._folder)
        self._threads = [threading.Thread(target=self._poll, name="releases", daemon=True)]
        if self._aliases is not None:
            self._threads.append(threading.Thread(target=self._look, name="aliases", daemon=True))
        for thread in self._threads:
            thread.start()
        self._beating = self._loop.create_task(self._beat())
        await asyncio.gather(*(self.add(each) for each in endpoints))

    async def stop(self) -> None:
        """End the threads, give up what is being prepared and remove the replica's file."""
        self._stopping.set()
        self._wake.set()
        if self._beating is not None:
            self._beating.cancel()
        for followed in self._followed.values():
            followed.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        acks.remove_ack(self._folder, replica=self._replica)

    async def add(self, endpoint: str) -> Release | None:
        """Follow one more endpoint; returns what came in force, None when nothing could.

        Where the newest release cannot be prepared, the one before is tried and so on: that is what the other
        replicas still have in force.

        Raises:
            InputError: The name is not one an endpoint may have.
            UnavailableError: The releases cannot be read.
        """
        last = await asyncio.to_thread(self._store.last, endpoint)
        head = await asyncio.to_thread(self._store.head, endpoint)
        if endpoint in self._followed:
            await self._followed[endpoint].settled.wait()
            return self._followed[endpoint].in_force
        self._followed[endpoint] = followed = _Followed(endpoint)
        if head is not None:
            self._newest[endpoint] = head
        if head is None or head.sequence < last:
            self._failed(followed, sequence=last, reason="the file is damaged" if last else "")
        self._next[endpoint] = last + 1
        if head is None:
            followed.settled.set()
        else:
            self._bring(followed, head)
        await followed.settled.wait()
        return followed.in_force

    def remove(self, endpoint: str) -> None:
        """Follow an endpoint no longer."""
        for known in (self._next, self._newest, self._damaged):
            known.pop(endpoint, None)
        followed = self._followed.pop(endpoint, None)
        if followed is not None:
            followed.stop()
            followed.settled.set()
            self._tell()

    def in_force(self, endpoint: str) -> Release | None:
        """Give the release in force, None where there is none."""
        followed = self._followed.get(endpoint)
        return followed.in_force if followed else None

    def failure(self, endpoint: str) -> tuple[int, str] | None:
        """Give the number and the reason of the newest release that did not come in force, if it is newer."""
        followed = self._followed.get(endpoint)
        return (followed.failed, followed.reason) if followed and followed.failed else None

    def _bring(self, followed: _Followed, release: Release) -> None:
        """Prepare a release in the place of whatever is being prepared."""
        followed.stop()
        followed.loading = release.sequence
        followed.task = self._loop.create_task(self._prepare(followed, release))
        self._tell()

    async def _prepare(self, followed: _Followed, newest: Release) -> None:
        release: Release | None = newest
        for sequence in range(newest.sequence, max(0, newest.sequence - _MAX_BACK), -1):
            if release is None:
                release = await self._read(followed.endpoint, sequence=sequence)
            if release is not None and await self._try(followed, release, newest=newest):
                break
            if followed.in_force is not None:  # which stays
                break
            release = None
        followed.loading = 0
        followed.settled.set()
        self._tell()

    async def _try(self, followed: _Followed, release: Release, *, newest: Release) -> bool:
        """Prepare one release and put it in force; False when it cannot be."""
        began_s = time.monotonic()
        try:
            await self._hooks.prepare(release)
            if followed.task is not asyncio.current_task():  # a newer one came, and prepare hid that
                raise asyncio.CancelledError
            self._hooks.on_release(release)
        except Exception as error:  # whatever a version's load raises, the old release stays in force
            said = error.message if isinstance(error, KitError) else f"{type(error).__name__}: {error}"
            self._failed(followed, sequence=release.sequence, reason=said)
            if release is newest and isinstance(error, UnavailableError):  # a disk or S3 may come back
                followed.retry = self._loop.call_later(_RETRY_S, self._bring, followed, release)
            return False
        followed.in_force, followed.since_ns = release, time.time_ns()
        if followed.failed <= release.sequence:
            followed.failed, followed.reason = 0, ""
        _logger.info(
            "%s: release %d in force after %.3f s",
            release.endpoint,
            release.sequence,
            time.monotonic() - began_s,
        )
        return True

    async def _read(self, endpoint: str, *, sequence: int) -> Release | None:
        with contextlib.suppress(UnavailableError, VerificationError):
            return await asyncio.to_thread(self._store.look, endpoint, sequence=sequence)
        return None

    def _failed(self, followed: _Followed, *, sequence: int, reason: str) -> None:
        if sequence >= followed.failed and sequence:
            followed.failed, followed.reason = sequence, reason[:_MAX_REASON]
            _logger.warning("%s: release %d is not in force: %s", followed.endpoint, sequence, reason)
            self._tell()

    def _seen(self, release: Release) -> None:
        """Take a newer release from the thread."""
        followed = self._followed.get(release.endpoint)
        if followed is not None:
            self._bring(followed, release)

    def _met_damage(self, endpoint: str, sequence: int, reason: str) -> None:
        followed = self._followed.get(endpoint)
        if followed is not None:
            self._failed(followed, sequence=sequence, reason=reason)

    async def _beat(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(acks.BEAT_S)

    def _tell(self) -> None:
        """Let the thread write what is the case now."""
        endpoints = {
            name: EndpointAck(
                in_force=each.in_force.sequence if each.in_force else 0,
                since_ns=each.since_ns,
                loading=each.loading,
                failed=each.failed,
                reason=each.reason,
                states=dict(self._hooks.states(name)),
                shadow=dict(self._hooks.shadow(name)),
            )
            for name, each in self._followed.items()
        }
        self._acks.append(Ack(self._replica, socket.gethostname(), os.getpid(), time.time_ns(), endpoints))
        self._wake.set()

    def _poll(self) -> None:
        """Look for releases and write what the replica says, until stopped; the thread's whole life."""
        while not self._stopping.is_set():
            for endpoint in list(self._next):
                self._poll_endpoint(endpoint)
            with contextlib.suppress(IndexError):
                acks.try_write(self._folder, self._acks.popleft())
            self._wake.wait(_POLL_S)
            self._wake.clear()

    def _poll_endpoint(self, endpoint: str) -> None:
        """Hand the newest new release to the event loop, and what is wrong with those that do not hold."""
        newest: Release | None = None
        sequence = self._next.get(endpoint, 0)
        while sequence:
            try:
                release = self._store.look(endpoint, sequence=sequence)
            except UnavailableError:
                break  # asked again in a moment
            except VerificationError as error:
                if time.monotonic() - self._damaged.setdefault(endpoint, time.monotonic()) < _GRACE_S:
                    break
                self._hand(self._met_damage, endpoint, sequence, error.message)
            else:
                if release is None:
                    break
                newest = release
            self._damaged.pop(endpoint, None)
            sequence += 1
        if endpoint in self._next:  # it may have been removed meanwhile
            self._next[endpoint] = sequence
        if newest is not None:
            self._newest[endpoint] = newest
            self._hand(self._seen, newest)

    def _look(self) -> None:
        """Look where aliases stand, until stopped; a thread of its own, since the registry may be locked."""
        assert self._aliases is not None
        while not self._stopping.wait(_ALIAS_POLL_S):
            self._aliases.look(dict(self._newest))

    def _hand(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the thread did
            self._loop.call_soon_threadsafe(call, *arguments)
