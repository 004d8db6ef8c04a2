"""Rules of the device folder: every change is whole, and a reader always finds a slot."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.agent import device as device_module
from edge.agent.__main__ import run
from edge.agent.device import Device
from edge.agent.state import Report, State
from kit.errors import ConflictError, NotFoundError, UnavailableError, VerificationError


@pytest.fixture
def device(device_folder: Path) -> Device:
    opened = Device.open(device_folder)
    opened.prepare()
    return opened


def with_slots(device: Device, bundles, *, n_slots: int) -> list[str]:
    """Unpack sealed bundles into slots and make the last one current."""
    made = [bundles.make(release=release) for release in range(1, n_slots + 1)]
    for bundle in made:
        shutil.copytree(bundle.folder, device.slots / bundle.digest)
    digests = [bundle.digest for bundle in made]
    previous = digests[-2] if n_slots > 1 else None
    device.save(
        dataclasses.replace(
            device.state(),
            current=digests[-1],
            previous=previous,
            release=n_slots,
            release_digest=digests[-1],
        )
    )
    device.point_to(digests[-1])
    return digests


@pytest.fixture
def device_in_memory(device_folder: Path) -> Iterator[Device]:
    """A device that does not wait for a disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="kit-device-") as folder:
        device = Device(Path(folder) / "device")
        shutil.copytree(device_folder, device.folder)
        device.prepare()
        yield device


@pytest.mark.parametrize("pointer", ["link", "file"])
def test_a_reader_of_current_never_misses_during_ten_thousand_switches(
    pointer: str, device_in_memory: Device, bundles
) -> None:
    device = device_in_memory
    digests = with_slots(device, bundles, n_slots=2)
    device.save(dataclasses.replace(device.state(), pointer=pointer))
    device.point_to(digests[0])
    stopped, missed, seen = threading.Event(), [], set()

    def read() -> None:
        while not stopped.is_set():
            digest = device.pointer()
            seen.add(digest)
            if digest not in digests or not (device.slots / digest / "manifest.json").is_file():
                missed.append(digest)
            if pointer == "link" and not (device.folder / "current" / "manifest.json").is_file():
                missed.append("link")

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(10_000):
        device.point_to(digests[index % 2])
    stopped.set()
    reader.join()
    assert missed == []
    assert seen == set(digests)
    assert (device.folder / "current").is_symlink() == (pointer == "link")


def test_where_links_cannot_be_made_current_is_a_file(
    device_folder: Path, bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what a FAT card answers

    monkeypatch.setattr(os, "symlink", refuse)
    bundle = bundles.make()
    bundles.deliver(bundle, device_folder)
    assert run(device_folder, once=True, poll_s=1.0) == 0
    assert (device_folder / "current").read_text() == f"slots/{bundle.digest}\n"
    monkeypatch.undo()
    bundles.deliver(bundles.make(release=2), device_folder)
    assert run(device_folder, once=True, poll_s=1.0) == 0
    assert (device_folder / "current").is_file()  # decided once
    assert Device(device_folder).pointer() == bundles.made[1].digest


@pytest.mark.parametrize("text", ["", "slots/../keys", "slots/" + "a" * 63, "/slots/" + "a" * 64])
def test_a_pointer_to_something_else_counts_as_none(text: str, device: Device) -> None:
    (device.folder / "current").write_text(text)
    assert device.pointer() is None


def test_an_agent_that_finds_the_lock_taken_is_refused(device: Device) -> None:
    with device.lock(), pytest.raises(ConflictError, match=r"agent\.lock"):
        run(device.folder, once=True, poll_s=1.0)


def test_the_lock_of_a_killed_process_is_free(device: Device) -> None:
    code = (
        "import sys; from pathlib import Path; from edge.agent.device import Device\n"
        "with Device(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(device.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(device_module.__file__).parents[2],
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConflictError), device.lock():
        pass
    holder.kill()
    holder.communicate()
    with device.lock():
        pass


def test_a_folder_that_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no device folder"):
        Device.open(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="pins no key"):
        Device.open(tmp_path)


def test_a_device_without_an_agent_says_so(device_folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no agent has run"):
        Device.open(device_folder).good_slot()


def test_the_state_comes_back_as_it_was_written(device: Device) -> None:
    state = State(
        phase="trial",
        current="a" * 64,
        staged="b" * 64,
        attempts=1,
        rejected={"c" * 64: "too slow"},
        last_report=Report("rejected", "too slow", digest="c" * 64),
    )
    device.save(state)
    assert device.state() == state


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "[" * 100_000, '{"phase": "idle", "colour": 1}', '{"phase": "asleep"}'),
        *('{"rejected": null}', '{"rejected": {"../..": "x"}}', '{"pointer": []}', '{"attempts": -1}'),
        *('{"current": 5}', '{"current": "../keys"}', '{"staged": "A"}', '{"release": true}'),
        *('{"release": 1.5}', '{"source": "../state.json"}', '{"source": ".."}'),
        *('{"last_report": "confirmed"}', '{"last_report": {"status": "confirmed"}}'),
        *('{"last_report": {"status": "lost", "detail": ""}}', '{"last_report": {"colour": 1}}'),
    ],
)
def test_a_state_no_agent_writes_is_refused_by_name(text: str, device: Device) -> None:
    (device.folder / "state.json").write_text(text)
    with pytest.raises(VerificationError, match=r"state\.json") as caught:
        device.state()
    assert "remove the file" in str(caught.value.hint)


def test_a_lost_state_is_made_again_from_the_current_slot(device: Device, bundles) -> None:
    digests = with_slots(device, bundles, n_slots=2)
    (device.folder / "state.json").unlink()
    device.prepare()
    state = device.state()
    assert (state.current, state.release, state.release_digest) == (digests[1], 2, digests[1])


def test_a_damaged_current_slot_gives_the_previous_one_and_the_reason(device: Device, bundles) -> None:
    digests = with_slots(device, bundles, n_slots=2)
    assert device.good_slot().fell_back == ""
    model = device.slots / digests[1] / "model.bin"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    good = device.good_slot()
    assert good.bundle.digest == digests[0]
    assert "model.bin" in good.fell_back
    assert device.state().current == digests[1]  # reading changes nothing


def test_two_damaged_slots_are_an_error_that_names_the_file(device: Device, bundles) -> None:
    for digest, name in zip(
        with_slots(device, bundles, n_slots=2), ("model.bin", "signature.json"), strict=True
    ):
        (device.slots / digest / name).unlink()
    with pytest.raises(VerificationError, match=r"signature\.json"):
        device.good_slot()
    with pytest.raises(VerificationError, match=r"signature\.json"):
        run(device.folder, once=True, poll_s=1.0)


def test_a_slot_under_another_digest_is_refused(device: Device, bundles) -> None:
    digests = with_slots(device, bundles, n_slots=2)
    shutil.rmtree(device.slots / digests[1])
    shutil.copytree(device.slots / digests[0], device.slots / digests[1])
    with pytest.raises(VerificationError, match="holds another bundle"):
        device.open_slot(digests[1])


def test_sweeping_keeps_what_the_state_names(device: Device, bundles) -> None:
    digests = with_slots(device, bundles, n_slots=3)
    (device.slots / ".half").mkdir()
    (device.folder / ".current.0123").symlink_to("slots")
    device.sweep()
    assert {path.name for path in device.slots.iterdir()} == set(digests[1:])
    assert not (device.folder / ".current.0123").is_symlink()


def test_hidden_files_in_incoming_are_still_being_written(device: Device, bundles) -> None:
    (device.incoming / ".half.bundle").write_bytes(b"half")
    (device.incoming / "folder").mkdir()
    delivered = bundles.deliver(bundles.make(), device.folder)
    assert device.waiting() == [delivered]


def test_a_pulled_card_is_one_sentence(device: Device) -> None:
    device.incoming.rmdir()
    with pytest.raises(UnavailableError, match="incoming cannot be read: No such file"):
        device.waiting()
