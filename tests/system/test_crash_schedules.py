"""Crash schedules: the agent is killed at every change it makes to the disk, twice in a row, then goes on.

A life is what an agent does from its start: recover, install what waits, commit what was on trial, go back
when told to. It runs in a forked process that kills itself with SIGKILL just before its n-th change below the
device folder (an open to write, a rename, a removal, ...), which the interpreter's own audit events count. A
second life begins from what that left and is killed, too; a third runs to its end. After each, a reader must
find a working model, and never one that has failed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent import install
from edge.agent.device import Device
from edge.agent.state import IDLE, TRIAL
from kit import golden
from kit.errors import ConflictError, GateError, NotFoundError
from tests.conftest import GOLDEN_ROWS, WEIGHTS, BundleMaker

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_SECOND_KILLS = 4
_LEAST_SCHEDULES = 800


@dataclass(frozen=True)
class Story:
    """What happens to a device.

    Attributes:
        name: In words.
        folder: The device before it.
        allowed: Digests that may ever be current.
        wanted: The digest it ends on, unless its trial was cut off as often as trials may be.
        soak: Whether a slot stays on trial until it is committed.
        back_from: The digest somebody wants to leave; None when nobody does.
        failed: Whether because it has failed.
    """

    name: str
    folder: Path
    allowed: frozenset[str]
    wanted: str
    soak: bool = False
    back_from: str | None = None
    failed: bool = False


def examine(device: Device, digest: str) -> dict[str, Any]:
    """Compute the golden rows anew and compare."""
    folder = device.open_slot(digest).folder
    expected = golden.read_tensors(folder / "golden" / "outputs.npz")["logits"]
    if not np.allclose(GOLDEN_ROWS @ WEIGHTS, expected):
        raise GateError("its golden rows do not hold")
    return {"digest": digest}


def live(story: Story, folder: Path) -> None:
    """Be the agent from its start until it has nothing to do."""
    device = Device.open(folder)
    device.prepare()
    _exhaust(install.recover(device, examine=examine, soak=story.soak))
    for path in device.waiting():
        _exhaust(install.install(device, path, examine=examine, soak=story.soak))
    state = device.state()
    if state.phase == TRIAL and state.staged is not None:
        with pytest.raises(GateError):  # what runs is not what is on trial
            _exhaust(install.commit(device, running_digest=str(state.current)))
        _exhaust(install.commit(device, running_digest=state.staged))
    if story.back_from is not None and device.state().current == story.back_from:
        failed = story.back_from if story.failed else None
        _exhaust(install.revert(device, reason="it is wanted back", digest=failed))


def _exhaust(steps: Iterator[str]) -> None:
    for _ in steps:
        pass


def in_a_process(act: Callable[[], None], *, below: Path, kill_at: int | None) -> int | None:
    """Act in a forked process that kills itself before a change; gives how many it made, None when killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.close(read)
            count = _count_changes(str(below), kill_at)
            act()
            os.write(write, str(count()).encode())
            code = 0
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, "the agent raised"
    return int(said)


def _count_changes(below: str, kill_at: int | None) -> Callable[[], int]:
    made = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str) or not (flags or 0) & _WRITING:
                return
        elif event in _CHANGES:
            path = arguments[1] if event == "os.symlink" else arguments[0]
        else:
            return
        if not str(path).startswith(below) and event not in ("os.rmdir", "os.remove"):
            return  # what removes a tree names its entries alone
        made += 1
        if made == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
    return lambda: made


def require_a_working_model(story: Story, folder: Path) -> str:
    """Read the device as an application would; gives what it runs."""
    device = Device(folder)
    good = device.good_slot()
    assert good.bundle.digest in story.allowed, story.name
    assert (folder / "current" / "manifest.json").is_file()
    assert device.pointer() in story.allowed
    state = device.state()
    assert state.current in story.allowed
    assert state.current not in state.rejected
    return good.bundle.digest


@pytest.fixture
def shelf() -> Iterator[Path]:
    """A folder in memory: the disk's own speed is not what is tested."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="kit-crash-") as folder:
        yield Path(folder)


@pytest.fixture
def stories(bundles: BundleMaker, device_folder: Path, shelf: Path) -> list[Story]:
    factory, old, new = (bundles.make(release=release) for release in (1, 2, 3))
    bad = bundles.make(release=4, golden_shift=3.0)
    made = shelf / "made"
    shutil.copytree(device_folder, made)
    for bundle in (factory, old):
        bundles.deliver(bundle, made)
        live(Story("", made, frozenset(), ""), made)

    def before(name: str, *deliveries: Any) -> Path:
        folder = shelf / name
        shutil.copytree(made, folder, symlinks=True)
        for bundle in deliveries:
            bundles.deliver(bundle, folder)
        return folder

    both, kept = frozenset({old.digest, new.digest}), frozenset({old.digest})
    back = frozenset({old.digest, factory.digest})
    leave: dict[str, Any] = {"wanted": factory.digest, "back_from": old.digest}
    return [
        Story("a good bundle", before("good", new), both, new.digest),
        Story("a good bundle with a soak", before("soak", new), both, new.digest, soak=True),
        Story("a bad bundle", before("bad", bad), kept, old.digest),
        Story("a bad one, then a good one", before("two", bad, new), both, new.digest),
        Story("somebody wants the last one back", before("back"), back, **leave),
        Story("what runs has failed", before("fail"), back, failed=True, **leave),
    ]


def test_an_agent_killed_twice_at_any_change_leaves_a_working_model(
    stories: list[Story], shelf: Path
) -> None:
    chance = random.Random(7)
    n_schedules = 0
    for story in stories:
        work = shelf / "work"

        def begin(story: Story = story, work: Path = work) -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(story.folder, work, symlinks=True)

        def life(kill_at: int | None, story: Story = story, work: Path = work) -> int | None:
            return in_a_process(lambda: live(story, work), below=work, kill_at=kill_at)

        begin()
        n_changes = life(None)
        assert n_changes is not None
        assert n_changes > 10
        assert require_a_working_model(story, work) == story.wanted
        for first in range(1, n_changes + 1):
            for second in [None, *chance.sample(range(1, n_changes + 1), _SECOND_KILLS)]:
                begin()
                assert life(first) is None
                require_a_working_model(story, work)
                if second is not None:
                    life(second)  # what is left to do may be less than that
                    require_a_working_model(story, work)
                assert life(None) is not None
                ended, state = require_a_working_model(story, work), Device(work).state()
                cut_off = any("interrupted" in why for why in state.rejected.values())
                assert ended == story.wanted or cut_off, (story.name, first, second)
                assert (state.phase, state.staged) == (IDLE, None)
                assert not Device(work).waiting()
                n_schedules += 1
    assert n_schedules >= _LEAST_SCHEDULES


def test_what_cannot_be_gone_back_to_changes_nothing(stories: list[Story]) -> None:
    device = Device(stories[4].folder)
    before = device.state()
    with pytest.raises(NotFoundError, match="no slot this device can go back to"):
        _exhaust(install.revert(device, reason="x", to="f" * 64))
    with pytest.raises(ConflictError, match="neither runs nor is on trial"):
        _exhaust(install.revert(device, reason="x", digest="f" * 64))
    with pytest.raises(GateError, match="nothing is confirmed"):
        _exhaust(install.commit(device, running_digest=str(before.current)))
    assert device.state() == before
