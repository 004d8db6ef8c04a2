"""tritonclient's asynchronous HTTP client."""

from __future__ import annotations

import asyncio

import tritonclient.http.aio as triton
from job import Job
from triton_http import arrays, tensor
from tritonclient.utils import InferenceServerException


async def main() -> None:
    job = Job()
    facts = job.facts
    async with triton.InferenceServerClient(job.http) as client:
        facts["live"], facts["ready"] = await client.is_server_live(), await client.is_server_ready()
        facts["model_ready"] = await client.is_model_ready("tiny", headers=job.headers)
        facts["metadata"] = await client.get_model_metadata("tiny", headers=job.headers)
        facts["config"] = await client.get_model_config("tiny", headers=job.headers)
        facts["index"] = await client.get_model_repository_index(headers=job.headers)

        async def ask(index: int) -> None:
            coding = (None, "gzip", "deflate")[index % 3]
            result = await client.infer(
                "tiny",
                [tensor("x", job.rows, binary=index % 2 == 0)],
                request_id=str(index),
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
                headers=job.headers,
            )
            assert result.get_response()["id"] == str(index)
            job.keep(f"{index}", arrays(result))

        await asyncio.gather(*map(ask, range(30)))
        try:
            await client.infer("tiny", [tensor("x", job.rows[:, :3], binary=True)], headers=job.headers)
        except InferenceServerException as error:
            facts["wrong shape"] = str(error)
    job.finish()


if __name__ == "__main__":
    asyncio.run(main())
