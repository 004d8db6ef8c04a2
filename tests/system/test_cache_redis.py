"""The shared cache against a real Redis that stalls, dies, returns and lies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kit.errors import SettingsError
from kit.tensors import Tensors
from serve.caching import MemoryCache, RedisCache, ResponseCache

redis = pytest.importorskip("redis", reason="pip install 'batch-edge-kit[redis]'")
SERVER = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="apt-get install redis-server")

SECRET = b"a secret of all replicas"
KEY, OTHER = b"k" * 32, b"o" * 32
ANSWER = {
    "label": np.array([3]),
    "scores": np.array([[0.25, 0.75]], np.float32),
    "name": np.array(["three"], dtype=object),
}


class Server:
    """A redis-server of the test's own, which can be stopped, killed and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert SERVER is not None
        quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            [SERVER, "--port", str(self.port), *quiet], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def replica(
    server: Server, *, secret: bytes = SECRET
) -> AsyncIterator[tuple[ResponseCache, RedisCache]]:
    """Make the cache of one replica, connected."""
    shared = RedisCache(server.url, secret=secret, ttl_s=60)
    await until(lambda: connects(shared))
    yield ResponseCache(MemoryCache(max_bytes=100_000, ttl_s=60), shared=shared), shared
    await shared.close()


async def connects(shared: RedisCache) -> bool:
    skipped = shared.n_skipped
    await shared.get(b"nothing")
    return shared.n_skipped == skipped


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await holds():
            await asyncio.sleep(0.02)  # nothing tells when Redis is done


async def compute() -> Tensors:
    return {name: array.copy() for name, array in ANSWER.items()}


async def forbidden() -> Tensors:
    raise AssertionError("computed again")


def same(tensors: Tensors) -> bool:
    return all(tensors[name].tolist() == ANSWER[name].tolist() for name in ANSWER)


async def fill(cache: ResponseCache, shared: RedisCache, *, key: bytes = KEY) -> None:
    """Have an answer computed and wait until Redis has it."""
    await cache.answer(key, compute)

    async def is_there() -> bool:
        return await shared.get(key) is not None

    await until(is_there)


def test_one_replica_answers_what_another_has_computed(server: Server) -> None:
    async def main() -> None:
        async with replica(server) as (first, first_shared), replica(server) as (second, _):
            await fill(first, first_shared)
            tensors, hit = await second.answer(KEY, forbidden)
            assert hit
            assert same(tensors)
            assert tensors["scores"].dtype == np.float32
            assert second.counts()["shared_hits"] == 1
            assert (await second.answer(KEY, forbidden))[1]
            assert second.counts()["hits"] == 1

    asyncio.run(main())


def test_a_dead_redis_is_a_miss_and_a_returned_one_is_used_again(server: Server) -> None:
    async def main() -> None:
        async with replica(server) as (cache, shared):
            server.kill()
            for number in range(50):
                tensors, hit = await cache.answer(number.to_bytes(32, "big"), compute)
                assert not hit
                assert same(tensors)
            assert 1 <= shared.n_errors <= 3  # it is not asked again at once
            server.start()
            await until(lambda: connects(shared))
            await fill(cache, shared)
            assert await shared.get(KEY) is not None

    asyncio.run(main())


def test_a_redis_that_stalls_costs_one_short_wait(server: Server) -> None:
    async def main() -> None:
        async with replica(server) as (cache, shared):
            server.signal(signal.SIGSTOP)
            try:
                began_s = time.monotonic()
                for number in range(100):
                    assert not (await cache.answer(number.to_bytes(32, "big"), compute))[1]
                assert time.monotonic() - began_s < 0.5
                assert shared.n_errors >= 1
            finally:
                server.signal(signal.SIGCONT)
            await until(lambda: connects(shared))
            await fill(cache, shared)

    asyncio.run(main())


def test_a_redis_that_was_never_there_is_a_miss(tmp_path: Path) -> None:
    async def main() -> None:
        shared = RedisCache("redis://127.0.0.1:1/0", secret=SECRET, ttl_s=60)
        cache = ResponseCache(MemoryCache(max_bytes=100_000, ttl_s=60), shared=shared)
        assert same((await cache.answer(KEY, compute))[0])

        async def has_failed() -> bool:
            return shared.n_errors > 0

        await until(has_failed)
        assert same((await cache.answer(OTHER, compute))[0])
        await shared.close()

    asyncio.run(main())


@pytest.mark.parametrize("lie", ["moved", "changed", "cut", "empty", "made up", "a list"])
def test_an_answer_redis_lies_about_is_computed_anew(server: Server, lie: str) -> None:
    async def main() -> None:
        async with replica(server) as (first, shared), replica(server) as (second, second_shared):
            await fill(first, shared)
            await fill(first, shared, key=OTHER)
            client = redis.asyncio.Redis(port=server.port)
            names = sorted(await client.keys("*"))
            values = [await client.get(name) for name in names]
            for name, value, other in zip(names, values, reversed(values), strict=True):
                await client.delete(name)
                if lie == "a list":
                    await client.rpush(name, value)
                else:
                    flipped = value[:-1] + bytes((value[-1] ^ 1,))
                    lies = {"moved": other, "changed": flipped, "cut": value[:-1], "empty": b""}
                    await client.set(name, lies.get(lie, b"\x80\x04." * 20))
            tensors, hit = await second.answer(KEY, compute)
            assert not hit
            assert same(tensors)
            assert second_shared.n_errors == 1
            await client.aclose()

    asyncio.run(main())


def test_replicas_that_share_no_secret_share_no_answers(server: Server) -> None:
    async def main() -> None:
        async with (
            replica(server) as (first, shared),
            replica(server, secret=b"another one's secret") as other,
        ):
            await fill(first, shared)
            assert not (await other[0].answer(KEY, compute))[1]

    asyncio.run(main())


def test_an_answer_leaves_redis_with_its_time(server: Server) -> None:
    async def main() -> None:
        async with replica(server) as (cache, shared):
            await fill(cache, shared)
            client = redis.asyncio.Redis(port=server.port)
            (name,) = await client.keys("*")
            assert 50_000 < await client.pttl(name) <= 60_000
            await client.aclose()

    asyncio.run(main())


def test_replies_of_cancelled_requests_reach_no_other(server: Server) -> None:
    async def main() -> None:
        async with replica(server) as (cache, shared):
            await fill(cache, shared)
            await shared.get(OTHER)
            for turns in range(40):
                gone = asyncio.create_task(shared.get(KEY))
                for _ in range(turns % 8):
                    await asyncio.sleep(0)
                gone.cancel()
                assert await shared.get(OTHER) is None

    asyncio.run(main())


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        RedisCache("http://user:hidden@host/0", secret=SECRET, ttl_s=60)
    assert "hidden" not in str(refused.value)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(SettingsError, match="has 5 bytes"):
        RedisCache("redis://127.0.0.1:1/0", secret=b"short", ttl_s=60)
