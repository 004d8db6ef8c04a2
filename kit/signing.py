"""Signatures over a list of files, in the OMS 1.0 format (OpenSSF Model Signing), and over single papers.

A signature is a Sigstore bundle (v0.3, JSON) around a DSSE envelope whose payload is an in-toto
statement: a name, and the sha256 of every file. The official ``model_signing`` tool verifies what
``sign`` makes; ``verify`` takes signatures of both, and refuses whatever the official tool refuses.
A paper (``kit.paper``) is the envelope alone, with a payload type of its own.

The algorithm is ECDSA on P-256 with SHA-256 and nothing in a bundle can choose another. Signing is
deterministic (RFC 6979): equal inputs give equal bytes. This module knows names and digests, not
folders (``kit.seal`` does), and neither certificates nor transparency logs. Runs on a device:
standard library and cryptography only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit import files as kit_files
from kit.errors import (
    ConflictError,
    InputError,
    MissingDependencyError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)

SIGNATURE_NAME = "model.sig"
"""What the signature of a folder is called inside that folder."""

MAX_SIGNATURE_BYTES = 4 << 20
"""More than any signature needs (about 15,000 files), little enough to read on a device."""

MAX_SIGNERS = 64
"""Most keys that sign one paper."""

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# The official verifier looks at none of these at the top of a folder, so none of them can be signed.
_UNCHECKED_NAMES = (SIGNATURE_NAME, ".git", ".gitattributes", ".github", ".gitignore")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_INIT_HINT = "make a key pair with `kit keys init`"
_FETCH_HINT = "fetch the files again from where they were signed"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Signed:
    """What a valid signature says.

    Attributes:
        name: What the signer called the set of files.
        files: Relative POSIX path to sha256 in hexadecimal, in signature order, at least one.
        key_id: The trusted key that signed, as ``key_id`` names it.
    """

    name: str
    files: Mapping[str, str]
    key_id: str


def generate_key(path: Path) -> bytes:
    """Make a P-256 key pair: the private key at ``path``, the public one beside it as ``.pub``.

    Args:
        path: Where the private key shall stand (PKCS8 PEM, mode 0600), not ending in ``.pub``.

    Returns:
        The public key, PEM.

    Raises:
        ConflictError: One of the two files exists; neither is touched.
        InputError: The path ends in ``.pub``.
        UnavailableError: The disk is full or the folder cannot be written.
    """
    public_path = path.with_suffix(".pub")
    if public_path == path:
        raise InputError(f"{path} is the name of a public key", hint="name the private key without .pub")
    for existing in (path, public_path):
        if os.path.lexists(existing):
            raise _taken(existing)
    private = ec.generate_private_key(ec.SECP256R1())
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = _pem(private.public_key())
    # The public key first: whoever sees a private key always finds its other half.
    _create(public_path, public_pem, mode=0o644)
    try:
        _create(path, private_pem, mode=0o600)
    except BaseException:
        public_path.unlink()
        raise
    return public_pem


def key_id(public_pem: bytes) -> str:
    """Name a public key: the sha256 of its DER SubjectPublicKeyInfo, 64 hexadecimal digits.

    Raises:
        InputError: The bytes are not a P-256 public key in PEM.
    """
    return _key_id(_p256_public(public_pem, "the public key"))


def normal_pem(public_pem: bytes) -> bytes:
    """Write a public key the one way this kit does, without what may stand around it.

    Raises:
        InputError: The bytes are not a P-256 public key in PEM.
    """
    return _pem(_p256_public(public_pem, "the public key"))


def public_of(key: Path) -> bytes:
    """Derive the public key, PEM, of a private key file.

    Raises:
        NotFoundError: The file does not exist.
        InputError: Others can read the file, or it does not hold an unencrypted P-256 key.
    """
    return _pem(_load_private(key).public_key())


def load_trusted(path: Path) -> tuple[bytes, ...]:
    """Read the public keys whose signatures are believed.

    Args:
        path: One ``.pub`` file, or a folder whose ``*.pub`` files are all trusted.

    Returns:
        Each key as PEM, in order of file name, at least one.

    Raises:
        NotFoundError: There is no such file or folder, or the folder holds no ``*.pub``.
        InputError: A file is not a P-256 public key.
        UnavailableError: A file cannot be read.
    """
    paths = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    if not paths:
        raise NotFoundError(f"{path} holds no trusted key (*.pub)", hint=_INIT_HINT)
    trusted = []
    for file in paths:
        try:
            pem = file.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"the trusted key {file} does not exist", hint=_INIT_HINT) from error
        except OSError as error:
            raise UnavailableError(f"the trusted key {file} cannot be read: {error.strerror}") from error
        trusted.append(_pem(_p256_public(pem, str(file))))
    return tuple(trusted)


def sign(files: Mapping[str, str], *, name: str, key: Path) -> bytes:
    """Sign a list of files.

    Args:
        files: Relative POSIX path to the sha256 of that file's bytes, 64 hexadecimal digits; not empty.
        name: What the set of files is called: printable, not empty.
        key: The private key file, readable by its owner alone.

    Returns:
        The signature, JSON in UTF-8; the same bytes every time for the same inputs.

    Raises:
        InputError: A name or digest breaks a rule, or the key file does.
        NotFoundError: The key file does not exist.
        MissingDependencyError: The installed cryptography cannot sign deterministically.
    """
    for problem in _name_problems(name, files):
        raise InputError(f"this cannot be signed: {problem}")
    private = _load_private(key)
    payload = kit_files.canonical_json(_statement(files, name=name))
    bundle = kit_files.canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": _key_hint(private.public_key())},
                "tlogEntries": [],
            },
            "dsseEnvelope": _envelope(payload, _PAYLOAD_TYPE, [private]),
        }
    )
    if len(bundle) > MAX_SIGNATURE_BYTES:
        raise InputError(f"{len(files)} files make a signature of more than {MAX_SIGNATURE_BYTES} bytes")
    return bundle


def verify(signature: bytes, *, trusted: Sequence[bytes]) -> Signed:
    """Check a signature and say what was signed and by whom.

    Nothing in the payload is read before the signature over its raw bytes holds.

    Args:
        signature: What ``sign``, or the official tool with an EC P-256 key, has made.
        trusted: Public keys, PEM; the signature must be by one of them.

    Returns:
        The name, the files and the key. Whether files on a disk agree is ``kit.seal``'s to say.

    Raises:
        VerificationError: Anything else; the sentence says what does not hold.
    """
    if not signature:
        raise VerificationError("there is no signature: it is empty", hint=_FETCH_HINT)
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise VerificationError(f"the signature is larger than {MAX_SIGNATURE_BYTES} bytes", hint=_FETCH_HINT)
    keys = _trusted_keys(trusted)
    payload, raw, hint, signer = _open_bundle(signature)
    if hint not in keys:
        shown = ", ".join(sorted(_key_id(key)[:12] for key in keys.values()))
        raise VerificationError(
            f"the signature is by key {(signer or hint)[:12]}, which is not trusted (trusted: {shown})",
            hint="add the signer's .pub file to the trusted keys, if you trust the signer",
        )
    public = keys[hint]
    if signer not in ("", _key_id(public)):
        raise VerificationError(f"the signature names two keys: {signer[:12]} and {_key_id(public)[:12]}")
    _check_signature(public, raw, payload, _PAYLOAD_TYPE)
    name, files = _read_statement(parse_json(payload, "the signed statement"))
    return Signed(name=name, files=files, key_id=_key_id(public))


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
    privates = {_key_id(each.public_key()): each for each in map(_load_private, (key, *also))}
    if len(privates) > MAX_SIGNERS:
        raise InputError(f"{len(privates)} keys sign one paper; at most {MAX_SIGNERS} may")
    return kit_files.canonical_json(_envelope(payload, payload_type, list(privates.values())))


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
    keys = {_key_id(public): public for public in _trusted_keys(trusted).values()}
    payload, signatures = _open_envelope(parse_json(envelope, what), payload_type)
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
        _check_signature(keys[signer], raws[signer], payload, payload_type)
    return payload, signers[0]


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


def _envelope(
    payload: bytes, payload_type: str, privates: Sequence[ec.EllipticCurvePrivateKey]
) -> dict[str, Any]:
    """Sign and wrap, as DSSE v1.0.0 has it (envelope.md)."""
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
            {"keyid": _key_id(private.public_key()), "sig": base64.b64encode(raw).decode()}
            for private, raw in zip(privates, raws)
        ],
    }


def _check_signature(
    public: ec.EllipticCurvePublicKey, raw: bytes, payload: bytes, payload_type: str
) -> None:
    try:
        public.verify(raw, _pae(payload, payload_type), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise VerificationError(
            f"the signature does not match its payload under key {_key_id(public)[:12]}", hint=_FETCH_HINT
        ) from error


def _pae(payload: bytes, payload_type: str) -> bytes:
    """Encode what DSSE signs (DSSE v1.0.0, protocol.md, "PAE")."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)


def _path_order(name: str) -> list[str]:
    """Sort by path component, as the official tool does: ``a/b`` stands before ``a-b``."""
    return name.split("/")


def _root_digest(digests: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _statement(files: Mapping[str, str], *, name: str) -> dict[str, Any]:
    names = sorted(files, key=_path_order)
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root_digest(files[file] for file in names)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": file, "algorithm": "sha256", "digest": files[file]} for file in names],
        },
    }


def _read_statement(statement: object) -> tuple[str, dict[str, str]]:
    """Read name and files from a statement whose signature holds; unknown fields are skipped, as OMS says."""
    _expect(_field(statement, "_type", str), _STATEMENT_TYPE, "statement type")
    _expect(_field(statement, "predicateType", str), _PREDICATE_TYPE, "predicate type")
    subjects = _field(statement, "subject", list)
    if len(subjects) != 1:
        raise VerificationError(f"the signed statement has {len(subjects)} subjects where one is expected")
    predicate = _field(statement, "predicate", dict)
    serialization_type = _field(predicate, "serialization", dict)
    _expect(_field(serialization_type, "method", str), "files", "serialization method")
    _expect(_field(serialization_type, "hash_type", str), "sha256", "hash type")
    if _field(serialization_type, "allow_symlinks", bool):
        raise VerificationError("the signed statement allows symbolic links, which are not followed here")
    if "ignore_paths" in serialization_type:
        for ignored in _field(serialization_type, "ignore_paths", list):
            if ignored not in _UNCHECKED_NAMES:
                raise VerificationError(f"the signed statement leaves {ignored!r} unchecked")
    files: dict[str, str] = {}
    for resource in _field(predicate, "resources", list):
        file = _field(resource, "name", str)
        _expect(_field(resource, "algorithm", str), "sha256", f"digest algorithm of {file!r}")
        if file in files:
            raise VerificationError(f"the signed statement lists {file!r} twice")
        files[file] = _field(resource, "digest", str)
    name = _field(subjects[0], "name", str)
    for problem in _name_problems(name, files):
        raise VerificationError(f"the signed statement is not acceptable: {problem}")
    if list(files) != sorted(files, key=_path_order):
        raise VerificationError("the signed statement does not list its files in sorted order")
    root = _field(_field(subjects[0], "digest", dict), "sha256", str)
    _expect(root, _root_digest(files.values()), "digest over all files")
    return name, files


def _name_problems(name: str, files: Mapping[str, str]) -> Iterable[str]:
    """Yield each broken rule of a name and a list of files, as a sentence's second half."""
    if not name or not name.isprintable():
        yield f"the name {name!r} is empty or not printable"
    if not files:
        yield "there are no files"
    for file, digest in files.items():
        parts = file.split("/")
        # isprintable also refuses the lone surrogates of names that are not UTF-8
        if not file.isprintable() or "\\" in file or any(part in ("", ".", "..") for part in parts):
            yield f"{file!r} is not a plain relative path"
        if parts[0] in _UNCHECKED_NAMES:
            yield f"the official verifier does not look at {file!r}"
        if not _HEX_DIGEST.fullmatch(digest):
            yield f"the digest of {file!r} is not a sha256 in lower-case hexadecimal"


def _open_bundle(signature: bytes) -> tuple[bytes, bytes, str, str]:
    """Take a bundle apart: payload, raw signature, key hint, key id ("" when the signer gave none).

    Unknown fields are refused here, as the official tool does: nothing outside the payload is signed.
    """
    bundle = parse_json(signature, "the signature")
    _only(bundle, "mediaType", "verificationMaterial", "dsseEnvelope")
    _expect(_field(bundle, "mediaType", str), _MEDIA_TYPE, "bundle type")
    material = _field(bundle, "verificationMaterial", dict)
    _only(material, "publicKey", "tlogEntries")
    public_key = _field(material, "publicKey", dict)
    _only(public_key, "hint")
    hint = _field(public_key, "hint", str)
    if _field(material, "tlogEntries", list):
        raise VerificationError("the signature carries transparency log entries, which are not checked here")
    if not _HEX_DIGEST.fullmatch(hint):
        raise VerificationError("the signature names its key by something else than a sha256")
    payload, signatures = _open_envelope(_field(bundle, "dsseEnvelope", dict), _PAYLOAD_TYPE)
    if len(signatures) != 1:
        raise VerificationError(f"the envelope holds {len(signatures)} signatures where one is expected")
    [(signer, raw)] = signatures
    return payload, raw, hint, signer


def _open_envelope(envelope: object, payload_type: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Take a DSSE envelope apart: payload, and key id ("" when the signer gave none) and raw bytes of each
    signature."""
    _only(envelope, "payload", "payloadType", "signatures")
    _expect(_field(envelope, "payloadType", str), payload_type, "payload type")
    signatures = []
    for each in _field(envelope, "signatures", list):
        _only(each, "sig", "keyid")
        signer = _field(each, "keyid", str) if "keyid" in each else ""
        if signer and not _HEX_DIGEST.fullmatch(signer):
            raise VerificationError("the signature names its key by something else than a sha256")
        signatures.append((signer, _decoded(each, "sig")))
    return _decoded(envelope, "payload"), signatures


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    return value


def _field(value: object, key: str, kind: type[_T]) -> _T:
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        raise VerificationError(f"the signature has no {key!r} of type {kind.__name__} where one is expected")
    found: _T = value[key]
    return found


def _only(value: object, *keys: str) -> None:
    if not isinstance(value, dict):
        raise VerificationError(f"the signature has no object with {', '.join(keys)} where one is expected")
    for key in value:
        if key not in keys:
            raise VerificationError(f"the signature has an unknown field {key[:40]!r}")


def _expect(value: str, expected: str, what: str) -> None:
    if value != expected:
        raise VerificationError(f"the {what} is {value[:80]!r} where {expected!r} is expected")


def _decoded(value: object, key: str) -> bytes:
    text = _field(value, key, str)
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise VerificationError(
            f"the signature's {key!r} is not base64: {error}", hint=_FETCH_HINT
        ) from error
    if base64.b64encode(data).decode() != text:  # the last character has bits that decoding drops
        raise VerificationError(f"the signature's {key!r} is not base64 as it is written", hint=_FETCH_HINT)
    return data


def _trusted_keys(trusted: Sequence[bytes]) -> dict[str, ec.EllipticCurvePublicKey]:
    """Map each trusted key's OMS hint to the key."""
    if not trusted:
        raise VerificationError("no key is trusted, so no signature can be believed", hint=_INIT_HINT)
    try:
        keys = [_p256_public(pem, f"trusted key {number}") for number, pem in enumerate(trusted, start=1)]
    except InputError as error:
        raise VerificationError(error.message, hint=error.hint) from error
    return {_key_hint(key): key for key in keys}


def _p256_public(pem: bytes, what: str) -> ec.EllipticCurvePublicKey:
    try:
        public = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{what} is not a public key in PEM", hint=_INIT_HINT) from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InputError(f"{what} is not an ECDSA P-256 key, the only kind accepted", hint=_INIT_HINT)
    return public


def _load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read()
    except FileNotFoundError as error:
        raise NotFoundError(f"the signing key {path} does not exist", hint=_INIT_HINT) from error
    except OSError as error:
        raise InputError(f"the signing key {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise InputError(
            f"others can use the signing key {path} (mode {mode & 0o777:04o})", hint=f"run `chmod 600 {path}`"
        )
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is not an unencrypted private key in PEM", hint=_INIT_HINT) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise InputError(f"{path} is not an ECDSA P-256 key, the only kind used", hint=_INIT_HINT)
    return private


def _pem(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_id(public: ec.EllipticCurvePublicKey) -> str:
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return kit_files.sha256_bytes(spki)


def _key_hint(public: ec.EllipticCurvePublicKey) -> str:
    """Name a key as OMS 1.0 bundles do: the sha256 of its PEM, not of its DER."""
    return kit_files.sha256_bytes(_pem(public))


def _create(path: Path, data: bytes, *, mode: int) -> None:
    """Write a key file, which must not exist yet, also when two try at once."""
    if not kit_files.create_once(path, data, mode=mode):
        raise _taken(path)


def _taken(path: Path) -> ConflictError:
    return ConflictError(
        f"{path} exists, and a key is never overwritten", hint="use this key, or move both of its files away"
    )
