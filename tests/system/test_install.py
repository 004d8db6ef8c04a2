"""Rules of installing: what is not signed, new, right and quick never becomes the current bundle."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from edge.agent import install, trial
from edge.agent.__main__ import run
from edge.agent.device import Device
from kit import archive, keypair, seal
from kit.errors import NotFoundError


def settle(folder: Path) -> Device:
    """Start an agent for one pass, as after a power cut."""
    with contextlib.suppress(NotFoundError):  # nothing has been confirmed yet
        run(folder, once=True, poll_s=1.0)
    return Device(folder)


def installed(folder: Path, bundles, bundle, *, timeout_s: float = 60.0) -> Device:
    """Install one bundle with a trial of a given length."""
    device = Device(folder)
    device.prepare()
    for _ in install.install(
        device, bundles.deliver(bundle, folder), examine=partial(trial.run_trial, timeout_s=timeout_s)
    ):
        pass
    return device


@pytest.fixture
def running(device_folder: Path, bundles) -> Device:
    """A device that has confirmed release 1."""
    bundles.deliver(bundles.make(release=1), device_folder)
    return settle(device_folder)


def assert_runs(device: Device, digest: str) -> None:
    state = device.state()
    assert (state.current, state.phase, state.staged) == (digest, "idle", None)
    assert device.pointer() == digest
    assert (device.folder / "current" / "model.bin").is_file()
    assert device.good_slot().bundle.digest == digest
    assert not device.waiting()
    assert {path.name for path in device.slots.iterdir()} == set(state.good)


def test_a_good_bundle_is_confirmed(device_folder: Path, bundles) -> None:
    bundle = bundles.make(release=4)
    bundles.deliver(bundle, device_folder)
    device = settle(device_folder)
    assert_runs(device, bundle.digest)
    state = device.state()
    assert (state.release, state.previous, state.last_report.status) == (4, None, "confirmed")
    assert state.last_report.digest == bundle.digest


def test_two_slots_are_kept_and_older_ones_go(running: Device, bundles) -> None:
    second, third = bundles.make(release=2), bundles.make(release=3)
    for bundle in (second, third):
        bundles.deliver(bundle, running.folder)
        settle(running.folder)
    assert_runs(running, third.digest)
    assert running.state().previous == second.digest


def cuts(folder: Path, path: Path, *, into: Path) -> list[tuple[str, Path]]:
    """Install a bundle and copy the whole folder after each step, as a power cut would leave it."""
    device = Device(folder)
    device.prepare()
    found = []
    for index, step in enumerate(install.install(device, path)):
        copy = into / f"{index}-{step}"
        shutil.copytree(folder, copy, symlinks=True)
        found.append((step, copy))
    return found


def test_a_power_cut_at_any_step_ends_on_a_good_slot(running: Device, bundles, tmp_path: Path) -> None:
    bundle = bundles.make(release=2)
    found = cuts(running.folder, bundles.deliver(bundle, running.folder), into=tmp_path / "cuts")
    assert [step for step, _ in found] == [
        "unpacked",
        "placed",
        "staged",
        "taken",
        "trial",
        "confirmed",
        "switched",
        "swept",
    ]
    before = bundles.made[0].digest
    for _, folder in found:
        # Before anybody starts an agent, readers find a whole slot; afterwards, the new one.
        assert Device(folder).good_slot().bundle.digest in (before, bundle.digest)
        assert (folder / "current" / "manifest.json").is_file()
        assert_runs(settle(folder), bundle.digest)


def test_a_power_cut_with_a_bad_bundle_stays_on_the_last_good_slot(
    running: Device, bundles, tmp_path: Path
) -> None:
    before = running.state().current
    bundle = bundles.make(release=2, golden_shift=3.0)
    found = cuts(running.folder, bundles.deliver(bundle, running.folder), into=tmp_path / "cuts")
    assert "rejected" in [step for step, _ in found]
    for _, folder in found:
        device = settle(folder)
        assert_runs(device, before)
        assert list(device.state().rejected) == [bundle.digest]
        assert device.state().release == 1


def test_a_trial_that_takes_the_machine_down_is_tried_twice_at_most(running: Device, bundles) -> None:
    before = running.state().current
    bundle = bundles.make(release=2)
    cut_off = [install.install(running, bundles.deliver(bundle, running.folder))]
    while next(cut_off[-1]) != "trial":
        pass
    cut_off.append(install.recover(running))
    while next(cut_off[-1]) != "trial":
        pass
    device = settle(running.folder)
    assert_runs(device, before)
    assert "interrupted 2 times" in device.state().rejected[bundle.digest]


def test_a_power_cut_before_the_file_is_taken_does_not_try_it_twice(running: Device, bundles) -> None:
    path = bundles.deliver(bundles.make(release=2, golden_shift=3.0), running.folder)
    cut_off = install.install(running, path)
    while next(cut_off) != "staged":
        pass
    steps = list(install.recover(running))
    steps += [step for path in running.waiting() for step in install.install(running, path)]
    assert steps.count("trial") == 1


def test_the_same_bundle_again_changes_nothing(running: Device, bundles) -> None:
    before = running.state()
    bundles.deliver(bundles.made[0], running.folder)
    after = settle(running.folder).state()
    assert after.last_report.status == "unchanged"
    assert (after.current, after.release) == (before.current, before.release)


@pytest.mark.parametrize("release", [1, 2])
def test_a_replayed_release_is_rejected(release: int, device_folder: Path, bundles) -> None:
    bundle = bundles.make(release=2)
    bundles.deliver(bundle, device_folder)
    settle(device_folder)
    old = bundles.make(release=release, manifest={"lineage": "another"})
    bundles.deliver(old, device_folder)
    device = settle(device_folder)
    assert_runs(device, bundle.digest)
    assert device.state().last_report.error == "ConflictError"
    assert "not above release 2" in device.state().rejected[old.digest]


def test_an_old_model_under_a_higher_release_is_an_emergency_revert(running: Device, bundles) -> None:
    bundles.deliver(bundles.make(release=2, manifest={"model_digest": "1" * 64}), running.folder)
    settle(running.folder)
    revert = bundles.make(release=3)
    bundles.deliver(revert, running.folder)
    assert_runs(settle(running.folder), revert.digest)


def offsets(path: Path) -> dict[str, int]:
    """Give the offset of a byte in every header and in the middle of every file of an archive."""
    found = {}
    with tarfile.open(path) as opened:
        for member in opened:
            found[f"the header of {member.name}"] = member.offset + 3
            found[member.name] = member.offset_data + member.size // 2
    return found


def test_a_flipped_byte_in_any_file_is_rejected(running: Device, bundles) -> None:
    before = running.state().current
    bundle = bundles.make(release=2)
    good = bundle.path.read_bytes()
    assert len(offsets(bundle.path)) == 12
    for name, offset in offsets(bundle.path).items():
        data = bytearray(good)
        data[offset] ^= 1
        delivered = bundles.deliver(bundle, running.folder)
        delivered.write_bytes(data)
        list(install.install(running, delivered))
        assert_runs(running, before)
        report = running.state().last_report
        assert (report.status, report.error, report.digest) == ("rejected", "VerificationError", None), name


@pytest.mark.parametrize("n_bytes", [0, 511, 2048, -1, -1024])
def test_a_truncated_archive_is_rejected(n_bytes: int, running: Device, bundles) -> None:
    before = running.state().current
    delivered = bundles.deliver(bundles.make(release=2), running.folder)
    delivered.write_bytes(delivered.read_bytes()[:n_bytes])
    assert_runs(settle(running.folder), before)
    assert running.state().last_report.error == "VerificationError"


@pytest.mark.parametrize("kind", ["extra", "link", "climbing", "unsigned"])
def test_an_archive_with_something_else_in_it_is_rejected(
    kind: str, running: Device, bundles, tmp_path: Path
) -> None:
    before = running.state().current
    bundle = bundles.make(release=2)
    names = sorted(path.relative_to(bundle.folder).as_posix() for path in bundle.folder.rglob("*.*"))
    if kind == "unsigned":
        names.remove("model.sig")
    delivered = running.incoming / "odd.bundle"
    with tarfile.open(delivered, "w", format=tarfile.USTAR_FORMAT) as opened:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = (bundle.folder / name).stat().st_size
            with (bundle.folder / name).open("rb") as file:
                opened.addfile(info, file)
        odd = tarfile.TarInfo({"climbing": "../escaped.json"}.get(kind, "preprocessing.json"))
        if kind == "link":
            odd.type, odd.linkname = tarfile.SYMTYPE, "/etc/hostname"
        if kind != "unsigned":
            opened.addfile(odd)
    assert_runs(settle(running.folder), before)
    assert running.state().last_report.error == "VerificationError"
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_file_the_signature_does_not_name_is_rejected(running: Device, bundles) -> None:
    from kit import archive

    before = running.state().current
    bundle = bundles.make(release=2)
    (bundle.folder / "preprocessing.json").write_text("{}")
    archive.pack(bundle.folder, bundle.path)
    bundles.deliver(bundle, running.folder)
    assert_runs(settle(running.folder), before)
    assert "preprocessing.json" in running.state().last_report.detail


def test_a_link_in_incoming_is_rejected(running: Device, bundles) -> None:
    before = running.state().current
    (running.incoming / "link.bundle").symlink_to(bundles.make(release=2).path)
    assert_runs(settle(running.folder), before)
    assert "is a link" in running.state().last_report.detail


def test_a_bundle_signed_by_another_key_is_rejected(running: Device, bundles, tmp_path: Path) -> None:
    before = running.state().current
    other = tmp_path / "other" / "signing.pem"
    keypair.generate_key(other)
    bundles.deliver(bundles.make(release=2, key=other), running.folder)
    assert_runs(settle(running.folder), before)
    assert running.state().last_report.error == "VerificationError"


@pytest.mark.parametrize(
    "made, reason",
    [
        ({"golden_shift": 3.0}, "agreement"),
        ({"golden_shift": 0.2}, "output error"),
        ({"network": "nan"}, "agreement"),
        ({"manifest": {"budgets": {"max_latency_ms": 1e-6}}}, "above the budget"),
        ({"manifest": {"core": {}}}, "crashed: KeyError"),
        ({"manifest": {"model": "signature.json"}}, "cannot load"),
        ({"manifest": {"engine": "abacus"}}, "the engine 'abacus', which this agent does not know"),
    ],
)
def test_a_bundle_that_does_not_work_here_is_rolled_back(made, reason: str, running: Device, bundles) -> None:
    before = running.state().current
    bundle = bundles.make(**{"release": 2, **made})
    bundles.deliver(bundle, running.folder)
    assert_runs(settle(running.folder), before)
    assert reason in running.state().rejected[bundle.digest]


@pytest.mark.parametrize(
    "manifest, reason",
    [
        ({"release": "9"}, "'9', not a whole number"),
        ({"format": 2}, "format 2"),
        ({"model": "model.xml"}, "no"),
    ],
)
def test_a_signed_folder_that_is_no_bundle_never_gets_a_slot(
    manifest, reason: str, running: Device, bundles
) -> None:
    before = running.state().current
    bundles.deliver(bundles.make(**{"release": 2, "manifest": manifest}), running.folder)
    assert_runs(settle(running.folder), before)
    report = running.state().last_report
    assert (report.status, report.error, report.digest) == ("rejected", "VerificationError", None)
    assert reason in report.detail


def test_a_bundle_signed_under_another_name_is_rejected(running: Device, bundles, tmp_path: Path) -> None:
    before = running.state().current
    bundle = bundles.make(release=2)
    seal.seal(bundle.folder, name="shapes-other", key=bundles.key)
    archive.pack(bundle.folder, bundle.path)
    bundles.deliver(bundle, running.folder)
    assert_runs(settle(running.folder), before)
    assert "is signed as 'shapes-other'" in running.state().last_report.detail


def test_nan_answers_are_rejected_even_where_labels_agree(device_folder: Path, bundles) -> None:
    bounds = {"min_agreement": 0.0, "max_output_error": 1e9, "output_scale": 1.0}
    bundle = bundles.make(network="nan", manifest={"golden": bounds})
    bundles.deliver(bundle, device_folder)
    assert settle(device_folder).state().current is None


def test_a_trial_that_hangs_is_stopped_and_rolled_back(running: Device, bundles) -> None:
    before = running.state().current
    bundle = bundles.make(release=2, network="hang")
    started = time.monotonic()
    device = installed(running.folder, bundles, bundle, timeout_s=2.0)
    assert time.monotonic() - started < 20
    assert_runs(device, before)
    assert "did not end within 2 s" in device.state().rejected[bundle.digest]


def children() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def test_a_trial_that_is_killed_is_rolled_back(running: Device, bundles) -> None:
    before, known = running.state().current, children()
    bundle = bundles.make(release=2, network="hang")

    def kill() -> None:
        while not children() - known:
            pass
        os.kill((children() - known).pop(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    device = installed(running.folder, bundles, bundle)
    killer.join()
    assert_runs(device, before)
    assert "crashed with signal 9" in device.state().rejected[bundle.digest]


def test_a_damaged_current_slot_falls_back_and_the_same_bundle_repairs_it(running: Device, bundles) -> None:
    first, second = bundles.made[0], bundles.make(release=2)
    bundles.deliver(second, running.folder)
    settle(running.folder)
    (running.slots / second.digest / "model.bin").write_bytes(b"rust")
    device = settle(running.folder)
    assert_runs(device, first.digest)
    assert "model.bin" in device.state().last_report.detail
    bundles.deliver(second, running.folder)
    assert_runs(settle(running.folder), second.digest)


def test_a_damaged_only_slot_is_repaired_by_the_same_bundle(running: Device, bundles) -> None:
    digest = running.state().current
    (running.slots / digest / "model.bin").unlink()
    bundles.deliver(bundles.made[0], running.folder)
    assert_runs(settle(running.folder), digest)


def test_a_rejected_bundle_that_is_delivered_again_gets_a_new_trial(device_folder: Path, bundles) -> None:
    bundle = bundles.make(golden_shift=3.0)
    for _ in range(2):
        bundles.deliver(bundle, device_folder)
        assert settle(device_folder).state().last_report.status == "rejected"
    good = bundles.make(release=2)
    bundles.deliver(good, device_folder)
    device = settle(device_folder)
    assert_runs(device, good.digest)
    assert device.state().rejected == {}
