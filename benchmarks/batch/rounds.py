"""Contestants taking turns over the same files, so that what the machine does meanwhile hits them alike."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kit_command
import numpy as np
from answers import Answers, count_rows
from environment import CONTESTANTS, command, variables
from pyarrow import parquet
from scoring import Task
from subjects import COLUMNS, Subject

_TIMEOUT_S = 1800
_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_TRIES = 3


@dataclass(frozen=True)
class Turn:
    """One run of one contestant.

    Attributes:
        seconds: From the moment all workers were ready to the last part.
        start_s: Before that.
        wall_s: The whole command.
        load: The machine's load average of a minute, just before.
    """

    seconds: float
    start_s: float
    wall_s: float
    load: float


@dataclass(frozen=True)
class Course:
    """What is run in turns.

    Attributes:
        subject: The model.
        table: Folder of the files.
        n_rows: Rows of all files.
        folder: Where outputs and the peers' environment lie.
        kit_flags: Further flags of ``kit predict``.
    """

    subject: Subject
    table: Path
    n_rows: int
    folder: Path
    kit_flags: tuple[str, ...]

    def run(self, names: list[str], *, rounds: int) -> dict[str, list[Turn]]:
        """Run every contestant once a round, in an order that rotates; the bare loop is the first of all.

        Raises:
            SystemExit: A contestant failed or answered otherwise than the bare loop.
        """
        batch_rows = self.fastest_batch_rows()
        found: dict[str, list[Turn]] = {name: [] for name in names}
        for path in self.table.iterdir():
            path.read_bytes()  # so that everybody reads from memory
        reference: Answers | None = None
        for turn in range(rounds):
            first = turn % len(names)
            for name in [*names[first:], *names[:first]]:
                output = self.folder / "out" / f"{self.subject.name}-{name}"
                shutil.rmtree(output, ignore_errors=True)
                found[name].append(self._take_turn(name, output, batch_rows=batch_rows))
                if (n_rows := count_rows(output)) != self.n_rows:
                    raise SystemExit(f"{name} wrote {n_rows} rows instead of {self.n_rows}")
                if not turn:
                    answers = Answers.read(output)
                    reference = reference or answers
                    if difference := answers.difference(reference):
                        raise SystemExit(f"{name} answers otherwise than {names[0]}: {difference}")
                shutil.rmtree(output)
        return found

    def _take_turn(self, name: str, output: Path, *, batch_rows: int) -> Turn:
        load = round(os.getloadavg()[0], 2)
        if name == "kit":
            ran = kit_command.predict(self.subject, self.table, output, flags=list(self.kit_flags))
            turn = Turn(ran.seconds, ran.start_s, ran.wall_s, load)
        else:
            turn = self._take_turn_of_script(name, output, batch_rows=batch_rows, load=load)
        print(
            f"{self.subject.name} {name}: {turn.seconds:.2f} s after {turn.start_s:.2f} s, load {load}",
            file=sys.stderr,
            flush=True,
        )
        return turn

    def _take_turn_of_script(self, name: str, output: Path, *, batch_rows: int, load: float) -> Turn:
        task = Task(str(self.subject.model), str(self.table), str(output), batch_rows)
        words = [*command(name, folder=self.folder), *task.words()]
        began = time.perf_counter()
        ran = subprocess.run(
            words, capture_output=True, text=True, env=variables(), timeout=_TIMEOUT_S, check=False
        )
        wall_s = time.perf_counter() - began
        if ran.returncode:
            raise SystemExit(f"{name} ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
        told = json.loads(ran.stdout.splitlines()[-1])
        return Turn(told["seconds"], told["start_s"], wall_s, load)

    def fastest_batch_rows(self) -> int:
        """Try a few sizes of a batch on one thread; all but the kit, which finds its own, get the best."""
        with parquet.ParquetFile(sorted(self.table.iterdir())[0]) as opened:
            table = opened.read().slice(0, max(_SIZES))
        rows = np.stack([table.column(name).to_numpy() for name in COLUMNS], axis=1)
        taken: dict[int, list[float]] = {size: [] for size in _SIZES}
        for _ in range(_TRIES):
            for size in _SIZES:
                scorer = Task(str(self.subject.model), "", "", size).scorer()
                scorer.run(rows[:size])
                began = time.perf_counter()
                scorer.run(rows)
                taken[size].append(time.perf_counter() - began)
        return min(taken, key=lambda size: min(taken[size]))


def summary(found: dict[str, list[Turn]], *, n_rows: int) -> dict[str, Any]:
    """Give medians of each contestant, and the median over rounds of how many times as fast the kit was."""
    facts: dict[str, Any] = {}
    for name, turns in found.items():
        seconds = statistics.median(each.seconds for each in turns)
        facts[name] = {
            "title": CONTESTANTS[name].title,
            "rows_per_second": round(n_rows / seconds),
            "seconds": seconds,
            "start_s": statistics.median(each.start_s for each in turns),
            "wall_s": statistics.median(each.wall_s for each in turns),
            "share_of_bare": _ratio(found.get("bare"), turns),
            "kit_is_times_as_fast": _ratio(turns, found.get("kit")),
            "turns": [asdict(each) for each in turns],
        }
    return facts


def _ratio(above: list[Turn] | None, below: list[Turn] | None) -> float | None:
    """Give the median over rounds of the seconds of one by the seconds of the other."""
    if above is None or below is None:
        return None
    return statistics.median(a.seconds / b.seconds for a, b in zip(above, below, strict=True))
