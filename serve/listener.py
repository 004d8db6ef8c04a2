"""The replica's own HTTP listener: a Unix socket that HAProxy alone reaches.

Ray Serve opens a port per replica and puts a wrapper of its own between that port and the application, which
takes longer than the application. HAProxy asks here instead, and Ray's port only whether the replica is well
(``serve.haproxy``). It knows no path and no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

#: Longer than HAProxy keeps a connection it does not use, so that it never asks over one that just ends.
_KEEP_ALIVE_S = 75


class Listener:
    """Serves an ASGI application on a Unix socket of its own until it is closed.

    Args:
        app: The application; its lifespan is somebody else's business.
        path: Of the socket; its folder must be open to this user alone.
    """

    def __init__(self, app: Any, *, path: Path) -> None:
        self._path = path
        config = uvicorn.Config(
            app,
            interface="asgi3",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        # Whether uvicorn copies every message for its log is decided by this level.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, on the running event loop.

        Raises:
            OSError: The socket cannot be made.
        """
        self._path.unlink(missing_ok=True)
        with contextlib.ExitStack() as undo:
            opened = undo.enter_context(socket.socket(socket.AF_UNIX))
            opened.bind(str(self._path))
            undo.pop_all()
        self._serving = asyncio.create_task(self._server.serve(sockets=[opened]))
        await self._server.listening.wait()

    async def close(self) -> None:
        """Take no new connection, and let what is in work be answered."""
        if self._serving is None:
            return
        self._path.unlink(missing_ok=True)
        self._server.should_exit = True
        await self._serving
        self._serving = None


class _Server(uvicorn.Server):
    """A uvicorn that says when it listens and leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
