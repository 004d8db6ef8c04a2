"""A release as the bytes of a file, read strictly: what does not hold together is not a release.

Knows the shape alone; where the file lies and what is done about a damaged one is the store's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from kit.errors import InputError, VerificationError
from kit.files import canonical_json
from serve.releases.segments import Segment, covers
from serve.releases.table import ORIGIN, STICKY, Release, Weighted, check_shares, holds_together

FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NUMBER = 1 << 62


def to_bytes(release: Release) -> bytes:
    """Write a release."""
    return canonical_json(
        {
            "format": FORMAT,
            "endpoint": release.endpoint,
            "sequence": release.sequence,
            "versions": [_weighted_json(each) for each in release.versions],
            "segments": [list(each) for each in release.segments],
            "sticky": release.sticky,
            "salt": release.salt,
            "shadow": None if release.shadow is None else _weighted_json(release.shadow),
            "follow": release.follow,
            "made_ns": release.made_ns,
            "note": release.note,
            "origin": release.origin,
            "paused": release.paused,
        }
    )


def from_bytes(data: bytes, *, endpoint: str, sequence: int) -> Release:
    """Read a release.

    Args:
        data: All of the file.
        endpoint: Whose it must be.
        sequence: The number it must have.

    Raises:
        VerificationError: It is cut off, holds what no kit writes, or its parts do not hold together.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"it is not JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != {"format", *_RULES}:
        keys = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise VerificationError(f"it has the keys {keys}, which this kit does not read")
    if value["format"] != FORMAT:
        raise VerificationError(f"it has format {value['format']!r}, this kit reads {FORMAT}")
    for name, holds in _RULES.items():
        if not holds(value[name]):
            raise VerificationError(f"its {name} is {str(value[name])[:80]!r}")
    if (value["endpoint"], value["sequence"]) != (endpoint, sequence):
        raise VerificationError(f"it is release {value['sequence']} of {value['endpoint']!r}")
    return _checked(
        Release(
            endpoint=endpoint,
            sequence=sequence,
            versions=tuple(_weighted(each) for each in value["versions"]),
            segments=tuple(Segment(*each) for each in value["segments"]),
            sticky=value["sticky"],
            salt=value["salt"],
            shadow=None if value["shadow"] is None else _weighted(value["shadow"]),
            follow=value["follow"],
            made_ns=value["made_ns"],
            note=value["note"],
            origin=value["origin"],
            paused=value["paused"],
        )
    )


def _checked(release: Release) -> Release:
    try:
        check_shares(release.versions)
    except InputError as error:
        raise VerificationError(error.message) from error
    if not covers(release.segments) or not holds_together(release):
        raise VerificationError("its segments do not give every version its share")
    if release.shadow is not None and not 0 <= release.shadow.percent <= 100:
        raise VerificationError(f"its shadow has {release.shadow.percent} %")
    return release


def _weighted_json(version: Weighted) -> dict[str, Any]:
    return {"number": version.number, "digest": version.digest, "percent": version.percent}


def _weighted(value: dict[str, Any]) -> Weighted:
    return Weighted(value["number"], value["digest"], float(value["percent"]))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < _MAX_NUMBER


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_weighted(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"number", "digest", "percent"}
        and _is_count(value["number"])
        and isinstance(value["digest"], str)
        and _DIGEST.fullmatch(value["digest"]) is not None
        and isinstance(value["percent"], (int, float))
        and not isinstance(value["percent"], bool)
    )


def _is_segment(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    )


_RULES: dict[str, Callable[[Any], bool]] = {
    "endpoint": _is_text,
    "sequence": _is_count,
    "versions": lambda value: isinstance(value, list) and bool(value) and all(map(_is_weighted, value)),
    "segments": lambda value: isinstance(value, list) and bool(value) and all(map(_is_segment, value)),
    "sticky": lambda value: _is_text(value) and STICKY.fullmatch(value) is not None,
    "salt": lambda value: _is_text(value) and bool(value),
    "shadow": lambda value: value is None or _is_weighted(value),
    "follow": lambda value: value is None or (_is_text(value) and bool(value)),
    "made_ns": _is_count,
    "note": _is_text,
    "origin": lambda value: _is_text(value) and ORIGIN.fullmatch(value) is not None,
    "paused": lambda value: isinstance(value, bool),
}
