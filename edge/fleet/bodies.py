"""Read what devices send: strictly, in bounds, and cleaned of what a terminal or a page would obey.

Everything a device writes is hostile until it has passed here. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kit.errors import InputError

MAX_STATUS_BYTES = 64 << 10
MAX_TELEMETRY_BYTES = 1 << 20
MAX_ENROL_BYTES = 16 << 10
MAX_RECORDS = 500
"""Most telemetry records of one request."""
MAX_RECORD_BYTES = 64 << 10
MAX_TEXT = 300
"""Most characters that are kept of a sentence a device writes."""

KINDS = ("window", "event", "sample")
_MAX_COUNT = 2**53
_MAX_REJECTED = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECORD_ID = re.compile(r"[\x21-\x7e]{1,100}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PHASE = re.compile(r"[a-z_]{1,20}")


@dataclass(frozen=True)
class Status:
    """The status of a device, as docs/device-protocol.md has it; ``body`` is all of it, cleaned."""

    seq: int
    phase: str
    digest: str | None
    previous: str | None
    release: int
    rejected: Mapping[str, str]
    answers: int
    errors: int
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One telemetry record."""

    id: str
    kind: str
    at_s: float
    digest: str | None
    body: str


@dataclass(frozen=True)
class Enrolment:
    """What a new device says: its one-time code, the name it would like, the machine it is."""

    code: str
    name: str
    machine: Mapping[str, Any]


def is_name(text: str) -> bool:
    """Say whether a device or a group can be called so."""
    return _NAME.fullmatch(text) is not None


def cleaned(text: str) -> str:
    """Give a device's words without what is not printable, and no more than ``MAX_TEXT`` of them."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text[:MAX_TEXT])


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: It is none, or holds NaN, half a character or too deep a nesting.
    """

    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written again
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise InputError("the body is not a JSON object")
    return value


def read_status(data: bytes) -> Status:
    """Read a status.

    Raises:
        InputError: A field is missing, of another type or out of bounds; it is named.
    """
    value = read_object(data)
    if value.get("format") != 1:
        raise InputError("the status has another format than 1")
    rejected = _field(value, "rejected", _is_rejections)
    health = value.get("health")
    if health is not None and not isinstance(health, dict):
        raise InputError("the status' health is not an object")
    figures = health or {}
    kept = {
        "agent": _text(value.get("agent")),
        "last_report": _report(value.get("last_report")),
        "keyring": value["keyring"] if _is_count(value.get("keyring")) else None,
        "health": {key: figures[key] for key in _HEALTH if _is_number(figures.get(key))},
        "machine": _flat(value.get("machine")),
    }
    return Status(
        seq=_field(value, "seq", _is_count),
        phase=_field(value, "phase", lambda each: isinstance(each, str) and bool(_PHASE.fullmatch(each))),
        digest=_field(value, "digest", _is_digest_or_none),
        previous=_field(value, "previous", _is_digest_or_none),
        release=_field(value, "release", _is_count),
        rejected={digest: cleaned(reason) for digest, reason in list(rejected.items())[-_MAX_REJECTED:]},
        answers=figures["answers"] if _is_count(figures.get("answers")) else 0,
        errors=figures["errors"] if _is_count(figures.get("errors")) else 0,
        body=kept,
    )


def read_records(data: bytes) -> tuple[Record, ...]:
    """Read telemetry.

    Raises:
        InputError: A record breaks a rule, or there are too many; none is taken.
    """
    records = read_object(data).get("records")
    if not isinstance(records, list):
        raise InputError("the telemetry has no list of records")
    if len(records) > MAX_RECORDS:
        raise InputError(f"{len(records)} records are more than {MAX_RECORDS} in one request")
    return tuple(_record(each) for each in records)


def read_enrolment(data: bytes) -> Enrolment:
    """Read what a new device says.

    Raises:
        InputError: A field is missing or of another type.
    """
    value = read_object(data)
    code = _field(value, "code", lambda each: isinstance(each, str) and 0 < len(each) <= 100)
    name = value.get("name")
    given = name if isinstance(name, str) and is_name(name) else ""
    return Enrolment(code=code, name=given, machine=_flat(value.get("machine")))


_HEALTH = ("answers", "errors", "restarts", "p50_ms", "p95_ms")


def _record(value: Any) -> Record:
    if not isinstance(value, dict):
        raise InputError("a record is not an object")
    body = _field(value, "body", lambda each: isinstance(each, dict))
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    if len(text.encode()) > MAX_RECORD_BYTES:
        raise InputError(f"a record is larger than {MAX_RECORD_BYTES} bytes")
    return Record(
        id=_field(value, "id", lambda each: isinstance(each, str) and bool(_RECORD_ID.fullmatch(each))),
        kind=_field(value, "kind", lambda each: each in KINDS if isinstance(each, str) else False),
        at_s=float(_field(value, "at_s", _is_number)),
        digest=_field(value, "digest", _is_digest_or_none),
        body=text,
    )


def _field(value: Mapping[str, Any], key: str, holds: Callable[[Any], bool]) -> Any:
    if key not in value:
        raise InputError(f"{key!r} is missing")
    if not holds(value[key]):
        raise InputError(f"{key!r} is not what it should be")
    return value[key]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MAX_COUNT


def _is_digest_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(_DIGEST.fullmatch(value)))


def _is_rejections(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _DIGEST.fullmatch(digest) and isinstance(reason, str) for digest, reason in value.items()
    )


def _text(value: Any) -> str:
    return cleaned(value) if isinstance(value, str) else ""


def _report(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: _text(value.get(key)) for key in ("status", "detail", "error", "digest")}


def _flat(value: Any, *, depth: int = 2) -> dict[str, Any]:
    """Keep the texts and numbers of a small object, one level of objects inside it included."""
    if not isinstance(value, dict) or depth == 0:
        return {}
    kept: dict[str, Any] = {}
    for key, each in list(value.items())[:32]:
        if isinstance(each, str):
            kept[cleaned(key)] = cleaned(each)
        elif isinstance(each, bool) or _is_number(each):
            kept[cleaned(key)] = each
        elif isinstance(each, dict):
            kept[cleaned(key)] = _flat(each, depth=depth - 1)
    return kept
