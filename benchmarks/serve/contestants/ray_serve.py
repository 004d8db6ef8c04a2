"""Ray Serve as it comes: one replica behind its Python proxy, a deployment that takes Starlette's request."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray
from answering import Answering, asked
from ray import serve
from starlette.requests import Request


@serve.deployment
class Classifier:
    def __init__(self, model: str) -> None:
        self._answering = Answering(model)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self._answering.run_lists((await request.json())["x"])


def main() -> None:
    model, port = asked()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Classifier.bind(model))
    threading.Event().wait()


if __name__ == "__main__":
    main()
