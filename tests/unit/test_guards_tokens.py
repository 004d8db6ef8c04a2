"""Tokens: what is forged, stale or meant for others does not count, and no message holds a part of one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from kit.errors import InputError
from kit.inference.errors import UnauthorizedError
from kit.settings.serving import JwtSettings
from serve.guards import tokens as module
from serve.guards.callers import Caller
from serve.guards.keyset import check_url, parse_keys, shown
from serve.guards.tokens import Tokens

ISSUER, AUDIENCE = "https://login.example", "kit"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
JWKS = {
    "keys": [
        {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "rsa", "use": "sig"},
        {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec"},
        {**OKPAlgorithm.to_jwk(ED_KEY.public_key(), as_dict=True), "kid": "ed"},
    ]
}


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(JWKS))
    return path


def _open(jwks: Path, **more: Any) -> Tokens:
    tokens = Tokens(JwtSettings(jwks=str(jwks), issuer=ISSUER, audience=AUDIENCE, leeway_s=0, **more))
    tokens.close()  # nothing here waits for the thread
    return tokens


@pytest.fixture
def tokens(jwks: Path) -> Tokens:
    return _open(jwks)


def _claims(**more: Any) -> dict[str, Any]:
    now_s = int(time.time())
    claims = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": now_s + 600, "scope": "infer:digits"}
    return {name: value for name, value in {**claims, **more}.items() if value is not None}


def _token(
    claims: Mapping[str, Any] | None = None,
    *,
    key: Any = EC_KEY,
    algorithm: str = "ES256",
    headers: Mapping[str, Any] | None = None,
) -> bytes:
    headers = {"kid": "ec"} if headers is None else headers
    return jwt.encode(claims or _claims(), key, algorithm, headers=dict(headers)).encode()


def _verify(tokens: Tokens, token: bytes) -> Caller:
    return tokens.verify(token, sha256=hashlib.sha256(token).digest())


def _part(value: object) -> bytes:
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(
        b"="
    )


@pytest.mark.parametrize(
    "key, algorithm, key_id",
    [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed")],
)
def test_a_good_token_says_who_asks_and_what_is_allowed(
    tokens: Tokens, key: Any, algorithm: str, key_id: str
) -> None:
    token = _token(key=key, algorithm=algorithm, headers={"kid": key_id})
    assert _verify(tokens, token) == Caller("alice", frozenset(("infer:digits",)), "token")


@pytest.mark.parametrize(
    "more, why",
    [
        ({"exp": 1}, "expired"),
        ({"nbf": 2**33}, "not valid yet"),
        ({"iat": 2**33}, "not valid yet"),
        ({"aud": "another"}, "another audience"),
        ({"aud": ["another", "one"]}, "another audience"),
        ({"aud": None}, "lacks the claim aud"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "lacks the claim iss"),
        ({"exp": None}, "lacks the claim exp"),
        ({"sub": None}, "lacks the claim sub"),
        ({"sub": ""}, "subject"),
        ({"sub": "a" * 257}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"sub": "\ud800"}, "subject"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": 1e400}, "malformed"),
        ({"nbf": [1]}, "malformed"),
    ],
)
def test_a_signed_token_that_does_not_hold_is_refused(tokens: Tokens, more: dict[str, Any], why: str) -> None:
    with pytest.raises(UnauthorizedError, match=why):
        _verify(tokens, _token(_claims(**more)))


@pytest.mark.parametrize("sub", [3, ["a"], {"a": 1}, True])
def test_a_subject_that_is_no_text_is_refused(tokens: Tokens, sub: object) -> None:
    payload = _part({**_claims(), "sub": sub})
    signed = _part({"alg": "ES256", "kid": "ec"}) + b"." + payload
    signature = jwt.get_algorithm_by_name("ES256").sign(signed, EC_KEY)
    with pytest.raises(UnauthorizedError, match="malformed"):
        _verify(tokens, signed + b"." + _part(signature))


def test_a_token_signed_by_somebody_else_is_refused(tokens: Tokens) -> None:
    with pytest.raises(UnauthorizedError, match="signature"):
        _verify(tokens, _token(key=OTHER_KEY))


@pytest.mark.parametrize("place", range(3))
def test_a_token_changed_anywhere_is_refused(tokens: Tokens, place: int) -> None:
    parts = _token().split(b".")
    middle = len(parts[place]) // 2
    letter = b"A" if parts[place][middle : middle + 1] != b"A" else b"B"
    parts[place] = parts[place][:middle] + letter + parts[place][middle + 1 :]
    with pytest.raises(UnauthorizedError):
        _verify(tokens, b".".join(parts))


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, ["ES256"], 1])
def test_a_token_without_a_signature_is_refused(tokens: Tokens, name: object) -> None:
    header = {"alg": name, "kid": "ec", "typ": "JWT"}
    for signature in (b"", _part(b"x")):
        with pytest.raises(UnauthorizedError, match="not accepted"):
            _verify(tokens, b".".join((_part(header), _part(_claims()), signature)))


@pytest.mark.parametrize("name", ["HS256", "HS384", "HS512"])
def test_a_public_key_is_never_a_secret(tokens: Tokens, name: str) -> None:
    public = RSA_KEY.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), json.dumps(JWKS["keys"][0]).encode()):
        signed = _part({"alg": name, "kid": "rsa"}) + b"." + _part(_claims())
        signature = hmac.new(secret, signed, hashlib.new(f"sha{name[2:]}").name).digest()
        with pytest.raises(UnauthorizedError, match="not accepted"):
            _verify(tokens, signed + b"." + _part(signature))


def test_settings_cannot_accept_a_shared_secret_or_none(jwks: Path) -> None:
    for name in ("HS256", "none"):
        with pytest.raises(ValueError, match="algorithms"):
            _open(jwks, algorithms=(name,))


def test_a_key_is_used_for_its_own_algorithms_alone(tokens: Tokens, jwks: Path) -> None:
    token = _token(key=RSA_KEY, algorithm="RS256", headers={"kid": "ec"})
    with pytest.raises(UnauthorizedError, match="its key is not for"):
        _verify(tokens, token)
    with pytest.raises(UnauthorizedError, match="not accepted"):
        _verify(
            _open(jwks, algorithms=("ES256",)), _token(key=RSA_KEY, algorithm="RS256", headers={"kid": "rsa"})
        )


@pytest.mark.parametrize(
    "key_id",
    ["another", "", "../../etc/passwd", "/dev/null", "https://evil.example/jwks.json", "ec\0", "x" * 500],
)
def test_a_token_whose_key_is_not_known_is_refused(tokens: Tokens, key_id: str) -> None:
    with pytest.raises(UnauthorizedError, match="not known"):
        _verify(tokens, _token(headers={"kid": key_id}))


def test_a_token_that_names_no_key_is_for_the_only_one(tokens: Tokens, jwks: Path) -> None:
    token = jwt.encode(_claims(), EC_KEY, "ES256").encode()
    with pytest.raises(UnauthorizedError, match="not known"):
        _verify(tokens, token)
    jwks.write_text(json.dumps({"keys": JWKS["keys"][1:2]}))
    assert _verify(_open(jwks), token).subject == "alice"


def test_a_token_cannot_bring_its_own_key(tokens: Tokens) -> None:
    own = ECAlgorithm.to_jwk(OTHER_KEY.public_key(), as_dict=True)
    for brought in (
        {"jwk": own},
        {"jku": "http://127.0.0.1:9/jwks"},
        {"x5u": "http://127.0.0.1:9/x"},
        {"x5c": ["x"]},
    ):
        with pytest.raises(UnauthorizedError, match="signature"):
            _verify(tokens, _token(key=OTHER_KEY, headers={"kid": "ec", **brought}))
        assert _verify(tokens, _token(headers={"kid": "ec", **brought})).subject == "alice"


def test_an_extension_a_token_calls_critical_is_not_passed_over(tokens: Tokens) -> None:
    with pytest.raises(UnauthorizedError, match="malformed"):
        _verify(tokens, _token(headers={"kid": "ec", "crit": ["exp"], "exp": 1}))


def test_a_huge_token_is_refused_before_it_is_read(tokens: Tokens) -> None:
    with pytest.raises(UnauthorizedError, match="longer than 8192 bytes"):
        _verify(tokens, _token(_claims(more="x" * 8000)))
    assert _verify(tokens, _token(_claims(more="x" * 5000))).subject == "alice"


@pytest.mark.parametrize(
    "token",
    [
        b"..",
        b"a.b.c",
        b"a.b",
        b"a.b.c.d.e",
        b"." * 2000,
        b"x" * 8193,
        b"e30.e30.e30",
        _part([1]) + b".e30.e30",
        _part(b"[" * 1500) + b".e30.e30",
        _part({"alg": "ES256", "kid": 3}) + b".e30.e30",
        _part({"alg": "ES256", "kid": "ec", "b64": False, "crit": ["b64"]}) + b"..e30",
        b"\xff\xfe.\xff.\xff",
        _part(b"x" * 4000) + b".e30.e30",
    ],
)
def test_what_is_no_token_is_refused(tokens: Tokens, token: bytes) -> None:
    with pytest.raises(UnauthorizedError):
        _verify(tokens, token)


@pytest.mark.parametrize(
    "more, scopes",
    [
        ({"scope": "infer:digits metrics openid email"}, {"infer:digits", "metrics"}),
        ({"scope": ["infer:digits", "admin", 3]}, {"infer:digits", "admin"}),
        ({"scope": None, "scp": ["infer:*"]}, {"infer:*"}),
        ({"scope": None, "scp": "infer:*"}, {"infer:*"}),
        ({"scope": None}, set()),
        ({"scope": {"infer:*": True}}, set()),
        ({"scope": 7}, set()),
        ({"scope": "infer:../x infer: root *"}, set()),
        ({"scope": "", "scp": "admin"}, set()),
    ],
)
def test_scopes_are_read_from_a_text_or_a_list(
    tokens: Tokens, more: dict[str, Any], scopes: set[str]
) -> None:
    assert _verify(tokens, _token(_claims(**more))).scopes == scopes


def test_who_names_a_claim_for_scopes_means_that_one(jwks: Path) -> None:
    tokens = _open(jwks, scope_claim="roles")
    token = _token(_claims(roles=["metrics"], scope="admin", scp="admin"))
    assert _verify(tokens, token).scopes == {"metrics"}


def test_a_verified_token_is_remembered_until_it_expires(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = _token()
    digest = hashlib.sha256(token).digest()
    assert tokens.find(digest) is None
    caller = _verify(tokens, token)
    assert tokens.find(digest) is caller
    later_s = time.time() + 601
    monkeypatch.setattr(time, "time", lambda: later_s)
    assert tokens.find(digest) is None


def test_clocks_may_differ_by_the_leeway(jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(JwtSettings(jwks=str(jwks), issuer=ISSUER, audience=AUDIENCE, leeway_s=30))
    tokens.close()
    now_s = int(time.time())
    token = _token(_claims(exp=now_s - 20, nbf=now_s + 20))
    caller = _verify(tokens, token)
    digest = hashlib.sha256(token).digest()
    assert tokens.find(digest) is caller
    monkeypatch.setattr(time, "time", lambda: now_s + 11)
    assert tokens.find(digest) is None


def test_tokens_of_a_withdrawn_key_count_no_more(tokens: Tokens, jwks: Path) -> None:
    token = _token()
    _verify(tokens, token)
    jwks.write_text(json.dumps({"keys": JWKS["keys"][:1]}))
    tokens.keys._file.look()  # type: ignore[union-attr] # what the thread does four times a second
    assert tokens.find(hashlib.sha256(token).digest()) is None
    with pytest.raises(UnauthorizedError, match="not known"):
        _verify(tokens, token)


def test_a_key_set_damaged_while_serving_leaves_the_keys(tokens: Tokens, jwks: Path) -> None:
    jwks.write_text("{")
    tokens.keys._file.look()  # type: ignore[union-attr]
    assert _verify(tokens, _token()).subject == "alice"


def test_the_tokens_remembered_are_bounded(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 3)
    made = [_token(_claims(jti=str(number))) for number in range(5)]
    for token in made:
        _verify(tokens, token)
    known = [tokens.find(hashlib.sha256(token).digest()) is not None for token in made]
    assert known == [False, False, True, True, True]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(min_size=4, max_size=200).map(lambda data: b"zq9w" + data),
        st.tuples(
            st.text("abcXYZ019-_", min_size=5), st.text("abcXYZ019-_", min_size=5), st.text("abc", min_size=5)
        ).map(lambda parts: ".".join(parts).encode()),
        st.dictionaries(
            st.sampled_from(["sub", "iss", "aud", "exp", "nbf", "iat", "jti", "scope"]),
            st.one_of(st.integers(), st.text("secret-words", min_size=8), st.none()),
        ).map(lambda changes: _damaged(_claims(), changes)),
        st.fixed_dictionaries(
            {
                "alg": st.just("ES256") | st.text(min_size=4).map("zq9w".__add__),
                "kid": st.text("secret-kid", min_size=8),
            }
        ).map(lambda header: _part(header) + b"." + _part(_claims()) + b"." + _part(b"signature")),
    )
)
def test_no_message_and_no_log_holds_a_part_of_a_token(tokens: Tokens, token: bytes) -> None:
    told: list[str] = []
    refusals: list[UnauthorizedError] = []

    class _Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener = _Listener()
    logging.getLogger().addHandler(listener)
    try:
        _verify(tokens, token)
    except UnauthorizedError as error:
        refusals.append(error)
    finally:
        logging.getLogger().removeHandler(listener)
    for refusal in refusals:
        told.extend((str(refusal), refusal.hint or "", *traceback.format_exception(refusal)))
    pieces = {piece for piece in token.split(b".") if len(piece) > 4}
    pieces |= {piece for each in pieces if (piece := _decoded(each))}
    words = {word for piece in pieces for word in _words(piece)}
    assert not [word for word in words for text in told if word in text]


def _damaged(claims: dict[str, Any], changes: dict[str, Any]) -> bytes:
    signed = _part({"alg": "ES256", "kid": "ec"}) + b"." + _part({**claims, **changes})
    return signed + b"." + _part(jwt.get_algorithm_by_name("ES256").sign(signed, EC_KEY))


def _decoded(piece: bytes) -> bytes:
    try:
        return base64.urlsafe_b64decode(piece + b"=" * (-len(piece) % 4))
    except ValueError:
        return b""


def _words(piece: bytes) -> set[str]:
    """Give what would give a part away: the whole text, and every longer value in it."""
    text = piece.decode("utf-8", "replace")
    try:
        content = json.loads(piece)
    except (ValueError, RecursionError):
        return {text} if len(text) > 4 else set()
    values = content.values() if isinstance(content, dict) else ()
    own = ("ES256", "kit")  # what the settings say, and a message may name
    return {text} | {each for each in values if isinstance(each, str) and len(each) > 4 and each not in own}


def test_a_key_set_without_a_usable_key_is_refused() -> None:
    weak = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)
    private = ECAlgorithm.to_jwk(EC_KEY, as_dict=True)
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "ec", "alg": "HS256"}
    encrypting = {**JWKS["keys"][0], "use": "enc"}
    other_curve = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key(), as_dict=True)
    for entry in (
        weak,
        private,
        secret,
        encrypting,
        other_curve,
        {},
        3,
        {"kty": []},
        {"kty": "RSA", "n": 3, "e": "x"},
    ):
        with pytest.raises(InputError, match="holds no key"):
            parse_keys(json.dumps({"keys": [entry]}).encode(), place="here", algorithms=("RS256", "ES256"))


def test_a_private_key_in_a_key_set_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    private = ECAlgorithm.to_jwk(EC_KEY, as_dict=True)
    with pytest.raises(InputError):
        parse_keys(json.dumps({"keys": [private]}).encode(), place="here", algorithms=("ES256",))
    assert str(private["d"]) not in caplog.text


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": 3}', b"[" * 100_000, b"\xff"])
def test_what_is_no_key_set_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="no JSON Web Key Set"):
        parse_keys(content, place="here", algorithms=("RS256",))


def test_one_bad_key_does_not_spoil_the_others() -> None:
    data = json.dumps({"keys": [{"kty": "RSA"}, *JWKS["keys"]]}).encode()
    keys = parse_keys(data, place="here", algorithms=("ES256",))
    assert keys.find("ec", algorithm="ES256") is not None
    assert keys.find("rsa", algorithm="RS256") is None


def test_a_missing_key_set_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        _open(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example/jwks",
        "http://127.0.0.1.evil.example/jwks",
        "file:///etc/passwd",
        "ftp://login.example/jwks",
        "https://user:word@login.example/jwks",
        "https:///jwks",
    ],
)
def test_an_address_that_cannot_be_trusted_is_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        check_url(url)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["https://login.example/jwks", "http://127.0.0.1:8080/jwks", "http://localhost/", "http://[::1]:80/"],
)
def test_https_and_this_machine_are_trusted(url: str) -> None:
    assert check_url(url).geturl() == url


def test_an_address_is_shown_without_its_query() -> None:
    assert (
        shown(check_url("https://login.example:8443/jwks?code=secret")) == "https://login.example:8443/jwks"
    )
