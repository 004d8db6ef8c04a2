"""The Open Inference Protocol v2, REST with JSON: its paths, its requests and its answers.

Bytes in, bytes out. It opens no socket, runs no model and knows neither Ray nor ASGI. Every error of
the kit becomes a status and one sentence here, and nowhere else; whatever is no error of the kit is a
bug, whose text stays in the log.

Source: Open Inference Protocol v2, kserve/open-inference-protocol, ``inference_rest.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from kit import __version__
from kit.errors import InputError, KitError, NotFoundError, UnavailableError, nearest
from kit.signature import Signature, Tensors, TensorSpec
from kit.wire import DATATYPES, check_object, decode_tensor, encode_tensor

Kind = Literal["live", "ready", "server", "model", "model_ready", "infer"]

#: The two paths a load balancer may ask without a key.
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})

_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_INPUT_KEYS = frozenset({"name", "datatype", "shape", "data", "parameters"})
_MAX_ID_CHARS = 256
_MAX_SHOWN_CHARS = 80


class MethodError(InputError):
    """A path exists, but not for this method; ``allowed`` is the one it has."""

    allowed: str = "GET"


class TooLargeError(InputError):
    """A body is larger than the endpoint accepts."""


class UnauthorizedError(InputError):
    """A request carries no key, or not the right one."""


class ForbiddenError(InputError):
    """A request comes from where none is answered."""


#: Which error becomes which status; the first that fits counts, anything else is 500.
STATUSES: tuple[tuple[type[KitError], int], ...] = (
    (MethodError, 405),
    (TooLargeError, 413),
    (UnauthorizedError, 401),
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (InputError, 400),
    (UnavailableError, 503),
)


class Reply(NamedTuple):
    """A status, a JSON body and the headers it needs beside content type and length."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Card:
    """What clients may know about one served version of a model.

    Attributes:
        name: The model's name.
        number: The version's number in the registry, which clients see as its version.
        digest: The version's digest.
        engine: The engine that runs it.
        signature: Its inputs and outputs.
    """

    name: str
    number: int
    digest: str
    engine: str
    signature: Signature

    @property
    def version(self) -> str:
        """The version as the protocol writes it."""
        return str(self.number)


@dataclass(frozen=True)
class Route:
    """What one path asks for, by which method, of which version; ``card`` is None for the server's own."""

    kind: Kind
    method: str
    card: Card | None = None


class Routes:
    """Every path of an endpoint.

    Args:
        cards: The served versions. The first one of each name also answers paths without a version.
    """

    def __init__(self, cards: Sequence[Card]) -> None:
        self._models: dict[str, list[str]] = {}
        self._paths: dict[str, Route] = {
            "/v2": Route("server", "GET"),
            "/v2/health/live": Route("live", "GET"),
            "/v2/health/ready": Route("ready", "GET"),
        }
        for card in cards:
            versions = self._models.setdefault(card.name, [])
            bases = [f"/v2/models/{card.name}/versions/{card.version}"]
            if not versions:
                bases.append(f"/v2/models/{card.name}")
            versions.append(card.version)
            for base in bases:
                self._paths[base] = Route("model", "GET", card)
                self._paths[f"{base}/ready"] = Route("model_ready", "GET", card)
                self._paths[f"{base}/infer"] = Route("infer", "POST", card)

    def find(self, method: str, path: str) -> Route:
        """Find what a request asks for.

        Raises:
            MethodError: The path exists for another method.
            NotFoundError: The path, the model or the version does not exist.
        """
        route = self._paths.get(path)
        if route is None:
            raise self._unknown(path)
        if method != route.method:
            error = MethodError(f"{method[:20]} is not possible on {path}", hint=f"use {route.method}")
            error.allowed = route.method
            raise error
        return route

    def _unknown(self, path: str) -> NotFoundError:
        parts = path.split("/")
        shown = path[:_MAX_SHOWN_CHARS]
        if len(parts) > 3 and parts[:3] == ["", "v2", "models"]:
            name = parts[3][:_MAX_SHOWN_CHARS]
            if name not in self._models:
                return NotFoundError(f"model {name!r} is not served here", hint=nearest(name, self._models))
            if len(parts) > 5 and parts[4] == "versions" and parts[5] not in self._models[name]:
                version = parts[5][:_MAX_SHOWN_CHARS]
                return NotFoundError(
                    f"version {version!r} of model {name!r} is not served here",
                    hint=nearest(version, self._models[name]),
                )
        return NotFoundError(f"there is nothing at {shown!r}", hint="see GET /v2/models/MODEL")


@dataclass(frozen=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: What the client calls the request; None when it gave nothing.
        inputs: Tensors by name, checked against the signature.
        outputs: The tensors to answer with, in the order asked for.
    """

    id: str | None
    inputs: Tensors
    outputs: tuple[TensorSpec, ...]


def parse_infer(body: bytes, signature: Signature) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: What was sent.
        signature: What the model accepts and answers.

    Raises:
        InputError: The body is not JSON, has a key the protocol does not know, or its tensors break the
            signature; the message names the tensor and the rule.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not valid JSON: {error}") from error
    check_object(value, what="the request", allowed=_REQUEST_KEYS, required=("inputs",))
    identity = value.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > _MAX_ID_CHARS):
        raise InputError(f"the request's 'id' is not a string of at most {_MAX_ID_CHARS} characters")
    specs = {spec.name: spec for spec in signature.inputs}
    tensors: Tensors = {}
    for entry in _entries(value["inputs"], what="inputs", allowed=_INPUT_KEYS):
        name = _name(entry, kind="input", valid=specs, seen=tensors)
        tensors[name] = decode_tensor(specs[name], entry, kind="input")
    return InferRequest(identity, signature.validate(tensors), _selected(value, signature))


def encode_answer(request: InferRequest, card: Card, answers: Mapping[str, Any]) -> Reply:
    """Write the answer to an infer request.

    Args:
        request: What was asked.
        card: The version that answered.
        answers: Every output of the signature by name, shape (n_rows, ...).
    """
    value: dict[str, Any] = {"model_name": card.name, "model_version": card.version}
    if request.id is not None:
        value["id"] = request.id
    value["outputs"] = [encode_tensor(spec, answers[spec.name]) for spec in request.outputs]
    return Reply(200, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def describe(route: Route) -> Reply:
    """Answer a request that needs no model: health and metadata.

    Args:
        route: Any route but ``infer``. Readiness is answered with yes: an endpoint gets requests only
            once its models are loaded.
    """
    card = route.card
    if card is None:
        values: dict[str, dict[str, Any]] = {
            "live": {"live": True},
            "ready": {"ready": True},
            "server": {"name": "kit", "version": __version__, "extensions": []},
        }
        return Reply(200, orjson.dumps(values[route.kind]))
    if route.kind == "model_ready":
        return Reply(200, orjson.dumps({"name": card.name, "ready": True}))
    return Reply(200, orjson.dumps(_metadata(card)))


def encode_error(error: Exception) -> Reply:
    """Turn an error into a status and one sentence; a bug's own text is not among it."""
    for kind, status in STATUSES:
        if isinstance(error, kind):
            hint = f"; {error.hint}" if error.hint else ""
            return Reply(status, orjson.dumps({"error": f"{error.message}{hint}"}), _headers(error))
    return Reply(500, orjson.dumps({"error": "internal error; the endpoint's log says more"}))


def _headers(error: KitError) -> tuple[tuple[bytes, bytes], ...]:
    """Give the headers RFC 9110 asks for with 405 and 401."""
    if isinstance(error, MethodError):
        return ((b"allow", error.allowed.encode()),)
    return ((b"www-authenticate", b"Bearer"),) if isinstance(error, UnauthorizedError) else ()


def _metadata(card: Card) -> dict[str, Any]:
    signature = card.signature
    return {
        "name": card.name,
        "versions": [card.version],
        "platform": card.engine,
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
        "parameters": {"digest": card.digest, "task": signature.task, "classes": list(signature.classes)},
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    value = spec.to_json()
    parameters = {key: value[key] for key in ("columns", "nullable", "minimum", "maximum") if key in value}
    return {
        "name": spec.name,
        "datatype": DATATYPES[spec.dtype],
        "shape": list(spec.shape),
        "parameters": parameters,
    }


def _entries(value: object, *, what: str, allowed: frozenset[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise InputError(f"'{what}' must be a list of at least one object")
    for index, entry in enumerate(value):
        check_object(entry, what=f"entry {index} of '{what}'", allowed=allowed, required=("name",))
    return value


def _name(entry: Mapping[str, Any], *, kind: str, valid: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    name = entry["name"]
    if not isinstance(name, str):
        raise InputError(f"the 'name' of an {kind} is not a string")
    shown = name[:_MAX_SHOWN_CHARS]
    if name not in valid:
        raise InputError(f"{shown!r} is not an {kind} of this model", hint=nearest(shown, valid))
    if name in seen:
        raise InputError(f"{kind} {shown!r} is there twice")
    return name


def _selected(value: Mapping[str, Any], signature: Signature) -> tuple[TensorSpec, ...]:
    if "outputs" not in value:
        return signature.outputs
    specs = {spec.name: spec for spec in signature.outputs}
    chosen: dict[str, TensorSpec] = {}
    for entry in _entries(value["outputs"], what="outputs", allowed=_OUTPUT_KEYS):
        name = _name(entry, kind="output", valid=specs, seen=chosen)
        chosen[name] = specs[name]
    return tuple(chosen.values())
