"""How the keys of endpoints are shown: a key itself once, when it is made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kit.cli.show.tables import table, when

if TYPE_CHECKING:
    from serve.guards.access import AccessKey, AccessResult


def access(result: AccessResult) -> None:
    """Show a new key, all keys without their secrets, or which one counts no more."""
    if result.action == "create":
        key = result.keys[0]
        print(f"made {key.name} ({key.id}): {', '.join(key.scopes)}; expires {_expires(key)}")
        print(f"key: {result.secret}")
        print("  shown this once; send it as Authorization: Bearer KEY")
    elif result.action == "revoke":
        print(f"revoked {result.keys[0].name} ({result.keys[0].id}); replicas refuse it within a second")
    elif result.keys:
        table(
            ("name", "id", "scopes", "created (UTC)", "expires (UTC)"),
            (
                (key.name, key.id, ", ".join(key.scopes), when(key.created_s * 10**9), _expires(key))
                for key in result.keys
            ),
        )
    else:
        print("no keys beside the endpoint's own; make one: kit access create NAME --scope infer:MODEL")


def _expires(key: AccessKey) -> str:
    if key.expires_s is None:
        return "never"
    said = when(key.expires_s * 10**9)
    return f"{said}, expired" if key.expires_s <= time.time() else said
