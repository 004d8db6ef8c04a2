"""tritonclient's asynchronous gRPC client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import tritonclient.grpc.aio as triton
from job import Job
from triton_grpc import arrays, tensor
from tritonclient.utils import InferenceServerException


async def main() -> None:
    job = Job()
    facts = job.facts
    async with triton.InferenceServerClient(job.grpc) as client:
        facts["live"] = await client.is_server_live(headers=job.headers)
        facts["ready"] = await client.is_server_ready(headers=job.headers)
        facts["metadata"] = await client.get_model_metadata("tiny", headers=job.headers, as_json=True)
        facts["config"] = await client.get_model_config("tiny", headers=job.headers, as_json=True)

        async def ask(index: int) -> None:
            result = await client.infer(
                "tiny", [tensor("x", job.rows)], request_id=str(index), headers=job.headers
            )
            assert result.get_response().id == str(index)
            job.keep(f"{index}", arrays(result))

        await asyncio.gather(*map(ask, range(30)))

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for index in range(20):
                yield {"model_name": "tiny", "inputs": [tensor("x", job.rows)], "request_id": str(index)}

        ids = []
        async for result, error in client.stream_infer(requests(), headers=job.headers):
            assert error is None, error
            ids.append(result.get_response().id)
            job.keep(f"streamed {ids[-1]}", arrays(result))
        facts["streamed"] = ids == [str(index) for index in range(20)]
        try:
            await client.infer("tiny", [tensor("x", job.rows[:, :3])], headers=job.headers)
        except InferenceServerException as error:
            facts["wrong shape"] = str(error)
    job.finish()


if __name__ == "__main__":
    asyncio.run(main())
