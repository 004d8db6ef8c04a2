"""The paths of an endpoint: what one asks for, and by which method.

Which models exist is not known here: models come and go, so any name is found, and whoever answers says
that it does not know it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from kit.errors import InputError, NotFoundError, nearest
from kit.inference.body import MAX_SHOWN_CHARS
from kit.inference.errors import MethodError

Kind = Literal[
    "live",
    "ready",
    "server",
    "model",
    "model_ready",
    "infer",
    "config",
    "stats",
    "all_stats",
    "index",
    "load",
    "unload",
    "predict",
    "openapi",
    "docs",
    "metrics",
]

#: What is answered without a key: what load balancers ask, and a page that holds nothing but itself.
OPEN_KINDS: frozenset[Kind] = frozenset({"live", "ready", "docs"})

#: What a caller must be allowed to for each kind; the guards know what that takes.
ACTIONS: dict[Kind, Literal["infer", "read", "admin", "metrics"]] = {
    "live": "read",
    "ready": "read",
    "server": "read",
    "model": "read",
    "model_ready": "read",
    "infer": "infer",
    "config": "read",
    "stats": "admin",
    "all_stats": "admin",
    "index": "read",
    "load": "admin",
    "unload": "admin",
    "predict": "infer",
    "openapi": "read",
    "docs": "read",
    "metrics": "metrics",
}

_MAX_KEPT = 4096
_MAX_KEPT_CHARS = 512


class Route(NamedTuple):
    """What one path asks for.

    Attributes:
        kind: What.
        method: The one method it has.
        model: The model's name; None where the path names none.
        version: The version, as the client wrote it; None where the path names none.
    """

    kind: Kind
    method: str
    model: str | None = None
    version: str | None = None


_FIXED: dict[str, Route] = {
    "/v2": Route("server", "GET"),
    "/v2/health/live": Route("live", "GET"),
    "/v2/health/ready": Route("ready", "GET"),
    "/v2/models/stats": Route("all_stats", "GET"),
    "/v2/repository/index": Route("index", "POST"),
    "/openapi.json": Route("openapi", "GET"),
    "/docs": Route("docs", "GET"),
    "/metrics": Route("metrics", "GET"),
}
_OF_MODEL: dict[str, tuple[Kind, str]] = {
    "": ("model", "GET"),
    "ready": ("model_ready", "GET"),
    "infer": ("infer", "POST"),
    "config": ("config", "GET"),
    "stats": ("stats", "GET"),
    "predict": ("predict", "POST"),
}
_OF_REPOSITORY: dict[str, tuple[Kind, str]] = {"load": ("load", "POST"), "unload": ("unload", "POST")}
_PREDICT: dict[str, tuple[Kind, str]] = {"": ("predict", "POST")}


class Paths:
    """Finds what a path asks for; what was found once is kept, so the next time is a look-up."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, Route] = dict(_FIXED)

    def find(self, method: str, path: str) -> Route:
        """Find what a request asks for; HEAD asks for what GET does, and the server leaves the body out.

        Args:
            method: In capitals.
            path: Decoded, without the query.

        Raises:
            MethodError: The path exists for another method.
            NotFoundError: There is no such path.
        """
        route = self._known.get(path)
        if route is None:
            route = _parse(path)
            if len(self._known) >= _MAX_KEPT:  # somebody asks for names by the thousand
                self._known = dict(_FIXED)
            if len(path) <= _MAX_KEPT_CHARS:
                self._known[path] = route
        if method != route.method and (method, route.method) != ("HEAD", "GET"):
            shown = path[:MAX_SHOWN_CHARS]
            error = MethodError(f"{method[:20]} is not possible on {shown}", hint=f"use {route.method}")
            error.allowed = "GET, HEAD" if route.method == "GET" else route.method
            raise error
        return route


def _parse(path: str) -> Route:
    parts = path.split("/")
    if parts[:3] == ["", "v2", "models"]:
        return _of_model(path, parts[3:], _OF_MODEL)
    if parts[:4] == ["", "v2", "repository", "models"] and len(parts) == 6:
        return _of_model(path, parts[4:], _OF_REPOSITORY)
    if parts[:2] == ["", "predict"]:
        return _of_model(path, parts[2:], _PREDICT)
    raise _unknown(path)


def _of_model(path: str, parts: list[str], actions: dict[str, tuple[Kind, str]]) -> Route:
    """Read MODEL[/versions/VERSION][/ACTION]."""
    model, rest, version = parts[0] if parts else "", parts[1:], None
    if rest and rest[0] == "versions" and len(rest) > 1:
        version, rest = rest[1], rest[2:]
    action = actions.get(rest[0] if rest else "")
    if action is None or len(rest) > 1 or (rest and not rest[0]) or not model or version == "":
        raise _unknown(path)
    return Route(*action, model, version)


def _unknown(path: str) -> NotFoundError:
    shown = path[:MAX_SHOWN_CHARS]
    return NotFoundError(f"there is nothing at {shown!r}", hint=nearest(shown, _FIXED) if shown else None)


def read_header_length(value: bytes | None) -> int | None:
    """Read the header ``inference-header-content-length``: how many bytes of a body are JSON.

    Raises:
        InputError: It is not a number of bytes.
    """
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        shown = value[:MAX_SHOWN_CHARS].decode("latin-1")
        raise InputError(f"inference-header-content-length is {shown!r}, not a number of bytes")
    return int(value)
