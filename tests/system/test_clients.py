"""Unmodified clients of others ask one endpoint, each from the environment it wants to live in."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kit.engines import open_engine
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors, TensorSpec
from tests.system.served_models import SIGNATURE, draw_rows, engine_answers, make_project
from tests.system.serving import Served, body, serving

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("KIT_CLIENTS_PYTHON", ROOT / ".venv-clients" / "bin" / "python"))
SCRIPTS = ROOT / "tests" / "clients"

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="make .venv-clients/ready"),
]

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
    **{name: getattr(TensorProto, name.upper()) for name in DTYPES if "int" in name},
}
WIDE = Signature(
    "regression",
    tuple(
        TensorSpec(
            name,
            name,
            (-1, 2),
            columns=(f"{name}_a", f"{name}_b"),
            minimum=-100.0 if "float" in name else None,
            maximum=100.0 if "float" in name else None,
        )
        for name in DTYPES
    ),
    (TensorSpec("value", "float32", (-1,)),),
)


@dataclass(frozen=True)
class Asked:
    """An endpoint, what the clients send it, and what the engine alone says to that."""

    served: Served
    folder: Path
    expected: dict[str, Tensors]

    def by(self, script: str) -> tuple[dict[str, Any], dict[str, Tensors]]:
        """Run a client; gives what it noted, and its answers by the way it asked."""
        told = {
            "http": f"127.0.0.1:{self.served.port}",
            "grpc": f"127.0.0.1:{self.served.grpc_port}",
            "key": self.served.key,
            "folder": str(self.folder),
        }
        words = [str(PYTHON), str(SCRIPTS / f"{script}.py"), json.dumps(told)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        answers: dict[str, Tensors] = {}
        with np.load(self.folder / f"{script}.npz") as file:
            for name in file.files:
                way, _, output = name.rpartition("/")
                answers.setdefault(way, {})[output] = file[name]
        return json.loads(done.stdout), answers

    def check(self, answers: dict[str, Tensors], *, least: int) -> None:
        """Hold every answer against the engine's, bit for bit."""
        assert len(answers) >= least
        for way, found in answers.items():
            expected = self.expected["wide" if way == "wide" else "tiny"]
            assert found.keys() == expected.keys(), way
            for name, array in expected.items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), (way, name)
                assert found[name].tobytes() == array.tobytes(), (way, name)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("clients")
    project = make_project(folder / "project")
    wide = draw_wide(5)
    rows = draw_rows(50)
    np.save(folder / "rows.npy", rows)
    np.savez(folder / "wide.npz", **wide)
    expected = {"tiny": engine_answers(project, "tiny@1", rows), "wide": register_wide(project, wide)}
    with serving(project, "tiny", "wide", max_body_mb=1) as served:
        yield Asked(served, folder, expected)


def draw_wide(n_rows: int) -> Tensors:
    """Draw an input of every datatype, shape (n_rows, 2) each."""
    draw = np.random.default_rng(3)
    found: Tensors = {}
    for name, dtype in DTYPES.items():
        if dtype.kind == "f":
            found[name] = draw.normal(size=(n_rows, 2)).astype(dtype)
        elif dtype.kind == "O":
            found[name] = draw.choice(["low", "grün"], size=(n_rows, 2)).astype(object)
        elif dtype.kind == "b":
            found[name] = draw.integers(0, 2, size=(n_rows, 2)).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            found[name] = draw.integers(limits.min, limits.max, size=(n_rows, 2), endpoint=True, dtype=dtype)
    return found


def register_wide(project: Project, rows: Tensors) -> Tensors:
    """Register a model that reads every datatype, and give its engine's answers."""
    nodes, last = [], "zero"
    for name in DTYPES:
        source = name
        if name == "string":
            nodes.append(helper.make_node("Equal", [name, "word"], [source := "equal"]))
        nodes += [
            helper.make_node("Cast", [source], [f"{name}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Sin", [f"{name}_cast"], [f"{name}_small"]),
            helper.make_node("Add", [last, f"{name}_small"], [f"{name}_sum"]),
        ]
        last = f"{name}_sum"
    nodes.append(helper.make_node("ReduceSum", [last, "axis"], ["value"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info(name, kind, ["n", 2]) for name, kind in ONNX_TYPES.items()],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.zeros((1, 2), dtype=np.float32), "zero"),
            numpy_helper.from_array(np.array(["grün"], dtype=object), "word"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path = project.folder / "wide.onnx"
    path.write_bytes(made.SerializeToString())
    answers = dict(open_engine(path, engine="onnxruntime", threads=1, signature=WIDE).run(rows))
    parts = Parts(
        "wide", path.read_bytes(), None, WIDE, rows, answers, {"n_rows": 5, "columns": {}}, None, {}
    )
    folder = project.folder / "version-wide"
    digest = write_model_version(parts, folder=folder, key=project.signing_key_path())
    uri = project.store().put(folder, digest=digest)
    project.registry().register("wide", digest=digest, uri=uri, summary={})
    project.registry().promote("wide@1")
    return answers


READY = {"live": True, "ready": True, "model_ready": True}
WRONG_SHAPE = "input 'x' has shape [50, 3]; [-1, 4] is expected (-1 stands for any number of rows)"
NO_KEY = "the endpoint's key is missing; send it as Authorization: Bearer KEY"


def check_described(facts: dict[str, Any]) -> None:
    """Check what every client of Triton's reads of a model; gRPC's JSON writes 64 bits as text."""
    assert facts.items() >= READY.items()
    about = facts["metadata"]
    assert (about["name"], about["versions"]) == ("tiny", ["1"])
    for found, specs in ((about["inputs"], SIGNATURE.inputs), (about["outputs"], SIGNATURE.outputs)):
        shown = [(each["name"], [int(size) for size in each["shape"]]) for each in found]
        assert shown == [(spec.name, list(spec.shape)) for spec in specs]
    config = facts["config"].get("config", facts["config"])
    assert (config["name"], config["max_batch_size"]) == ("tiny", 256)
    assert [(each["name"], each["data_type"]) for each in config["input"]] == [("x", "TYPE_FP32")]


def test_tritonclient_over_http_gets_the_engines_answers_and_is_told_what_is_wrong(asked: Asked) -> None:
    facts, answers = asked.by("triton_http")
    asked.check(answers, least=30)
    check_described(facts)
    assert (facts["version_ready"], facts["unknown_ready"]) == (True, False)
    assert (facts["unloaded_ready"], facts["loaded_ready"]) == (False, True)
    assert (facts["id"], facts["requested"]) == ("seven", ["logits"])
    assert facts["server"]["name"] == "kit"
    assert facts["statistics"] == [["tiny", "1", True]]
    assert [(each["name"], each["state"]) for each in facts["index"]] == [
        ("tiny", "READY"),
        ("wide", "READY"),
    ]

    assert facts["no key"] == f"[401] {NO_KEY}"
    assert facts["wrong key"].startswith("[401] ")
    assert facts["no model"].startswith("[404] model 'tinny' is not served here; did you mean 'tiny'?")
    assert facts["no version"].startswith("[404] version '77' of model 'tiny' is not served here")
    assert facts["wrong shape"] == f"[400] {WRONG_SHAPE}"
    assert facts["wrong name"].startswith("[400] 'y' is not an input of this model")
    assert facts["wrong output"].startswith("[400] 'z' is not an output of this model")
    assert facts["sequence"].startswith("[400] sequences of requests are not kept here")
    assert facts["classes"].startswith("[400] output 'logits' cannot be turned into classes here")
    assert facts["shared memory"].startswith("[404] ")


def test_tritonclients_asynchronous_http_client_gets_the_engines_answers(asked: Asked) -> None:
    facts, answers = asked.by("triton_http_aio")
    asked.check(answers, least=30)
    check_described(facts)
    assert facts["wrong shape"] == f"[400] {WRONG_SHAPE}"


def test_tritonclient_over_grpc_gets_the_engines_answers_and_is_told_what_is_wrong(asked: Asked) -> None:
    facts, answers = asked.by("triton_grpc")
    asked.check(answers, least=60)
    check_described(facts)
    assert (facts["id"], facts["requested"], facts["streamed"]) == ("seven", ["logits"], True)
    assert (facts["unloaded_ready"], facts["loaded_ready"]) == (False, True)
    assert facts["statistics"] == [["tiny", "1", True]]
    assert facts["index"] == [["tiny", "1", "READY"], ["wide", "1", "READY"]]
    assert facts["streamed error"] == WRONG_SHAPE
    assert facts["no key"] == f"[StatusCode.UNAUTHENTICATED] {NO_KEY}"
    assert facts["wrong key"].startswith("[StatusCode.UNAUTHENTICATED] ")
    assert facts["no model"].startswith("[StatusCode.NOT_FOUND] model 'tinny' is not served here")
    assert facts["no version"].startswith("[StatusCode.NOT_FOUND] version '77' of model 'tiny'")
    assert facts["wrong shape"] == f"[StatusCode.INVALID_ARGUMENT] {WRONG_SHAPE}"
    assert facts["no time"].startswith("[StatusCode.DEADLINE_EXCEEDED] ")
    for what in ("shared memory", "trace"):
        assert facts[what].startswith("[StatusCode.UNIMPLEMENTED] ")
    assert facts["health"] == {
        "": "SERVING",
        "inference.GRPCInferenceService": "SERVING",
        "tiny": "SERVING",
        "nothing": "NOT_FOUND",
    }
    assert facts["watched"] == 1  # SERVING
    assert "inference.GRPCInferenceService" in facts["services"]
    assert {"ModelInfer", "ModelStreamInfer", "RepositoryIndex"} <= set(facts["methods"])


def test_tritonclients_asynchronous_grpc_client_gets_the_engines_answers(asked: Asked) -> None:
    facts, answers = asked.by("triton_grpc_aio")
    asked.check(answers, least=50)
    assert facts["streamed"]
    assert facts["wrong shape"] == f"[StatusCode.INVALID_ARGUMENT] {WRONG_SHAPE}"


def test_kserves_clients_get_the_engines_answers(asked: Asked) -> None:
    facts, answers = asked.by("kserve_both")
    asked.check(answers, least=7)
    for way in ("rest", "grpc"):
        assert [facts[f"{way} {what}"] for what in READY] == [True] * 3
        assert facts[f"{way} id"] == "seven"
    assert facts["rest wrong shape"].startswith(f"{WRONG_SHAPE}, '400 Bad Request'")
    assert facts["grpc wrong shape"] == f"INVALID_ARGUMENT: {WRONG_SHAPE}"


def test_schemathesis_finds_nothing_that_openapi_does_not_say(asked: Asked) -> None:
    """It unloads no models, which would be all it finds then, and may ask for an answer within 1 us.

    That data of the schema is accepted is not checked: no schema says what is in a table of CSV or in bytes,
    nor that a tensor has as many values as its shape says.
    """
    (asked.folder / "schemathesis.toml").write_text(
        'checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]\n'
    )
    words = [
        *(str(PYTHON), "-m", "schemathesis.cli", "run", f"{asked.served.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {asked.served.key}", "--exclude-path-regex", "unload$"),
        *("--exclude-checks", "positive_data_acceptance", "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "3", "--generation-deterministic", "--no-color"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False, cwd=asked.folder)
    assert done.returncode == 0, done.stdout
    assert "Tested: 32" in done.stdout


def raw(asked: Asked, content: bytes) -> bytes:
    """Send bytes as they are and read until the endpoint closes; every request here ends its connection."""
    with socket.create_connection(("127.0.0.1", asked.served.port), timeout=10) as connection:
        connection.sendall(content)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def post(asked: Asked, content: bytes, *lines: str, version: str = "1.1", last: bool = True) -> bytes:
    """Write an infer request."""
    head = [
        f"POST /v2/models/tiny/infer HTTP/{version}",
        "Host: kit",
        f"Authorization: Bearer {asked.served.key}",
        *lines,
        *(["Connection: close"] if last else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


def test_old_and_odd_but_correct_http_is_answered(asked: Asked) -> None:
    content = json.dumps(body()).encode()
    length = f"Content-Length: {len(content)}"
    pieces = b"".join(
        b"%x\r\n%s\r\n" % (len(content[i : i + 9]), content[i : i + 9]) for i in range(0, len(content), 9)
    )
    for sent, n_answers in (
        (post(asked, content, length, version="1.0"), 1),
        (post(asked, pieces + b"0\r\n\r\n", "Transfer-Encoding: chunked"), 1),
        (post(asked, content, length, last=False) * 3 + post(asked, content, length), 4),
        (post(asked, content, length, f"X-Long: {'a' * 20_000}"), 1),
    ):
        answer = raw(asked, sent)
        assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b'"model_name":"tiny"') == n_answers, answer
    waiting = post(asked, b"", length, "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", asked.served.port), timeout=10) as connection:
        connection.sendall(waiting)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(content)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_head_is_answered_as_get_without_a_body(asked: Asked) -> None:
    for path in ("/v2/health/live", "/v2/models/tiny", "/openapi.json"):
        full, head = asked.served.request("GET", path), asked.served.request("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(full.content))
    refused = asked.served.request("HEAD", "/v2/models/tiny/infer")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_compressed_bodies_are_read_and_answers_compressed_for_who_asks_for_one_coding(asked: Asked) -> None:
    content = json.dumps(body(draw_rows(50))).encode()
    plain = asked.served.infer(draw_rows(50), headers={"accept-encoding": "identity"})
    for coding, pack, unpack in (
        ("gzip", gzip.compress, gzip.decompress),
        ("deflate", zlib.compress, zlib.decompress),
    ):
        headers = {"content-encoding": coding, "accept-encoding": coding}
        with asked.served.client.stream(
            "POST",
            "/v2/models/tiny/infer",
            content=pack(content),
            headers={**headers, "authorization": f"Bearer {asked.served.key}"},
        ) as answer:
            sent = b"".join(answer.iter_raw())
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, coding)
        assert unpack(sent) == plain.content
    usual = asked.served.infer(draw_rows(50), headers={"accept-encoding": "gzip, deflate, br"})
    assert "content-encoding" not in usual.headers


def test_a_small_body_that_unpacks_to_more_than_is_accepted_is_413(asked: Asked) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    assert len(bomb) < 200_000
    path, headers = "/v2/models/tiny/infer", {"content-encoding": "gzip"}
    assert asked.served.request("POST", path, content=bomb, headers=headers).status_code == 413
    for broken in (b"", b"not gzip", bomb[:50], gzip.compress(b"{}") + b"more"):
        answer = asked.served.request("POST", path, content=broken, headers=headers)
        assert (answer.status_code, set(answer.json())) == (400, {"error"})
    other = asked.served.request("POST", path, content=b"{}", headers={"content-encoding": "br"})
    assert "content encoding 'br' is not read here" in other.json()["error"]
