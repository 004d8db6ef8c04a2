"""Rules of notices: a message makes a device ask, whenever it was sent, and says nothing that is believed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.agent import __main__ as agent_module
from edge.agent.device import Device
from edge.agent.pulling.notices import Notices
from edge.agent.pulling.source import Broker
from kit.errors import InputError, MissingDependencyError, NotFoundError
from tests.awaiting import await_true
from tests.faulty_source import FaultySource

MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
TOPIC = "kit/line-1"
ROOT = Path(agent_module.__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not os.path.exists(MOSQUITTO), reason="needs a broker: apt-get install --no-install-recommends mosquitto"
)


@dataclass
class RealBroker:
    """A mosquitto of the test's own, with what it keeps in a folder."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    more: str = "allow_anonymous true\n"

    def start(self) -> None:
        settings = self.folder / "mosquitto.conf"
        who = "user root\n" if os.geteuid() == 0 else ""
        settings.write_text(
            f"listener {self.port} 127.0.0.1\npersistence true\n"
            f"persistence_location {self.folder}/\n{who}{self.more}"
        )
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(settings)], stderr=subprocess.DEVNULL)
        await_true(self._answers, why="the broker does not listen")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def send(self, text: str, *, retain: bool = True, **login: object) -> None:
        from paho.mqtt import publish

        publish.single(TOPIC, text, qos=1, retain=retain, hostname="127.0.0.1", port=self.port, **login)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the broker has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RealBroker]:
    pytest.importorskip("paho.mqtt", reason="needs paho-mqtt: pip install 'batch-edge-kit[mqtt]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = RealBroker(folder, port)
    yield broker
    broker.stop()


@pytest.fixture
def listen(broker: RealBroker) -> Iterator[object]:
    started: list[Notices] = []

    def start(**changed: object) -> tuple[Notices, threading.Event]:
        woken = threading.Event()
        settings = {"host": "127.0.0.1", "topic": TOPIC, "port": broker.port, "tls": False, **changed}
        notices = Notices(Broker(**settings), woken)  # type: ignore[arg-type] - a test's shorthand
        notices.start()
        started.append(notices)
        return notices, woken

    yield start
    for notices in started:
        notices.stop()


def test_a_message_wakes_a_device_whatever_it_says(broker: RealBroker, listen) -> None:
    broker.start()
    notices, woken = listen()
    assert notices.listening.wait(30)
    for text in ('{"digest": "aa", "url": "http://evil.example/"}', "", "\ud7ff" * 1000):
        woken.clear()
        broker.send(text, retain=False)
        assert woken.wait(30)


def test_a_device_that_was_off_hears_of_what_was_sent_meanwhile(broker: RealBroker, listen) -> None:
    broker.start()
    broker.send("{}")
    heard = threading.Event()
    notices, woken = listen()
    notices._client.on_message = lambda *_: heard.set()  # not what a new connection sets by itself
    assert heard.wait(30)
    assert woken.is_set()


def test_a_broker_that_starts_again_is_found_again_with_its_retained_message(
    broker: RealBroker, listen
) -> None:
    broker.start()
    broker.send("{}")
    notices, woken = listen()
    assert notices.listening.wait(30)
    broker.stop()
    await_true(lambda: not notices.listening.is_set(), why="it has not seen the broker go")
    woken.clear()
    broker.start()
    assert notices.listening.wait(60)
    assert woken.wait(30)
    woken.clear()
    broker.send("{}")
    assert woken.wait(30)


def test_a_device_may_start_before_its_broker(broker: RealBroker, listen) -> None:
    notices, woken = listen()
    assert not notices.listening.wait(0.2)
    assert not woken.is_set()
    broker.start()
    assert notices.listening.wait(60)


def test_tls_and_a_password_are_asked_for_and_checked(broker: RealBroker, listen, tmp_path: Path) -> None:
    certificate, key, login = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "login"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    places = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *places], check=True, capture_output=True)
    passwords = broker.folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line-1", "s3cret"], check=True)
    broker.more = f"certfile {certificate}\nkeyfile {key}\npassword_file {passwords}\nallow_anonymous false\n"
    broker.start()
    login.write_text("line-1:s3cret\n")
    with pytest.raises(InputError, match="others can read"):
        listen(tls=True, ca_file=certificate, password_file=login)
    login.chmod(0o600)
    notices, woken = listen(tls=True, ca_file=certificate, password_file=login)
    assert notices.listening.wait(30)
    woken.clear()
    context = ssl.create_default_context(cafile=str(certificate))
    broker.send("{}", auth={"username": "line-1", "password": "s3cret"}, tls=context)
    assert woken.wait(30)
    untrusting, _ = listen(tls=True, password_file=login)  # the system's certificates sign nothing here
    stranger, _ = listen(tls=True, ca_file=certificate)
    assert not untrusting.listening.wait(0.5)
    assert not stranger.listening.is_set()


def test_an_agent_that_would_ask_in_an_hour_installs_what_a_message_points_to(
    broker: RealBroker, bundles, device_folder: Path
) -> None:
    """All of it, in a process of its own: a static web server, a broker, and two bundles."""
    broker.start()
    with FaultySource() as source:
        settings = {"host": "127.0.0.1", "port": broker.port, "topic": TOPIC, "tls": False}
        entry = {"offer": f"{source.url}/offer.json", "mqtt": settings}
        (device_folder / "agent.json").write_text(json.dumps({"poll_s": 0.05, "source": entry}))

        def publish(release: int) -> str:
            bundle = bundles.make(release=release)
            data = bundle.path.read_bytes()
            source.files[f"/bundles/{bundle.digest}.bundle"] = data
            offer = {
                "format": 1,
                "kind": "install",
                "digest": bundle.digest,
                "release": release,
                "poll_s": 3600,
            }
            place = {"url": f"bundles/{bundle.digest}.bundle", "size_bytes": len(data)}
            whole = {**offer, **place, "sha256": hashlib.sha256(data).hexdigest()}
            source.files["/offer.json"] = json.dumps(whole).encode()
            broker.send(json.dumps({"digest": bundle.digest, "url": "https://nowhere.example/"}))
            return str(bundle.digest)

        def runs(digest: str) -> bool:
            try:
                return Device(device_folder).state().current == digest
            except NotFoundError:
                return False

        first = publish(1)  # before the device is there at all
        words = [sys.executable, "-m", "edge.agent", "run", str(device_folder)]
        agent = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            await_true(lambda: runs(first), why="the first bundle was not installed")
            broker.stop()
            broker.start()
            second = publish(2)
            await_true(lambda: runs(second), why="the second bundle was not installed")
            assert Device(device_folder).state().previous == first
        finally:
            agent.terminate()
            agent.wait(30)


def test_without_paho_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(MissingDependencyError) as caught:
        Notices(Broker("127.0.0.1", TOPIC), threading.Event())
    assert "[mqtt]" in str(caught.value.hint)
