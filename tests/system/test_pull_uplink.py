"""Rules of what a device tells: it arrives at least once, counts once; a bad record blocks no others."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge.agent.__main__ import main
from edge.agent.device import Device
from edge.agent.pulling.credentials import write_token
from edge.agent.pulling.source import read_source
from edge.agent.pulling.uplink import Uplink
from tests.faulty_source import Answer, Asked, FaultySource

TOKEN = "token-of-this-device"
CODE = "K7QF-93MX"


@dataclass
class Ring:
    """Records in memory."""

    records: list[dict[str, Any]]

    def peek(self, n: int) -> list[dict[str, Any]]:
        return self.records[:n]

    def drop(self, ids: Any) -> None:
        self.records = [each for each in self.records if each["id"] not in set(ids)]


@dataclass
class Server:
    """What a fleet server keeps, strictly once."""

    records: dict[str, Any] = field(default_factory=dict)
    n_sent: int = 0
    seq: int = 0
    poison: str = ""
    codes: set[str] = field(default_factory=lambda: {CODE})

    def report(self, asked: Asked) -> Answer:
        self.seq = max(self.seq, json.loads(asked.body)["seq"])
        return 204, {}, b""

    def telemetry(self, asked: Asked) -> Answer:
        assert len(asked.body) <= 1 << 20
        records = json.loads(asked.body)["records"]
        assert len(records) <= 500
        self.n_sent += len(records)
        if any(each["id"] == self.poison for each in records):
            return 400, {}, b""
        self.records.update({each["id"]: each for each in records})
        return 200, {}, json.dumps({"taken": [each["id"] for each in records]}).encode()

    def enrol(self, asked: Asked) -> Answer:
        wanted = json.loads(asked.body)
        if wanted["code"] not in self.codes:
            return 403, {}, b""
        self.codes.remove(wanted["code"])
        return 201, {}, json.dumps({"device": wanted["name"], "token": TOKEN, "poll_s": 60}).encode()


@pytest.fixture
def source():
    with FaultySource() as source:
        yield source


@pytest.fixture
def server(source: FaultySource) -> Server:
    server = Server()
    for name in ("report", "telemetry", "enrol"):
        source.handlers[f"/v1/{name}"] = getattr(server, name)
    return server


@pytest.fixture
def uplink(device_folder: Path, source: FaultySource) -> Uplink:
    write_token(device_folder, TOKEN)
    settings = read_source({"server": source.url}, folder=device_folder)
    uplink = Uplink(Device.open(device_folder), settings, chance=lambda: 0.0)
    uplink._monotonic_s = Time()
    return uplink


class Time:
    """A clock that goes on by an hour whenever it is read, so that nothing has to be waited for."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 3600
        return self.now_s


def records(n: int, *, n_bytes: int = 10) -> list[dict[str, Any]]:
    body = {"what": "x" * n_bytes}
    return [{"id": f"b-{i}", "kind": "event", "at_s": 1.0, "digest": None, "body": body} for i in range(n)]


def test_records_arrive_at_least_once_over_answers_that_are_lost(
    uplink: Uplink, source: FaultySource, server: Server
) -> None:
    ring, chance = Ring(records(6000)), random.Random(5)
    real = source._answer

    def lossy(asked: Asked, connection: Any) -> None:
        fate = chance.random()
        if fate < 0.3:  # taken, and the answer is lost
            server.telemetry(asked)
        elif fate < 0.6:  # not even heard
            return
        else:
            real(asked, connection)

    source._answer = lossy
    for _ in range(200):
        uplink.deliver(ring)
    assert ring.records == []
    assert sorted(server.records) == sorted(each["id"] for each in records(6000))
    assert server.n_sent > 6000  # some were sent twice, and counted once


def test_large_records_are_sent_in_smaller_bodies(uplink: Uplink, server: Server) -> None:
    ring = Ring(records(60, n_bytes=60_000))
    while ring.records:
        assert uplink.deliver(ring)
    assert len(server.records) == 60


def test_one_record_that_a_server_refuses_does_not_hold_the_others_back(
    uplink: Uplink, server: Server
) -> None:
    ring = Ring(records(500))
    server.poison = "b-333"
    for _ in range(20):
        uplink.deliver(ring)
    assert ring.records == []
    assert len(server.records) == 499


def test_a_status_that_did_not_arrive_is_sent_before_the_next_records(
    uplink: Uplink, source: FaultySource, server: Server
) -> None:
    source.answers.extend([(503, {})] * 2)
    assert not uplink.report({"seq": 1})
    assert not uplink.report({"seq": 2})
    ring = Ring(records(1))
    assert uplink.deliver(ring) == 1
    assert server.seq == 2
    assert source.paths()[-2:] == ["/v1/report", "/v1/telemetry"]
    assert all(asked.headers["authorization"] == f"Bearer {TOKEN}" for asked in source.asked)


def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    uplink: Uplink, source: FaultySource, server: Server
) -> None:
    now = [0.0]
    uplink._monotonic_s = lambda: now[0]
    source.answers.append((429, {"Retry-After": "500"}))
    ring = Ring(records(1))
    assert not uplink.report({"seq": 1})
    assert uplink.deliver(ring) == 0
    assert (len(source.asked), uplink.wait_s()) == (1, 500)
    now[0] = 500.0
    assert uplink.deliver(ring) == 1


def test_a_static_source_is_told_nothing(device_folder: Path, source: FaultySource) -> None:
    settings = read_source({"offer": f"{source.url}/offer.json"}, folder=device_folder)
    uplink = Uplink(Device.open(device_folder), settings)
    assert not uplink.report({"seq": 1})
    assert uplink.deliver(Ring(records(3))) == 0
    assert source.asked == []


def test_enrolment_keeps_the_token_from_others_and_spends_the_code(
    device_folder: Path, source: FaultySource, server: Server, capsys
) -> None:
    (device_folder / "agent.json").write_text(
        '{"source": {"offer": "http://x/o", "daily_bytes": 9}, "other": 1}'
    )
    words = ["enrol", str(device_folder), "--server", source.url, "--code", CODE, "--name", "line-1"]
    assert main(words) == 0
    assert "line-1" in capsys.readouterr().out
    token = device_folder / "token"
    assert (token.read_text().strip(), token.stat().st_mode & 0o777) == (TOKEN, 0o600)
    config = json.loads((device_folder / "agent.json").read_text())
    assert config == {"source": {"server": source.url, "daily_bytes": 9}, "other": 1}
    assert main(words) == 6  # it has a token
    assert main([*words, "--again"]) == 3
    assert "used or out of date" in capsys.readouterr().err
    assert token.read_text().strip() == TOKEN
    assert [path.name for path in device_folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["--server", "http://fleet.example"], 2, "without TLS"),
        (["--server", "fleet.example"], 2, "neither http"),
        (["--server", "http://127.0.0.1:9"], 7, "does not answer"),
    ],
)
def test_an_enrolment_that_cannot_be_says_why(
    words: list[str], code: int, sentence: str, device_folder: Path, capsys
) -> None:
    assert main(["enrol", str(device_folder), "--code", CODE, *words]) == code
    assert sentence in capsys.readouterr().err
    assert not (device_folder / "token").exists()
    assert not (device_folder / "agent.json").exists()
