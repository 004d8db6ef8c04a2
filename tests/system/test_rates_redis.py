"""Limits counted in a real Redis, which is killed and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kit.inference.errors import OverloadedError
from kit.settings.serving import RateSettings
from serve.guards.callers import Caller
from serve.guards.rates import RateLimiter, open_rates

SERVER = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="no redis-server: apt-get install redis-server")
ALICE = Caller("alice@example.org", frozenset(("infer:*",)), "token")


class _Redis:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self.process = subprocess.Popen([str(SERVER), *words], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10.0
        while self.ask(b"PING\r\n") != b"+PONG\r\n":
            assert time.monotonic() < deadline_s, "Redis did not start"
            time.sleep(0.02)

    def ask(self, words: bytes) -> bytes:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=2) as link,
        ):
            link.sendall(words)
            return link.recv(65536)
        return b""

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[_Redis]:
    made = _Redis(tmp_path)
    made.start()
    yield made
    if made.process is not None:
        made.process.send_signal(signal.SIGCONT)
    made.kill()


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)  # as Ray Serve does where it is loaded
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def _limiter(redis: _Redis, requests: str, *, space: str = "test") -> RateLimiter:
    made = open_rates(RateSettings(requests=requests, redis=redis.url), space=space)
    assert made is not None
    return made


async def _accepted(limiter: RateLimiter, times: int, *, model: str = "digits") -> int:
    """Ask so many times, one after the other; return how often it was allowed."""
    allowed = 0
    for _ in range(times):
        with contextlib.suppress(OverloadedError):
            if (waiting := limiter.check(ALICE, model)) is not None:
                await waiting
            allowed += 1
    return allowed


def _run(ask: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await ask()

    asyncio.run(main())


def test_replicas_count_together(redis: _Redis) -> None:
    async def ask() -> None:
        one, two = _limiter(redis, "10/minute"), _limiter(redis, "10/minute")
        together = await asyncio.gather(_accepted(one, 10), _accepted(two, 10))
        assert sum(together) == 10
        assert await _accepted(one, 1, model="other") == 1
        apart = _limiter(redis, "10/minute", space="another")
        assert await _accepted(apart, 1) == 1
        for limiter in (one, two, apart):
            await limiter.close()

    _run(ask)


def test_the_time_to_wait_is_the_one_redis_keeps(redis: _Redis) -> None:
    async def ask() -> None:
        limiter = _limiter(redis, "5/second")
        for _ in range(3):  # windows that begin empty, and with a full one before
            while await _accepted(limiter, 1):
                pass
            with pytest.raises(OverloadedError) as caught:
                await _awaited(limiter)
            assert 0 < caught.value.retry_after_s <= 1.01
            early_s = caught.value.retry_after_s - 0.05
            if early_s > 0:
                await asyncio.sleep(early_s)
                assert await _accepted(limiter, 1) == 0
                await asyncio.sleep(0.055)
            else:
                await asyncio.sleep(caught.value.retry_after_s)
            assert await _accepted(limiter, 1) == 1
        await limiter.close()

    _run(ask)


async def _awaited(limiter: RateLimiter) -> None:
    waiting = limiter.check(ALICE, "digits")
    assert waiting is not None
    await waiting


def test_redis_holds_no_names_and_forgets(redis: _Redis) -> None:
    async def ask() -> None:
        limiter = _limiter(redis, "10/minute")
        await _accepted(limiter, 1)
        await limiter.close()

    _run(ask)
    keys = redis.ask(b"KEYS *\r\n")
    assert b"kit/rates/" in keys
    assert b"alice" not in keys
    key = next(line for line in keys.split(b"\r\n") if b"kit/rates/" in line)
    assert int(redis.ask(b"PTTL " + key + b"\r\n").strip(b":\r\n")) > 0


def test_while_redis_is_dead_a_replica_counts_alone_and_says_so_once(
    redis: _Redis, said: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        limiter = _limiter(redis, "5/minute")
        assert await _accepted(limiter, 2) == 2
        redis.kill()
        began_s = time.monotonic()
        assert await _accepted(limiter, 20) == 5
        assert time.monotonic() - began_s < 1.0
        assert len(said.records) == 1
        redis.start()
        deadline_s = time.monotonic() + 5.0
        while len(said.records) < 2 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)
        assert "counts requests again" in said.text
        assert await _accepted(limiter, 20) == 5  # a new Redis knows nothing of before
        assert len(said.records) == 2
        await limiter.close()

    _run(ask)


def test_many_requests_that_find_redis_dead_wait_together_and_say_so_once(
    redis: _Redis, said: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        limiter = _limiter(redis, "1000/minute")
        assert await _accepted(limiter, 1) == 1
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)  # it accepts connections and answers nothing
        began_s = time.monotonic()
        assert await asyncio.gather(*(_accepted(limiter, 1) for _ in range(600))) == [1] * 600
        assert time.monotonic() - began_s < 5.0  # sixteen at a time it would take 9 s
        assert len(said.records) == 1
        redis.process.send_signal(signal.SIGCONT)
        deadline_s = time.monotonic() + 5.0
        while len(said.records) < 2 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)
        assert await asyncio.gather(*(_accepted(limiter, 1) for _ in range(600))) == [1] * 600
        await limiter.close()

    _run(ask)


def test_redis_that_is_not_there_at_the_start_is_no_error(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        limiter = _limiter(_Redis(tmp_path), "3/minute")
        assert await _accepted(limiter, 10) == 3
        await limiter.close()

    _run(ask)
    assert len(said.records) == 1


def test_a_password_of_redis_is_not_logged(redis: _Redis, said: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        settings = RateSettings(requests="3/minute", redis=redis.url.replace("//", "//user:secretword@"))
        limiter = open_rates(settings, space="test")
        assert limiter is not None
        assert await _accepted(limiter, 10) == 3
        await limiter.close()

    _run(ask)
    assert "counts alone" in said.text
    assert "secretword" not in said.text
