"""KServe's inference clients, REST and gRPC.

They are imported without the package's first module, which imports Kubernetes' client as well.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import types
from typing import Any

import grpc
import httpx
import numpy as np
from job import Job

_found = importlib.util.find_spec("kserve")
assert _found is not None
assert _found.submodule_search_locations is not None
_package = types.ModuleType("kserve")
_package.__path__ = list(_found.submodule_search_locations)
sys.modules["kserve"] = _package

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402  # after the package
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402

logging.disable(logging.CRITICAL)  # it logs each refusal with its traceback


def request(rows: np.ndarray, *, binary: bool, outputs: list[Any] | None = None) -> Any:
    """Make a request of the client."""
    made = InferInput("x", list(rows.shape), "FP32")
    made.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model_name="tiny", infer_inputs=[made], request_id="seven", request_outputs=outputs)


def arrays(answer: Any) -> dict[str, np.ndarray]:
    """Read every output an answer has."""
    return {each.name: each.as_numpy() for each in answer.outputs}


async def rest(job: Job) -> None:
    base, auth, facts = f"http://{job.http}", job.headers, job.facts
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        facts["rest live"] = await client.is_server_live(base)
        facts["rest ready"] = await client.is_server_ready(base)
        facts["rest model_ready"] = await client.is_model_ready(base, "tiny", headers=auth)
        for binary_in in (False, True):
            for binary_out in (False, True):
                asked = [
                    RequestedOutput(name, {"binary_data": binary_out})
                    for name in ("label", "probabilities", "logits")
                ]
                answer = await client.infer(
                    base, request(job.rows, binary=binary_in, outputs=asked), model_name="tiny", headers=auth
                )
                job.keep(f"rest in {binary_in}, out {binary_out}", arrays(answer))
                facts["rest id"] = answer.id
        answer = await client.infer(base, request(job.rows, binary=True), model_name="tiny", headers=auth)
        job.keep("rest as it comes", arrays(answer))
        try:
            await client.infer(base, request(job.rows[:, :3], binary=True), model_name="tiny", headers=auth)
        except httpx.HTTPStatusError as error:
            facts["rest wrong shape"] = str(error)


async def remote(job: Job) -> None:
    auth, facts = [("authorization", job.headers["authorization"])], job.facts
    async with InferenceGRPCClient(job.grpc) as client:
        facts["grpc live"] = await client.is_server_live(headers=auth)
        facts["grpc ready"] = await client.is_server_ready(headers=auth)
        facts["grpc model_ready"] = await client.is_model_ready("tiny", headers=auth)
        for binary in (False, True):
            answer = await client.infer(request(job.rows, binary=binary), headers=auth)
            job.keep(f"grpc binary {binary}", arrays(answer))
            facts["grpc id"] = answer.id
        try:
            await client.infer(request(job.rows[:, :3], binary=True), headers=auth)
        except grpc.RpcError as error:
            facts["grpc wrong shape"] = f"{error.code().name}: {error.details()}"


async def main() -> None:
    job = Job()
    await rest(job)
    await remote(job)
    job.finish()


if __name__ == "__main__":
    asyncio.run(main())
