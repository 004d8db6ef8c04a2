"""Rules of pulling, over real sockets: what is cut goes on, what lies is refused, no source is pestered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge.agent import install
from edge.agent.device import Device
from edge.agent.pulling.answers import RefusedError
from edge.agent.pulling.client import HttpClient, read_body
from edge.agent.pulling.credentials import write_token
from edge.agent.pulling.offer import INSTALL, RETURN
from edge.agent.pulling.puller import Puller
from edge.agent.pulling.source import Source, read_source
from kit import delta
from kit.errors import InputError, KitError, UnavailableError, VerificationError
from tests.faulty_source import Asked, FaultySource

DAY_S = 86_400
NOON_S = 20_000 * DAY_S + DAY_S / 2


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Clock:
    """A clock that goes when it is told to."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Pulling:
    """A device, a source, and a puller between them whose time passes at once."""

    device: Device
    source: FaultySource
    settings: Source
    clock: Clock = field(default_factory=Clock)
    wall: Clock = field(default_factory=lambda: Clock(NOON_S))

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.puller = Puller(
            *(self.device, self.settings), monotonic_s=self.clock, wall_s=self.wall, chance=lambda: 0.0
        )

    def offer(self, data: bytes, *, digest: str = "a" * 64, **changed: Any) -> None:
        """Publish an archive and the offer of it."""
        self.source.files[f"/bundles/{digest}.bundle"] = data
        value = {
            **{"format": 1, "kind": INSTALL, "digest": digest, "release": 1, "poll_s": 60},
            **{"url": f"bundles/{digest}.bundle", "size_bytes": len(data), "sha256": sha(data)},
            **changed,
        }
        self.source.files["/offer.json"] = json.dumps(value).encode()

    def turn(self) -> Path | None:
        """Wait until there is something to do, and do it once."""
        self.clock.now_s += self.puller.wait_s()
        offer = self.puller.look()
        return None if offer is None or offer.kind != INSTALL else self.puller.fetch(offer)

    def until_fetched(self, *, most: int = 20) -> tuple[Path, list[float]]:
        """Take turns until the bundle is there; also gives the waits between them."""
        waits = []
        for _ in range(most):
            waits.append(self.puller.wait_s())
            try:
                path = self.turn()
            except UnavailableError:
                continue
            if path is not None:
                return path, waits
        pytest.fail(f"not fetched in {most} turns")


@pytest.fixture
def source():
    with FaultySource() as source:
        yield source


@pytest.fixture
def pulling(device_folder: Path, source: FaultySource) -> Pulling:
    device = Device.open(device_folder)
    device.prepare()
    return Pulling(device, source, read_source({"offer": f"{source.url}/offer.json"}, folder=device_folder))


def hidden(device: Device) -> list[str]:
    return sorted(path.name for path in device.incoming.iterdir() if path.name.startswith("."))


def test_a_bundle_is_pulled_installed_and_asked_for_no_more(pulling: Pulling, bundles) -> None:
    bundle = bundles.make(release=3)
    pulling.offer(bundle.path.read_bytes(), digest=bundle.digest, release=3)
    path = pulling.turn()
    assert path == pulling.device.incoming / f"{bundle.digest}.bundle"
    assert path.read_bytes() == bundle.path.read_bytes()
    assert pulling.turn() is None  # it waits in incoming/
    with pulling.device.lock():
        list(install.install(pulling.device, path))
    assert pulling.device.state().current == bundle.digest
    assert pulling.turn() is None
    assert pulling.source.paths().count(f"/bundles/{bundle.digest}.bundle") == 1
    assert pulling.source.asked[-1].headers["if-none-match"]
    assert hidden(pulling.device) == []


@pytest.mark.parametrize("seed", range(30))
def test_a_transfer_cut_at_random_bytes_resumes_and_verifies(seed: int, pulling: Pulling) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(chance.randrange(100_000, 600_000))
    pulling.offer(data)
    n_cuts = chance.randrange(1, 6)
    cuts = [chance.randrange(len(data)) for _ in range(n_cuts)]
    pulling.source.etags = chance.random() < 0.8
    pulling.source.chunked = chance.random() < 0.3
    real = pulling.source._file

    def cut_bundles_alone(asked: Asked, connection, body: bytes) -> None:
        if asked.path.endswith(".bundle") and cuts:
            pulling.source.cuts.append(cuts.pop())
        real(asked, connection, body)

    pulling.source._file = cut_bundles_alone
    path, _ = pulling.until_fetched()
    assert path.read_bytes() == data
    starts = [int(each.headers["range"][6:-1]) for each in pulling.source.asked if "range" in each.headers]
    assert starts == sorted(starts)
    assert hidden(pulling.device) == []


def test_a_cut_transfer_goes_on_after_a_restart_of_the_device(pulling: Pulling) -> None:
    data = random.Random(1).randbytes(300_000)
    pulling.offer(data)
    offer = pulling.puller.look()
    assert offer is not None
    pulling.source.cuts.append(200_000)
    with pytest.raises(UnavailableError, match="broke off after"):
        pulling.puller.fetch(offer)
    pulling.restart()
    path, _ = pulling.until_fetched()
    assert path.read_bytes() == data
    (ranged,) = [asked for asked in pulling.source.asked if "range" in asked.headers]
    assert 0 < int(ranged.headers["range"][6:-1]) <= 200_000
    assert ranged.headers["if-range"].startswith('"')


def half(pulling: Pulling, data: bytes) -> None:
    """Fetch the first half."""
    offer = pulling.puller.look()
    pulling.source.cuts.append(len(data) // 2)
    with pytest.raises(UnavailableError):
        pulling.puller.fetch(offer)
    pulling.source.cuts.clear()


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changed_between_two_tries_is_fetched_anew(etags: bool, pulling: Pulling) -> None:
    pulling.source.etags = etags
    old, new = (random.Random(seed).randbytes(200_000) for seed in (1, 2))
    pulling.offer(new)
    offer_of_new = pulling.source.files["/offer.json"]
    pulling.offer(old)
    pulling.source.files["/offer.json"] = offer_of_new  # the offer runs ahead of the file
    half(pulling, old)
    pulling.offer(new)
    path, _ = pulling.until_fetched()
    assert path.read_bytes() == new


def test_a_source_without_ranges_is_fetched_whole(pulling: Pulling) -> None:
    data = random.Random(1).randbytes(200_000)
    pulling.offer(data)
    half(pulling, data)
    pulling.source.ranges = False
    path, _ = pulling.until_fetched()
    assert path.read_bytes() == data


@pytest.mark.parametrize("told", [10, 10_000_000])
def test_a_source_that_lies_about_length_is_refused_and_left_alone(told: int, pulling: Pulling) -> None:
    data = random.Random(1).randbytes(200_000)
    pulling.offer(data)
    offer = pulling.puller.look()
    pulling.source.told_bytes = told
    with pytest.raises(VerificationError, match=r"where 200000 were offered"):
        pulling.puller.fetch(offer)
    pulling.source.told_bytes = None
    assert hidden(pulling.device) == []
    n_asked = len(pulling.source.asked)
    assert [pulling.turn() for _ in range(3)] == [None] * 3
    pulling.restart()  # and it is remembered
    assert pulling.turn() is None
    assert pulling.source.paths()[n_asked:] == ["/offer.json"] * 4
    pulling.offer(data, rollout="another offer")
    assert pulling.turn() is not None


def test_a_body_that_goes_on_forever_is_not_followed(pulling: Pulling) -> None:
    data = random.Random(1).randbytes(50_000)
    pulling.offer(data)
    pulling.source.files[f"/bundles/{'a' * 64}.bundle"] = data + bytes(5_000_000)
    pulling.source.chunked = True
    path, _ = pulling.until_fetched()
    assert path.read_bytes() == data


def test_another_file_than_was_offered_is_refused_once_and_for_all(pulling: Pulling) -> None:
    data = random.Random(1).randbytes(50_000)
    pulling.offer(data, sha256="b" * 64)
    with pytest.raises(VerificationError, match="sha256 is another"):
        pulling.turn()
    assert pulling.turn() is None
    assert hidden(pulling.device) == []


def test_a_refused_bundle_is_final_until_the_offer_changes(pulling: Pulling) -> None:
    data = b"x" * 1000
    pulling.offer(data)
    del pulling.source.files[f"/bundles/{'a' * 64}.bundle"]
    with pytest.raises(RefusedError, match="404"):
        pulling.turn()
    for _ in range(3):
        assert pulling.turn() is None
    assert pulling.source.paths().count(f"/bundles/{'a' * 64}.bundle") == 1
    pulling.offer(data, rollout="next")
    assert pulling.turn() is not None


def test_a_busy_source_is_asked_after_what_it_says_and_a_dead_one_after_doubling_waits(
    pulling: Pulling,
) -> None:
    pulling.offer(b"x" * 1000)
    pulling.source.answers.extend(
        [(503, {"Retry-After": "7"}), (429, {}), (500, {}), (502, {"Retry-After": "?"})]
    )
    waits = []
    for _ in range(5):
        waits.append(pulling.puller.wait_s())
        path = pulling.turn()
    assert path is not None
    assert waits == [0, 7, 2, 4, 8]
    pulling.source.answers.extend([(503, {})] * 9)
    waits = []
    for _ in range(9):
        pulling.turn()
        waits.append(pulling.puller.wait_s())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]  # never above the poll time


def test_a_busy_bundle_is_asked_later_while_the_offer_is_still_polled(pulling: Pulling) -> None:
    pulling.offer(b"x" * 1000)
    offer = pulling.puller.look()
    pulling.source.answers.append((503, {"Retry-After": "200"}))
    with pytest.raises(UnavailableError):
        pulling.puller.fetch(offer)
    began_s = pulling.clock.now_s
    path, _ = pulling.until_fetched()
    assert path.exists()
    assert pulling.clock.now_s - began_s == 200
    assert pulling.source.paths().count("/offer.json") == 5


def test_a_source_that_is_gone_for_days_is_found_again(pulling: Pulling) -> None:
    pulling.offer(b"x" * 1000)
    url = pulling.settings.offer
    dead = Pulling(pulling.device, pulling.source, Source(offer="http://127.0.0.1:9/offer.json"))
    for _ in range(100):
        assert dead.turn() is None
    assert dead.clock.now_s - 1000 > 90 * 60
    dead.puller._source = Source(offer=url)
    assert dead.turn() is not None


def test_a_barred_device_asks_no_more_until_its_token_changes(pulling: Pulling) -> None:
    pulling.settings = read_source({"server": pulling.source.url}, folder=pulling.device.folder)
    write_token(pulling.device.folder, "old-token-of-device")
    assert (pulling.device.folder / "token").stat().st_mode & 0o777 == 0o600
    pulling.restart()
    pulling.offer(b"x" * 1000)

    def offer(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if asked.headers["authorization"] != "Bearer new-token-of-device":
            return 401, {}, b""
        return 200, {}, pulling.source.files["/offer.json"].replace(b"bundles/", b"../bundles/")

    pulling.source.handlers["/v1/offer"] = offer
    for _ in range(5):
        assert pulling.turn() is None
    assert len(pulling.source.asked) == 1
    write_token(pulling.device.folder, "new-token-of-device")
    assert pulling.turn() is not None
    assert all("authorization" in asked.headers for asked in pulling.source.asked)


def test_a_token_does_not_travel_in_the_clear(pulling: Pulling) -> None:
    write_token(pulling.device.folder, "token-of-this-device")
    pulling.settings = read_source({"server": "http://fleet.example"}, folder=pulling.device.folder)

    class Deaf:
        def request(self, *_: Any, **__: Any) -> Any:
            pytest.fail("it was asked")

    puller = Puller(pulling.device, pulling.settings, client=Deaf())
    assert puller.look() is None


def test_a_days_bytes_are_kept_over_restarts_and_a_new_day_has_new_ones(pulling: Pulling) -> None:
    data = random.Random(1).randbytes(300_000)
    pulling.offer(data)
    pulling.settings = read_source(
        {"offer": pulling.settings.offer, "daily_bytes": 120_000}, folder=pulling.device.folder
    )
    found = None
    for _ in range(3):
        pulling.restart()
        for _ in range(3):
            with contextlib.suppress(UnavailableError):
                found = pulling.turn() or found
        assert len(bundle_asks(pulling)) <= 3  # what is spent is not even asked for
        pulling.wall.now_s += DAY_S
    assert found is not None
    assert found.read_bytes() == data
    sent = sum(len(data) - int(each.headers.get("range", "bytes=0-")[6:-1]) for each in bundle_asks(pulling))
    assert len(bundle_asks(pulling)) == 3
    assert sent >= len(data)


def bundle_asks(pulling: Pulling) -> list[Asked]:
    return [asked for asked in pulling.source.asked if asked.path.endswith(".bundle")]


def test_a_clock_that_jumps_does_not_stop_a_device(pulling: Pulling) -> None:
    pulling.offer(b"x" * 1000)
    pulling.settings = read_source(
        {"offer": pulling.settings.offer, "daily_bytes": 100_000}, folder=pulling.device.folder
    )
    for jump_s in (-NOON_S, 80 * 365 * DAY_S, -NOON_S / 2):
        pulling.wall.now_s = max(0.0, NOON_S + jump_s)
        pulling.restart()
        (pulling.device.incoming / f"{'a' * 64}.bundle").unlink(missing_ok=True)
        pulling.offer(b"x" * 1000, rollout=str(jump_s))
        assert pulling.turn() is not None


def test_outside_its_hours_a_device_asks_but_fetches_nothing(pulling: Pulling, monkeypatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    import time

    time.tzset()
    pulling.offer(b"x" * 1000)
    pulling.settings = read_source(
        {"offer": pulling.settings.offer, "hours": ["22:00-06:00"]}, folder=pulling.device.folder
    )
    pulling.restart()
    assert pulling.turn() is None
    assert pulling.source.paths() == ["/offer.json"]
    pulling.wall.now_s += 11 * 3600
    assert pulling.turn() is not None


@pytest.mark.parametrize("place", ["http://localhost:1/x", "https://127.0.0.1/x", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_place_is_not_followed(place: str, pulling: Pulling) -> None:
    pulling.source.handlers["/offer.json"] = lambda _: (302, {"Location": place}, b"")
    assert pulling.turn() is None
    with pytest.raises(InputError, match=r"another place|neither http"):
        HttpClient().request("GET", f"{pulling.source.url}/offer.json")


def test_a_redirect_on_the_same_host_is_followed_a_few_times(pulling: Pulling) -> None:
    pulling.offer(b"x" * 1000)
    pulling.source.handlers["/offer.json"] = lambda _: (307, {"Location": "/moved.json"}, b"")
    pulling.source.files["/moved.json"] = pulling.source.files["/offer.json"]
    assert pulling.turn() is not None
    pulling.source.handlers["/moved.json"] = lambda _: (307, {"Location": "/offer.json"}, b"")
    with pytest.raises(UnavailableError, match="more than 3 times"):
        HttpClient().request("GET", f"{pulling.source.url}/offer.json")


def test_an_answer_without_end_is_not_read(pulling: Pulling) -> None:
    pulling.source.files["/offer.json"] = b" " * (3 << 20)
    pulling.source.chunked = True
    url = pulling.settings.offer
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        read_body(HttpClient().request("GET", url), url=url)
    assert pulling.turn() is None


def test_a_delta_is_taken_where_it_fits_and_the_whole_where_it_does_not(pulling: Pulling, bundles) -> None:
    first, second = bundles.make(), bundles.make(release=2)
    bundles.deliver(first, pulling.device.folder)
    with pulling.device.lock():
        list(install.install(pulling.device, pulling.device.waiting()[0]))
    patch = bundles.folder / "patch"
    n_bytes = delta.make(first.path, second.path, patch)
    data, whole = patch.read_bytes(), second.path.read_bytes()
    entry = {"from": first.digest, "url": "deltas/d", "size_bytes": n_bytes, "sha256": sha(data)}
    pulling.source.files["/deltas/d"] = data
    pulling.offer(whole, digest=second.digest, release=2, deltas=[entry, {**entry, "from": "c" * 64}])
    path, _ = pulling.until_fetched()
    assert path.read_bytes() == whole
    assert pulling.source.paths() == ["/offer.json", "/deltas/d"]
    assert hidden(pulling.device) == []
    path.unlink()
    for bad in (data[:-1] + b"?", data[:200] + bytes(len(data) - 200)):  # its sender has hashed what is wrong
        pulling.source.files["/deltas/d"] = bad
        pulling.offer(
            *(whole,),
            digest=second.digest,
            release=2,
            rollout=sha(bad),
            deltas=[{**entry, "sha256": sha(bad)}],
        )
        path, _ = pulling.until_fetched()
        assert path.read_bytes() == whole
        assert pulling.source.paths()[-1].endswith(".bundle")
        path.unlink()
    assert hidden(pulling.device) == []


def test_override_and_keyring_come_before_the_bundle(pulling: Pulling) -> None:
    pulling.source.files["/keyring.json"] = b'{"payload": ""}'
    paper = {"payloadType": "application/vnd.kit.override+json", "payload": "", "signatures": []}
    pulling.offer(b"x" * 1000, override=paper, keyring={"counter": 2, "url": "keyring.json"})
    path = pulling.turn()
    assert json.loads(path.with_name(f"{path.name}.override").read_text()) == paper
    assert (pulling.device.incoming / "keyring.json").read_bytes() == b'{"payload": ""}'
    pulling.turn()
    assert pulling.source.paths().count("/keyring.json") == 1


def test_a_return_is_followed_only_to_a_slot_that_was_good(pulling: Pulling, bundles) -> None:
    first, second = bundles.make(), bundles.make(release=2)
    for bundle in (first, second):
        bundles.deliver(bundle, pulling.device.folder)
        with pulling.device.lock():
            list(install.install(pulling.device, pulling.device.waiting()[0]))
    for digest, followed in ((first.digest, True), ("c" * 64, False), (second.digest, False)):
        value = {"format": 1, "kind": "return", "digest": digest, "poll_s": 60}
        pulling.source.files["/offer.json"] = json.dumps(value).encode()
        pulling.clock.now_s += pulling.puller.wait_s()
        offer = pulling.puller.look()
        assert (offer is not None) == followed
        assert offer is None or (offer.kind, offer.digest) == (RETURN, digest)


def test_a_bundle_that_was_good_and_is_damaged_later_comes_again(pulling: Pulling, bundles) -> None:
    first, second = bundles.make(), bundles.make(release=2)
    for bundle in (first, second):
        pulling.offer(bundle.path.read_bytes(), digest=bundle.digest, release=1 + (bundle is second))
        path = pulling.until_fetched()[0]
        with pulling.device.lock():
            list(install.install(pulling.device, path))
        assert pulling.turn() is None
    (pulling.device.slots / second.digest / "model.bin").write_bytes(b"rust")
    with pulling.device.lock():
        list(install.recover(pulling.device))
    assert pulling.device.state().current == first.digest
    with pulling.device.lock():
        list(install.install(pulling.device, pulling.until_fetched()[0]))
    assert pulling.device.state().current == second.digest


def test_what_does_not_fit_on_the_disk_is_not_begun(pulling: Pulling, small_disk: Path) -> None:
    folder = small_disk / "device"
    shutil.copytree(pulling.device.folder, folder)
    small = Pulling(Device.open(folder), pulling.source, pulling.settings)
    small.offer(bytes(200_000))
    with pytest.raises(UnavailableError, match="bytes free"):
        small.turn()
    assert hidden(small.device) == []
    small.offer(bytes(50_000), rollout="smaller")
    assert small.until_fetched()[0].stat().st_size == 50_000


def test_a_disk_that_fills_up_meanwhile_keeps_the_part_and_says_so(
    pulling: Pulling, small_disk: Path, monkeypatch
) -> None:
    folder = small_disk / "device"
    shutil.copytree(pulling.device.folder, folder)
    small = Pulling(Device.open(folder), pulling.source, pulling.settings)
    monkeypatch.setattr(Puller, "_check_room", lambda *_: None)
    data = random.Random(1).randbytes(200_000)
    small.offer(data)
    (small_disk / "other").write_bytes(bytes(150_000))
    with pytest.raises(UnavailableError, match="full"):
        small.turn()
    (small_disk / "other").unlink()
    path, _ = small.until_fetched()
    assert path.read_bytes() == data


def test_a_notice_makes_a_device_ask_soon_and_not_more_often(pulling: Pulling) -> None:
    pulling.offer(b"x" * 1000)
    assert pulling.turn() is not None
    assert pulling.puller.wait_s() == 60
    pulling.puller.notice()
    assert pulling.puller.wait_s() == 5  # it has just asked
    for _ in range(100):
        pulling.puller.notice()
    assert pulling.puller.wait_s() == 5
    pulling.clock.now_s += 30
    pulling.puller.notice()
    assert pulling.puller.wait_s() == 0
    pulling.source.answers.append((503, {"Retry-After": "40"}))
    pulling.turn()
    pulling.puller.notice()
    assert pulling.puller.wait_s() == 40  # what a source asks for goes first


def test_tls_is_verified(pulling: Pulling, tmp_path: Path) -> None:
    import http.server
    import ssl
    import threading

    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            str(tmp_path / "key.pem"),
            "-out",
            str(tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    (tmp_path / "www").mkdir()
    data = b"x" * 1000
    value = {"format": 1, "kind": INSTALL, "digest": "a" * 64, "release": 1, "poll_s": 60}
    value |= {"url": "x.bundle", "size_bytes": len(data), "sha256": sha(data)}
    (tmp_path / "www" / "offer.json").write_text(json.dumps(value))
    (tmp_path / "www" / "x.bundle").write_bytes(data)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}/offer.json"
    try:
        with pytest.raises(UnavailableError) as caught:
            HttpClient().request("GET", url)
        assert "certificate" in caught.value.message
        assert "clock" in str(caught.value.hint)
        pulling.settings = read_source({"offer": url, "ca_file": str(tmp_path / "cert.pem")}, folder=tmp_path)
        pulling.restart()
        path, _ = pulling.until_fetched()  # from the standard library's server, which knows no ranges
        assert path.read_bytes() == data
        with pytest.raises(UnavailableError, match="certificate"):
            HttpClient(ca_file=tmp_path / "cert.pem").request("GET", url.replace("127.0.0.1", "localhost"))
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match="cannot be read"):
        HttpClient(ca_file=tmp_path / "none.pem")


def test_nothing_but_kit_errors_comes_out_of_a_broken_answer(pulling: Pulling) -> None:
    for head in (
        b"",
        b"HTTP/1.1",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        os.urandom(99),
    ):
        pulling.source._answer = lambda asked, connection, head=head: connection.sendall(head)
        url = pulling.settings.offer
        with pytest.raises(KitError):
            read_body(HttpClient().request("GET", url), url=url)
        assert pulling.turn() is None
