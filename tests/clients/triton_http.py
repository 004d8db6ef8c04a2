"""tritonclient over HTTP: all it can ask of an endpoint that keeps no shared memory and no sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.http as triton
from job import Job
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

OUTPUTS = ("label", "probabilities", "logits")


def tensor(name: str, array: np.ndarray, *, binary: bool) -> Any:
    """Make an input of the client."""
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def arrays(result: Any) -> dict[str, np.ndarray]:
    """Read every output an answer has."""
    return {each["name"]: result.as_numpy(each["name"]) for each in result.get_response()["outputs"]}


def main() -> None:
    job = Job()
    facts = job.facts
    client = triton.InferenceServerClient(job.http, concurrency=4)
    facts["live"], facts["ready"] = client.is_server_live(), client.is_server_ready()
    facts["model_ready"] = client.is_model_ready("tiny", headers=job.headers)
    facts["version_ready"] = client.is_model_ready("tiny", "1", headers=job.headers)
    facts["unknown_ready"] = client.is_model_ready("nothing", headers=job.headers)
    facts["server"] = client.get_server_metadata(headers=job.headers)
    facts["metadata"] = client.get_model_metadata("tiny", headers=job.headers)
    facts["config"] = client.get_model_config("tiny", headers=job.headers)
    for binary_in in (False, True):
        for binary_out in (False, True):
            result = client.infer(
                "tiny",
                [tensor("x", job.rows, binary=binary_in)],
                outputs=[triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS],
                request_id="seven",
                headers=job.headers,
            )
            job.keep(f"in {binary_in}, out {binary_out}", arrays(result))
            facts["id"] = result.get_response()["id"]
    inputs = [tensor("x", job.rows, binary=True)]
    job.keep("as it comes", arrays(client.infer("tiny", inputs, model_version="1", headers=job.headers)))
    for coding in ("gzip", "deflate"):
        for binary in (False, True):
            result = client.infer(
                "tiny",
                [tensor("x", job.rows, binary=binary)],
                outputs=[triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS],
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
                headers=job.headers,
            )
            job.keep(f"{coding}, binary {binary}", arrays(result))
    one = [triton.InferRequestedOutput("logits")]
    result = client.infer("tiny", inputs, outputs=one, headers=job.headers, priority=1, timeout=5_000_000)
    facts["requested"] = [each["name"] for each in result.get_response()["outputs"]]
    waiting = [client.async_infer("tiny", inputs, headers=job.headers) for _ in range(20)]
    for index, each in enumerate(waiting):
        job.keep(f"asynchronous {index}", arrays(each.get_result()))
    wide = [tensor(name, array, binary=True) for name, array in job.wide.items()]
    job.keep("wide", arrays(client.infer("wide", wide, headers=job.headers)))
    statistics = client.get_inference_statistics("tiny", headers=job.headers)["model_stats"]
    facts["statistics"] = [
        (each["name"], each["version"], each["inference_count"] > 0) for each in statistics
    ]
    facts["index"] = client.get_model_repository_index(headers=job.headers)
    client.unload_model("wide", headers=job.headers)
    facts["unloaded_ready"] = client.is_model_ready("wide", headers=job.headers)
    client.load_model("wide", headers=job.headers)
    facts["loaded_ready"] = client.is_model_ready("wide", headers=job.headers)
    wrong = [tensor("x", job.rows[:, :3], binary=True)]
    for what, ask in {
        "no key": lambda: client.infer("tiny", inputs),
        "wrong key": lambda: client.infer("tiny", inputs, headers={"authorization": "Bearer no"}),
        "no model": lambda: client.infer("tinny", inputs, headers=job.headers),
        "no version": lambda: client.infer("tiny", inputs, model_version="77", headers=job.headers),
        "wrong shape": lambda: client.infer("tiny", wrong, headers=job.headers),
        "wrong name": lambda: client.infer("tiny", [tensor("y", job.rows, binary=True)], headers=job.headers),
        "wrong output": lambda: client.infer(
            "tiny", inputs, outputs=[triton.InferRequestedOutput("z")], headers=job.headers
        ),
        "sequence": lambda: client.infer(
            "tiny", inputs, sequence_id=3, sequence_start=True, headers=job.headers
        ),
        "classes": lambda: client.infer(
            "tiny",
            inputs,
            outputs=[triton.InferRequestedOutput("logits", class_count=2)],
            headers=job.headers,
        ),
        "shared memory": lambda: client.get_system_shared_memory_status(headers=job.headers),
    }.items():
        job.refused(what, ask, InferenceServerException)
    client.close()
    job.finish()


if __name__ == "__main__":
    main()
