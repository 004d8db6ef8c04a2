"""Who is compared, and under which interpreter: the kit's own, or the environment of a peer."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PINS = _HERE / "peers.txt"


@dataclass(frozen=True)
class Contestant:
    """Somebody who answers one row of the small model.

    Attributes:
        title: What the table of results calls it.
        script: Its file in ``contestants``; None for the kit, which has a command line.
        peer: Its line in peers.txt up to the version; None for the kit's own environment.
        path: Where it is asked.
        protocol: Whether it speaks the Open Inference Protocol; otherwise it takes ``{"x": rows}``.
        flags: Of ``kit serve``.
        wanted: How many times as fast the kit has to be at 32 connections, by the kit's name in this table.
    """

    title: str
    script: str | None = None
    peer: str | None = None
    path: str = "/predict"
    protocol: bool = False
    flags: tuple[str, ...] = ()
    wanted: dict[str, float] = field(default_factory=dict)


_INFER = "/v2/models/mlp/infer"
CONTESTANTS = {
    "kit": Contestant("kit serve, 1 replica", path=_INFER, protocol=True, flags=("--replicas=1",)),
    "kit2": Contestant("kit serve, 2 replicas", path=_INFER, protocol=True, flags=("--replicas=2",)),
    "bare": Contestant("bare uvicorn, raw ASGI", "bare.py", path=_INFER, protocol=True),
    "fastapi": Contestant("FastAPI + uvicorn", "fastapi_app.py", wanted={"kit": 1.1, "kit2": 1.4}),
    "mlserver": Contestant(
        "MLServer", "mlserver_server.py", "mlserver", path=_INFER, protocol=True, wanted={"kit": 2.6}
    ),
    "litserve": Contestant("LitServe", "litserve_server.py", "litserve", wanted={"kit": 4.0}),
    "bentoml": Contestant("BentoML", "bentoml_server.py", "bentoml", wanted={"kit": 10.0}),
    "ray": Contestant("Ray Serve as it comes", "ray_serve.py", path="/", wanted={"kit": 17.0}),
}


def interpreter(contestant: Contestant, *, folder: Path) -> str:
    """Give the Python of a contestant, whose environment is made where it does not hold what is pinned.

    Args:
        contestant: Who.
        folder: Where the peers' environments lie.

    Raises:
        SystemExit: It cannot be installed.
    """
    if contestant.peer is None:
        return sys.executable
    pins = _pins(contestant.peer)
    place = folder / f"peer-{contestant.peer}"
    python, made = place / "bin" / "python", place / "made.txt"
    if not made.is_file() or made.read_text() != "\n".join(pins):
        print(f"installing {contestant.title} into {place}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        installed = subprocess.run([*pip, *pins], stderr=subprocess.PIPE, text=True, check=False)
        if installed.returncode:
            raise SystemExit(f"{contestant.title} cannot be installed:\n{installed.stderr[-2000:]}")
        made.write_text("\n".join(pins))
    return str(python)


def script_words(contestant: Contestant, *, folder: Path, model: Path, port: int) -> list[str]:
    """Give the words that start a contestant that is a script."""
    script = _HERE / "contestants" / str(contestant.script)
    return [interpreter(contestant, folder=folder), str(script), str(model), str(port)]


def kit_words(project: Path, *, models: tuple[str, ...], port: int, flags: tuple[str, ...]) -> list[str]:
    """Give the words that start ``kit serve``, without authentication unless a flag asks for it."""
    auth = () if any(flag.startswith("--auth") for flag in flags) else ("--auth=none",)
    words = ["-m", "kit", "serve", *models, f"--project={project}", f"--port={port}", *auth, *flags]
    return [sys.executable, *words]


def variables() -> dict[str, str]:
    """Give a server's environment: what contestants share can be imported, also by workers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shared = [str(_HERE / "contestants"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(shared),
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
    }


def _pins(peer: str) -> list[str]:
    """Read a peer's own line and those that all of them share."""
    lines = [line for line in _PINS.read_text().splitlines() if not line.startswith("#")]
    peers, _, shared = "\n".join(lines).partition("\n\n")
    own = [line for line in peers.splitlines() if line.partition("==")[0] == peer]
    return [*own, *shared.split()]
