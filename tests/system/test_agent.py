"""Rules of the agent as a program: what it answers, what it needs, and that nothing kills it for good."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge import flash as flash_module
from edge.agent.device import Device
from kit.project import Project
from kit.settings import FlashSettings

ROOT = Path(flash_module.__file__).parents[1]
FOREIGN = ("ray", "torch", "pydantic", "pyarrow", "onnx", "pandas", "rich", "sklearn")
ROWS = [{"width": 1.0, "height": 0.0}, {"width": 0.0, "height": 1.0}, {"width": -1.5, "height": 0.25}]


def agent(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.agent", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


def started(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge.agent", "run", str(folder), "--poll-s", "0.05"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def watching(folder: Path) -> subprocess.Popen[str]:
    """Start an agent and wait until it looks for what arrives."""
    process = started(folder)
    assert process.stderr is not None
    assert any("watching" in line for line in process.stderr)
    return process


def until(rule, *, timeout_s: float = 60.0) -> None:
    """Wait until files on disk say that something has happened."""
    deadline = time.monotonic() + timeout_s
    while not rule():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def running(device_folder: Path, bundles) -> Path:
    """A device folder that has confirmed release 1."""
    bundles.deliver(bundles.make(), device_folder)
    ended = agent("run", device_folder, "--once")
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    return device_folder


def test_three_file_types_get_the_same_answers(running: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    lines = [f"{row['width']},{row['height']}\n" for row in ROWS]
    (tmp_path / "rows.csv").write_text("".join(["width,height\n", *lines]))
    printed = []
    for suffix in ("json", "jsonl", "csv"):
        ended = agent("predict", running, "--input", tmp_path / f"rows.{suffix}")
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    assert printed[0] == printed[1] == printed[2]
    answers = [json.loads(line) for line in printed[0].splitlines()]
    assert [answer["label"] for answer in answers] == ["low", "high", "high"]
    assert all(abs(sum(answer["probabilities"]) - 1) < 1e-6 for answer in answers)
    (tmp_path / "none.csv").write_text("width,height\n")
    ended = agent("predict", running, "--input", tmp_path / "none.csv")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    output = tmp_path / "answers.jsonl"
    ended = agent("predict", running, "--input", tmp_path / "rows.csv", "--output", output, "--limit", 2)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert output.read_text().splitlines() == printed[0].splitlines()[:2]


def test_predict_loads_nothing_a_device_does_not_have(running: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    code = (
        "import sys; from edge.agent.__main__ import main\n"
        f"assert main(['predict', {str(running)!r}, '--input', {str(tmp_path / 'rows.json')!r}]) == 0\n"
        f"sys.exit(', '.join(name for name in {FOREIGN!r} if name in sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stderr.strip() == ""


def test_health_says_what_runs_and_how_well(running: Path, bundles) -> None:
    ended = agent("health", running)
    found = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert (found["healthy"], found["reason"], found["digest"]) == (True, "", bundles.made[0].digest)
    assert (found["name"], found["target"], found["release"]) == ("shapes", "onnx-test", 1)
    assert (found["engine"], found["agreement"], found["rejected"]) == ("onnxruntime", 1.0, {})
    assert 0 < found["median_latency_ms"] < 1000
    assert found["engine_version"]


def test_health_of_a_damaged_device_is_1_and_names_the_file(running: Path, bundles) -> None:
    (running / "slots" / bundles.made[0].digest / "model.bin").write_bytes(b"rust")
    ended = agent("health", running)
    found = json.loads(ended.stdout)
    assert (ended.returncode, found["healthy"]) == (1, False)
    assert "model.bin" in found["reason"]


def test_predict_goes_on_with_the_previous_slot_when_the_current_one_is_damaged(
    running: Path, bundles, tmp_path: Path
) -> None:
    bundles.deliver(bundles.make(release=2), running)
    assert agent("run", running, "--once").returncode == 0
    (running / "current" / "model.bin").write_bytes(b"rust")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    ended = agent("predict", running, "--input", tmp_path / "rows.json")
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 3)
    assert "model.bin" in ended.stderr
    assert agent("run", running, "--once").returncode == 0
    assert Device(running).pointer() == bundles.made[0].digest


@pytest.mark.parametrize(
    "arguments, code, sentence",
    [
        (("predict", "{device}", "--input", "{tmp}/absent.csv"), 2, "does not exist"),
        (("predict", "{device}", "--input", "{tmp}/wrong.json"), 2, "column 'height' is missing"),
        (
            ("predict", "{device}", "--input", "{tmp}/wrong.json", "--limit", "0"),
            2,
            "0 is not a number from 1",
        ),
        (("health", "{tmp}/nowhere"), 5, "no device folder"),
        (("run", "{tmp}", "--once"), 5, "pins no key"),
        (("run", "{device}", "--once", "--poll-s", "0"), 2, "between 0.01 and 3600"),
        (("fly", "{device}"), 2, "invalid choice: 'fly'"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    arguments, code: int, sentence: str, running: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong.json").write_text('[{"width": 1.0}]')
    ended = agent(*(each.format(device=running, tmp=tmp_path) for each in arguments))
    assert ended.returncode == code
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_damaged_device_with_no_previous_slot_ends_with_3(running: Path, bundles) -> None:
    (running / "slots" / bundles.made[0].digest / "model.bin").unlink()
    ended = agent("run", running, "--once")
    assert ended.returncode == 3
    assert "model.bin" in ended.stderr


def test_a_running_agent_takes_what_arrives_and_refuses_a_second_agent(running: Path, bundles) -> None:
    process = watching(running)
    try:
        bundle = bundles.make(release=2)
        bundles.deliver(bundle, running)
        until(lambda: Device(running).pointer() == bundle.digest)
        second = agent("run", running, "--once")
        assert second.returncode == 6
        assert "agent.lock" in second.stderr
    finally:
        process.kill()
        process.communicate()


def test_a_watching_agent_outlives_a_pulled_card(running: Path, bundles) -> None:
    process = watching(running)
    try:
        os.rename(running / "incoming", running / "pulled")
        assert "incoming cannot be read" in process.stderr.readline()
        os.rename(running / "pulled", running / "incoming")
        bundle = bundles.make(release=2)
        bundles.deliver(bundle, running)
        until(lambda: Device(running).pointer() == bundle.digest)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_flash_waits_for_the_agent_that_already_runs(
    running: Path, bundles, tmp_path: Path, signing_key: Path
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "kit.toml").write_text(
        '[project]\nname = "shapes"\n[data]\npath = "rows.csv"\nlabel = "kind"\n'
        'inputs = [{ name = "width" }]\n[model]\nfactory = "model:build"\n'
        f'[signing]\nkey = "{signing_key}"\n'
    )
    process = watching(running)
    try:
        bundle = bundles.make(release=2)
        settings = FlashSettings(bundle=str(bundle.path), device=f"path:{running}")
        result = flash_module.flash(Project.open(tmp_path / "project"), settings)
        assert (result.status, result.digest) == ("confirmed", bundle.digest)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("golden_shift", [0.0, 3.0])
def test_an_agent_killed_at_any_moment_ends_on_a_good_slot(
    golden_shift: float, running: Path, bundles, tmp_path: Path
) -> None:
    before = Device(running).state().current
    bundle = bundles.make(release=2, golden_shift=golden_shift)
    moments = random.Random(7)
    for index in range(6):
        folder = tmp_path / f"killed-{index}"
        shutil.copytree(running, folder, symlinks=True)
        bundles.deliver(bundle, folder)
        for _ in range(2):
            process = started(folder)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a power cut comes when it likes
                process.wait(timeout=moments.uniform(0.1, 1.2))
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert Device(folder).good_slot().bundle.digest in (before, bundle.digest)
            assert (folder / "current" / "manifest.json").is_file()
        ended = agent("run", folder, "--once")
        assert ended.returncode == 0, ended.stderr
        state = Device(folder).state()
        assert state.phase == "idle"
        assert Device(folder).pointer() == state.current
        interrupted = "interrupted 2 times" in state.rejected.get(bundle.digest, "")
        expected = before if golden_shift or interrupted else bundle.digest
        assert state.current == expected
