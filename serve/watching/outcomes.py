"""How requests end, in one word each, for metrics, logs and traces.

Three kinds: answered, refused for something the client did, failed for something it could not help. Alerts
and the error budget count the third kind against the first; what clients do wrong is in neither.
"""

from __future__ import annotations

import asyncio

from kit.errors import ConflictError, InputError, ModelError, NotFoundError, UnavailableError
from kit.inference.errors import (
    BrokenError,
    DeadlineError,
    ForbiddenError,
    MethodError,
    OverloadedError,
    RateLimitedError,
    TooLargeError,
    UnauthorizedError,
)

#: A client got an answer; ``fallback`` is one that another version or a constant gave.
ANSWERED = ("ok", "fallback")
#: A client asked for what it cannot have, or left.
REFUSED = (
    *("invalid", "unauthorized", "forbidden", "not_found", "method", "too_large", "slow"),
    *("conflict", "rate_limited", "cancelled"),
)
#: A client did nothing wrong and got no answer.
FAILED = ("overloaded", "deadline", "model", "broken", "unavailable", "internal")
OUTCOMES = (*ANSWERED, *REFUSED, *FAILED)

_BY_ERROR: tuple[tuple[type[BaseException], str], ...] = (
    (MethodError, "method"),
    (TooLargeError, "too_large"),
    (UnauthorizedError, "unauthorized"),
    (ForbiddenError, "forbidden"),
    (RateLimitedError, "rate_limited"),
    (OverloadedError, "overloaded"),
    (DeadlineError, "deadline"),
    (BrokenError, "broken"),
    (NotFoundError, "not_found"),
    (InputError, "invalid"),
    (ConflictError, "conflict"),
    (UnavailableError, "unavailable"),
    (ModelError, "model"),
    (asyncio.CancelledError, "cancelled"),
)
_known: dict[type[BaseException], str] = {}


def outcome_of(error: BaseException) -> str:
    """Name how a request ended that raised this; whatever is not an error of ours is ``internal``."""
    kind = type(error)
    if kind not in _known:
        _known[kind] = next((word for each, word in _BY_ERROR if issubclass(kind, each)), "internal")
    return _known[kind]
