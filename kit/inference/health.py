"""What endpoints and devices say of themselves: whether they live and are ready, and what they are.

Source: Open Inference Protocol v2, ``inference_rest.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

from kit import __version__
from kit.inference.body import write_json
from kit.inference.card import Reply


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


def _reply(value: object, *, status: int = 200) -> Reply:
    return Reply(status, write_json(value))
