"""FastAPI on one uvicorn process, in its fastest form: neither body nor answer are checked.

With models of pydantic in and out it answers about a fifth less.
"""

from __future__ import annotations

from typing import Any

import orjson
import uvicorn
from answering import Answering, asked
from fastapi import FastAPI, Response


def main() -> None:
    model, port = asked()
    answering = Answering(model)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: dict[str, Any]) -> Response:
        return Response(orjson.dumps(answering.run_lists(request["x"])), media_type="application/json")

    uvicorn.run(app, port=port, log_level="critical", access_log=False)


if __name__ == "__main__":
    main()
