"""What is asked, as bytes, and whether the answer is right: nobody is measured who answers wrongly."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from subjects import CLASSES, Subject

_TOLERANCE = 1e-5
_TIMEOUT_S = 60.0
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Request:
    """A request of one row.

    Attributes:
        body: Its bytes.
        headers: Beside the length.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)

    def file(self, folder: Path, name: str) -> Path:
        """Write the body for wrk, and say where."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(self.body)
        return path

    def http(self, path: str) -> bytes:
        """Write it as HTTP/1.1, for who speaks it on a bare socket."""
        lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body


def protocol_json(row: np.ndarray, *, headers: Mapping[str, str] | None = None) -> Request:
    """Ask in the Open Inference Protocol's JSON; ``row`` has the shape (1, ...)."""
    return Request(_protocol_body(row.reshape(-1), row.shape), {**JSON, **(headers or {})})


def fresh_json(row: np.ndarray) -> Request:
    """Ask in the protocol's JSON with ``@@`` in the place of the first number."""
    body = _protocol_body(row.reshape(-1)[1:], row.shape)
    return Request(body.replace(b'"data":[', b'"data":[@@,'))


def natural_json(row: np.ndarray) -> Request:
    """Ask with ``{"x": rows}``."""
    return Request(orjson.dumps({"x": row}, option=_NUMPY))


def protocol_binary(row: np.ndarray) -> Request:
    """Ask with the protocol's binary tensors, in both directions."""
    size = {"binary_data_size": row.nbytes}
    tensor = {"name": "x", "datatype": "FP32", "shape": list(row.shape), "parameters": size}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return Request(head + row.tobytes(), headers)


def post(port: int, path: str, request: Request) -> tuple[int, dict[str, str], bytes]:
    """Ask once on a connection of its own; gives status, headers in lower case and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", path, request.body, dict(request.headers))
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()
    finally:
        connection.close()


def answers(port: int, path: str, request: Request) -> bool:
    """Say whether it answers 200 by now."""
    try:
        return post(port, path, request)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def wrong(status: int, body: bytes, *, row: np.ndarray, subject: Subject) -> str | None:
    """Say what is wrong with the JSON answer to a row; None when it is right."""
    if status != 200:
        return f"status {status}: {body[:300]!r}"
    label, probabilities = subject.answers(row)
    given_label, given = _read(json.loads(body))
    if given_label not in (int(label[0]), CLASSES[int(label[0])]):
        return f"label {given_label!r} instead of {int(label[0])}"
    if len(given) != len(CLASSES) or np.abs(np.array(given) - probabilities[0]).max() > _TOLERANCE:
        return f"probabilities {given} instead of {probabilities[0].tolist()}"
    return None


def _protocol_body(flat: np.ndarray, shape: tuple[int, ...]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(shape), "data": np.ascontiguousarray(flat)}
    return orjson.dumps({"inputs": [tensor]}, option=_NUMPY)


def _read(answer: dict[str, Any]) -> tuple[Any, list[float]]:
    """Take label and probabilities of the one row from either form of an answer."""
    if "outputs" not in answer:
        return answer["label"][0], answer["probabilities"][0]
    data = {each["name"]: each["data"] for each in answer["outputs"]}
    return np.ravel(np.array(data["label"], object))[0], np.ravel(data["probabilities"]).tolist()
