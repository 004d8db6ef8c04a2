"""Answers all replicas share, in a Redis that may be slow, dead or hostile.

Nothing here fails a request: whatever goes wrong is a miss, after at most ``timeout_s``, and Redis is then
left alone for a while. Connections are made in the background.

What a hostile Redis, or whoever can write to it, can do: forget answers, give one that has expired while its
version is served, and read the answers. It cannot make one up, nor give one for another question: each
carries a keyed hash over its question's key and itself, checked before anything is read from it. The same
check catches a reply that belongs to another request of this client. Redis does not learn the questions:
their names are keyed hashes. Use ``rediss://`` where the network must not read the answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from kit.errors import InputError, MissingDependencyError, SettingsError, install_line
from kit.tensors import Tensors
from serve.caching.packing import pack, unpack

if TYPE_CHECKING:
    from redis.asyncio import Redis

_CONNECTIONS = 8
_CONNECT_S = 1.0
_PAUSE_S = 1.0
_MAC_BYTES = 32
_SECRET_BYTES = 16
_MAX_VALUE_BYTES = 1 << 20


class RedisCache:
    """A cache in Redis. Belongs to one event loop; connects with the first request.

    Args:
        url: ``redis://`` or ``rediss://`` address.
        secret: What all replicas know and Redis does not, at least 16 random bytes.
        ttl_s: How long an answer is kept.
        timeout_s: Longest wait for Redis.

    Attributes:
        n_errors: Times that Redis did not answer, or not what was put there.
        n_skipped: Times that it was not asked: not connected, in pause, or too much asked at once.

    Raises:
        MissingDependencyError: The redis package is not installed.
        SettingsError: The address or the secret cannot be used.
    """

    def __init__(self, url: str, *, secret: bytes, ttl_s: float, timeout_s: float = 0.02) -> None:
        if len(secret) < _SECRET_BYTES:
            raise SettingsError(f"the cache's secret has {len(secret)} bytes; it needs {_SECRET_BYTES}")
        self._redis = _client(url)
        self._secret = hashlib.blake2b(secret, digest_size=32, person=b"kit cache").digest()
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._timeout_s = timeout_s
        self._connected = False
        self._again_s = 0.0
        self._n_in_work = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.n_errors = 0
        self.n_skipped = 0

    async def get(self, key: bytes) -> Tensors | None:
        """Give the answer of this key; None when there is none, or Redis has none to give in time."""
        if not self._may_ask():
            return None
        self._n_in_work += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                value = await self._redis.get(self._name(key))
            return None if value is None else self._opened(key, value)
        except InputError:
            self.n_errors += 1  # somebody else's value; Redis itself is well
            return None
        except Exception:  # a foreign server may answer anything; each of it is a miss
            self._fail()
            return None
        finally:
            self._n_in_work -= 1

    def put(self, key: bytes, tensors: Tensors) -> None:
        """Hand an answer to Redis, without waiting for it."""
        if not self._may_ask():
            return
        try:
            packed = pack(tensors)
        except InputError:
            self.n_skipped += 1
            return
        if len(packed) > _MAX_VALUE_BYTES:
            self.n_skipped += 1
            return
        self._n_in_work += 1
        self._start(self._put(key, self._mac(key, packed) + packed))

    async def close(self) -> None:
        """End what is in work and close the connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    async def _put(self, key: bytes, value: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.set(self._name(key), value, px=self._ttl_ms)
        except Exception:  # as in get
            self._fail()
        finally:
            self._n_in_work -= 1

    def _may_ask(self) -> bool:
        """Say whether Redis is asked now; not connected, it is called instead."""
        if self._connected and self._n_in_work < _CONNECTIONS:
            return True
        self.n_skipped += 1
        if not self._connected and time.monotonic() >= self._again_s:
            self._again_s = time.monotonic() + _CONNECT_S + _PAUSE_S
            self._start(self._connect())
        return False

    async def _connect(self) -> None:
        """Open the connections ahead: with TLS each takes longer than a request may wait."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.gather(*[self._redis.ping() for _ in range(_CONNECTIONS)])
        except Exception:  # as in get
            self._fail()
        else:
            self._connected = True

    def _fail(self) -> None:
        self.n_errors += 1
        self._connected = False
        self._again_s = time.monotonic() + _PAUSE_S

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _name(self, key: bytes) -> bytes:
        return b"kit:answer:" + hashlib.blake2b(key, digest_size=24, key=self._secret).hexdigest().encode()

    def _mac(self, key: bytes, packed: bytes) -> bytes:
        mac = hashlib.blake2b(key, digest_size=_MAC_BYTES, key=self._secret, person=b"kit answer")
        mac.update(packed)
        return mac.digest()

    def _opened(self, key: bytes, value: object) -> Tensors:
        """Check a value and read it.

        Raises:
            InputError: It is not what a replica put there for this key.
        """
        if not isinstance(value, bytes) or not _MAC_BYTES < len(value) <= _MAX_VALUE_BYTES + _MAC_BYTES:
            raise InputError("the shared cache holds something else under an answer's name")
        packed = value[_MAC_BYTES:]
        if not hmac.compare_digest(value[:_MAC_BYTES], self._mac(key, packed)):
            raise InputError("an answer in the shared cache is not one a replica put there")
        return unpack(packed)


def _client(url: str) -> Redis:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise MissingDependencyError(
            "a shared cache needs redis, which is not installed", hint=install_line("redis")
        ) from error
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_S,
            max_connections=2 * _CONNECTIONS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError as error:  # its message holds the address, which may hold a password
        raise SettingsError(
            "the address of the shared cache cannot be read", hint="write redis://HOST:PORT/0"
        ) from error
