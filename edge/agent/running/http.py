"""HTTP/1.1 on one connection: strict, bounded, kept alive; with the standard library's sockets alone.

``http.server`` reads headers as if they were mail, which takes longer than a small model's answer. It knows
no paths and no protocol above HTTP.

Source: RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

from kit.errors import InputError
from kit.inference.card import Reply
from kit.inference.errors import TooLargeError

_MAX_HEAD_BYTES = 16 << 10
_CHUNK_BYTES = 64 << 10
_IDLE_S = 75.0
_SLOW_S = 20.0
_TOGETHER_BYTES = 32 << 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Request(NamedTuple):
    """One request.

    Attributes:
        method: In capitals.
        path: Decoded, without the query.
        headers: Names in lower case; of a name that is there twice, the last.
        body: All of it.
        keeps: Whether the connection stays open after the answer.
    """

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    keeps: bool


class GoneError(Exception):
    """The client has gone, or took too long to say anything."""


class Connection:
    """One client.

    Args:
        client: Its socket.
        max_body_bytes: Largest body that is read.
    """

    def __init__(self, client: socket.socket, *, max_body_bytes: int) -> None:
        self._client = client
        self._max_body_bytes = max_body_bytes
        self._buffer = b""
        self._end_s = 0.0

    def read(self) -> Request:
        """Wait for a request.

        Raises:
            GoneError: There is no more.
            InputError: It is not HTTP as it is read here; answer, then close.
        """
        buffer = self._buffer
        if not buffer:
            self._client.settimeout(_IDLE_S)
            buffer = self._receive()
        self._end_s = time.monotonic() + _SLOW_S
        end = buffer.find(b"\r\n\r\n")
        while end < 0:
            if len(buffer) > _MAX_HEAD_BYTES:
                raise InputError(f"the request's head is larger than {_MAX_HEAD_BYTES} bytes")
            buffer += self._more()
            end = buffer.find(b"\r\n\r\n")
        if end > _MAX_HEAD_BYTES:
            raise InputError(f"the request's head is larger than {_MAX_HEAD_BYTES} bytes")
        self._buffer = buffer[end + 4 :]
        method, target, version, headers = _head(buffer[:end])
        body = self._body(headers)
        wanted = headers.get(b"connection", b"").lower()
        keeps = wanted != b"close" if version == b"HTTP/1.1" else wanted == b"keep-alive"
        return Request(method, _path(target), headers, body, keeps)

    def write(self, reply: Reply, *, keeps: bool, with_body: bool = True) -> None:
        """Answer.

        Args:
            reply: What.
            keeps: Whether the connection stays open.
            with_body: False for HEAD, which hears of the body and does not get it.

        Raises:
            GoneError: Nobody listens.
        """
        lines = [b"HTTP/1.1 %d %s\r\n" % (reply.status, _REASONS.get(reply.status, b"Status"))]
        lines += [b"%s: %s\r\n" % header for header in reply.headers]
        lines.append(b"content-length: %d\r\n" % len(reply.body))
        if not keeps:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head, body = b"".join(lines), reply.body if with_body else b""
        try:
            self._client.settimeout(_SLOW_S)
            if len(body) <= _TOGETHER_BYTES:
                self._client.sendall(head + body)
            else:
                self._client.sendall(head)
                self._client.sendall(body)
        except OSError as error:
            raise GoneError from error

    def _receive(self) -> bytes:
        try:
            data = self._client.recv(_CHUNK_BYTES)
        except OSError as error:
            raise GoneError from error
        if not data:
            raise GoneError
        return data

    def _more(self) -> bytes:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise GoneError
        self._client.settimeout(left_s)
        return self._receive()

    def _body(self, headers: dict[bytes, bytes]) -> bytes:
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if coding is None and length is None:
            return b""
        if coding is not None and (length is not None or coding.strip().lower() != b"chunked"):
            raise InputError("a body's length is said in two ways, or in one that is not read here")
        if length is not None and not (length.isdigit() and len(length) < 16):
            raise InputError("content-length is not a number of bytes")
        if length is not None and int(length) > self._max_body_bytes:
            raise self._too_large()
        if headers.get(b"expect", b"").lower() == b"100-continue":
            try:
                self._client.sendall(_CONTINUE)
            except OSError as error:
                raise GoneError from error
        return self._taken(int(length)) if length is not None else self._chunks()

    def _taken(self, n_bytes: int) -> bytes:
        """Take so many bytes off what comes."""
        buffer = self._buffer
        if len(buffer) < n_bytes:
            parts, n_held = [buffer], len(buffer)
            while n_held < n_bytes:
                # A body that takes longer than this per chunk is not on its way any more.
                self._end_s = time.monotonic() + _SLOW_S
                parts.append(self._more())
                n_held += len(parts[-1])
            buffer = b"".join(parts)
        self._buffer = buffer[n_bytes:]
        return buffer[:n_bytes]

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        n_bytes = 0
        while True:
            said = self._line().partition(b";")[0].strip()
            if not said or len(said) > 8 or not all(each in b"0123456789abcdefABCDEF" for each in said):
                raise InputError("a chunk's length is not a number")
            size = int(said, 16)
            n_bytes += size
            if n_bytes > self._max_body_bytes:
                raise self._too_large()
            if not size:
                while self._line():  # trailers, which say nothing here
                    pass
                return b"".join(parts)
            parts.append(self._taken(size))
            if self._line():
                raise InputError("a chunk is longer than it says")

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise InputError("a line between chunks is too long")
            self._buffer += self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body is larger than {self._max_body_bytes} bytes", hint="send fewer rows per request"
        )


def _head(data: bytes) -> tuple[str, bytes, bytes, dict[bytes, bytes]]:
    first, *lines = data.split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not _TOKEN.issuperset(words[0]):
        raise InputError("the request does not begin as HTTP/1.1 does")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name):
            raise InputError("a header of the request has no name, or a wrong one")
        name = name.lower()
        if name in headers and name in (b"content-length", b"transfer-encoding", b"host"):
            raise InputError(f"the header {name.decode()} is there twice")
        headers[name] = value.strip(b" \t")
    return words[0].decode().upper(), words[1], words[2], headers


def _path(target: bytes) -> str:
    if target.startswith(b"http://"):  # as to a proxy
        target = b"/" + target[7:].partition(b"/")[2]
    path = target.partition(b"?")[0]
    if b"%" in path:
        from urllib.parse import unquote_to_bytes  # most paths need none of it

        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace")
