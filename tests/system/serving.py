"""The process of a tested endpoint, clients of it, and what else runs and listens because of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from kit.project import Project
from kit.settings.serving import ReleaseSettings
from kit.tensors import Tensors
from kit.wire import decode_tensor
from serve.grpc import inference_pb2 as pb
from serve.releases.command import ReleaseResult
from serve.releases.command import release as run_release
from tests.system.served_models import ONE_ROW, SIGNATURE

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 120
INFER = "/v2/models/tiny/infer"


def body(rows: np.ndarray = ONE_ROW, **more: Any) -> dict[str, Any]:
    """Write rows as the protocol's JSON."""
    return {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.tolist()}],
        **more,
    }


def binary_body(rows: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Write rows as a binary tensor and ask for binary answers; gives the body and its headers."""
    data = rows.tobytes()
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {
        "inference-header-content-length": str(len(head)),
        "content-type": "application/octet-stream",
    }


def tensors_of(answer: httpx.Response) -> Tensors:
    """Read an answer of either form."""
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    head, tail = json.loads(answer.content[:length]), answer.content[length:]
    specs = {spec.name: spec for spec in SIGNATURE.outputs}
    found: Tensors = {}
    for each in head["outputs"]:
        spec = specs[each["name"]]
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[spec.name] = decode_tensor(spec, each, kind="output")
        else:
            found[spec.name] = np.frombuffer(tail[:size], dtype=spec.dtype).reshape(each["shape"])
            tail = tail[size:]
    return found


def assert_equal_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Hold two answers against each other, bit for bit."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name


def free_port() -> int:
    """Find a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kit(project: Project, *words: str, code: int = 0, timeout_s: float = START_TIMEOUT_S) -> str:
    """Run a command of the kit in a process of its own; gives what it printed, both streams."""
    process = subprocess.run(
        [sys.executable, "-m", "kit", *words, f"--project={project.folder}"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    return process.stdout + process.stderr


@dataclass
class Served:
    """A running ``kit serve`` and how to ask it."""

    project: Project
    process: subprocess.Popen[str]
    errors: Path
    port: int
    grpc_port: int
    cert: Path | None = None
    key: str | None = None
    stopped: bool = False
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=str(self.cert)) if self.cert else True
        self.client = httpx.Client(base_url=self.url, timeout=20, trust_env=False, verify=context)

    @property
    def url(self) -> str:
        return f"{'https' if self.cert else 'http'}://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        return self.project.state / "serve"

    def request(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "own",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """Ask; ``own`` is the endpoint's key, None sends none."""
        given = self.key if key == "own" else key
        bearer = {"authorization": f"Bearer {given}"} if given else {}
        return self.client.request(method, path, headers={**bearer, **(headers or {})}, **more)

    def infer(self, rows: np.ndarray = ONE_ROW, *, model: str = "tiny", **more: Any) -> httpx.Response:
        """Ask for predictions in JSON."""
        return self.request("POST", f"/v2/models/{model}/infer", json=body(rows), **more)

    def call(self, method: str, message: Any, *, key: str | None = "own", timeout_s: float = 20) -> Any:
        """Ask over gRPC."""
        given = self.key if key == "own" else key
        target = f"127.0.0.1:{self.grpc_port}"
        if self.cert is not None:
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(self.cert.read_bytes()))
        else:
            channel = grpc.insecure_channel(target)
        with channel:
            ask = channel.unary_unary(
                f"/inference.GRPCInferenceService/{method}",
                request_serializer=type(message).SerializeToString,
                response_deserializer=getattr(pb, f"{method}Response").FromString,
            )
            return ask(
                message, metadata=[("authorization", f"Bearer {given}")] if given else [], timeout=timeout_s
            )

    def release(
        self, action: str = "show", *weights: str, endpoint: str = "tiny", **more: Any
    ) -> ReleaseResult:
        """Do what ``kit release`` does, in this process."""
        return run_release(
            self.project, ReleaseSettings(endpoint=endpoint, action=action, weights=weights, **more)
        )

    def logged(self) -> Iterator[dict[str, Any]]:
        """Read the request logs of all replicas."""
        for path in sorted((self.state / "log").glob("*.jsonl")):
            for line in path.read_text().splitlines():
                yield json.loads(line)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send a signal, wait for the end, and give what was printed on both streams until then."""
        self.client.close()
        self.stopped = True
        if self.process.poll() is None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=STOP_TIMEOUT_S)
        said = output + self.errors.read_text()
        assert self.process.returncode == 0, said
        return said


def grpc_request(rows: np.ndarray, *, model: str = "tiny") -> Any:
    """Write rows as a gRPC message."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    return message


def start(
    project: Project,
    *models: str,
    cert: tuple[Path, Path] | None = None,
    with_grpc: bool = True,
    **flags: object,
) -> Served:
    """Run ``kit serve`` on free ports and wait until it answers."""
    port, grpc_port = free_port(), free_port()
    flags |= {"port": port, **({"grpc_port": grpc_port} if with_grpc else {})}
    if cert is not None:
        flags |= {"tls_cert": cert[0], "tls_key": cert[1]}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    errors = project.folder / f"serve-{port}.err"
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "kit", "serve", *models, f"--project={project.folder}", *words],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    assert process.stdout is not None
    if " answers at " not in process.stdout.readline():
        process.wait(timeout=STOP_TIMEOUT_S)
        pytest.fail(f"the endpoint did not start: {errors.read_text()}")
    key = None if flags.get("auth") == "none" else (project.state / "serve" / "key").read_text().strip()
    return Served(project, process, errors, port, grpc_port, cert[0] if cert else None, key)


@contextmanager
def serving(project: Project, *models: str, **more: Any) -> Iterator[Served]:
    """Have an endpoint while the block runs."""
    endpoint = start(project, *models, **more)
    try:
        yield endpoint
    finally:
        if not endpoint.stopped:
            endpoint.stop()


def descendants(pid: int) -> dict[int, str]:
    """Every process below one, by its chain of parents: pid to command."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return {child: command(child) for child in found - {pid}}
        found |= more


def command(pid: int) -> str:
    """Give a process's command line; "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def alive(processes: Mapping[int, str]) -> dict[int, str]:
    """Which of some processes are still there after at most ten seconds."""
    deadline_s = time.monotonic() + 10
    left = dict(processes)
    while left and time.monotonic() < deadline_s:
        left = {pid: text for pid, text in left.items() if text and command(pid) == text}
    return left


def listening(pids: Mapping[int, str]) -> list[tuple[str, int]]:
    """Where processes listen: an address that reaches it from here, and the port."""
    inodes = set()
    for pid in pids:
        try:
            names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # it has ended meanwhile
            continue
        inodes |= {name[8:-1] for name in names if name.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] != "0A" or fields[9] not in inodes:
                continue
            address, _, port = fields[1].partition(":")
            shown = (
                "127.0.0.1" if set(address) == {"0"} else socket.inet_ntoa(bytes.fromhex(address[-8:])[::-1])
            )
            everywhere = set(address) == {"0"}
            found.add(("0.0.0.0" if everywhere else shown, int(port, 16)))
    return sorted(found)


def replica_ports(pid: int) -> list[int]:
    """Ports from 30000 to 31000 that a process of the endpoint listens on: the replicas' own."""
    return sorted({port for _, port in listening(descendants(pid)) if 30000 <= port <= 31000})
