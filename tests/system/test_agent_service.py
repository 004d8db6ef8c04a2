"""Rules of the agent as a service: it tells systemd, ends in order, counts, and takes back what fails."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edge.agent
from edge.agent.config import configure
from edge.agent.device import Device
from edge.agent.systemd import Notify
from kit.child import CODE_FOLDER
from kit.errors import KitError
from tests.awaiting import await_true
from tests.system.misbehaving import model
from tests.system.test_agent_api import UnixConnection

ROW = [{"width": 1.0, "height": 0.25}]
HARM = [{"width": 9.0, "height": 0.0}]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts agents; ends them."""
    made: list[subprocess.Popen[str]] = []

    def begin(folder: Path, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edge.agent", "run", str(folder), "--poll-s", "0.05"]
        process = subprocess.Popen(
            command, cwd=CODE_FOLDER, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        made.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "watching" in line:
                return process
        raise AssertionError(f"the agent ended with {process.wait()}")

    yield begin
    for process in made:
        process.kill()
        process.communicate()


def deliver(bundles, device_folder: Path, **more: object) -> str:
    bundle = bundles.make(release=len(bundles.made) + 1, **more)
    bundles.deliver(bundle, device_folder)
    return bundle.digest


def runs(folder: Path, digest: str) -> bool:
    with contextlib.suppress(KitError):
        return edge.agent.connect(folder).digest == digest
    return False


def rejected(folder: Path) -> dict[str, str]:
    return dict(Device(folder).state().rejected)


def records(folder: Path, kind: str) -> list[dict]:
    with contextlib.closing(sqlite3.connect(folder / "telemetry.sqlite")) as db:
        found = db.execute("SELECT body FROM records WHERE kind = ? ORDER BY number", (kind,)).fetchall()
    return [json.loads(body) for (body,) in found]


def test_systemd_hears_that_the_agent_is_ready_alive_and_ends(
    device_folder: Path, bundles, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(30)
        deliver(bundles, device_folder)
        process = start(device_folder, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="600000")
        heard: list[str] = []
        while sum("WATCHDOG=1" in each for each in heard) < 3:
            heard.append(listener.recv(4096).decode())
        assert any(each.startswith("READY=1") for each in heard)
        await_true(
            lambda: (
                any("STATUS=shapes 1 answers" in each for each in heard)
                or heard.append(listener.recv(4096).decode())
            )
        )
        process.send_signal(signal.SIGTERM)
        while heard[-1] != "STOPPING=1":
            heard.append(listener.recv(4096).decode())
        assert process.wait(30) == 0
    assert not (device_folder / "run" / "agent.sock").exists()


def test_a_notice_is_a_datagram_and_no_socket_is_no_trouble(tmp_path: Path) -> None:
    silent = Notify({})
    silent.ready("all is well")
    silent.close()
    gone = Notify({"NOTIFY_SOCKET": str(tmp_path / "nowhere"), "WATCHDOG_USEC": "30000000"})
    gone.alive()
    assert gone.watchdog_s == 30.0
    assert Notify({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_s == 0.0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0kit-test-notify")
        abstract = Notify({"NOTIFY_SOCKET": "@kit-test-notify"})
        abstract.extend(2.5)
        assert listener.recv(100) == b"EXTEND_TIMEOUT_USEC=2500000"


def test_an_agent_that_is_told_to_stop_leaves_nothing_running(
    device_folder: Path, bundles, start: Start
) -> None:
    digest = deliver(bundles, device_folder)
    process = start(device_folder)
    await_true(lambda: runs(device_folder, digest))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert time.monotonic() - began_s < 5.0
    assert not Path(f"/proc/{children[0]}").exists()
    again = start(device_folder)
    assert runs(device_folder, digest)  # from its first moment on
    again.kill()
    again.wait()
    start(device_folder)  # the socket of a killed agent is in nobody's way
    assert runs(device_folder, digest)


def test_a_new_bundle_answers_without_a_request_being_lost(
    device_folder: Path, bundles, start: Start
) -> None:
    first = deliver(bundles, device_folder)
    start(device_folder)
    await_true(lambda: runs(device_folder, first))
    connection = UnixConnection(device_folder / "run" / "agent.sock")
    body = json.dumps(
        {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 0.25]}]}
    )
    second = deliver(bundles, device_folder)
    versions: set[str] = set()
    end_s = time.monotonic() + 60
    while "2" not in versions and time.monotonic() < end_s:
        connection.request("POST", "/v2/models/shapes/infer", body=body)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        versions.add(found["model_version"])
    assert versions == {"1", "2"}
    assert runs(device_folder, second)


def test_what_was_answered_is_counted_in_windows(device_folder: Path, bundles, start: Start) -> None:
    configure(device_folder, ["telemetry.window_s=1", "telemetry.keep_inputs=1", "http.port=18997"])
    digest = deliver(bundles, device_folder, network=model("nan"))
    start(device_folder)
    await_true(lambda: runs(device_folder, digest))
    asked = edge.agent.connect(device_folder)
    for _ in range(5):
        asked.predict(ROW)
    with pytest.raises(KitError, match="not finite"):
        asked.predict(HARM)
    await_true(lambda: sum(each["answers"] for each in records(device_folder, "window")) == 5)
    windows = records(device_folder, "window")
    assert sum(each["errors"].get("nan", 0) for each in windows) == 1
    assert all(len(each["counts"]) == len(each["edges_ms"]) + 1 for each in windows)
    assert len(records(device_folder, "sample")) >= 1
    assert records(device_folder, "event")[0]["what"] == "confirmed"
    key = (device_folder / "run" / "http.key").read_text().strip()
    over_http = http.client.HTTPConnection("127.0.0.1", 18997, timeout=30)
    over_http.request("GET", "/v2/models/shapes", headers={"authorization": f"Bearer {key}"})
    assert json.loads(over_http.getresponse().read())["parameters"]["digest"] == digest


def test_months_without_anybody_leave_nothing_behind(device_folder: Path, bundles, start: Start) -> None:
    configure(device_folder, ["telemetry.window_s=1"])
    digest = deliver(bundles, device_folder)
    start(device_folder)
    await_true(lambda: runs(device_folder, digest))
    time.sleep(2.5)  # windows in which nobody asks
    assert records(device_folder, "window") == []


def test_a_wrong_setting_keeps_the_agent_from_starting(device_folder: Path) -> None:
    (device_folder / "agent.json").write_text('{"trial": 5}')
    ended = subprocess.run(
        [sys.executable, "-m", "edge.agent", "run", str(device_folder)],
        cwd=CODE_FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "no setting 'trial'" in ended.stderr
    assert "did you mean 'trial_s'" in ended.stderr


@pytest.mark.parametrize("harm", ["nan", "crash"])
def test_a_bundle_that_fails_when_it_runs_is_taken_back_and_rejected(
    harm: str, device_folder: Path, bundles, start: Start
) -> None:
    configure(device_folder, ["model.max_restarts=1", "model.timeout_s=5"])
    good = deliver(bundles, device_folder)
    start(device_folder)
    await_true(lambda: runs(device_folder, good))
    bad = deliver(bundles, device_folder, network=model(harm))
    await_true(lambda: runs(device_folder, bad))
    asked = edge.agent.connect(device_folder)
    end_s = time.monotonic() + 60
    while bad not in rejected(device_folder) and time.monotonic() < end_s:
        with contextlib.suppress(KitError):
            asked.predict(HARM)
    await_true(lambda: runs(device_folder, good))
    assert bad in rejected(device_folder)
    assert asked.predict(ROW)[0]["label"] == "low"
    assert "failed" in [each["what"] for each in records(device_folder, "event")]


def test_a_bundle_is_confirmed_after_it_ran_long_enough_without_a_fault(
    device_folder: Path, bundles, start: Start
) -> None:
    good = deliver(bundles, device_folder)
    first = start(device_folder)
    await_true(lambda: Device(device_folder).state().current == good)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    configure(device_folder, ["trial_s=3"])
    process = start(device_folder)
    bad = deliver(bundles, device_folder)
    await_true(lambda: runs(device_folder, bad))
    state = Device(device_folder).state()
    assert (state.phase, state.current) == ("trial", good)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    await_true(lambda: bad in rejected(device_folder))
    await_true(lambda: runs(device_folder, good))
    better = deliver(bundles, device_folder)
    await_true(lambda: Device(device_folder).state().current == better)
    assert runs(device_folder, better)
