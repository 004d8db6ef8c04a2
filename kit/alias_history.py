"""What the registry's log says about versions and aliases, against what its tables hold.

Knows the kinds of entry the registry writes (register, promote, rollback), and opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.errors import VerificationError
from kit.event_log import RESTORE_HINT, Event


def check_tables(
    events: list[Event],
    *,
    versions: Mapping[tuple[str, int], list[Any]],
    aliases: Mapping[tuple[str, str], str],
    path: Path,
) -> None:
    """Compare what the tables hold with what the log says was put there.

    Args:
        events: The whole log, its chain checked.
        versions: Model and number to registered_ns, digest, uri and summary.
        aliases: Model and alias to digest.
        path: What to call the registry.

    Raises:
        VerificationError: A version or an alias is not what the log made it.
    """
    hint = f"find out who wrote to {path}, or restore it from a copy"
    logged = {
        (event.subject, _entry(event, "number")): [
            event.at_ns,
            *(_entry(event, key) for key in ("digest", "uri", "summary")),
        ]
        for event in events
        if event.kind == "register"
    }
    for model, number in sorted({*logged, *versions}, key=repr):
        if logged.get((model, number)) != versions.get((model, number)):
            raise VerificationError(f"{model}@{number} is not what the log registered", hint=hint)
    moved = {key: history[-1] for key, history in histories(events).items() if history}
    for model, alias in sorted({*moved, *aliases}, key=repr):
        said, stands = moved.get((model, alias)), aliases.get((model, alias))
        if said != stands:
            raise VerificationError(
                f"{model}@{alias} is {digest_text(stands)}, the log says {digest_text(said)}", hint=hint
            )


def histories(events: list[Event]) -> dict[tuple[str, str], list[str]]:
    """Follow every alias through the log.

    Returns:
        Model and alias to the digests it stood at, as a stack: a rollback takes the newest off, so that a
        second one goes two versions back instead of forth again.

    Raises:
        VerificationError: An entry lacks what its kind needs, or takes back what was never done.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for event in events:
        if event.kind == "register":
            continue
        history = found.setdefault((event.subject, str(_entry(event, "alias"))), [])
        if event.kind != "rollback":
            history.append(str(_entry(event, "digest")))
        elif history:
            history.pop()
        else:
            raise VerificationError(
                f"event {event.seq} of the registry's log takes back what was never done", hint=RESTORE_HINT
            )
    return found


def digest_text(digest: str | None) -> str:
    """Write a digest for a message; None is "not set"."""
    return "not set" if digest is None else f"sha256:{digest}"


def _entry(event: Event, key: str) -> Any:
    if key not in event.body:
        raise VerificationError(f"event {event.seq} of the registry's log has no {key!r}", hint=RESTORE_HINT)
    return event.body[key]
