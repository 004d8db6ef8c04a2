"""A load of requests over raw keep-alive connections, counted from outside: what a client sees, and when.

Each connection asks, waits for the whole answer, and asks again; a connection that breaks counts as one
failure and is made anew. It runs in a thread with an event loop of its own, so that a test can kill things
meanwhile. It knows neither what is asked nor what a right answer is, beyond what ``Load`` is told.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

_CONNECT_PAUSE_S = 0.02
_STOP_TIMEOUT_S = 90.0


class Reply(NamedTuple):
    """One request as its client saw it.

    Attributes:
        ended_s: When it ended, by ``time.monotonic``.
        seconds: How long it took.
        status: The answer's; 0 when there was none.
        failure: Why there was none: ``refused``, ``closed``, ``slow`` or ``garbled``; "" when there was one.
    """

    ended_s: float
    seconds: float
    status: int
    failure: str


@dataclass
class Tally:
    """What became of all requests of a load, in the order they ended."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        """Answers by status."""
        return Counter(reply.status for reply in self.replies if reply.status)

    @property
    def failures(self) -> Counter[str]:
        """Requests without an answer, by reason."""
        return Counter(reply.failure for reply in self.replies if reply.failure)

    @property
    def bad(self) -> list[Reply]:
        """Requests that were not answered with 200."""
        return [reply for reply in self.replies if reply.status != 200]

    @property
    def bad_share(self) -> float:
        """Share of requests that were not answered with 200."""
        return len(self.bad) / max(1, len(self.replies))

    def after(self, moment_s: float) -> Tally:
        """Give what ended after a moment, by ``time.monotonic``."""
        return Tally([reply for reply in self.replies if reply.ended_s > moment_s])

    def recovered_s(self, since_s: float) -> float:
        """Seconds from a moment to the last request that was not answered with 200; 0 without any."""
        return max((reply.ended_s - since_s for reply in self.bad if reply.ended_s > since_s), default=0.0)

    def silence_s(self, since_s: float) -> float:
        """Longest time after a moment in which no request at all was answered with 200."""
        times_s = [since_s, *(each.ended_s for each in self.replies if each.status == 200)]
        kept = sorted(each for each in times_s if each >= since_s)
        return max((later - earlier for earlier, later in itertools.pairwise(kept)), default=0.0)

    def latency_s(self, share: float, *, status: int = 200) -> float:
        """Give a quantile of the seconds that answers with a status took; 0 without any."""
        times_s = sorted(reply.seconds for reply in self.replies if reply.status == status)
        return times_s[min(len(times_s) - 1, int(share * len(times_s)))] if times_s else 0.0

    def __str__(self) -> str:
        return (
            f"{len(self.replies)} requests, {dict(self.statuses)}, {dict(self.failures)}, "
            f"p50 {self.latency_s(0.5) * 1e3:.1f} ms, p99 {self.latency_s(0.99) * 1e3:.1f} ms"
        )


class Load:
    """Asks the same again and again while the block runs.

    Args:
        port: On this machine.
        request: The whole HTTP request, as ``post`` makes it.
        connections: How many ask at once.
        rate: Requests/s of all connections together, at times that do not wait for answers as long as a
            connection is free (an open loop, evenly spaced); latencies count from those times. None asks
            again as soon as a connection is answered.
        pause_s: How long a connection waits between an answer and its next request.
        timeout_s: After which an answer counts as ``slow``.
        good: Says of a body of status 200 whether it is right; ``garbled`` where not.
    """

    def __init__(
        self,
        port: int,
        request: bytes,
        *,
        connections: int = 4,
        rate: float | None = None,
        pause_s: float = 0.0,
        timeout_s: float = 30.0,
        good: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.tally = Tally()
        self._port, self._request = port, request
        self._connections, self._pause_s, self._timeout_s = connections, pause_s, timeout_s
        self._good = good
        self._rate, self._next_s = rate, 0.0
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join(_STOP_TIMEOUT_S)

    def wait(self, seconds: float) -> None:
        """Let it run."""
        time.sleep(seconds)

    def until_quiet(self, quiet_s: float, *, since_s: float, timeout_s: float) -> float:
        """Wait until everything has been answered with 200 for a while.

        Args:
            quiet_s: For how long.
            since_s: The moment something was done, by ``time.monotonic``.
            timeout_s: When to give up waiting.

        Returns:
            Seconds from that moment to the last request that was not answered with 200.
        """
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            time.sleep(0.05)
            now_s = time.monotonic()
            recent = [reply for reply in self.tally.replies[-5000:] if reply.ended_s > now_s - quiet_s]
            if now_s - since_s > quiet_s and recent and all(reply.status == 200 for reply in recent):
                break
        return self.tally.recovered_s(since_s)

    async def _run(self) -> None:
        self._next_s = time.monotonic()
        await asyncio.gather(*(self._ask() for _ in range(self._connections)))

    async def _turn(self) -> float:
        """Wait until the next request is due, and give the time from which its latency counts."""
        if self._rate is None:
            return time.monotonic()
        due_s = self._next_s
        self._next_s += 1 / self._rate
        await asyncio.sleep(due_s - time.monotonic())
        return due_s

    async def _ask(self) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._over:
            began_s = await self._turn()
            status, failure, keep = 0, "", False
            try:
                async with asyncio.timeout(self._timeout_s):
                    if streams is None:
                        streams = await asyncio.open_connection("127.0.0.1", self._port)
                    streams[1].write(self._request)
                    status, body, keep = await read_answer(streams[0])
                if status == 200 and self._good is not None and not self._good(body):
                    status, failure = 0, "garbled"
            except ConnectionRefusedError:
                failure = "refused"
            except TimeoutError:
                failure = "slow"
            except (OSError, EOFError):
                failure = "closed"
            except (ValueError, IndexError):
                failure = "garbled"
            now_s = time.monotonic()
            self.tally.replies.append(Reply(now_s, now_s - began_s, status, failure))
            if not keep and streams is not None:
                streams[1].close()
                streams = None
            if failure:
                await asyncio.sleep(_CONNECT_PAUSE_S)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
        if streams is not None:
            streams[1].close()


def post(path: str, body: bytes, *, headers: tuple[str, ...] = ()) -> bytes:
    """Write a whole POST request."""
    lines = (
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Read one answer: status, body, and whether the connection stays open.

    Raises:
        EOFError: The connection ended in it.
        ValueError: It is no HTTP, or has no length.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    status = int(head[0].split(" ")[1])
    fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    body = await reader.readexactly(int(fields["content-length"])) if "content-length" in fields else b""
    if "content-length" not in fields:
        raise ValueError("the answer does not say how long it is")
    return status, body, fields.get("connection") != "close"
