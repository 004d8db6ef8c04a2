"""The methods of ``inference.GRPCInferenceService``, bytes in and bytes out.

Infer requests go to the service as they are; everything else is asked in REST's terms, so that both
transports say the same. It knows no port, and of models no more than their names.
"""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc
import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from kit.errors import InputError
from kit.inference.paths import Kind, Route
from kit.inference.request import MAX_ID_CHARS, priority_of, timeout_s_of
from serve.calls import Answer, Call, Ended
from serve.grpc import inference_pb2 as pb
from serve.grpc.callers import header_of, headers_of, left_s_of, peer_of
from serve.grpc.contract import Action, Administering, Gate, Inferring
from serve.grpc.edge import Ask, guarded, note, status_of, unary
from serve.grpc.messages import GrpcRequest, encode_answer, plain
from serve.guards.callers import Caller
from serve.watching.logs import RequestIds
from serve.watching.outcomes import outcome_of
from serve.watching.tracing import Trace

SERVICE = "inference.GRPCInferenceService"
#: Requests of one stream that are in work at once: enough for a batch, and a client cannot pile up more.
STREAM_DEPTH = 32


@dataclass(frozen=True)
class Rooms:
    """Whom the methods ask.

    Attributes:
        service: Answers infer requests.
        administration: Answers the rest.
        gate: Says who may.
        on_end: Told of each infer request that ended.
        trace: Says what records a request, by its traceparent; None where nothing does.
    """

    service: Inferring
    administration: Administering
    gate: Gate
    on_end: Callable[[Ended], None]
    trace: Callable[[bytes | None], Trace | None] | None = None


class Servicer:
    """The service's methods.

    Args:
        rooms: Whom they ask.
    """

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._ids = RequestIds()

    def handlers(self) -> Any:
        """Give the methods as ``grpc`` takes them."""
        methods = {
            name: unary(name, getattr(pb, f"{name}Request").FromString, ask)
            for name, ask in self._administrative().items()
        }
        methods["ModelInfer"] = unary("ModelInfer", bytes, self._infer_one)
        stream = guarded("ModelStreamInfer", self._infer_stream)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def is_ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Say whether the replica, or a version in it, answers.

        Raises:
            NotFoundError: The model or the version is not served here.
        """
        route = Route("ready", "GET") if model is None else Route("model_ready", "GET", model, version)
        reply = await self._rooms.administration.answer(route, b"", caller=None)
        return reply.status == 200 and orjson.loads(reply.body).get("ready", True) is True

    async def admit(self, context: Any, action: Action, model: str | None) -> Caller:
        """Let a call pass or refuse it; says who makes it.

        Raises:
            ForbiddenError: The caller may not do this.
            UnauthorizedError: The call carries no key or token that counts.
        """
        gate = self._rooms.gate
        caller: Caller = await gate.admit_patiently(headers_of(context), peer_of(context.peer()))
        gate.authorize(caller, action, model)
        return caller

    def _administrative(self) -> dict[str, Ask]:
        return {
            "ServerLive": _live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def _infer_one(self, body: bytes, context: Any) -> pb.ModelInferResponse:
        began_s = monotonic()
        rooms = self._rooms
        headers = headers_of(context)
        request_id = self._ids.of(header_of(headers, b"x-request-id"))
        trace = rooms.trace(header_of(headers, b"traceparent")) if rooms.trace is not None else None
        model, code, outcome = "", grpc.StatusCode.OK, "ok"
        caller: Caller | None = None
        answer: Answer | None = None
        call: Call | None = None
        try:
            caller = await rooms.gate.admit_patiently(headers, peer_of(context.peer()))
            raw = GrpcRequest.parse(body)
            model, version = raw.message.model_name, raw.message.model_version or None
            rooms.gate.authorize(caller, "infer", model)
            left_s = left_s_of(
                context,
                longest_s=rooms.service.endpoint(model).deadline_s,
                timeout_s=timeout_s_of(raw.parameters),
            )
            priority = priority_of(raw.parameters)
            call = Call(
                model, version, caller, headers, began_s, began_s + left_s, priority, request_id, trace
            )
            answer = await rooms.service.infer(call, raw)
            if answer.fallback:
                outcome = "fallback"
            return encode_answer(answer)
        except BaseException as error:  # noted, a client that left too, and raised again
            outcome, code = outcome_of(error), status_of(error).code
            raise
        finally:
            seconds = monotonic() - began_s
            status: int = code.value[0]
            chosen = call.chosen if call is not None else None
            rooms.on_end(
                Ended(
                    *(model, "grpc", request_id, caller, answer, chosen, outcome, status, seconds),
                    n_bytes=len(body),
                    trace=trace,
                )
            )

    async def _infer_stream(self, bodies: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message in order, and work on several at once."""
        works: deque[Task[bytes] | None] = deque()
        arrived = asyncio.Event()
        room = asyncio.Semaphore(STREAM_DEPTH)

        async def read() -> None:
            try:
                async for body in bodies:
                    await room.acquire()
                    works.append(asyncio.create_task(self._infer_streamed(body, context)))
                    arrived.set()
            finally:
                works.append(None)
                arrived.set()

        reader = asyncio.create_task(read())
        try:
            while True:
                while not works:
                    arrived.clear()
                    await arrived.wait()
                if works[0] is None:
                    await reader
                    return
                yield await works[0]
                works.popleft()
                room.release()
        finally:
            for task in (reader, *works):
                if task is not None:
                    task.cancel()

    async def _infer_streamed(self, body: bytes, context: Any) -> bytes:
        response = pb.ModelStreamInferResponse()
        try:
            response.infer_response.MergeFrom(await self._infer_one(body, context))
        except Exception as error:  # the outer edge: one message fails, its stream goes on
            response.error_message = note(error, method="ModelStreamInfer").message
            response.infer_response.id = _id_in(body)
        written: bytes = response.SerializeToString()
        return written

    async def _ask(self, message: Any, kind: Kind, *, model: str | None, version: str = "") -> Any:
        """Ask in REST's terms and read the JSON into a message, which leaves out what REST says beyond it."""
        return await self._ask_route(message, Route(kind, "GET", model, version or None), b"")

    async def _ask_route(
        self, message: Any, route: Route, body: bytes, *, caller: Caller | None = None
    ) -> Any:
        reply = await self._rooms.administration.answer(route, body, caller=caller)
        value = orjson.loads(reply.body) if reply.body else {}
        if isinstance(value, list):  # the index is a list in REST
            value = {"models": value}
        return json_format.ParseDict(value, message, ignore_unknown_fields=True)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=await self.is_ready())

    async def _model_ready(self, request: Any, context: Any) -> Any:
        await self.admit(context, "read", request.name)
        return pb.ModelReadyResponse(ready=await self.is_ready(request.name, request.version or None))

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        await self.admit(context, "read", None)
        return await self._ask(pb.ServerMetadataResponse(), "server", model=None)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        await self.admit(context, "read", request.name)
        message = pb.ModelMetadataResponse()
        return await self._ask(message, "model", model=request.name, version=request.version)

    async def _config(self, request: Any, context: Any) -> Any:
        await self.admit(context, "read", request.name)
        message = pb.ModelConfigResponse()
        await self._ask(message.config, "config", model=request.name, version=request.version)
        return message

    async def _statistics(self, request: Any, context: Any) -> Any:
        await self.admit(context, "admin", request.name or None)
        message = pb.ModelStatisticsResponse()
        if not request.name:
            return await self._ask(message, "all_stats", model=None)
        return await self._ask(message, "stats", model=request.name, version=request.version)

    async def _index(self, request: Any, context: Any) -> Any:
        caller = await self.admit(context, "read", None)
        _refuse_repository(request)
        body = orjson.dumps({"ready": request.ready})
        return await self._ask_route(
            pb.RepositoryIndexResponse(), Route("index", "POST"), body, caller=caller
        )

    async def _load(self, request: Any, context: Any) -> Any:
        return await self._change("load", request, context, pb.RepositoryModelLoadResponse())

    async def _unload(self, request: Any, context: Any) -> Any:
        return await self._change("unload", request, context, pb.RepositoryModelUnloadResponse())

    async def _change(self, kind: Kind, request: Any, context: Any, message: Any) -> Any:
        await self.admit(context, "admin", request.model_name)
        _refuse_repository(request)
        parameters = plain(request.parameters)
        for name, value in parameters.items():
            if isinstance(value, bytes):
                raise InputError(f"parameter {name[:80]!r} holds a file, which is not taken here")
        body = orjson.dumps({"parameters": parameters})
        return await self._ask_route(message, Route(kind, "POST", request.model_name), body)


async def _live(request: Any, context: Any) -> Any:
    return pb.ServerLiveResponse(live=True)


def _id_in(body: bytes) -> str:
    """Give the id of a request that failed; "" when not even that can be read."""
    try:
        return str(pb.ModelInferRequest.FromString(body).id[:MAX_ID_CHARS])
    except DecodeError:
        return ""


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise InputError("there is one repository here", hint="leave repository_name empty")
