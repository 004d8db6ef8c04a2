"""Rules of flashing onto cards: file systems without links and permissions hold a device all the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import flash as flash_module
from edge.agent.__main__ import main
from edge.agent.device import Device
from edge.flash import flash
from kit.errors import UnavailableError
from kit.files import write_atomic
from kit.project import Project
from kit.settings import FlashSettings
from tests.awaiting import await_true

ROOT = Path(flash_module.__file__).parents[1]
_PROGRAMS = ("mkfs.exfat", "mount.exfat-fuse")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [shutil.which(str(words[0]), path=_PATH) or str(words[0]), *map(str, words[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Path]:
    """A mounted card of 24 MB with exFAT, by a real driver."""
    if not all(shutil.which(name, path=_PATH) for name in _PROGRAMS):
        pytest.skip("needs a driver for cards: apt-get install exfat-fuse exfatprogs")
    if os.geteuid() != 0:
        pytest.skip("only root may mount a card")
    image, place = tmp_path / "card.img", tmp_path / "card"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    assert run(_PROGRAMS[0], image).returncode == 0
    loop = run("losetup", "--find", "--show", image).stdout.strip()
    try:
        if not loop or run(_PROGRAMS[1], loop, place).returncode or not place.is_mount():
            pytest.skip("mounting a card is not permitted here: it takes /dev/fuse and loop devices")
        yield place
    finally:
        run("umount", "--lazy", place)
        if loop:
            run("losetup", "--detach", loop)


@pytest.fixture
def project(tmp_path: Path, signing_key: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "kit.toml").write_text(
        '[project]\nname = "shapes"\n[data]\npath = "rows.csv"\nlabel = "kind"\n'
        'inputs = [{ name = "features", columns = ["width", "height"] }]\n'
        '[model]\nfactory = "model:build"\n[signing]\nkey = "../signing/signing.pem"\n'
    )
    return Project.open(folder)


def settings(bundle: Path, device: Path, **changed: object) -> FlashSettings:
    values = {"bundle": str(bundle), "device": f"path:{device}", "yes": True, **changed}
    return FlashSettings.model_validate(values)


def test_a_card_without_links_holds_a_device(card: Path, project: Project, bundles) -> None:
    with pytest.raises(OSError, match=r"not implemented|not permitted"):
        os.symlink("a", card / "b")  # so that this test says something
    device = card / "device"
    first, second = bundles.make(), bundles.make(release=2)
    for bundle in (first, second):
        assert flash(project, settings(bundle.path, device)).status == "confirmed"
    opened = Device.open(device)
    assert opened.state().pointer == "file"
    assert opened.pointer() == opened.state().current == second.digest
    assert opened.state().previous == first.digest
    (device / "slots" / second.digest / "model.bin").write_bytes(b"rust")
    words = [sys.executable, "-m", "edge.agent", "run", str(device), "--once"]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert Device.open(device).state().current == first.digest


def test_a_flash_onto_a_card_that_was_interrupted_goes_on(card: Path, project: Project, bundles) -> None:
    device = card / "device"
    flash(project, settings(bundles.make().path, device))
    bundle = bundles.make(release=2, manifest={"lineage": "x" * 4_000_000})
    code = (
        "import sys, time\nfrom edge.flashing import hand\nfrom pathlib import Path\n"
        "from edge.flash import flash\nfrom kit.project import Project\n"
        "from kit.settings import FlashSettings\n"
        "hand._CHUNK_BYTES = 65536\nlog = hand._log.info\n"
        "class Slow:\n    def __init__(self, file): self.file = file\n"
        "    def read(self, n): time.sleep(0.05); return self.file.read(n)\n"
        "real = hand.Hand._pour\n"
        "hand.Hand._pour = lambda self, source, *a, **k: real(self, Slow(source), *a, **k)\n"
        f"flash(Project.open(Path({str(project.folder)!r})), "
        f"FlashSettings(bundle={str(bundle.path)!r}, device='path:{device}'))\n"
    )
    flasher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)

    def parts() -> list[Path]:
        return [path for path in (device / "incoming").glob(".flash-*.part") if path.stat().st_size > 300_000]

    await_true(lambda: parts() or flasher.poll() is not None, why="nothing was sent")
    flasher.send_signal(signal.SIGKILL)
    flasher.wait(30)
    assert parts()
    assert not Device(device).waiting()  # no half bundle has a name
    assert flash(project, settings(bundle.path, device)).status == "confirmed"
    assert Device.open(device).state().release == 2
    assert list((device / "incoming").iterdir()) == []


def test_a_full_card_keeps_what_it_runs(card: Path, project: Project, bundles, monkeypatch) -> None:
    device = card / "device"
    good = bundles.make()
    flash(project, settings(good.path, device))
    n_free = shutil.disk_usage(card).free
    (card / "film").write_bytes(bytes(n_free - 3_000_000))
    large = bundles.make(release=2, manifest={"lineage": "x" * 4_000_000})
    monkeypatch.setattr(flash_module, "check_place", lambda *_, **__: None)
    with pytest.raises(UnavailableError, match="full"):
        flash(project, settings(large.path, device))
    assert Device.open(device).good_slot().bundle.digest == good.digest
    (card / "film").unlink()
    assert flash(project, settings(large.path, device)).status == "confirmed"


def test_a_folder_that_knows_no_permissions_and_cannot_be_flushed_holds_a_device(
    project: Project, bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What some shares and FUSE drivers answer, given in this process and in each it starts."""
    (tmp_path / "poor").mkdir()
    (tmp_path / "poor" / "sitecustomize.py").write_text(POOR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "poor"))
    bundle = bundles.make()
    assert flash(project, settings(bundle.path, tmp_path / "device")).status == "confirmed"
    device = Device.open(tmp_path / "device")
    assert device.state().pointer == "file"
    assert device.pointer() == bundle.digest
    assert (tmp_path / "poor" / "refused").read_text().split() == ["chmod", "fsync", "symlink"]


POOR = """
import errno, os, stat
from pathlib import Path

refused = Path(__file__).with_name("refused")


def refuse(name, number):
    seen = set(refused.read_text().split()) if refused.exists() else set()
    refused.write_text(" ".join(sorted(seen | {name})))
    raise OSError(number, os.strerror(number))


real = os.fsync
os.symlink = lambda *_, **__: refuse("symlink", errno.EPERM)
os.chmod = os.fchmod = lambda *_, **__: refuse("chmod", errno.ENOSYS)


def fsync(handle):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        refuse("fsync", errno.EINVAL)
    real(handle)


os.fsync = fsync
"""


def test_a_secret_is_not_kept_where_everybody_can_read_it(
    card: Path, bundles, signing_key: Path, capsys
) -> None:
    (card / "keys").mkdir()
    shutil.copyfile(signing_key.with_suffix(".pub"), card / "keys" / "signing.pub")
    words = ["enrol", str(card), "--server", "http://127.0.0.1:9", "--code", "x"]
    code = main(words)
    said = capsys.readouterr().err
    mode = os.stat(card / "keys" / "signing.pub").st_mode
    if mode & 0o077:
        assert (code, "others could read" in said) == (7, True)
    write_atomic(card / "public", b"x")  # what is no secret may lie there
    assert not (card / "token").exists()
