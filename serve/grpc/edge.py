"""The outer edge of the gRPC side: errors become statuses here, and a bug's text stays in the log."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from kit.errors import InputError, KitError
from kit.inference.errors import STATUSES, BrokenError, OverloadedError

#: Asks for the answer to one message of one call.
Ask = Callable[[Any, Any], Awaitable[Any]]
#: Answers the messages of one call.
Stream = Callable[[Any, Any], AsyncIterator[Any]]

_CODES = tuple((kind, grpc.StatusCode[code]) for kind, _, code in STATUSES)
#: A sentence may quote the request; more than this of it is nobody's help, and clients bound their headers.
_MAX_CHARS = 1000
_BUG = "internal error; the endpoint's log says more"
#: ``ray.serve`` is what reaches a replica's log file; "kit" has no handler there.
_logger = logging.getLogger("ray.serve")


class Status(NamedTuple):
    """What a refused call ends with; ``trailing`` is its trailing metadata."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str], ...] = ()


def status_of(error: BaseException) -> Status:
    """Turn an error into a status."""
    if isinstance(error, asyncio.CancelledError):
        return Status(grpc.StatusCode.CANCELLED, "the client has left")
    if isinstance(error, KitError):
        for kind, code in _CODES:
            if isinstance(error, kind):
                message = f"{error.message}; {error.hint}" if error.hint else error.message
                message = message[:_MAX_CHARS].encode("utf-8", "replace").decode()
                return Status(code, message, _trailing(error))
    return Status(grpc.StatusCode.INTERNAL, _BUG)


def note(error: BaseException, *, method: str) -> Status:
    """Turn an error into a status, and log it when a client learns nothing of it."""
    status = status_of(error)
    if status.message == _BUG:
        _logger.error("gRPC %s failed", method, exc_info=error)
    return status


def unary(method: str, parse: Callable[[bytes], Any], ask: Ask) -> Any:
    """Make the handler of a method with one message each way, from bytes to bytes.

    Args:
        method: Its name, for the log.
        parse: Reads the message; nonsense is refused as such.
        ask: Gives the message to answer with.
    """

    async def handle(body: bytes, context: Any) -> bytes:
        try:
            answer: bytes = (await ask(_parsed(parse, body), context)).SerializeToString()
            return answer
        except Exception as error:  # the outer edge: a client sees no internals, the log does
            status = note(error, method=method)
        await context.abort(status.code, status.message, status.trailing)
        raise AssertionError("abort returned")

    return grpc.unary_unary_rpc_method_handler(handle)


def guarded(method: str, stream: Stream) -> Stream:
    """Give a stream whose errors are statuses.

    Args:
        method: Its name, for the log.
        stream: Answers.
    """

    async def handle(requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for answer in stream(requests, context):
                yield answer
            return
        except Exception as error:  # the outer edge: a client sees no internals, the log does
            status = note(error, method=method)
        await context.abort(status.code, status.message, status.trailing)

    return handle


def _parsed(parse: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return parse(body)
    except DecodeError as error:
        raise InputError(
            "the message is not what this method takes", hint="see the service's .proto"
        ) from error


def _trailing(error: KitError) -> tuple[tuple[str, str], ...]:
    """Say when to ask again: in whole seconds as HTTP does, and as gRPC's own retries read it."""
    if not isinstance(error, (OverloadedError, BrokenError)):
        return ()
    return (
        ("retry-after", str(max(1, math.ceil(error.retry_after_s)))),
        ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1e3))),
    )
