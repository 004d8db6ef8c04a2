"""A proxy in front of an S3 server that misbehaves when told to: what networks and busy servers do.

    with Faults(s3_endpoint) as faults:
        environment.setenv("AWS_ENDPOINT_URL", faults.url)
        busy = faults.answer(503, "SlowDown", times=3)
        cut = faults.cut_request(after_bytes=1 << 20, only="PUT .*part-00001")
        ...
        assert (busy.n_done, cut.n_done) == (3, 1)

Each switch gives a ``Fault`` that counts what it did, wakes whoever waits for ``happened``, and can be
turned ``off``. ``only`` is a regular expression searched in ``METHOD /bucket/key?query``. The first fault
that fits a request acts. What no fault touches is forwarded whole and counted in ``n_forwarded``.

Writes are forwarded one at a time: moto checks a condition and writes in two steps where S3 does both in one.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PASSED_ON = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class Fault:
    """Something that goes wrong with requests that fit.

    Attributes:
        kind, only: answer, cut request, cut answer or watch; what "METHOD path" must hold.
        n_left: How many requests it still touches; None is all of them.
        until_s: When it ends, by ``time.monotonic``; None is never.
        status, code, after_bytes: What its kind needs.
        n_done, happened: How many requests it has touched; set by the first.
    """

    kind: str
    only: re.Pattern[str]
    n_left: int | None
    until_s: float | None = None
    status: int = 0
    code: str = ""
    after_bytes: int = 0
    n_done: int = 0
    happened: threading.Event = field(default_factory=threading.Event)

    def off(self) -> None:
        """Touch no more requests."""
        self.n_left = 0


@dataclass(frozen=True)
class Seen:
    """A request as it came in: its line without the version, and its headers in lower case."""

    line: str
    headers: dict[str, str]


class Faults:
    """The proxy, listening on a free port of the loopback until the block ends.

    Args:
        endpoint: ``http://host:port`` of the server behind it.
    """

    def __init__(self, endpoint: str) -> None:
        self.upstream = endpoint.removeprefix("http://")
        self.n_forwarded = 0
        self.seen: list[Seen] = []
        #: Names of headers, in lower case, the server behind shall not see: one that knows no conditions.
        self.forgotten_headers: set[str] = set()
        self.writing = threading.Lock()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.faults = self  # type: ignore[attr-defined]  # how a handler finds its proxy
        #: The address to use in place of the server's.
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Faults:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(
        self,
        status: int,
        code: str,
        *,
        times: int | None = None,
        seconds: float | None = None,
        only: str = "",
    ) -> Fault:
        """Answer an error of S3 instead of forwarding, for a number of requests or of seconds from now."""
        until_s = None if seconds is None else time.monotonic() + seconds
        return self._add(Fault("answer", re.compile(only), times, until_s=until_s, status=status, code=code))

    def cut_request(self, *, after_bytes: int, times: int | None = 1, only: str = "PUT") -> Fault:
        """Break the connection after that many bytes of the body; the server behind sees nothing."""
        return self._add(Fault("cut request", re.compile(only), times, after_bytes=after_bytes))

    def cut_answer(
        self, *, times: int | None = 1, only: str = "PUT", after_bytes: int | None = None
    ) -> Fault:
        """Forward, then break the connection before the answer, or after so many bytes of its body."""
        amount = -1 if after_bytes is None else after_bytes
        return self._add(Fault("cut answer", re.compile(only), times, after_bytes=amount))

    def watch(self, *, times: int | None = None, only: str = "") -> Fault:
        """Forward whole, and say that it happened."""
        return self._add(Fault("watch", re.compile(only), times))

    def met(self, seen: Seen) -> Fault | None:
        """Record a request and choose what goes wrong with it."""
        with self._lock:
            self.seen.append(seen)
            for fault in self._faults:
                over = fault.until_s is not None and time.monotonic() > fault.until_s
                if fault.n_left == 0 or over or not fault.only.search(seen.line):
                    continue
                fault.n_left = None if fault.n_left is None else fault.n_left - 1
                fault.n_done += 1
                fault.happened.set()
                return fault
            self.n_forwarded += 1
            return None

    def _add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def handle_any(self) -> None:
        faults: Faults = self.server.faults
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = faults.met(Seen(f"{self.command} {self.path}", headers))
        length = int(headers.get("content-length", 0))
        if fault is not None and fault.kind == "cut request":
            self.rfile.read(min(fault.after_bytes, length))
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault is not None and fault.kind == "answer":
            self.say(fault.status, {}, f"<Error><Code>{fault.code}</Code></Error>".encode())
            return
        sent = {name: value for name, value in headers.items() if name not in faults.forgotten_headers}
        with faults.writing if self.command != "GET" else contextlib.nullcontext():
            upstream = http.client.HTTPConnection(faults.upstream, timeout=60)
            upstream.request(self.command, self.path, body=body, headers=_passed_on(sent))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
        if fault is not None and fault.kind == "cut answer":
            if fault.after_bytes >= 0:
                self.say(answer.status, dict(answer.getheaders()), data, only_bytes=fault.after_bytes)
            self.close_connection = True
            return
        self.say(answer.status, dict(answer.getheaders()), data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815  # named by http.server

    def say(
        self, status: int, headers: dict[str, str], data: bytes, *, only_bytes: int | None = None
    ) -> None:
        self.send_response_only(status)
        lengths = {"content-length": str(len(data))}
        for name, value in (lengths | _passed_on(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:only_bytes])

    def log_message(self, format: str, *args: object) -> None:
        pass


def _passed_on(headers: dict[str, str]) -> dict[str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    return {name: value for name, value in lowered.items() if name not in _PASSED_ON}
