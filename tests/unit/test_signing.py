"""Rules of signatures: what is signed, what is believed, and what a forger can try."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from kit import envelope, keypair, signing
from kit.errors import ConflictError, InputError, KitError, NotFoundError, VerificationError

A, B = "a" * 64, "b" * 64
FILES = {"model.onnx": A, "golden/inputs.npz": B}
PAYLOAD_TYPE = b"application/vnd.in-toto+json"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "signing.pem"
    keypair.generate_key(path)
    return path


def pae(payload: bytes) -> bytes:
    """Encode as DSSE says, written apart from the code under test."""
    return b" ".join(
        [b"DSSEv1", str(len(PAYLOAD_TYPE)).encode(), PAYLOAD_TYPE, str(len(payload)).encode(), payload]
    )


def load(key: Path) -> Any:
    return serialization.load_pem_private_key(key.read_bytes(), None)


def statement_of(signature: bytes) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return statement


def resigned(signature: bytes, key: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Change the statement and sign it properly: what a careless holder of a trusted key could make."""
    statement = statement_of(signature)
    change(statement)
    return with_payload(signature, key, json.dumps(statement).encode())


def with_payload(signature: bytes, key: Path, payload: bytes) -> bytes:
    raw = load(key).sign(pae(payload), ec.ECDSA(hashes.SHA256()))
    bundle = json.loads(signature)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    return json.dumps(bundle).encode()


def edited(signature: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    bundle = json.loads(signature)
    change(bundle)
    return json.dumps(bundle).encode()


def refusal(signature: bytes, *public: bytes) -> str:
    with pytest.raises(VerificationError) as caught:
        signing.verify(signature, trusted=public)
    return caught.value.message


def test_what_was_signed_comes_back_with_the_key_that_signed(key: Path) -> None:
    public = keypair.public_of(key)
    signed = signing.verify(signing.sign(FILES, name="digits", key=key), trusted=[public])
    assert signed == signing.Signed(name="digits", files=FILES, key_id=keypair.key_id(public))


def test_equal_inputs_give_equal_bytes_in_any_order_of_files(key: Path) -> None:
    first = signing.sign(FILES, name="digits", key=key)
    assert signing.sign(dict(reversed(FILES.items())), name="digits", key=key) == first


def test_files_are_sorted_by_path_component_as_the_format_has_them(key: Path) -> None:
    files = {"a-b": A, "a/c": B, "a.d": A}
    signed = signing.verify(signing.sign(files, name="x", key=key), trusted=[keypair.public_of(key)])
    assert list(signed.files) == ["a/c", "a-b", "a.d"]


def test_one_of_several_trusted_keys_is_enough(key: Path, tmp_path: Path) -> None:
    other = keypair.generate_key(tmp_path / "other.pem")
    signature = signing.sign(FILES, name="digits", key=key)
    public = keypair.public_of(key)
    assert signing.verify(signature, trusted=[other, public]).key_id == keypair.key_id(public)


def test_an_unknown_key_is_named_by_its_short_id(key: Path, tmp_path: Path) -> None:
    other = keypair.generate_key(tmp_path / "other.pem")
    said = refusal(signing.sign(FILES, name="digits", key=key), other)
    assert keypair.key_id(keypair.public_of(key))[:12] in said
    assert keypair.key_id(other)[:12] in said
    assert "not trusted" in said


def test_without_trusted_keys_nothing_is_believed(key: Path) -> None:
    assert "no key is trusted" in refusal(signing.sign(FILES, name="digits", key=key))


@pytest.mark.parametrize("n_bytes", [0, 1, 100, -1, -2])
def test_a_truncated_signature_is_refused(key: Path, n_bytes: int) -> None:
    signature = signing.sign(FILES, name="digits", key=key).strip()
    assert "signature" in refusal(signature[:n_bytes], keypair.public_of(key))


def test_every_single_flipped_bit_is_refused(key: Path) -> None:
    signature = signing.sign(FILES, name="digits", key=key).strip()
    public = keypair.public_of(key)
    for place in range(len(signature)):
        forged = bytearray(signature)
        forged[place] ^= 1 << place % 8
        assert refusal(bytes(forged), public), place


def test_a_forged_payload_in_a_good_envelope_is_refused(key: Path) -> None:
    def forge(bundle: dict[str, Any]) -> None:
        statement = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(A.encode(), B.encode())
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()

    signature = signing.sign(FILES, name="digits", key=key)
    assert "does not match its payload" in refusal(edited(signature, forge), keypair.public_of(key))


def test_the_signature_covers_the_raw_bytes_not_the_json_value(key: Path) -> None:
    def reformat(bundle: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    signature = signing.sign(FILES, name="digits", key=key)
    assert "does not match its payload" in refusal(edited(signature, reformat), keypair.public_of(key))


def test_a_signature_over_the_bare_payload_is_refused(key: Path) -> None:
    def forge(bundle: dict[str, Any]) -> None:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        raw = load(key).sign(payload, ec.ECDSA(hashes.SHA256()))
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()

    signature = signing.sign(FILES, name="digits", key=key)
    assert "does not match its payload" in refusal(edited(signature, forge), keypair.public_of(key))


def sign_p384(message: bytes) -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).sign(message, ec.ECDSA(hashes.SHA384()))


def sign_ed25519(message: bytes) -> bytes:
    return ed25519.Ed25519PrivateKey.generate().sign(message)


@pytest.mark.parametrize("other_sign", [sign_p384, sign_ed25519])
def test_a_signature_of_another_kind_under_a_trusted_keys_name_is_refused(
    key: Path, other_sign: Callable[[bytes], bytes]
) -> None:
    def forge(bundle: dict[str, Any]) -> None:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(other_sign(pae(payload))).decode()

    signature = signing.sign(FILES, name="digits", key=key)
    assert "does not match its payload" in refusal(edited(signature, forge), keypair.public_of(key))


def test_a_trusted_key_with_another_hash_is_refused(key: Path) -> None:
    def forge(bundle: dict[str, Any]) -> None:
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        raw = load(key).sign(pae(payload), ec.ECDSA(hashes.SHA512()))
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()

    signature = signing.sign(FILES, name="digits", key=key)
    assert "does not match its payload" in refusal(edited(signature, forge), keypair.public_of(key))


def other_kinds() -> list[Any]:
    return [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
    ]


@pytest.mark.parametrize("private", other_kinds())
def test_a_key_of_another_kind_can_neither_be_trusted_nor_sign(
    key: Path, tmp_path: Path, private: Any
) -> None:
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path = tmp_path / "other.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    assert "P-256" in refusal(signing.sign(FILES, name="digits", key=key), public_pem)
    with pytest.raises(InputError, match="P-256"):
        signing.sign(FILES, name="digits", key=path)
    path.with_suffix(".pub").write_bytes(public_pem)
    with pytest.raises(InputError, match=r"other\.pub is not an ECDSA P-256 key"):
        keypair.load_trusted(path.with_suffix(".pub"))


ENVELOPE_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another bundle type": (lambda b: b.update(mediaType="application/zip"), "bundle type"),
    "another payload type": (lambda b: b["dsseEnvelope"].update(payloadType="text/plain"), "payload type"),
    "no signatures": (lambda b: b["dsseEnvelope"].update(signatures=[]), "holds 0 signatures"),
    "two signatures": (
        lambda b: b["dsseEnvelope"].update(signatures=b["dsseEnvelope"]["signatures"] * 2),
        "2 sign",
    ),
    "signatures are a string": (lambda b: b["dsseEnvelope"].update(signatures="x"), "'signatures'"),
    "a signature is a string": (lambda b: b["dsseEnvelope"].update(signatures=["x"]), "sig, keyid"),
    "a payload that is not base64": (lambda b: b["dsseEnvelope"].update(payload="*"), "not base64"),
    "a payload that is not ASCII": (lambda b: b["dsseEnvelope"].update(payload="é"), "not base64"),
    "no key hint": (lambda b: b["verificationMaterial"]["publicKey"].clear(), "'hint'"),
    "a hint that is no digest": (lambda b: b["verificationMaterial"]["publicKey"].update(hint="x"), "sha256"),
    "another key id": (lambda b: b["dsseEnvelope"]["signatures"][0].update(keyid=A), "names two keys"),
    "an algorithm": (lambda b: b["verificationMaterial"]["publicKey"].update(keyDetails="X"), "'keyDetails'"),
    "a log entry": (lambda b: b["verificationMaterial"].update(tlogEntries=[{}]), "transparency log"),
    "an unknown field": (lambda b: b.update(more=1), "'more'"),
    "an unknown material": (lambda b: b["verificationMaterial"].update(certificate={}), "'certificate'"),
    "an unknown field of the envelope": (lambda b: b["dsseEnvelope"].update(alg="none"), "'alg'"),
    "no envelope": (lambda b: b.pop("dsseEnvelope"), "'dsseEnvelope'"),
}


@pytest.mark.parametrize("change, said", ENVELOPE_CHANGES.values(), ids=ENVELOPE_CHANGES.keys())
def test_an_envelope_out_of_shape_is_refused(
    key: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    signature = edited(signing.sign(FILES, name="digits", key=key), change)
    assert said in refusal(signature, keypair.public_of(key))


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"PK\x03\x04", b"null", b"[]", b"[" * 200_000, b'{"a":1,"a":2}', b"1" * 5000],
    ids=["not UTF-8", "a zip", "null", "a list", "deep", "a key twice", "a long number"],
)
def test_something_that_is_no_bundle_is_refused(key: Path, data: bytes) -> None:
    assert "signature" in refusal(data, keypair.public_of(key))


def test_an_empty_signature_is_called_that(key: Path) -> None:
    assert "there is no signature" in refusal(b"", keypair.public_of(key))


def test_a_field_given_twice_is_refused_although_json_allows_it(key: Path) -> None:
    signature = signing.sign(FILES, name="digits", key=key)
    twice = signature.replace(b'"payloadType"', b'"payloadType": "text/plain", "payloadType"')
    assert "same key twice" in refusal(twice, keypair.public_of(key))


def test_more_files_than_a_signature_may_hold_are_not_signed(key: Path) -> None:
    with pytest.raises(InputError, match="20000 files"):
        signing.sign({f"part-{number}": A for number in range(20_000)}, name="digits", key=key)


def test_a_huge_signature_is_refused_before_it_is_parsed(key: Path) -> None:
    data = b" " * (envelope.MAX_SIGNATURE_BYTES + 1)
    assert "larger than" in refusal(data, keypair.public_of(key))


def rename(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda statement: statement["predicate"]["resources"][0].update(name=name)


STATEMENT_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another statement type": (lambda s: s.update(_type="x"), "statement type"),
    "an older predicate": (
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        "predicate",
    ),
    "two subjects": (lambda s: s.update(subject=s["subject"] * 2), "2 subjects"),
    "no name": (lambda s: s["subject"][0].update(name=""), "empty or not printable"),
    "another hash": (lambda s: s["predicate"]["serialization"].update(hash_type="blake2"), "hash type"),
    "shards": (lambda s: s["predicate"]["serialization"].update(method="shards"), "serialization method"),
    "links": (lambda s: s["predicate"]["serialization"].update(allow_symlinks=True), "symbolic links"),
    "a file by another hash": (
        lambda s: s["predicate"]["resources"][1].update(algorithm="md5"),
        "'model.onnx'",
    ),
    "a short digest": (lambda s: s["predicate"]["resources"][1].update(digest="aa"), "'model.onnx'"),
    "an upper-case digest": (
        lambda s: s["predicate"]["resources"][1].update(digest="A" * 64),
        "'model.onnx'",
    ),
    "a number for a digest": (lambda s: s["predicate"]["resources"][1].update(digest=1), "'digest'"),
    "a file twice": (rename("model.onnx"), "twice"),
    "unsorted files": (lambda s: s["predicate"]["resources"].reverse(), "sorted order"),
    "no files": (lambda s: s["predicate"].update(resources=[]), "no files"),
    "a digest of all that is not": (lambda s: s["subject"][0]["digest"].update(sha256=A), "digest over all"),
    "an absolute path": (rename("/etc/passwd"), "plain relative path"),
    "a way up": (rename("../model.onnx"), "plain relative path"),
    "a way up inside": (rename("a/../model.onnx"), "plain relative path"),
    "a dot": (rename("./a"), "plain relative path"),
    "a double slash": (rename("a//b"), "plain relative path"),
    "a backslash": (rename("a\\b"), "plain relative path"),
    "a line break": (rename("a\nb"), "plain relative path"),
    "a lone surrogate": (rename("a\ud800"), "plain relative path"),
    "an empty file name": (rename(""), "plain relative path"),
    "a file of git": (rename(".git/config"), "does not look at '.git/config'"),
    "itself": (rename("model.sig"), "does not look at 'model.sig'"),
    "an ignored file": (
        lambda s: s["predicate"]["serialization"].update(ignore_paths=["model.onnx"]),
        "'model.onnx'",
    ),
    "an ignored object": (lambda s: s["predicate"]["serialization"].update(ignore_paths=[[]]), "unchecked"),
    "an ignored number": (lambda s: s["predicate"]["serialization"].update(ignore_paths=5), "'ignore_paths'"),
}


@pytest.mark.parametrize("change, said", STATEMENT_CHANGES.values(), ids=STATEMENT_CHANGES.keys())
def test_a_well_signed_statement_that_breaks_a_rule_is_refused(
    key: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    signature = resigned(signing.sign(FILES, name="digits", key=key), key, change)
    assert said in refusal(signature, keypair.public_of(key))


def test_a_well_signed_payload_that_is_not_json_is_refused(key: Path) -> None:
    signature = with_payload(signing.sign(FILES, name="digits", key=key), key, b"model.onnx is fine")
    assert "not JSON" in refusal(signature, keypair.public_of(key))


def test_what_the_official_signer_adds_to_a_statement_is_accepted(key: Path) -> None:
    """It lists ignored paths, leaves the key id empty, and a later version may add more."""

    def official(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["ignore_paths"] = [".git", "model.sig"]
        statement["predicate"]["later"] = {}

    signature = resigned(signing.sign(FILES, name="digits", key=key), key, official)
    signature = edited(signature, lambda b: b["dsseEnvelope"]["signatures"][0].update(keyid=""))
    assert signing.verify(signature, trusted=[keypair.public_of(key)]).files == FILES


@pytest.mark.parametrize(
    "files, name",
    [
        ({}, "digits"),
        ({"../x": A}, "digits"),
        ({"/x": A}, "digits"),
        ({"x": "a"}, "digits"),
        ({".gitignore": A}, "digits"),
        ({"model.sig": A}, "digits"),
        ({"x": A}, ""),
        ({"x": A}, "a\nb"),
    ],
)
def test_what_could_not_be_verified_is_not_signed(key: Path, files: dict[str, str], name: str) -> None:
    with pytest.raises(InputError):
        signing.sign(files, name=name, key=key)


def test_a_new_private_key_is_its_owners_alone(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.with_suffix(".pub").read_bytes() == keypair.public_of(key)
    assert sorted(path.name for path in key.parent.iterdir()) == ["signing.pem", "signing.pub"]


@pytest.mark.parametrize("there", ["signing.pem", "signing.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_bytes(b"mine")
    with pytest.raises(ConflictError, match=f"{there} exists"):
        keypair.generate_key(tmp_path / "signing.pem")
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_bytes() == b"mine"


def test_a_second_key_pair_is_refused_by_the_private_keys_name(key: Path) -> None:
    before = key.read_bytes()
    with pytest.raises(ConflictError, match=r"signing\.pem exists"):
        keypair.generate_key(key)
    assert key.read_bytes() == before


def make_key(path: Path) -> bool:
    try:
        keypair.generate_key(path)
    except ConflictError:
        return False
    return True


def test_of_several_that_make_a_key_at_once_one_succeeds(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make_key, [tmp_path / "signing.pem"] * 16))
    assert made.count(True) == 1
    assert (tmp_path / "signing.pub").read_bytes() == keypair.public_of(tmp_path / "signing.pem")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_private_key_is_not_made_under_a_public_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"signing\.pub"):
        keypair.generate_key(tmp_path / "signing.pub")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_private_key_others_can_use_is_refused(key: Path, mode: int) -> None:
    os.chmod(key, mode)
    with pytest.raises(InputError, match=f"{mode:04o}") as caught:
        signing.sign(FILES, name="digits", key=key)
    assert caught.value.hint == f"run `chmod 600 {key}`"


def test_a_missing_private_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        signing.sign(FILES, name="digits", key=tmp_path / "absent.pem")
    assert "kit keys init" in str(caught.value.hint)


def test_an_encrypted_or_broken_private_key_is_refused(key: Path) -> None:
    locked = load(key).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for content in (locked, b"", b"not a key", key.with_suffix(".pub").read_bytes()):
        key.write_bytes(content)
        with pytest.raises(InputError, match="not an unencrypted private key"):
            keypair.public_of(key)


def test_trusted_keys_come_from_a_file_or_a_folder(key: Path, tmp_path: Path) -> None:
    first, second = keypair.public_of(key), keypair.generate_key(key.parent / "a.pem")
    assert keypair.load_trusted(key.with_suffix(".pub")) == (first,)
    assert keypair.load_trusted(key.parent) == (second, first)


@pytest.mark.parametrize("name", ["", "absent", "absent.pub"])
def test_no_trusted_key_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        keypair.load_trusted(tmp_path / name)
    assert "kit keys init" in str(caught.value.hint)


def test_a_private_key_among_the_trusted_is_refused_by_name(key: Path) -> None:
    (key.parent / "wrong.pub").write_bytes(key.read_bytes())
    with pytest.raises(KitError, match=r"wrong\.pub is not a public key"):
        keypair.load_trusted(key.parent)
