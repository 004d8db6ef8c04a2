"""What the pool notes about a version, and which versions go for another; it loads and closes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from kit.errors import KitError
from serve.models.failures import BudgetError
from serve.models.versions import State, Status
from serve.version_key import VersionKey


class Resource(Protocol):
    """What a pool holds."""

    @property
    def memory_bytes(self) -> int:
        """What it takes."""

    def close(self) -> None:
        """End it; called once, on the loop, when nobody uses it. A thread frees its memory afterwards."""


R = TypeVar("R", bound=Resource)


class Entry(Generic[R]):
    """One version the pool has something to do with.

    Attributes:
        key: Which one.
        wanted: Whether a release needs it.
        pinned: Whether an operator loaded it, so that time alone does not unload it.
        status: How it stands, but for ``leaving``.
        resource: What is loaded; None before and after.
        size_bytes: What it takes while it is loaded.
        users: How many leases are out; above 0 only with a resource.
        waiters: Who waits for its load; each gets a lease or the error.
        leaving: It goes with its last user, and nobody new gets it.
        gone: Who waits for that.
        idle_at_s: When its last user left, or its traffic, by ``time.monotonic``.
        loaded_at_s: Unix time since when it is loaded.
        error: What the last load failed of; None unless it failed.
        failures: Failed loads in a row.
        retry_at_s: Until when it stays failed, by ``time.monotonic``.
    """

    __slots__ = (
        *("error", "failures", "gone", "idle_at_s", "key", "leaving", "loaded_at_s", "pinned", "resource"),
        *("retry_at_s", "size_bytes", "status", "users", "waiters", "wanted"),
    )

    def __init__(self, key: VersionKey) -> None:
        self.key = key
        self.wanted = self.pinned = self.leaving = False
        self.status: Status = "UNAVAILABLE"
        self.resource: R | None = None
        self.size_bytes = self.users = self.failures = 0
        self.waiters: set[asyncio.Future[R | KitError]] = set()
        self.gone: set[asyncio.Future[None]] = set()
        self.idle_at_s = self.retry_at_s = 0.0
        self.loaded_at_s: float | None = None
        self.error: KitError | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and may be closed at once."""
        return self.resource is not None and not self.users and not self.wanted

    def due_s(self, *, keep_s: float) -> float | None:
        """Give when something happens to it by itself, by ``time.monotonic``; None for never."""
        if self.status == "FAILED":
            return self.retry_at_s if self.wanted else self.retry_at_s + keep_s
        return self.idle_at_s + keep_s if self.is_idle and not self.pinned else None

    def tell(self, outcome: R | KitError) -> int:
        """Give the outcome of its load to all who wait for it; returns how many still did."""
        waiting = [waiter for waiter in self.waiters if not waiter.done()]
        for waiter in waiting:
            waiter.set_result(outcome)
        self.waiters.clear()
        return len(waiting)

    def settle(self) -> None:
        """Wake who waits for its leaving."""
        for future in self.gone:
            if not future.done():
                future.set_result(None)
        self.gone.clear()

    def state(self) -> State:
        """Describe it."""
        reason = self.error.message if self.error is not None else "leaving" if self.leaving else ""
        status: Status = "UNAVAILABLE" if self.leaving else self.status
        return State(status, reason, self.wanted, self.size_bytes, self.users, self.loaded_at_s)


def room_for(entry: Entry[R], entries: Iterable[Entry[R]], *, max_bytes: int) -> Sequence[Entry[R]]:
    """Choose the versions that go for a loaded one: unwanted and unused ones, the longest unused first.

    For one that a release wants, unwanted versions in use go too, with their last user; until then the budget
    is exceeded.

    Args:
        entry: The version that comes, its size known.
        entries: All versions, with or without it.
        max_bytes: The budget.

    Raises:
        BudgetError: It does not fit even so.
    """
    others = [each for each in entries if each is not entry and each.resource is not None]
    over = entry.size_bytes + sum(each.size_bytes for each in others) - max_bytes
    idle = sorted((each for each in others if each.is_idle), key=lambda each: each.idle_at_s)
    used = [each for each in others if each.users and not each.wanted] if entry.wanted else []
    chosen: list[Entry[R]] = []
    # Those that leave anyway come first: what they free needs nobody else.
    for each in (*(each for each in used if each.leaving), *idle, *used):
        if over > 0 and each not in chosen:
            over -= each.size_bytes
            chosen.append(each)
    if over <= 0:
        return chosen
    kept = sum(each.size_bytes for each in others if each not in idle and each not in used)
    whose = "that releases need" if entry.wanted else "that are used or needed"
    raise BudgetError(
        f"{entry.key} takes {entry.size_bytes / 1e6:.1f} MB and does not fit: the versions {whose} take "
        f"{kept / 1e6:.1f} MB of the {max_bytes / 1e6:.1f} MB a replica has for models",
        hint="raise memory_mb, or serve fewer versions at once",
    )
