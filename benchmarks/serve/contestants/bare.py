"""One uvicorn process, a raw ASGI function, orjson: the ceiling of a Python process. Nothing is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import uvicorn
from answering import Answering, asked


def main() -> None:
    model, port = asked()
    answering = Answering(model)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tensor = orjson.loads((await receive())["body"])["inputs"][0]
        label, probabilities = answering.run(np.array(tensor["data"], np.float32).reshape(tensor["shape"]))
        outputs = [
            {"name": "label", "datatype": "INT64", "shape": label.shape, "data": label},
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": probabilities.shape,
                "data": probabilities.reshape(-1),
            },
        ]
        body = orjson.dumps({"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, log_level="critical", access_log=False, lifespan="off")


if __name__ == "__main__":
    main()
