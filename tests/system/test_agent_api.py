"""Rules of the local API: what an endpoint answers to a request, a device answers, too; and who may ask."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge.agent
from edge.agent.running.api import Api, make_key
from edge.agent.running.call import SOCKET
from edge.agent.running.inbox import Inbox
from edge.agent.running.limits import Limits
from edge.agent.running.supervisor import Supervisor
from edge.agent.telemetry.latencies import Latencies
from kit.errors import InputError, KitError, ModelError, UnavailableError
from kit.inference.card import Card
from kit.inference.finite import float_outputs, only_finite
from kit.runner import Runner
from serve.protocol import encode_answer, encode_error, parse_infer
from serve.protocol.body import read_json, write_json
from tests.awaiting import await_true
from tests.system.misbehaving import model

MAX_BODY_BYTES = 50_000
KEY = "k" * 40


class UnixConnection(http.client.HTTPConnection):
    """The standard library's client, on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("device", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@dataclass
class Device:
    """A device that answers, and what an endpoint would answer in its place."""

    folder: Path
    supervisor: Supervisor
    api: Api
    latencies: Latencies
    runner: Runner
    card: Card

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
        connection = UnixConnection(self.folder / SOCKET)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body or None, headers=named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def expected(self, body: bytes, *, header_length: int | None = None) -> tuple[int, bytes]:
        """Answer with the endpoint's own code."""
        run = only_finite(self.runner.run_validated, outputs=float_outputs(self.card.signature))
        try:
            raw = parse_infer(body, read=read_json, header_length=header_length)
            request = raw.decode(self.card.signature)
            reply = encode_answer(request, self.card, run(request.inputs), write=write_json)
        except KitError as error:
            reply = encode_error(error)
        return reply.status, reply.body


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    from kit import keypair
    from tests.conftest import BundleMaker

    home = tmp_path_factory.mktemp("api")
    key = home / "signing" / "signing.pem"
    keypair.generate_key(key)
    bundle = BundleMaker(home / "bundles", key).make(network=model("nan"), release=7)
    folder = home / "device"
    (folder / "keys").mkdir(parents=True)
    shutil.copyfile(key.with_suffix(".pub"), folder / "keys" / "signing.pub")
    shutil.copytree(bundle.folder, folder / "slots" / bundle.digest)
    supervisor = Supervisor(folder, limits=Limits(max_wrong=1.0))
    supervisor.start(bundle.digest)
    latencies = Latencies()
    api = Api(supervisor, latencies=latencies, max_body_bytes=MAX_BODY_BYTES)
    api.listen_at(folder / SOCKET)
    runner = Runner.open(folder / "slots" / bundle.digest, threads=1)
    card = Card("shapes", 7, bundle.digest, "onnxruntime", runner.signature)
    yield Device(folder, supervisor, api, latencies, runner, card)
    api.close()
    supervisor.stop()


def tensor(rows: list[list[Any]], **more: Any) -> dict[str, Any]:
    return {"name": "features", "datatype": "FP32", "shape": [len(rows), 2], "data": rows, **more}


def request(**more: Any) -> bytes:
    return json.dumps({"inputs": [tensor([[1.0, 0.25], [-3.3333333, 1e-7]])], **more}).encode()


BODIES: dict[str, bytes] = {
    "two rows": request(),
    "flat": json.dumps({"inputs": [tensor([[1, 2]]) | {"data": [1, 2]}]}).encode(),
    "an id and a choice": request(id="a:b\u00e4", outputs=[{"name": "logits"}], parameters={"user": "u"}),
    "binary output": request(parameters={"binary_data_output": True}),
    "nan from the model": json.dumps({"inputs": [tensor([[9.0, 0.0]])]}).encode(),
    "a missing value": json.dumps({"inputs": [tensor([[None, 0.0]])]}).encode(),
    "a wrong shape": json.dumps({"inputs": [tensor([[1.0, 2.0]]) | {"shape": [1, 3]}]}).encode(),
    "a wrong datatype": json.dumps({"inputs": [tensor([[1.0, 2.0]]) | {"datatype": "FP64"}]}).encode(),
    "a wrong name": json.dumps({"inputs": [tensor([[1.0, 2.0]]) | {"name": "feature"}]}).encode(),
    "text": json.dumps({"inputs": [tensor([["a", 2.0]])]}).encode(),
    "truth": json.dumps({"inputs": [tensor([[True, 2.0]])]}).encode(),
    "too large a number": b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,2],"data":[1e39,0]}]}',
    "a key twice": b'{"inputs":[],"inputs":[]}',
    "an unknown key": request(input=1),
    "no inputs": b"{}",
    "no object": b"[]",
    "an unknown output": request(outputs=[{"name": "logit"}]),
    "a long id": request(id="x" * 300),
    "a parameter that is none": request(parameters={"a": [1]}),
    "shared memory": json.dumps(
        {"inputs": [tensor([[1.0, 2.0]], parameters={"shared_memory_region": "r"})]}
    ).encode(),
    "no time": request(parameters={"timeout": -1}),
}
NOT_JSON: dict[str, bytes] = {
    "cut": b'{"inputs": [',
    "NaN": request().replace(b"1.0", b"NaN"),
    "no UTF-8": b'{"inputs": "\xff"}',
    "half a character": b'{"inputs": [], "id": "\\ud800"}',
    "empty": b"",
    "two values": b"{} {}",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_device_answers_as_an_endpoint_does(name: str, device: Device) -> None:
    body = BODIES[name]
    status, headers, found = device.ask("POST", "/v2/models/shapes/infer", body)
    expected_status, expected = device.expected(body)
    assert status == expected_status
    if "inference-header-content-length" in headers:
        assert found == expected
    else:
        assert headers["content-type"] == "application/json"
        assert json.loads(found) == json.loads(expected)
    assert device.ask("POST", "/v2/models/shapes/versions/7/infer", body)[2] == found


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_no_json_is_refused_alike(name: str, device: Device) -> None:
    body = NOT_JSON[name][:MAX_BODY_BYTES]
    status, _, found = device.ask("POST", "/v2/models/shapes/infer", body)
    expected_status, expected = device.expected(body)
    assert status == expected_status == 400
    said = "the body is not valid JSON"
    assert json.loads(found)["error"].startswith(said)
    assert json.loads(expected)["error"].startswith(said)


def test_tensors_as_bytes_are_answered_as_bytes(device: Device) -> None:
    values = np.array([[1.0, 0.25], [-2.0, 4.0]], dtype=np.float32).tobytes()
    entry = {"name": "features", "datatype": "FP32", "shape": [2, 2]}
    header = {"inputs": [{**entry, "parameters": {"binary_data_size": len(values)}}]}
    said = json.dumps({**header, "parameters": {"binary_data_output": True}}).encode()
    status, headers, found = device.ask(
        "POST", "/v2/models/shapes/infer", said + values, inference_header_content_length=str(len(said))
    )
    assert (status, found) == device.expected(said + values, header_length=len(said))
    assert headers["content-type"] == "application/octet-stream"


def test_packed_bodies_are_read_and_answers_packed_for_who_asks(device: Device) -> None:
    rows = json.dumps({"inputs": [tensor([[1.0, 0.5]] * 200)]}).encode()
    plain = device.ask("POST", "/v2/models/shapes/infer", rows)[2]
    status, headers, found = device.ask(
        "POST",
        "/v2/models/shapes/infer",
        gzip.compress(rows),
        content_encoding="gzip",
        accept_encoding="gzip",
    )
    assert (status, headers["content-encoding"], gzip.decompress(found)) == (200, "gzip", plain)
    bomb = gzip.compress(bytes(10 * MAX_BODY_BYTES))
    assert device.ask("POST", "/v2/models/shapes/infer", bomb, content_encoding="gzip")[0] == 413


def test_a_device_says_what_it_is_and_how_it_is(device: Device) -> None:
    assert device.ask("GET", "/v2/health/live")[::2] == (200, b'{"live":true}')
    assert device.ask("GET", "/v2/health/ready")[::2] == (200, b'{"ready":true}')
    assert json.loads(device.ask("GET", "/v2")[2])["name"] == "kit"
    assert json.loads(device.ask("GET", "/v2/models/shapes/ready")[2]) == {"name": "shapes", "ready": True}
    index = json.loads(device.ask("POST", "/v2/repository/index")[2])
    assert index == [{"name": "shapes", "version": "7", "state": "READY", "reason": ""}]
    found = json.loads(device.ask("GET", "/v2/models/shapes/versions/7")[2])
    assert (found["versions"], found["parameters"]["digest"]) == (["7"], device.card.digest)
    assert found["inputs"][0]["parameters"]["columns"] == ["width", "height"]


@pytest.mark.parametrize(
    "method, path, status, said",
    [
        ("GET", "/v2/models/shape", 404, "model 'shape' is not served here; did you mean 'shapes'"),
        ("POST", "/v2/models/shapes/versions/6/infer", 404, "version '6' of model 'shapes' is not served"),
        ("GET", "/v2/models/shapes/infer", 405, "GET is not possible"),
        ("GET", "/v2/modles", 404, "there is nothing at '/v2/modles'"),
        ("GET", "/docs", 404, "is not answered on a device"),
        ("POST", "/v2/repository/models/shapes/load", 404, "is not answered on a device"),
    ],
)
def test_what_is_not_there_is_named(method: str, path: str, status: int, said: str, device: Device) -> None:
    found = device.ask(method, path, b"{}" if method == "POST" else b"")
    assert (found[0], said in json.loads(found[2])["error"]) == (status, True), found


def test_a_connection_is_kept_and_head_has_no_body(device: Device) -> None:
    connection = UnixConnection(device.folder / SOCKET)
    for _ in range(3):
        connection.request("POST", "/v2/models/shapes/infer", body=BODIES["two rows"])
        first = connection.sock
        assert connection.getresponse().read()
        connection.request("HEAD", "/v2/health/ready")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["content-length"], answer.read()) == (200, "14", b"")
        assert connection.sock is first
    connection.request(
        "POST", "/v2/models/shapes/infer", body=iter([b'{"inp', b'uts": []}']), encode_chunked=True
    )
    assert json.loads(connection.getresponse().read())["error"].startswith("'inputs' must be a list")
    connection.request("GET", "/v2/health/live", headers={"connection": "close"})
    assert connection.getresponse().read() == b'{"live":true}'
    assert connection.sock is None


@pytest.mark.parametrize(
    "sent, status",
    [
        (b"HELLO\r\n\r\n", 400),
        (b"GET /v2 HTTP/2.0\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nx y: 1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"POST /v2 HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"GET /" + b"x" * 20_000, 400),
        (b"GET /v2/models/%ff%00 HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_closed(
    sent: bytes, status: int, device: Device
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(device.folder / SOCKET))
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        found = b""
        while data := client.recv(65536):
            found += data
    assert found.startswith(b"HTTP/1.1 %d " % status)
    assert b'{"error":' in found


def test_many_may_ask_at_once(device: Device) -> None:
    found: list[int] = []

    def ask() -> None:
        for _ in range(20):
            found.append(device.ask("POST", "/v2/models/shapes/infer", BODIES["two rows"])[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 160


def test_the_socket_is_for_the_agents_user_and_group_alone(device: Device) -> None:
    facts = os.stat(device.folder / SOCKET)
    assert stat.S_ISSOCK(facts.st_mode)
    assert stat.S_IMODE(facts.st_mode) == 0o660
    assert stat.S_IMODE(os.stat(device.folder / "run").st_mode) == 0o750


def test_http_is_for_the_loopback_and_asks_for_a_key(device: Device, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.4", "localhost"):
        with pytest.raises(InputError, match="not an address of this machine alone"):
            device.api.listen_on(host, 0, key=KEY)
    port = device.api.listen_on("127.0.0.1", 0, key=KEY)

    def ask(path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    assert ask("/v2/health/ready") == 200
    assert ask("/v2/models/shapes") == 401
    assert ask("/v2/models/shapes", authorization="Bearer wrong") == 401
    assert ask("/v2/models/shapes", authorization=f"Bearer {KEY}") == 200
    with pytest.raises(UnavailableError, match=f"port {port}"):
        device.api.listen_on("127.0.0.1", port, key=KEY)
    key = make_key(tmp_path / "http.key")
    assert (make_key(tmp_path / "http.key"), len(key) >= 32) == (key, True)
    assert stat.S_IMODE(os.stat(tmp_path / "http.key").st_mode) == 0o640


def test_a_deep_folder_has_a_socket_too(device: Device, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20) / ("er" * 30)
    deep.mkdir(parents=True)
    device.api.listen_at(deep / SOCKET)
    assert edge.agent.connect(deep).digest == device.card.digest


def test_python_gets_rows_named_and_tensors_to_the_bit(device: Device) -> None:
    asked = edge.agent.connect(device.folder)
    assert (asked.name, asked.version, asked.digest) == ("shapes", "7", device.card.digest)
    rows = [{"width": 1.0, "height": 0.0}, {"width": 0, "height": 1, "more": "ignored"}]
    found = asked.predict(rows)
    assert [each["label"] for each in found] == ["low", "high"]
    assert asked.predict([]) == []
    tensors = {"features": np.array([[1, 0], [0, 1]], dtype=np.float32)}
    expected = device.runner.run(tensors)
    for name, array in asked.predict(tensors).items():
        assert array.tobytes() == expected[name].tobytes()
    assert [list(map(np.float32, each["probabilities"])) for each in found] == [
        list(each) for each in expected["probabilities"]
    ]
    with pytest.raises(InputError, match="column 'height' is missing"):
        asked.predict([{"width": 1.0}])
    with pytest.raises(ModelError, match="not finite"):
        asked.predict([{"width": 9.0, "height": 0.0}])
    with pytest.raises(UnavailableError, match="the agent does not answer"):
        edge.agent.connect(device.folder / "slots")


def test_a_client_outlives_the_agent_it_asked(device: Device) -> None:
    api = Api(device.supervisor, latencies=Latencies(), max_body_bytes=MAX_BODY_BYTES)
    folder = device.folder / "other"
    folder.mkdir()
    api.listen_at(folder / SOCKET)
    asked = edge.agent.connect(folder)
    api.close()
    assert not (folder / SOCKET).exists()
    with pytest.raises(UnavailableError, match="the agent does not answer"):
        asked.predict([{"width": 1.0, "height": 0.0}])
    again = Api(device.supervisor, latencies=Latencies(), max_body_bytes=MAX_BODY_BYTES)
    again.listen_at(folder / SOCKET)
    assert asked.predict([{"width": 1.0, "height": 0.0}])[0]["label"] == "low"
    again.close()


@pytest.fixture
def inbox(device: Device, tmp_path: Path) -> Inbox:
    return make_inbox(device, tmp_path)


def make_inbox(device: Device, home: Path) -> Inbox:
    return Inbox(
        device.supervisor,
        folder=home / "in",
        results=home / "out",
        failed=home / "failed",
        latencies=device.latencies,
        max_bytes=MAX_BODY_BYTES,
    )


def test_files_in_are_answered_and_bad_ones_put_aside_with_the_reason(inbox: Inbox, tmp_path: Path) -> None:
    assert inbox.look() == 0
    place = tmp_path / "in"
    (place / "a.csv").write_text("width,height\n1,0\n0,1\n")
    (place / "b.jsonl").write_text('{"width": 1}\n')
    (place / "c.txt").write_text("words")
    (place / "d.json").write_text('[{"width": 9, "height": 0}]')
    (place / "e.csv").write_text("x" * (MAX_BODY_BYTES + 1))
    (place / ".hidden.csv").write_text("width,height\n1,0\n")
    os.symlink("/etc/passwd", place / "f.csv")
    assert inbox.look() == 0  # they might still grow
    assert inbox.look() == 6
    lines = (tmp_path / "out" / "a.csv.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["low", "high"]
    reasons = {path.name: path.read_text() for path in (tmp_path / "failed").glob("*.reason")}
    assert "column 'height' is missing" in reasons["b.jsonl.reason"]
    assert "rows cannot be read from c.txt" in reasons["c.txt.reason"]
    assert "not finite" in reasons["d.json.reason"]
    assert "bytes, more than" in reasons["e.csv.reason"]
    assert "f.csv is not a file" in reasons["f.csv.reason"]
    assert sorted(path.name for path in place.iterdir()) == [".answered", ".claimed", ".hidden.csv"]
    assert os.listdir(tmp_path / "out") == ["a.csv.jsonl"]


class Cut(Exception):  # noqa: N818 - a power cut is no error
    """The power went."""


def test_no_file_is_answered_twice_or_lost_whenever_the_power_goes(device: Device, tmp_path: Path) -> None:
    for step in ("claimed", "written", "answered", "shown"):
        home = tmp_path / step
        inbox = make_inbox(device, home)
        inbox.look()
        (home / "in" / "a.csv").write_text("width,height\n1,0\n")
        inbox.look()
        before = device.latencies.health()["answers"]

        def cut(taken: str, step: str = step) -> None:
            if taken == step:
                raise Cut

        with pytest.raises(Cut):
            inbox.look(took=cut)
        if step == "shown":  # somebody takes the answers away; they do not come again
            (home / "out" / "a.csv.jsonl").unlink()
        again = make_inbox(device, home)
        again.look()
        again.look()
        assert (home / "out" / "a.csv.jsonl").exists() == (step != "shown")
        asked = device.latencies.health()["answers"] - before
        assert asked == (2 if step == "written" else 1)  # computed again, but shown once
        assert [path.name for path in (home / "in").rglob("*.csv")] == []


def test_a_watching_inbox_answers_by_itself(inbox: Inbox, tmp_path: Path) -> None:
    thread = inbox.start()
    await_true((tmp_path / "in" / ".claimed").exists)
    (tmp_path / "in" / "a.csv").write_text("width,height\n1,0\n")
    await_true((tmp_path / "out" / "a.csv.jsonl").exists)
    inbox.stop()
    thread.join(10)
    assert not thread.is_alive()
