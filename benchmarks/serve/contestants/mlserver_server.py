"""MLServer: a runtime of our own in its own process, since its pool of workers costs it a hop."""

from __future__ import annotations

import asyncio

from answering import Answering, asked
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):
    async def load(self) -> bool:
        self._answering = Answering(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        label, probabilities = self._answering.run(rows.astype("float32", copy=False))
        outputs = [
            NumpyCodec.encode_output("label", label),
            NumpyCodec.encode_output("probabilities", probabilities),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def serve(model: str, port: int) -> None:
    """Serve until a signal comes."""
    server = MLServer(
        Settings(
            host="127.0.0.1",
            http_port=port,
            grpc_port=port + 1,
            metrics_port=port + 2,
            parallel_workers=0,
            debug=False,
            use_structured_logging=False,
        )
    )
    settings = ModelSettings(name="mlp", implementation=Classifier, parameters=ModelParameters(uri=model))
    await server.start([settings])


if __name__ == "__main__":
    asyncio.run(serve(*asked()))
