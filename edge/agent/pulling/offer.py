"""Read an offer: strictly, in bounds, and with every URL at the place the offer came from.

An offer says what its source would like the device to run; whether a bundle can be believed is for its
signature to say. Unknown keys are a newer source's and are skipped. It opens nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.agent.pulling.client import MAX_BODY_BYTES, same_place
from kit.archive import MAX_BYTES
from kit.errors import InputError

STAY, INSTALL, RETURN = "stay", "install", "return"
"""What an offer can ask for."""

FORMAT = 1
MAX_POLL_S = 86_400
MAX_DELTAS = 64

_MAX_ARCHIVE_BYTES = MAX_BYTES + (1 << 20)
_MAX_TEXT = 200
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Delta:
    """A patch that makes the offered archive from one the device may have.

    Attributes:
        source: Digest of the bundle it starts from.
        url: Where it lies, absolute.
        size_bytes: Its size.
        sha256: Of its bytes.
    """

    source: str
    url: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class KeyringNotice:
    """Say that a source has a keyring: its counter, and where it lies."""

    counter: int
    url: str


@dataclass(frozen=True)
class Offer:
    """What a source offers to a device.

    Attributes:
        kind: ``stay``, ``install`` or ``return``.
        poll_s: When to ask again, in seconds.
        digest: The bundle; empty for ``stay``.
        release: Its release counter; 0 for ``stay`` and ``return``.
        url: Where its archive lies, absolute; empty unless ``install``, like what follows.
        size_bytes: The archive's size.
        sha256: Of the archive's bytes.
        override: A signed override, or None.
        deltas: Patches that make the archive.
        keyring: The newest keyring, where the source has one.
        rollout: Names the rollout, for logs.
    """

    kind: str
    poll_s: float
    digest: str = ""
    release: int = 0
    url: str = ""
    size_bytes: int = 0
    sha256: str = ""
    override: Mapping[str, Any] | None = None
    deltas: tuple[Delta, ...] = ()
    keyring: KeyringNotice | None = None
    rollout: str = ""


def read_offer(data: bytes, *, url: str) -> Offer:
    """Read an offer.

    Args:
        data: The body of the answer.
        url: Where it came from; its URLs are relative to this one.

    Returns:
        The offer.

    Raises:
        InputError: It is void: not JSON, of another format, or a field is missing, ill-typed or out of
        bounds.
    """
    if len(data) > MAX_BODY_BYTES:
        raise InputError(f"the offer is larger than {MAX_BODY_BYTES} bytes")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the offer is not JSON: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise InputError("the offer is not a JSON object")
    if value.get("format") != FORMAT or isinstance(value.get("format"), bool):
        raise InputError(f"the offer has format {str(value.get('format'))[:40]!r}; this agent reads {FORMAT}")
    kind = _field(value, "kind", lambda each: each in (STAY, INSTALL, RETURN) if _is_text(each) else False)
    poll_s = float(_field(value, "poll_s", lambda each: _is_number(each) and 1 <= each <= MAX_POLL_S))
    keyring = _keyring(value.get("keyring"), url=url)
    if kind == STAY:
        return Offer(kind, poll_s, keyring=keyring)
    digest = _field(value, "digest", _is_digest)
    rollout = value["rollout"][:_MAX_TEXT] if _is_text(value.get("rollout")) else ""
    if kind == RETURN:
        return Offer(kind, poll_s, digest=digest, keyring=keyring, rollout=rollout)
    deltas = [] if value.get("deltas") is None else value["deltas"]
    if not isinstance(deltas, list) or len(deltas) > MAX_DELTAS:
        raise InputError(f"the offer's 'deltas' is no list of at most {MAX_DELTAS}")
    return Offer(
        kind=kind,
        poll_s=poll_s,
        digest=digest,
        release=_field(value, "release", lambda each: _is_count(each) and each >= 1),
        url=_url(value, url),
        size_bytes=_field(
            value, "size_bytes", lambda each: _is_count(each) and 0 < each <= _MAX_ARCHIVE_BYTES
        ),
        sha256=_field(value, "sha256", _is_digest),
        override=_override(value.get("override")),
        deltas=tuple(_delta(each, url=url) for each in deltas),
        keyring=keyring,
        rollout=rollout,
    )


def _delta(value: Any, *, url: str) -> Delta:
    if not isinstance(value, dict):
        raise InputError("a delta of the offer is not an object")
    return Delta(
        source=_field(value, "from", _is_digest),
        url=_url(value, url),
        size_bytes=_field(
            value, "size_bytes", lambda each: _is_count(each) and 0 < each <= _MAX_ARCHIVE_BYTES
        ),
        sha256=_field(value, "sha256", _is_digest),
    )


def _keyring(value: Any, *, url: str) -> KeyringNotice | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError("the offer's 'keyring' is not an object")
    return KeyringNotice(_field(value, "counter", _is_count), _url(value, url))


def _override(value: Any) -> Mapping[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    raise InputError("the offer's 'override' is not an object")


def _url(value: Mapping[str, Any], base: str) -> str:
    return same_place(base, _field(value, "url", lambda each: _is_text(each) and 0 < len(each) <= 2000))


def _field(value: Mapping[str, Any], key: str, holds: Callable[[Any], bool]) -> Any:
    if key not in value:
        raise InputError(f"the offer has no {key!r}")
    if not holds(value[key]):
        raise InputError(f"the offer's {key!r} is {repr(value[key])[:60]}, which it cannot be")
    return value[key]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(word: str) -> Any:
    raise ValueError(word)
