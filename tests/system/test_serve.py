"""A real endpoint of two replicas: its answers over every transport, and what it says of itself."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families
from pyarrow import parquet

from kit.tensors import Tensors
from serve.grpc import inference_pb2 as pb
from tests.awaiting import await_true
from tests.system.served_models import (
    BREAKS_ABOVE,
    CLASSES,
    COLUMNS,
    draw_rows,
    engine_answers,
)
from tests.system.serving import (
    INFER,
    Served,
    assert_equal_bits,
    binary_body,
    grpc_request,
    kit,
    tensors_of,
)

OUTPUTS = {"label": np.int64, "probabilities": np.float32, "logits": np.float32}


def objects(rows: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows]


def grpc_tensors(answer: Any) -> Tensors:
    return {
        each.name: np.frombuffer(raw, dtype=OUTPUTS[each.name]).reshape(tuple(each.shape))
        for each, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def samples(served: Served, name: str, **labels: str) -> dict[str, float]:
    """Read a metric's series with these labels from the page of all replicas, by replica."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(served.request("GET", "/metrics").text):
        for each in family.samples:
            if each.name == name and labels.items() <= each.labels.items():
                replica = each.labels["replica"]
                found[replica] = found.get(replica, 0.0) + each.value
    return found


def test_json_binary_and_grpc_answers_equal_the_engines_to_the_bit(served: Served) -> None:
    rows = draw_rows(200)
    expected = engine_answers(served.project, "tiny@1", rows)
    assert_equal_bits(tensors_of(served.infer(rows)), expected)
    content, headers = binary_body(rows)
    assert_equal_bits(tensors_of(served.request("POST", INFER, content=content, headers=headers)), expected)
    assert_equal_bits(grpc_tensors(served.call("ModelInfer", grpc_request(rows))), expected)


def test_a_batch_run_a_request_of_all_rows_and_requests_of_one_answer_the_same(
    served: Served, tmp_path: Path
) -> None:
    rows = draw_rows(60)
    table = pa.table({name: pa.array(rows[:, index]) for index, name in enumerate(COLUMNS)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    written = tmp_path / "answers"
    kit(
        served.project,
        *("predict", "tiny", "--input", str(tmp_path / "rows.parquet"), "--output", str(written)),
        *(
            "--batch-rows",
            "64",
            "--outputs",
            "label",
            "--outputs",
            "probabilities",
            "--outputs",
            "logits",
            "--workers",
            "1",
        ),
    )
    answers = pa.concat_tables(
        parquet.read_table(part) for part in sorted(written.glob("*.parquet"))
    ).to_pydict()
    over_http = tensors_of(served.infer(rows))
    for name in ("probabilities", "logits"):
        assert np.array(answers[name], dtype=np.float32).tobytes() == over_http[name].tobytes()
    assert answers["label"] == [CLASSES[index] for index in over_http["label"]]
    singles = [tensors_of(served.infer(rows[index : index + 1])) for index in range(len(rows))]
    assert_equal_bits(
        {name: np.concatenate([each[name] for each in singles]) for name in over_http}, over_http
    )


def test_rows_as_objects_and_as_csv_get_class_names_and_the_same_numbers(served: Served) -> None:
    rows = draw_rows(20)
    expected = tensors_of(served.infer(rows))
    names = [CLASSES[index] for index in expected["label"]]
    answer = served.request("POST", "/predict/tiny", json=objects(rows)).json()
    assert (answer["model"], answer["version"]) == ("tiny", "1")
    assert [row["label"] for row in answer["rows"]] == names
    listed = np.array([row["probabilities"] for row in answer["rows"]], dtype=np.float32)
    assert listed.tobytes() == expected["probabilities"].tobytes()
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS)
    writer.writeheader()
    writer.writerows(objects(rows))
    csv_type = {"content-type": "text/csv", "accept": "text/csv"}
    answered = served.request("POST", "/predict/tiny", content=written.getvalue(), headers=csv_type)
    assert answered.headers["content-type"].startswith("text/csv")
    table = list(csv.DictReader(io.StringIO(answered.text)))
    assert [row["label"] for row in table] == names
    highest = np.array([row["probability"] for row in table], dtype=np.float32)
    assert highest.tobytes() == expected["probabilities"].max(axis=1).tobytes()


def test_metadata_names_version_digest_classes_and_columns(served: Served) -> None:
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        facts = served.request("GET", path).json()
        assert facts["versions"][0] == "1"
        assert facts["parameters"]["digest"] == served.project.registry().resolve("tiny").digest
        assert facts["parameters"]["classes"] == list(CLASSES)
        assert facts["inputs"][0]["parameters"]["columns"] == list(COLUMNS)
    assert served.call("ModelMetadata", pb.ModelMetadataRequest(name="tiny")).platform == facts["platform"]


def test_what_tools_ask_about_the_endpoint_is_answered(served: Served) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert served.request("GET", path, key=None).status_code == 200
    assert served.request("GET", "/v2/models/tiny/versions/1/ready").json() == {"name": "tiny", "ready": True}
    assert served.request("GET", "/v2").json()["name"] == "kit"
    config = served.request("GET", "/v2/models/twin/config").json()
    assert (config["name"], config["max_batch_size"]) == ("twin", 256)
    index = {
        (each["name"], each["version"]): each["state"]
        for each in served.request("POST", "/v2/repository/index").json()
    }
    assert index["tiny", "1"] == index["twin", "1"] == "READY"
    assert served.call("ServerReady", pb.ServerReadyRequest(), key=None).ready
    served.infer()
    counted = [served.request("GET", "/v2/models/tiny/stats").json()["model_stats"] for _ in range(8)]
    assert all({"name": "tiny", "version": "1"}.items() <= each[0].items() for each in counted)
    assert any(each[0]["inference_count"] > 0 for each in counted)


def test_openapi_describes_each_model_and_the_page_holds_no_foreign_address(served: Served) -> None:
    described = served.request("GET", "/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert {"/predict/tiny", "/predict/twin", INFER} <= described["paths"].keys()
    assert set(COLUMNS) == described["components"]["schemas"]["tiny-1-row"]["properties"].keys()
    page = served.request("GET", "/docs", key=None)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "https://" not in page.text


def test_an_answer_has_one_request_id_the_clients_own_where_it_gave_one(served: Served) -> None:
    for given in (None, "order-4711"):
        answer = served.infer(headers={"x-request-id": given} if given else {})
        (shown,) = answer.headers.get_list("x-request-id")
        assert shown == given or (given is None and len(shown) > 8)
    assert len(served.request("GET", "/nowhere").headers.get_list("x-request-id")) == 1


def test_unloading_takes_a_model_from_every_replica_and_loading_brings_it_back(served: Served) -> None:
    path = "/v2/repository/models/twin"
    try:
        assert served.request("POST", f"{path}/unload").status_code == 200
        asked = [served.infer(model="twin") for _ in range(8)]
        assert {each.status_code for each in asked} == {503}
        assert served.infer().status_code == 200
        assert served.request("GET", "/v2/models/twin/ready").status_code == 503
    finally:
        assert served.request("POST", f"{path}/load").status_code == 200
    assert {served.infer(model="twin").status_code for _ in range(8)} == {200}
    served.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="twin"))


def test_equal_requests_are_computed_once_per_replica(served: Served) -> None:
    rows = draw_rows(3, seed=11)
    answers = [tensors_of(served.infer(rows, model="twin")) for _ in range(10)]
    for each in answers:
        assert_equal_bits(each, engine_answers(served.project, "twin@1", rows))
    await_true(
        lambda: sum(samples(served, "kit_cache_total", model="twin", result="hit").values()) >= 8,
        why="eight of ten equal requests come from the caches of two replicas",
    )


def test_a_version_that_answers_nan_falls_back_and_is_asked_again_later(served: Served) -> None:
    bad = np.full((1, 4), BREAKS_ABOVE + 5, dtype=np.float32)
    good = draw_rows(1, seed=12)
    fallen = [served.infer(bad + np.float32(index / 100), model="twin").json() for index in range(24)]
    assert {each["parameters"]["fallback"] for each in fallen} == {"constant"}
    assert {each["outputs"][0]["data"][0] for each in fallen} == {CLASSES.index("high")}
    answer = served.infer(good, model="twin").json()
    assert answer["parameters"]["fallback"] == "constant"  # the breaker is open
    assert (
        served.call("ModelInfer", grpc_request(good, model="twin")).parameters["fallback"].string_param
        == "constant"
    )
    seed = iter(range(1000, 2000))
    for _ in range(6):  # both replicas' breakers close again
        await_true(
            lambda: (
                "fallback"
                not in served.infer(draw_rows(1, seed=next(seed)), model="twin").json().get("parameters", {})
            ),
            why="a probe of good rows closes the breaker",
        )


def test_metrics_of_both_replicas_are_one_valid_page_with_model_and_version_after_a_failure(
    served: Served,
) -> None:
    refused = served.request("POST", INFER, json={"inputs": []})
    assert refused.status_code == 400
    bad = np.full((1, 4), BREAKS_ABOVE + 1, dtype=np.float32)
    served.infer(bad, model="twin")

    def counted() -> bool:
        ok = samples(served, "kit_requests_total", model="tiny", version="1", outcome="ok")
        invalid = samples(served, "kit_requests_total", model="tiny", outcome="invalid")
        fallback = samples(served, "kit_requests_total", model="twin", version="1", outcome="fallback")
        return len(ok) == 2 and sum(invalid.values()) > 0 and sum(fallback.values()) > 0

    await_true(counted, why="both replicas write their figures once a second")


def test_the_log_names_requests_and_holds_neither_payload_nor_secret(served: Served) -> None:
    rows = np.array([[0.123456789, 1, 2, 3]], dtype=np.float32)
    named = {"x-request-id": "logged-1"}
    assert served.infer(rows, headers=named).status_code == 200
    sent = {"x": "secret-payload"}
    assert (
        served.request("POST", "/predict/tiny", json=sent, headers={"x-request-id": "logged-2"}).status_code
        == 400
    )
    served.infer(key="kit_wrong_key", headers={"x-request-id": "logged-3"})

    def lines() -> dict[str, dict[str, Any]]:
        return {each["request_id"]: each for each in served.logged() if "request_id" in each}

    await_true(lambda: {"logged-1", "logged-2", "logged-3"} <= lines().keys(), why="a line each")
    found = lines()
    assert {"model": "tiny", "version": "1", "outcome": "ok", "status": 200, "rows": 1}.items() <= found[
        "logged-1"
    ].items()
    assert (found["logged-2"]["outcome"], found["logged-3"]["outcome"]) == ("invalid", "unauthorized")
    assert served.key is not None
    for path in (served.state / "log").glob("*.jsonl"):
        text = path.read_text()
        for secret in (served.key, "kit_wrong_key", "secret-payload", "0.12345", "Bearer"):
            assert secret not in text


def test_status_shows_versions_and_replicas_in_the_terminal(served: Served) -> None:
    shown = kit(served.project, "serve", "status").splitlines()
    versions = {tuple(line.split()[:2]) for line in shown if "2 READY" in line}
    assert {("tiny", "1"), ("twin", "1")} <= versions
    replicas = {view.replica for view in served.release().replicas}
    assert len(replicas) == 2
    assert all(any(line.startswith(replica) for line in shown) for replica in replicas)


def test_advice_measures_the_model_and_names_settings(served: Served) -> None:
    advised = kit(served.project, "serve", "tiny", "--advise")
    assert "serve it with: --engine" in advised
    assert "--max-batch-rows" in advised
