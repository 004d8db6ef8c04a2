"""Rules of offers: what is void is void, and no URL leads anywhere but to where the offer came from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.agent.pulling.client import check_url, same_place
from edge.agent.pulling.offer import INSTALL, RETURN, STAY, read_offer
from edge.agent.pulling.source import read_source
from kit.errors import InputError, SettingsError

URL = "https://fleet.example:8443/v1/offer"
A, B = "a" * 64, "b" * 64
WHOLE: dict[str, Any] = {
    "format": 1,
    "kind": "install",
    "digest": A,
    "release": 7,
    "url": f"bundles/{A}.bundle",
    "size_bytes": 1000,
    "sha256": B,
    "override": None,
    "deltas": [{"from": B, "url": f"deltas/{B}-{A}.delta", "size_bytes": 20, "sha256": A}],
    "keyring": {"counter": 2, "url": "keyring.json"},
    "poll_s": 60,
    "rollout": "digits-7",
}


def read(**changed: Any) -> Any:
    value = {key: each for key, each in {**WHOLE, **changed}.items() if each is not ...}
    return read_offer(json.dumps(value).encode(), url=URL)


def test_an_offer_is_read_with_its_urls_made_absolute() -> None:
    offer = read(newer={"key": "is skipped"})
    assert (offer.kind, offer.digest, offer.release, offer.size_bytes, offer.poll_s) == (
        INSTALL,
        A,
        7,
        1000,
        60,
    )
    assert offer.url == f"https://fleet.example:8443/v1/bundles/{A}.bundle"
    assert offer.deltas[0].url == f"https://fleet.example:8443/v1/deltas/{B}-{A}.delta"
    assert offer.keyring is not None
    assert (offer.keyring.counter, offer.keyring.url) == (2, "https://fleet.example:8443/v1/keyring.json")


def test_what_an_offer_does_not_need_is_not_read() -> None:
    stay = read_offer(b'{"format": 1, "kind": "stay", "poll_s": 5, "digest": 3}', url=URL)
    assert (stay.kind, stay.poll_s, stay.digest) == (STAY, 5, "")
    back = read_offer(json.dumps({"format": 1, "kind": "return", "poll_s": 5, "digest": A}).encode(), url=URL)
    assert (back.kind, back.digest, back.url) == (RETURN, A, "")


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"format": True},
        {"kind": "erase"},
        {"kind": ...},
        {"digest": "A" * 64},
        {"digest": A + "\n"},
        {"release": 0},
        {"release": True},
        {"release": 7.0},
        {"size_bytes": -1},
        {"size_bytes": 1 << 40},
        {"sha256": ...},
        {"url": ...},
        {"url": "https://other.example/x"},
        {"url": "//other.example/x"},
        {"url": "http://fleet.example:8443/x"},
        {"url": "https://fleet.example/x"},
        {"url": "https://user@fleet.example:8443/x"},
        {"url": "file:///etc/passwd"},
        {"url": "x\r\nHost: other"},
        {"url": ["x"]},
        {"poll_s": 0},
        {"poll_s": 1e9},
        {"poll_s": "60"},
        {"override": "yes"},
        {"deltas": {}},
        {"deltas": [{"from": B}]},
        {"deltas": [WHOLE["deltas"][0]] * 65},
        {"keyring": {"counter": -1, "url": "keyring.json"}},
        {"keyring": {"counter": 1, "url": "https://other.example/keyring.json"}},
    ],
    ids=str,
)
def test_an_offer_that_breaks_a_rule_is_void(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        read(**changed)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"poll_s": NaN}', b"[" * 100_000, b" " * (2 << 20)])
def test_a_body_that_is_no_offer_is_void(data: bytes) -> None:
    with pytest.raises(InputError):
        read_offer(data, url=URL)


@pytest.mark.parametrize("url", ["ftp://x/", "http://", "http://x:99999/", "https://x y/", "/offer.json"])
def test_an_address_of_no_source_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)


def test_a_reference_may_name_its_own_place_in_full() -> None:
    assert same_place("http://one.example/a/b", "http://one.example:80/c") == "http://one.example:80/c"


def test_a_source_is_a_server_or_an_offer(tmp_path) -> None:
    server = read_source({"server": "https://fleet.example/"}, folder=tmp_path)
    assert (server.offer, server.url("/v1/report")) == (
        "https://fleet.example/v1/offer",
        "https://fleet.example/v1/report",
    )
    static = read_source({"offer": "https://files.example/o.json", "ca_file": "ca.pem"}, folder=tmp_path)
    assert (static.server, static.offer, static.ca_file) == (
        None,
        "https://files.example/o.json",
        tmp_path / "ca.pem",
    )


@pytest.mark.parametrize(
    "value, sentence",
    [
        ({}, "either a server or an offer"),
        ({"server": "https://a/", "offer": "https://a/o"}, "either a server or an offer"),
        ({"server": "https://a/", "daily_byte": 1}, "unknown key 'daily_byte'"),
        ({"server": "https://a/", "daily_bytes": 0}, "not a whole number"),
        ({"server": "https://a/", "hours": ["8-9"]}, "22:00-06:00"),
        ({"server": "https://a/", "mqtt": {"host": "b", "topic": "#"}}, "without wildcards"),
        ({"server": "https://a/", "mqtt": {"host": "b", "topic": "t", "port": 0}}, "no port"),
        ({"server": "https://a/", "plain_http": "yes"}, "neither true nor false"),
    ],
)
def test_a_source_that_breaks_a_rule_is_refused(value, sentence: str, tmp_path) -> None:
    with pytest.raises(SettingsError, match=sentence):
        read_source(value, folder=tmp_path)


def test_hours_go_over_midnight(tmp_path) -> None:
    source = read_source({"offer": "https://a/o", "hours": ["22:00-06:00", "12:30-13:00"]}, folder=tmp_path)
    opened = {minute for minute in range(1440) if source.open_at(minute)}
    assert opened == {*range(360), *range(750, 780), *range(1320, 1440)}
