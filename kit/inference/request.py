"""A request before and after it is checked against a signature, whichever way it was written.

It knows neither JSON nor bytes; ``rest`` and ``rows`` read those, and gRPC makes the same values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from kit.errors import InputError
from kit.inference.body import MAX_SHOWN_CHARS
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

MAX_ID_CHARS = 256
_LEAST_PRIORITY = 1 << 16
NO_PARAMETERS: Mapping[str, Any] = {}


class Requested(NamedTuple):
    """One output to answer with, and whether as bytes after the JSON."""

    spec: TensorSpec
    binary: bool = False


class InferRequest(NamedTuple):
    """A request whose tensors may be given to the model.

    Attributes:
        id: What the client calls it; None when it gave nothing.
        inputs: Tensors by name, in the signature's order, checked against it; possibly read-only.
        n_rows: Rows of each of them, at least 1.
        outputs: What to answer with, in the order asked for.
    """

    id: str | None
    inputs: Tensors
    n_rows: int
    outputs: tuple[Requested, ...]


class RawRequest(Protocol):
    """A request that is parsed and not yet checked against a signature.

    Attributes:
        id: What the client calls it; None when it gave nothing.
        parameters: The request's own ``parameters``; empty when it has none.
    """

    id: str | None
    parameters: Mapping[str, Any]

    def field(self, name: str) -> str | None:
        """Give a value that a release may hold a user by; None where the request has none."""

    def decode(self, signature: Signature) -> InferRequest:
        """Check the request against a signature.

        Raises:
            InputError: It breaks the signature; the message names the tensor and the rule.
        """


def checked_id(value: object) -> str | None:
    """Give a request's id as it is, None for none.

    Raises:
        InputError: It is not a short string.
    """
    if value is None or (type(value) is str and len(value) <= MAX_ID_CHARS):
        return value
    raise InputError(f"the request's 'id' is not a string of at most {MAX_ID_CHARS} characters")


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that are no scalars, and those that ask for what is not done here.

    Unknown ones are allowed: the protocol leaves them to servers, and a release may be sticky by one.
    ``sequence_start`` and ``sequence_end`` say nothing without an id and are ignored.

    Raises:
        InputError: One of these rules is broken.
    """
    for name, value in parameters.items():
        if not isinstance(value, (str, int, float)):
            raise InputError(
                f"parameter {name[:MAX_SHOWN_CHARS]!r} is not a string, a number or true or false"
            )
    if parameters.get("sequence_id"):
        raise InputError("sequences of requests are not kept here", hint="leave out sequence_id")
    for name in ("priority", "timeout"):
        value = parameters.get(name, 0)
        if type(value) is not int or value < 0:
            raise InputError(f"parameter {name!r} is {str(value)[:40]!r}; a whole number from 0 is expected")
    if type(parameters.get("binary_data_output", False)) is not bool:
        raise InputError("parameter 'binary_data_output' is not true or false")


def priority_of(parameters: Mapping[str, Any]) -> int:
    """Give a request's priority: 1 is served first, then 2 and so on; 0 when it has none."""
    return min(int(parameters.get("priority", 0)), _LEAST_PRIORITY) if parameters else 0


def timeout_s_of(parameters: Mapping[str, Any]) -> float | None:
    """Give how long a request's client waits, in seconds; the protocol writes microseconds."""
    timeout_us = parameters.get("timeout") if parameters else None
    return timeout_us / 1e6 if timeout_us else None


def as_field(value: object) -> str | None:
    """Write a scalar as a release's sticky value; None for what identifies nobody."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) else None
