"""The README's second transcript, typed word by word on real data, killed twice on the way."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1500)  # eight commands, two of them twice
START = "$ kit init biopsies"
#: The command that is killed, and the line of its progress after which it is.
KILLED_AFTER = {"tune": re.compile(r"trial .*(finished|stopped)"), "train": re.compile(r"epoch 5:")}
TIMEOUT_S = 400


@dataclass(frozen=True)
class Walk:
    """What typing the transcript did."""

    project: Path
    output: str
    killed: tuple[str, ...]


def shown() -> str:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return next(block for block in blocks if block.startswith(START))


def typed() -> Iterator[list[str]]:
    for line in shown().splitlines():
        if line.startswith("$ "):
            yield shlex.split(line.removeprefix("$ "))


def run(words: list[str], folder: Path, *, kill_after: re.Pattern[str] | None = None) -> str | None:
    """Run a command of the kit; None when it was killed on the way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kit", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if kill_after is not None and kill_after.search(line):
            started = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            psutil.wait_procs(started, timeout=120)  # Ray's processes follow their driver
            process.wait()
            watchdog.cancel()
            return None
    code = process.wait()
    watchdog.cancel()
    output = "".join(lines)
    assert code == 0, f"kit {shlex.join(words)} ended with {code}:\n{output[-4000:]}"
    assert kill_after is None, f"kit {shlex.join(words)} ended before it could be killed:\n{output[-2000:]}"
    return output


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    folder = tmp_path_factory.mktemp("walk")
    project = folder / "biopsies"
    output: list[str] = []
    killed: list[str] = []
    for words in typed():
        if words[0] == "cd":
            continue
        command = words[1]
        place = folder if command == "init" else project
        if command in KILLED_AFTER and command not in killed:
            assert run(words[1:], place, kill_after=KILLED_AFTER[command]) is None
            killed.append(command)
        done = run(words[1:], place)
        assert done is not None
        output.append(done)
    return Walk(project, "".join(output), tuple(killed))


def records(walk: Walk, kind: str) -> list[dict[str, object]]:
    return [
        json.loads(path.read_text()) for path in sorted((walk.project / ".kit/runs" / kind).glob("*.json"))
    ]


def test_what_the_readme_shows_is_what_is_printed(walk: Walk) -> None:
    printed = {_masked(line) for line in walk.output.splitlines()}
    for line in shown().splitlines():
        if line.strip() and not line.startswith("$ "):
            assert _masked(line) in printed, line


def test_both_kills_happened_and_nothing_was_lost(walk: Walk) -> None:
    assert walk.killed == ("tune", "train")
    (study,) = records(walk, "tune")
    numbers = [trial["number"] for trial in study["trials"]]  # type: ignore[attr-defined]  # JSON
    assert numbers == list(range(1, len(numbers) + 1))
    assert not [trial for trial in study["trials"] if trial["status"] == "running"]  # type: ignore[attr-defined]  # JSON
    assert "continuing the study" in walk.output
    assert "continuing the interrupted run" in walk.output


def test_every_way_to_a_version_names_where_it_came_from(walk: Walk) -> None:
    (compressed,) = records(walk, "compress")
    assert compressed["parent"]["number"] >= 1  # type: ignore[index]  # JSON
    assert len(records(walk, "train")) == 1


def test_the_gates_are_there_for_a_build_server(walk: Walk) -> None:
    suite = ElementTree.parse(walk.project / "gates.xml").getroot()
    assert list(suite.iter("testcase"))
    assert not list(suite.iter("failure"))


def test_the_report_and_the_card_show_all_of_it(walk: Walk) -> None:
    page = (walk.project / "report.html").read_text(encoding="utf-8")
    for heading in ("Data", "Study", "Training", "Evaluation", "Compression"):
        assert f">{heading}<" in page, heading
    assert "auc" in (walk.project / "model-card.md").read_text(encoding="utf-8")


def _masked(line: str) -> str:
    """Take out what differs from run to run: figures, digests, folders, moments."""
    line = re.sub(r"(?<![\w-])[0-9a-f]{12,64}\b|[-+]?\d[\d,.]*(e[-+]?\d+)?", "#", line)
    return re.sub(r"[─\s]+", " ", line).strip()
