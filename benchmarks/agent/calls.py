"""Calls of one bundle's interpreter, of the kit's runner and of the agent, taking turns."""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.agent.device import Device
from kit import golden
from kit.child import CODE_FOLDER
from kit.inference.asking import write_request
from kit.inference.body import write_json
from kit.runner import Runner
from kit.wire import encode_tensor

_STARTS = 7
_CALLS_S = 6.0


@contextlib.contextmanager
def agent(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent of a device until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edge.agent", "run", str(folder)], cwd=CODE_FOLDER, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def starts(folder: Path) -> dict[str, float]:
    """Time from starting the agent's process to its first answer; seconds."""
    message = _message(folder)
    taken = []
    for _ in range(_STARTS):
        began_s = time.perf_counter()
        with agent(folder):
            while True:
                with contextlib.suppress(OSError), _connected(folder) as client:
                    if b" 200 " in _asked(client, message)[:20]:
                        break
                time.sleep(0.002)
            taken.append(time.perf_counter() - began_s)
    return {"first_answer_s": statistics.median(taken), "slowest_s": max(taken)}


def running(folder: Path) -> dict[str, Any]:
    """Measure memory, and the time that the runner and the socket add to the interpreter's."""
    slot = Device(folder).open_slot(str(Device(folder).state().current)).folder
    runner = Runner.open(slot, threads=1)
    row = _row(slot)
    found: dict[str, Any] = {}
    bare = _bare(slot, runner, row)
    inside = _in_turns(
        {"interpreter": bare, "by hand": lambda: _by_hand(bare()), "runner": lambda: runner.run(row)}
    )
    found["in_process_us"] = _medians(inside)
    for name in ("interpreter", "by hand"):
        found[f"runner over {name}"] = _median(inside["runner"]) / _median(inside[name]) - 1
    for name, is_binary in (("JSON", False), ("bytes", True)):
        message = _message(folder, binary=is_binary)
        with agent(folder), _patiently(folder) as client:
            taken = _in_turns(
                {
                    "runner": lambda: runner.run(row),
                    f"socket, {name}": lambda client=client, message=message: _asked(client, message),
                }
            )
        found[f"socket_{name}_us"] = _medians(taken)
        added = [theirs - ours for ours, theirs in zip(*taken.values(), strict=True)]
        found[f"added by the socket, {name}, ms"] = _median(added) * 1e3
    return found


def _bare(slot: Path, runner: Runner, row: dict[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """Give what calls the interpreter with the input as it takes it."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(slot / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (answered,) = interpreter.get_input_details(), interpreter.get_output_details()
    tensors = runner.signature.validate(row)
    features = next(iter((runner.steps.apply(tensors) if runner.steps is not None else tensors).values()))
    values = np.ascontiguousarray(features.reshape(given["shape"]), dtype=given["dtype"])

    def call() -> np.ndarray:
        interpreter.set_tensor(given["index"], values)
        interpreter.invoke()
        output: np.ndarray = interpreter.get_tensor(answered["index"])
        return output

    return call


def _in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    for call in calls.values():
        for _ in range(20):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end_s = time.perf_counter() + _CALLS_S
    while time.perf_counter() < end_s:
        for name, call in calls.items():
            began_s = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began_s)
    return taken


def _by_hand(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Make of the interpreter's output what a caller wants of a classifier, unchecked."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "label": logits.argmax(axis=1),
        "probabilities": powers / powers.sum(axis=1, keepdims=True),
        "logits": logits,
    }


def _medians(taken: dict[str, list[float]]) -> dict[str, float]:
    return {name: _median(each) * 1e6 for name, each in taken.items()}


def _median(taken: list[float]) -> float:
    return statistics.median(taken)


def _row(slot: Path) -> dict[str, np.ndarray]:
    return {name: array[:1] for name, array in golden.read_tensors(slot / "golden" / "inputs.npz").items()}


def _message(folder: Path, *, binary: bool = False) -> bytes:
    slot = Device(folder).open_slot(str(Device(folder).state().current))
    row, headers = _row(slot.folder), b""
    if binary:
        body, length = write_request(row)
        headers = b"inference-header-content-length: %d\r\n" % length
    else:
        entries = [encode_tensor(spec, row[spec.name]) for spec in slot.signature.inputs]
        plain = [{**each, "data": np.asarray(each["data"]).tolist()} for each in entries]
        body = write_json({"inputs": plain})
    path = f"/v2/models/{slot.manifest['name']}/infer".encode()
    head = b"POST %s HTTP/1.1\r\nhost: device\r\n%scontent-length: %d\r\n\r\n"
    return head % (path, headers, len(body)) + body


def _connected(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    try:
        client.connect(str(folder / "run" / "agent.sock"))
    except OSError:
        client.close()
        raise
    return client


def _patiently(folder: Path) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):
            return _connected(folder)
        time.sleep(0.01)


def _asked(client: socket.socket, message: bytes) -> bytes:
    client.sendall(message)
    data = client.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(1 << 16)
    return data
