"""LitServe: one worker, one process that speaks HTTP, as it comes."""

from __future__ import annotations

from typing import Any

import litserve
from answering import Answering, asked


class Classifier(litserve.LitAPI):
    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def setup(self, device: str) -> None:
        self._answering = Answering(self._model)

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._answering.run_lists(request["x"])


def main() -> None:
    model, port = asked()
    server = litserve.LitServer(Classifier(model), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="critical", generate_client_file=False)


if __name__ == "__main__":
    main()
