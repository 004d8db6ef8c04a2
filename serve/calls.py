"""A request on its way through a replica, and how it ended: what HTTP and gRPC have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kit.inference.card import Card
    from kit.inference.request import InferRequest
    from kit.tensors import Tensors
    from serve.guards.callers import Caller
    from serve.version_key import VersionKey
    from serve.watching.tracing import Trace


@dataclass(slots=True)
class Call:
    """What is known of a request beside its tensors.

    Attributes:
        model: The endpoint that is asked.
        version: The version that is asked for by number; None leaves it to the release.
        caller: Who asks.
        headers: As they came, names in lower case.
        began_s: When it came, by ``time.monotonic``.
        deadline_s: When the answer is worthless, by the same clock.
        priority: As the protocol writes it: 1 first, then 2 and so on; 0 says nothing.
        request_id: Names the request in logs.
        trace: Takes the request's stages; None when it is not recorded.
        chosen: The version that was asked, noted by the service, for a request that fails there.
    """

    model: str
    version: str | None
    caller: Caller
    headers: list[tuple[bytes, bytes]]
    began_s: float
    deadline_s: float
    priority: int
    request_id: str
    trace: Trace | None = None
    chosen: VersionKey | None = None


class Answer(NamedTuple):
    """What was answered, and by whom.

    Attributes:
        request: As its signature was asked.
        card: The version that answered.
        outputs: Every output by name, shape (n_rows, ...).
        release: Sequence number of the release that chose the version.
        fallback: ``version``, ``constant`` or "" when the chosen version itself answered.
        cached: Whether the answer was kept from before.
    """

    request: InferRequest
    card: Card
    outputs: Tensors
    release: int
    fallback: str
    cached: bool


class Ended(NamedTuple):
    """How one request for a prediction ended.

    Attributes:
        model: As the request names it, which may be nonsense.
        transport: ``http`` or ``grpc``.
        request_id: Names the request.
        caller: Who asked; None where nobody was let in.
        answer: What was answered; None when it failed.
        chosen: The version that was asked; None where it did not come to that.
        outcome: One of ``serve.watching.outcomes.OUTCOMES``.
        status: HTTP status or gRPC code.
        seconds: Time since it had come.
        n_bytes: Size of its body.
        trace: What it was recorded in; None where it was not.
    """

    model: str
    transport: str
    request_id: str
    caller: Caller | None
    answer: Answer | None
    chosen: VersionKey | None
    outcome: str
    status: int
    seconds: float
    n_bytes: int
    trace: Trace | None = None
