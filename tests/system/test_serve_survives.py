"""An endpoint under load while its parts are killed, stopped, filled up and taken away.

The figures docs/how-to/serve-operate.md shows were measured with these; the bounds here are wide enough for a
busy machine and narrow enough to catch what used to go wrong.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kit.engines import open_engine
from kit.keypair import generate_key
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec
from tests.awaiting import await_true
from tests.system.load import Load, Tally, post

_logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 120
REPLICA, CONTROLLER, MANAGER, HAPROXY = "ServeReplica:kit", "ServeController", "HAProxyManager", "haproxy -db"
#: A process that Ray has started and nothing runs in.
WAITING = "ray::IDLE"
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
REDIS = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(REDIS is None, reason="apt-get install redis-server")
SLOW_BATCH_ROWS = 8
MEMORY_MB = 230

SETTINGS = """
[project]
name = "zoo"

[data]
path = "rows.parquet"
label = "y"
inputs = [{ name = "x", columns = ["x"], shape = [1] }]

[model]
factory = "model:build"

[serve.breaker]
open_s = 1.5
min_requests = 10

[serve.model.slow]
max_batch_rows = 8
"""
WITH_FALLBACK = """
[serve.model.root]
fallback = { y = -1 }
"""
WITH_REDIS = """
[serve.rates]
requests = "100000/second"
redis = "redis://127.0.0.1:%(port)d/0"

[serve.model.kept.cache]
redis = "redis://127.0.0.1:%(port)d/0"
"""
SIGNATURE = Signature(
    "regression",
    (TensorSpec("x", "float32", (-1, 1), columns=("x",)),),
    (TensorSpec("y", "float32", (-1, 1)),),
)


def graph(nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    made = helper.make_graph(
        nodes,
        "zoo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def times(factor: float) -> bytes:
    return graph([helper.make_node("Mul", ["x", "factor"], ["y"])], {"factor": np.float32(factor)})


def root() -> bytes:
    """A model that answers NaN below zero."""
    return graph([helper.make_node("Sqrt", ["x"], ["y"])], {})


def only_four_rows() -> bytes:
    """A model that answers its four golden rows together and raises for any other number of rows."""
    nodes = [
        helper.make_node("Reshape", ["x", "four"], ["rows"]),
        helper.make_node("Reshape", ["rows", "any"], ["y"]),
    ]
    return graph(nodes, {"four": np.array([4, 1]), "any": np.array([-1, 1])})


def slow() -> bytes:
    """A model that takes about 20 ms for one row as for eight: products that do not depend on the rows."""
    side, layers = 256, 56
    weights = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32) / np.float32(side**0.5)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "little"], ["shift"]),
        helper.make_node("Add", ["weights", "shift"], ["h0"]),  # not constant, or it would be folded away
    ]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "weights"], [f"a{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"a{layer}"], [f"h{layer + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"h{layers}"], ["last"], keepdims=0),
        helper.make_node("Mul", ["last", "nothing"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    little, nothing = np.float32(1e-6), np.float32(0)
    return graph(nodes, {"weights": weights, "little": little, "nothing": nothing})


def large(seed: int) -> bytes:
    """A model of 40 MB."""
    weights = np.random.default_rng(seed).normal(size=(8, 1_250_000)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMax", ["weights"], ["most"], keepdims=0),
        helper.make_node("Mul", ["x", "most"], ["y"]),
    ]
    return graph(nodes, {"weights": weights})


def add(project: Project, name: str, model: bytes, *, answers: Tensors | None = None) -> None:
    """Register a version; without ``answers`` its golden ones are the engine's."""
    number = len(list(project.folder.glob("*.onnx")))
    path = project.folder / f"{number}.onnx"
    path.write_bytes(model)
    rows = np.linspace(1, 4, 4, dtype=np.float32)[:, None]
    if answers is None:
        answers = open_engine(path, engine="onnxruntime", threads=1, signature=SIGNATURE).run({"x": rows})
    parts = Parts(
        name=name,
        onnx=model,
        program=None,
        signature=SIGNATURE,
        golden_inputs={"x": rows},
        golden_outputs=answers,
        profile={},
        steps=None,
        manifest={},
    )
    folder = project.folder / f"version-{number}"
    digest = write_model_version(parts, folder=folder, key=project.signing_key_path())
    project.registry().register(
        name, digest=digest, uri=project.store().put(folder, digest=digest), summary={}
    )
    project.registry().promote(f"{name}@1")


def make_project(folder: Path, *, more: str = "") -> Project:
    folder.mkdir(parents=True)
    (folder / "kit.toml").write_text(SETTINGS + more)
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    add(project, "double", times(2))
    add(project, "double", only_four_rows())
    add(project, "double", times(float("nan")), answers={"y": np.ones((4, 1), np.float32)})
    for name, model in (("root", root()), ("slow", slow()), ("kept", times(5))):
        add(project, name, model)
    return project


@dataclass
class Redis:
    """A redis-server of the test's own, at one port."""

    port: int
    folder: Path
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        assert REDIS is not None
        words = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen(
            [REDIS, "--port", str(self.port), *words], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert any("Ready to accept connections" in line for line in self.process.stdout)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


class Endpoint:
    """A running ``kit serve``, what runs below it, and a load on it."""

    def __init__(self, project: Project, *models: str, port: int, **flags: object) -> None:
        self.project, self.port = project, port
        self.url = f"http://127.0.0.1:{port}"
        flags |= {"project": project.folder, "port": port, "auth": "none"}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        self.errors = project.folder / f"serve-{time.time_ns()}.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kit", "serve", *models, *words],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        if " answers at " not in self.process.stdout.readline():
            self.process.wait(STOP_TIMEOUT_S)
            pytest.fail(f"the endpoint did not start: {self.errors.read_text()}")

    def find(self, words: str) -> list[int]:
        return [pid for pid, command in below(self.process.pid).items() if words in command]

    def await_replicas(self, count: int) -> None:
        """Wait until the proxy has so many replicas that live."""

        def known() -> bool:
            pids = self.find(HAPROXY)
            words = command(pids[0]).split() if pids else []
            text = Path(words[words.index("-f") + 1]).read_text() if "-f" in words else ""
            asked = re.findall(r"server SERVE_REPLICA\S+ unix@", text)  # at their own sockets
            return len(asked) == count == len(self.find(REPLICA))

        await_true(known)

    def kill(self, *words: str, number: signal.Signals = signal.SIGKILL) -> list[int]:
        pids = [pid for each in words for pid in self.find(each)]
        assert pids
        for pid in pids:
            os.kill(pid, number)
        return pids

    def load(self, model: str = "double", *, n_rows: int = 1, **more: object) -> Load:
        usual = {"connections": 8, "pause_s": 0.01} | more
        return Load(self.port, post(f"/v2/models/{model}/infer", body([1.0] * n_rows)), **usual)  # type: ignore[arg-type]  # by name

    def struck(self, blow: Callable[[], object], *, quiet_s: float, model: str = "double") -> Struck:
        """Do something to a loaded endpoint and wait until everything is answered again."""
        with self.load(model) as load:
            load.wait(1.0)
            since_s = time.monotonic()
            blow()
            recovered_s = load.until_quiet(quiet_s, since_s=since_s, timeout_s=60)
        found = Struck(load.tally.after(since_s), recovered_s, load.tally.silence_s(since_s))
        _logger.info("%s", found)
        return found

    def ask(self, model: str, value: float, *, timeout_s: float = 60) -> httpx.Response:
        path = f"{self.url}/v2/models/{model}/infer"
        return httpx.post(path, content=body([value]), timeout=timeout_s, trust_env=False)

    def release(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "kit", "release", *words, f"--project={self.project.folder}"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=STOP_TIMEOUT_S)


@dataclass(frozen=True)
class Struck:
    """What clients saw of a blow: what became of their requests, and for how long some or all failed."""

    tally: Tally
    recovered_s: float
    silence_s: float

    def __str__(self) -> str:
        share = f"{len(self.tally.bad)} failed ({self.tally.bad_share:.2%})"
        return (
            f"{share}, all well after {self.recovered_s:.2f} s, silent {self.silence_s:.2f} s: {self.tally}"
        )


def body(values: list[float]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": values}
    return json.dumps({"inputs": [tensor]}).encode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def below(pid: int) -> dict[int, str]:
    """Every process below one: pid to command."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: command(child) for child in found - {pid}}


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def gone(processes: dict[int, str]) -> None:
    await_true(lambda: not [pid for pid, text in processes.items() if text and command(pid) == text])


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(free_port(), tmp_path_factory.mktemp("redis"))
    if REDIS is not None:
        server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, redis: Redis) -> Iterator[Endpoint]:
    more = WITH_REDIS % {"port": redis.port} if REDIS is not None else ""
    project = make_project(tmp_path_factory.mktemp("survives") / "project", more=WITH_FALLBACK + more)
    endpoint = Endpoint(project, "double", "root", "slow", "kept", port=free_port(), replicas=2)
    yield endpoint
    endpoint.stop()


def test_a_killed_replica_costs_hardly_a_request_because_another_is_asked(endpoint: Endpoint) -> None:
    struck = endpoint.struck(lambda: os.kill(endpoint.find(REPLICA)[0], signal.SIGKILL), quiet_s=2)
    assert len(struck.tally.bad) <= 3
    assert struck.recovered_s < 20
    endpoint.await_replicas(2)


def test_a_replica_that_stands_still_holds_up_only_what_it_has(endpoint: Endpoint) -> None:
    endpoint.await_replicas(2)

    def stand_still() -> None:
        pid = endpoint.find(REPLICA)[0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    struck = endpoint.struck(stand_still, quiet_s=1)
    assert struck.tally.bad == []
    assert struck.silence_s < 2.5
    assert sum(reply.seconds > 2 for reply in struck.tally.replies) <= 8


def test_nobody_notices_that_the_controller_was_killed(endpoint: Endpoint) -> None:
    killed: list[int] = []
    struck = endpoint.struck(lambda: killed.extend(endpoint.kill(CONTROLLER)), quiet_s=3)
    assert struck.tally.bad == []
    await_true(lambda: set(endpoint.find(CONTROLLER)) - set(killed))


@pytest.mark.parametrize("part", [HAPROXY, MANAGER])
def test_a_killed_proxy_is_back_within_seconds_and_never_says_404(endpoint: Endpoint, part: str) -> None:
    struck = endpoint.struck(lambda: endpoint.kill(part), quiet_s=3)
    assert set(struck.tally.statuses) <= {200, 503}
    assert struck.recovered_s < 20  # 4 s on a quiet machine; Ray's own settings take 27 s


def test_with_all_replicas_killed_what_comes_waits_for_new_ones(endpoint: Endpoint) -> None:
    struck = endpoint.struck(lambda: endpoint.kill(REPLICA), quiet_s=2)
    assert set(struck.tally.statuses) <= {200, 503}
    assert struck.silence_s < 60
    endpoint.await_replicas(2)


@pytest.mark.parametrize("version", [2, 3], ids=["raises in warm-up", "answers NaN"])
def test_a_version_that_fails_its_own_samples_never_gets_traffic(endpoint: Endpoint, version: int) -> None:
    with endpoint.load() as load:
        code, said = endpoint.release("double", "set", str(version))
        code_back, said_back = endpoint.release("double", "rollback")
    assert load.tally.bad == []
    assert code != 0
    assert f"double@{version} could not be loaded" in said
    assert code_back == 0, said_back
    assert endpoint.ask("double", 1.0).headers["kit-version"] == "1"


def test_a_version_that_begins_to_answer_nan_is_replaced_until_it_is_well(endpoint: Endpoint) -> None:
    sick = [endpoint.ask("root", -1.0) for _ in range(60)]
    assert {reply.status_code for reply in sick} == {200}
    assert all(reply.json()["parameters"] == {"fallback": "constant"} for reply in sick)
    # Both breakers are open now: the version is not even asked what it could answer.
    assert endpoint.ask("root", 4.0).json()["outputs"][0]["data"] == [-1.0]
    in_a_row = 0

    def well() -> bool:
        nonlocal in_a_row
        right = endpoint.ask("root", 4.0).json()["outputs"][0]["data"] == [2.0]
        in_a_row = in_a_row + 1 if right else 0
        return in_a_row >= 20

    await_true(well)


@needs_redis
def test_a_redis_that_dies_stalls_and_returns_costs_no_request(endpoint: Endpoint, redis: Redis) -> None:
    dead = endpoint.struck(redis.kill, quiet_s=2, model="kept")
    returned = endpoint.struck(redis.start, quiet_s=2, model="kept")
    assert redis.process is not None
    stalled = endpoint.struck(lambda: os.kill(redis.process.pid, signal.SIGSTOP), quiet_s=2, model="kept")  # type: ignore[union-attr]  # it runs
    os.kill(redis.process.pid, signal.SIGCONT)
    for struck in (dead, returned, stalled):
        assert struck.tally.bad == []
        assert struck.silence_s < 2


def test_twice_the_capacity_is_answered_in_time_or_refused_and_memory_stays_flat(endpoint: Endpoint) -> None:
    with endpoint.load("slow", n_rows=SLOW_BATCH_ROWS, connections=16, pause_s=0) as load:
        load.wait(3)
    capacity = load.tally.statuses[200] / 3
    before_bytes = resident_bytes(endpoint)
    with endpoint.load("slow", n_rows=SLOW_BATCH_ROWS, connections=400, rate=2 * capacity, pause_s=0) as load:
        load.wait(10)
    grown_bytes = resident_bytes(endpoint) - before_bytes
    _logger.info("capacity %.0f/s, %s, %.1f MB grown", capacity, load.tally, grown_bytes / 1e6)
    assert set(load.tally.statuses) == {200, 429}
    assert not load.tally.failures
    assert load.tally.statuses[200] > 0.4 * capacity * 10
    assert load.tally.latency_s(0.99) < 5
    assert grown_bytes < 60e6


def resident_bytes(endpoint: Endpoint) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in endpoint.find(REPLICA)
    )


def test_sigterm_lets_what_is_in_work_be_answered_and_leaves_nothing(endpoint: Endpoint) -> None:
    processes = below(endpoint.process.pid)
    with endpoint.load("slow", n_rows=SLOW_BATCH_ROWS, connections=8, pause_s=0) as load:
        load.wait(1.5)
        endpoint.stop()
    _logger.info("%s", load.tally)
    assert load.tally.statuses[200] > 0
    assert set(load.tally.statuses) <= {200, 429}  # on a slow machine half a second's work is few rows
    assert set(load.tally.failures) == {"refused"}
    assert endpoint.process.returncode == 0
    gone(processes)


@pytest.fixture(scope="module")
def frugal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint that scales from none to two replicas, whose memory holds two of three large versions.

    One that was killed had its port before.
    """
    project = make_project(tmp_path_factory.mktemp("frugal") / "project")
    for seed in (1, 2, 3):
        add(project, "large", large(seed))
    port = free_port()
    first = Endpoint(project, "double", "slow", port=port)
    processes = below(first.process.pid)
    first.process.kill()
    first.process.communicate()
    scale = {"replicas": 0, "max_replicas": 2, "scale_down_s": 4, "target_in_flight": 4}
    endpoint = Endpoint(project, "large", "slow", port=port, memory_mb=MEMORY_MB, **scale)
    # Two of Ray's own outlive a killed driver by more than 30 s (2.60); they answer no client.
    agents = {pid for pid, text in processes.items() if text.startswith(RAY_AGENTS)}
    gone({pid: text for pid, text in processes.items() if pid not in agents})
    for pid in agents:
        if command(pid).startswith(RAY_AGENTS):
            os.kill(pid, signal.SIGKILL)
    yield endpoint
    endpoint.stop()


def test_after_sigkill_of_kit_serve_the_next_one_has_the_port(frugal: Endpoint) -> None:
    assert frugal.ask("slow", 1.0).status_code == 200
    assert frugal.ask("double", 1.0).status_code == 404


def test_of_three_versions_where_two_fit_the_one_without_traffic_leaves_for_the_one_asked(
    frugal: Endpoint,
) -> None:
    code, said = frugal.release("large", "set", "1=100", "2=0", "3=0")
    assert code == 0, said
    for version in ("2", "3", "2"):
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(frugal.ask, f"large/versions/{version}", 1.0) for _ in range(16)]
        assert {each.result().headers["kit-version"] for each in asked} == {version}
        await_true(partial(loaded, frugal, version))
    assert frugal.ask("large", 1.0).headers["kit-version"] == "1"


def loaded(endpoint: Endpoint, version: str) -> bool:
    """Whether this version of ``large`` and the one with traffic are in memory, by what the replicas say.

    It asks, because an endpoint that nobody asks has no replica for long.
    """
    endpoint.ask(f"large/versions/{version}", 1.0)
    folder = endpoint.project.state / "serve" / "replicas"
    acks = [json.loads(path.read_bytes()) for path in folder.glob("*.json")]
    living = endpoint.find(REPLICA)  # a killed endpoint's replicas have left theirs
    states = [ack["endpoints"]["large"]["states"] for ack in acks if ack["pid"] in living]
    return {"1", version} == {
        number for each in states for number, at in each.items() if at["status"] == "READY"
    }


def test_an_endpoint_without_replicas_answers_the_first_request(frugal: Endpoint) -> None:
    await_true(lambda: not frugal.find(REPLICA))
    await_true(lambda: frugal.find(WAITING))
    ready = frugal.find(WAITING)
    assert frugal.ask("large", 1.0).status_code == 200
    assert set(frugal.find(REPLICA)) & set(ready), "the replica began in a new process"


def test_a_second_replica_comes_under_load(frugal: Endpoint) -> None:
    with frugal.load("slow", connections=16, pause_s=0) as load:  # two batches: too few to be refused
        await_true(lambda: len(frugal.find(REPLICA)) == 2)
        load.wait(3)
    assert load.tally.bad == []


def test_a_ray_that_dies_ends_the_command_with_a_sentence(frugal: Endpoint) -> None:
    processes = below(frugal.process.pid)
    frugal.kill("/raylet/raylet ")
    frugal.process.wait(STOP_TIMEOUT_S)
    assert frugal.process.returncode == 7
    assert "Ray ended on this machine" in frugal.errors.read_text()
    # Two of Ray's own outlive it by more than 30 s (2.60); they answer no client.
    gone({pid: text for pid, text in processes.items() if not text.startswith(RAY_AGENTS)})
