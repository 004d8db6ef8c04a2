"""Rules of a slot on trial: what comes or is cut off meanwhile neither confirms it nor makes it vanish."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.agent import install
from edge.agent.device import Device
from edge.agent.state import IDLE, STAGED, TRIAL
from kit import keypair
from kit.errors import DiskFullError, GateError, UnavailableError
from kit.keyring import KeyEntry, Keyring, make_keyring
from tests.conftest import BundleMaker


def examine(device: Device, digest: str) -> dict[str, Any]:
    """Find nothing wrong."""
    device.open_slot(digest)
    return {"digest": digest}


def until(steps: Iterator[str], last: str) -> None:
    """Take steps up to one, and go no further."""
    while next(steps) != last:
        pass


def put(device: Device, path: Path, *, soak: bool = False) -> None:
    for _ in install.install(device, path, examine=examine, soak=soak):
        pass


@pytest.fixture
def device(device_folder: Path, bundles: BundleMaker) -> Device:
    """A device that runs release 1 and has release 2 on trial, which it has examined."""
    device = Device(device_folder)
    device.prepare()
    put(device, bundles.deliver(bundles.make(release=1), device_folder))
    put(device, bundles.deliver(bundles.make(release=2), device_folder), soak=True)
    assert (device.state().phase, device.state().staged) == (TRIAL, bundles.made[1].digest)
    return device


def restart(device: Device) -> None:
    for _ in install.recover(device, examine=examine, soak=True):
        pass


def test_rubbish_that_arrives_meanwhile_leaves_the_trial_as_it_is(
    device: Device, bundles: BundleMaker
) -> None:
    before = device.state()
    for number in range(3):
        path = device.incoming / f"{number}.bundle"
        path.write_bytes(b"rubbish")
        put(device, path, soak=True)
        assert device.state().last_report.status == "rejected"
    put(device, bundles.deliver(bundles.made[0], device.folder), soak=True)  # it runs already
    assert device.state().last_report.status == "unchanged"
    assert dataclasses.replace(device.state(), last_report=before.last_report) == before
    for _ in install.commit(device, running_digest=bundles.made[1].digest):
        pass
    assert (device.state().phase, device.state().current) == (IDLE, bundles.made[1].digest)


def test_the_bundle_on_trial_that_arrives_again_leaves_the_trial_as_it_is(
    device: Device, bundles: BundleMaker
) -> None:
    before = device.state()
    for _ in range(3):
        put(device, bundles.deliver(bundles.made[1], device.folder), soak=True)
    assert dataclasses.replace(device.state(), last_report=before.last_report) == before
    assert not device.waiting()


def test_a_newer_bundle_takes_the_place_of_the_one_on_trial(device: Device, bundles: BundleMaker) -> None:
    put(device, bundles.deliver(bundles.make(release=3), device.folder), soak=True)
    state = device.state()
    assert (state.phase, state.staged, state.attempts) == (TRIAL, bundles.made[2].digest, 1)
    with pytest.raises(GateError, match="nothing is confirmed"):
        next(install.commit(device, running_digest=bundles.made[1].digest))


def test_a_bundle_that_waits_under_the_same_name_survives_a_power_cut(
    device: Device, bundles: BundleMaker
) -> None:
    newer = bundles.make(release=3)
    (device.incoming / bundles.made[1].path.name).write_bytes(newer.path.read_bytes())
    restart(device)
    assert [path.read_bytes() for path in device.waiting()] == [newer.path.read_bytes()]


def test_a_slot_whose_golden_rows_nobody_has_seen_is_not_confirmed(
    device: Device, bundles: BundleMaker
) -> None:
    bundle = bundles.make(release=3)
    until(
        install.install(device, bundles.deliver(bundle, device.folder), examine=examine, soak=True), "trial"
    )
    with pytest.raises(GateError, match="golden rows"):  # the power was cut while they were asked
        next(install.commit(device, running_digest=bundle.digest))
    assert device.state().current == bundles.made[0].digest
    restart(device)
    for _ in install.commit(device, running_digest=bundle.digest):
        pass
    assert device.state().current == bundle.digest


def test_a_trial_that_a_full_disk_did_not_let_begin_is_taken_up_again(
    device: Device, bundles: BundleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles.make(release=3)
    path = bundles.deliver(bundle, device.folder)
    until(install.install(device, path, examine=examine, soak=True), "taken")
    assert device.state().phase == STAGED
    save = Device.save

    def full(device: Device, state: Any) -> None:
        raise DiskFullError("the disk is full")

    monkeypatch.setattr(Device, "save", full)
    with pytest.raises(UnavailableError):
        restart(device)
    monkeypatch.setattr(Device, "save", save)
    assert device.state().phase == STAGED
    restart(device)
    assert (device.state().phase, device.state().staged) == (TRIAL, bundle.digest)


def test_a_good_slot_that_comes_again_is_not_moved(device_folder: Path, bundles: BundleMaker) -> None:
    """The factory's slot is never missing, not for a moment: a power cut may fall into it."""
    device = Device(device_folder)
    device.prepare()
    for release in (1, 2):
        put(device, bundles.deliver(bundles.make(release=release), device_folder))
    first = device.slots / bundles.made[0].digest
    inode = first.stat().st_ino
    from kit.override import sign_override

    path = bundles.deliver(bundles.made[0], device_folder)
    paper = sign_override(bundles.made[0].digest, reason="the newer one is wrong", key=bundles.key)
    path.with_name(f"{path.name}.override").write_bytes(paper)
    put(device, path)
    assert device.state().current == bundles.made[0].digest
    assert first.stat().st_ino == inode
    assert device.state().release == 2


def test_what_ran_before_there_was_a_factory_slot_becomes_it(device: Device, bundles: BundleMaker) -> None:
    device.save(dataclasses.replace(device.state(), factory=None))  # as an older agent has left it
    for _ in install.commit(device, running_digest=bundles.made[1].digest):
        pass
    assert device.state().factory == bundles.made[0].digest


def test_a_keyring_that_a_power_cut_left_half_taken_is_counted(device: Device, bundles: BundleMaker) -> None:
    pem = bundles.key.with_suffix(".pub").read_bytes()
    keyring = Keyring(counter=4, issued_s=1_700_000_000, keys={keypair.key_id(pem): KeyEntry(pem)})
    data = make_keyring(keyring, key=bundles.key)
    (device.keys / "keyring.json").write_bytes(data)  # the state knows nothing of it yet
    path = device.incoming / "keyring.json"
    path.write_bytes(data)
    put(device, path)
    assert (device.state().keyring_counter, device.state().time_floor_s) == (4, 1_700_000_000)
