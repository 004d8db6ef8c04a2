"""What endpoints and devices say of a model.

It writes what it is told and finds nothing out.

Source: Open Inference Protocol v2, ``inference_rest.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kit.inference.body import write_json
from kit.inference.card import Card, Reply
from kit.tensors import TensorSpec
from kit.wire import DATATYPES

_FACTS = ("columns", "nullable", "minimum", "maximum")


def describe_model(card: Card, *, platform: str, versions: Sequence[str] = ()) -> Reply:
    """Say what a model reads and answers.

    Args:
        card: The version that is described.
        platform: What its file is, as the protocol names it.
        versions: All versions that may be asked for; the described one is written first.
    """
    signature = card.signature
    others = [version for version in versions if version != card.version]
    described = {
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
    return Reply(200, write_json(described))


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    value = spec.to_json()
    return {
        "name": spec.name,
        "datatype": DATATYPES[spec.dtype],
        "shape": list(spec.shape),
        "parameters": {key: value[key] for key in _FACTS if key in value},
    }
