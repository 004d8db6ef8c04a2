"""Rules of keyrings: what one says, who believes it, and what a forger or a careless signer can try."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit import envelope, keypair, signing
from kit.errors import InputError, VerificationError
from kit.keyring import MAX_KEYRING_BYTES, KeyEntry, Keyring, make_keyring, open_keyring

TYPE = "application/vnd.kit.keyring+json"
GONE = "c" * 64
END_S = 1_800_000_000


@dataclass(frozen=True)
class Pair:
    """A key pair on the disk."""

    path: Path
    pem: bytes
    id: str


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, ...]:
    folder = tmp_path_factory.mktemp("keys")
    made = []
    for name in ("old", "new", "foreign"):
        pem = keypair.generate_key(folder / f"{name}.pem")
        made.append(Pair(folder / f"{name}.pem", pem, keypair.key_id(pem)))
    return tuple(made)


@pytest.fixture(scope="module")
def keyring(pairs: tuple[Pair, ...]) -> Keyring:
    old, new, _ = pairs
    return Keyring(3, 1_700_000_000, {old.id: KeyEntry(old.pem, END_S), new.id: KeyEntry(new.pem)}, (GONE,))


def refusal(data: bytes, *trusted: bytes) -> str:
    with pytest.raises(VerificationError) as caught:
        open_keyring(data, trusted=trusted)
    return caught.value.message


def payload_of(paper: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(paper)["payload"]))
    return payload


def test_what_was_signed_comes_back_the_same_every_time(keyring: Keyring, pairs: tuple[Pair, ...]) -> None:
    old, _, _ = pairs
    paper = make_keyring(keyring, key=old.path)
    assert open_keyring(paper, trusted=[old.pem]) == keyring
    assert make_keyring(keyring, key=old.path) == paper
    assert payload_of(paper) == {
        "format": 1,
        "counter": 3,
        "issued_s": 1_700_000_000,
        "keys": {
            each: {"pem": entry.pem.decode(), "not_after_s": entry.not_after_s}
            for each, entry in keyring.keys.items()
        },
        "revoked": [GONE],
    }


def test_any_signer_that_is_known_is_enough(keyring: Keyring, pairs: tuple[Pair, ...]) -> None:
    old, new, foreign = pairs
    paper = make_keyring(keyring, key=new.path, also=[old.path, foreign.path, old.path])
    for each in pairs:
        assert open_keyring(paper, trusted=[each.pem]) == keyring
    assert len(json.loads(paper)["signatures"]) == 3


def test_a_foreign_signature_is_not_believed_and_does_no_harm(
    keyring: Keyring, pairs: tuple[Pair, ...]
) -> None:
    old, _, foreign = pairs
    said = refusal(make_keyring(keyring, key=foreign.path), old.pem)
    assert f"signed by key {foreign.id[:12]}, which is not trusted (trusted: {old.id[:12]})" in said
    both = json.loads(make_keyring(keyring, key=foreign.path, also=[old.path]))
    both["signatures"][0]["sig"] = base64.b64encode(b"nonsense").decode()
    assert open_keyring(json.dumps(both).encode(), trusted=[old.pem]) == keyring
    assert "does not match" in refusal(json.dumps(both).encode(), old.pem, foreign.pem)
    assert "no key is trusted" in refusal(make_keyring(keyring, key=old.path))


def test_every_single_flipped_bit_is_refused(keyring: Keyring, pairs: tuple[Pair, ...]) -> None:
    old, _, _ = pairs
    paper = make_keyring(keyring, key=old.path).strip()
    for place in range(len(paper)):
        forged = bytearray(paper)
        forged[place] ^= 1 << place % 8
        assert refusal(bytes(forged), old.pem), place


def test_nothing_signed_for_another_purpose_passes_for_a_keyring(
    keyring: Keyring, pairs: tuple[Pair, ...]
) -> None:
    old, _, _ = pairs
    payload = base64.b64decode(json.loads(make_keyring(keyring, key=old.path))["payload"])
    other = "application/vnd.kit.override+json"
    paper = envelope.sign_payload(payload, other, key=old.path)
    assert f"payload type is '{other}'" in refusal(paper, old.pem)
    assert "does not match its payload" in refusal(paper.replace(other.encode(), TYPE.encode()), old.pem)
    bundle = signing.sign({"model": GONE}, name="digits", key=old.path)
    assert "unknown field" in refusal(bundle, old.pem)
    inner = json.dumps(json.loads(bundle)["dsseEnvelope"]).encode()
    assert "payload type" in refusal(inner, old.pem)


def signatures(change: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda envelope: envelope.update(signatures=change(envelope["signatures"]))


ENVELOPES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no signature": (signatures(lambda each: []), "holds 0 signatures"),
    "one key twice": (signatures(lambda each: each * 2), "holds 2 signatures, by 1 keys"),
    "too many": (
        signatures(lambda each: [{**each[0], "keyid": f"{number:064x}"} for number in range(64)] + each),
        "holds 65 signatures",
    ),
    "no name of the key": (signatures(lambda each: [{"sig": each[0]["sig"]}]), "not trusted"),
    "a name that is no digest": (signatures(lambda each: [{**each[0], "keyid": "../a"}]), "than a sha256"),
    "an algorithm": (signatures(lambda each: [{**each[0], "alg": "none"}]), "'alg'"),
    "signatures by name": (signatures(lambda each: {"a": each[0]}), "'signatures'"),
    "something more": (lambda envelope: envelope.update(cert="x"), "'cert'"),
    "a payload in plain text": (lambda envelope: envelope.update(payload="{}"), "not base64"),
    "a number for a payload": (lambda envelope: envelope.update(payload=1), "'payload'"),
}


@pytest.mark.parametrize("change, said", ENVELOPES.values(), ids=ENVELOPES.keys())
def test_an_envelope_out_of_shape_is_refused(
    keyring: Keyring, pairs: tuple[Pair, ...], change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    envelope = json.loads(make_keyring(keyring, key=pairs[0].path))
    change(envelope)
    assert said in refusal(json.dumps(envelope).encode(), pairs[0].pem)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"null", "no object"),
        (b"[]", "no object"),
        (b"[" * 60_000, "not JSON"),
        (b'{"payload": "", "payload": ""}', "same key twice"),
        (b" " * (MAX_KEYRING_BYTES + 1), "larger than 65536 bytes"),
    ],
)
def test_something_that_is_no_envelope_is_refused(pairs: tuple[Pair, ...], data: bytes, said: str) -> None:
    assert said in refusal(data, pairs[0].pem)


def p384_pem() -> str:
    return (
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def first(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Change the first key's entry."""
    return lambda paper: next(iter(paper["keys"].values())).update(changes)


def called(name: str) -> Callable[[dict[str, Any]], Any]:
    """Hold the first key under another name."""
    return lambda paper: paper["keys"].update({name: paper["keys"].pop(next(iter(paper["keys"])))})


PAYLOADS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "counter 0": (lambda paper: paper.update(counter=0), "counter = 0"),
    "counter true": (lambda paper: paper.update(counter=True), "counter = True"),
    "counter 1.0": (lambda paper: paper.update(counter=1.0), "counter = 1.0"),
    "counter -1": (lambda paper: paper.update(counter=-1), "counter = -1"),
    "counter as text": (lambda paper: paper.update(counter="1"), "counter = '1'"),
    "counter past all": (lambda paper: paper.update(counter=1 << 53), "counter = 9007"),
    "counter without end": (lambda paper: paper.update(counter=math.inf), "counter = inf"),
    "no counter": (lambda paper: paper.pop("counter"), "lacks 'counter'"),
    "issued at a fraction": (lambda paper: paper.update(issued_s=1.5), "issued_s = 1.5"),
    "issued before time": (lambda paper: paper.update(issued_s=-1), "issued_s = -1"),
    "issued after time": (lambda paper: paper.update(issued_s=10**12), "issued_s = 1000"),
    "no keys": (lambda paper: paper.update(keys={}), "keys = {}"),
    "keys in a list": (lambda paper: paper.update(keys=[]), "keys = []"),
    "a key that is text": (lambda paper: paper["keys"].update(a="pem"), "no object with a pem"),
    "a key without an end": (first(more=1), "no object with a pem and a not_after_s"),
    "a pem that is a number": (first(pem=1), "no pem"),
    "a pem that is none": (first(pem="-----BEGIN"), "not a public key in PEM"),
    "a pem with half a character": (first(pem="\ud800"), "not a public key in PEM"),
    "a key of another kind": (first(pem=p384_pem()), "not an ECDSA P-256 key"),
    "a key under another's name": (called(GONE), "the keyring calls key"),
    "a name in capitals": (lambda paper: called(next(iter(paper["keys"])).upper())(paper), "calls key"),
    "more in a pem": (
        lambda paper: first(pem=next(iter(paper["keys"].values()))["pem"] + "\n# mine")(paper),
        "more in its pem",
    ),
    "an end that is true": (first(not_after_s=True), "not_after_s = True"),
    "an end at a fraction": (first(not_after_s=1.5), "not_after_s = 1.5"),
    "an end after time": (first(not_after_s=10**12), "not_after_s = 1000"),
    "revoked by name": (lambda paper: paper.update(revoked={GONE: 1}), "revoked = {"),
    "revoked by half a name": (lambda paper: paper.update(revoked=[GONE[:12]]), "no key's id"),
    "revoked number": (lambda paper: paper.update(revoked=[[]]), "no key's id"),
    "revoked twice": (lambda paper: paper.update(revoked=[GONE, GONE]), "twice"),
    "held and revoked": (
        lambda paper: paper.update(revoked=[next(iter(paper["keys"]))]),
        "both holds and revokes",
    ),
    "something more": (lambda paper: paper.update(note="x"), "unknown field 'note'"),
    "format 2": (lambda paper: paper.update(format=2), "format 2, and 1 is the only one"),
    "format true": (lambda paper: paper.update(format=True), "format True"),
    "format 1.0": (lambda paper: paper.update(format=1.0), "format 1.0"),
    "no format": (lambda paper: paper.pop("format"), "format None"),
}


@pytest.mark.parametrize("change, said", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_well_signed_keyring_that_breaks_a_rule_is_refused(
    keyring: Keyring, pairs: tuple[Pair, ...], change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    paper = payload_of(make_keyring(keyring, key=pairs[0].path))
    change(paper)
    assert said in refusal(
        envelope.sign_payload(json.dumps(paper).encode(), TYPE, key=pairs[0].path), pairs[0].pem
    )


@pytest.mark.parametrize(
    "payload, said",
    [
        (b"[]", "not an object"),
        (b"fine", "not JSON"),
        (b'{"format": 1, "counter": 1, "counter": 9}', "same key twice"),
        (b"[" * 20_000, "not JSON"),
    ],
)
def test_a_well_signed_payload_that_is_none_is_refused(
    pairs: tuple[Pair, ...], payload: bytes, said: str
) -> None:
    assert said in refusal(envelope.sign_payload(payload, TYPE, key=pairs[0].path), pairs[0].pem)


def test_what_would_not_be_read_is_not_signed(keyring: Keyring, pairs: tuple[Pair, ...]) -> None:
    old, new, _ = pairs
    wrong = (
        replace(keyring, counter=0),
        replace(keyring, keys={}),
        replace(keyring, keys={old.id: KeyEntry(new.pem)}),
        replace(keyring, keys={old.id: KeyEntry(b"\xff")}),
        replace(keyring, revoked=(new.id,)),
        replace(keyring, issued_s=-1),
        replace(keyring, revoked=tuple(f"{number:064x}" for number in range(1000))),
    )
    for each in wrong:
        with pytest.raises(InputError):
            make_keyring(each, key=old.path)


def test_the_most_keys_that_may_sign_fit_into_a_keyring(tmp_path: Path) -> None:
    pems = [keypair.generate_key(tmp_path / f"{number}.pem") for number in range(envelope.MAX_SIGNERS + 1)]
    paths = [tmp_path / f"{number}.pem" for number in range(len(pems))]
    full = Keyring(1, 0, {keypair.key_id(pem): KeyEntry(pem, END_S) for pem in pems[1:]})
    assert open_keyring(make_keyring(full, key=paths[1], also=paths[2:]), trusted=pems[-1:]) == full
    with pytest.raises(InputError, match="65 keys sign one paper"):
        make_keyring(full, key=paths[0], also=paths[1:])


@pytest.mark.parametrize(
    "now_s, counts",
    [
        (-math.inf, True),
        (0, True),
        (END_S - 0.001, True),
        (END_S, True),
        (END_S + 0.001, False),
        (math.inf, False),
    ],
)
def test_a_key_counts_to_its_last_second_and_what_it_let_in_runs_on(
    keyring: Keyring, pairs: tuple[Pair, ...], now_s: float, counts: bool
) -> None:
    old, new, foreign = pairs
    assert set(keyring.trusted(now_s)) == ({old.pem, new.pem} if counts else {new.pem})
    assert set(keyring.known()) == {old.pem, new.pem}
    assert keyring.why_not(old.id, now_s) == ("" if counts else "has expired on 2027-01-15 08:00 UTC")
    assert keyring.why_not(new.id, now_s) == ""
    assert keyring.why_not(GONE, now_s) == "is revoked"
    assert keyring.why_not(foreign.id, now_s) == "is not in keyring 3"
