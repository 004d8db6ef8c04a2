"""The tamper matrix: what is changed, foreign, stale or unfit is refused by name before a slot is touched.

Every case is offered to a device that runs release 5. Afterwards its slots are what they were to the byte, so
is its state but for the report, and no trial has begun. Wrong clocks and full disks come last.
"""

from __future__ import annotations

import dataclasses
import io
import os
import platform
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.agent import install
from edge.agent.device import Device
from edge.agent.state import CONFIRMED, IDLE, REFUSED, REJECTED
from kit import archive, files, keypair
from kit.errors import KitError, UnavailableError
from kit.keyring import KeyEntry, Keyring, make_keyring
from kit.override import sign_override
from tests.conftest import Bundle, BundleMaker

_YEAR_2100_S = 4_102_444_800


def examine(device: Device, digest: str) -> dict[str, Any]:
    """Find nothing wrong with a slot that verifies."""
    device.open_slot(digest)
    return {"digest": digest}


def never(device: Device, digest: str) -> dict[str, Any]:
    raise AssertionError(f"{digest} was put on trial")


@dataclass
class Scene:
    """A device, and what makes bundles and keys for it."""

    device: Device
    bundles: BundleMaker
    place: Path

    def put(self, path: Path, examine: install.Examine = examine) -> None:
        """Let the agent take one file in."""
        for _ in install.install(self.device, path, examine=examine):
            pass

    def deliver(self, bundle: Bundle) -> Path:
        return self.bundles.deliver(bundle, self.device.folder)

    def raw(self, data: bytes) -> Path:
        """Put bytes into ``incoming/`` as they are."""
        path = self.device.incoming / "odd.bundle"
        path.write_bytes(data)
        return path

    def new_key(self, name: str) -> Path:
        key = self.place / name / "signing.pem"
        keypair.generate_key(key)
        return key

    def keyring(
        self,
        counter: int,
        *keys: Path | tuple[Path, int],
        revoked: tuple[Path, ...] = (),
        signer: Path | None = None,
        issued_s: int = 1_700_000_000,
    ) -> Path:
        """Put a keyring into ``incoming/``; a key with a time has its end."""
        entries = {}
        for each in keys:
            key, end_s = each if isinstance(each, tuple) else (each, None)
            pem = key.with_suffix(".pub").read_bytes()
            entries[keypair.key_id(pem)] = KeyEntry(pem, end_s)
        ids = tuple(keypair.key_id(key.with_suffix(".pub").read_bytes()) for key in revoked)
        paper = make_keyring(Keyring(counter, issued_s, entries, ids), key=signer or self.bundles.key)
        path = self.device.incoming / "keyring.json"
        path.write_bytes(paper)
        return path

    def slots(self) -> dict[str, str]:
        """Give every file under ``slots/`` and its digest, and where ``current`` points."""
        found = {
            path.relative_to(self.device.folder).as_posix(): files.sha256_file(path)
            for path in sorted(self.device.slots.rglob("*"))
            if path.is_file()
        }
        return {**found, "current": os.readlink(self.device.folder / "current")}


@pytest.fixture
def scene(device_folder: Path, bundles: BundleMaker, tmp_path: Path) -> Scene:
    """A device that has confirmed release 5."""
    device = Device.open(device_folder)
    device.prepare()
    scene = Scene(device, bundles, tmp_path / "keys")
    scene.put(scene.deliver(bundles.make(release=5)))
    assert device.state().last_report.status == CONFIRMED
    return scene


def require_refused(scene: Scene, path: Path, error: str, words: str) -> None:
    """Offer a file, and hold the device to its refusal."""
    before, slots = scene.device.state(), scene.slots()
    scene.put(path, examine=never)
    after = scene.device.state()
    report = after.last_report
    assert report is not None
    assert (report.status, report.error, report.file) == (REJECTED, error, path.name), report
    assert words in report.detail, report.detail
    kept = dataclasses.replace(after, last_report=before.last_report, rejected=before.rejected)
    assert kept == before
    assert set(after.rejected) <= {report.digest}
    assert scene.slots() == slots
    assert not scene.device.waiting()
    assert scene.device.good_slot().bundle.digest == before.current


def members(bundle: Bundle) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Give an archive's members as ``pack`` has written them."""
    with tarfile.open(bundle.path) as opened:
        found = [(info, opened.extractfile(info)) for info in opened]
    return [(info, (bundle.folder / info.name).read_bytes()) for info, _ in found]


def packed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Write members one after the other, headers as they are."""
    written = io.BytesIO()
    for info, data in entries:
        written.write(info.tobuf(tarfile.USTAR_FORMAT))
        written.write(data + bytes(-len(data) % 512))
    return written.getvalue() + bytes(1024)


def header(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, 0o644
    return info


def with_member(bundle: Bundle, info: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """Add a member where ``pack`` would put one of its name."""
    entries = [*members(bundle), (info, data)]
    return packed(sorted(entries, key=lambda entry: entry[0].name))


def without(bundle: Bundle, name: str) -> bytes:
    return packed([entry for entry in members(bundle) if entry[0].name != name])


def test_a_flipped_byte_is_refused_wherever_it_lies(scene: Scene) -> None:
    bundle = scene.bundles.make(release=6)
    good = bundle.path.read_bytes()
    offsets = {}
    with tarfile.open(bundle.path) as opened:
        for member in opened:
            offsets[f"the header of {member.name}"] = member.offset + 3
            offsets[f"the checksum of {member.name}"] = member.offset + 150
            for share in (0, member.size // 2, member.size - 1):
                offsets[f"{member.name}, byte {share}"] = member.offset_data + share
            if member.size % 512:
                offsets[f"the padding of {member.name}"] = member.offset_data + member.size
    offsets["the end"] = len(good) - 1
    names = {entry.name for entry, _ in members(bundle)}
    assert names == {name for name in names if name in archive.BUNDLE_FILES}
    assert len(offsets) >= 5 * len(names)
    for where, offset in offsets.items():
        data = bytearray(good)
        data[offset] ^= 1
        require_refused(scene, scene.raw(bytes(data)), "VerificationError", "")
        detail = scene.device.state().last_report.detail
        named = any(name in detail for name in names)
        unnamed = ("signature", "bundle", "truncated", "member", "archive", "odd.bundle")
        assert named or any(word in detail for word in unnamed), (where, detail)
    require_confirmed(scene, bundle)  # it was the bytes, not the bundle


def require_confirmed(scene: Scene, bundle: Bundle) -> None:
    scene.put(scene.deliver(bundle))
    state = scene.device.state()
    assert (state.current, state.last_report.status) == (bundle.digest, CONFIRMED), state.last_report


Make = Callable[[Scene], bytes]


def _archives() -> dict[str, tuple[Make, str]]:
    def made(change: Callable[[Bundle], bytes]) -> Make:
        return lambda scene: change(scene.bundles.make(release=6))

    def strange(name: str, kind: bytes, link: str = "") -> Make:
        return made(lambda bundle: with_member(bundle, header(name, kind=kind, link=link)))

    def signed_otherwise(scene: Scene) -> bytes:
        bundle, other = scene.bundles.make(release=6), scene.bundles.make(release=7)
        entries = [
            (info, (other.folder / "model.sig").read_bytes() if info.name == "model.sig" else data)
            for info, data in members(bundle)
        ]
        for info, data in entries:
            info.size = len(data)
        return packed(entries)

    def cut(n_bytes: int) -> Make:
        return made(lambda bundle: bundle.path.read_bytes()[:n_bytes])

    extra = header("notes.txt", size=2)
    unsigned = header("preprocessing.json", size=2)
    huge = header("model.onnx", size=archive.MAX_BYTES + 1)
    return {
        "an extra file": (
            made(lambda bundle: with_member(bundle, extra, b"hi")),
            "'notes.txt' is no file of",
        ),
        "an unsigned file": (made(lambda bundle: with_member(bundle, unsigned, b"{}")), "preprocessing.json"),
        "a missing model": (made(lambda bundle: without(bundle, "model.bin")), "model.bin"),
        "a missing manifest": (made(lambda bundle: without(bundle, "manifest.json")), "manifest.json"),
        "a missing signature": (made(lambda bundle: without(bundle, "model.sig")), "nobody signed it"),
        "missing golden rows": (
            made(lambda bundle: without(bundle, "golden/inputs.npz")),
            "golden/inputs.npz",
        ),
        "a symbolic link": (strange("model.onnx", tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link"),
        "a hard link": (strange("model.onnx", tarfile.LNKTYPE, "model.bin"), "is a hard link"),
        "a path that climbs": (strange("../../keys/evil.pub", tarfile.REGTYPE), "climbs out"),
        "an absolute path": (strange("/etc/cron.d/evil", tarfile.REGTYPE), "is not a relative path"),
        "a character device": (strange("model.onnx", tarfile.CHRTYPE), "is a character device"),
        "a block device": (strange("model.onnx", tarfile.BLKTYPE), "is a block device"),
        "a named pipe": (strange("model.onnx", tarfile.FIFOTYPE), "is a named pipe"),
        "a folder": (strange("golden", tarfile.DIRTYPE), "is a folder entry"),
        "a long name": (strange("././@LongLink", tarfile.GNUTYPE_LONGNAME), "plain file"),
        "a file twice": (made(lambda bundle: packed([*members(bundle)] * 2)), "twice"),
        "too many bytes": (made(lambda bundle: with_member(bundle, huge)), "more than 1024 MiB"),
        "a foreign signature": (signed_otherwise, "manifest.json"),
        "nothing": (lambda scene: b"", "truncated"),
        "cut in a header": (cut(300), "truncated"),
        "cut in a file": (cut(700), "truncated"),
        "cut before its end": (cut(-1024), "truncated"),
        "cut in its end": (cut(-512), "truncated"),
        "more after its end": (made(lambda bundle: bundle.path.read_bytes() + b"x"), "goes on after the end"),
        "something else": (lambda scene: b"MZ" + bytes(4096), "is not a bundle"),
    }


ARCHIVES = _archives()


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_no_kit_writes_is_refused(case: str, scene: Scene, tmp_path: Path) -> None:
    make, words = ARCHIVES[case]
    require_refused(scene, scene.raw(make(scene)), "VerificationError", words)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_in_incoming_is_not_opened(kind: str, scene: Scene, tmp_path: Path) -> None:
    path = scene.device.incoming / "odd.bundle"
    if kind == "link":
        path.symlink_to(scene.bundles.make(release=6).path)
        require_refused(scene, path, "VerificationError", "is a link")
    else:
        os.mkfifo(path)
        assert scene.device.waiting() == []  # whoever opens it waits for ever


def _manifests() -> dict[str, tuple[dict[str, Any], str, str]]:
    here = platform.machine()
    other = "aarch64" if here == "x86_64" else "x86_64"

    def needs(**requirements: Any) -> dict[str, Any]:
        return {"requirements": requirements}

    return {
        "another processor": (
            needs(machines=[other]),
            "VerificationError",
            f"runs on {other}; this machine is {here}",
        ),
        "a runtime that is too old": (
            needs(packages={"onnxruntime": ">=99,<100"}),
            "VerificationError",
            "answers rightly with onnxruntime >=99,<100; this device has onnxruntime 1.",
        ),
        "a runtime that is too new": (
            needs(packages={"onnxruntime": ">=1.0,<1.1"}),
            "VerificationError",
            "onnxruntime >=1.0,<1.1; this device has",
        ),
        "a runtime that is not there": (
            needs(packages={"abacus-runtime": ">=1"}),
            "MissingDependencyError",
            "abacus-runtime >=1; none is installed",
        ),
        "a range nobody writes": (needs(packages={"onnxruntime": "~=1.20"}), "InputError", "'~=1.20'"),
        "an engine from the future": ({"engine": "abacus"}, "VerificationError", "the engine 'abacus'"),
        "a GPU": (needs(gpu=True), "VerificationError", "needs an NVIDIA GPU"),
        "more memory than there is": (needs(memory_mb=10**9), "VerificationError", "1000000000 MB of memory"),
        "an old counter": ({"release": 4}, "ConflictError", "release 4 is not above release 5"),
        "the same counter": ({"lineage": "another"}, "ConflictError", "release 5 is not above release 5"),
    }


MANIFESTS = _manifests()


@pytest.mark.parametrize("case", MANIFESTS)
def test_what_this_device_cannot_run_is_refused(case: str, scene: Scene) -> None:
    manifest, error, words = MANIFESTS[case]
    release = 5 if error == "ConflictError" else 6
    bundle = scene.bundles.make(release=release, manifest=manifest)
    require_refused(scene, scene.deliver(bundle), error, words)
    state = scene.device.state()
    assert state.last_report.digest == bundle.digest
    assert "; " in state.last_report.detail or error == "InputError"  # the next step


def test_too_little_free_memory_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.agent import admission

    bundle = scene.bundles.make(release=6, manifest={"requirements": {"memory_mb": 500}})
    monkeypatch.setattr(admission, "_memory_mb", lambda: (1000.0, 400.0))
    before, slots = scene.device.state(), scene.slots()
    path = scene.deliver(bundle)
    with pytest.raises(UnavailableError, match="needs 500 MB of memory; 400 are free"):
        scene.put(path, examine=never)
    assert (scene.device.state(), scene.slots()) == (before, slots)
    assert scene.device.waiting() == [path]
    monkeypatch.setattr(admission, "_memory_mb", lambda: (1000.0, 600.0))
    scene.put(path)
    assert scene.device.state().current == bundle.digest


@pytest.mark.parametrize("kind", ["of another digest", "of another device", "of a stranger", "of no shape"])
def test_an_override_lets_in_nothing_but_what_it_names(kind: str, scene: Scene) -> None:
    bundle = scene.bundles.make(release=4)
    path = scene.deliver(bundle)
    scene.device.rename("pump-7")
    digest = "f" * 64 if kind == "of another digest" else bundle.digest
    device = "pump-8" if kind == "of another device" else "pump-7"
    key = scene.new_key("stranger") if kind == "of a stranger" else scene.bundles.key
    paper = sign_override(digest, reason="the newer one is wrong", key=key, device=device)
    beside = path.with_name(f"{path.name}.override")
    beside.write_bytes(b"{}" if kind == "of no shape" else paper)
    error = "ConflictError" if kind in ("of another digest", "of another device") else "VerificationError"
    require_refused(scene, path, error, "")
    assert not beside.exists()
    path = scene.deliver(bundle)
    beside.write_bytes(sign_override(bundle.digest, reason="it is", key=scene.bundles.key, device="pump-7"))
    scene.put(path)
    state = scene.device.state()
    assert (state.current, state.release) == (bundle.digest, 5)  # the counter does not go back


def test_a_key_can_be_rotated_between_two_installs_and_revoked_after(scene: Scene) -> None:
    first, device = scene.bundles.key, scene.device
    second, stranger = scene.new_key("second"), scene.new_key("stranger")
    require_refused(
        scene, scene.deliver(scene.bundles.make(release=6, key=second)), "VerificationError", "is not trusted"
    )
    require_keyring_refused(scene, scene.keyring(1, stranger, signer=stranger), "not trusted")
    scene.put(scene.keyring(1, first, second))
    assert device.state().keyring_counter == 1
    require_confirmed(scene, scene.bundles.make(release=7, key=second))
    require_confirmed(scene, scene.bundles.make(release=8))  # the first one counts until it is revoked
    require_confirmed(scene, scene.bundles.make(release=9, key=second))

    scene.put(scene.keyring(2, second, revoked=(first,), signer=second))
    name = keypair.key_id(first.with_suffix(".pub").read_bytes())[:16]
    bundle = scene.bundles.make(release=10)
    require_refused(scene, scene.deliver(bundle), "VerificationError", f"key {name}, which is revoked")
    require_keyring_refused(scene, scene.keyring(1, first, second, signer=second), "not above keyring 2")
    require_keyring_refused(scene, scene.keyring(3, first, signer=first), "not trusted")
    assert device.state().keyring_counter == 2
    require_confirmed(scene, scene.bundles.make(release=11, key=second))


def require_keyring_refused(scene: Scene, path: Path, words: str) -> None:
    before = scene.device.state()
    keys = {each.name: each.read_bytes() for each in scene.device.keys.iterdir()}
    scene.put(path)
    report = scene.device.state().last_report
    assert (report.status, report.file) == (REFUSED, "keyring.json"), report
    assert words in report.detail, report.detail
    assert dataclasses.replace(scene.device.state(), last_report=before.last_report) == before
    assert {each.name: each.read_bytes() for each in scene.device.keys.iterdir()} == keys


def test_a_slot_under_a_revoked_key_runs_until_there_is_another(scene: Scene) -> None:
    second, old = scene.new_key("second"), scene.device.state().current
    scene.put(scene.keyring(1, second, revoked=(scene.bundles.key,)))
    for _ in install.recover(scene.device, examine=never):
        pass
    assert scene.device.good_slot().bundle.digest == old  # it is all there is
    new = scene.bundles.make(release=6, key=second)
    require_confirmed(scene, new)
    (scene.device.slots / new.digest / "model.bin").write_bytes(b"rust")
    assert scene.device.good_slot().bundle.digest == old  # better than nothing
    with pytest.raises(KitError, match="not trusted"):
        scene.device.open_slot(old)


@pytest.mark.parametrize("now_s", [0.0, 3e9, float(_YEAR_2100_S)])
def test_a_clock_that_jumps_takes_no_slot_away_and_rejects_nothing_for_good(
    now_s: float, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key ends in 2065; a clock that shows 1970, 2065 or 2100 is set right again afterwards."""
    device, right_s = scene.device, time.time()
    scene.put(scene.keyring(1, (scene.bundles.key, 2_999_999_999)))
    bundle, before = scene.bundles.make(release=6), scene.device.state()
    monkeypatch.setattr(time, "time", lambda: now_s)
    assert device.good_slot().bundle.digest == before.current
    for _ in install.recover(device, examine=never):
        pass
    assert device.state() == before
    if now_s > right_s:
        require_refused(scene, scene.deliver(bundle), "VerificationError", "has expired on 2065-01-24")
        assert "clock" in device.state().last_report.detail
        assert device.state().rejected == {}
    monkeypatch.setattr(time, "time", lambda: right_s)
    require_confirmed(scene, bundle)
    monkeypatch.setattr(time, "time", lambda: now_s)
    assert device.good_slot().bundle.digest == bundle.digest


def test_a_clock_that_is_set_back_does_not_bring_an_expired_key_to_life(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = scene.new_key("second")
    ended = (scene.bundles.key, 1_600_000_000)
    scene.put(scene.keyring(1, ended, second, issued_s=1_700_000_000))
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)  # before the key's end; the keyring is newer
    bundle = scene.bundles.make(release=6)
    require_refused(scene, scene.deliver(bundle), "VerificationError", "has expired on 2020-09-13")
    successor = scene.bundles.make(release=7, key=second)
    require_confirmed(scene, successor)
    assert scene.device.good_slot().bundle.digest == successor.digest


def test_a_full_disk_leaves_everything_as_it_was(
    device_folder: Path, bundles: BundleMaker, disk_of: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = disk_of("512k")
    device = Device(disk / "device")
    shutil.copytree(device_folder, device.folder)
    device.prepare()
    scene = Scene(device, bundles, tmp_path / "keys")
    scene.put(scene.deliver(bundles.make(release=5)))
    path = scene.deliver(bundles.make(release=6))
    before, slots = device.state(), scene.slots()
    outcomes = []
    for free_kb in range(0, 160, 4):
        filler = disk / "filler"
        stats = os.statvfs(disk)
        filler.write_bytes(bytes(max(0, stats.f_bavail * stats.f_frsize - (free_kb << 10))))
        try:
            scene.put(path)
        except UnavailableError:
            outcomes.append(False)
            if device.state().staged is None:  # it had not come to its trial yet
                assert (device.state(), scene.slots()) == (before, slots)
                assert device.waiting() == [path]
            assert device.good_slot().bundle.digest == before.current
            assert (device.folder / "current" / "model.bin").is_file()
        else:
            outcomes.append(True)
            break
        finally:
            filler.unlink(missing_ok=True)
    assert outcomes[0] is False
    assert outcomes[-1] is True
    for _ in install.recover(device, examine=examine):
        pass
    state = device.state()
    assert (state.phase, state.current) == (IDLE, bundles.made[1].digest)
    assert not device.waiting()


def test_a_disk_that_cannot_be_written_goes_on_answering(
    device_folder: Path, bundles: BundleMaker, disk_of: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = disk_of("1m")
    device = Device(disk / "device")
    shutil.copytree(device_folder, device.folder)
    device.prepare()
    scene = Scene(device, bundles, tmp_path / "keys")
    scene.put(scene.deliver(bundles.make(release=5)))
    paths = [scene.deliver(bundles.make(release=6)), scene.keyring(1, bundles.key)]
    before, slots = device.state(), scene.slots()

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    remount("ro")
    try:
        for path in paths:
            with pytest.raises(UnavailableError):
                scene.put(path, examine=never)
        with pytest.raises(UnavailableError), device.lock():
            pass
        for _ in install.recover(device, examine=never):  # there is nothing to mend
            pass
        assert device.good_slot().bundle.digest == before.current
        assert (device.state(), scene.slots()) == (before, slots)
    finally:
        remount("rw")
    for path in device.waiting():
        scene.put(path)
    assert (device.state().current, device.state().keyring_counter) == (bundles.made[1].digest, 1)
