"""DSSE envelopes (v1.0.0): bytes of one kind, signed by one key or several, read strictly.

The algorithm is ECDSA on P-256 with SHA-256 and nothing in an envelope can choose another. Signing is
deterministic (RFC 6979): equal inputs give equal bytes. A signature of files (``kit.signing``) holds such an
envelope, a paper (``kit.paper``) is one. Runs on a device: standard library and cryptography only.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from kit import files
from kit.errors import InputError, MissingDependencyError, VerificationError
from kit.keypair import id_of, load_private, open_trusted

MAX_SIGNATURE_BYTES = 4 << 20
"""More than any signature needs (about 15,000 files), little enough to read on a device."""

MAX_SIGNERS = 64
"""Most keys that sign one envelope."""

HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
"""A sha256 in hexadecimal."""

_FETCH_HINT = "fetch the files again from where they were signed"

_T = TypeVar("_T")


def sign_payload(payload: bytes, payload_type: str, *, key: Path, also: Sequence[Path] = ()) -> bytes:
    """Sign bytes of one kind; no signature of another kind can be taken for it.

    Args:
        payload: What is signed.
        payload_type: Its media type, ASCII.
        key: The private key file, readable by its owner alone.
        also: More private keys that sign; a key counts once.

    Returns:
        A DSSE envelope, JSON in UTF-8; the same bytes every time for the same inputs.

    Raises:
        InputError: A key file breaks a rule, or there are more than ``MAX_SIGNERS``.
        NotFoundError: A key file does not exist.
        MissingDependencyError: The installed cryptography cannot sign deterministically.
    """
    privates = {id_of(each.public_key()): each for each in map(load_private, (key, *also))}
    if len(privates) > MAX_SIGNERS:
        raise InputError(f"{len(privates)} keys sign one paper; at most {MAX_SIGNERS} may")
    return files.canonical_json(make_envelope(payload, payload_type, list(privates.values())))


def verify_payload(
    envelope: bytes,
    payload_type: str,
    *,
    trusted: Sequence[bytes],
    what: str = "the paper",
    max_bytes: int = MAX_SIGNATURE_BYTES,
) -> tuple[bytes, str]:
    """Check a DSSE envelope and give what was signed, and by whom.

    One signature by a trusted key is enough; one that claims a trusted key and does not hold is refused,
    whatever stands beside it. Signatures by other keys say nothing.

    Args:
        envelope: What ``sign_payload`` has made.
        payload_type: The only media type that is accepted.
        trusted: Public keys, PEM.
        what: What it is, for the sentences of refusals.
        max_bytes: Most that is looked at.

    Returns:
        The signed bytes, and the id of the trusted key that signed, the first of several.

    Raises:
        VerificationError: Anything else; the sentence says what does not hold.
    """
    if len(envelope) > max_bytes:
        raise VerificationError(f"{what} is larger than {max_bytes} bytes", hint=_FETCH_HINT)
    keys = {id_of(public): public for public in open_trusted(trusted)}
    payload, signatures = open_envelope(parse_json(envelope, what), payload_type)
    raws = dict(signatures)
    if not 1 <= len(signatures) <= MAX_SIGNERS or len(raws) != len(signatures):
        raise VerificationError(f"{what} holds {len(signatures)} signatures, by {len(raws)} keys")
    signers = [key for key in raws if key in keys]
    if not signers:
        said = " and ".join((key or "without a name")[:12] for key in list(raws)[:3])
        shown = ", ".join(sorted(key[:12] for key in keys))
        raise VerificationError(
            f"{what} is signed by key {said}, which is not trusted (trusted: {shown})",
            hint="have it signed by a trusted key",
        )
    for signer in signers:
        check_signature(keys[signer], raws[signer], payload, payload_type)
    return payload, signers[0]


def make_envelope(
    payload: bytes, payload_type: str, privates: Sequence[ec.EllipticCurvePrivateKey]
) -> dict[str, Any]:
    """Sign and wrap (DSSE v1.0.0, envelope.md).

    Raises:
        MissingDependencyError: The installed cryptography cannot sign deterministically.
    """
    try:
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        raws = [private.sign(_pae(payload, payload_type), algorithm) for private in privates]
    except UnsupportedAlgorithm as error:
        raise MissingDependencyError(
            "the OpenSSL under the installed cryptography cannot make deterministic signatures",
            hint="install cryptography from PyPI (its wheels carry OpenSSL 3.2 or newer)",
        ) from error
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {"keyid": id_of(private.public_key()), "sig": base64.b64encode(raw).decode()}
            for private, raw in zip(privates, raws)
        ],
    }


def check_signature(public: ec.EllipticCurvePublicKey, raw: bytes, payload: bytes, payload_type: str) -> None:
    """Check one signature of a payload.

    Raises:
        VerificationError: It does not hold.
    """
    try:
        public.verify(raw, _pae(payload, payload_type), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise VerificationError(
            f"the signature does not match its payload under key {id_of(public)[:12]}", hint=_FETCH_HINT
        ) from error


def open_envelope(envelope: object, payload_type: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Take an envelope apart; nothing is verified yet.

    Returns:
        The payload, and the key id ("" when the signer gave none) and raw bytes of each signature.

    Raises:
        VerificationError: It is no envelope of this payload type.
    """
    only(envelope, "payload", "payloadType", "signatures")
    expect(field(envelope, "payloadType", str), payload_type, "payload type")
    signatures = []
    for each in field(envelope, "signatures", list):
        only(each, "sig", "keyid")
        signer = field(each, "keyid", str) if "keyid" in each else ""
        if signer and not HEX_DIGEST.fullmatch(signer):
            raise VerificationError("the signature names its key by something else than a sha256")
        signatures.append((signer, _decoded(each, "sig")))
    return _decoded(envelope, "payload"), signatures


def parse_json(data: bytes, what: str) -> object:
    """Read JSON as strictly as signed bytes are: UTF-8, and no key twice in an object.

    Args:
        data: The bytes.
        what: What they are, for the sentence of a refusal.

    Raises:
        VerificationError: They are not such JSON.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"{what} is not JSON: {error}", hint=_FETCH_HINT) from error


def field(value: object, key: str, kind: type[_T]) -> _T:
    """Give a member of an object that must have it, of this type.

    Raises:
        VerificationError: It has not.
    """
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise VerificationError(f"the signature has no {key!r} of type {kind.__name__} where one is expected")
    found: _T = value[key]
    return found


def only(value: object, *keys: str) -> None:
    """Refuse an object with other members than these.

    Raises:
        VerificationError: It has another, or is no object.
    """
    if not isinstance(value, dict):
        raise VerificationError(f"the signature has no object with {', '.join(keys)} where one is expected")
    for key in value:
        if key not in keys:
            raise VerificationError(f"the signature has an unknown field {key[:40]!r}")


def expect(value: str, expected: str, what: str) -> None:
    """Refuse any other value.

    Raises:
        VerificationError: It is another.
    """
    if value != expected:
        raise VerificationError(f"the {what} is {value[:80]!r} where {expected!r} is expected")


def _pae(payload: bytes, payload_type: str) -> bytes:
    """Encode what DSSE signs (DSSE v1.0.0, protocol.md, "PAE")."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _decoded(value: object, key: str) -> bytes:
    text = field(value, key, str)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise VerificationError(
            f"the signature's {key!r} is not base64: {error}", hint=_FETCH_HINT
        ) from error
    if base64.b64encode(data).decode() != text:  # the last character has bits that decoding drops
        raise VerificationError(f"the signature's {key!r} is not base64 as it is written", hint=_FETCH_HINT)
    return data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value
