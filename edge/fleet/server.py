"""The fleet's server: the desk over HTTP, the page, and what the page asks.

One process and one event loop. A poll is answered on the loop, from memory; everything that touches the
database runs on one other thread, so that nobody's disk makes the polls wait. Starlette and uvicorn come
with the ``fleet`` extra and are imported when a server is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge.fleet import bodies, rollouts, views
from edge.fleet.desk import Answer, Desk, Request
from edge.fleet.enrolment import known
from kit.errors import ConflictError, InputError, KitError, NotFoundError
from kit.files import create_once

if TYPE_CHECKING:
    from starlette import requests
    from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
_TOKEN_BYTES = 32
_BODY_TIMEOUT_S = 30.0
_REFRESH_S = 0.25
_TICK_S = 1.0
_IDLE_TICK_S = 5.0
_PAGE_ROWS = 100
_STATUSES: tuple[tuple[type[KitError], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (InputError, 400),
)
_LIMITS = {
    "/v1/report": bodies.MAX_STATUS_BYTES,
    "/v1/telemetry": bodies.MAX_TELEMETRY_BYTES,
    "/v1/enrol": bodies.MAX_ENROL_BYTES,
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_log = logging.getLogger("kit.fleet")
_T = TypeVar("_T")


def admin_token(folder: Path) -> tuple[Path, str]:
    """Give the token that opens the page, or make one that this user alone can read.

    Raises:
        InputError: Others can read the file, or it holds too little to be a token.
    """
    path = folder / "admin.token"
    create_once(path, secrets.token_urlsafe(_TOKEN_BYTES).encode() + b"\n", mode=0o600)
    if path.stat().st_mode & 0o077:
        raise InputError(f"others can read {path}", hint=f"run `chmod 600 {path}`")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < _TOKEN_BYTES:
        raise InputError(f"the token in {path} is too short", hint="remove the file to get a new one")
    return path, token


@contextlib.contextmanager
def only_server(folder: Path) -> Iterator[None]:
    """Hold the lock of the one server a fleet may have.

    Raises:
        ConflictError: Another process serves it.
    """
    with (folder / "serve.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another process serves the fleet in {folder}", hint="stop it first, or use it"
            ) from error
        yield


class Application:
    """The fleet as an ASGI application.

    Args:
        desk: What answers devices.
        token: What opens the page.
    """

    def __init__(self, desk: Desk, *, token: str) -> None:
        from starlette.applications import Starlette
        from starlette.routing import Route

        self._desk, self._token = desk, token.encode()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleet")
        admin = "/admin/v1"
        self._rest = Starlette(
            routes=[
                *(Route(path, self._page, methods=["GET"]) for path in _FILES),
                Route(f"{admin}/overview", self._overview, methods=["GET"]),
                Route(f"{admin}/devices", self._devices, methods=["GET"]),
                Route(f"{admin}/devices/{{name}}", self._device, methods=["GET"]),
                Route(f"{admin}/rollouts/{{name}}", self._rollout, methods=["GET"]),
                Route(f"{admin}/rollouts/{{name}}/{{action}}", self._act, methods=["POST"]),
                Route("/v1/{rest:path}", self._device_asks, methods=["GET", "HEAD", "POST"]),
            ],
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request; a poll takes the short way."""
        if scope["type"] != "http" or scope["path"] != "/v1/offer" or scope["method"] != "GET":
            await self._rest(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = self._desk.poll(Request("GET", "/v1/offer", headers))
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    *((name.encode(), value.encode()) for name, value in answer.headers.items()),
                    (b"content-length", str(len(answer.body)).encode()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer.body})

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        driving = asyncio.create_task(self._drive())
        try:
            yield
        finally:
            driving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await driving
            self._thread.shutdown()

    async def _drive(self) -> None:
        """Follow the database and let rollouts go on, for as long as the server listens."""
        ticked_s = time.monotonic()
        while True:
            await asyncio.sleep(_REFRESH_S)
            now_s = time.monotonic()
            try:
                await self._run(self._desk.refresh)
                if now_s - ticked_s >= (_TICK_S if self._desk.live else _IDLE_TICK_S):
                    await self._run(partial(self._desk.tick, now_s - ticked_s))
                    ticked_s = now_s
            except KitError as error:  # a full disk gets room again, and rollouts then go on
                _log.warning("%s; trying again", error.message)
                await asyncio.sleep(_IDLE_TICK_S)

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _device_asks(self, request: requests.Request) -> Response:
        path = request.url.path
        body = b""
        if request.method == "POST":
            read = await _body(request, most=_LIMITS.get(path, 0))
            if read is None:
                return _problem(413, "the body is too large or too slow")
            body = read
        client = request.client.host if request.client else ""
        headers = dict(request.headers.items())
        asked = Request(request.method, path, headers, body, client)
        return _response(await self._run(lambda: self._desk.answer(asked)))

    async def _page(self, request: requests.Request) -> Response:
        from starlette.responses import Response

        name, kind = _FILES[request.url.path]
        return Response((PAGE / name).read_bytes(), media_type=kind, headers=_SAFE)

    async def _overview(self, request: requests.Request) -> Response:
        return await self._shown(request, views.overview)

    async def _devices(self, request: requests.Request) -> Response:
        asked = request.query_params
        try:
            start = max(0, int(asked.get("start", "0")))
        except ValueError:
            return _problem(400, "start is not a number")

        def read(db: Any) -> dict[str, Any]:
            now_ns = time.time_ns()
            rows = [views.device_row(each, now_ns=now_ns) for each in known(db)]
            for key in ("group", "health", "digest"):
                if asked.get(key):
                    rows = [row for row in rows if str(row[key]) == asked[key]]
            text = asked.get("text", "").lower()
            rows = [row for row in rows if text in row["name"]]
            return {"total": len(rows), "start": start, "devices": rows[start : start + _PAGE_ROWS]}

        return await self._shown(request, read)

    async def _device(self, request: requests.Request) -> Response:
        name = request.path_params["name"]
        return await self._shown(request, lambda db: views.device_page(db, name))

    async def _rollout(self, request: requests.Request) -> Response:
        name = request.path_params["name"]
        return await self._shown(request, lambda db: views.rollout_row(db, rollouts.load(db, name)))

    async def _act(self, request: requests.Request) -> Response:
        name, action = request.path_params["name"], request.path_params["action"]
        if action not in rollouts.ACTIONS:
            return _problem(404, "there is no such action")

        def act() -> dict[str, Any]:
            with self._desk.store.changing() as db:
                kept = rollouts.ACTIONS[action](db, name, by="page")
                row = views.rollout_row(db, kept)
            self._desk.reload()
            return row

        return await self._guarded(request, act)

    async def _shown(self, request: requests.Request, read: Callable[[Any], Any]) -> Response:
        def view() -> Any:
            with self._desk.store.reading() as db:
                return read(db)

        return await self._guarded(request, view)

    async def _guarded(self, request: requests.Request, work: Callable[[], Any]) -> Response:
        """Do what a person asks who has shown the token."""
        from starlette.responses import Response

        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.encode("utf-8", "replace"), self._token
        ):
            return _problem(401, "the token is wrong")
        try:
            found = await self._run(work)
        except KitError as error:
            status = next((code for kind, code in _STATUSES if isinstance(error, kind)), 503)
            return _problem(status, error.message)
        return Response(json.dumps(found).encode(), media_type="application/json", headers=_SAFE)


async def _body(request: requests.Request, *, most: int) -> bytes | None:
    """Read a body; None when it is larger than it may be, or takes too long."""
    parts, n_bytes = [], 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for part in request.stream():
                n_bytes += len(part)
                if n_bytes > most:
                    return None
                parts.append(part)
    except TimeoutError:
        return None
    return b"".join(parts)


def _response(answer: Answer) -> Response:
    from starlette.responses import FileResponse, Response

    headers = {**answer.headers, "x-content-type-options": "nosniff"}
    if answer.file is not None:
        return FileResponse(answer.file, headers=headers, media_type="application/octet-stream")
    return Response(answer.body, status_code=answer.status, headers=headers)


def _problem(status: int, sentence: str) -> Response:
    from starlette.responses import Response

    body = json.dumps({"error": sentence}).encode()
    return Response(body, status_code=status, media_type="application/json", headers=_SAFE)


def serve(
    application: Application,
    *,
    host: str,
    port: int,
    tls: tuple[str, str] | None,
    on_ready: Callable[[str], None],
) -> None:
    """Listen until interrupted.

    Args:
        application: What answers.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        tls: Certificate chain and private key (PEM); None serves without.
        on_ready: Told the server's address as soon as it listens.

    Raises:
        UnavailableError: The port is taken, or the certificate cannot be used.
    """
    import uvicorn

    from kit.errors import UnavailableError

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                bound = self.servers[0].sockets[0].getsockname()[1]
                shown = f"[{host}]" if ":" in host else host
                on_ready(f"{'https' if tls else 'http'}://{shown}:{bound}/")

    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        interface="asgi3",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=2048,
        h11_max_incomplete_event_size=16 << 10,
        timeout_graceful_shutdown=5,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        server = Server(config)
        server.run()
    except OSError as error:
        raise UnavailableError(
            f"nothing can listen on {host}:{port}: {os.strerror(error.errno or 0)}"
        ) from error
    except SystemExit as error:  # how uvicorn says that the address is taken
        raise UnavailableError(
            f"nothing can listen on {host}:{port}; the address is taken, or not this machine's",
            hint="give another --port",
        ) from error
