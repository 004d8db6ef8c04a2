"""The ASGI application: who may ask, which path, the body, and the answer's bytes.

ASGI in, ASGI out. What bytes mean is ``serve.protocol``'s, who may ask ``serve.guards``'s, which version
answers ``serve.service``'s. It knows no port and starts nothing but the sweep that ends requests nobody
waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from asyncio import CancelledError, Task, current_task
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from kit.errors import InputError, KitError
from kit.inference.card import Reply
from kit.inference.compression import QUICK_BYTES, Unpacking, answer_coding, pack
from kit.inference.errors import TooLargeError
from kit.inference.failures import encode_error
from kit.inference.paths import ACTIONS, OPEN_KINDS, Paths, Route, read_header_length
from kit.inference.request import priority_of, timeout_s_of
from kit.inference.rest import encode_answer, parse_infer
from serve.administration import Administration
from serve.calls import Answer, Call, Ended
from serve.guards.callers import Caller
from serve.guards.gatekeeper import Gatekeeper
from serve.guards.tokens import UnsettledError
from serve.protocol.body import read_json, write_json
from serve.protocol.rows import encode_rows, parse_rows
from serve.service import Service
from serve.watching.logs import RequestIds, RequestLine, RequestLog
from serve.watching.metrics import Metrics
from serve.watching.outcomes import outcome_of
from serve.watching.tracing import Trace, Tracing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Who connects to the replica's own socket: HAProxy, which runs on this machine.
_PROXY = ("127.0.0.1", 0)
_SWEEP_S = 0.05
_BODY_TIMEOUT_S = 20.0
_LEAST_BYTES_PER_S = 50_000

#: ``ray.serve`` is what reaches a replica's log file; "kit" has no handler there.
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Rooms:
    """Whom the application asks.

    Attributes:
        gatekeeper: Says who may.
        metrics: Counts.
        log: Takes a line per request, or per failed one.
        tracing: Records some requests; None records none.
        start: Awaited before the first request; gives what answers.
        listen: Awaited when the application can answer.
        stop: Awaited after the last.
    """

    gatekeeper: Gatekeeper
    metrics: Metrics
    log: RequestLog
    tracing: Tracing | None
    start: Callable[[], Awaitable[tuple[Service, Administration]]]
    listen: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]


class _Work:
    """A request in work: since when, how far, and what would end it early."""

    __slots__ = (
        "answer",
        "began_s",
        "call",
        "caller",
        "echoed",
        "gone",
        "n_bytes",
        "reading",
        "receive",
        "request_id",
        "task",
        "trace",
        "watch",
    )

    def __init__(self, task: Task[Any], receive: Receive) -> None:
        self.task, self.receive = task, receive
        self.began_s = monotonic()
        self.request_id = ""
        self.echoed = False
        self.caller: Caller | None = None
        self.call: Call | None = None
        self.answer: Answer | None = None
        self.trace: Trace | None = None
        self.n_bytes = 0
        self.reading = True
        self.gone = ""
        self.watch: Task[None] | None = None


class App:
    """The application of one replica.

    Args:
        rooms: Whom it asks.
        max_body_bytes: Largest accepted body.
    """

    def __init__(self, rooms: Rooms, *, max_body_bytes: int) -> None:
        self._rooms = rooms
        self._gatekeeper = rooms.gatekeeper
        self._metrics = rooms.metrics
        self._log = rooms.log
        self._max_body_bytes = max_body_bytes
        self._paths = Paths()
        self._ids = RequestIds()
        self._works: set[_Work] = set()
        self._sweeper: Task[None] | None = None
        self._service: Service
        self._administration: Administration

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection that comes through Ray Serve."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send, through_ray=True)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        else:  # a WebSocket: refused before it is accepted
            await send({"type": "websocket.close", "code": 1000})

    async def behind_proxy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request that HAProxy hands over at the replica's own socket."""
        scope["client"] = _PROXY
        await self._http(scope, receive, send, through_ray=False)

    def ended(self, ended: Ended) -> None:
        """Count, log and trace how a request for a prediction ended."""
        answer = ended.answer
        if answer is not None:
            model, version = answer.card.name, answer.card.version
        elif ended.chosen is not None:
            model, version = ended.chosen.model, str(ended.chosen.number)
        else:
            model, version = (ended.model if ended.model in self._service.endpoints else ""), ""
        self._metrics.observe(model, version, ended.transport, ended.outcome, ended.seconds)
        if self._log.wants(ended.outcome):
            self._log.request(
                RequestLine(
                    time.time(),
                    ended.request_id,
                    model,
                    version,
                    ended.outcome,
                    ended.status,
                    ended.seconds,
                    answer.request.n_rows if answer is not None else 0,
                    ended.n_bytes,
                    ended.transport,
                    ended.caller.subject if ended.caller is not None else "",
                )
            )
        if ended.trace is not None and self._rooms.tracing is not None:
            about: dict[str, str | int | float] = {"request_id": ended.request_id, "status": ended.status}
            if version:
                about |= {"model": model, "version": int(version)}
            self._rooms.tracing.end(
                ended.trace, name=f"infer {model}".strip(), outcome=ended.outcome, about=about
            )

    async def _http(self, scope: Scope, receive: Receive, send: Send, *, through_ray: bool) -> None:
        task = current_task()
        assert task is not None
        work = _Work(task, receive)
        self._works.add(work)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        work.request_id = self._ids.of(given)
        # Ray gives every request an id that has none, and every answer its request's id.
        work.echoed = through_ray and given is not None and given == work.request_id.encode()
        tracing = self._rooms.tracing
        if tracing is not None:
            work.trace = tracing.begin(headers.get(b"traceparent"))
        route: Route | None = None
        reply: Reply | None = None
        try:
            route = self._paths.find(scope["method"], scope["path"])
            outcome, reply = await self._routed(route, scope, headers, work)
        except CancelledError:
            outcome = work.gone or "cancelled"
            if not work.gone:  # somebody else ends this: the replica, or Ray
                self._account(route, work, outcome=outcome, status=499)
                raise
            task.uncancel()
            if outcome == "slow":
                reply = encode_error(_slow())
        except KitError as error:
            outcome, reply = outcome_of(error), encode_error(error)
        except Exception as error:  # the outer edge: a client sees no internals, the log does
            _logger.exception("request %s failed", work.request_id)
            outcome, reply = "internal", encode_error(error)
        finally:
            self._works.discard(work)
            if work.watch is not None:
                work.watch.cancel()
        try:
            if reply is not None:
                await _send(reply, work, send)
        finally:
            self._account(route, work, outcome=outcome, status=reply.status if reply is not None else 499)

    def _account(self, route: Route | None, work: _Work, *, outcome: str, status: int) -> None:
        """Account for a request that has ended, if it was for a prediction."""
        if route is not None and route.kind not in ("infer", "predict"):
            return
        call = work.call
        model = (route.model if route is not None else None) or ""
        self.ended(
            Ended(
                model,
                "http",
                work.request_id,
                work.caller,
                work.answer,
                call.chosen if call is not None else None,
                outcome,
                status,
                monotonic() - work.began_s,
                work.n_bytes,
                work.trace,
            )
        )

    async def _routed(
        self, route: Route, scope: Scope, headers: dict[bytes, bytes], work: _Work
    ) -> tuple[str, Reply]:
        """Answer a request whose path is known; gives the outcome and the answer."""
        kind = route.kind
        if kind not in OPEN_KINDS or self._gatekeeper.asks_peers:
            client = scope.get("client")
            peer = client[0] if client else None
            try:
                work.caller = self._gatekeeper.admit(scope["headers"], peer)
            except UnsettledError:
                work.caller = await self._gatekeeper.admit_patiently(scope["headers"], peer)
            self._gatekeeper.authorize(work.caller, ACTIONS[kind], route.model)
        if kind == "infer" or kind == "predict":
            reply = await self._infer(route, scope, headers, work)
            coding = answer_coding(headers.get(b"accept-encoding"), n_bytes=len(reply.body))
            if coding is not None:
                reply = await _packed(reply, coding)
            assert work.answer is not None
            return ("fallback" if work.answer.fallback else "ok"), reply
        body = await self._body(headers, work) if route.method == "POST" else b""
        work.reading = False
        return "ok", await self._administration.answer(route, body, caller=work.caller)

    async def _infer(self, route: Route, scope: Scope, headers: dict[bytes, bytes], work: _Work) -> Reply:
        model, caller = route.model, work.caller
        assert model is not None
        assert caller is not None
        body = await self._body(headers, work)
        is_infer = route.kind == "infer"
        raw = (
            parse_infer(
                body,
                read=read_json,
                header_length=read_header_length(headers.get(b"inference-header-content-length")),
            )
            if is_infer
            else parse_rows(body, content_type=headers.get(b"content-type", b""))
        )
        allowed_s = self._service.endpoint(model).deadline_s
        asked_s = timeout_s_of(raw.parameters)
        if asked_s is not None and asked_s < allowed_s:
            allowed_s = asked_s
        call = work.call = Call(
            model,
            route.version,
            caller,
            scope["headers"],
            work.began_s,
            work.began_s + allowed_s,
            priority_of(raw.parameters),
            work.request_id,
            work.trace,
        )
        answer = work.answer = await self._service.infer(call, raw)
        parameters = {"fallback": answer.fallback} if answer.fallback else None
        if is_infer:
            return encode_answer(
                answer.request, answer.card, answer.outputs, write=write_json, parameters=parameters
            )
        return encode_rows(
            answer.request,
            answer.card,
            answer.outputs,
            accept=headers.get(b"accept", b""),
            parameters=parameters,
        )

    async def _body(self, headers: dict[bytes, bytes], work: _Work) -> bytes:
        length = headers.get(b"content-length", b"")
        most = self._max_body_bytes
        if length.isdigit() and int(length) > most:
            raise self._too_large()
        receive = work.receive
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False) or message["type"] != "http.request":
            body = await self._rest(body, message, work)
        elif len(body) > most:
            raise self._too_large()
        work.reading = False
        coding = headers.get(b"content-encoding")
        if coding is not None and coding not in (b"", b"identity"):
            body = await self._unpacked(body, coding)
        work.n_bytes = len(body)
        return body

    async def _unpacked(self, body: bytes, coding: bytes) -> bytes:
        unpacking = Unpacking(body, coding=coding, max_bytes=self._max_body_bytes)
        whole = unpacking.step(QUICK_BYTES)
        if whole is None:
            whole = await asyncio.to_thread(unpacking.step)
        assert whole is not None
        if len(whole) > self._max_body_bytes:
            raise self._too_large()
        return whole

    async def _rest(self, first: bytes, message: Message, work: _Work) -> bytes:
        chunks = [first]
        size = len(first)
        while True:
            if message["type"] == "http.disconnect":
                work.gone = "cancelled"
                raise CancelledError
            if size > self._max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(chunks)
            message = await work.receive()
            chunk = message.get("body", b"")
            size += len(chunk)
            work.n_bytes = size
            chunks.append(chunk)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body is larger than {self._max_body_bytes} bytes", hint="send fewer rows per request"
        )

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._service, self._administration = await self._rooms.start()
                self._sweeper = asyncio.create_task(self._sweep())
                await self._rooms.listen()
            else:
                if self._sweeper is not None:
                    self._sweeper.cancel()
                    with contextlib.suppress(CancelledError):
                        await self._sweeper
                await self._rooms.stop()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _sweep(self) -> None:
        """End what nobody waits for any more: bodies that do not come, clients that have gone.

        One look at all requests 20 times a second costs less than a timer and a second task for each of
        thousands a second.
        """
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = monotonic()
            for each in [each for each in self._works if now_s - each.began_s > _SWEEP_S]:
                if each.reading:
                    # Slow lines are allowed, lines that trickle are not.
                    if now_s - each.began_s > _BODY_TIMEOUT_S + each.n_bytes / _LEAST_BYTES_PER_S:
                        each.gone = "slow"
                        each.task.cancel()
                elif each.watch is None:
                    each.watch = asyncio.create_task(_until_gone(each))


async def _until_gone(work: _Work) -> None:
    """End a request when its client has gone."""
    while (await work.receive())["type"] != "http.disconnect":
        pass
    work.gone = "cancelled"
    work.task.cancel()


async def _packed(reply: Reply, coding: bytes) -> Reply:
    """Compress an answer, in a thread when others would feel it."""
    if len(reply.body) <= QUICK_BYTES:
        body = pack(reply.body, coding=coding)
    else:
        body = await asyncio.to_thread(pack, reply.body, coding=coding)
    return reply._replace(body=body, headers=(*reply.headers, (b"content-encoding", coding)))


def _slow() -> KitError:
    return InputError(f"the body did not come within {_BODY_TIMEOUT_S:g} s", hint="send it faster")


async def _send(reply: Reply, work: _Work, send: Send) -> None:
    answer = work.answer
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    if not work.echoed:
        headers.append((b"x-request-id", work.request_id.encode()))
    if answer is not None:
        headers.append((b"kit-version", answer.card.version.encode()))
        headers.append((b"kit-release", b"%d" % answer.release))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
