"""Rules of the process that holds a model: whatever a model does, the agent goes on, and says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.agent.running.limits import LEAST_WRONG, Limits
from edge.agent.running.supervisor import Supervisor
from kit.child import CODE_FOLDER
from kit.errors import InputError, KitError, ModelError, UnavailableError, VerificationError
from kit.inference.errors import DeadlineError
from kit.runner import Runner
from tests.awaiting import await_true
from tests.system.misbehaving import model

ROW = {"features": np.array([[1.0, 0.25]], dtype=np.float32)}
HARM = {"features": np.array([[9.0, 0.0]], dtype=np.float32)}

Made = tuple[Supervisor, str, list[tuple[str, str]]]
Make = Callable[..., Made]


@pytest.fixture
def supervised(device_folder: Path, bundles) -> Iterator[Make]:
    """Makes supervisors that run a slot with a model of some kind; ends them."""
    made: list[Supervisor] = []

    def make(
        network: str | bytes = "right", **limits: object
    ) -> tuple[Supervisor, str, list[tuple[str, str]]]:
        bundle = bundles.make(network=network, release=len(bundles.made) + 1)
        shutil.copytree(bundle.folder, device_folder / "slots" / bundle.digest)
        told: list[tuple[str, str]] = []
        supervisor = Supervisor(
            device_folder,
            limits=Limits(**limits),  # type: ignore[arg-type]  # each test gives its own
            told=lambda what, why: told.append((what, why)),
        )
        made.append(supervisor)
        return supervisor, bundle.digest, told

    yield make
    for supervisor in made:
        supervisor.stop()


def answers(supervisor: Supervisor) -> bool:
    with contextlib.suppress(KitError):
        return supervisor.ask(ROW)["label"].tolist() == [0]
    return False


def has_ended(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_the_process_answers_to_the_bit_what_the_runner_does(supervised: Make, device_folder: Path) -> None:
    supervisor, digest, told = supervised()
    loaded = supervisor.start(digest)
    assert (loaded.name, loaded.version, loaded.digest, loaded.engine) == (
        "shapes",
        "1",
        digest,
        "onnxruntime",
    )
    runner = Runner.open(device_folder / "slots" / digest, threads=1)
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    for n_rows in (1, 7, 50):
        found = supervisor.ask({"features": rows[:n_rows]})
        expected = runner.run({"features": rows[:n_rows]})
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes())
    with pytest.raises(InputError, match=r"'widht' is not an input of this model; .*features"):
        supervisor.ask({"widht": ROW["features"]})
    with pytest.raises(InputError, match="a value is missing"):
        supervisor.ask({"features": np.array([[np.nan, 0.0]], dtype=np.float32)})
    assert (supervisor.restarts, supervisor.failure, told) == (0, "", [])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors divide anyhow")
def test_a_model_that_crashes_takes_its_process_along_and_nothing_else(supervised: Make) -> None:
    supervisor, digest, told = supervised(model("crash"))
    supervisor.start(digest)
    with pytest.raises(ModelError, match="process ended while it answered"):
        supervisor.ask(HARM)
    assert answers(supervisor)  # waits for the next process
    assert supervisor.restarts == 1
    assert told == [("restarted", "its process crashed with signal 8 (Floating point exception)")]


def test_a_model_that_hangs_is_killed_in_time_and_its_process_started_anew(supervised: Make) -> None:
    supervisor, digest, told = supervised(model("hang"), timeout_s=1.0)
    supervisor.start(digest)
    first = supervisor.pid
    began_s = time.monotonic()
    with pytest.raises(DeadlineError, match="did not answer in time"):
        supervisor.ask(HARM)
    assert time.monotonic() - began_s < 3.0
    await_true(lambda: answers(supervisor))
    assert supervisor.pid != first
    assert told == [("restarted", "it did not answer within 1 s")]


def test_a_model_that_takes_ever_more_memory_is_stopped_at_its_limit(supervised: Make) -> None:
    supervisor, digest, told = supervised(model("leak"), max_memory_mb=300.0, timeout_s=60.0)
    supervisor.start(digest)
    with pytest.raises(ModelError, match="MB in memory, above 300 MB"):
        supervisor.ask(HARM)
    assert answers(supervisor)
    assert supervisor.restarts == 1
    assert told[0][1].endswith("above 300 MB")


def test_memory_an_idle_process_holds_is_watched_too(supervised: Make) -> None:
    supervisor, digest, _ = supervised(max_memory_mb=1.0, max_restarts=0)
    supervisor.start(digest)
    await_true(lambda: supervisor.failure)
    assert "above 1 MB" in supervisor.failure


def test_nan_is_an_error_and_too_much_of_it_a_failure(supervised: Make) -> None:
    supervisor, digest, told = supervised(model("nan"))
    supervisor.start(digest)
    for _ in range(LEAST_WRONG - 1):
        with pytest.raises(ModelError, match="not finite"):
            supervisor.ask(HARM)
    assert (supervisor.failure, supervisor.restarts) == ("", 0)
    with pytest.raises(ModelError, match="not finite"):
        supervisor.ask(HARM)
    assert told == [("failed", "it answers with NaN too often")]
    assert answers(supervisor)  # what stands in for it is for somebody else to say


def test_a_process_that_ends_again_and_again_has_failed(supervised: Make) -> None:
    supervisor, digest, told = supervised(max_restarts=2)
    supervisor.start(digest)
    for n in range(3):
        await_true(lambda: supervisor.pid is not None)
        os.kill(supervisor.pid or 0, signal.SIGKILL)
        await_true(lambda n=n: supervisor.restarts == n + 1)
    await_true(lambda: supervisor.failure)
    assert "started anew 3 times; the last time its process crashed with signal 9" in supervisor.failure
    assert [what for what, _ in told].count("failed") == 1
    await_true(lambda: supervisor.loaded)  # and yet it is tried, slowly: it may be all there is
    supervisor.start(digest)
    assert (supervisor.failure, supervisor.restarts) == ("", 0)


def test_a_process_that_was_stopped_counts_as_hung(supervised: Make) -> None:
    supervisor, digest, _ = supervised(timeout_s=0.5)
    supervisor.start(digest)
    os.kill(supervisor.pid or 0, signal.SIGSTOP)
    with pytest.raises(DeadlineError):
        supervisor.ask(ROW)
    await_true(lambda: answers(supervisor))


def test_nothing_is_loaded_that_does_not_verify(supervised: Make, device_folder: Path) -> None:
    supervisor, digest, _ = supervised()
    path = device_folder / "slots" / digest / "model.bin"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match=r"model\.bin"):
        supervisor.start(digest)
    with pytest.raises(UnavailableError, match="no model answers"):
        supervisor.ask(ROW)


def test_a_model_that_cannot_come_up_is_refused_in_time(supervised: Make) -> None:
    supervisor, digest, _ = supervised("hang", start_timeout_s=3.0)
    with pytest.raises(ModelError, match="did not answer within 3 s"):
        supervisor.start(digest)
    assert supervisor.pid is None


def test_a_hanging_process_does_not_outlive_the_agent_for_long(device_folder: Path, bundles) -> None:
    bundle = bundles.make(network=model("hang"))
    shutil.copytree(bundle.folder, device_folder / "slots" / bundle.digest)
    code = (
        "import sys, threading, numpy\n"
        "from pathlib import Path\n"
        "from edge.agent.running.limits import Limits\n"
        "from edge.agent.running.supervisor import Supervisor\n"
        f"s = Supervisor(Path({str(device_folder)!r}), limits=Limits(timeout_s=1.0))\n"
        f"s.start({bundle.digest!r})\n"
        "print(s.pid, flush=True)\n"
        "s.ask({'features': numpy.array([[9.0, 0.0]], dtype=numpy.float32)})\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], cwd=CODE_FOLDER, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    time.sleep(0.3)  # until it computes; there is no sign of that
    agent.kill()
    agent.communicate()
    await_true(
        lambda: not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text()
    )


def test_the_agent_itself_imports_neither_numpy_nor_what_checks_signatures() -> None:
    code = (
        "import sys, edge.agent.running.api, edge.agent.running.supervisor, edge.agent.telemetry.latencies\n"
        "sys.exit(', '.join(sorted({'numpy', 'cryptography', 'ssl', 'email'} & set(sys.modules))))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CODE_FOLDER, capture_output=True, text=True, check=False
    )
    assert ended.stderr.strip() == ""
