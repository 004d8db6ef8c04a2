"""Bodies that travel compressed, in both directions: gzip and deflate (RFC 9110, section 8.4.1).

A compressed body may be a thousand times as large as it looks, so unpacking stops at the largest body that is
accepted. It knows no sockets and no threads: what takes long is told apart, so that a caller can move it out
of the way of others.
"""

from __future__ import annotations

import gzip
import zlib

from kit.errors import InputError

#: Unpacked or packed in one go this takes about a millisecond at most.
QUICK_BYTES = 1 << 15
#: Below this an answer fits into one packet of most networks either way.
_LEAST_BYTES = 1024
_MAX_SHOWN_CHARS = 20
_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class Unpacking:
    """A compressed body on its way to what it was.

    Args:
        body: As it came.
        coding: What the request's Content-Encoding says.
        max_bytes: Most it may become.

    Raises:
        InputError: The coding is not one that is read here.
    """

    __slots__ = ("_left", "_parts", "_room", "_stream")

    def __init__(self, body: bytes, *, coding: bytes, max_bytes: int) -> None:
        window = _WINDOWS.get(coding.strip().lower())
        if window is None:
            shown = coding[:_MAX_SHOWN_CHARS].decode("latin-1")
            raise InputError(f"content encoding {shown!r} is not read here", hint="use gzip or deflate")
        self._stream = zlib.decompressobj(window)
        self._left = body
        self._parts: list[bytes] = []
        self._room = max_bytes + 1

    def step(self, n_bytes: int | None = None) -> bytes | None:
        """Unpack at most so many bytes more, or all that is left.

        Returns:
            The body once it is whole, or one byte more than was allowed; None while there is more.

        Raises:
            InputError: The bytes are not what the coding says.
        """
        room = self._room if n_bytes is None else min(n_bytes, self._room)
        try:
            part = self._stream.decompress(self._left, room)
        except zlib.error as error:
            raise InputError("the body is not compressed as its content encoding says") from error
        self._parts.append(part)
        self._room -= len(part)
        self._left = self._stream.unconsumed_tail
        if self._stream.eof:
            if self._stream.unused_data:
                raise InputError("more bytes follow the compressed body", hint="compress it as one")
        elif self._room:
            if part and len(part) == room:
                return None
            raise InputError("the compressed body ends too early")
        return b"".join(self._parts)


def answer_coding(accepted: bytes | None, *, n_bytes: int) -> bytes | None:
    """Choose how an answer travels: compressed only for a client that names exactly one coding.

    Libraries list all codings they know without being told to, and on a network of one's own compressing
    takes longer than sending.

    Args:
        accepted: The request's Accept-Encoding; None without one.
        n_bytes: Size of the answer.
    """
    return accepted if n_bytes >= _LEAST_BYTES and accepted in (b"gzip", b"deflate") else None


def pack(body: bytes, *, coding: bytes) -> bytes:
    """Compress an answer, rather fast than small."""
    return gzip.compress(body, 1, mtime=0) if coding == b"gzip" else zlib.compress(body, 1)
