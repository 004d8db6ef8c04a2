"""What a gRPC call says of itself: its metadata, where it comes from, how long its client waits."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from serve.grpc.contract import Headers

_MAPPED = "::ffff:"


def headers_of(context: Any) -> Headers:
    """Give a call's metadata as HTTP headers are given: without the space around a value that gRPC keeps."""
    return [
        (key.encode(), value.strip().encode() if type(value) is str else value)
        for key, value in context.invocation_metadata()
    ]


def header_of(headers: Headers, name: bytes) -> bytes | None:
    """Give the first value of a header; None without it."""
    for key, value in headers:
        if key == name:
            return value
    return None


def peer_of(text: str) -> str | None:
    """Give the address in gRPC's name of a peer, like ``ipv4:127.0.0.1:4711``; None where it has none."""
    kind, _, rest = text.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind != "ipv6":
        return None
    address = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    mapped = address.lower().startswith(_MAPPED) and "." in address
    return address[len(_MAPPED) :] if mapped else address


def left_s_of(context: Any, *, longest_s: float, timeout_s: float | None) -> float:
    """Say for how long an answer is worth something: until the first of three bounds.

    Args:
        context: The call, whose client may have set a deadline.
        longest_s: The endpoint's own bound.
        timeout_s: What the request's parameters say; None for nothing.
    """
    left_s = longest_s if timeout_s is None else min(longest_s, timeout_s)
    client_s: float | None = context.time_remaining()
    return left_s if client_s is None else min(left_s, client_s)
