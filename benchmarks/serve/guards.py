"""What each guard and each watcher costs by itself: a plain endpoint and one with it, taking turns."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from asking import fresh_json
from kit_endpoint import Endpoint, Place, Setting, running
from reporting import Report, table
from rounds import Stand, Turns, facts_of, ratio, take_turn, take_turns
from subjects import Subject, mlp

_PORT = 18400
_COLLECTOR_PORT = 18490
_CONNECTIONS = 32
_ISSUER, _AUDIENCE = "https://login.example", "kit"
_TOKEN_S = 86_400


@dataclass(frozen=True)
class Guard:
    """One thing an endpoint may do beside answering.

    Attributes:
        title: What the table calls it.
        flags: Of ``kit serve``.
        more: Sections of kit.toml.
        fresh: Whether every request must be another one.
        token: Whether requests carry a token of an identity provider.
    """

    title: str
    flags: tuple[str, ...] = ()
    more: str = ""
    fresh: bool = False
    token: bool = False


_JWT = f'[serve.jwt]\njwks = "jwks.json"\nissuer = "{_ISSUER}"\naudience = "{_AUDIENCE}"\n'
_CACHE = "[serve.model.mlp.cache]\nmax_mb = 64\n"
_SAMPLES = '[serve.prediction_log]\nfolder = "samples"\nshare = {}\n'
_TRACES = f'[serve.tracing]\nendpoint = "http://127.0.0.1:{_COLLECTOR_PORT}"\nshare = {{}}\n'
GUARDS = {
    "key": Guard("key", flags=("--auth=key",)),
    "jwt": Guard("token (JWT, RS256), remembered", flags=("--auth=key",), more=_JWT, token=True),
    "rates": Guard("rate limit, counted in the replica", more='[serve.rates]\nrequests = "1000000/second"\n'),
    "hit": Guard("cache, always a hit", more=_CACHE),
    "miss": Guard("cache, always a miss", more=_CACHE, fresh=True),
    "log": Guard("a log line for every request", flags=("--log-requests=all",)),
    "samples": Guard("prediction log of 1 %", more=_SAMPLES.format(0.01)),
    "all-samples": Guard("prediction log of all", more=_SAMPLES.format("1.0")),
    "traces": Guard("traces of 1 %", more=_TRACES.format(0.01)),
    "all-traces": Guard("traces of all", more=_TRACES.format("1.0")),
}


def measure_guards(given: argparse.Namespace, place: Place) -> Report:
    """Let a plain endpoint and each guarded one take turns."""
    names = [name for name in GUARDS if given.guard is None or name in given.guard]
    subject = mlp()
    facts: dict[str, Any] = {}
    with _collector(), running(place, "plain", Setting((subject,), _PORT)) as plain:
        for name in names:
            facts[name] = _measure(name, plain, subject, given=given, place=place)
    head = ["32 connections", "requests/s", "share of the plain one's", "us CPU/request", "more than plain"]
    rows = [
        [
            each["title"],
            f"{each['guarded']['per_second']:,.0f}",
            f"{each['share']:.2f}",
            f"{each['guarded']['cpu_us']:.0f}",
            f"{each['more_cpu_us']:+.0f}",
        ]
        for each in facts.values()
    ]
    return Report("guards", "What each guard costs (small MLP, one replica)", facts, table(head, rows))


def _measure(
    name: str, plain: Endpoint, subject: Subject, *, given: argparse.Namespace, place: Place
) -> dict[str, Any]:
    guard = GUARDS[name]
    port = _PORT + 1
    headers = {"authorization": f"Bearer {_token(place.folder)}"} if guard.token else {}
    more = guard.more.replace('"jwks.json"', f'"{place.folder / "jwks.json"}"')
    setting = Setting((subject,), port, guard.flags, more, headers)
    with running(place, f"guard-{name}", setting) as guarded:
        stands = [_stand(plain, "plain", fresh=guard.fresh), _stand(guarded, name, fresh=guard.fresh)]
        turns: Turns = take_turns(
            stands,
            connections=(_CONNECTIONS,),
            rounds=2 * given.rounds,  # more and shorter, since the difference is small
            seconds=max(given.turn_s // 2, 1),
            take=partial(take_turn, folder=place.bodies),
        )
    with_it, without = turns[name, _CONNECTIONS], turns["plain", _CONNECTIONS]
    return {
        "title": guard.title,
        "share": ratio(with_it, without),
        "more_cpu_us": statistics.median(a.cpu_us - b.cpu_us for a, b in zip(with_it, without, strict=True)),
        "guarded": facts_of(with_it),
        "plain": facts_of(without),
    }


def _stand(endpoint: Endpoint, name: str, *, fresh: bool) -> Stand:
    request = fresh_json(endpoint.subject.rows(1, seed=0)) if fresh else endpoint.request()
    return Stand(name, endpoint.server, endpoint.url, request, fresh=fresh)


def _token(folder: Path) -> str:
    """Play the identity provider: write its keys, and give a token that may ask for everything."""
    import jwt
    from cryptography.hazmat.primitives.asymmetric import rsa
    from jwt.algorithms import RSAAlgorithm

    key = rsa.generate_private_key(65537, 2048)
    public = {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "one", "use": "sig"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
    claims: dict[str, str | int] = {"iss": _ISSUER, "aud": _AUDIENCE, "sub": "benchmark", "scope": "infer:*"}
    now_s = int(time.time())
    claims |= {"iat": now_s, "exp": now_s + _TOKEN_S}
    return str(jwt.encode(claims, key, "RS256", headers={"kid": "one"}))


class _Taking(http.server.BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _collector() -> Iterator[None]:
    """Run what traces are sent to."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", _COLLECTOR_PORT), _Taking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
