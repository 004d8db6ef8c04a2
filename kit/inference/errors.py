"""What can go wrong with one request, each with the status it becomes.

Transport-free: ``serve.protocol`` turns these into HTTP, ``serve.grpc`` into gRPC codes. What a user of
the kit did wrong elsewhere is in ``kit.errors``.
"""

from __future__ import annotations

from kit.errors import ConflictError, InputError, KitError, ModelError, NotFoundError, UnavailableError


class MethodError(InputError):
    """A path exists, but not for this method; ``allowed`` is the one it has."""

    allowed: str = "GET"


class TooLargeError(InputError):
    """A body is larger than the endpoint accepts."""


class NotFiniteError(ModelError):
    """A version answers with NaN or infinity."""


class UnauthorizedError(InputError):
    """A request carries no key or token, or one that does not count."""


class ForbiddenError(InputError):
    """Who asks is known, but may not do this."""


class OverloadedError(UnavailableError):
    """More is asked for than there is room for; ``retry_after_s`` says when to try again."""

    retry_after_s: float = 1.0


class RateLimitedError(OverloadedError):
    """A client asks for more than its own limit allows."""


class DeadlineError(UnavailableError):
    """The answer would come too late."""


class BrokenError(UnavailableError):
    """A version failed too often and is not asked for ``retry_after_s``."""

    retry_after_s: float = 1.0


#: Which error becomes which HTTP status and gRPC code; the first that fits counts, any other is 500 INTERNAL.
STATUSES: tuple[tuple[type[KitError], int, str], ...] = (
    (MethodError, 405, "UNIMPLEMENTED"),
    (TooLargeError, 413, "RESOURCE_EXHAUSTED"),
    (UnauthorizedError, 401, "UNAUTHENTICATED"),
    (ForbiddenError, 403, "PERMISSION_DENIED"),
    (OverloadedError, 429, "RESOURCE_EXHAUSTED"),
    (DeadlineError, 504, "DEADLINE_EXCEEDED"),
    (NotFoundError, 404, "NOT_FOUND"),
    (InputError, 400, "INVALID_ARGUMENT"),
    (ConflictError, 409, "FAILED_PRECONDITION"),
    (UnavailableError, 503, "UNAVAILABLE"),
    (ModelError, 500, "INTERNAL"),
)
