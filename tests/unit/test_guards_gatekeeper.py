"""Who is let in, and to do what."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm

from kit.errors import InputError, KitError
from kit.inference.errors import ForbiddenError, UnauthorizedError
from kit.project import Project
from kit.settings.serving import AccessSettings, JwtSettings, ServeSettings
from serve.guards.access import access, keys_path
from serve.guards.callers import ALL_SCOPES, Caller
from serve.guards.gatekeeper import Action, Gatekeeper, GuardPlan, plan_guards

KEY = ec.generate_private_key(ec.SECP256R1())
OWN = b"o" * 43
MARK = b"zq9w"
LOCAL = frozenset(("10.0.0.7",))


def _plan(folder: Path, **more: Any) -> GuardPlan:
    parts: dict[str, Any] = {
        "auth": "key",
        "open_to_all": False,
        "endpoint_sha256": hashlib.sha256(OWN).digest(),
        "keys_file": keys_path(folder),
        "jwt": None,
        "local_addresses": LOCAL,
    }
    return GuardPlan(**{**parts, **more})


def _gate(plan: GuardPlan) -> Gatekeeper:
    gate = Gatekeeper(plan)
    gate.close()  # nothing here waits for the thread
    return gate


def _bearer(key: bytes | str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + (key.encode() if isinstance(key, str) else key))]


@pytest.fixture
def provider(tmp_path: Path) -> JwtSettings:
    path = tmp_path / "jwks.json"
    public = {**ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "ec"}
    path.write_text(json.dumps({"keys": [public]}))
    return JwtSettings(jwks=str(path), issuer="https://login.example", audience="kit")


@pytest.fixture
def secret(tabular_project: Path) -> Iterator[tuple[Project, str]]:
    project = Project.open(tabular_project)
    made = access(project, AccessSettings(action="create", name="app", scope=("infer:digits",)))
    assert made.secret is not None
    return project, made.secret


def _token(**more: Any) -> str:
    claims = {"sub": "alice", "iss": "https://login.example", "aud": "kit", "exp": int(time.time()) + 60}
    return jwt.encode({**claims, "scope": "infer:digits", **more}, KEY, "ES256", headers={"kid": "ec"})


def test_keys_and_tokens_count_side_by_side(secret: tuple[Project, str], provider: JwtSettings) -> None:
    project, key = secret
    gate = _gate(_plan(project.state, jwt=provider))
    assert gate.admit(_bearer(OWN), None) == Caller("endpoint", ALL_SCOPES, "key")
    assert gate.admit(_bearer(key), None).scopes == {"infer:digits"}
    token = _token()
    assert gate.admit(_bearer(token), None).subject == "alice"
    assert gate.admit(_bearer(token), None) is gate.admit(_bearer(token), None)


def test_a_key_is_known_by_its_id_not_its_name(secret: tuple[Project, str]) -> None:
    project, key = secret
    assert _gate(_plan(project.state)).admit(_bearer(key), None).subject == key[4:12]


def test_a_token_is_not_believed_where_no_provider_is_set(tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError):
        _gate(_plan(tmp_path)).admit(_bearer(_token()), None)


@pytest.mark.parametrize(
    "value",
    [b"bearer " + OWN, b"BEARER " + OWN, b"Bearer   " + OWN + b"  ", b"Bearer " + OWN],
)
def test_the_scheme_may_be_written_in_any_case(tmp_path: Path, value: bytes) -> None:
    assert _gate(_plan(tmp_path)).admit([(b"authorization", value)], None).kind == "key"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        OWN,
        b"Basic " + OWN,
        b"Bearer",
        b"Bearer ",
        b"Bearer " + OWN[:-1],
        b"Bearer " + OWN + b"o",
        b"Bearer kit_",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(UnauthorizedError):
        _gate(_plan(tmp_path)).admit([(b"authorization", value)], None)


def test_without_a_header_nobody_is_let_in_wherever_he_asks_from(tmp_path: Path) -> None:
    gate = _gate(_plan(tmp_path))
    others = [(b"x-api-key", OWN), (b"api-key", OWN), (b"cookie", OWN), (b"x-forwarded-for", b"127.0.0.1")]
    with pytest.raises(UnauthorizedError, match="missing"):
        gate.admit(others, "127.0.0.1")


def test_two_keys_in_one_request_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError, match="two keys"):
        _gate(_plan(tmp_path)).admit([*_bearer(OWN), *_bearer(OWN)], None)


def test_headers_beyond_reason_are_refused(tmp_path: Path) -> None:
    gate = _gate(_plan(tmp_path))
    with pytest.raises(InputError, match="129 headers"):
        gate.admit([(b"a", b"b")] * 129, None)
    with pytest.raises(UnauthorizedError, match="longer than"):
        gate.admit(_bearer(b"x" * 1_000_000), None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.text("kit_0123456789abcdef. ").map(str.encode)))
def test_no_refusal_holds_what_was_presented(tmp_path: Path, provider: JwtSettings, middle: bytes) -> None:
    gate = _gate(_plan(tmp_path, jwt=provider))
    given_key = MARK + middle + MARK
    for value in (given_key, b"Bearer " + given_key, b"Bearer kit_" + given_key, b"Basic " + given_key):
        with pytest.raises(KitError) as caught:
            gate.admit([(b"authorization", value)], None)
        told = "".join((caught.value.hint or "", *traceback.format_exception(caught.value)))
        assert MARK.decode() not in told


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.7"])
def test_without_authentication_this_machine_may_do_everything(tmp_path: Path, peer: str) -> None:
    gate = _gate(_plan(tmp_path, auth="none", endpoint_sha256=None))
    assert gate.admit([], peer).scopes == ALL_SCOPES


@pytest.mark.parametrize("peer", ["10.0.0.8", "", None, "localhost", "::ffff:10.0.0.8", "127.0.0.1.evil"])
def test_without_authentication_nobody_else_is_answered(tmp_path: Path, peer: str | None) -> None:
    gate = _gate(_plan(tmp_path, auth="none", endpoint_sha256=None))
    with pytest.raises(ForbiddenError):
        gate.admit(
            [(b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=127.0.0.1"), *_bearer(OWN)], peer
        )


@pytest.mark.parametrize(
    "origin, let_in",
    [
        (b"http://127.0.0.1:8000", True),
        (b"http://localhost:8000", True),
        (b"http://10.0.0.7:8000", True),
        (b"https://evil.example", False),
        (b"http://127.0.0.1.evil.example", False),
        (b"null", False),
        (b"\xff", False),
        (b"http://[::1", False),
    ],
)
def test_a_web_page_of_another_host_is_not_this_machine(tmp_path: Path, origin: bytes, let_in: bool) -> None:
    gate = _gate(_plan(tmp_path, auth="none", endpoint_sha256=None))
    if let_in:
        gate.admit([(b"origin", origin)], "127.0.0.1")
    else:
        with pytest.raises(ForbiddenError, match="web page"):
            gate.admit([(b"origin", origin)], "127.0.0.1")


def test_open_to_all_lets_anybody_ask_and_nobody_load(tmp_path: Path) -> None:
    gate = _gate(_plan(tmp_path, auth="none", endpoint_sha256=None, open_to_all=True))
    for peer in ("10.0.0.8", "127.0.0.1"):
        caller = gate.admit([(b"origin", b"https://a.example")], peer)
        gate.authorize(caller, "infer", "digits")
        with pytest.raises(ForbiddenError):
            gate.authorize(caller, "admin", "digits")


@pytest.mark.parametrize(
    "scopes, action, model, missing",
    [
        ({"infer:*"}, "infer", "digits", None),
        ({"infer:digits"}, "infer", "digits", None),
        ({"infer:digits"}, "infer", "other", "infer:other"),
        ({"infer:digits"}, "infer", "*", "infer:\\*"),
        ({"admin", "metrics"}, "infer", "digits", "infer:digits"),
        ({"infer:digits"}, "read", "digits", None),
        ({"infer:digits"}, "read", "other", "infer:other"),
        ({"admin"}, "read", "digits", None),
        (set(), "read", None, None),
        ({"infer:*"}, "admin", "digits", "admin"),
        ({"admin"}, "admin", None, None),
        ({"admin", "infer:*"}, "metrics", None, "metrics"),
        ({"metrics"}, "metrics", None, None),
    ],
)
def test_a_scope_allows_one_thing(
    tmp_path: Path, scopes: set[str], action: Action, model: str | None, missing: str | None
) -> None:
    gate, caller = _gate(_plan(tmp_path)), Caller("someone", frozenset(scopes), "key")
    if missing is None:
        gate.authorize(caller, action, model)
    else:
        with pytest.raises(ForbiddenError, match=f"the scope {missing},"):
            gate.authorize(caller, action, model)


def test_a_patient_request_is_refused_like_any_other_when_nothing_is_awaited(
    tmp_path: Path, provider: JwtSettings
) -> None:
    gate = _gate(_plan(tmp_path, jwt=provider))
    assert asyncio.run(gate.admit_patiently(_bearer(OWN), None)).subject == "endpoint"
    with pytest.raises(UnauthorizedError):
        asyncio.run(gate.admit_patiently(_bearer(b"wrong"), None))


def test_what_a_replica_would_refuse_is_refused_before_it_starts(tabular_project: Path) -> None:
    project = Project.open(tabular_project)
    path = keys_path(project.state)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    path.chmod(0o600)
    with pytest.raises(InputError, match="damaged"):
        plan_guards(project, ServeSettings(models=("digits",)), local_addresses=LOCAL)
    path.unlink()
    provider = JwtSettings(jwks="jwks.json", issuer="https://login.example", audience="kit")
    with pytest.raises(InputError, match=str(project.folder / "jwks.json")):
        plan_guards(project, ServeSettings(models=("digits",), jwt=provider), local_addresses=LOCAL)


def test_a_plan_travels_without_the_key(tabular_project: Path) -> None:
    project = Project.open(tabular_project)
    plan = plan_guards(project, ServeSettings(models=("digits",)), local_addresses=LOCAL)
    key = (project.state / "serve" / "key").read_bytes().strip()
    assert key not in pickle.dumps(plan)
    assert _gate(pickle.loads(pickle.dumps(plan))).admit(_bearer(key), None).subject == "endpoint"  # noqa: S301 # our own bytes
