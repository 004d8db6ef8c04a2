"""Papers: small signed JSON objects that travel beside bundles, each of one kind.

A paper is a DSSE envelope (``kit.envelope``) around canonical JSON. It is read strictly: the payload type is
the one expected, the fields are those of its kind and no others, and each keeps its rule. What a kind means
is for ``kit.keyring`` and ``kit.override``. Runs on a device: standard library and cryptography only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import envelope
from kit.errors import InputError, VerificationError
from kit.files import canonical_json

FORMAT = 1
"""The only format of papers so far."""


@dataclass(frozen=True)
class Kind:
    """What papers of one kind have in common.

    Attributes:
        name: What one is called in a sentence: ``the keyring``.
        payload_type: Media type that is signed along.
        max_bytes: Most that one may have.
        rules: Every field beside ``format``, and what its value must be.
    """

    name: str
    payload_type: str
    max_bytes: int
    rules: Mapping[str, Callable[[Any], bool]]


def sign_paper(kind: Kind, fields: Mapping[str, Any], *, key: Path, also: Sequence[Path] = ()) -> bytes:
    """Write a paper.

    Args:
        kind: Its kind.
        fields: Its fields, without ``format``.
        key: The private key file that signs.
        also: More private keys that sign.

    Raises:
        InputError: A field breaks its rule, the paper would be too large, or a key file breaks a rule.
        NotFoundError: A key file does not exist.
    """
    _check(kind, fields)
    payload = canonical_json({"format": FORMAT, **fields})
    paper = envelope.sign_payload(payload, kind.payload_type, key=key, also=also)
    if len(paper) > kind.max_bytes:
        raise InputError(f"{kind.name} has {len(paper)} bytes; it may have {kind.max_bytes}")
    return paper


def open_paper(kind: Kind, data: bytes, *, trusted: Sequence[bytes]) -> tuple[dict[str, Any], str]:
    """Verify a paper and read it; nothing of it is read before a signature holds.

    Args:
        kind: The kind it must be.
        data: The paper.
        trusted: Public keys, PEM; one of them must have signed.

    Returns:
        Its fields, without ``format``, and the id of the key that signed.

    Raises:
        VerificationError: Anything does not hold.
    """
    payload, key_id = envelope.verify_payload(
        data, kind.payload_type, trusted=trusted, what=kind.name, max_bytes=kind.max_bytes
    )
    value = envelope.parse_json(payload, kind.name)
    if not isinstance(value, dict):
        raise VerificationError(f"{kind.name} is not an object")
    version = value.pop("format", None)
    if version is True or version != FORMAT or not isinstance(version, int):
        raise VerificationError(
            f"{kind.name} has format {shown(version)}, and {FORMAT} is the only one known here",
            hint="bring this installation up to date",
        )
    try:
        _check(kind, value)
    except InputError as error:
        raise VerificationError(error.message, hint=error.hint) from error
    return value, key_id


def shown(value: object) -> str:
    """Show a value in a sentence, shortened."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_count(value: object) -> bool:
    """Say whether a value is a whole number from 0 on that JSON carries exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _check(kind: Kind, fields: Mapping[str, Any]) -> None:
    for name, rule in kind.rules.items():
        if name not in fields:
            raise InputError(f"{kind.name} lacks {name!r}")
        if not rule(fields[name]):
            raise InputError(f"{kind.name} has {name} = {shown(fields[name])}, which breaks its rule")
    for name in fields:
        if name not in kind.rules:
            raise InputError(f"{kind.name} has an unknown field {shown(name)}")
