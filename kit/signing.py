"""Signatures over a list of files, in the OMS 1.0 format (OpenSSF Model Signing).

A signature is a Sigstore bundle (v0.3, JSON) around a DSSE envelope (``kit.envelope``) whose payload is an
in-toto statement: a name, and the sha256 of every file. The official ``model_signing`` tool verifies what
``sign`` makes; ``verify`` takes signatures of both, and refuses whatever the official tool refuses.

This module knows names and digests, not folders (``kit.seal`` does), and neither certificates nor
transparency logs. Runs on a device: standard library and cryptography only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from kit import files as kit_files
from kit.envelope import (
    HEX_DIGEST,
    MAX_SIGNATURE_BYTES,
    check_signature,
    expect,
    field,
    make_envelope,
    only,
    open_envelope,
    parse_json,
)
from kit.errors import InputError, VerificationError
from kit.keypair import id_of, load_private, open_trusted, pem_of

SIGNATURE_NAME = "model.sig"
"""What the signature of a folder is called inside that folder."""

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# The official verifier looks at none of these at the top of a folder, so none of them can be signed.
_UNCHECKED_NAMES = (SIGNATURE_NAME, ".git", ".gitattributes", ".github", ".gitignore")
_FETCH_HINT = "fetch the files again from where they were signed"


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
    private = load_private(key)
    payload = kit_files.canonical_json(_statement(files, name=name))
    bundle = kit_files.canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": _key_hint(private.public_key())},
                "tlogEntries": [],
            },
            "dsseEnvelope": make_envelope(payload, _PAYLOAD_TYPE, [private]),
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
    keys = {_key_hint(public): public for public in open_trusted(trusted)}
    payload, raw, hint, signer = _open_bundle(signature)
    if hint not in keys:
        shown = ", ".join(sorted(id_of(key)[:12] for key in keys.values()))
        raise VerificationError(
            f"the signature is by key {(signer or hint)[:12]}, which is not trusted (trusted: {shown})",
            hint="add the signer's .pub file to the trusted keys, if you trust the signer",
        )
    public = keys[hint]
    if signer not in ("", id_of(public)):
        raise VerificationError(f"the signature names two keys: {signer[:12]} and {id_of(public)[:12]}")
    check_signature(public, raw, payload, _PAYLOAD_TYPE)
    name, files = _read_statement(parse_json(payload, "the signed statement"))
    return Signed(name=name, files=files, key_id=id_of(public))


def _open_bundle(signature: bytes) -> tuple[bytes, bytes, str, str]:
    """Take a bundle apart: payload, raw signature, key hint, key id ("" when the signer gave none).

    Unknown fields are refused here, as the official tool does: nothing outside the payload is signed.
    """
    bundle = parse_json(signature, "the signature")
    only(bundle, "mediaType", "verificationMaterial", "dsseEnvelope")
    expect(field(bundle, "mediaType", str), _MEDIA_TYPE, "bundle type")
    material = field(bundle, "verificationMaterial", dict)
    only(material, "publicKey", "tlogEntries")
    public_key = field(material, "publicKey", dict)
    only(public_key, "hint")
    hint = field(public_key, "hint", str)
    if field(material, "tlogEntries", list):
        raise VerificationError("the signature carries transparency log entries, which are not checked here")
    if not HEX_DIGEST.fullmatch(hint):
        raise VerificationError("the signature names its key by something else than a sha256")
    payload, signatures = open_envelope(field(bundle, "dsseEnvelope", dict), _PAYLOAD_TYPE)
    if len(signatures) != 1:
        raise VerificationError(f"the envelope holds {len(signatures)} signatures where one is expected")
    [(signer, raw)] = signatures
    return payload, raw, hint, signer


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
    expect(field(statement, "_type", str), _STATEMENT_TYPE, "statement type")
    expect(field(statement, "predicateType", str), _PREDICATE_TYPE, "predicate type")
    subjects = field(statement, "subject", list)
    if len(subjects) != 1:
        raise VerificationError(f"the signed statement has {len(subjects)} subjects where one is expected")
    predicate = field(statement, "predicate", dict)
    serialization_type = field(predicate, "serialization", dict)
    expect(field(serialization_type, "method", str), "files", "serialization method")
    expect(field(serialization_type, "hash_type", str), "sha256", "hash type")
    if field(serialization_type, "allow_symlinks", bool):
        raise VerificationError("the signed statement allows symbolic links, which are not followed here")
    if "ignore_paths" in serialization_type:
        for ignored in field(serialization_type, "ignore_paths", list):
            if ignored not in _UNCHECKED_NAMES:
                raise VerificationError(f"the signed statement leaves {ignored!r} unchecked")
    files: dict[str, str] = {}
    for resource in field(predicate, "resources", list):
        file = field(resource, "name", str)
        expect(field(resource, "algorithm", str), "sha256", f"digest algorithm of {file!r}")
        if file in files:
            raise VerificationError(f"the signed statement lists {file!r} twice")
        files[file] = field(resource, "digest", str)
    name = field(subjects[0], "name", str)
    for problem in _name_problems(name, files):
        raise VerificationError(f"the signed statement is not acceptable: {problem}")
    if list(files) != sorted(files, key=_path_order):
        raise VerificationError("the signed statement does not list its files in sorted order")
    root = field(field(subjects[0], "digest", dict), "sha256", str)
    expect(root, _root_digest(files.values()), "digest over all files")
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
        if not HEX_DIGEST.fullmatch(digest):
            yield f"the digest of {file!r} is not a sha256 in lower-case hexadecimal"


def _path_order(name: str) -> list[str]:
    """Sort by path component, as the official tool does: ``a/b`` stands before ``a-b``."""
    return name.split("/")


def _root_digest(digests: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _key_hint(public: ec.EllipticCurvePublicKey) -> str:
    """Name a key as OMS 1.0 bundles do: the sha256 of its PEM, not of its DER."""
    return kit_files.sha256_bytes(pem_of(public))
