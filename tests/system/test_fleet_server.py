"""The fleet's server as a process: commands beside it, downloads, refusals, and a kill in mid-rollout."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.fleet.devices import find_device, fleet_folder
from edge.fleet.store import Store
from kit import delta
from kit.cli import main
from kit.errors import ConflictError, NotFoundError
from kit.project import Project
from tests.awaiting import await_true


@dataclass
class Server:
    """A running ``kit fleet serve``."""

    process: subprocess.Popen[str]
    url: str

    def ask(
        self, path: str, body: Any = None, *, token: str = "", method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask once; gives status, headers in lower case and body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 429:  # a test is less patient than a device
                    time.sleep(float(error.headers["Retry-After"]))
                    return self.ask(path, body, token=token, method=method, **headers)
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@contextlib.contextmanager
def served(project: Path, *flags: str) -> Iterator[Server]:
    """Run ``kit fleet serve`` on a free port."""
    words = [sys.executable, "-m", "kit", "fleet", "serve", "--project", str(project), "--port", "0", *flags]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        match = re.search(r"answers at (\S+)", said)
        assert match, (said, process.stderr.read() if process.stderr else "")
        yield Server(process, match[1])
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()
        process.communicate()


@pytest.fixture
def project(digits_project: Path, bundles, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose key signs the test's bundles."""
    monkeypatch.chdir(digits_project)
    bundles.key = Project.open(digits_project).signing_key()
    return digits_project


def kit(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command; gives its exit code and what it printed."""
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@dataclass
class Device:
    """A device that asks over HTTP and tells what it is told to."""

    server: Server
    token: str
    digest: str | None = None
    seq: int = 0

    @classmethod
    def enrolled(cls, server: Server, capsys: pytest.CaptureFixture[str], name: str) -> Device:
        code, text = kit(capsys, "devices", "add", name, "--group", "line", "--json")
        assert code == 0, text
        one_time = json.loads(text)["code"]
        status, _, body = server.ask("/v1/enrol", {"code": one_time, "name": name, "machine": {}})
        assert status == 201, body
        made = cls(server, json.loads(body)["token"])
        made.tell()
        return made

    def offer(self) -> dict[str, Any]:
        status, _, body = self.server.ask("/v1/offer", token=self.token)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def tell(self, **changes: Any) -> None:
        self.seq += 1
        status = {
            **{"format": 1, "seq": self.seq, "agent": "0.1.0", "phase": "idle", "digest": self.digest},
            **{"previous": None, "release": 0, "rejected": {}, "last_report": None, "keyring": 0},
            **changes,
        }
        self.digest = status["digest"]
        code, _, body = self.server.ask("/v1/report", status, token=self.token)
        assert code == 204, body


def test_a_bundle_goes_to_every_device_wave_by_wave(project: Path, bundles, capsys) -> None:
    bundle = bundles.make(release=1)
    with served(project, "--poll-s", "1") as server:
        devices = [Device.enrolled(server, capsys, f"d{each}") for each in range(4)]
        rolling = ("fleet", "rollout", str(bundle.path), "--group", "line", "--waves", "1,100%")
        code, text = kit(capsys, *rolling, "--dry-run")
        assert code == 0
        assert "wave 1 of 2: 1 device (1)" in text
        assert "nothing was begun" in text
        code, text = kit(capsys, *rolling)
        assert code == 0, text
        assert "running, wave 1 of 2" in text
        code, text = kit(capsys, *rolling)
        assert (code, "is running" in text) == (6, True)

        def advance() -> bool:
            for device in devices:
                offer = device.offer()
                if offer["kind"] == "install":
                    address = "/v1/" + offer["url"]
                    status, headers, body = server.ask(address, token=device.token)
                    assert (status, len(body)) == (200, offer["size_bytes"])
                    assert headers["etag"] == f'"{offer["sha256"]}"'
                    device.tell(digest=offer["digest"], release=1)
            return all(device.digest == bundle.digest for device in devices)

        await_true(advance)
        await_true(lambda: "done" in kit(capsys, "fleet", "status", "--json")[1])
        code, text = kit(capsys, "fleet", "status")
        assert "4 devices, confirmed shapes release 1" in text
        code, text = kit(capsys, "devices", "list")
        assert text.count(bundle.digest[:12]) == 4
        code, text = kit(capsys, "devices", "show", "d0")
        assert (code, bundle.digest in text) == (0, True)


def test_a_download_goes_on_where_it_was_cut(project: Path, bundles, capsys) -> None:
    bundle = bundles.make()
    with served(project) as server:
        device = Device.enrolled(server, capsys, "one")
        assert kit(capsys, "fleet", "rollout", str(bundle.path), "--group", "line")[0] == 0
        await_true(lambda: device.offer()["kind"] == "install")
        path = f"/v1/bundles/{bundle.digest}.bundle"
        whole = bundle.path.read_bytes()
        etag = f'"{device.offer()["sha256"]}"'
        status, headers, rest = server.ask(path, token=device.token, Range="bytes=100-", If_Range=etag)
        assert (status, rest) == (206, whole[100:])
        assert headers["content-range"] == f"bytes 100-{len(whole) - 1}/{len(whole)}"
        status, _, all_of_it = server.ask(path, token=device.token, Range="bytes=100-", If_Range='"other"')
        assert (status, all_of_it) == (200, whole)
        assert server.ask(path, token=device.token, Range=f"bytes={len(whole)}-")[0] == 416
        assert server.ask(path)[0] == 401
        other = f"/v1/bundles/{'0' * 64}.bundle"
        traversal = "/v1/bundles/../../fleet.db"
        assert [server.ask(each, token=device.token)[0] for each in (other, traversal)] == [404, 404]


def test_a_device_that_runs_the_last_bundle_is_offered_what_turns_it_into_the_new_one(
    project: Path, bundles, capsys, tmp_path: Path
) -> None:
    first, second = bundles.make(release=1), bundles.make(release=2)
    with served(project) as server:
        device = Device.enrolled(server, capsys, "one")
        assert kit(capsys, "fleet", "rollout", str(first.path), "--group", "line")[0] == 0
        await_true(lambda: device.offer()["kind"] == "install")
        assert device.offer()["deltas"] == []
        device.tell(digest=first.digest, release=1)
        await_true(lambda: '"done"' in kit(capsys, "fleet", "status", "--json")[1])
        assert kit(capsys, "fleet", "rollout", str(second.path), "--group", "line")[0] == 0
        await_true(lambda: device.offer()["kind"] == "install")
        (offered,) = device.offer()["deltas"]
        assert offered["from"] == first.digest
        status, headers, data = server.ask("/v1/" + offered["url"], token=device.token)
        assert (status, len(data)) == (200, offered["size_bytes"])
        assert headers["etag"] == f'"{offered["sha256"]}"'
        assert len(data) < 0.5 * second.path.stat().st_size
        (tmp_path / "delta").write_bytes(data)
        whole = {"size_bytes": device.offer()["size_bytes"], "sha256": device.offer()["sha256"]}
        delta.apply(first.path, tmp_path / "delta", tmp_path / "new", **whole)
        assert (tmp_path / "new").read_bytes() == second.path.read_bytes()


def test_a_server_killed_in_mid_rollout_goes_on_where_it_was(project: Path, bundles, capsys) -> None:
    bundle = bundles.make()
    folder = fleet_folder(Project.open(project))
    with served(project) as server:
        devices = [Device.enrolled(server, capsys, f"d{each}") for each in range(3)]
        assert (
            kit(capsys, "fleet", "rollout", str(bundle.path), "--group", "line", "--waves", "1,100%")[0] == 0
        )
        await_true(lambda: any(device.offer()["kind"] == "install" for device in devices))
        first = next(device for device in devices if device.offer()["kind"] == "install")
        first.tell(digest=bundle.digest, release=1)
        await_true(lambda: all(d.offer()["kind"] == "install" for d in devices if d is not first))
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with served(project) as server:
        for device in devices:
            device.server = server
        for device in devices:
            if device is not first:
                assert device.offer()["kind"] == "install"  # what was decided holds
                device.tell(digest=bundle.digest, release=1)
        await_true(lambda: '"done"' in kit(capsys, "fleet", "status", "--json")[1])
    store = Store(folder)
    assert store.log()  # the chain holds
    store.close()


def test_two_operators_at_once_begin_one_rollout(project: Path, bundles, capsys) -> None:
    first, second = bundles.make(release=1), bundles.make(release=2)
    with served(project) as server:
        Device.enrolled(server, capsys, "one")
        words = [sys.executable, "-m", "kit", "fleet", "rollout"]
        started = [
            subprocess.Popen(
                [*words, str(bundle.path), "--group", "line"], stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for bundle in (first, second)
        ]
        codes = sorted((each.communicate(), each.returncode)[1] for each in started)
        assert codes == [0, 6]
        assert kit(capsys, "fleet", "pause")[0] == 0
        code, text = kit(capsys, "fleet", "pause")
        assert (code, "paused; only a running one" in text) == (6, True)
        assert kit(capsys, "fleet", "resume")[0] == 0
        assert kit(capsys, "fleet", "abort")[0] == 0
        assert kit(capsys, "fleet", "abort")[0] == 5


def test_a_bundle_nobody_trusts_is_refused_before_anything(
    project: Path, bundles, signing_key, capsys
) -> None:
    kit(capsys, "devices", "add", "one", "--group", "line")
    forged = bundles.make(key=signing_key)
    code, text = kit(capsys, "fleet", "rollout", str(forged.path), "--group", "line")
    assert (code, "not trusted" in text) == (3, True)
    assert not (fleet_folder(Project.open(project)) / "bundles").exists()
    code, text = kit(capsys, "fleet", "rollout", str(bundles.make().path), "--group", "lime")
    assert (code, "did you mean" in text or "choose" in text) == (5, True)


def test_a_fleet_has_one_server(project: Path, capsys) -> None:
    with served(project):
        code, text = kit(capsys, "fleet", "serve", "--port", "0")
        assert (code, "another process serves" in text) == (6, True)


def test_other_machines_are_answered_with_tls_alone(project: Path, capsys, tmp_path: Path) -> None:
    code, text = kit(capsys, "fleet", "serve", "--host", "0.0.0.0")
    assert (code, "without_tls" in text) == (2, True)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    with served(project, "--tls-cert", str(certificate), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(server.url, context=trusting, timeout=30) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(server.url, timeout=30)


def test_bodies_are_cut_off_at_their_limit(project: Path, capsys) -> None:
    with served(project) as server:
        device = Device.enrolled(server, capsys, "one")
        large = b'{"records": [' + b" " * (2 << 20)
        assert server.ask("/v1/telemetry", large, token=device.token)[0] in (413, 400)
        assert server.ask("/v1/enrol", b"x" * (64 << 10))[0] == 413
        assert server.ask("/v1/offer", b"x", token=device.token)[0] in (404, 405, 413)
        address = urllib.parse.urlsplit(server.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        connection.putrequest("POST", "/v1/telemetry")
        connection.putheader("Authorization", f"Bearer {device.token}")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):  # a body that never says how long it is
                connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            assert connection.getresponse().status == 413
        connection.close()
        assert device.offer()["kind"] == "stay"


def test_the_page_wants_its_token(project: Path, capsys) -> None:
    with served(project) as server:
        path = fleet_folder(Project.open(project)) / "admin.token"
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text().strip()
        for address in ("/admin/v1/overview", "/admin/v1/devices", "/admin/v1/devices/x"):
            assert server.ask(address)[0] == 401
            assert server.ask(address, token="x")[0] == 401
        assert server.ask("/admin/v1/rollouts/x/abort", b"", token="x")[0] == 401
        assert server.ask("/admin/v1/rollouts/x/abort", b"", token=token)[0] == 404
        assert server.ask("/admin/v1/rollouts/x/explode", b"", token=token)[0] == 404
        status, headers, _ = server.ask("/")
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        device = Device.enrolled(server, capsys, "one")
        assert server.ask("/admin/v1/overview", token=device.token)[0] == 401
        assert server.ask("/v1/offer", token=token)[0] == 401
        code, _ = kit(capsys, "devices", "remove", "one")
        assert code == 0
        await_true(lambda: server.ask("/v1/offer", token=device.token)[0] == 401)


def test_a_device_that_is_flashed_is_found_by_its_name(project: Path, capsys, tmp_path: Path) -> None:
    opened = Project.open(project)
    with pytest.raises(NotFoundError, match="no fleet yet"):
        find_device(opened, "bench")
    code, text = kit(capsys, "devices", "add", "bench", "--at", "path:card")
    assert (code, "kit flash BUNDLE bench" in text) == (0, True)
    assert find_device(opened, "bench") == f"path:{project / 'card'}"
    assert kit(capsys, "devices", "add", "far", "--at", "ssh://pi@line-3/opt/kit")[0] == 0
    assert find_device(opened, "far") == "ssh://pi@line-3/opt/kit"
    with pytest.raises(NotFoundError, match="bensh"):
        find_device(opened, "bensh")
    with served(project) as server:
        Device.enrolled(server, capsys, "pulls")
        with pytest.raises(ConflictError, match="fetches its bundles itself"):
            find_device(opened, "pulls")
    code, text = kit(capsys, "devices", "list")
    assert (code, text.count("brought")) == (0, 2)
    assert kit(capsys, "devices", "add", "bench", "--at", "path:card")[0] == 6
    assert kit(capsys, "devices", "remove", "bench")[0] == 0
    assert kit(capsys, "devices", "remove", "bench")[0] == 5


def test_an_interrupt_leaves_the_rollout_running_and_says_so(project: Path, bundles, capsys) -> None:
    bundle = bundles.make()
    with served(project) as server:
        device = Device.enrolled(server, capsys, "one")
        words = [sys.executable, "-u", "-m", "kit", "fleet", "rollout", str(bundle.path), "--group", "line"]
        following = subprocess.Popen([*words, "--follow"], stdout=subprocess.PIPE, text=True)
        assert following.stdout is not None
        said = next(line for line in following.stdout if "running, wave 1" in line)
        following.send_signal(signal.SIGINT)
        rest = following.communicate(timeout=60)[0]
        assert (following.returncode, "goes on without this command" in rest) == (130, True), (said, rest)
        await_true(lambda: device.offer()["kind"] == "install")
        device.tell(rejected={bundle.digest: "golden rows"})
        await_true(lambda: "stopped" in kit(capsys, "fleet", "status")[1])
