"""BentoML: one worker, no access log, otherwise as it comes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from answering import Answering, asked

_MODEL = "BENCHMARK_MODEL"


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self._answering = Answering(os.environ[_MODEL])

    @bentoml.api
    def predict(self, x: list[list[float]]) -> dict[str, Any]:
        return self._answering.run_lists(x)


def main() -> None:
    model, port = asked()
    os.environ[_MODEL] = model
    os.chdir(Path(__file__).parent)
    words = ["serve", f"{Path(__file__).stem}:Classifier", f"--port={port}", "--host=127.0.0.1"]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *words])


if __name__ == "__main__":
    main()
