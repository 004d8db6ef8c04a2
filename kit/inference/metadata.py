"""What endpoints and devices say of themselves and of a model: health, server and model metadata.

It writes what it is told and finds nothing out.

Source: Open Inference Protocol v2, ``inference_rest.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kit import __version__
from kit.inference.body import write_json
from kit.inference.card import Card, Reply
from kit.signature import TensorSpec
from kit.wire import DATATYPES

_FACTS = ("columns", "nullable", "minimum", "maximum")


def describe_live() -> Reply:
    """Say that the process answers."""
    return _reply({"live": True})


def describe_ready(*, ready: bool) -> Reply:
    """Say whether all that should be served is; a load balancer reads the status."""
    return _reply({"ready": ready}, status=200 if ready else 503)


def describe_model_ready(name: str, *, ready: bool) -> Reply:
    """Say whether a model answers."""
    return _reply({"name": name, "ready": ready}, status=200 if ready else 503)


def describe_server(extensions: Sequence[str]) -> Reply:
    """Say what the server is and which extensions of the protocol it has."""
    return _reply({"name": "kit", "version": __version__, "extensions": list(extensions)})


def describe_model(card: Card, *, platform: str, versions: Sequence[str] = ()) -> Reply:
    """Say what a model reads and answers.

    Args:
        card: The version that is described.
        platform: What its file is, as the protocol names it.
        versions: All versions that may be asked for; the described one is written first.
    """
    signature = card.signature
    others = [version for version in versions if version != card.version]
    return _reply(
        {
            "name": card.name,
            "versions": [card.version, *others],
            "platform": platform,
            "inputs": [_tensor(spec) for spec in signature.inputs],
            "outputs": [_tensor(spec) for spec in signature.outputs],
            "parameters": {
                "digest": card.digest,
                "engine": card.engine,
                "task": signature.task,
                "classes": list(signature.classes),
            },
        }
    )


def _reply(value: object, *, status: int = 200) -> Reply:
    return Reply(status, write_json(value))


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    value = spec.to_json()
    return {
        "name": spec.name,
        "datatype": DATATYPES[spec.dtype],
        "shape": list(spec.shape),
        "parameters": {key: value[key] for key in _FACTS if key in value},
    }
