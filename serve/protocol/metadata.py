"""What an endpoint says of itself beside ``kit.inference.metadata``: configuration, statistics, repository.

It writes what it is told and finds nothing out. Triton's shapes are followed where tools read them:
perf_analyzer stops without a configuration, and tritonclient shows the rest.

Source: Triton Inference Server, extensions "Model
Configuration", "Statistics" and "Model Repository".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kit.errors import InputError
from kit.inference.body import MAX_SHOWN_CHARS, check_keys
from kit.inference.card import Card, Reply
from kit.inference.request import NO_PARAMETERS, check_parameters
from kit.tensors import TensorSpec
from kit.wire import DATATYPES
from serve.protocol.body import read_json, write_json

if TYPE_CHECKING:
    from serve.watching.version_metrics import Statistics

#: Extensions by the names Triton gives them.
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
State = Literal["READY", "LOADING", "UNAVAILABLE", "FAILED"]

PLATFORM = "onnx_onnxv1"
"""Every version is served from its ONNX file, whichever engine runs it."""


class Indexed(NamedTuple):
    """One line of the repository's index: a version and how it stands.

    Attributes:
        name: The model.
        version: Its version as clients write it; "" where none is known.
        state: How it stands.
        reason: Why, in a sentence without anything internal; "" when it is ready.
    """

    name: str
    version: str
    state: State
    reason: str = ""


def describe_config(card: Card, *, max_batch_rows: int, max_wait_s: float = 0.0) -> Reply:
    """Write a version's configuration as Triton does, for the tools that ask.

    Args:
        card: The version.
        max_batch_rows: Most rows of one engine call; tools take it for the largest batch to send.
        max_wait_s: Longest wait for more rows.
    """
    signature = card.signature
    return _reply(
        {
            "name": card.name,
            "platform": "onnxruntime_onnx" if card.engine == "onnxruntime" else "",
            "backend": card.engine,
            "version_policy": {"specific": {"versions": [card.number]}},
            "max_batch_size": max_batch_rows,
            "input": [{**_configured(spec), "optional": False} for spec in signature.inputs],
            "output": [_configured(spec) for spec in signature.outputs],
            "dynamic_batching": {"max_queue_delay_microseconds": round(max_wait_s * 1e6)},
            "model_transaction_policy": {"decoupled": False},
            "default_model_filename": "model.onnx",
        }
    )


def describe_statistics(counted: Iterable[tuple[Card, Statistics]]) -> Reply:
    """Write what was counted of versions, as Triton does."""
    return _reply({"model_stats": [_statistics(card, each) for card, each in counted]})


def describe_index(entries: Iterable[Indexed], *, ready: bool = False) -> Reply:
    """Write the repository's index.

    Args:
        entries: Every version that is known.
        ready: Whether only those that answer are asked for.
    """
    shown = [each for each in entries if not ready or each.state == "READY"]
    # Tools know no state of failure; what failed is not available, and the reason says why.
    states = [(each, "UNAVAILABLE" if each.state == "FAILED" else each.state) for each in shown]
    return _reply(
        [
            {"name": each.name, "version": each.version, "state": state, "reason": each.reason}
            for each, state in states
        ]
    )


def read_index(body: bytes) -> bool:
    """Read what an index request asks for: whether only versions that answer.

    Raises:
        InputError: The body is neither empty nor such a request.
    """
    value = _object(body)
    ready = value.get("ready", False)
    if type(ready) is not bool:
        raise InputError("'ready' is not true or false")
    return ready


def read_repository(body: bytes) -> Mapping[str, Any]:
    """Read the parameters of a request to load or unload a model; empty when it has none.

    Raises:
        InputError: The body is neither empty nor such a request, or brings a model along: models come
            from the registry alone.
    """
    parameters = _object(body).get("parameters")
    if parameters is None:
        return NO_PARAMETERS
    if type(parameters) is not dict:
        raise InputError("the 'parameters' of the request are not an object")
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise InputError(
                f"{name[:MAX_SHOWN_CHARS]!r} would replace the model, which comes from the registry",
                hint="register a version and release it",
            )
    check_parameters(parameters)
    return parameters


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    value = read_json(body)
    if type(value) is not dict:
        raise InputError("the request is not an object")
    check_keys(body, value)
    return value


def _reply(value: object) -> Reply:
    return Reply(200, write_json(value))


def _configured(spec: TensorSpec) -> dict[str, Any]:
    datatype = DATATYPES[spec.dtype]
    kind = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return {"name": spec.name, "data_type": kind, "dims": list(spec.row_shape)}


def _statistics(card: Card, counted: Statistics) -> dict[str, Any]:
    nothing = {"count": 0, "ns": 0}
    return {
        "name": card.name,
        "version": card.version,
        "last_inference": counted.last_ms,
        "inference_count": counted.rows,
        "execution_count": counted.batches,
        "inference_stats": {
            "success": {"count": counted.success_count, "ns": counted.success_ns},
            "fail": {"count": counted.fail_count, "ns": counted.fail_ns},
            "queue": {"count": counted.success_count, "ns": counted.queue_ns},
            "compute_input": {"count": counted.batches, "ns": 0},
            "compute_infer": {"count": counted.batches, "ns": counted.infer_ns},
            "compute_output": {"count": counted.batches, "ns": 0},
            "cache_hit": {"count": counted.cache_hits, "ns": 0},
            "cache_miss": {"count": counted.cache_misses, "ns": 0},
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": nothing,
                "compute_infer": {"count": count, "ns": infer_ns},
                "compute_output": nothing,
            }
            for rows, (count, infer_ns) in sorted(counted.by_rows.items())
        ],
        "memory_usage": [],
    }
