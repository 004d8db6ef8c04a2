"""A source of bundles on a socket of its own, which misbehaves when told to: what networks and servers do.

    with FaultySource() as source:
        source.files["/bundles/x.bundle"] = data
        source.cuts.extend([100, 2000])     # the next two answers with a file end after so many bytes
        source.answers.append((503, {"Retry-After": "7"}))
        ...
        assert source.asked[-1].headers["range"] == "bytes=100-"

It speaks HTTP over bare sockets, so that an answer can end in the middle of anything.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import socketserver
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Asked:
    """A request as it came in; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FaultySource:
    """The server, listening on a free port of the loopback until the block ends.

    Attributes:
        files: Path to bytes.
        handlers: Path to what answers it instead.
        cuts: For the next answers with a file: bytes of the body after which the connection ends.
        answers: For the next requests of anything: status and headers in place of what would have come.
        told_bytes: What every answer with a file says of its length, whatever it is.
        ranges, etags: Whether it knows ranges and gives ETags.
        chunked: Whether a file comes in chunks, without a length.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.files: dict[str, bytes] = {}
        self.handlers: dict[str, Callable[[Asked], Answer]] = {}
        self.cuts: deque[int] = deque()
        self.answers: deque[tuple[int, dict[str, str]]] = deque()
        self.told_bytes: int | None = None
        self.ranges = self.etags = True
        self.chunked = False
        self.asked: list[Asked] = []
        self._chance = random.Random(seed)
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked = _read(self.rfile)
                if asked is not None:
                    outer.asked.append(asked)
                    outer._answer(asked, self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultySource:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def paths(self) -> list[str]:
        """What has been asked for."""
        return [asked.path for asked in self.asked]

    def _answer(self, asked: Asked, connection: socket.socket) -> None:
        if self.answers:
            status, headers = self.answers.popleft()
            _send(connection, status, headers, b"")
        elif asked.path in self.handlers:
            _send(connection, *self.handlers[asked.path](asked))
        elif asked.path not in self.files:
            _send(connection, 404, {}, b"not here")
        else:
            self._file(asked, connection, self.files[asked.path])

    def _file(self, asked: Asked, connection: socket.socket, data: bytes) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": etag} if self.etags else {}
        status, start = 200, 0
        match = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        if self.etags and asked.headers.get("if-none-match") == etag:
            _send(connection, 304, headers, b"")
            return
        if self.ranges and match and asked.headers.get("if-range", etag) == etag:
            status, start = 206, int(match[1])
            if start >= len(data):
                _send(connection, 416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in _pieces(body)) + b"0\r\n\r\n"
        else:
            headers["Content-Length"] = str(len(body) if self.told_bytes is None else self.told_bytes)
        head = _head(status, headers)
        if not self.cuts:
            connection.sendall(head + body)
            return
        connection.sendall(head + body[: self.cuts.popleft()])
        if self._chance.random() < 0.5:  # a reset, not an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _pieces(body: bytes) -> list[bytes]:
    return [body[place : place + 1000] for place in range(0, len(body), 1000)]


def _read(stream: Any) -> Asked | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3:
        return None
    headers = {}
    while (text := stream.readline().decode("latin-1").strip()) != "":
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))
    return Asked(line[0], line[1], headers, body)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def _send(connection: socket.socket, status: int, headers: dict[str, str], body: bytes) -> None:
    connection.sendall(_head(status, {"Content-Length": str(len(body)), **headers}) + body)
