"""The load generator of open loops: requests come when they come (Poisson), however long others wait.

Latency counts from the moment a request was due, so that a generator that falls behind hides nothing; how far
it fell behind is told. Each request has a connection of its own, of those that are idle. With too many out, a
request is not sent and counts as one without an answer.
"""

from __future__ import annotations

import asyncio
import collections
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_TIMEOUT_S = 30.0
_OPENED = 64
_MOST_CONNECTIONS = 10_000
_SLACK_S = 0.0005


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        due_s: When it was due, from the start.
        latency_ms: From then to the answer's last byte.
        status: Of HTTP; 0 when no answer came.
    """

    due_s: float
    latency_ms: float
    status: int


@dataclass
class Outcome:
    """What an open loop found.

    Attributes:
        sent: Requests.
        answers: One for each, in the order they came.
        late_ms: How long after it was due each was sent.
        connections: Most that were open at once.
    """

    sent: int = 0
    answers: list[Answer] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    connections: int = 0

    def latencies_ms(self, *, status: int = 200, since_s: float = 0.0, until_s: float = np.inf) -> np.ndarray:
        """Give the latencies of answers of one status to requests that were due in a span of time."""
        return np.array(
            [
                each.latency_ms
                for each in self.answers
                if each.status == status and since_s <= each.due_s < until_s
            ]
        )

    def counts(self) -> dict[int, int]:
        """Count answers by status."""
        return dict(sorted(collections.Counter(each.status for each in self.answers).items()))


async def ask(port: int, request: bytes, *, per_second: float, seconds: float, seed: int = 0) -> Outcome:
    """Send requests at random moments and wait for what becomes of all of them.

    Args:
        port: Of the server, on this machine.
        request: HTTP/1.1, head and body.
        per_second: On average.
        seconds: How long requests come.
        seed: Of the moments.
    """
    random = np.random.default_rng(seed)
    gaps_s = random.exponential(1 / per_second, round(per_second * seconds * 1.2) + 100)
    moments_s = np.cumsum(gaps_s)
    caller = _Caller(port, request)
    await caller.open(_OPENED)
    began_s = caller.began_s = time.perf_counter()
    for due_s in moments_s[moments_s < seconds].tolist():
        wait_s = began_s + due_s - time.perf_counter()
        if wait_s > _SLACK_S:
            await asyncio.sleep(wait_s)
        caller.send(due_s)
    await caller.finish()
    return caller.outcome


class _Caller:
    """Sends requests, each on an idle connection or a new one."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._idle: collections.deque[_Connection] = collections.deque()
        self._busy: dict[_Connection, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_open = 0
        self.began_s = 0.0
        self.outcome = Outcome()

    async def open(self, count: int) -> None:
        """Have connections ready."""
        self._idle.extend([await self._connect() for _ in range(count)])

    def send(self, due_s: float) -> None:
        """Send one request that was due so many seconds after the start."""
        self.outcome.sent += 1
        while self._idle:
            connection = self._idle.popleft()
            if connection.is_open:
                self._send(connection, due_s)
                return
        if self._n_open + len(self._tasks) >= _MOST_CONNECTIONS:
            self.outcome.answers.append(Answer(due_s, 0.0, 0))
            return
        task = self._loop.create_task(self._send_on_new(due_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for the answers that are out, no longer than a client would."""
        until_s = time.perf_counter() + _TIMEOUT_S
        while (self._busy or self._tasks) and time.perf_counter() < until_s:
            await asyncio.sleep(0.02)
        while self._busy:
            connection, due_s = self._busy.popitem()
            self.outcome.answers.append(Answer(due_s, _TIMEOUT_S * 1000, 0))
            connection.give_up()
        for connection in self._idle:
            connection.give_up()

    def answered(self, connection: _Connection, status: int) -> None:
        """Note an answer; status 0 says that the connection broke."""
        due_s = self._busy.pop(connection, None)
        if due_s is None:
            return
        latency_ms = (time.perf_counter() - self.began_s - due_s) * 1000
        self.outcome.answers.append(Answer(due_s, latency_ms, status))
        if status:
            self._idle.append(connection)

    def closed(self) -> None:
        """Note that a connection is gone."""
        self._n_open -= 1

    def _send(self, connection: _Connection, due_s: float) -> None:
        self._busy[connection] = due_s
        self.outcome.late_ms.append((time.perf_counter() - self.began_s - due_s) * 1000)
        connection.send(self._request)

    async def _send_on_new(self, due_s: float) -> None:
        try:
            connection = await self._connect()
        except OSError:
            self.outcome.answers.append(Answer(due_s, 0.0, 0))
            return
        self._send(connection, due_s)

    async def _connect(self) -> _Connection:
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), host="127.0.0.1", port=self._port
        )
        self._n_open += 1
        self.outcome.connections = max(self.outcome.connections, self._n_open)
        return connection


class _Connection(asyncio.Protocol):
    """One connection of HTTP/1.1, one request at a time."""

    def __init__(self, caller: _Caller) -> None:
        self._caller = caller
        self._transport: Any = None
        self._received = b""
        self.is_open = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._caller.answered(self, 0)
        self._caller.closed()

    def send(self, request: bytes) -> None:
        """Ask."""
        self._transport.write(request)

    def give_up(self) -> None:
        """Wait no longer."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head, end, rest = received.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self._received = b""
        if b"\r\nconnection: close" in head:
            self.is_open = False
        self._caller.answered(self, int(head[9:12]))


def run(*coroutines: Any) -> list[Any]:
    """Run coroutines together on the fastest loop there is, with room for many connections."""
    import resource

    import uvloop

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def together() -> list[Any]:
        return list(await asyncio.gather(*coroutines))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(together())
