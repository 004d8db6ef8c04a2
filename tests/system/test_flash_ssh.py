"""Rules of flashing over SSH, to a real OpenSSH server on the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge import flash as flash_module
from edge.agent.device import Device
from edge.flash import flash
from edge.flashing.hand import Hand
from edge.flashing.ssh import SshWay
from kit import keypair
from kit.errors import (
    ConflictError,
    GateError,
    InputError,
    MissingDependencyError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from kit.project import Project
from kit.settings import FlashSettings
from tests.awaiting import await_true
from tests.sshd import Sshd, make_sshd

ROOT = Path(flash_module.__file__).parents[1]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    sshd = make_sshd(tmp_path / "ssh")
    yield sshd
    sshd.stop()


@pytest.fixture
def project(tmp_path: Path, signing_key: Path) -> Project:
    """A project whose signing key is ``signing_key``."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "kit.toml").write_text(
        '[project]\nname = "shapes"\n[data]\npath = "rows.csv"\nlabel = "kind"\n'
        'inputs = [{ name = "features", columns = ["width", "height"] }]\n'
        '[model]\nfactory = "model:build"\n[signing]\nkey = "../signing/signing.pem"\n'
    )
    return Project.open(folder)


@pytest.fixture
def settings(sshd: Sshd, tmp_path: Path) -> Callable[..., FlashSettings]:
    """Settings of a flash to the device of the test."""

    def make(bundle: Path, **changed: object) -> FlashSettings:
        values = {
            "bundle": str(bundle),
            "device": f"ssh://device{tmp_path}/device",
            "yes": True,
            "device_python": sys.executable,
            "ssh_config": str(sshd.config),
            **changed,
        }
        return FlashSettings.model_validate(values)

    return make


@pytest.mark.parametrize("sftp", [True, False])
def test_a_bundle_is_flashed_to_a_host_with_and_without_sftp(
    sftp: bool, sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start(sftp=sftp)
    bundle = bundles.make(release=3)
    result = flash(project, settings(bundle.path))
    assert (result.status, result.digest, result.release) == ("confirmed", bundle.digest, 3)
    assert f"pinned key {keypair.key_id(project.trusted()[0])[:16]}" in result.detail
    device = Device.open(tmp_path / "device")
    assert device.pointer() == device.state().current == bundle.digest
    assert list(device.incoming.iterdir()) == []
    again = flash(project, settings(bundle.path))
    assert (again.status, "pinned" in again.detail) == ("unchanged", False)
    (record,) = (project.state / "runs" / "flash").iterdir()
    assert json.loads(record.read_text())["device"] == result.device


def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start()
    bundle = bundles.make()
    result = flash(project, settings(bundle.path, dry_run=True, yes=False))
    assert result.status == "planned"
    said = " / ".join(result.steps)
    for words in ("pin", "send", "run its agent once", "wait until it confirms release 1"):
        assert words in said
    assert not (tmp_path / "device").exists()
    assert not (project.state / "runs" / "flash").exists()


def test_a_first_flash_is_agreed_to_or_not_made(
    sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start()
    bundle = bundles.make()
    with pytest.raises(InputError, match="nobody here to ask"):
        flash(project, settings(bundle.path, yes=False))
    with pytest.raises(InputError, match="left as it is"):
        flash(project, settings(bundle.path, yes=False), ask=lambda _: False)
    assert not (tmp_path / "device").exists()
    asked: list[str] = []
    agreed = flash(project, settings(bundle.path, yes=False), ask=lambda text: not asked.append(text))
    assert agreed.status == "confirmed"
    assert keypair.key_id(project.trusted()[0])[:16] in asked[0]
    flash(project, settings(bundle.path, yes=False))  # and it is not asked again


@pytest.mark.parametrize("kind", ["unknown", "changed", "unchecked"])
def test_a_host_whose_key_is_not_the_known_one_is_refused(
    kind: str, sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start()
    if kind == "changed":
        sshd.know((sshd.folder / "user.pub").read_text())
    else:
        (sshd.folder / "known").write_text("")
    if kind == "unchecked":
        sshd.configure("StrictHostKeyChecking no")
    with pytest.raises(VerificationError, match="is not known" if kind != "changed" else "is not the one"):
        flash(project, settings(bundles.make().path))
    assert not (tmp_path / "device").exists()
    assert kind == "changed" or (sshd.folder / "known").read_text() == ""


def test_a_host_that_does_not_let_us_in_or_is_not_there_says_so(
    sshd: Sshd, project: Project, settings, bundles
) -> None:
    path = bundles.make().path
    with pytest.raises(UnavailableError, match=r"cannot be reached: .*refused"):
        flash(project, settings(path))
    sshd.start()
    shutil.copyfile(sshd.folder / "host.pub", sshd.folder / "user.pub")
    with pytest.raises(UnavailableError, match="does not let you in"):
        flash(project, settings(path))


def test_a_host_without_an_interpreter_or_an_agent_is_refused_before_anything_is_sent(
    sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start()
    path = bundles.make().path
    with pytest.raises(NotFoundError, match="no interpreter '/opt/none/python'"):
        flash(project, settings(path, device_python="/opt/none/python"))
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with pytest.raises(MissingDependencyError, match="the agent is not installed") as caught:
        flash(project, settings(path, device_python=f"{bare}/bin/python"))
    assert "pip install 'batch-edge-kit[onnxruntime]'" in str(caught.value.hint)
    assert not (tmp_path / "device").exists()


def test_the_interpreter_with_the_agent_is_found_in_the_device_folder(
    sshd: Sshd, project: Project, settings, bundles, device_folder: Path
) -> None:
    sshd.start()
    (device_folder / "venv" / "bin").mkdir(parents=True)
    wrapper = device_folder / "venv" / "bin" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    result = flash(project, settings(bundles.make().path, device_python=None))
    assert result.status == "confirmed"


def test_what_the_device_would_refuse_is_refused_before_anything_is_sent(
    sshd: Sshd, project: Project, settings, bundles, tmp_path: Path, monkeypatch
) -> None:
    sshd.start()
    flash(project, settings(bundles.make(release=5).path))
    monkeypatch.setattr(Hand, "send", lambda *_, **__: pytest.fail("it was sent"))
    with pytest.raises(ConflictError, match="not above release 5"):
        flash(project, settings(bundles.make(release=4, manifest={"lineage": "older"}).path))
    needs = {"engine": "onnxruntime", "packages": {"onnxruntime": ">=99"}}
    with pytest.raises(MissingDependencyError, match="needs onnxruntime >=99"):
        flash(project, settings(bundles.make(release=6, manifest={"requirements": needs}).path))
    needs = {"engine": "onnxruntime", "packages": {"onnxruntime": ">=1"}, "machines": ["riscv64"]}
    with pytest.raises(VerificationError, match="for riscv64"):
        flash(project, settings(bundles.make(release=6, manifest={"requirements": needs}).path))
    shutil.rmtree(tmp_path / "device" / "keys")
    with pytest.raises(InputError, match="is no device folder"):
        flash(project, settings(bundles.make(release=6).path))


def test_what_the_device_rejects_is_told_with_its_reason(
    sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start()
    good = bundles.make(release=2)
    flash(project, settings(good.path))
    with pytest.raises(GateError, match="agreement"):
        flash(project, settings(bundles.make(release=3, golden_shift=3.0).path))
    assert Device(tmp_path / "device").state().current == good.digest


def test_an_upload_that_broke_goes_on_where_it_broke(
    sshd: Sshd, project: Project, settings, bundles, device_folder: Path, monkeypatch
) -> None:
    """The connection is cut in the middle of the upload, from the server's side."""
    sshd.start()
    bundle = bundles.make(release=2, manifest={"lineage": "x" * 3_000_000})
    monkeypatch.setattr("edge.flashing.hand._CHUNK_BYTES", 65536)
    incoming = device_folder / "incoming"

    def cut_when_half_there() -> None:
        def half() -> bool:
            return any(path.stat().st_size > 500_000 for path in incoming.glob(".flash-*.part"))

        await_true(half, why="nothing was sent")
        for pid in children(sshd):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    cutter = threading.Thread(target=cut_when_half_there)
    cutter.start()
    real = Hand._pour

    def slowly(self: Hand, source, process, *, have: int, total: int) -> None:
        class Slow:
            def read(self, n_bytes: int) -> bytes:
                threading.Event().wait(0.02)
                return source.read(n_bytes)

        real(self, Slow(), process, have=have, total=total)

    monkeypatch.setattr(Hand, "_pour", slowly)
    with pytest.raises(UnavailableError):
        flash(project, settings(bundle.path))
    cutter.join()
    (part,) = incoming.glob(".flash-*.part")
    n_there = part.stat().st_size
    assert 0 < n_there < bundle.path.stat().st_size
    assert not (device_folder / "state.json").exists()
    monkeypatch.setattr(Hand, "_pour", real)
    sent: list[int] = []
    monkeypatch.setattr(
        *(Hand, "_pour"),
        lambda self, *each, have, total: (sent.append(have), real(self, *each, have=have, total=total)),
    )
    assert flash(project, settings(bundle.path)).status == "confirmed"
    assert sent == [n_there]


def children(sshd: Sshd) -> list[int]:
    """List the processes that serve connections of this server."""
    assert sshd.process is not None
    listed = subprocess.run(
        ["ps", "-o", "pid=,ppid=", "-A"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    parents = {int(line.split()[0]): int(line.split()[1]) for line in listed if line.strip()}
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != sshd.process.pid:
            above = parents[above]
        if above == sshd.process.pid and pid != above:
            found.append(pid)
    return found


def test_a_flasher_that_is_killed_leaves_neither_a_lock_nor_a_connection(
    sshd: Sshd, project: Project, settings, bundles, device_folder: Path
) -> None:
    sshd.start()
    bundle = bundles.make(manifest={"lineage": "x" * 3_000_000})
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom edge.flash import flash\n"
        "from edge.flashing import hand\nfrom kit.project import Project\n"
        "from kit.settings import FlashSettings\n"
        "hand.Hand._pour = lambda *_, **__: time.sleep(600)\n"
        "flash(Project.open(Path(sys.argv[1])), FlashSettings.model_validate_json(sys.argv[2]))\n"
    )
    words = [sys.executable, "-c", code, str(project.folder), settings(bundle.path).model_dump_json()]
    flasher = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    incoming = device_folder / "incoming"
    await_true(
        lambda: [*incoming.glob(".flash-*.part")] or flasher.poll() is not None, why="nothing was sent"
    )
    assert children(sshd)
    flasher.kill()
    flasher.wait(30)
    await_true(lambda: not children(sshd), why="a connection is left")
    assert flash(project, settings(bundle.path)).status == "confirmed"


def test_a_part_whose_bytes_have_changed_is_sent_anew(
    sshd: Sshd, project: Project, settings, bundles, device_folder: Path
) -> None:
    sshd.start()
    bundle = bundles.make(release=2)
    sha = flash_module.files.sha256_file(bundle.path)
    part = device_folder / "incoming" / f".flash-{sha[:32]}.part"
    part.write_bytes(b"\0" * (bundle.path.stat().st_size // 2))
    assert flash(project, settings(bundle.path)).status == "confirmed"


def test_a_full_device_is_said_in_a_sentence_and_keeps_what_it_runs(
    sshd: Sshd, project: Project, settings, bundles, small_disk: Path, monkeypatch
) -> None:
    sshd.start()
    device = f"ssh://device{small_disk}/device"
    good = bundles.make()
    flash(project, settings(good.path, device=device))
    (small_disk / "other").write_bytes(bytes(150 << 10))
    large = bundles.make(release=2, manifest={"lineage": "x" * 60_000})
    with pytest.raises(UnavailableError, match="bytes free"):
        flash(project, settings(large.path, device=device))
    monkeypatch.setattr(flash_module, "check_place", lambda *_, **__: None)  # it fills up after the look
    with pytest.raises(UnavailableError, match="full"):
        flash(project, settings(large.path, device=device))
    assert Device(small_disk / "device").state().current == good.digest
    (small_disk / "other").unlink()
    assert flash(project, settings(large.path, device=device)).status == "confirmed"


def test_the_second_of_two_flashers_is_told(
    sshd: Sshd, project: Project, settings, bundles, device_folder: Path
) -> None:
    sshd.start()
    bundle = bundles.make(release=2)
    way = SshWay(settings(bundle.path).device, python=sys.executable, config=sshd.config)
    way.open()
    with Hand(way).holding(longest_s=60.0), pytest.raises(ConflictError, match=r"flash\.lock"):
        flash(project, settings(bundle.path))
    way.close()
    assert flash(project, settings(bundle.path)).status == "confirmed"
    assert Device(device_folder).state().release == 2


def test_an_agent_that_already_runs_there_installs_it(
    sshd: Sshd, project: Project, settings, bundles, device_folder: Path
) -> None:
    sshd.start()
    words = [sys.executable, "-m", "edge.agent", "run", str(device_folder), "--poll-s", "0.05"]
    agent = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        way = SshWay(settings(bundles.make().path).device, python=sys.executable, config=sshd.config)
        way.open()
        hand = Hand(way)
        await_true(lambda: hand.call("probe", packages=[])["running"], why="the agent does not run")
        way.close()
        assert flash(project, settings(bundles.make(release=2).path)).status == "confirmed"
        assert agent.poll() is None
    finally:
        agent.terminate()
        agent.wait(30)


@pytest.mark.parametrize(
    "uri",
    [
        "ssh://-oProxyCommand=touch%20x/folder",
        "ssh://host;x/folder",
        "ssh://user:secret@host/folder",
        "ssh://host",
        "ssh://host/",
        "ssh://host:99999/folder",
        "ssh://host/a%0Ab",
        "ssh://a b/folder",
        "ssh://-l@host/folder",
    ],
)
def test_an_address_that_could_mean_something_else_is_refused(uri: str) -> None:
    with pytest.raises(InputError):
        SshWay(uri)


def test_an_odd_folder_name_is_taken_as_it_is(
    sshd: Sshd, project: Project, settings, bundles, tmp_path: Path
) -> None:
    sshd.start()
    odd = tmp_path / "a b'$(touch pwned)`\"*;"
    odd.mkdir()
    from urllib.parse import quote

    result = flash(project, settings(bundles.make().path, device=f"ssh://device{quote(str(odd))}/device"))
    assert result.status == "confirmed"
    assert Device.open(odd / "device").state().release == 1
    assert not (Path.home() / "pwned").exists()
