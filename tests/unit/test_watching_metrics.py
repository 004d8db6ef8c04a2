"""What a replica counts, and how Prometheus reads it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.errors import ConflictError, InputError, ModelError, VerificationError
from kit.inference.errors import STATUSES, OverloadedError, RateLimitedError
from serve.releases.comparison import Counts
from serve.watching.exposition import (
    FORGOTTEN_S,
    LIVING_S,
    Publisher,
    label_text,
    living,
    merge,
    read_samples,
)
from serve.watching.metrics import FAMILIES, Metrics
from serve.watching.outcomes import FAILED, OUTCOMES, outcome_of


def filled() -> Metrics:
    """A replica that has seen one of everything."""
    metrics = Metrics(replicas_wanted=2)
    version = metrics.of("digits", "3")
    version.answered("ok", 0.0004, transport="http")
    version.batch(2, 8, 0.001, 0.002)
    version.cached("hit")
    version.loaded({"verify": 0.2, "open": 0.1}, n_bytes=1000)
    version.watch(queue_rows=lambda: 5, queue_limit_rows=2048, breaker=lambda: "open")
    counts = Counts(compared=5, unlike=1, dropped=2, labels=4, labels_equal=3, difference_max=0.25)
    version.watch_shadow(lambda: counts)
    metrics.of("", "").answered("unauthorized", 0.0001, transport="grpc")
    metrics.rate_limited("digits")
    metrics.release("digits", sequence=4, shares={"3": 0.9, "4": 0.1}, failed=lambda: 5)
    metrics.watch_dropped("log", count=lambda: 7)
    return metrics


def values(text: str) -> dict[str, float]:
    """Read a text with Prometheus' own parser."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            shown = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            assert f"{sample.name}{{{shown}}}" not in found
            found[f"{sample.name}{{{shown}}}"] = sample.value
    return found


def test_every_family_is_written_when_there_is_something_to_say() -> None:
    text = filled().render().decode()
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")] == [
        family.name for family in FAMILIES
    ]
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    for family in FAMILIES:
        assert types[family.name.removesuffix("_total")] == family.kind


def test_counts_arrive_at_prometheus_as_they_were_made() -> None:
    found = values(filled().render().decode())
    assert found["kit_requests_total{model=digits,outcome=ok,transport=http,version=3}"] == 1
    assert found["kit_requests_total{model=,outcome=unauthorized,transport=grpc,version=}"] == 1
    assert found["kit_request_seconds_bucket{le=0.00025,model=digits,version=3}"] == 0
    assert found["kit_request_seconds_bucket{le=0.0005,model=digits,version=3}"] == 1
    assert found["kit_request_seconds_bucket{le=+Inf,model=digits,version=3}"] == 1
    assert found["kit_batch_rows_sum{model=digits,version=3}"] == 8
    assert found["kit_queue_rows{model=digits,version=3}"] == 5
    assert found["kit_breaker_state{model=digits,version=3}"] == 2
    assert found["kit_load_seconds{model=digits,step=verify,version=3}"] == 0.2
    assert found["kit_release_failed{endpoint=digits}"] == 5
    assert found["kit_release_share_ratio{endpoint=digits,version=4}"] == 0.1
    assert found["kit_shadow_requests_total{model=digits,result=compared,version=3}"] == 4
    assert found["kit_shadow_requests_total{model=digits,result=dropped,version=3}"] == 2
    assert found["kit_shadow_labels_total{model=digits,result=different,version=3}"] == 1
    assert found["kit_shadow_difference_max{model=digits,version=3}"] == 0.25
    assert found["kit_records_dropped_total{kind=log}"] == 7
    assert found["process_resident_memory_bytes{}"] > 1e6


def test_a_value_on_a_bound_falls_into_the_bucket_below_it() -> None:
    metrics = Metrics()
    metrics.observe("digits", "1", "http", "ok", 0.5)
    found = values(metrics.render().decode())
    assert found["kit_request_seconds_bucket{le=0.25,model=digits,version=1}"] == 0
    assert found["kit_request_seconds_bucket{le=0.5,model=digits,version=1}"] == 1


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_refusal_does_not_flatter_the_latencies(outcome: str) -> None:
    metrics = Metrics()
    version = metrics.of("digits", "1")
    version.answered(outcome, 0.0001, transport="http")
    timed = outcome in ("ok", "fallback", "deadline", "model", "internal")
    assert sum(version.request_seconds.counts) == timed


def test_what_fails_before_a_version_is_chosen_has_its_latency_under_the_model_alone() -> None:
    metrics = Metrics()
    metrics.observe("digits", "", "http", "invalid", 0.1)
    assert "kit_request_seconds" not in metrics.render().decode()
    metrics.observe("digits", "", "http", "deadline", 30.0)
    found = values(metrics.render().decode())
    assert found["kit_request_seconds_count{model=digits,version=}"] == 1
    assert found["kit_request_seconds_bucket{le=10.0,model=digits,version=}"] == 0


def test_statistics_are_the_same_counts() -> None:
    metrics = filled()
    version = metrics.of("digits", "3")
    version.answered("overloaded", 0.5, transport="http")
    version.answered("invalid", 0.5, transport="http")
    found = metrics.statistics("digits", "3")
    assert (found.success_count, found.success_ns) == (1, 400_000)
    assert (found.fail_count, found.fail_ns) == (1, 500_000_000)
    assert (found.rows, found.batches, found.infer_ns, found.queue_ns) == (8, 1, 1_000_000, 2_000_000)
    assert (found.cache_hits, found.cache_misses) == (1, 0)
    assert found.by_rows == {8: (1, 1_000_000)}
    assert abs(found.last_ms / 1e3 - time.time()) < 10
    assert metrics.statistics("nobody", "1").success_count == 0


def test_an_unloaded_version_keeps_its_counts_and_has_no_queue() -> None:
    metrics = filled()
    metrics.of("digits", "3").unloaded()
    found = values(metrics.render().decode())
    assert found["kit_requests_total{model=digits,outcome=ok,transport=http,version=3}"] == 1
    assert not [name for name in found if name.startswith(("kit_queue_rows", "kit_breaker", "kit_loaded"))]
    metrics.forget("digits", "3")
    assert "kit_requests_total{model=digits" not in metrics.render().decode()


def test_a_gauge_whose_owner_is_gone_does_not_end_the_text() -> None:
    metrics = filled()

    def gone() -> float:
        raise AttributeError("closed")

    metrics.of("digits", "3").watch(queue_rows=gone, queue_limit_rows=1, breaker=lambda: "unheard of")
    found = values(metrics.render().decode())
    assert "kit_queue_rows{model=digits,version=3}" not in found
    assert "kit_breaker_state{model=digits,version=3}" not in found
    assert found["kit_queue_limit_rows{model=digits,version=3}"] == 1


def test_counts_made_while_a_text_is_written_never_break_a_histogram() -> None:
    metrics = Metrics()
    ended = threading.Event()

    def count() -> None:
        index = 0
        while not ended.is_set():
            index += 1
            metrics.observe("digits", str(index % 5), "http", "ok", (index % 100) / 100)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(10):
            found = values(metrics.render().decode())
            below: dict[str, float] = {}
            for name, value in found.items():
                family, _, version = name.partition("_bucket{le=")
                if version:
                    series = family + version.partition(",")[2]
                    assert value >= below.get(series, 0.0)
                    below[series] = value
                if "le=+Inf" in name:
                    assert found[name.replace("_bucket{le=+Inf,", "_count{")] == value
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "error, outcome",
    [
        (InputError("x"), "invalid"),
        (OverloadedError("x"), "overloaded"),
        (ModelError("x"), "model"),
        (ConflictError("x"), "conflict"),
        (RateLimitedError("x"), "rate_limited"),
        (VerificationError("x"), "internal"),
        (KeyError("x"), "internal"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_an_error_has_one_outcome(error: BaseException, outcome: str) -> None:
    assert outcome_of(error) == outcome


def test_outcomes_and_statuses_agree_whose_fault_it_was() -> None:
    for kind, status, _ in STATUSES:
        failed = outcome_of(kind("x")) in FAILED
        assert failed == (status >= 500 or status == 429), kind
    assert outcome_of(RateLimitedError("x")) not in FAILED  # 429, too, but for what the client itself did


def test_labels_survive_any_character() -> None:
    labels = {"a": 'quote " backslash \\ line\nend', "b": "{},= ü"}
    sample = next(iter(read_samples(f"x{{{label_text(labels)}}} 2.5")))
    assert sample == ("x", labels, 2.5)
    family = next(iter(text_string_to_metric_families(f"x{{{label_text(labels)}}} 2.5\n")))
    assert family.samples[0].labels == labels


def test_the_replicas_of_a_folder_are_one_text_each_series_with_its_replica(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.prom").write_bytes(filled().render())
    (tmp_path / ".c.prom").write_bytes(b"half a text")
    (tmp_path / "a.json").write_bytes(b"{}")
    text = merge(tmp_path).decode()
    found = values(text)
    for name in ("a", "b"):
        assert found[f"kit_requests_total{{model=digits,outcome=ok,replica={name},transport=http,version=3}}"]
        assert found[f"kit_in_flight{{replica={name}}}"] == 0
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) == len(FAMILIES)


def test_replicas_that_died_are_left_out(tmp_path: Path) -> None:
    for name, age_s in (("alive", 0.0), ("dead", LIVING_S + 1)):
        path = tmp_path / f"{name}.prom"
        path.write_bytes(filled().render())
        os.utime(path, (time.time() - age_s,) * 2)
    assert list(living(tmp_path)) == ["alive"]


def test_a_disk_with_another_clock_does_not_kill_the_replicas_on_it(tmp_path: Path) -> None:
    for name in ("own", "other"):
        path = tmp_path / f"{name}.prom"
        path.write_bytes(filled().render())
        os.utime(path, (time.time() - 3600,) * 2)
    assert list(living(tmp_path)) == []
    assert list(living(tmp_path, own="own")) == ["other", "own"]


def test_a_folder_without_replicas_is_an_empty_text(tmp_path: Path) -> None:
    assert merge(tmp_path) == b""
    assert merge(tmp_path / "never made") == b""


def test_a_publisher_writes_at_once_and_takes_its_file_away(tmp_path: Path) -> None:
    written: list[int] = []

    def render() -> bytes:
        written.append(1)
        return b"# HELP x y\n"

    publisher = Publisher(render, folder=tmp_path / "replicas", replica="a")
    publisher.start()
    assert os.listdir(tmp_path / "replicas") == ["a.prom"]
    publisher.close()
    assert os.listdir(tmp_path / "replicas") == []
    assert written


def test_a_publisher_goes_on_after_a_text_that_could_not_be_written(tmp_path: Path) -> None:
    enough = threading.Event()
    calls: list[int] = []

    def render() -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("a bug")
        if len(calls) == 4:
            enough.set()
        return f"# {len(calls)}\n".encode()

    publisher = Publisher(render, folder=tmp_path, replica="a", every_s=0.001)
    publisher.start()
    assert enough.wait(timeout=10)
    publisher.close()
    assert publisher.failures == 1
    assert os.listdir(tmp_path) == []


def test_what_a_dead_replica_left_is_removed_in_the_end(tmp_path: Path) -> None:
    left = tmp_path / "dead.prom"
    left.write_bytes(b"")
    os.utime(left, (time.time() - 2 * FORGOTTEN_S,) * 2)
    publisher = Publisher(lambda: b"", folder=tmp_path, replica="a", every_s=0.001)
    publisher.start()
    until_s = time.monotonic() + 10
    while left.exists() and time.monotonic() < until_s:
        threading.Event().wait(0.001)
    publisher.close()
    assert not left.exists()


def test_a_publisher_outlives_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "replicas").write_bytes(b"a file where a folder should be")
    publisher = Publisher(lambda: b"", folder=tmp_path / "replicas", replica="a")
    publisher.start()
    publisher.close()
    assert publisher.failures == 1
