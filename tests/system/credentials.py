"""Who shows what to a tested endpoint: an identity provider's tokens, and a certificate signed by itself."""

from __future__ import annotations

import datetime
import ipaddress
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER, AUDIENCE = "https://login.example", "kit"
IDENTITY_KEY = ec.generate_private_key(ec.SECP256R1())


def write_key_set(path: Path) -> None:
    """Write the public half of ``IDENTITY_KEY`` as a JSON Web Key Set."""
    public = ECAlgorithm.to_jwk(IDENTITY_KEY.public_key(), as_dict=True)
    path.write_text(json.dumps({"keys": [{**public, "kid": "one", "alg": "ES256"}]}))


def token(*, key: Any = IDENTITY_KEY, algorithm: str = "ES256", **claims: Any) -> str:
    """Sign a token; claims replace those of one that counts."""
    now_s = int(time.time())
    usual = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": now_s + 300, "scope": "infer:tiny"}
    return jwt.encode({**usual, **claims}, key, algorithm, headers={"kid": "one"})


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for this machine, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert, private
