from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from kit.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
N_PROCESSES = 4
N_VERSIONS = 15

# Registers its own versions and moves the one champion to each by compare-and-set, again when it lost.
WORKER = """
import hashlib, sys
from pathlib import Path
from kit.errors import ConflictError, NotFoundError
from kit.registry import Registry

path, worker, n_versions = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
registry = Registry(path)
for step in range(n_versions):
    digest = hashlib.sha256(f"{worker}-{step}".encode()).hexdigest()
    number = registry.register("digits", digest=digest, uri="u", summary={"worker": worker}).number
    registry.register("shared", digest=hashlib.sha256(f"{step}".encode()).hexdigest(), uri="u", summary={})
    while True:
        try:
            now = registry.resolve("digits").digest
        except NotFoundError:
            now = None
        try:
            registry.promote(f"digits@{number}", expect=now)
            break
        except ConflictError:
            pass
    print(number, flush=True)
"""


def start(registry: Registry, *, worker: str, n_versions: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(registry.path), worker, str(n_versions)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_four_processes_lose_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state" / "registry.db")
    workers = [start(registry, worker=str(w), n_versions=N_VERSIONS) for w in range(N_PROCESSES)]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * N_PROCESSES

    n_all = N_PROCESSES * N_VERSIONS
    assert sorted(int(line) for output in outputs for line in output.split()) == list(range(1, n_all + 1))
    assert {record.digest for record in registry.versions("digits")} == {
        hashlib.sha256(f"{w}-{step}".encode()).hexdigest()
        for w in range(N_PROCESSES)
        for step in range(N_VERSIONS)
    }
    assert [record.number for record in registry.versions("shared")] == list(range(1, N_VERSIONS + 1))

    promotes = [event.body for event in registry.log("digits") if event.kind == "promote"]
    assert len(promotes) == n_all
    # Each move started from where the one before had ended: no compare-and-set was lost or overtaken.
    assert [body["previous"] for body in promotes] == [None, *(body["digest"] for body in promotes[:-1])]
    assert registry.resolve("digits").digest == promotes[-1]["digest"]
    registry.verify_log()


def test_a_killed_writer_leaves_a_registry_that_works(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state" / "registry.db")
    n_confirmed = 0
    for round_number in range(3):
        worker = start(registry, worker=f"killed-{round_number}", n_versions=100_000)
        assert worker.stdout is not None
        for _ in range(5 + round_number):
            assert worker.stdout.readline()
        worker.send_signal(signal.SIGKILL)
        n_confirmed += 5 + round_number + len(worker.stdout.read().split())
        worker.wait(timeout=30)

        registry.verify_log()
        # What the writer reported is there; at most the one it was at when it died may have been added.
        assert n_confirmed <= len(registry.versions("digits")) <= n_confirmed + round_number + 1
    registry.promote("digits@1")
    assert registry.resolve("digits").number == 1
