"""An endpoint at a glance: from what replicas leave behind to what a terminal shows."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from kit.cli.show.status import serving
from serve.releases.acks import Ack, EndpointAck, write_ack
from serve.watching.metrics import Metrics
from serve.watching.status import EndpointStatus, compare, look, quantile, status

BOUNDS = [0.1, 0.2, 0.4, math.inf]


def ack(replica: str, *, reason: str = "") -> Ack:
    endpoint = EndpointAck(
        in_force=4,
        failed=5 if reason else 0,
        reason=reason,
        states={"3": {"status": "READY"}, "4": "LOADING"},
    )
    return Ack(replica, "node-1", 41, time.time_ns(), {"digits": endpoint})


def leave(folder: Path, metrics: dict[str, Metrics]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in metrics.items():
        (folder / f"{name}.prom").write_bytes(each.render())


def between(folder: Path) -> EndpointStatus:
    """Two replicas; ten seconds in which version 3 answers 300 requests and version 4 fails 10."""
    metrics = {name: Metrics(replicas_wanted=3) for name in ("a", "b")}
    for each in metrics.values():
        each.release("digits", sequence=4, shares={"3": 0.9, "4": 0.1}, failed=lambda: 0)
        each.of("digits", "3").loaded({"open": 0.1}, n_bytes=5_000_000)
        for _ in range(1000):
            each.of("digits", "3").answered("ok", 5.0, transport="http")
    leave(folder, metrics)
    before = look(folder)
    for name, each in metrics.items():
        version = each.of("digits", "3")
        version.watch(queue_rows=lambda: 7, queue_limit_rows=100, breaker=lambda: "closed")
        for _ in range(200 if name == "a" else 100):
            version.answered("ok", 0.0008, transport="http")
            version.batch(2, 8, 0.0004)
            version.cached("miss")
        version.cached("hit")
    for _ in range(10):
        metrics["b"].of("digits", "4").answered("model", 0.7, transport="grpc")
        metrics["b"].of("", "").answered("unauthorized", 0.0001, transport="http")
    metrics["b"].of("digits", "4").watch(queue_rows=lambda: 0, queue_limit_rows=1, breaker=lambda: "open")
    leave(folder, metrics)
    after = look(folder)._replace(at_s=before.at_s + 10.0)
    return compare(before, after, acks=(ack("a"), ack("b", reason="version 4 is damaged")))


def test_rates_and_latencies_are_those_of_the_time_that_was_looked_at(tmp_path: Path) -> None:
    third, fourth = between(tmp_path).versions
    assert (third.model, third.version, third.share, fourth.share) == ("digits", "3", 0.9, 0.1)
    assert third.requests_per_s == pytest.approx(30.0)
    assert third.p50_ms == pytest.approx(0.75)  # all lie between 0.5 and 1 ms
    assert third.p99_ms == pytest.approx(0.995)
    assert (third.queue_rows, third.batch_rows, third.breaker) == (14, 8.0, "closed")
    assert third.cache_share == pytest.approx(2 / 302)
    assert third.loaded_bytes == 10_000_000
    assert (fourth.errors, fourth.breaker) == ({"model": 1.0}, "open")
    assert (third.states, fourth.states) == ({"READY": 2}, {"LOADING": 2})


def test_each_replica_says_what_it_does_and_what_it_could_not(tmp_path: Path) -> None:
    found = between(tmp_path)
    first, second = found.replicas
    assert (first.name, first.node, first.pid, first.releases) == ("a", "node-1", 41, {"digits": 4})
    assert first.requests_per_s == pytest.approx(20.0)
    assert first.memory_bytes > 1e6
    assert (first.failed, second.failed) == ({}, {"digits": "version 4 is damaged"})
    assert (found.wanted, found.refused) == (3, {"unauthorized": 1.0})


def test_without_requests_latencies_are_those_since_the_start(tmp_path: Path) -> None:
    metrics = Metrics()
    for _ in range(10):
        metrics.observe("digits", "3", "http", "ok", 0.0008)
    leave(tmp_path, {"a": metrics})
    (version,) = compare(look(tmp_path), look(tmp_path), acks=()).versions
    assert version.requests_per_s == 0
    assert version.p50_ms == pytest.approx(0.75)


def test_a_replica_that_ended_between_the_looks_makes_no_rate_negative(tmp_path: Path) -> None:
    metrics = {name: Metrics() for name in ("a", "b")}
    for each in metrics.values():
        each.observe("digits", "3", "http", "ok", 0.0008)
    leave(tmp_path, metrics)
    before = look(tmp_path)
    (tmp_path / "b.prom").unlink()
    found = compare(before, look(tmp_path), acks=())
    assert found.versions[0].requests_per_s == 0
    assert [each.name for each in found.replicas] == ["a"]


def test_the_state_folder_is_all_that_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "serve" / "replicas"
    metrics = Metrics()
    metrics.observe("digits", "3", "http", "ok", 0.0008)
    leave(folder, {"a": metrics})
    write_ack(folder, ack("a"))
    found = status(tmp_path, over_s=0.0)
    assert found.replicas[0].node == "node-1"
    assert found.versions[0].states == {"READY": 1}


def test_the_terminal_shows_versions_replicas_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving(between(tmp_path))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].split()[:4] == ["model", "version", "traffic", "state"]
    assert lines[2].split()[:5] == ["digits", "3", "90%", "2", "READY"]
    assert "model 1" in lines[3]
    assert "open" in lines[3]
    assert "refused before a version was chosen: unauthorized 1" in lines
    assert "2 of at least 3 replicas are running" in lines
    assert "b: a newer release of digits is not in force: version 4 is damaged" in lines


def test_an_endpoint_that_does_not_run_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving(status(tmp_path, over_s=60.0))
    assert capsys.readouterr().out == "no replica is running\n"


@pytest.mark.parametrize(
    "counts, q, value",
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 10, 10, 10], 0.5, 0.05),
        ([0, 10, 10, 10], 0.5, 0.15),
        ([5, 10, 10, 10], 0.5, 0.1),
        ([0, 0, 10, 10], 1.0, 0.4),
        ([0, 0, 0, 10], 0.5, 0.4),
        ([1, 1, 1, 1], 0.0, 0.0),
    ],
)
def test_a_quantile_is_read_as_prometheus_reads_it(
    counts: list[float], q: float, value: float | None
) -> None:
    assert quantile(BOUNDS, counts, q=q) == (None if value is None else pytest.approx(value))
