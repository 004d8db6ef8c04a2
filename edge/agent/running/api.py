"""The local API: the Open Inference Protocol on a Unix socket, and on loopback HTTP where that is wanted.

The same requests and answers as an endpoint of the kit, so that an application can move between the two.
Who may open the socket, its file mode says; over HTTP, where any process of the machine could ask, a key. It
knows nothing of slots; the supervisor answers.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import ipaddress
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.agent.running.http import Connection, GoneError, Request
from edge.agent.running.supervisor import Loaded, Supervisor
from edge.agent.telemetry.latencies import Latencies, outcome_of
from kit.errors import InputError, KitError, NotFoundError, UnavailableError, nearest
from kit.files import write_atomic
from kit.inference.body import MAX_SHOWN_CHARS, write_json
from kit.inference.card import Reply
from kit.inference.compression import Unpacking, answer_coding, pack
from kit.inference.errors import TooLargeError, UnauthorizedError
from kit.inference.failures import encode_error
from kit.inference.health import describe_live, describe_model_ready, describe_ready, describe_server
from kit.inference.paths import OPEN_KINDS, Paths, Route, read_header_length

SOCKET_MODE = 0o660
"""Who may ask over the Unix socket: the agent's user, and its group."""

KEY_MODE = 0o640
EXTENSIONS = ("binary_tensor_data", "parameters")
"""Extensions of the protocol that a device has, by the names Triton gives them."""

_MAX_CONNECTIONS = 64
_STACK_BYTES = 512 << 10
_BACKLOG = 64
_KINDS = frozenset({"live", "ready", "server", "index", "model", "model_ready", "infer"})
_FULL = UnavailableError("too many connections are open", hint="close some, or ask again later")

_log = logging.getLogger("kit.agent")


class Api:
    """Answers applications of this machine.

    Args:
        supervisor: Who runs the model.
        latencies: Counts what is answered.
        max_body_bytes: Largest body that is read.
    """

    def __init__(self, supervisor: Supervisor, *, latencies: Latencies, max_body_bytes: int) -> None:
        self._supervisor = supervisor
        self._latencies = latencies
        self._max_body_bytes = max_body_bytes
        self._paths = Paths()
        self._listeners: list[tuple[socket.socket, Path | None]] = []
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def listen_at(self, path: Path) -> None:
        """Listen on a Unix socket; one an earlier agent has left there is replaced in one step.

        Raises:
            UnavailableError: The socket cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        work = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o750, exist_ok=True)
            with short_path(work) as name:
                listener.bind(name)
            os.chmod(work, SOCKET_MODE)
            listener.listen(_BACKLOG)
            os.replace(work, path)
        except OSError as error:
            listener.close()
            with contextlib.suppress(OSError):
                work.unlink()
            raise UnavailableError(f"the socket {path} cannot be made: {error.strerror or error}") from error
        self._accept(listener, path, key=None)

    def listen_on(self, host: str, port: int, *, key: str | None) -> int:
        """Listen on a port of this machine.

        Args:
            host: A loopback address; any other is refused.
            port: The port; 0 takes a free one.
            key: What callers must send as a bearer token; None lets every process of the machine ask.

        Returns:
            The port.

        Raises:
            InputError: The address is not one of the loopback.
            UnavailableError: The port is taken.
        """
        family = socket.AF_INET6 if require_loopback(host).version == 6 else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise UnavailableError(
                f"port {port} of {host} cannot be used: {error.strerror}", hint="choose another port"
            ) from error
        taken = int(listener.getsockname()[1])
        self._accept(listener, None, key=key)
        return taken

    def close(self) -> None:
        """Listen no more, and close what is open; a request in work is answered first by whoever waits."""
        with self._lock:
            self._closed = True
            clients = list(self._clients)
        for listener, path in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RD)

    def answer(self, request: Request, *, key: str | None = None) -> Reply:
        """Answer one request, whatever it is.

        Args:
            request: The request.
            key: What it must bring as a bearer token; None where the socket's mode has decided.
        """
        began_s = time.monotonic()
        route: Route | None = None
        outcome = ""
        try:
            route = self._paths.find(request.method, request.path)
            if route.kind not in _KINDS:
                raise NotFoundError(f"{request.path[:MAX_SHOWN_CHARS]!r} is not answered on a device")
            if key is not None and route.kind not in OPEN_KINDS:
                _require_key(request, key)
            if route.kind == "infer":
                outcome, reply = self._infer(route, request)
            else:
                reply = self._described(route)
        except KitError as error:
            reply = encode_error(error)
        except Exception as error:  # the outer edge: a client sees no internals, the log does
            _log.exception("a request failed")
            reply = encode_error(error)
        if route is None or route.kind == "infer":
            word = outcome if outcome == "nan" else outcome_of(reply.status)
            self._latencies.add(word, time.monotonic() - began_s)
        return reply

    def _infer(self, route: Route, request: Request) -> tuple[str, Reply]:
        headers, body = request.headers, request.body
        self._loaded(route)
        coding = headers.get(b"content-encoding")
        if coding is not None and coding not in (b"", b"identity"):
            body = self._unpacked(body, coding)
        length = read_header_length(headers.get(b"inference-header-content-length"))
        answered = self._supervisor.infer(body, header_length=length)
        reply = answered.reply
        wanted = answer_coding(headers.get(b"accept-encoding"), n_bytes=len(reply.body))
        if wanted is not None and reply.status == 200:
            encoded = (*reply.headers, (b"content-encoding", wanted), (b"vary", b"accept-encoding"))
            reply = Reply(reply.status, pack(reply.body, coding=wanted), encoded)
        return answered.outcome, reply

    def _unpacked(self, body: bytes, coding: bytes) -> bytes:
        whole = Unpacking(body, coding=coding, max_bytes=self._max_body_bytes).step()
        if whole is None or len(whole) > self._max_body_bytes:
            raise TooLargeError(
                f"the body is larger than {self._max_body_bytes} bytes", hint="send fewer rows per request"
            )
        return whole

    def _described(self, route: Route) -> Reply:
        supervisor = self._supervisor
        if route.kind == "live":
            return describe_live()
        if route.kind == "ready":
            return describe_ready(ready=supervisor.loaded is not None and not supervisor.failure)
        if route.kind == "server":
            return describe_server(EXTENSIONS)
        if route.kind == "index":
            return self._index()
        loaded = self._loaded(route)
        if route.kind == "model_ready":
            return describe_model_ready(
                loaded.name, ready=supervisor.loaded is not None and not supervisor.failure
            )
        return supervisor.describe()

    def _index(self) -> Reply:
        """List the one model there is, as the protocol's repository index does."""
        loaded = self._supervisor.last_loaded
        if loaded is None:
            return Reply(200, b"[]")
        state = "READY" if self._supervisor.loaded is not None else "UNAVAILABLE"
        entry = {"name": loaded.name, "version": loaded.version, "state": state, "reason": ""}
        return Reply(200, write_json([entry]))

    def _loaded(self, route: Route) -> Loaded:
        """Give what answers a route's model, or answered last.

        Raises:
            NotFoundError: The device runs another model or version.
            UnavailableError: It runs none.
        """
        loaded = self._supervisor.last_loaded
        if loaded is None:
            raise UnavailableError("no model answers on this device", hint="ask again later")
        model = route.model or ""
        if model != loaded.name:
            shown = model[:MAX_SHOWN_CHARS]
            raise NotFoundError(f"model {shown!r} is not served here", hint=nearest(shown, [loaded.name]))
        if route.version is not None and route.version != loaded.version:
            shown = route.version[:MAX_SHOWN_CHARS]
            raise NotFoundError(
                f"version {shown!r} of model {model!r} is not served here",
                hint=nearest(shown, [loaded.version]),
            )
        return loaded

    def _accept(self, listener: socket.socket, path: Path | None, *, key: str | None) -> None:
        self._listeners.append((listener, path))
        _thread(functools.partial(self._accept_all, listener, key), name="accept")

    def _accept_all(self, listener: socket.socket, key: str | None) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.1)  # out of file handles: some will be closed
                continue
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                full = self._closed or len(self._clients) >= _MAX_CONNECTIONS
                if not full:
                    self._clients.add(client)
            if full:
                with contextlib.suppress(GoneError), client:
                    Connection(client, max_body_bytes=0).write(encode_error(_FULL), keeps=False)
                continue
            _thread(functools.partial(self._talk, client, key), name="client")

    def _talk(self, client: socket.socket, key: str | None) -> None:
        connection = Connection(client, max_body_bytes=self._max_body_bytes)
        try:
            while True:
                try:
                    request = connection.read()
                except InputError as error:
                    connection.write(encode_error(error), keeps=False)
                    return
                reply = self.answer(request, key=key)
                keeps = request.keeps and not self._closed
                connection.write(reply, keeps=keeps, with_body=request.method != "HEAD")
                if not keeps:
                    return
        except GoneError:
            return
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()


def make_key(path: Path) -> str:
    """Read the key that HTTP callers must send, or make one.

    Raises:
        UnavailableError: The file cannot be written.
    """
    with contextlib.suppress(OSError):
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if len(text) >= 32:
            return text
    key = secrets.token_urlsafe(32)
    write_atomic(path, f"{key}\n".encode(), mode=KEY_MODE)
    return key


def require_loopback(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Give an address of the loopback back, parsed.

    Raises:
        InputError: It is another one, or a name.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise InputError(
            f"{host!r} is not an address of this machine alone",
            hint="use 127.0.0.1 or ::1; applications elsewhere belong behind a server of yours",
        )
    return address


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Name a socket in at most 107 bytes, all that the system takes, however deep its folder lies."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)


def _require_key(request: Request, key: str) -> None:
    sent = request.headers.get(b"authorization", b"")
    kind, _, token = sent.partition(b" ")
    if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), key.encode()):
        raise UnauthorizedError(
            "the request carries no key that counts here",
            hint="send `Authorization: Bearer KEY`; run/http.key in the device folder holds it",
        )


def _thread(run: Callable[[], None], *, name: str) -> None:
    before = threading.stack_size(_STACK_BYTES)
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    finally:
        threading.stack_size(before)
