"""``grpc.health.v1`` and server reflection beside the service.

Health is asked without a key, for the replica ("" or the service's name) and for each model by its name;
reflection shows these services and nothing else that the process has loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection

from kit.errors import NotFoundError
from serve.grpc import inference_pb2 as pb
from serve.grpc.edge import guarded, note
from serve.grpc.servicer import SERVICE, Servicer

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_WATCH_S = 0.5
_States = health_pb2.HealthCheckResponse


class Health:
    """Answers ``Check`` and ``Watch`` with what holds at that moment.

    Args:
        servicer: Knows what is ready.
    """

    def __init__(self, servicer: Servicer) -> None:
        self._servicer = servicer
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Say NOT_SERVING from now on, and end what watches."""
        self._closing.set()

    def handlers(self) -> Any:
        """Give the methods as ``grpc`` takes them."""
        parse, write = health_pb2.HealthCheckRequest.FromString, _States.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, parse, write),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, parse, write),
            },
        )

    async def _state(self, name: str) -> Any:
        if self._closing.is_set():
            return _States.NOT_SERVING
        try:
            ready = await self._servicer.is_ready(None if name in ("", SERVICE) else name)
        except NotFoundError:
            return _States.SERVICE_UNKNOWN
        except Exception as error:  # the outer edge: whoever asks learns that it does not answer, the log why
            note(error, method="Health")
            return _States.NOT_SERVING
        return _States.SERVING if ready else _States.NOT_SERVING

    async def _check(self, request: Any, context: Any) -> Any:
        state = await self._state(request.service)
        if state == _States.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.service[:80]!r} is not served here")
        return _States(status=state)

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Send the state and each change of it.

        Nothing tells of changes: a look twice a second is cheap, and no path can forget to tell.
        """
        sent = None
        while True:
            closing = self._closing.is_set()  # asked first, so that the last state is never left out
            state = await self._state(request.service)
            if state != sent:
                yield _States(status=state)
                sent = state
            if closing:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _WATCH_S)


def reflection_handlers(servicer: Servicer) -> Any:
    """Give reflection's one method as ``grpc`` takes it; it asks for a key like every description.

    Args:
        servicer: Knows who may ask.
    """
    pool = DescriptorPool()
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    answers = reflection.ReflectionServicer([SERVICE, HEALTH, REFLECTION], pool=pool)

    async def reflect(requests: Any, context: Any) -> AsyncIterator[Any]:
        await servicer.admit(context, "read", None)
        async for answer in answers.ServerReflectionInfo(requests, context):
            yield answer

    method = grpc.stream_stream_rpc_method_handler(
        guarded("ServerReflectionInfo", reflect),
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(REFLECTION, {"ServerReflectionInfo": method})
