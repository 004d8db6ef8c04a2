"""Ending an endpoint and starting it in other ways: what stays, what is freed, what answers the same."""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyarrow import parquet

from kit.settings.serving import AccessSettings
from serve import ingress
from serve.guards.access import access
from tests.awaiting import await_true
from tests.system.credentials import (
    write_certificate,
)
from tests.system.served_models import (
    ONE_ROW,
    SETTINGS,
    draw_rows,
    engine_answers,
)
from tests.system.serving import (
    INFER,
    Served,
    alive,
    assert_equal_bits,
    body,
    descendants,
    grpc_request,
    kit,
    start,
    tensors_of,
)

PER_MINUTE = 60
USERS = [f"user-{number}" for number in range(12)]


def last_record(served: Served) -> dict[str, Any]:
    newest = max(
        (served.project.state / "runs" / "serve").glob("*.json"), key=lambda file: file.stat().st_mtime_ns
    )
    record: dict[str, Any] = json.loads(newest.read_text())
    return record


def stop_and_check(served: Served, number: signal.Signals) -> dict[int, str]:
    """Stop an endpoint; gives what ran before, all of which has ended."""
    before = descendants(served.process.pid)
    said = served.stop(number)
    assert "Traceback" not in said
    assert "raylet" not in said
    assert last_record(served)["stopped_by"] == number.name
    assert alive(before) == {}
    for port in (served.port, served.grpc_port):
        ingress.check_port("127.0.0.1", port=port)
    assert list((served.state / "replicas").glob("*.*")) == []
    return before


def by_user(served: Served) -> list[str]:
    return [served.infer(headers={"x-user": user}).headers["kit-version"] for user in USERS]


def test_sigterm_ends_every_process_frees_the_ports_and_writes_the_samples(served: Served) -> None:
    rows = draw_rows(3, seed=21)
    assert served.infer(rows, headers={"x-request-id": "sampled"}).status_code == 200
    before = stop_and_check(served, signal.SIGTERM)
    assert any("haproxy" in text for text in before.values())
    tables = [
        parquet.read_table(path) for path in (served.project.folder / "samples").glob("tiny-1-*.parquet")
    ]
    kept = [row for table in tables for row in table.to_pylist() if row["request_id"] == "sampled"]
    assert [row["input_a"] for row in sorted(kept, key=lambda row: row["row"])] == rows[:, 0].tolist()
    assert all("input_b" not in table.column_names for table in tables)


@pytest.fixture(scope="module")
def by_python(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The project behind Ray's Python proxy, with TLS and a limit per client, after a change of traffic."""
    if not served.stopped:
        served.stop()
    limits = f'\n[serve.rates]\nrequests = "{PER_MINUTE}/minute"\n'
    (served.project.folder / "kit.toml").write_text(SETTINGS + limits)
    served.release("set", "2=50", "1=50", sticky="header:x-user", note="kept")
    cert = write_certificate(tmp_path_factory.mktemp("tls"))
    endpoint = start(served.project, "tiny", "twin", ingress="python", cert=cert)
    yield endpoint
    if not endpoint.stopped:
        endpoint.stop()


def test_the_table_of_a_release_survives_a_restart(by_python: Served) -> None:
    shown = by_python.release()
    assert (shown.release.note, shown.release.sticky) == ("kept", "header:x-user")
    assert {view.in_force for view in shown.replicas} == {shown.release.sequence}
    assert by_user(by_python) == by_user(by_python)
    assert set(by_user(by_python)) == {"1", "2"}
    assert by_python.infer().headers["kit-release"] == str(shown.release.sequence)


def test_the_python_proxy_answers_the_same_over_https(by_python: Served) -> None:
    assert not any("haproxy" in text.lower() for text in descendants(by_python.process.pid).values())
    rows = draw_rows(50, seed=22)
    answer = by_python.infer(rows)
    version = answer.headers["kit-version"]
    assert_equal_bits(tensors_of(answer), engine_answers(by_python.project, f"tiny@{version}", rows))
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert by_python.infer(key=None).status_code == 401
    assert (
        by_python.request("POST", "/predict/twin", json={"rows": [dict.fromkeys("abcd", 1.0)]}).status_code
        == 200
    )
    assert by_python.call("ModelInfer", grpc_request(ONE_ROW, model="twin")).model_version == "1"
    assert_encrypted(by_python)


def assert_encrypted(served: Served) -> None:
    """Plain HTTP gets nowhere, and the certificate is the one that was given."""
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{served.port}/v2/health/live", timeout=5, trust_env=False)
    strict = httpx.Client(trust_env=False, verify=ssl.create_default_context())
    with pytest.raises(httpx.ConnectError), strict:
        strict.get(f"{served.url}/v2/health/live")


def test_a_client_beyond_its_own_limit_is_429_and_others_are_not(by_python: Served) -> None:
    made = access(by_python.project, AccessSettings(action="create", name="greedy", scope=("infer:tiny",)))
    assert made.secret is not None
    await_true(lambda: by_python.infer(key=made.secret).status_code == 200, why="it is followed")
    asked = [by_python.infer(key=made.secret) for _ in range(PER_MINUTE + 10)]
    refused = [each for each in asked if each.status_code != 200]
    assert {each.status_code for each in refused} == {429}
    assert all(1 <= int(each.headers["retry-after"]) <= 120 for each in refused)
    assert by_python.infer().status_code == 200


def test_ctrl_c_ends_it_as_well(by_python: Served) -> None:
    assert stop_and_check(by_python, signal.SIGINT), "nothing ran"


@pytest.fixture(scope="module")
def apart(by_python: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """HAProxy with TLS, and ``twin`` in a deployment of its own."""
    if not by_python.stopped:
        by_python.stop()
    own = "\n[serve.model.twin]\nown_deployment = true\n"
    (by_python.project.folder / "kit.toml").write_text(SETTINGS + own)
    cert = write_certificate(tmp_path_factory.mktemp("tls"))
    endpoint = start(by_python.project, "tiny", "twin", cert=cert, with_grpc=False)
    yield endpoint
    if not endpoint.stopped:
        endpoint.stop()


def test_a_model_in_a_deployment_of_its_own_answers_at_the_same_address(apart: Served) -> None:
    rows = draw_rows(20, seed=23)
    for model in ("tiny", "twin"):
        answer = apart.infer(rows, model=model)
        expected = engine_answers(apart.project, f"{model}@{answer.headers['kit-version']}", rows)
        assert_equal_bits(tensors_of(answer), expected)
        predicted = apart.request("POST", f"/predict/{model}", json={"rows": [dict.fromkeys("abcd", 1.0)]})
        assert (predicted.status_code, predicted.json()["model"]) == (200, model)
        assert apart.request("GET", f"/v2/models/{model}/ready").status_code == 200
        assert apart.request("GET", f"/v2/models/{model}").json()["name"] == model
    described = apart.request("GET", "/openapi.json").json()["paths"]
    assert {f"/predict/{model}" for model in ("tiny", "twin")} <= described.keys()
    (tiny,), (twin,) = (apart.release(endpoint=model).replicas for model in ("tiny", "twin"))
    assert tiny.pid != twin.pid
    assert apart.request("POST", "/predict/twin", json={"rows": []}, key=None).status_code == 401


def test_haproxy_speaks_tls_and_nothing_else(apart: Served) -> None:
    assert any("haproxy" in text for text in descendants(apart.process.pid).values())
    assert_encrypted(apart)
    assert apart.request("GET", "/v2/health/live", key=None).status_code == 200


def test_a_query_checks_the_certificate_against_the_file_that_is_named(apart: Served, tmp_path: Path) -> None:
    rows = pa.table({name: [0.5, 1.0] for name in "abcd"})
    parquet.write_table(rows, tmp_path / "rows.parquet")
    words = ("query", "tiny", f"--input={tmp_path / 'rows.parquet'}", f"--url={apart.url}")
    assert "--ca-file" in kit(apart.project, *words, code=7)
    assert "tiny, version" in kit(apart.project, *words, f"--ca-file={apart.cert}")


def test_figures_of_all_deployments_are_on_one_page(apart: Served) -> None:
    page = apart.request("GET", "/metrics").text
    assert 'deployment="twin"' in page
    assert 'deployment="endpoint"' in page
    assert apart.request("POST", INFER, json=body()).status_code == 200
