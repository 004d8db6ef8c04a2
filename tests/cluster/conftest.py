"""A small project that trains in seconds, slowly enough to be killed on the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.cluster import connected
from jobs.train import TrainResult, train
from kit.keypair import generate_key
from kit.project import Project
from kit.settings import TrainSettings

N_FEATURES = 4
N_ROWS = 240
EPOCHS = 24

KIT_TOML = """
[project]
name = "blobs"

[data]
path = "rows.parquet"
label = "kind"
inputs = [{ name = "x", columns = ["a", "b", "c", "d"] }]

[model]
factory = "model:build"
parameters = { pause_s = 0.03 }

[train]
epochs = 24
batch_size = 32
learning_rate = 0.01
patience_epochs = 24
golden_rows = 4
"""

#: ``pause_s`` makes an epoch last about 0.2 s, so that there is a middle to be killed in; ``bad`` gives
#: losses that are not finite, ``greedy`` has memory for 8 rows, ``aside`` adds weights that are not used;
#: where a file ``builds`` lies beside it, every call of the factory leaves a line there.
MODEL = """
import os
import time
from pathlib import Path

import torch
from torch import nn

BUILDS = Path(__file__).with_name("builds")


class Blobs(nn.Module):
    def __init__(self, pause_s, bad, greedy, n_classes, aside=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, n_classes))
        self.pause_s, self.bad, self.greedy = pause_s, bad, greedy
        if aside:
            self.aside = nn.Linear(4, 4)

    def forward(self, x):
        answer = self.layers(x)
        if self.training:
            time.sleep(self.pause_s)
            if self.greedy and len(x) > 8:
                torch.empty(1 << 44, dtype=torch.uint8)
            if self.bad:
                answer = torch.log(-1 - answer.abs())
        return answer


def build(*, pause_s, n_classes, bad=False, greedy=False, aside=False):
    if BUILDS.exists():
        with BUILDS.open("a") as builds:
            builds.write(f"{os.getpid()}\\n")
    return Blobs(pause_s, bad, greedy, n_classes, aside)
"""

#: What the command line does around a command: progress on stderr, a refusal in one sentence.
DRIVER = """
import json, logging, sys
from pathlib import Path
import jobs.compress, jobs.predict, jobs.train, jobs.tune
from kit.errors import KitError
from kit.project import Project
from kit.settings import CompressSettings, PredictSettings, TrainSettings, TuneSettings

logging.basicConfig(level=logging.ERROR, format="%(message)s")
logging.getLogger("kit").setLevel(logging.INFO)
commands = {
    "compress": (CompressSettings, jobs.compress.compress),
    "train": (TrainSettings, jobs.train.train),
    "predict": (PredictSettings, jobs.predict.predict),
    "tune": (TuneSettings, jobs.tune.tune),
}
cls, run = commands[sys.argv[2]]
try:
    project = Project.open(Path(sys.argv[1]))
    run(project, project.command(sys.argv[2], cls, json.loads(sys.argv[3])))
except KitError as error:
    sys.exit(f"error: {error.message}")
"""


def _hear_interrupts() -> None:
    """Undo what a shell does to whoever runs in its background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Lab:
    """What the tests of this folder share."""

    n_features = N_FEATURES
    epochs = EPOCHS

    def table(self, n_rows: int, *, seed: int = 0) -> pa.Table:
        """Make three clouds of points in four dimensions."""
        random = np.random.default_rng(seed)
        kinds = random.integers(0, 3, n_rows)
        points = random.normal(size=(n_rows, N_FEATURES)) + 4.0 * np.eye(3, N_FEATURES)[kinds]
        columns: dict[str, Any] = {
            name: points[:, index].astype(np.float32) for index, name in enumerate("abcd")
        }
        names = np.array(["red", "green", "blue"])[kinds]
        return pa.table({"id": np.arange(n_rows), **columns, "kind": pa.array(names.tolist())})

    def make_project(self, folder: Path) -> Project:
        """Write the project and give it a key."""
        folder.mkdir(parents=True)
        (folder / "kit.toml").write_text(KIT_TOML)
        (folder / "model.py").write_text(MODEL)
        parquet.write_table(self.table(N_ROWS), folder / "rows.parquet")
        project = Project.open(folder)
        generate_key(project.signing_key_path())
        return project

    def twin(self, project: Project, folder: Path) -> Project:
        """Copy a project, key included, as it was before it was trained."""
        state = shutil.ignore_patterns("store", "runs", "train", "registry*", "cache")
        shutil.copytree(project.folder, folder, ignore=state)
        return Project.open(folder)

    def count_builds(self, project: Project) -> Callable[[], int]:
        """Let a project count its calls; gives the number of other processes that made its network since."""
        builds = project.folder / "builds"
        builds.touch()
        return lambda: len(set(builds.read_text().split()) - {str(os.getpid())})

    def start(self, project: Project, command: str, settings: dict[str, Any]) -> subprocess.Popen[str]:
        """Run a command in a process of its own."""
        root = Path(__file__).resolve().parents[2]
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(project.folder), command, json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_interrupts,
        )

    def processes(self, title: str = "", *, of: int | None = None) -> list[psutil.Process]:
        """List the processes of Rays that a process started, those whose title holds some text.

        Args:
            title: Part of it.
            of: Number of the process; None is this one.
        """
        found = []
        for process in psutil.Process(of).children(recursive=True):
            try:
                words = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if any(each in words for each in ("raylet", "gcs_server", "ray::")) and title in words:
                found.append(process)
        return found

    def await_event(self, happened: Callable[[], Any], *, timeout_s: float = 240.0) -> Any:
        """Wait until something happened outside this process, and give what the question answered."""
        deadline_s = time.monotonic() + timeout_s
        while not (answer := happened()):
            assert time.monotonic() < deadline_s, "it did not happen in time"
            threading.Event().wait(0.02)
        return answer


@dataclass(frozen=True)
class Trained:
    """A project whose champion was trained without interruption."""

    project: Project
    result: TrainResult


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Give what the tests share; what Ray started is gone afterwards."""
    shared = Lab()
    yield shared
    shared.await_event(lambda: not shared.processes())


@pytest.fixture(scope="session")
def trained(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train once for everybody."""
    project = lab.make_project(tmp_path_factory.mktemp("session") / "blobs")
    return Trained(project, train(project, project.command("train", TrainSettings, {"promote": True})))


@pytest.fixture(scope="module")
def one_ray(trained: Trained) -> Iterator[None]:
    """Start one Ray for a module; what runs in this process joins it instead of starting its own."""
    with connected(None, project=trained.project):
        yield


class Saboteur(logging.Handler):
    """Does something once, at the moment a command says a sentence."""

    def __init__(self, sentence: str, action: Callable[[], None]) -> None:
        super().__init__()
        self.sentence, self.action, self.done = sentence, action, False

    def emit(self, record: logging.LogRecord) -> None:
        if self.sentence in record.getMessage() and not self.done:
            self.done = True
            self.action()


@pytest.fixture
def at() -> Iterator[Callable[[str, Callable[[], None]], Saboteur]]:
    logger = logging.getLogger("kit")
    level, added = logger.level, []

    def add(sentence: str, action: Callable[[], None]) -> Saboteur:
        added.append(Saboteur(sentence, action))
        logger.addHandler(added[-1])
        return added[-1]

    logger.setLevel(logging.INFO)
    yield add
    logger.setLevel(level)
    for handler in added:
        logger.removeHandler(handler)
