"""What the gRPC service asks of the rest of a replica.

Types alone: ``serve.service``, ``serve.administration`` and ``serve.guards`` have the objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from kit.inference.card import Reply
    from kit.inference.paths import Route
    from kit.inference.request import RawRequest
    from serve.calls import Answer, Call
    from serve.guards.callers import Caller

Headers = list[tuple[bytes, bytes]]
Action = Literal["infer", "read", "admin", "metrics"]


class Inferring(Protocol):
    """The service that answers requests."""

    def endpoint(self, model: str) -> Any:
        """Find a served model; its ``deadline_s`` bounds a call. An unknown one is a ``NotFoundError``."""

    async def infer(self, call: Call, raw: RawRequest) -> Answer:
        """Answer a request."""


class Administering(Protocol):
    """What answers everything but infer, in REST's terms."""

    async def answer(self, route: Route, body: bytes, *, caller: Any) -> Reply:
        """Answer with the protocol's JSON; an unknown model or version is a ``NotFoundError``."""


class Gate(Protocol):
    """Who may ask."""

    async def admit_patiently(self, headers: Headers, peer: str | None) -> Caller:
        """Say who asks, or refuse."""

    def authorize(self, caller: Caller, action: Action, model: str | None) -> None:
        """Refuse what a caller may not do."""
