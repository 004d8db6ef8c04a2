"""The onnxruntime engine: the reference everything else is compared with."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from kit.errors import InputError, MissingDependencyError
from kit.signature import Signature
from kit.tensors import Tensors

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


#: Device to the provider that computes there; each falls back to the CPU for an operator it lacks.
_PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_NO_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc", "out of memory")


class OnnxRuntime:
    """One onnxruntime session."""

    version: str = ort.__version__

    def __init__(self, session: ort.InferenceSession, outputs: list[str], *, device: str) -> None:
        self._session = session
        self._outputs = outputs
        self.device = device

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs)))
        except _REFUSALS as error:
            said = " ".join(str(error).split())[:300]
            if any(each in said for each in _NO_MEMORY):
                raise MemoryError(said) from error
            raise InputError(f"onnxruntime fails on these rows: {said}") from error


def load(path: Path, *, threads: int, signature: Signature, device: str = "cpu") -> OnnxRuntime:
    """Load an ONNX file.

    Args:
        path: The file, verified.
        threads: Threads of one call; 0 leaves the choice to onnxruntime.
        signature: Inputs and outputs.
        device: cpu, cuda, tensorrt, or auto for the best that this onnxruntime can load.

    Raises:
        InputError: onnxruntime refuses the file, or it lacks a tensor of the signature.
        MissingDependencyError: This onnxruntime cannot compute on the device.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session, device = _open(path, options, device=device)
    for wanted, there in (
        (signature.inputs, {node.name for node in session.get_inputs()}),
        (signature.outputs, {node.name for node in session.get_outputs()}),
    ):
        for spec in wanted:
            if spec.name not in there:
                raise InputError(f"{path.name} has no tensor {spec.name!r}; it has {sorted(there)}")
    return OnnxRuntime(session, [spec.name for spec in signature.outputs], device=device)


def _open(path: Path, options: ort.SessionOptions, *, device: str) -> tuple[ort.InferenceSession, str]:
    """Open a session on the first wanted device that it really has; a missing library shows only here."""
    there = ort.get_available_providers()
    wanted = [name for name in _PROVIDERS if device in (name, "auto") and _PROVIDERS[name] in there]
    for name in wanted:
        try:
            session = ort.InferenceSession(str(path), options, providers=_chain(name, there))
        except _REFUSALS as error:
            raise InputError(f"onnxruntime cannot load {path.name}: {str(error)[:300]}") from error
        if _PROVIDERS[name] in session.get_providers():
            return session, name
    raise MissingDependencyError(
        f"onnxruntime {ort.__version__} cannot compute on {device} here; it has {', '.join(there)}",
        hint="pip install onnxruntime-gpu with the CUDA libraries it names, or use device cpu",
    )


def _chain(device: str, there: list[str]) -> list[str]:
    names = list(_PROVIDERS)
    return [_PROVIDERS[name] for name in names[names.index(device) :] if _PROVIDERS[name] in there]
