"""What a script here is told, and what it hands back: a JSON object each way and files of arrays.

The scripts run in the clients' own environment, which has no kit; ``tests/system/test_clients.py`` starts
them and judges what comes back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Job:
    """The endpoint to ask, and what was learnt.

    Attributes:
        http: Its address, ``host:port``.
        grpc: Its address for gRPC.
        key: What it asks for.
        rows: Input x of ``tiny``, float32, shape (n_rows, 4).
        wide: Inputs of ``wide`` by name, one of each datatype.
        headers: What every request carries.
        facts: What the client said, by what was asked.
    """

    def __init__(self) -> None:
        told = json.loads(sys.argv[1])
        self.http, self.grpc, self.key = told["http"], told["grpc"], told["key"]
        self._folder = Path(told["folder"])
        self.rows = np.load(self._folder / "rows.npy")
        with np.load(self._folder / "wide.npz", allow_pickle=True) as file:
            self.wide = dict(file)
        self.facts: dict[str, Any] = {}
        self._answers: dict[str, np.ndarray] = {}

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries; made anew each time, since tritonclient writes into it."""
        return {"authorization": f"Bearer {self.key}"}

    def keep(self, way: str, answers: Mapping[str, np.ndarray]) -> None:
        """Keep what was answered, to be held against the engine."""
        self._answers.update({f"{way}/{name}": array for name, array in answers.items()})

    def refused(self, what: str, ask: Callable[[], Any], kind: type[Exception]) -> None:
        """Note how a client words a refusal; there must be one."""
        try:
            ask()
        except kind as error:
            self.facts[what] = str(error)
        else:
            self.facts[what] = None

    def finish(self) -> None:
        """Hand back what was learnt."""
        np.savez(self._folder / f"{Path(sys.argv[0]).stem}.npz", **self._answers)
        sys.stdout.write(json.dumps(self.facts))
