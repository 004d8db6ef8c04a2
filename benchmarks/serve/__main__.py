"""Requests per second of `kit serve` beside a bare loop and beside others, taking turns under the same load.

    python benchmarks/serve [--rounds 3] [--turn-s 4] [--contestants kit kit2 bare fastapi mlserver ...]
    python benchmarks/serve --guards      what keys, limits, cache, logs and traces cost, each by itself
    python benchmarks/serve --binary      1 x 3 x 64 x 64 float32: JSON, binary tensors and gRPC
    python benchmarks/serve --open-loop   a 20 ms model that batches, 300 requests/s that wait for nobody
    python benchmarks/serve --overload    the same at twice its capacity, for --seconds
    python benchmarks/serve --cold        first answers of versions not loaded, and from zero replicas
    python benchmarks/serve --release     release and rollback under full load, and the shares of canaries
    python benchmarks/serve --dashboard   a release by steps, as the dashboard shows it

Several parts may be asked for at once; --all is everything. All run onnxruntime on one thread with the same
graph; a server's answers are compared with onnxruntime's before it is timed. Load comes from wrk on the same
machine where clients wait for answers, and from benchmarks/serve/open_loop.py where they do not. CPU time is
that of all processes of a server. Results are printed, and kept in --folder as NAME.json and NAME.md; the
peers' environments, which benchmarks/serve/peers.txt describes, are made there once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from environment import CONTESTANTS
from kit_endpoint import Place
from wrk import obstacle

_FOLDER = Path(__file__).resolve().parents[2] / ".bench" / "serve"
#: Part to the function that measures it.
_PARTS = {
    "small": "small:measure_small",
    "guards": "guards:measure_guards",
    "binary": "tensors:measure_binary",
    "open_loop": "queueing:measure_open_loop",
    "overload": "queueing:measure_overload",
    "cold": "cold:measure_cold",
    "release": "releasing:measure_release",
    "dashboard": "dashboard:measure_dashboard",
}


def main() -> None:
    """Measure what was asked for, print it and keep it."""
    given = _parser().parse_args()
    if reason := obstacle():
        raise SystemExit(reason)
    given.folder = given.folder.resolve()
    place = Place(given.folder)
    asked = [name for name in _PARTS if getattr(given, name, False)] or ["small"]
    for name in _PARTS if given.all else asked:
        report = _function(_PARTS[name])(given, place)
        report.write(given.folder, options=vars(given))
        print(f"\n### {report.title}\n\n{report.text}", flush=True)
        print(f"kept in {given.folder / name}.json and .md", file=sys.stderr, flush=True)


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--turn-s", type=int, default=4, help="seconds of a turn")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    for name in _PARTS:
        if name != "small":
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--guard", nargs="+", help="of --guards: only these")
    parser.add_argument("--seconds", type=float, default=60.0, help="of --overload")
    parser.add_argument("--versions", type=int, default=40, help="of --cold: how many are asked for")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where everything is kept")
    return parser


if __name__ == "__main__":
    main()
