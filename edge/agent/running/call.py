"""Ask the device's model from Python: ``connect(folder).predict(rows)``.

Talks to the agent over its Unix socket, in the protocol that the API speaks, so it needs no more rights than
the socket asks for, and the model runs in the agent's care. One connection, kept open; an agent that was
started anew or switched to another bundle is found again by itself.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from edge.agent.rows import answer_rows
from edge.agent.running.api import short_path
from kit.errors import NotFoundError, UnavailableError
from kit.inference.asking import read_answer, write_request
from kit.inference.card import Reply
from kit.inference.failures import read_error
from kit.signature import Signature
from kit.tensors import ClassName, Tensors, TensorSpec
from kit.wire import dtype_of

SOCKET = Path("run") / "agent.sock"
"""Where the agent listens, in its device folder."""

_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16


class Model:
    """The model that a device's agent runs; any thread may ask it.

    Args:
        path: The agent's socket.
        timeout_s: Longest wait for an answer.
    """

    def __init__(self, path: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._signature: Signature | None = None
        self._classes: tuple[ClassName, ...] = ()
        self.name = ""
        self.version = ""
        self.digest = ""
        with self._lock:
            self._describe()

    @overload
    def predict(self, asked: Mapping[str, np.ndarray]) -> Tensors:
        """Answer tensors."""

    @overload
    def predict(self, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer rows."""

    def predict(
        self, asked: Mapping[str, np.ndarray] | Sequence[Mapping[str, Any]]
    ) -> Tensors | list[dict[str, Any]]:
        """Answer rows or tensors.

        Args:
            asked: Rows, one object each, column name to value; or tensors by input name, shape
                (n_rows, ...).

        Returns:
            For rows one object each: ``label`` and ``probabilities``, or ``value``. For tensors every output
            by name, as the model said it, to the bit.

        Raises:
            InputError: A value breaks the model's signature.
            ModelError: The model failed on these rows.
            UnavailableError: No agent or no model answers.
        """
        with self._lock:
            try:
                return self._predict(asked)
            except NotFoundError:  # another bundle runs by now, under another name
                self._describe()
                return self._predict(asked)

    def close(self) -> None:
        """Close the connection; the next call opens one."""
        with self._lock:
            self._close()

    def _predict(
        self, asked: Mapping[str, np.ndarray] | Sequence[Mapping[str, Any]]
    ) -> Tensors | list[dict[str, Any]]:
        assert self._signature is not None
        if isinstance(asked, Mapping):
            return self._infer(asked)
        if not asked:
            return []
        answers = self._infer(self._signature.from_rows(asked))
        return list(answer_rows(answers, classes=self._classes))

    def _infer(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        body, length = write_request(tensors)
        headers = b"inference-header-content-length: %d\r\n" % length
        reply = self._request(b"POST", f"/v2/models/{self.name}/infer", headers=headers, body=body)
        return read_answer(reply)

    def _describe(self) -> None:
        """Ask which model runs and what it reads."""
        index = self._get(b"POST", "/v2/repository/index")
        if not index:
            raise UnavailableError("the device runs no model", hint="flash a bundle onto it with `kit flash`")
        value = self._get(b"GET", f"/v2/models/{index[0]['name']}")
        self.name, self.version = value["name"], value["versions"][0]
        about = value["parameters"]
        self.digest, self._classes = about["digest"], tuple(about["classes"])
        self._signature = Signature(
            about["task"],
            tuple(_spec(each) for each in value["inputs"]),
            tuple(_spec(each) for each in value["outputs"]),
        )

    def _get(self, method: bytes, path: str) -> Any:
        reply = self._request(method, path)
        if reply.status != 200:
            raise read_error(reply)
        return json.loads(reply.body)

    def _request(self, method: bytes, path: str, *, headers: bytes = b"", body: bytes = b"") -> Reply:
        head = b"%s %s HTTP/1.1\r\nhost: device\r\n%scontent-length: %d\r\n\r\n"
        message = head % (method, path.encode(), headers, len(body)) + body
        reused = self._socket is not None
        try:
            return self._exchange(message)
        except OSError as error:
            self._close()
            if not reused or isinstance(error, socket.timeout):
                raise self._unavailable(error) from error
        try:  # what was kept open was another agent's, or it got tired of waiting
            return self._exchange(message)
        except OSError as error:
            self._close()
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError(
            f"the agent does not answer at {self._path}: {error.strerror or error}",
            hint=f"start it: python -m edge.agent run {self._path.parent.parent}",
        )

    def _exchange(self, message: bytes) -> Reply:
        if self._socket is None:
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            opened.settimeout(self._timeout_s)
            try:
                with short_path(self._path) as name:
                    opened.connect(name)
            except BaseException:
                opened.close()
                raise
            self._socket = opened
        self._socket.sendall(message)
        return self._receive(self._socket)

    def _receive(self, opened: socket.socket) -> Reply:
        data = b""
        while b"\r\n\r\n" not in data:
            data += _some(opened)
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        pairs = (line.partition(b":") for line in lines)
        headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
        known = dict(headers)
        length = int(known[b"content-length"])
        parts, n_bytes = [body], len(body)
        while n_bytes < length:
            parts.append(_some(opened))
            n_bytes += len(parts[-1])
        if known.get(b"connection") == b"close":
            self._close()
        return Reply(int(first.split(b" ")[1]), b"".join(parts), headers)

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None


def connect(folder: Path | str, *, timeout_s: float = _TIMEOUT_S) -> Model:
    """Connect to the agent of a device folder on this machine.

    Args:
        folder: The device folder.
        timeout_s: Longest wait for an answer.

    Raises:
        UnavailableError: No agent runs there, or it runs no model.
    """
    return Model(Path(folder) / SOCKET, timeout_s=timeout_s)


def _some(opened: socket.socket) -> bytes:
    data = opened.recv(_CHUNK_BYTES)
    if not data:
        raise ConnectionResetError("the agent has closed the connection")
    return data


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    facts = value["parameters"]
    return TensorSpec(
        value["name"],
        dtype_of(value["datatype"]),
        tuple(value["shape"]),
        columns=tuple(facts.get("columns", ())),
        nullable=bool(facts.get("nullable", False)),
        minimum=facts.get("minimum"),
        maximum=facts.get("maximum"),
    )
