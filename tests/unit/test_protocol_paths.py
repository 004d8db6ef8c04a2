"""The paths of an endpoint, its errors, and what it says of itself."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import errors
from kit.errors import InputError, KitError, NotFoundError
from kit.inference import errors as inference_errors
from kit.inference.errors import MethodError, OverloadedError, UnauthorizedError
from kit.signature import Signature
from kit.tensors import TensorSpec
from serve.protocol import (
    ACTIONS,
    OPEN_KINDS,
    Card,
    Indexed,
    Paths,
    Route,
    describe_config,
    describe_index,
    describe_live,
    describe_model,
    describe_model_ready,
    describe_ready,
    describe_server,
    describe_statistics,
    encode_error,
    read_index,
    read_repository,
)
from serve.protocol.metadata import EXTENSIONS, PLATFORM
from serve.watching.version_metrics import Statistics

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("x", "float32", (-1, 2), columns=("a", "b"), minimum=0),
        TensorSpec("kind", "string", (-1, 1), columns=("kind",)),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes")),
        TensorSpec("probabilities", "float32", (-1, 2)),
    ),
)
CARD = Card("digits", 3, "ab" * 32, "onnxruntime", SIGNATURE)
FOUND = [
    ("GET", "/v2", Route("server", "GET")),
    ("GET", "/v2/health/live", Route("live", "GET")),
    ("GET", "/v2/health/ready", Route("ready", "GET")),
    ("GET", "/v2/models/stats", Route("all_stats", "GET")),
    ("POST", "/v2/repository/index", Route("index", "POST")),
    ("POST", "/v2/repository/models/digits/load", Route("load", "POST", "digits")),
    ("POST", "/v2/repository/models/digits/unload", Route("unload", "POST", "digits")),
    ("GET", "/openapi.json", Route("openapi", "GET")),
    ("GET", "/docs", Route("docs", "GET")),
    ("GET", "/metrics", Route("metrics", "GET")),
    *(
        (method, f"/v2/models/digits{version}{action}", Route(cast(Any, kind), method, "digits", number))
        for version, number in (("", None), ("/versions/3", "3"))
        for method, action, kind in (
            *(("GET", "", "model"), ("GET", "/ready", "model_ready"), ("POST", "/infer", "infer")),
            *(("GET", "/config", "config"), ("GET", "/stats", "stats")),
        )
    ),
    ("POST", "/predict/digits", Route("predict", "POST", "digits")),
    ("POST", "/predict/digits/versions/3", Route("predict", "POST", "digits", "3")),
]


@pytest.mark.parametrize("method,path,route", FOUND)
def test_each_path_is_known_the_first_and_the_second_time(method: str, path: str, route: Route) -> None:
    paths = Paths()
    assert paths.find(method, path) == paths.find(method, path) == route


def test_every_kind_says_what_it_takes() -> None:
    assert set(ACTIONS) == {route.kind for _, _, route in FOUND}
    assert {"live", "ready", "docs"} == OPEN_KINDS


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v2/", "/v1", "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/a/b"),
        *(
            "/v2/models/a/infer/",
            "/v2/models/a/versions",
            "/v2/models/a/versions/",
            "/v2/models/a/versions/1/x",
        ),
        *(
            "/v2/repository/models/a",
            "/v2/repository/models//load",
            "/v2/repository/models/a/load/x",
            "/predict",
        ),
        *("/predict/", "/predict/a/", "/predict/a/versions/1/infer", "v2", "/v2/models/a/versions//infer"),
    ],
)
def test_an_unknown_path_is_named(path: str) -> None:
    with pytest.raises(NotFoundError, match="there is nothing at"):
        Paths().find("GET", path)


def test_a_wrong_method_names_the_right_one() -> None:
    with pytest.raises(MethodError) as refused:
        Paths().find("GET", "/v2/models/digits/infer")
    reply = encode_error(refused.value)
    assert (reply.status, dict(reply.headers)[b"allow"]) == (405, b"POST")


def test_names_by_the_thousand_are_not_kept() -> None:
    paths = Paths()
    for number in range(5000):
        paths.find("GET", f"/v2/models/m{number}")
    assert len(paths._known) <= 4096
    assert paths.find("GET", "/v2").kind == "server"


@given(st.text(max_size=30), st.text(max_size=8))
def test_no_path_ends_in_a_traceback(path: str, method: str) -> None:
    for each in (path, f"/v2/models/{path}", f"/predict/{path}"):
        with pytest.raises((NotFoundError, MethodError)) as refused:
            Paths().find(f"x{method}", each)
        assert encode_error(refused.value).status in (404, 405)


def test_a_bug_is_500_and_says_nothing_of_itself() -> None:
    reply = encode_error(ZeroDivisionError("secret path"))
    assert (reply.status, b"secret" in reply.body) == (500, False)


def test_every_error_of_the_kit_has_a_status() -> None:
    kinds = [
        kind for module in (errors, inference_errors) for kind in vars(module).values() if _is_error(kind)
    ]
    statuses = {kind.__name__: encode_error(kind("sentence")).status for kind in kinds}
    assert statuses["NotFoundError"] == 404
    assert statuses["InputError"] == statuses["SettingsError"] == 400
    assert statuses["VerificationError"] == 500
    assert set(statuses.values()) == {500, *(status for _, status, _ in inference_errors.STATUSES)}


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, KitError)


def test_what_an_error_asks_of_the_client_is_in_its_headers() -> None:
    error = OverloadedError("full")
    error.retry_after_s = 1.2
    assert dict(encode_error(error).headers)[b"retry-after"] == b"2"
    assert dict(encode_error(UnauthorizedError("who")).headers)[b"www-authenticate"] == b"Bearer"


def test_an_error_is_one_short_sentence_that_is_json() -> None:
    reply = encode_error(InputError("x" * 10_000 + "\ud800"))
    assert len(reply.body) < 1100
    assert json.loads(encode_error(InputError("\ud800", hint="do")).body) == {"error": "?; do"}


def test_health_is_read_from_the_status() -> None:
    assert describe_live().status == 200
    assert [describe_ready(ready=ready).status for ready in (True, False)] == [200, 503]
    reply = describe_model_ready("digits", ready=False)
    assert (reply.status, json.loads(reply.body)) == (503, {"name": "digits", "ready": False})


def test_the_server_names_the_extensions_that_clients_look_for() -> None:
    value = json.loads(describe_server(EXTENSIONS).body)
    assert {"binary_tensor_data", "statistics", "model_repository", "model_configuration"} <= set(
        value["extensions"]
    )


def test_metadata_says_all_a_client_needs_to_make_a_request() -> None:
    value = json.loads(describe_model(CARD, platform=PLATFORM, versions=("2", "3")).body)
    assert (value["name"], value["versions"], value["platform"]) == ("digits", ["3", "2"], "onnx_onnxv1")
    assert value["inputs"][0] == {
        "name": "x",
        "datatype": "FP32",
        "shape": [-1, 2],
        "parameters": {"columns": ["a", "b"], "minimum": 0},
    }
    assert value["parameters"]["classes"] == ["no", "yes"]


def test_the_configuration_is_what_perf_analyzer_reads() -> None:
    value = json.loads(describe_config(CARD, max_batch_rows=256, max_wait_s=0.002).body)
    assert value["max_batch_size"] == 256
    assert value["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [2], "optional": False}
    assert value["input"][1]["data_type"] == "TYPE_STRING"
    assert value["output"][0] == {"name": "label", "data_type": "TYPE_INT64", "dims": []}
    assert value["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert value["model_transaction_policy"] == {"decoupled": False}


def test_statistics_are_what_perf_analyzer_reads() -> None:
    counted = Statistics(success_count=3, success_ns=300, queue_ns=60, infer_ns=90, rows=6, batches=2)
    value = json.loads(describe_statistics([(CARD, counted)]).body)["model_stats"][0]
    assert (value["name"], value["version"]) == ("digits", "3")
    assert (value["inference_count"], value["execution_count"]) == (6, 2)
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        assert set(value["inference_stats"][name]) == {"count", "ns"}
    assert value["inference_stats"]["success"] == {"count": 3, "ns": 300}
    assert {"cache_hit", "cache_miss"} <= set(value["inference_stats"])


def test_batches_are_counted_by_size() -> None:
    counted = Statistics(by_rows={8: (2, 80), 1: (1, 10)})
    value = json.loads(describe_statistics([(CARD, counted)]).body)["model_stats"][0]["batch_stats"]
    assert [(each["batch_size"], each["compute_infer"]) for each in value] == [
        (1, {"count": 1, "ns": 10}),
        (8, {"count": 2, "ns": 80}),
    ]


def test_the_index_lists_versions_and_can_be_kept_to_those_that_answer() -> None:
    entries = [Indexed("digits", "3", "READY"), Indexed("digits", "4", "FAILED", "it does not load")]
    everything = json.loads(describe_index(entries).body)
    assert [each["state"] for each in everything] == ["READY", "UNAVAILABLE"]
    assert everything[1]["reason"] == "it does not load"
    assert len(json.loads(describe_index(entries, ready=True).body)) == 1


def test_bodies_of_the_repository_may_be_empty() -> None:
    assert [read_index(body) for body in (b"", b" ", b"{}", b'{"ready": true}')] == [
        False,
        False,
        False,
        True,
    ]
    assert read_repository(b"") == {}
    assert read_repository(b'{"parameters": {"unload_dependents": false}}') == {"unload_dependents": False}


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"ready": 1}', b'{"ready": true, "ready": false}', b"\xff"])
def test_a_wrong_index_request_is_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        read_index(body)


@pytest.mark.parametrize(
    "parameters",
    ["[]", "1", '{"config": "{}"}', '{"file:1/model.onnx": "aa"}', '{"a": []}', '{"a": 1, "a": 1}'],
)
def test_a_model_is_not_loaded_from_a_request(parameters: str) -> None:
    with pytest.raises(InputError):
        read_repository(b'{"parameters": %s}' % parameters.encode())
