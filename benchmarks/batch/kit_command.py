"""`kit predict` as a user runs it: a process of its own, timed from outside and from inside.

Also how much memory its actors ever took, and how long a small table takes with everything.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from subjects import Subject

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Ran:
    """One run of the command.

    Attributes:
        result: What it printed as JSON.
        start_s: From its call until the first shard began; what is not the shards', where no ledger tells.
        wall_s: The whole command.
        peak_mb: Most resident memory of each actor ever, in MB of 10^6 bytes, by process; only if watched.
    """

    result: dict[str, Any]
    start_s: float
    wall_s: float
    peak_mb: dict[int, float]

    @property
    def seconds(self) -> float:
        """Wall time of the shards, as the command itself counts it."""
        return float(self.result["seconds"])


def predict(subject: Subject, table: Path, output: Path, *, flags: list[str], watched: bool = False) -> Ran:
    """Run the command.

    Args:
        subject: Whose model.
        table: File or folder.
        output: Folder of the parts; not there yet.
        flags: Further words of the command line.
        watched: Whether to look at the memory of the actors.
    """
    words = [
        "predict",
        subject.name,
        f"--project={subject.project}",
        f"--input={table}",
        f"--output={output}",
    ]
    called, began = time.time(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "kit", *words, "--json", "--quiet", *flags], stdout=subprocess.PIPE, text=True
    ) as process:
        peak_mb = _watch(process) if watched else {}
        printed, _ = process.communicate()
    wall_s = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"kit predict ended with {process.returncode}")
    result = json.loads(printed)
    commits = [json.loads(path.read_bytes()) for path in (output / "_run" / "commits").glob("*.json")]
    first_s = min((each["started_s"] for each in commits), default=called + wall_s - result["seconds"])
    return Ran(result, first_s - called, wall_s, peak_mb)


def _watch(process: subprocess.Popen[str]) -> dict[int, float]:
    """Read how much memory each shard actor ever took, until the command ends."""
    peak_mb: dict[int, float] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in root.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, OSError):
                    if "ShardActor" in " ".join(each.cmdline()):
                        peak_mb[each.pid] = _peak_mb(each.pid)
        time.sleep(_LOOK_EVERY_S)
    return peak_mb


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"process {pid} has no memory any more")


def measure_memory(subject: Subject, table: Path, output: Path, *, flags: list[str]) -> dict[str, Any]:
    """Predict a long file and give the actors' peaks."""
    shutil.rmtree(output, ignore_errors=True)
    ran = predict(subject, table, output, flags=flags, watched=True)
    shutil.rmtree(output)
    return {
        "file_mb": round(table.stat().st_size / 1e6),
        "rows": ran.result["rows_out"],
        "seconds": ran.seconds,
        "peak_mb": sorted((round(each) for each in ran.peak_mb.values()), reverse=True),
        "wanted_mb": 700,
    }


def measure_small(
    subject: Subject, table: Path, output: Path, *, flags: list[str], rounds: int
) -> dict[str, Any]:
    """Predict a small table several times and give the seconds of the whole command."""
    walls_s = []
    for _ in range(rounds):
        shutil.rmtree(output, ignore_errors=True)
        ran = predict(subject, table, output, flags=flags)
        walls_s.append(round(ran.wall_s, 2))
    shutil.rmtree(output)
    return {
        "rows": ran.result["rows_out"],
        "wall_s": walls_s,
        "median_s": statistics.median(walls_s),
        "wanted_s": 8,
    }
