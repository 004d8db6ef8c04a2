"""What went wrong, as an HTTP answer: a status and one sentence, and never a bug's own text.

Which error has which status is ``kit.inference.errors``'s.
"""

from __future__ import annotations

import json
import math

from kit.errors import KitError
from kit.inference.body import write_json
from kit.inference.card import JSON_HEADERS, Reply
from kit.inference.errors import STATUSES, BrokenError, MethodError, OverloadedError, UnauthorizedError

#: A sentence may quote the request; more than this of it is nobody's help.
_MAX_CHARS = 1000
_BUG = Reply(500, write_json({"error": "internal error; the endpoint's log says more"}))


def encode_error(error: Exception) -> Reply:
    """Write an error; whatever is no error of the kit is 500 and says nothing of itself."""
    if not isinstance(error, KitError):
        return _BUG
    for kind, status, _ in STATUSES:
        if isinstance(error, kind):
            hint = f"; {error.hint}" if error.hint else ""
            said = f"{error.message}{hint}"[:_MAX_CHARS]
            said = said.encode("utf-8", "replace").decode()  # a lone surrogate is no JSON
            return Reply(status, write_json({"error": said}), JSON_HEADERS + _headers(error))
    return _BUG


def _headers(error: KitError) -> tuple[tuple[bytes, bytes], ...]:
    """Give the headers RFC 9110 and RFC 6585 ask for with 405, 401, 429 and 503."""
    if isinstance(error, MethodError):
        return ((b"allow", error.allowed.encode()),)
    if isinstance(error, UnauthorizedError):
        return ((b"www-authenticate", b"Bearer"),)
    if isinstance(error, (OverloadedError, BrokenError)):
        return ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    return ()


def read_error(reply: Reply) -> KitError:
    """Make an answer that is none the error it stands for."""
    try:
        said = str(json.loads(reply.body)["error"])
    except (KeyError, TypeError, ValueError):
        said = f"status {reply.status}"
    kind = next((kind for kind, status, _ in reversed(STATUSES) if status == reply.status), KitError)
    return kind(said)
