"""A real gRPC server on uvloop and real clients, with one small model behind them."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from kit.engines import Engine, open_engine
from kit.errors import GateError, InputError, KitError, ModelError, NotFoundError, UnavailableError
from kit.inference.card import Card, Reply
from kit.inference.errors import (
    BrokenError,
    DeadlineError,
    ForbiddenError,
    MethodError,
    OverloadedError,
    TooLargeError,
    UnauthorizedError,
)
from kit.inference.health import describe_model_ready, describe_ready, describe_server
from kit.inference.metadata import describe_model
from kit.inference.paths import Route
from kit.signature import Signature
from serve.calls import Answer, Call, Ended
from serve.grpc import inference_pb2 as pb
from serve.grpc.contract import Action, Gate, Headers
from serve.grpc.messages import GrpcRequest
from serve.grpc.server import GrpcOptions, GrpcServer
from serve.grpc.servicer import SERVICE, STREAM_DEPTH, Rooms
from serve.guards.callers import Caller
from serve.guards.gatekeeper import Gatekeeper, GuardPlan
from serve.protocol.metadata import (
    EXTENSIONS,
    PLATFORM,
    Indexed,
    describe_config,
    describe_index,
    describe_statistics,
    read_index,
)
from serve.watching.outcomes import outcome_of
from serve.watching.version_metrics import Statistics

KEY = (("authorization", "Bearer key"),)
READER = (("authorization", "Bearer reader"),)
ROWS = np.array([[1, 2], [-3, 4]], dtype=np.float32)
METHODS = {each.name: each for each in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
LOOPBACK = ipaddress.ip_address("127.0.0.1")
OPEN = {"ServerLive", "ServerReady"}

Hold = Callable[[], Awaitable[None]]


@dataclass
class Bounds:
    deadline_s: float = 30.0


class OneModel:
    """A service of one model, "tiny": what a request names as ``raise`` it raises, ``hold`` it waits for."""

    def __init__(self, engine: Engine, signature: Signature) -> None:
        self.engine = engine
        self.card = Card("tiny", 3, "ab" * 32, "onnxruntime", signature)
        self.raises: dict[str, Exception] = {}
        self.holds: dict[str, Hold] = {}
        self.calls: list[Call] = []
        self.ended: list[Ended] = []

    def endpoint(self, model: str) -> Bounds:
        if model != "tiny":
            raise NotFoundError(f"model {model!r} is not served here", hint="ask for tiny")
        return Bounds()

    async def infer(self, call: Call, raw: GrpcRequest) -> Answer:
        self.calls.append(call)
        name = raw.id or ""
        if name in self.holds:
            await self.holds[name]()
        if name in self.raises:
            raise self.raises[name]
        request = raw.decode(self.card.signature)
        return Answer(request, self.card, self.engine.run_validated(request.inputs), 7, "", False)


class Administration:
    """Everything but infer, as REST writes it, and a note of what was asked."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.asked: list[tuple[Route, bytes]] = []
        self.ready = True
        self.fault: Exception | None = None

    async def answer(self, route: Route, body: bytes, *, caller: Caller | None) -> Reply:
        self.asked.append((route, body))
        if self.fault is not None:
            raise self.fault
        if route.model not in (None, "tiny"):
            raise NotFoundError(f"model {route.model!r} is not served here")
        card = self.card
        counted = [(card, Statistics(rows=5, success_ns=9, by_rows={2: (1, 7)}))]
        described = {
            "ready": lambda: describe_ready(ready=self.ready),
            "model_ready": lambda: describe_model_ready("tiny", ready=self.ready),
            "server": lambda: describe_server(EXTENSIONS),
            "model": lambda: describe_model(card, platform=PLATFORM, versions=["3", "4"]),
            "config": lambda: describe_config(card, max_batch_rows=256, max_wait_s=0.002),
            "stats": lambda: describe_statistics(counted),
            "all_stats": lambda: describe_statistics(counted),
            "index": lambda: describe_index([Indexed("tiny", "3", "READY")], ready=read_index(body)),
            "load": lambda: Reply(200, b""),
            "unload": lambda: Reply(200, b""),
        }
        return described[route.kind]()


class KeyGate:
    """Lets "key" do everything and "reader" read."""

    async def admit_patiently(self, headers: Headers, peer: str | None) -> Caller:
        assert peer == "127.0.0.1"
        given = dict(headers).get(b"authorization", b"").decode().removeprefix("Bearer ")
        if given not in ("key", "reader"):
            raise UnauthorizedError("the endpoint's key is missing", hint="send it")
        return Caller(given, frozenset(), "key")

    def authorize(self, caller: Caller, action: Action, model: str | None) -> None:
        if caller.subject == "reader" and action != "read":
            raise ForbiddenError(f"this takes the scope {action}")


class Client:
    """A stub of the service, made of its descriptor."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def __getattr__(self, name: str) -> Any:
        method = METHODS[name]
        kind = "stream_stream" if method.server_streaming else "unary_unary"
        return getattr(self.channel, kind)(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(pb, method.output_type.name).FromString,
        )


class Bench(NamedTuple):
    """A server, a client of it and what stands behind it."""

    client: Client
    server: GrpcServer
    service: OneModel
    administration: Administration


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_onnx: bytes, tiny_signature: Signature) -> Engine:
    path = tmp_path_factory.mktemp("grpc") / "model.onnx"
    path.write_bytes(tiny_onnx)
    return open_engine(path, engine="onnxruntime", threads=1, signature=tiny_signature)


@pytest.fixture
def serving(engine: Engine, tiny_signature: Signature) -> Callable[..., Any]:
    @asynccontextmanager
    async def serving(
        *, root: bytes | None = None, gate: Gate | None = None, **changes: Any
    ) -> AsyncIterator[Bench]:
        service = OneModel(engine, tiny_signature)
        administration = Administration(service.card)
        rooms = Rooms(service, administration, gate or KeyGate(), service.ended.append)
        options = {"host": "127.0.0.1", "port": 0, "max_body_bytes": 1 << 20, **changes}
        server = GrpcServer(rooms, options=GrpcOptions(**options))
        await server.start()
        target = f"127.0.0.1:{server.port}"
        if root is None:
            channel = grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        else:
            channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(root))
        try:
            yield Bench(Client(channel), server, service, administration)
        finally:
            await channel.close()
            await server.stop(0)

    return serving


def request(rows: np.ndarray = ROWS, **changes: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="tiny", **changes)
    message.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    return message


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def code_of(error: grpc.aio.AioRpcError) -> str:
    return str(error.code().name)


def test_an_answer_over_grpc_is_the_engines(serving: Any) -> None:
    async def scenario() -> None:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        async with serving() as bench:
            named = (*KEY, ("x-request-id", "r0"))
            answer = await bench.client.ModelInfer(request(id="a", model_version="3"), metadata=named)
            wanted = bench.service.engine.run({"x": ROWS})
            assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "3", "a")
            assert answer.parameters["release"].int64_param == 7
            assert answer.parameters["version"].string_param == "3"
            assert [each.name for each in answer.outputs] == list(wanted)
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
                assert raw == wanted[output.name].tobytes()
                assert tuple(output.shape) == wanted[output.name].shape
            (call,) = bench.service.calls
            assert (call.model, call.version, call.caller.subject, call.request_id) == (
                "tiny",
                "3",
                "key",
                "r0",
            )
            assert (b"authorization", b"Bearer key") in call.headers
            (ended,) = bench.service.ended
            assert (ended.model, ended.transport, ended.request_id) == ("tiny", "grpc", "r0")
            assert (ended.outcome, ended.status, ended.seconds > 0) == ("ok", 0, True)

    uvloop.run(scenario())


def test_everything_but_infer_is_answered_as_rest_answers_it(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            client, asked = bench.client, bench.administration.asked
            assert (await client.ServerLive(pb.ServerLiveRequest())).live
            assert (await client.ServerReady(pb.ServerReadyRequest())).ready
            ready = await client.ModelReady(pb.ModelReadyRequest(name="tiny", version="3"), metadata=KEY)
            assert ready.ready
            assert asked[-1][0] == Route("model_ready", "GET", "tiny", "3")
            server = await client.ServerMetadata(pb.ServerMetadataRequest(), metadata=KEY)
            assert server.name == "kit"
            assert "model_repository" in server.extensions
            model = await client.ModelMetadata(pb.ModelMetadataRequest(name="tiny"), metadata=KEY)
            assert (model.inputs[0].datatype, list(model.inputs[0].shape)) == ("FP32", [-1, 2])
            assert list(model.versions) == ["3", "4"]
            config = (await client.ModelConfig(pb.ModelConfigRequest(name="tiny"), metadata=KEY)).config
            assert (config.max_batch_size, config.input[0].data_type) == (256, pb.TYPE_FP32)
            assert list(config.version_policy.specific.versions) == [3]
            assert config.dynamic_batching.max_queue_delay_microseconds == 2000
            stats = await client.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"), metadata=KEY)
            assert stats.model_stats[0].inference_count == 5
            stats = await client.ModelStatistics(pb.ModelStatisticsRequest(), metadata=KEY)
            assert stats.model_stats[0].inference_stats.success.ns == 9
            assert [
                (each.batch_size, each.compute_infer.ns) for each in stats.model_stats[0].batch_stats
            ] == [(2, 7)]
            index = await client.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), metadata=KEY)
            assert [(each.name, each.state) for each in index.models] == [("tiny", "READY")]
            assert asked[-1] == (Route("index", "POST"), b'{"ready":true}')
            load = pb.RepositoryModelLoadRequest(model_name="tiny")
            load.parameters["version"].int64_param = 3
            await client.RepositoryModelLoad(load, metadata=KEY)
            assert asked[-1] == (Route("load", "POST", "tiny"), b'{"parameters":{"version":3}}')
            await client.RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(model_name="tiny"), metadata=KEY
            )
            assert asked[-1][0] == Route("unload", "POST", "tiny")

    uvloop.run(scenario())


def test_a_file_is_not_loaded_and_another_repository_not_known(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            load = pb.RepositoryModelLoadRequest(model_name="tiny")
            load.parameters["file:1/model.onnx"].bytes_param = b"onnx"
            error = await refusal(bench.client.RepositoryModelLoad(load, metadata=KEY))
            assert (code_of(error), "holds a file" in error.details()) == ("INVALID_ARGUMENT", True)
            index = pb.RepositoryIndexRequest(repository_name="other")
            assert (
                code_of(await refusal(bench.client.RepositoryIndex(index, metadata=KEY)))
                == "INVALID_ARGUMENT"
            )
            assert not bench.administration.asked

    uvloop.run(scenario())


def test_a_stream_is_answered_in_order_while_its_requests_overlap(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            second_is_there = asyncio.Event()

            async def arrive() -> None:
                second_is_there.set()

            bench.service.holds = {"first": second_is_there.wait, "second": arrive}
            stream = bench.client.ModelStreamInfer(metadata=KEY)
            for name in ("first", "second"):
                await stream.write(request(id=name))
            await stream.done_writing()
            assert [answer.infer_response.id async for answer in stream] == ["first", "second"]

    uvloop.run(scenario())


def test_an_error_in_a_stream_ends_its_own_message_alone(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            bench.service.raises["bug"] = RuntimeError("/secret/path")
            stream = bench.client.ModelStreamInfer(metadata=KEY)
            wrong = request(ROWS[:, :1], id="wrong")
            for message in (request(id="a"), wrong, request(id="bug"), request(id="b")):
                await stream.write(message)
            await stream.done_writing()
            answers = [answer async for answer in stream]
            assert [each.infer_response.id for each in answers] == ["a", "wrong", "bug", "b"]
            assert [bool(each.error_message) for each in answers] == [False, True, True, False]
            assert answers[1].error_message.startswith("input 'x' has shape [2, 1]")
            assert answers[2].error_message == "internal error; the endpoint's log says more"
            assert len(answers[3].infer_response.raw_output_contents) == 3

    uvloop.run(scenario())


def test_a_stream_that_is_not_read_does_not_pile_up(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            gate = asyncio.Event()
            bench.service.holds["held"] = gate.wait
            stream = bench.client.ModelStreamInfer(metadata=KEY)
            for _ in range(3 * STREAM_DEPTH):
                await stream.write(request(id="held"))
            await bench.client.ServerLive(pb.ServerLiveRequest())
            assert len(bench.service.calls) <= STREAM_DEPTH
            gate.set()
            await stream.done_writing()
            assert len([answer async for answer in stream]) == 3 * STREAM_DEPTH

    uvloop.run(scenario())


@pytest.mark.parametrize("metadata,code", [((), "UNAUTHENTICATED"), (READER, "PERMISSION_DENIED")])
def test_only_health_is_open_to_all(serving: Any, metadata: Sequence[tuple[str, str]], code: str) -> None:
    changes = {"ModelInfer", "ModelStatistics", "RepositoryModelLoad", "RepositoryModelUnload"}
    closed = METHODS.keys() - OPEN - {"ModelStreamInfer"} if not metadata else changes

    async def scenario() -> None:
        async with serving() as bench:
            for name in closed:
                message = getattr(pb, METHODS[name].input_type.name)()
                assert (
                    code_of(await refusal(getattr(bench.client, name)(message, metadata=metadata))) == code
                ), name
            for name in OPEN:
                await getattr(bench.client, name)(getattr(pb, METHODS[name].input_type.name)())
            stream = bench.client.ModelStreamInfer(metadata=metadata)
            await stream.write(request())
            await stream.done_writing()
            assert [bool(answer.error_message) async for answer in stream] == [True]
            assert not bench.service.calls

    uvloop.run(scenario())


def test_the_endpoints_own_gatekeeper_guards_it(serving: Any, tmp_path: Path) -> None:
    plan = GuardPlan(
        auth="key",
        open_to_all=False,
        endpoint_sha256=hashlib.sha256(b"key").digest(),
        keys_file=tmp_path / "keys.json",
        jwt=None,
        local_addresses=frozenset(),
    )
    gatekeeper = Gatekeeper(plan)

    async def scenario() -> None:
        async with serving(gate=gatekeeper) as bench:
            assert (await bench.client.ModelInfer(request(id="a"), metadata=KEY)).id == "a"
            error = await refusal(bench.client.ModelInfer(request(), metadata=READER))
            assert (code_of(error), error.details()) == (
                "UNAUTHENTICATED",
                "the endpoint's key is wrong; send it as Authorization: Bearer KEY",
            )

    try:
        uvloop.run(scenario())
    finally:
        gatekeeper.close()


def overloaded(kind: type[OverloadedError | BrokenError]) -> KitError:
    error = kind("the queue is full", hint="try again")
    error.retry_after_s = 2.2
    return error


@pytest.mark.parametrize(
    "error,code",
    [
        (MethodError("no", hint="yes"), "UNIMPLEMENTED"),
        (TooLargeError("large"), "RESOURCE_EXHAUSTED"),
        (overloaded(OverloadedError), "RESOURCE_EXHAUSTED"),
        (DeadlineError("late"), "DEADLINE_EXCEEDED"),
        (NotFoundError("none"), "NOT_FOUND"),
        (InputError("größer als 10"), "INVALID_ARGUMENT"),
        (overloaded(BrokenError), "UNAVAILABLE"),
        (UnavailableError("away"), "UNAVAILABLE"),
        (ModelError("it answers NaN"), "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_an_error_is_a_status_a_sentence_and_a_hint(serving: Any, error: KitError, code: str) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            bench.service.raises["a"] = error
            refused = await refusal(bench.client.ModelInfer(request(id="a"), metadata=KEY))
            wanted = f"{error.message}; {error.hint}" if error.hint else error.message
            assert (code_of(refused), refused.details()) == (code, wanted)
            trailing = dict(refused.trailing_metadata())
            if isinstance(error, (OverloadedError, BrokenError)):
                assert trailing == {"retry-after": "3", "grpc-retry-pushback-ms": "2200"}
            else:
                assert not trailing
            assert bench.service.ended[-1].status == refused.code().value[0]
            assert bench.service.ended[-1].outcome == outcome_of(error)

    uvloop.run(scenario())


@pytest.mark.parametrize("error", [RuntimeError("actor 4f2a at /secret"), GateError("a gate at /secret")])
def test_a_bug_shows_its_text_in_the_log_alone(
    serving: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            bench.service.raises["a"] = bench.administration.fault = error
            model = pb.ModelMetadataRequest(name="tiny")
            for call in (
                bench.client.ModelInfer(request(id="a"), metadata=KEY),
                bench.client.ModelMetadata(model, metadata=KEY),
            ):
                refused = await refusal(call)
                assert code_of(refused) == "INTERNAL"
                assert refused.details() == "internal error; the endpoint's log says more"
                assert not refused.trailing_metadata()

    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        uvloop.run(scenario())
    assert caplog.text.count("/secret") >= 2


def test_nonsense_is_an_invalid_argument(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            for method in ("ModelInfer", "ModelMetadata"):
                call = bench.client.channel.unary_unary(f"/{SERVICE}/{method}")
                assert code_of(await refusal(call(b"\xff\xff\xff", metadata=KEY))) == "INVALID_ARGUMENT"
            unknown = bench.client.channel.unary_unary(f"/{SERVICE}/Trace")
            assert code_of(await refusal(unknown(b"", metadata=KEY))) == "UNIMPLEMENTED"

    uvloop.run(scenario())


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_refused(serving: Any, compression: grpc.Compression) -> None:
    async def scenario() -> None:
        async with serving(max_body_bytes=4096) as bench:
            large = request(np.zeros((4096, 2), np.float32))  # some 100 bytes when compressed
            error = await refusal(bench.client.ModelInfer(large, metadata=KEY, compression=compression))
            assert code_of(error) == "RESOURCE_EXHAUSTED"
            assert not bench.service.calls

    uvloop.run(scenario())


def test_a_large_answer_is_sent_whole(serving: Any) -> None:
    rows = np.ones((400_000, 2), np.float32)

    async def scenario() -> None:
        async with serving(max_body_bytes=1 << 23) as bench:
            channel = grpc.aio.insecure_channel(
                f"127.0.0.1:{bench.server.port}", options=[("grpc.max_receive_message_length", -1)]
            )
            async with channel:
                answer = await Client(channel).ModelInfer(request(rows), metadata=KEY)
            assert answer.ByteSize() > 8e6

    uvloop.run(scenario())


def test_the_clients_deadline_bounds_the_call(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            now_s = time.monotonic()
            timed = request()
            timed.parameters["timeout"].int64_param = 1_000_000
            timed.parameters["priority"].int64_param = 2
            await bench.client.ModelInfer(request(), metadata=KEY)
            await bench.client.ModelInfer(request(), metadata=KEY, timeout=5)
            await bench.client.ModelInfer(timed, metadata=KEY, timeout=5)
            left_s = [call.deadline_s - now_s for call in bench.service.calls]
            assert left_s == pytest.approx([30, 5, 1], abs=0.9)
            assert [call.priority for call in bench.service.calls] == [0, 0, 2]

    uvloop.run(scenario())


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_client_that_leaves_ends_the_wait(serving: Any, how: str) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            arrived, left = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                arrived.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    left.set()

            bench.service.holds["a"] = hold
            timeout = 0.1 if how == "late" else None
            call = bench.client.ModelInfer(request(id="a"), metadata=KEY, timeout=timeout)
            await arrived.wait()
            if how == "cancelled":
                call.cancel()
            async with asyncio.timeout(5):
                await left.wait()
            await asyncio.sleep(0)
            assert (bench.service.ended[-1].outcome, bench.service.ended[-1].status) == ("cancelled", 1)

    uvloop.run(scenario())


def test_a_stream_whose_client_leaves_ends_its_requests(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            left = asyncio.Event()
            arrived = asyncio.Event()

            async def hold() -> None:
                arrived.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    left.set()

            bench.service.holds["a"] = hold
            stream = bench.client.ModelStreamInfer(metadata=KEY)
            await stream.write(request(id="a"))
            await arrived.wait()
            stream.cancel()
            async with asyncio.timeout(5):
                await left.wait()
            await asyncio.sleep(0)
            assert bench.service.ended[-1].outcome == "cancelled"

    uvloop.run(scenario())


def health(channel: grpc.aio.Channel, kind: str, method: str) -> Any:
    return getattr(channel, kind)(
        f"/grpc.health.v1.Health/{method}",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


def test_health_says_what_is_ready_and_needs_no_key(serving: Any) -> None:
    states = health_pb2.HealthCheckResponse

    async def scenario() -> None:
        async with serving() as bench:
            check = health(bench.client.channel, "unary_unary", "Check")
            for name in ("", SERVICE, "tiny"):
                found = await check(health_pb2.HealthCheckRequest(service=name))
                assert found.status == states.SERVING, name
            unknown = check(health_pb2.HealthCheckRequest(service="other"))
            assert code_of(await refusal(unknown)) == "NOT_FOUND"
            watch = health(bench.client.channel, "unary_stream", "Watch")
            stream = watch(health_pb2.HealthCheckRequest(service="tiny"))
            assert (await stream.read()).status == states.SERVING
            bench.administration.ready = False
            assert (await stream.read()).status == states.NOT_SERVING
            bench.administration.fault = RuntimeError("/secret")
            found = await check(health_pb2.HealthCheckRequest())
            assert found.status == states.NOT_SERVING

    uvloop.run(scenario())


def test_a_watch_ends_when_the_server_stops(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            watch = health(bench.client.channel, "unary_stream", "Watch")
            stream = aiter(watch(health_pb2.HealthCheckRequest()))
            assert (await anext(stream)).status == health_pb2.HealthCheckResponse.SERVING
            async with asyncio.timeout(5):
                await bench.server.stop(4)
            assert [each.status async for each in stream] == [health_pb2.HealthCheckResponse.NOT_SERVING]

    uvloop.run(scenario())


def test_reflection_shows_these_services_and_nothing_else(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            target = f"127.0.0.1:{bench.server.port}"

            def look() -> None:
                with grpc.insecure_channel(target) as channel:
                    keyed = grpc.intercept_channel(channel, Keyed())
                    database = ProtoReflectionDescriptorDatabase(keyed)
                    names = set(database.get_services())
                    assert names == {
                        SERVICE,
                        "grpc.health.v1.Health",
                        "grpc.reflection.v1alpha.ServerReflection",
                    }
                    found = DescriptorPool(database).FindServiceByName(SERVICE)
                    assert {each.name for each in found.methods} == METHODS.keys()
                    with pytest.raises(KeyError):
                        database.FindFileContainingSymbol("google.protobuf.FileDescriptorProto")

            await asyncio.to_thread(look)
            reflect = bench.client.channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            )
            stream = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            assert code_of(await refusal(stream.read())) == "UNAUTHENTICATED"

    uvloop.run(scenario())


class Keyed(grpc.StreamStreamClientInterceptor):
    """Sends the key with every stream."""

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=KEY), requests)


def test_replicas_share_a_port(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as first, serving(port=first.server.port) as second:
            assert first.server.port == second.server.port
            for _ in range(40):
                channel = grpc.aio.insecure_channel(
                    f"127.0.0.1:{first.server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
                )
                async with channel:
                    await Client(channel).ModelInfer(request(), metadata=KEY)
            assert len(first.service.calls) + len(second.service.calls) == 40
            assert first.service.calls
            assert second.service.calls

    uvloop.run(scenario())


def test_a_port_of_somebody_else_is_refused(serving: Any) -> None:
    async def scenario() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(UnavailableError, match="gRPC cannot listen on 127"),
        ):
            async with serving(port=taken.getsockname()[1]):
                pass

    uvloop.run(scenario())


def test_a_stop_lets_calls_in_work_end(serving: Any) -> None:
    async def scenario() -> None:
        async with serving() as bench:
            arrived, gate = asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                arrived.set()
                await gate.wait()

            bench.service.holds["a"] = hold
            call = asyncio.ensure_future(bench.client.ModelInfer(request(id="a"), metadata=KEY))
            await arrived.wait()
            stopping = asyncio.create_task(bench.server.stop(5))
            await asyncio.sleep(0.05)
            assert not stopping.done()
            gate.set()
            assert (await call).id == "a"
            await stopping

    uvloop.run(scenario())


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(LOOPBACK)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_path.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return cert_path, key_path


def test_tls_files_make_it_a_tls_server(serving: Any, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)

    async def scenario() -> None:
        async with serving(root=cert.read_bytes(), tls_cert=cert, tls_key=key) as bench:
            assert (await bench.client.ModelInfer(request(id="a"), metadata=KEY)).id == "a"
            async with grpc.aio.insecure_channel(f"127.0.0.1:{bench.server.port}") as plain:
                assert (
                    code_of(await refusal(Client(plain).ServerLive(pb.ServerLiveRequest()))) == "UNAVAILABLE"
                )

    uvloop.run(scenario())


def test_a_missing_tls_file_is_named(serving: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(InputError, match=r"key\.pem cannot be read"):
            async with serving(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem"):
                pass

    uvloop.run(scenario())
