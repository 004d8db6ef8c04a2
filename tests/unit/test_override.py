"""Rules of overrides: the one digest and device they open the door to, and what a forger can try."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kit import envelope, keypair
from kit.errors import InputError, VerificationError
from kit.override import MAX_OVERRIDE_BYTES, Override, open_override, sign_override

A, B = "a" * 64, "b" * 64
TYPE = "application/vnd.kit.override+json"
WHOLE: dict[str, Any] = {"format": 1, "digest": A, "device": "line-3", "reason": "release 4 shakes"}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "signing.pem"
    keypair.generate_key(path)
    return path


def refusal(data: bytes, key: Path) -> str:
    with pytest.raises(VerificationError) as caught:
        open_override(data, trusted=[keypair.public_of(key)])
    return caught.value.message


def test_what_was_signed_comes_back_the_same_every_time(key: Path) -> None:
    public = keypair.public_of(key)
    paper = sign_override(A, reason="release 4 shakes", key=key, device="line-3")
    assert open_override(paper, trusted=[public]) == Override(
        A, "line-3", "release 4 shakes", keypair.key_id(public)
    )
    assert sign_override(A, reason="release 4 shakes", key=key, device="line-3") == paper
    assert json.loads(base64.b64decode(json.loads(paper)["payload"])) == WHOLE


@pytest.mark.parametrize(
    "device, digest, device_id, allowed",
    [
        ("line-3", A, "line-3", True),
        ("line-3", B, "line-3", False),
        ("line-3", A, "line-33", False),
        ("line-3", A, "LINE-3", False),
        ("line-3", A, "*", False),
        ("line-3", A, "", False),
        ("*", A, "line-3", True),
        ("*", A, "", True),
        ("*", B, "line-3", False),
        ("*", A.upper(), "line-3", False),
    ],
)
def test_it_lets_in_one_digest_on_one_device_or_on_all(
    device: str, digest: str, device_id: str, allowed: bool
) -> None:
    assert Override(A, device, "why", B).allows(digest, device_id) is allowed


def test_every_single_flipped_bit_is_refused(key: Path) -> None:
    paper = sign_override(A, reason="why", key=key).strip()
    for place in range(len(paper)):
        forged = bytearray(paper)
        forged[place] ^= 1 << place % 8
        assert refusal(bytes(forged), key), place


def test_another_signer_and_another_kind_of_paper_are_refused(key: Path, tmp_path: Path) -> None:
    keypair.generate_key(tmp_path / "foreign.pem")
    assert "not trusted" in refusal(sign_override(A, reason="why", key=tmp_path / "foreign.pem"), key)
    other = envelope.sign_payload(json.dumps(WHOLE).encode(), "application/vnd.kit.keyring+json", key=key)
    assert "payload type" in refusal(other, key)
    assert "does not match its payload" in refusal(other.replace(b"keyring+json", b"override+json"), key)
    assert "larger than 16384 bytes" in refusal(b" " * (MAX_OVERRIDE_BYTES + 1), key)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a short digest": ({"digest": A[:63]}, "digest = "),
    "a digest in capitals": ({"digest": "A" * 64}, "digest = "),
    "a digest and a line break": ({"digest": f"{A}\n"}, "digest = "),
    "a digest for all": ({"digest": "*"}, "digest = '*'"),
    "digests": ({"digest": [A, B]}, "digest = ["),
    "no device": ({"device": ""}, "device = ''"),
    "devices": ({"device": ["line-3"]}, "device = ["),
    "nothing for a device": ({"device": None}, "device = None"),
    "two lines": ({"reason": "a\nb"}, "reason = "),
    "no reason": ({"reason": ""}, "reason = ''"),
    "a novel": ({"reason": "a" * 301}, "reason = "),
    "half a character": ({"reason": "\ud800"}, "reason = "),
    "something more": ({"release": 1}, "unknown field 'release'"),
    "format true": ({"format": True}, "format True"),
    "format 2": ({"format": 2}, "format 2"),
}


@pytest.mark.parametrize("change, said", CHANGES.values(), ids=CHANGES.keys())
def test_a_well_signed_override_that_breaks_a_rule_is_refused(
    key: Path, change: dict[str, Any], said: str
) -> None:
    payload = json.dumps({**WHOLE, **change}).encode()
    assert said in refusal(envelope.sign_payload(payload, TYPE, key=key), key)


@pytest.mark.parametrize("field", ["format", "digest", "device", "reason"])
def test_a_well_signed_override_without_a_field_or_with_it_twice_is_refused(key: Path, field: str) -> None:
    text = json.dumps({name: value for name, value in WHOLE.items() if name != field})
    assert field in refusal(envelope.sign_payload(text.encode(), TYPE, key=key), key)
    twice = json.dumps(WHOLE).replace("{", f'{{"{field}": 1, ')
    assert "same key twice" in refusal(envelope.sign_payload(twice.encode(), TYPE, key=key), key)


@pytest.mark.parametrize(
    "digest, device, reason", [("a", "*", "why"), (A, "", "why"), (A, "*", ""), (A, "*", "a\nb")]
)
def test_what_would_not_be_read_is_not_signed(key: Path, digest: str, device: str, reason: str) -> None:
    with pytest.raises(InputError):
        sign_override(digest, reason=reason, key=key, device=device)
