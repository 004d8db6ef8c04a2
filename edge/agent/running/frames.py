"""Frames between the agent and the process that holds the model: a header in JSON, then bytes.

    4 bytes   what says that this is a frame
    4 bytes   length of the header, little-endian
    4 bytes   length of the body
    header    one JSON object, at most 64 KiB
    body      bytes: what HTTP carried, or tensors, little-endian and row-major

Both lengths are bounded before anything is read, and nothing in a frame can be executed. One request is
under way at a time, so a frame is never followed by part of another.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

from kit.errors import UnavailableError

MAX_HEADER_BYTES = 1 << 16
_MARK = b"KIT1"
_PREFIX = struct.Struct("<4sII")
_CHUNK_BYTES = 1 << 16
_TOGETHER_BYTES = 1 << 15


class BrokenChannelError(UnavailableError):
    """What the other side sends is no frame, or it sends nothing any more."""


class ClosedChannelError(BrokenChannelError):
    """The other side is gone."""


class Channel:
    """One end of a connection that carries frames.

    Args:
        connection: A stream socket.
        max_body_bytes: Largest body that is accepted.
    """

    def __init__(self, connection: socket.socket, *, max_body_bytes: int) -> None:
        self._connection = connection
        self._max_body_bytes = max_body_bytes

    def send(self, header: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
        """Send one frame.

        Raises:
            BrokenChannelError: The other side is gone.
        """
        said = json.dumps(header, separators=(",", ":")).encode()
        if len(said) > MAX_HEADER_BYTES:
            raise BrokenChannelError(f"a header of {len(said)} bytes is too long for a frame")
        start = _PREFIX.pack(_MARK, len(said), len(body)) + said
        try:
            if len(body) <= _TOGETHER_BYTES:
                self._connection.sendall(start + body)
            else:
                self._connection.sendall(start)
                self._connection.sendall(body)
        except OSError as error:
            raise ClosedChannelError(f"a frame cannot be sent: {error}") from error

    def receive(self, *, patience: Callable[[], None] | None = None) -> tuple[dict[str, Any], bytes]:
        """Receive one frame.

        Args:
            patience: Called whenever the socket's own timeout has passed; what it raises ends the wait.

        Raises:
            BrokenChannelError: The other side is gone, or sent something else.
        """
        data: bytes | bytearray = self._some(patience)
        while len(data) < _PREFIX.size:
            data += self._some(patience)
        mark, n_header, n_body = _PREFIX.unpack_from(data)
        if mark != _MARK or n_header > MAX_HEADER_BYTES or n_body > self._max_body_bytes:
            raise BrokenChannelError("what came is not a frame")
        end = _PREFIX.size + n_header + n_body
        if len(data) < end:
            data = self._rest(data, end, patience)
        if len(data) > end:
            raise BrokenChannelError("more came than one frame")
        try:
            header = json.loads(data[_PREFIX.size : _PREFIX.size + n_header])
        except ValueError as error:
            raise BrokenChannelError(f"a frame's header is not JSON: {error}") from error
        if not isinstance(header, dict):
            raise BrokenChannelError("a frame's header is not an object")
        return header, bytes(data[_PREFIX.size + n_header :])

    def close(self) -> None:
        """Close this end."""
        self._connection.close()

    def _some(self, patience: Callable[[], None] | None) -> bytes:
        while True:
            try:
                data = self._connection.recv(_CHUNK_BYTES)
            except socket.timeout:  # not a TimeoutError before Python 3.10
                if patience is not None:
                    patience()
                continue
            except OSError as error:
                raise ClosedChannelError(f"a frame cannot be received: {error}") from error
            if not data:
                raise ClosedChannelError("the other side has closed the connection")
            return data

    def _rest(self, data: bytes | bytearray, end: int, patience: Callable[[], None] | None) -> bytearray:
        whole = bytearray(end)
        whole[: len(data)] = data
        place = len(data)
        view = memoryview(whole)
        while place < end:
            try:
                n_bytes = self._connection.recv_into(view[place:])
            except socket.timeout:  # not a TimeoutError before Python 3.10
                if patience is not None:
                    patience()
                continue
            except OSError as error:
                raise ClosedChannelError(f"a frame cannot be received: {error}") from error
            if not n_bytes:
                raise ClosedChannelError("the other side has closed the connection")
            place += n_bytes
        return whole
