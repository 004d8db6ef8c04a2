"""A replica's own listener: a real uvicorn on a Unix socket, asked over it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from serve.listener import Listener


@pytest.fixture
def path() -> Iterator[Path]:
    """A path short enough for a socket, which a test's own folder may not be."""
    with TemporaryDirectory(prefix="kit-") as folder:
        yield Path(folder) / "a.sock"


def client(path: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://kit")


class App:
    """Answers 200 when it is let go on."""

    def __init__(self) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.set()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": scope["path"][1:].encode()})


def test_it_answers_once_it_has_started_and_leaves_signals_alone(path: Path) -> None:
    async def main() -> str:
        app = App()
        app.go_on.set()
        listener = Listener(app.answer, path=path)
        await listener.start()
        async with client(path) as asking:
            answer = await asking.get("/ok")
        await listener.close()
        return answer.text

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert asyncio.run(main()) == "ok"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not path.exists()


def test_what_is_in_work_when_it_closes_is_answered_and_nobody_new_comes_in(path: Path) -> None:
    async def main() -> str:
        app = App()
        listener = Listener(app.answer, path=path)
        await listener.start()
        async with client(path) as asking, client(path) as late:
            asked = asyncio.create_task(asking.get("/ok"))
            await app.asked.wait()
            closing = asyncio.create_task(listener.close())
            await asyncio.sleep(0)
            with pytest.raises(httpx.ConnectError):
                await late.get("/no")
            app.go_on.set()
            answer = await asked
            await closing
        return answer.text

    assert asyncio.run(main()) == "ok"


def test_a_socket_that_a_dead_replica_left_is_replaced(path: Path) -> None:
    path.write_text("left")

    async def main() -> bool:
        listener = Listener(App().answer, path=path)
        await listener.start()
        replaced = path.is_socket()
        await listener.close()
        return replaced

    assert asyncio.run(main())


def test_a_path_too_long_for_a_socket_is_said_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        await Listener(App().answer, path=tmp_path / ("a" * 120)).start()

    with pytest.raises(OSError, match="too long"):
        asyncio.run(main())
