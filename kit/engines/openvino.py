"""The OpenVINO engine: ONNX files and OpenVINO's own ``.xml`` with ``.bin``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov

from kit.errors import InputError
from kit.signature import Signature
from kit.tensors import Tensors


class OpenVino:
    """One compiled OpenVINO model on the CPU."""

    version: str = ov.__version__.split("-")[0]
    device = "cpu"

    def __init__(self, compiled: ov.CompiledModel, outputs: list[str]) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = outputs

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors."""
        try:
            answers = self._request.infer(inputs, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:300]
            if any(each in said for each in ("bad_alloc", "allocate", "out of memory")):
                raise MemoryError(said) from error
            raise InputError(f"openvino fails on these rows: {said}") from error
        return {name: np.array(answers[name]) for name in self._outputs}


def load(path: Path, *, threads: int, signature: Signature) -> OpenVino:
    """Compile a model for the CPU, in full float32 where it is not quantised.

    New CPUs would silently run float32 models in bfloat16; the precision hint forbids it.

    Raises:
        InputError: OpenVINO refuses the file, or it lacks a tensor of the signature.
    """
    config: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = ov.Core().compile_model(str(path), "CPU", config)
    except RuntimeError as error:
        raise InputError(f"openvino cannot load {path.name}: {str(error)[:300]}") from error
    for wanted, ports in ((signature.inputs, compiled.inputs), (signature.outputs, compiled.outputs)):
        there = {name for port in ports for name in port.get_names()}
        for spec in wanted:
            if spec.name not in there:
                raise InputError(f"{path.name} has no tensor {spec.name!r}; it has {sorted(there)}")
    return OpenVino(compiled, [spec.name for spec in signature.outputs])
