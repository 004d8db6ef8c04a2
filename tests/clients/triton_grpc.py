"""tritonclient over gRPC: unary, asynchronous and streamed, with and without compression."""

from __future__ import annotations

import queue
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from job import Job
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def tensor(name: str, array: np.ndarray) -> Any:
    """Make an input of the client."""
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def arrays(result: Any) -> dict[str, np.ndarray]:
    """Read every output an answer has."""
    return {each.name: result.as_numpy(each.name) for each in result.get_response().outputs}


def stream(job: Job, client: Any) -> None:
    """Ask forty times over one stream, the last time nonsense."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=job.headers)
    for index in range(40):
        client.async_stream_infer("tiny", [tensor("x", job.rows)], request_id=str(index))
    client.async_stream_infer("tiny", [tensor("x", job.rows[:, :3])], request_id="wrong")
    ids = []
    for index in range(40):
        result, error = answers.get(timeout=20)
        assert error is None, error
        ids.append(result.get_response().id)
        job.keep(f"streamed {index}", arrays(result))
    job.facts["streamed"] = ids == [str(index) for index in range(40)]
    job.facts["streamed error"] = str(answers.get(timeout=20)[1])
    client.stop_stream()


def beside(job: Job) -> None:
    """Ask what grpc_health_probe and grpcurl ask."""
    with grpc.insecure_channel(job.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        states = {}
        for name in ("", "inference.GRPCInferenceService", "tiny", "nothing"):
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
                states[name] = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            except grpc.RpcError as error:
                states[name] = error.code().name
        job.facts["health"] = states
        watched = health.Watch(health_pb2.HealthCheckRequest(service="tiny"), timeout=10)
        job.facts["watched"] = next(iter(watched)).status
        watched.cancel()
    credentials = [("authorization", job.headers["authorization"])]

    class WithKey(grpc.StreamStreamClientInterceptor):
        def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            return continuation(details._replace(metadata=credentials), requests)

    with grpc.insecure_channel(job.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithKey()))
        job.facts["services"] = sorted(database.get_services())
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        job.facts["methods"] = sorted(each.name for each in file.service[0].method)


def main() -> None:
    job = Job()
    facts = job.facts
    client = triton.InferenceServerClient(job.grpc)
    facts["live"], facts["ready"] = (
        client.is_server_live(headers=job.headers),
        client.is_server_ready(headers=job.headers),
    )
    facts["model_ready"] = client.is_model_ready("tiny", headers=job.headers)
    facts["server"] = client.get_server_metadata(headers=job.headers, as_json=True)
    facts["metadata"] = client.get_model_metadata("tiny", headers=job.headers, as_json=True)
    facts["config"] = client.get_model_config("tiny", headers=job.headers, as_json=True)
    inputs = [tensor("x", job.rows)]
    for coding in (None, "gzip", "deflate"):
        result = client.infer(
            "tiny", inputs, request_id="seven", headers=job.headers, compression_algorithm=coding
        )
        job.keep(f"coding {coding}", arrays(result))
        facts["id"] = result.get_response().id
    one = [triton.InferRequestedOutput("logits")]
    result = client.infer(
        "tiny", inputs, model_version="1", outputs=one, headers=job.headers, client_timeout=5.0, priority=1
    )
    facts["requested"] = [each.name for each in result.get_response().outputs]
    job.keep(
        "wide",
        arrays(client.infer("wide", [tensor(*each) for each in job.wide.items()], headers=job.headers)),
    )
    answered: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(20):
        client.async_infer(
            "tiny", inputs, callback=lambda result, error: answered.put((result, error)), headers=job.headers
        )
    for index in range(20):
        result, error = answered.get(timeout=20)
        assert error is None, error
        job.keep(f"asynchronous {index}", arrays(result))
    stream(job, client)
    statistics = client.get_inference_statistics("tiny", headers=job.headers).model_stats
    facts["statistics"] = [(each.name, each.version, each.inference_count > 0) for each in statistics]
    index = client.get_model_repository_index(headers=job.headers).models
    facts["index"] = sorted((each.name, each.version, each.state) for each in index)
    client.unload_model("wide", headers=job.headers)
    facts["unloaded_ready"] = client.is_model_ready("wide", headers=job.headers)
    client.load_model("wide", headers=job.headers)
    facts["loaded_ready"] = client.is_model_ready("wide", headers=job.headers)
    for what, ask in {
        "no key": lambda: client.infer("tiny", inputs),
        "wrong key": lambda: client.infer("tiny", inputs, headers={"authorization": "Bearer no"}),
        "no model": lambda: client.infer("tinny", inputs, headers=job.headers),
        "no version": lambda: client.infer("tiny", inputs, model_version="77", headers=job.headers),
        "wrong shape": lambda: client.infer("tiny", [tensor("x", job.rows[:, :3])], headers=job.headers),
        "no time": lambda: client.infer("tiny", inputs, headers=job.headers, client_timeout=-1.0),
        "shared memory": lambda: client.get_system_shared_memory_status(headers=job.headers),
        "trace": lambda: client.get_trace_settings(headers=job.headers),
    }.items():
        job.refused(what, ask, InferenceServerException)
    client.close()
    beside(job)
    job.finish()


if __name__ == "__main__":
    main()
