"""A load generator over gRPC: as many connections as asked for, each with one call at a time.

    python benchmarks/serve/grpc_caller.py HOST:PORT MODEL CONNECTIONS SECONDS

Sends the bytes of one message over and over and leaves the answers unread but for the first, so that little
but gRPC itself is measured. Prints what wrk.Load holds as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import grpc
import numpy as np
from subjects import Subject, image, mlp

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_TOLERANCE = 1e-5


async def drive(address: str, subject: Subject, *, connections: int, seconds: float) -> dict[str, Any]:
    """Keep every connection busy; gives the fields of ``wrk.Load``."""
    message = request(subject)
    latencies_s: list[float] = []
    refused = 0
    async with _channel(address, 0) as channel:
        await _check(channel, message, subject)
    end_s = time.perf_counter() + seconds

    async def call(index: int) -> None:
        nonlocal refused
        async with _channel(address, index + 1) as channel:
            infer = channel.unary_unary(_METHOD)
            while (began_s := time.perf_counter()) < end_s:
                try:
                    await infer(message)
                except grpc.aio.AioRpcError:
                    refused += 1
                latencies_s.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    await asyncio.gather(*(call(index) for index in range(connections)))
    p50, p99, most = np.percentile(latencies_s, (50, 99, 100)) * 1000
    return {
        "requests": len(latencies_s),
        "seconds": time.perf_counter() - began_s,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": most,
        "refused": refused,
        "broken": 0,
        "counts": {},
    }


def request(subject: Subject) -> bytes:
    """Write a message that asks for one row."""
    from serve.grpc.inference_pb2 import ModelInferRequest

    row = subject.rows(1, seed=0)
    tensor = {"name": "x", "datatype": "FP32", "shape": row.shape}
    message = ModelInferRequest(model_name=subject.name, inputs=[tensor], raw_input_contents=[row.tobytes()])
    return bytes(message.SerializeToString())


def _channel(address: str, index: int) -> Any:
    """Open a connection that is shared with nobody."""
    options = (("grpc.use_local_subchannel_pool", 1), ("benchmark.index", index))
    return grpc.aio.insecure_channel(address, options=options)


async def _check(channel: Any, message: bytes, subject: Subject) -> None:
    from serve.grpc.inference_pb2 import ModelInferResponse

    answer = ModelInferResponse.FromString(await channel.unary_unary(_METHOD)(message))
    place = [each.name for each in answer.outputs].index("probabilities")
    if answer.raw_output_contents:
        given = np.frombuffer(answer.raw_output_contents[place], np.float32)
    else:
        given = np.array(answer.outputs[place].contents.fp32_contents)
    _, expected = subject.answers(subject.rows(1, seed=0))
    if np.abs(given - expected[0]).max() > _TOLERANCE:
        raise SystemExit(f"gRPC answers {given.tolist()} instead of {expected.tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("model", choices=("image", "mlp"))
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    subject = image() if given.model == "image" else mlp()
    found = asyncio.run(drive(given.address, subject, connections=given.connections, seconds=given.seconds))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
