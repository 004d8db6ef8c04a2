"""Who asks, and what a scope says: the words all guards share."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

#: What a key or token may hold: infer:MODEL, infer:*, metrics, admin.
SCOPE = re.compile(r"infer:(\*|[a-z0-9][a-z0-9._-]{0,62})|metrics|admin")
ALL_SCOPES = frozenset(("infer:*", "metrics", "admin"))


class Caller(NamedTuple):
    """Who sent a request.

    Attributes:
        subject: The key's id, ``endpoint`` for the endpoint's own key, the token's ``sub``, or the peer's
            address.
        scopes: What it may do.
        kind: How that is known.
    """

    subject: str
    scopes: frozenset[str]
    kind: Literal["key", "token", "peer"]
