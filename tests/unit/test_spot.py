"""The metadata service of EC2, asked as it wants to be asked; against a server that is as strict."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Iterator

import pytest

import jobs.notices
from jobs.notices import ENDPOINT_VARIABLE, Metadata, Notice, is_spot, notices
from jobs.spot import main, market_of
from kit.errors import UnavailableError
from tests.metadata_service import MetadataService

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
LIFE_CYCLE = "/latest/meta-data/instance-life-cycle"
TERMINATE = json.dumps({"action": "terminate", "time": "2026-11-21T08:22:00Z"}).encode()
DEADLINE_S = 1795249320.0


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataService]:
    made = MetadataService()
    monkeypatch.setenv(ENDPOINT_VARIABLE, made.url)
    monkeypatch.setattr(jobs.notices, "POLL_S", 0.02)
    yield made
    made.close()


def test_no_notice_is_no_notice(service: MetadataService) -> None:
    assert Metadata().notice() is None


def test_a_notice_says_what_happens_and_when(service: MetadataService) -> None:
    service.says[ACTION] = TERMINATE
    assert Metadata().notice() == Notice("terminate", DEADLINE_S)


def test_one_token_serves_many_questions_and_is_renewed_when_it_has_run_out(service: MetadataService) -> None:
    metadata = Metadata()
    metadata.notice()
    metadata.notice()
    assert len(service.tokens) == 1
    service.tokens.append("another")  # the old one has run out
    service.says[ACTION] = TERMINATE
    assert metadata.notice() == Notice("terminate", DEADLINE_S)
    assert len(service.tokens) == 3


def test_a_recommendation_counts_only_where_it_is_asked_for(service: MetadataService) -> None:
    service.says[REBALANCE] = b'{"noticeTime": "2026-11-21T08:20:00Z"}'
    assert Metadata().notice() is None
    assert REBALANCE not in service.asked
    assert Metadata().notice(rebalance=True) == Notice("rebalance", math.inf)


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"action": "stop"}', b'{"action": "stop", "time": 7}'])
def test_what_is_no_notice_is_not_taken_for_one(service: MetadataService, said: bytes) -> None:
    service.says[ACTION] = said
    with pytest.raises(UnavailableError, match="is no notice"):
        Metadata().notice()


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_service_that_fails_is_unavailable(service: MetadataService, status: int) -> None:
    service.failures = [status] * 2
    with pytest.raises(UnavailableError, match=f"HTTP {status}"):
        Metadata().notice()


def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no metadata service answers"):
        Metadata("http://127.0.0.1:1").notice()


def test_a_proxy_of_the_environment_is_not_asked(
    service: MetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Metadata().notice() is None


def test_failures_on_the_way_are_outlived_and_said_once(
    service: MetadataService, caplog: pytest.LogCaptureFixture
) -> None:
    service.failures = [500, 503, 500]
    service.says[ACTION] = TERMINATE
    with caplog.at_level(logging.WARNING, logger="kit"):
        given = list(notices(Metadata(), rebalance=False, stop=threading.Event()))
    assert given == [Notice("terminate", DEADLINE_S)]
    assert len(caplog.records) == 1


def test_a_recommendation_is_followed_by_the_notice(service: MetadataService) -> None:
    service.says[REBALANCE] = b'{"noticeTime": "2026-11-21T08:20:00Z"}'
    given = []
    for notice in notices(Metadata(), rebalance=True, stop=threading.Event()):
        given.append(notice.action)
        service.says[ACTION] = TERMINATE
    assert given == ["rebalance", "terminate"]


def test_whoever_stops_asking_gets_nothing(service: MetadataService) -> None:
    stop = threading.Event()
    stop.set()
    assert list(notices(Metadata(), rebalance=False, stop=stop)) == []
    assert service.asked == []


@pytest.mark.parametrize("bought", ["spot", "on-demand", "scheduled"])
def test_only_spot_is_spot(service: MetadataService, bought: str) -> None:
    service.says[LIFE_CYCLE] = bought.encode()
    assert is_spot(Metadata()) == (bought == "spot")


def test_a_service_that_is_not_up_yet_is_waited_for(service: MetadataService) -> None:
    service.failures = [503, 503]
    service.says[LIFE_CYCLE] = b"spot"
    assert is_spot(Metadata())


def test_on_a_machine_that_is_not_spot_the_watcher_ends_well(service: MetadataService) -> None:
    service.says[LIFE_CYCLE] = b"on-demand"
    assert main([]) == 0


def test_a_machine_outside_of_ec2_is_nothing_to_watch(
    service: MetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, "http://127.0.0.1:1")
    assert main([]) == 0


@pytest.mark.parametrize(
    "labels, market",
    [
        ({"ray.io/market-type": "spot"}, "spot"),
        ({"ray.io/market-type": "on-demand"}, "on-demand"),
        ({"ray.io/market-type": "else"}, "local"),
        ({}, "local"),
        (None, "local"),
    ],
)
def test_the_market_of_a_node_is_its_label(labels: dict[str, str] | None, market: str) -> None:
    assert market_of({"NodeID": "0", "Labels": labels}) == market
