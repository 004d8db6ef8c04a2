"""Rules of flashing: nothing unverified touches a device, and only its own word counts as success."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge.agent.device import Device
from edge.flash import flash
from kit import archive, keypair, keyring, seal
from kit.errors import (
    ConflictError,
    GateError,
    InputError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from kit.project import Project
from kit.settings import FlashSettings

TOML = """\
[project]
name = "shapes"
[data]
path = "rows.csv"
label = "kind"
inputs = [{ name = "features", columns = ["width", "height"] }]
[model]
factory = "model:build"
[signing]
key = "../signing/signing.pem"
"""


@pytest.fixture
def project(tmp_path: Path, signing_key: Path) -> Project:
    """A project whose signing key is ``signing_key``."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "kit.toml").write_text(TOML)
    return Project.open(folder)


def settings(bundle: Path, device: Path) -> FlashSettings:
    return FlashSettings(bundle=str(bundle), device=f"path:{device}", yes=True)


def test_a_first_flash_pins_the_key_and_ends_confirmed(project: Project, bundles, tmp_path: Path) -> None:
    bundle = bundles.make(release=3)
    result = flash(project, settings(bundle.path, tmp_path / "device"))
    assert (result.status, result.digest, result.release) == ("confirmed", bundle.digest, 3)
    assert (result.name, result.target, result.device) == ("shapes", "onnx-test", str(tmp_path / "device"))
    key_id = keypair.key_id(project.trusted()[0])
    assert f"pinned key {key_id[:16]}" in result.detail
    device = Device.open(tmp_path / "device")
    assert device.trusted() == project.trusted()
    assert device.pointer() == device.state().current == bundle.digest
    (record,) = (project.state / "runs" / "flash").iterdir()
    assert json.loads(record.read_text())["digest"] == bundle.digest


def test_a_second_flash_says_that_nothing_changed_and_pins_nothing(
    project: Project, bundles, tmp_path
) -> None:
    bundle = bundles.make()
    flash(project, settings(bundle.path, tmp_path / "device"))
    again = flash(project, settings(bundle.path, tmp_path / "device"))
    assert (again.status, again.digest) == ("unchanged", bundle.digest)
    assert "pinned" not in again.detail


@pytest.mark.parametrize("kind", ["flipped", "other key", "no bundle", "absent"])
def test_a_bundle_that_does_not_verify_leaves_the_device_untouched(
    kind: str, project: Project, bundles, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "signing.pem"
    keypair.generate_key(other)
    path = bundles.make(key=other if kind == "other key" else None).path
    if kind == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif kind == "no bundle":
        path.write_bytes(b"hello" * 1000)
    elif kind == "absent":
        path.unlink()
    with pytest.raises(InputError if kind == "absent" else VerificationError) as caught:
        flash(project, settings(path, tmp_path / "device"))
    assert str(path) in caught.value.message  # not the place where it was unpacked
    assert not (tmp_path / "device").exists()


def test_a_bundle_signed_under_another_name_leaves_the_device_untouched(
    project: Project, bundles, tmp_path: Path, signing_key: Path
) -> None:
    bundle = bundles.make()
    seal.seal(bundle.folder, name="shapes-other", key=signing_key)
    archive.pack(bundle.folder, bundle.path)
    with pytest.raises(VerificationError, match=r"sealed-0\.bundle is signed as 'shapes-other'"):
        flash(project, settings(bundle.path, tmp_path / "device"))
    assert not (tmp_path / "device").exists()


def test_a_device_that_trusts_another_key_is_not_written_and_both_keys_are_named(
    project: Project, bundles, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "signing.pem"
    keypair.generate_key(other)
    keys = tmp_path / "device" / "keys"
    keys.mkdir(parents=True)
    shutil.copyfile(other.with_suffix(".pub"), keys / "other.pub")
    with pytest.raises(VerificationError) as caught:
        flash(project, settings(bundles.make().path, keys.parent))
    for pem in (project.trusted()[0], keypair.public_of(other)):
        assert keypair.key_id(pem)[:16] in caught.value.message
    assert [path.name for path in keys.iterdir()] == ["other.pub"]
    assert not (keys.parent / "incoming").exists()


@pytest.mark.parametrize(
    "made, error, reason",
    [
        ({"release": 1, "manifest": {"lineage": "older"}}, ConflictError, "not above release 2"),
        ({"release": 3, "golden_shift": 3.0}, GateError, "agreement"),
        ({"release": 3, "manifest": {"engine": "abacus"}}, VerificationError, "the engine 'abacus'"),
    ],
)
def test_what_the_device_rejects_is_told_with_its_reason(
    made, error: type[Exception], reason: str, project: Project, bundles, tmp_path: Path
) -> None:
    good = bundles.make(release=2)
    flash(project, settings(good.path, tmp_path / "device"))
    with pytest.raises(error, match=reason):
        flash(project, settings(bundles.make(**made).path, tmp_path / "device"))
    device = Device(tmp_path / "device")
    assert device.state().current == good.digest
    assert not device.waiting()


def test_a_place_that_cannot_be_a_device_is_refused(project: Project, bundles, tmp_path: Path) -> None:
    path = bundles.make().path
    with pytest.raises(NotFoundError, match="nor its parent"):
        flash(project, settings(path, tmp_path / "far" / "away"))
    with pytest.raises(InputError, match="is not a folder"):
        flash(project, settings(path, path))
    with pytest.raises(InputError, match="is no device folder"):
        flash(project, settings(path, tmp_path))
    assert not (tmp_path / "keys").exists()


def test_too_little_room_is_refused_before_anything_is_copied(
    project: Project, bundles, small_disk: Path
) -> None:
    (small_disk / "other").write_bytes(bytes(236 << 10))
    with pytest.raises(UnavailableError, match="bytes free; the bundle and its slot need"):
        flash(project, settings(bundles.make().path, small_disk / "device"))
    assert not (small_disk / "device").exists()


def test_a_second_flash_at_the_same_time_is_refused(project: Project, bundles, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    with Device(device).lock("flash.lock"), pytest.raises(ConflictError, match=r"flash\.lock"):
        flash(project, settings(bundles.make().path, device))
    assert flash(project, settings(bundles.made[0].path, device)).status == "confirmed"


def test_an_older_release_gets_in_with_a_reason_and_only_then(
    project: Project, bundles, tmp_path: Path
) -> None:
    older, newer = bundles.make(release=4), bundles.make(release=5)
    flash(project, settings(newer.path, tmp_path / "device"))
    with pytest.raises(ConflictError, match="not above release 5"):
        flash(project, settings(older.path, tmp_path / "device"))
    allowed = settings(older.path, tmp_path / "device").model_copy(update={"allow_older": "5 fails at night"})
    assert flash(project, allowed).digest == older.digest
    state = Device(tmp_path / "device").state()
    assert (state.current, state.release) == (older.digest, 5)  # a replay of 5's forerunners stays out
    assert list((tmp_path / "device" / "incoming").iterdir()) == []


def test_a_keyring_goes_along_and_brings_the_new_signer(
    project: Project, bundles, tmp_path: Path, signing_key: Path
) -> None:
    flash(project, settings(bundles.make().path, tmp_path / "device"))
    old = tmp_path / "old" / "signing.pem"
    signing_key.parent.rename(old.parent)
    pem = keypair.generate_key(signing_key)
    bundle = bundles.make(release=2)
    with pytest.raises(VerificationError, match="trusts"):
        flash(project, settings(bundle.path, tmp_path / "device"))
    ring = keyring.Keyring(counter=1, issued_s=0, keys={keypair.key_id(pem): keyring.KeyEntry(pem)})
    paper = keyring.make_keyring(ring, key=old, also=[signing_key])
    (signing_key.parent / keyring.KEYRING_NAME).write_bytes(paper)
    assert flash(project, settings(bundle.path, tmp_path / "device")).digest == bundle.digest
    state = Device(tmp_path / "device").state()
    assert (state.current, state.keyring_counter) == (bundle.digest, 1)
    assert flash(project, settings(bundles.make(release=3).path, tmp_path / "device")).release == 3


def test_what_an_interrupted_flash_left_in_incoming_goes(project: Project, bundles, tmp_path: Path) -> None:
    flash(project, settings(bundles.make().path, tmp_path / "device"))
    (tmp_path / "device" / "incoming" / f".flash-{'0' * 32}.part").write_bytes(b"half")
    flash(project, settings(bundles.make(release=2).path, tmp_path / "device"))
    assert list((tmp_path / "device" / "incoming").iterdir()) == []
