"""How often a caller may ask for a model: a sliding window of two counters.

The window before counts by the share of it that is still less than a window ago, so a counter takes the same
room for ten requests as for ten million; at worst, near a window's edge, twice the limit fits into one.
Replicas count alone, or together in Redis, through ``limits``, whose Lua script does the same arithmetic. In
memory it is written here: the memory of ``limits`` takes 6 to 8 us per request, starts a thread every 10 ms
and follows the wall clock; this takes under 2 us and a clock that nobody sets.

While Redis does not answer, each replica counts alone: callers may then ask for as much of each of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kit.inference.errors import RateLimitedError
from kit.settings.serving import RateSettings
from serve.guards.callers import Caller

_logger = logging.getLogger("ray.serve")
_WINDOWS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_MAX_COUNTED = 100_000
_TIMEOUT_S = 0.25
_PAUSE_S = 0.5
_MAX_CONNECTIONS = 16


class Rate(NamedTuple):
    """So many requests in so many seconds."""

    requests: int
    window_s: int


def parse_rate(text: str) -> Rate:
    """Read ``100/second``; the settings have checked its form."""
    requests, _, window = text.partition("/")
    return Rate(int(requests), _WINDOWS_S[window])


def open_rates(settings: RateSettings, *, space: str) -> RateLimiter | None:
    """Make what counts an endpoint's requests; None when they are not limited.

    Args:
        settings: The limit, and where it is counted.
        space: Keeps projects apart that share a Redis.
    """
    if settings.requests is None:
        return None
    counts = MemoryCounts(parse_rate(settings.requests))
    return RateLimiter(counts, redis=settings.redis, space=space)


def wait_s(rate: Rate, *, before: int, before_left_s: float, current: int, current_left_s: float) -> float:
    """Say when one more request fits, if nobody asks until then.

    Args:
        rate: The limit.
        before: Requests of the window before.
        before_left_s: How long that window still counts; its share is this over the window.
        current: Requests of the current window.
        current_left_s: How long the current window lasts.

    Returns:
        Seconds, 0 when it fits now.
    """
    if rate.requests == 0:
        return float(rate.window_s)
    room = rate.requests - current
    if room > 0:
        # It fits while before * left / window < room.
        return max(0.0, before_left_s - room * rate.window_s / before) if before else 0.0
    # Then the current window is the one before, and counts in full at first.
    return current_left_s + max(0.0, rate.window_s * (1 - rate.requests / current))


class MemoryCounts:
    """Counts in this process, of at most 100,000 callers: beyond, the one not seen for longest is forgotten.

    Args:
        rate: The limit of each.
        clock: Seconds that nobody sets.
    """

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._counts: OrderedDict[Any, list[float]] = OrderedDict()  # start, before, current

    def hit(self, key: Any) -> float:
        """Count one request.

        Returns:
            0 when it fits; else it is not counted, and this is the number of seconds until it would fit.
        """
        now_s = self._clock()
        limit, window_s = self.rate
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = [now_s, 0.0, 0.0]
            if len(self._counts) > _MAX_COUNTED:
                self._counts.popitem(last=False)
        else:
            self._counts.move_to_end(key)
        gone_s = now_s - count[0]
        if gone_s >= window_s:
            if gone_s >= 2 * window_s:
                count[:] = now_s, 0.0, 0.0
                gone_s = 0.0
            else:
                count[:] = count[0] + window_s, count[2], 0.0
                gone_s -= window_s
        before, current = count[1], count[2]
        if before * (window_s - gone_s) / window_s + current < limit:
            count[2] = current + 1.0
            return 0.0
        left_s = window_s - gone_s
        waits_s = wait_s(
            self.rate, before=int(before), before_left_s=left_s, current=int(current), current_left_s=left_s
        )
        return max(waits_s, 1e-6)


class RateLimiter:
    """What counts an endpoint's requests, per caller and model.

    Args:
        counts: In this process.
        redis: Where all replicas count together; None counts here alone.
        space: See ``open_rates``.
    """

    def __init__(self, counts: MemoryCounts, *, redis: str | None, space: str) -> None:
        self._counts = counts
        self._storage: Any = None if redis is None else _storage(redis)
        self._place = urlsplit(redis or "").hostname
        self._space = space
        self._turns = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._returning: asyncio.Task[None] | None = None

    def check(self, caller: Caller, model: str) -> Awaitable[None] | None:
        """Count one request.

        Returns:
            None when that is done; with Redis something to await, which raises the same.

        Raises:
            RateLimitedError: It is one too many; ``retry_after_s`` says when it would not be.
        """
        if self._storage is None or self._returning is not None:
            self._count_here(caller, model)
            return None
        return self._count_there(caller, model)

    async def close(self) -> None:
        """Let go of Redis."""
        if self._returning is not None:
            self._returning.cancel()
        if self._storage is not None:
            await self._storage.bridge.storage.connection_pool.disconnect()

    def _count_here(self, caller: Caller, model: str) -> None:
        waits_s = self._counts.hit((caller.subject, model, caller.kind))
        if waits_s:
            raise self._overloaded(waits_s)

    async def _count_there(self, caller: Caller, model: str) -> None:
        # Hashed, so that whose tokens were used cannot be read off the counters.
        words = f"{self._space}\0{caller.kind}\0{caller.subject}\0{model}".encode()
        key = f"kit/rates/{blake2b(words, digest_size=16).hexdigest()}"
        waits_s = None
        try:
            async with self._turns:
                if self._returning is None:  # nobody before this one found Redis dead
                    async with asyncio.timeout(_TIMEOUT_S):
                        waits_s = await self._hit_there(key)
        except (OSError, *self._storage.bridge.base_exceptions) as error:
            self._count_alone(error)
        if waits_s is None:
            self._count_here(caller, model)
        elif waits_s:
            raise self._overloaded(waits_s)

    async def _hit_there(self, key: str) -> float:
        """Count one request in Redis; return what ``MemoryCounts.hit`` returns."""
        rate = self._counts.rate
        if await self._storage.acquire_sliding_window_entry(key, rate.requests, rate.window_s):
            return 0.0
        before, before_left_s, current, current_left_s = await self._storage.get_sliding_window(
            key, rate.window_s
        )
        waits_s = wait_s(
            rate,
            before=before,
            before_left_s=before_left_s,
            current=current,
            # Redis keeps the current counter for a window more, as the one before.
            current_left_s=max(0.0, current_left_s - rate.window_s),
        )
        return waits_s + 0.001  # Redis counts whole milliseconds

    def _overloaded(self, waits_s: float) -> RateLimitedError:
        rate = self._counts.rate
        every = f"{rate.window_s} s" if rate.window_s > 1 else "second"
        error = RateLimitedError(
            f"more than {rate.requests} requests per {every} to one model", hint=f"wait for {waits_s:.3f} s"
        )
        error.retry_after_s = waits_s
        return error

    def _count_alone(self, error: Exception) -> None:
        """Count in this process until Redis answers; said once, however many requests find out."""
        if self._returning is not None:
            return
        _logger.warning(
            "Redis at %s does not count requests (%s); this replica counts alone",
            self._place,
            type(error).__name__,
        )
        self._returning = asyncio.get_running_loop().create_task(self._come_back())

    async def _come_back(self) -> None:
        while True:
            await asyncio.sleep(_PAUSE_S)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    if await self._storage.check():
                        break
            except TimeoutError:
                continue
        _logger.warning("Redis at %s counts requests again", self._place)
        self._returning = None


def _storage(redis: str) -> Any:
    """Make what counts in Redis; connects with the first request."""
    from limits.aio.storage import RedisStorage
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return RedisStorage(
        f"async+{redis}",
        implementation="redispy",
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type] # passed on to redis as it is
    )
