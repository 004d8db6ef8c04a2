"""Keys of an identity provider behind a real HTTP server: rotated, lost, slow, too large, elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from kit.errors import UnavailableError
from kit.inference.errors import UnauthorizedError
from kit.settings.serving import JwtSettings
from serve.guards import keyset
from serve.guards.gatekeeper import Gatekeeper, GuardPlan
from serve.guards.keyset import fetch
from serve.guards.tokens import UnsettledError
from tests.awaiting import await_true

ISSUER = "https://login.example"
KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("old", "new", "newer")}


def _key_set(*names: str) -> bytes:
    public = {name: ECAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True) for name in names}
    entries = [{**public[name], "kid": name, "alg": "ES256"} for name in names]
    return json.dumps({"keys": entries}).encode()


def _headers(key_id: str) -> list[tuple[bytes, bytes]]:
    claims = {"sub": "alice", "iss": ISSUER, "aud": "kit", "exp": int(time.time()) + 60, "scope": "infer:*"}
    token = jwt.encode(claims, KEYS.get(key_id, KEYS["old"]), "ES256", headers={"kid": key_id})
    return [(b"authorization", b"Bearer " + token.encode())]


class _Provider:
    """A real HTTP server whose answer a test changes."""

    def __init__(self) -> None:
        self.body = _key_set("old")
        self.status = 200
        self.location: str | None = None
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks"

    def start(self) -> None:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                provider.gate.wait(10.0)
                self.send_response(provider.status)
                if provider.location:
                    self.send_header("location", provider.location)
                self.end_headers()
                with contextlib.suppress(OSError):  # who asked has had enough
                    self.wfile.write(provider.body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def provider() -> Iterator[_Provider]:
    made = _Provider()
    made.start()
    yield made
    made.gate.set()
    made.stop()


@pytest.fixture
def said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)  # as Ray Serve does where it is loaded
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def open_gate(
    provider: _Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Gatekeeper]]:
    gates = []

    def open_(*, poll_s: float = 300.0, pause_s: float = 0.2) -> Gatekeeper:
        monkeypatch.setattr(keyset, "POLL_S", poll_s)
        monkeypatch.setattr(keyset, "PAUSE_S", pause_s)
        settings = JwtSettings(jwks=provider.url, issuer=ISSUER, audience="kit", leeway_s=0)
        own = hashlib.sha256(b"own").digest()
        gates.append(Gatekeeper(GuardPlan("key", False, own, tmp_path / "keys.json", settings, frozenset())))
        return gates[-1]

    yield open_
    provider.gate.set()
    for gate in gates:
        gate.close()


def _counts(gate: Gatekeeper, key_id: str) -> bool:
    try:
        gate.admit(_headers(key_id), None)
    except UnauthorizedError:
        return False
    return True


def _pass_pause(seconds: float = 0.25) -> None:
    time.sleep(seconds)  # the pause between two readings is what is tested


def test_a_token_signed_with_a_new_key_counts_after_one_reading(
    provider: _Provider, open_gate: Callable[..., Gatekeeper]
) -> None:
    gate = open_gate()
    assert gate.admit(_headers("old"), None).subject == "alice"
    provider.body = _key_set("old", "new")
    _pass_pause()
    with pytest.raises(UnsettledError) as caught:
        gate.admit(_headers("new"), None)
    assert "again" in (caught.value.hint or "")
    await_true(lambda: _counts(gate, "new"))
    assert provider.asked == 2


def test_a_patient_request_waits_for_the_new_key(
    provider: _Provider, open_gate: Callable[..., Gatekeeper]
) -> None:
    gate = open_gate()
    provider.body = _key_set("new")
    _pass_pause()

    async def ask() -> list[str]:
        callers = await asyncio.gather(*(gate.admit_patiently(_headers("new"), None) for _ in range(20)))
        return [caller.subject for caller in callers]

    assert asyncio.run(ask()) == ["alice"] * 20
    assert provider.asked == 2


def test_the_event_loop_goes_on_while_keys_are_read(
    provider: _Provider, open_gate: Callable[..., Gatekeeper]
) -> None:
    gate = open_gate()
    provider.body = _key_set("new")
    provider.gate.clear()
    _pass_pause()

    async def ask() -> str:
        waiting = asyncio.ensure_future(gate.admit_patiently(_headers("new"), None))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert gate.admit(_headers("old"), None).subject == "alice"
        provider.gate.set()
        return (await waiting).subject

    assert asyncio.run(ask()) == "alice"


def test_unknown_keys_are_asked_for_once_in_a_while_however_many_ask(
    provider: _Provider, open_gate: Callable[..., Gatekeeper]
) -> None:
    gate = open_gate(pause_s=30.0)
    for number in range(200):
        with pytest.raises(UnauthorizedError, match="not known") as caught:
            gate.admit(_headers(f"forged-{number}"), None)
        assert not isinstance(caught.value, UnsettledError)  # nothing is read that could be waited for
    assert provider.asked == 1


def test_a_withdrawn_key_counts_no_more_although_its_tokens_were_seen(
    provider: _Provider, open_gate: Callable[..., Gatekeeper]
) -> None:
    gate = open_gate(poll_s=0.1)
    assert gate.admit(_headers("old"), None).subject == "alice"
    provider.body = _key_set("new")
    await_true(lambda: not _counts(gate, "old"))
    assert _counts(gate, "new")


def test_keys_outlive_the_provider_s_outage(
    provider: _Provider, open_gate: Callable[..., Gatekeeper], said: pytest.LogCaptureFixture
) -> None:
    gate = open_gate(poll_s=0.05, pause_s=0.05)
    provider.stop()
    await_true(lambda: "stay in force" in said.text)
    _pass_pause()
    assert _counts(gate, "old")
    assert said.text.count("stay in force") == 1
    provider.body = _key_set("old", "newer")
    provider.start()
    await_true(lambda: _counts(gate, "newer"))
    await_true(lambda: "answers again" in said.text)


def test_a_provider_that_is_down_does_not_stop_a_replica(
    provider: _Provider, open_gate: Callable[..., Gatekeeper], said: pytest.LogCaptureFixture
) -> None:
    provider.stop()
    gate = open_gate()
    assert "does not answer" in said.text
    assert gate.admit([(b"authorization", b"Bearer own")], None).subject == "endpoint"
    assert not _counts(gate, "old")
    provider.start()
    await_true(lambda: _counts(gate, "old"))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"keys": []}', b"<html>"])
def test_a_provider_that_answers_nonsense_changes_nothing(
    provider: _Provider, open_gate: Callable[..., Gatekeeper], body: bytes, said: pytest.LogCaptureFixture
) -> None:
    gate = open_gate(poll_s=0.05, pause_s=0.05)
    provider.body = body
    await_true(lambda: "stay in force" in said.text)
    assert _counts(gate, "old")


def test_no_redirect_is_followed(provider: _Provider) -> None:
    elsewhere = _Provider()
    elsewhere.start()
    try:
        provider.status, provider.location = 302, elsewhere.url
        with pytest.raises(UnavailableError, match="302"):
            fetch(urlsplit(provider.url))
        assert elsewhere.asked == 0
    finally:
        elsewhere.stop()


@pytest.mark.parametrize("status", [204, 404, 500])
def test_only_a_good_answer_counts(provider: _Provider, status: int) -> None:
    provider.status = status
    with pytest.raises(UnavailableError, match=f"answers {status}"):
        fetch(urlsplit(provider.url))


def test_an_answer_without_end_is_cut(provider: _Provider) -> None:
    provider.body = b" " * (3 << 20)
    with pytest.raises(UnavailableError, match="more than a key set"):
        fetch(urlsplit(provider.url))


def test_a_slow_answer_is_given_up(provider: _Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "_TIMEOUT_S", 0.1)
    provider.gate.clear()
    began_s = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        fetch(urlsplit(provider.url))
    assert time.monotonic() - began_s < 2.0


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    provider: _Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch(urlsplit(provider.url)) == provider.body


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_an_address_in_a_token_is_never_asked(
    provider: _Provider, open_gate: Callable[..., Gatekeeper], name: str
) -> None:
    evil = _Provider()
    evil.start()
    try:
        gate = open_gate()
        claims = {"sub": "eve", "iss": ISSUER, "aud": "kit", "exp": int(time.time()) + 60}
        for key_id in ("old", "elsewhere", evil.url):
            token = jwt.encode(claims, KEYS["new"], "ES256", headers={"kid": key_id, name: evil.url})
            with pytest.raises(UnauthorizedError):
                gate.admit([(b"authorization", b"Bearer " + token.encode())], None)
        _pass_pause()
        assert evil.asked == 0
    finally:
        evil.stop()
