"""Key pairs of P-256: files that hold them, how a public key is named, which ones are believed.

Runs on a device: standard library and cryptography only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit import files
from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError, VerificationError

_INIT_HINT = "make a key pair with `kit keys init`"


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
    public_pem = pem_of(private.public_key())
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
    return id_of(_p256_public(public_pem, "the public key"))


def normal_pem(public_pem: bytes) -> bytes:
    """Write a public key the one way this kit does, without what may stand around it.

    Raises:
        InputError: The bytes are not a P-256 public key in PEM.
    """
    return pem_of(_p256_public(public_pem, "the public key"))


def public_of(key: Path) -> bytes:
    """Derive the public key, PEM, of a private key file.

    Raises:
        NotFoundError: The file does not exist.
        InputError: Others can read the file, or it does not hold an unencrypted P-256 key.
    """
    return pem_of(load_private(key).public_key())


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
        trusted.append(pem_of(_p256_public(pem, str(file))))
    return tuple(trusted)


def open_trusted(trusted: Sequence[bytes]) -> list[ec.EllipticCurvePublicKey]:
    """Read keys that are believed.

    Args:
        trusted: Public keys, PEM.

    Raises:
        VerificationError: There is none, or one is not a P-256 public key.
    """
    if not trusted:
        raise VerificationError("no key is trusted, so no signature can be believed", hint=_INIT_HINT)
    try:
        return [_p256_public(pem, f"trusted key {number}") for number, pem in enumerate(trusted, start=1)]
    except InputError as error:
        raise VerificationError(error.message, hint=error.hint) from error


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key that its owner alone can use.

    Raises:
        NotFoundError: The file does not exist.
        InputError: Others can read the file, or it does not hold an unencrypted P-256 key.
    """
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


def pem_of(public: ec.EllipticCurvePublicKey) -> bytes:
    """Write a key as PEM, the one way this kit does."""
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def id_of(public: ec.EllipticCurvePublicKey) -> str:
    """Name a key, as ``key_id`` does."""
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return files.sha256_bytes(spki)


def _p256_public(pem: bytes, what: str) -> ec.EllipticCurvePublicKey:
    try:
        public = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{what} is not a public key in PEM", hint=_INIT_HINT) from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InputError(f"{what} is not an ECDSA P-256 key, the only kind accepted", hint=_INIT_HINT)
    return public


def _create(path: Path, data: bytes, *, mode: int) -> None:
    """Write a key file, which must not exist yet, also when two try at once."""
    if not files.create_once(path, data, mode=mode):
        raise _taken(path)


def _taken(path: Path) -> ConflictError:
    return ConflictError(
        f"{path} exists, and a key is never overwritten", hint="use this key, or move both of its files away"
    )
