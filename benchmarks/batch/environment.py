"""Who is compared, and under which interpreter: the kit's own, or one of the peers'."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PINS = _HERE / "peers.txt"
_JAVA = "there is no java here; apt-get install default-jre-headless"


@dataclass(frozen=True)
class Contestant:
    """Somebody who answers a table.

    Attributes:
        title: What the table of results calls it.
        script: Its file in ``contestants``; None for the kit, which has a command line.
        apart: Whether it runs in the peers' environment.
        java: Whether it needs Java.
        wanted: How many times as fast as it the kit has to be; None where nothing was promised.
    """

    title: str
    script: str | None = None
    apart: bool = True
    java: bool = False
    wanted: float | None = None


CONTESTANTS = {
    "bare": Contestant("bare onnxruntime, 2 processes", "bare.py", apart=False, wanted=0.85),
    "kit": Contestant("kit predict", apart=False),
    "daft": Contestant("Daft", "daft_frame.py"),
    "dask": Contestant("Dask", "dask_frame.py", wanted=1.4),
    "spark": Contestant("Spark mapInArrow, second run", "spark.py", java=True, wanted=4.0),
    "ray": Contestant("Ray Data", "ray_data.py", apart=False, wanted=4.0),
}


def obstacle(name: str) -> str | None:
    """Say why a contestant cannot run here; None when it can."""
    return _JAVA if CONTESTANTS[name].java and shutil.which("java") is None else None


def command(name: str, *, folder: Path) -> list[str]:
    """Give the words that run a contestant's script, before those of its task.

    Args:
        name: A key of ``CONTESTANTS``, not the kit's.
        folder: Where the peers' environment lies, or is made.
    """
    contestant = CONTESTANTS[name]
    interpreter = str(_peers_python(folder)) if contestant.apart else sys.executable
    return [interpreter, str(_HERE / "contestants" / str(contestant.script))]


def variables() -> dict[str, str]:
    """Give a contestant's environment: what they share can be imported, also by workers."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE / "contestants")]),
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "DO_NOT_TRACK": "1",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def _peers_python(folder: Path) -> Path:
    """Make the peers' environment, unless it holds what is pinned."""
    place = folder / "peers"
    python, made = place / "bin" / "python", place / "made.txt"
    if not made.is_file() or made.read_bytes() != _PINS.read_bytes():
        print(f"installing the peers into {place} (about 1 GB)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        installed = subprocess.run([*pip, "-r", str(_PINS)], stderr=subprocess.PIPE, text=True, check=False)
        if installed.returncode:
            raise SystemExit(f"the peers cannot be installed:\n{installed.stderr[-2000:]}")
        shutil.copy(_PINS, made)
    return python
