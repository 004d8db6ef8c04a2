"""The endpoint's replica: a raw ASGI application around one verified model.

ASGI in, ASGI out: it reads bodies within their limit, lets in who may ask, and hands bytes to
``serve.protocol`` and tensors to the engine. It knows no port and starts nothing; Ray Serve makes one
``Replica`` per process. Every replica verifies the model itself and checks keys itself, because Ray Serve
also opens the replicas' own ports, which no proxy guards.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.engines import Engine, open_engine
from kit.errors import InputError, KitError
from kit.model_version import ModelVersion
from serve.protocol import (
    OPEN_PATHS,
    Card,
    ForbiddenError,
    Reply,
    Routes,
    TooLargeError,
    UnauthorizedError,
    describe,
    encode_answer,
    encode_error,
    parse_infer,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: ``ray.serve`` is what reaches a replica's log file; "kit" has no handler there.
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class ReplicaPlan:
    """Everything a replica is told.

    Attributes:
        folder: The model version's folder.
        digest: The digest the folder must have.
        number: The version's number in the registry.
        trusted: Public keys (PEM), one of which must have signed the version.
        engine: What runs the model.
        threads: Threads of one engine call; 0 is the engine's choice.
        max_body_bytes: Largest accepted request body.
        key_sha256: Hash of the key that requests must carry, hexadecimal; None answers peers on this
            machine and nobody else.
        local_addresses: This machine's own addresses beside the loopback ones.
    """

    folder: Path
    digest: str
    number: int
    trusted: tuple[bytes, ...]
    engine: str
    threads: int
    max_body_bytes: int
    key_sha256: str | None
    local_addresses: frozenset[str]


class Guard:
    """Who may ask.

    Args:
        key_sha256: See ``ReplicaPlan``.
        local_addresses: See ``ReplicaPlan``.
    """

    def __init__(self, *, key_sha256: str | None, local_addresses: frozenset[str]) -> None:
        self._key_sha256 = key_sha256
        self._local = local_addresses | {"127.0.0.1", "::1"}

    def admit(self, scope: Scope) -> None:
        """Let a request pass or refuse it.

        The peer is whoever opened the connection: the client, or HAProxy, which runs on this machine
        and, without a key, listens on it alone.

        Raises:
            ForbiddenError: There is no key and the peer is another machine.
            UnauthorizedError: The request does not carry the key.
        """
        if self._key_sha256 is None:
            client = scope.get("client")
            if client is None or client[0] not in self._local:
                raise ForbiddenError("only requests from this machine are answered", hint="serve with a key")
            return
        if scope["path"] in OPEN_PATHS:
            return
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        # Comparing hashes: a replica never holds the key, and the time says nothing about it.
        given = hashlib.sha256(token.strip()).hexdigest()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self._key_sha256):
            raise UnauthorizedError(
                "the endpoint's key is missing or wrong", hint="send it as Authorization: Bearer KEY"
            )


class Endpoint:
    """The ASGI application of one model.

    Args:
        engine: The loaded model.
        card: What clients may know about it.
        guard: Who may ask.
        max_body_bytes: Largest accepted request body.
    """

    def __init__(self, engine: Engine, *, card: Card, guard: Guard, max_body_bytes: int) -> None:
        self._engine = engine
        self._routes = Routes([card])
        self._guard = guard
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                reply = await self._answer(scope, receive)
            except KitError as error:
                reply = encode_error(error)
            except Exception as error:  # the outer edge: a client sees no internals, the log does
                _logger.exception("request %s failed", _header(scope, b"x-request-id").decode("latin-1"))
                reply = encode_error(error)
            if reply is not None:
                await _send(reply, send)
        else:  # a WebSocket: refused before it is accepted
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive) -> Reply | None:
        """Answer a request; None when the client has gone."""
        self._guard.admit(scope)
        route = self._routes.find(scope["method"], scope["path"])
        if route.kind != "infer" or route.card is None:
            return describe(route)
        body = await self._read_body(scope, receive)
        if body is None:
            return None
        request = parse_infer(body, route.card.signature)
        # On the event loop: a small MLP answers in 6 us here and in 33 to 80 us through a one-thread executor
        # (2 cores), and one replica computes one batch at a time either way.
        answers = self._engine.run_validated(request.inputs)
        return encode_answer(request, route.card, answers)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Read a body; None when the client went away before its end."""
        encoding = _header(scope, b"content-encoding")
        if encoding not in (b"", b"identity"):
            shown = encoding[:20].decode("latin-1")
            raise InputError(f"content encoding {shown!r} is not read here", hint="send plain JSON")
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body is larger than {self._max_body_bytes} bytes", hint="send fewer rows per request"
        )


class Replica:
    """One process of the endpoint: verifies its model, loads it, warms it, answers.

    Args:
        plan: What to serve and to whom.

    Raises:
        VerificationError: The folder is not the version that was asked for, byte by byte.
    """

    def __init__(self, plan: ReplicaPlan) -> None:
        version = ModelVersion.open(plan.folder, trusted=plan.trusted, digest=plan.digest)
        engine = open_engine(
            version.model_path, engine=plan.engine, threads=plan.threads, signature=version.signature
        )
        inputs, _ = version.golden()
        engine.run({name: array[:1] for name, array in inputs.items()})  # pay the first call's cost now
        self._engine = engine
        self._plan = plan
        self._card = Card(version.name, plan.number, version.digest, plan.engine, version.signature)

    def __serve_build_asgi_app__(self) -> Endpoint:
        """Give Ray Serve the application (it asks once, after ``__init__``)."""
        plan = self._plan
        guard = Guard(key_sha256=plan.key_sha256, local_addresses=plan.local_addresses)
        return Endpoint(self._engine, card=self._card, guard=guard, max_body_bytes=plan.max_body_bytes)


def _header(scope: Scope, name: bytes) -> bytes:
    """Give a request header's value, b"" when it is absent."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send(reply: Reply, send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
