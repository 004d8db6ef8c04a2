"""The OpenAPI 3.1 description of an endpoint, written from the signatures it serves.

It knows the paths and what comes back on each; what values look like is ``schemas``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from kit import __version__
from kit.inference.card import Card, Reply
from serve.protocol import schemas

_ERRORS: dict[str, str] = {
    "400": "The request breaks a rule; the sentence names it.",
    "401": "No key or token, or one that does not count.",
    "403": "The key or token does not allow this.",
    "404": "No such model, version or path.",
    "409": "Somebody else is changing the same.",
    "413": "The body is larger than the endpoint accepts.",
    "429": "Too much is asked for; Retry-After says when to come back, in seconds.",
    "500": "The model failed, or the endpoint did.",
    "503": "The model is not ready, or was taken out for failing; Retry-After may say until when.",
    "504": "The answer would have come too late.",
}
_READ = ("401", "403", "404", "500", "503")
_WRITE = ("400", *_READ[:3], "413", *_READ[3:])
_INFER = tuple(status for status in _ERRORS if status != "409")
_CHANGE = (*_WRITE, "409")
_JSON = "application/json"


def describe_openapi(cards: Iterable[Card], *, secured: bool = True) -> Reply:
    """Describe an endpoint.

    Args:
        cards: Every served version; the first one of each name describes the paths without a version.
        secured: Whether a key or token is asked for.
    """
    components: dict[str, Any] = {"Error": schemas.ERROR}
    paths = _server_paths()
    tags: list[dict[str, str]] = []
    seen: set[str] = set()
    for card in cards:
        base = f"{card.name}-{card.version}"
        components[f"{base}-row"] = schemas.row_schema(card.signature)
        components[f"{base}-rows"] = schemas.rows_schema(card, row=_ref(f"{base}-row"))
        components[f"{base}-rows-answer"] = schemas.answer_rows_schema(card)
        components[f"{base}-infer"] = schemas.infer_schema(card)
        components[f"{base}-infer-answer"] = schemas.infer_answer_schema(card)
        if card.name not in seen:
            seen.add(card.name)
            tags.append({"name": card.name, "description": f"A {card.signature.task} model."})
            paths |= _model_paths(card, base, version=None)
            paths |= _repository_paths(card)
        paths |= _model_paths(card, base, version=card.version)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Model endpoint",
            "version": __version__,
            "description": "Rows in, rows out under /predict; tensors in the Open Inference Protocol v2 "
            "under /v2.",
        },
        "tags": [*tags, {"name": "server", "description": "The endpoint itself."}],
        "paths": paths,
        "components": {"schemas": components, "responses": _error_responses()},
    }
    if secured:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "A key of the endpoint, or a token."}
        }
        document["security"] = [{"key": []}]
    return Reply(200, orjson.dumps(document))


def _ref(name: str) -> str:
    return f"#/components/schemas/{name}"


def _error_responses() -> dict[str, Any]:
    content = {_JSON: {"schema": {"$ref": _ref("Error")}}}
    responses: dict[str, Any] = {}
    for status, said in _ERRORS.items():
        responses[status] = {"description": said, "content": content}
    seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
    responses["429"]["headers"] = {"Retry-After": {"required": True, **seconds}}
    responses["503"]["headers"] = {"Retry-After": seconds}
    challenge = {"required": True, "schema": {"const": "Bearer"}}
    responses["401"]["headers"] = {"WWW-Authenticate": challenge}
    return responses


def _operation(
    name: str,
    summary: str,
    answer: Mapping[str, Any],
    *,
    tag: str = "server",
    errors: Iterable[str] = _READ,
    content_type: str = _JSON,
) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": "Done.", "content": {content_type: {"schema": dict(answer)}}}
    }
    responses |= {status: {"$ref": f"#/components/responses/{status}"} for status in errors}
    return {"operationId": name, "summary": summary, "tags": [tag], "responses": responses}


def _with_body(operation: dict[str, Any], content: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {**operation, "requestBody": {"required": required, "content": content}}


def _flag(name: str) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: {"type": "boolean"}}}


def _server_paths() -> dict[str, Any]:
    ready = _operation("ready", "Whether all that should be served is.", _flag("ready"), errors=())
    ready["responses"]["503"] = {
        "description": "Not yet.",
        "content": {_JSON: {"schema": {"anyOf": [_flag("ready"), {"$ref": _ref("Error")}]}}},
    }
    server = {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {"extensions": {"type": "array", "items": {"type": "string"}}},
    }
    entry = {
        "type": "object",
        "required": ["name", "version", "state", "reason"],
        "properties": {"state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]}},
    }
    index = _operation(
        "index", "Every version and how it stands.", {"type": "array", "items": entry}, errors=_WRITE
    )
    asked = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    text = {"type": "string"}
    return {
        "/v2/health/live": {
            "get": {
                **_operation("live", "Whether the process answers.", _flag("live"), errors=()),
                "security": [],
            }
        },
        "/v2/health/ready": {"get": {**ready, "security": []}},
        "/v2": {"get": _operation("server", "Name, version and extensions.", server)},
        "/v2/models/stats": {"get": _operation("stats", "What was counted of every version.", _STATS)},
        "/v2/repository/index": {"post": _with_body(index, {_JSON: {"schema": asked}}, required=False)},
        "/metrics": {
            "get": _operation("metrics", "Figures for Prometheus.", text, content_type="text/plain")
        },
    }


_STATS: dict[str, Any] = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {"model_stats": {"type": "array", "items": {"type": "object"}}},
}


def _repository_paths(card: Card) -> dict[str, Any]:
    parameters = {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    }
    body = {_JSON: {"schema": {"type": "object", "properties": {"parameters": parameters}}}}
    return {
        f"/v2/repository/models/{card.name}/{action}": {
            "post": _with_body(
                _operation(f"{card.name}-{action}", said, {}, tag=card.name, errors=_CHANGE),
                body,
                required=False,
            )
        }
        for action, said in (("load", "Load it into memory."), ("unload", "Take it out of memory."))
    }


def _model_paths(card: Card, base: str, *, version: str | None) -> dict[str, Any]:
    part, suffix = (card.name, "") if version is None else (f"{card.name}/versions/{version}", f"-{version}")
    which = "the released version" if version is None else f"version {version}"
    path, tag = f"/v2/models/{part}", card.name

    def read(action: str, said: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        return {"get": _operation(f"{tag}-{action}{suffix}", f"{said} of {which}.", answer, tag=tag)}

    metadata = {"type": "object", "required": ["name", "versions", "platform", "inputs", "outputs"]}
    ready = read("ready", "Readiness", {**_flag("ready"), "required": ["name", "ready"]})
    ready["get"]["responses"]["503"] = {
        "description": "Not ready.",
        "content": {_JSON: {"schema": {"anyOf": [_flag("ready"), {"$ref": _ref("Error")}]}}},
    }
    return {
        f"/predict/{part}": {"post": _predict(card, base, name=f"{tag}-predict{suffix}", which=which)},
        f"{path}/infer": {"post": _infer(card, base, name=f"{tag}-infer{suffix}", which=which)},
        path: read("metadata", "Inputs and outputs", metadata),
        f"{path}/ready": ready,
        f"{path}/config": read(
            "config", "Configuration", {"type": "object", "required": ["name", "max_batch_size"]}
        ),
        f"{path}/stats": read("statistics", "Counts", _STATS),
    }


def _predict(card: Card, base: str, *, name: str, which: str) -> dict[str, Any]:
    answer = {"$ref": _ref(f"{base}-rows-answer")}
    operation = _operation(name, f"Answer rows by {which}.", answer, tag=card.name, errors=_INFER)
    operation["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    table = {"type": "string", "description": "A line of column names, then a line per row."}
    content = {
        _JSON: {"schema": {"$ref": _ref(f"{base}-rows")}},
        "text/csv": {"schema": table, "example": schemas.example_csv(card.signature)},
    }
    return _with_body(operation, content, required=True)


def _infer(card: Card, base: str, *, name: str, which: str) -> dict[str, Any]:
    answer = {"$ref": _ref(f"{base}-infer-answer")}
    operation = _operation(name, f"Answer tensors by {which}.", answer, tag=card.name, errors=_INFER)
    binary = {
        "type": "string",
        "description": "JSON, then the bytes of tensors; the header Inference-Header-Content-Length says how "
        "many bytes are JSON.",
    }
    operation["responses"]["200"]["content"]["application/octet-stream"] = {"schema": binary}
    content = {
        _JSON: {"schema": {"$ref": _ref(f"{base}-infer")}},
        "application/octet-stream": {"schema": binary},
    }
    return _with_body(operation, content, required=True)
