from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.releases.acks import living_acks, read_acks
from serve.releases.store import ReleaseStore
from serve.releases.table import Change, Weighted, next_release
from tests.awaiting import await_true

ROOT = Path(__file__).resolve().parents[2]
N_WRITERS = 2
N_RELEASES = 100  # of each writer

# Lives like a replica: prints what comes in force, weak refuses version 99, ends with its standard input.
FOLLOWER = """
import asyncio, sys
from pathlib import Path
from serve.releases.follow import Follower, Hooks
from serve.releases.store import ReleaseStore

folder, name = Path(sys.argv[1]), sys.argv[2]

async def prepare(release):
    await asyncio.sleep(0.002)
    if name == "weak" and any(each.number == 99 for each in release.versions):
        raise ValueError("version 99 answers NaN")

async def main():
    hooks = Hooks(prepare, lambda release: print(release.sequence, flush=True))
    store = ReleaseStore(folder / "releases")
    follower = Follower(store, hooks=hooks, folder=folder / "replicas", replica=name)
    await follower.start(["digits"])
    await asyncio.to_thread(sys.stdin.read)
    await follower.stop()

asyncio.run(main())
"""

# Makes its releases by compare-and-set, again when it lost.
WRITER = """
import sys
from pathlib import Path
from kit.errors import ConflictError
from serve.releases.store import ReleaseStore
from serve.releases.table import Change, Weighted, next_release

store, name, n_releases = ReleaseStore(Path(sys.argv[1]) / "releases"), sys.argv[2], int(sys.argv[3])
n_lost = 0
for step in range(n_releases):
    while True:
        head = store.head("digits")
        share = round(0.001 * (1 + step * 977 % 100_000), 3)
        versions = (Weighted(1, "a" * 64, share), Weighted(2, "b" * 64, round(100 - share, 3)))
        change = Change(versions, "set", note=f"{name} {step}")
        made = next_release(
            "digits", previous=head, sequence=head.sequence + 1, change=change, salt="-", made_ns=1
        )
        try:
            store.append(made)
            break
        except ConflictError:
            n_lost += 1
print(n_lost)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def release(store: ReleaseStore, number: int) -> int:
    head = store.head("digits")
    change = Change((Weighted(number, f"{number:064x}", 100.0),), "set")
    made = next_release(
        "digits",
        previous=head,
        sequence=head.sequence + 1 if head else 1,
        change=change,
        salt="salt",
        made_ns=time.time_ns(),
    )
    store.append(made)
    return made.sequence


@pytest.fixture
def followers(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    release(ReleaseStore(tmp_path / "releases"), 1)
    started = {name: start(FOLLOWER, tmp_path, name) for name in ("one", "two", "weak", "doomed")}
    yield started
    for each in started.values():
        each.kill()
        each.communicate(timeout=500)


def test_followers_in_processes_end_on_the_last_release_and_none_goes_back(
    tmp_path: Path, followers: dict[str, subprocess.Popen[str]]
) -> None:
    store, replicas = ReleaseStore(tmp_path / "releases"), tmp_path / "replicas"

    def in_force() -> dict[str, int]:
        living = living_acks(replicas, endpoint="digits")
        return {each.replica: each.endpoints["digits"].in_force for each in living}

    await_true(lambda: in_force() == dict.fromkeys(followers, 1))
    writers = [start(WRITER, tmp_path, f"writer-{index}", N_RELEASES) for index in range(N_WRITERS)]
    await_true(lambda: in_force().get("doomed", 0) > 20)
    followers["doomed"].send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    n_lost = sum(int(writer.communicate(timeout=300)[0]) for writer in writers)
    assert [writer.returncode for writer in writers] == [0] * N_WRITERS

    last = 1 + N_WRITERS * N_RELEASES
    await_true(lambda: {in_force()[each] for each in ("one", "two", "weak")} == {last})
    history = [store.read("digits", sequence=sequence) for sequence in range(2, last + 1)]
    assert sorted(each.note for each in history) == sorted(
        f"writer-{index} {step}" for index in range(N_WRITERS) for step in range(N_RELEASES)
    )
    assert {each.salt for each in history} == {"salt"}
    assert n_lost > 0  # the two did meet

    broken = release(store, 99)
    await_true(lambda: {in_force()[each] for each in ("one", "two")} == {broken})
    await_true(lambda: _said(replicas, "weak") == (last, broken, "ValueError: version 99 answers NaN"))

    await_true(lambda: "doomed" not in in_force())
    assert 5 < time.monotonic() - killed_s < 15
    assert (replicas / "doomed.json").exists()
    assert set(in_force()) == {"one", "two", "weak"}

    seen = {name: followers[name].communicate(timeout=300)[0].split() for name in ("one", "two", "weak")}
    for name, lines in seen.items():
        sequences = [int(line) for line in lines]
        assert sequences == sorted(set(sequences)), name
        assert sequences[-1] == (last if name == "weak" else broken)
    assert [each.replica for each in read_acks(replicas)] == ["doomed"]


def _said(replicas: Path, name: str) -> tuple[int, int, str]:
    ack = next(each for each in read_acks(replicas) if each.replica == name).endpoints["digits"]
    return ack.in_force, ack.failed, ack.reason
