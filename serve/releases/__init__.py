"""How an endpoint's traffic falls on versions, and how that changes while it runs.

Decides (``segments``, ``table``), keeps (``record``, ``store``, ``acks``), follows (``follow``, ``aliases``),
compares (``comparison``, ``shadow``) and is the command ``kit release`` (``weights``, ``command``). It does
not know how a version is loaded or asked: it is given what prepares a release and what answers for a shadow.
It never sees a request's transport.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from serve.releases.store import ReleaseStore
from serve.releases.table import Change, Release, Weighted, next_release

if TYPE_CHECKING:
    from serve.releases.aliases import AliasFollower
    from serve.releases.follow import Follower, Hooks

#: What a replica needs and ``kit release`` does not: asyncio alone is a tenth of a second of a rollback.
_HOMES = {
    "AliasFollower": "serve.releases.aliases",
    "Follower": "serve.releases.follow",
    "Hooks": "serve.releases.follow",
}

__all__ = [
    "AliasFollower",
    "Change",
    "Follower",
    "Hooks",
    "Release",
    "ReleaseStore",
    "Weighted",
    "next_release",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'serve.releases' has no attribute {name!r}")
