"""The onnxruntime engine: the reference everything else is compared with."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from kit.errors import InputError
from kit.signature import Signature, Tensors

#: onnxruntime's errors share no base class of their own.
_REFUSALS = (
    states.EPFail,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
)


class OnnxRuntime:
    """One onnxruntime session on the CPU."""

    version: str = ort.__version__

    def __init__(self, session: ort.InferenceSession, outputs: list[str]) -> None:
        self._session = session
        self._outputs = outputs

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs)))


def load(path: Path, *, threads: int, signature: Signature) -> OnnxRuntime:
    """Load an ONNX file.

    Raises:
        InputError: onnxruntime refuses the file, or it lacks a tensor of the signature.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _REFUSALS as error:
        raise InputError(f"onnxruntime cannot load {path.name}: {str(error)[:300]}") from error
    for wanted, there in (
        (signature.inputs, {node.name for node in session.get_inputs()}),
        (signature.outputs, {node.name for node in session.get_outputs()}),
    ):
        for spec in wanted:
            if spec.name not in there:
                raise InputError(f"{path.name} has no tensor {spec.name!r}; it has {sorted(there)}")
    return OnnxRuntime(session, [spec.name for spec in signature.outputs])
