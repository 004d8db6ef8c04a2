"""Engines: what runs a model file.

One interface over onnxruntime, OpenVINO, LiteRT and TensorRT: named numpy arrays in, named numpy arrays
out, checked against the signature before a runtime sees them. It trusts the file it is given:
whoever opens one has verified it first (``kit.seal``). Runs on a device: each engine's package
is imported when that engine is opened.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from kit.errors import InputError, MissingDependencyError, install_line, nearest
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors

#: Engine to its module, its package and the extra of the kit that installs it.
ENGINES: dict[str, tuple[str, str, str]] = {
    "onnxruntime": ("kit.engines.onnxruntime", "onnxruntime", "onnxruntime"),
    "openvino": ("kit.engines.openvino", "openvino", "openvino"),
    "litert": ("kit.engines.litert", "ai-edge-litert", "litert"),
    "tensorrt": ("kit.engines.tensorrt", "tensorrt", "tensorrt"),
}


class Runtime(Protocol):
    """What an engine's module gives: one loaded model file.

    Its ``run`` raises ``MemoryError`` where the rows are too many for the memory, and ``InputError``
    where the runtime fails on them.
    """

    version: str
    device: str

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors."""


class Engine:
    """A loaded model file that answers.

    Attributes:
        name: The engine, a key of ``ENGINES``.
        version: Version of its runtime.
        device: Where it computes: cpu, cuda or tensorrt.
        signature: What it accepts and answers.
    """

    def __init__(self, runtime: Runtime, *, name: str, signature: Signature) -> None:
        self._runtime = runtime
        self.name = name
        self.version = runtime.version
        self.device = runtime.device
        self.signature = signature

    def run(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """Answer a batch of rows.

        Args:
            inputs: One array per input of the signature, shape (n_rows, ...).

        Returns:
            One array per output of the signature, in its order, shape (n_rows, ...).

        Raises:
            InputError: The inputs break the signature, or the runtime fails on them.
            MemoryError: They are too many for the memory.
        """
        return self.run_validated(self.signature.validate(inputs))

    def run_validated(self, inputs: Tensors) -> Tensors:
        """Answer rows that ``Signature.validate`` has already accepted, without checking twice."""
        if not len(next(iter(inputs.values()))):  # runtimes differ on nothing: errors, or stale answers
            outputs = self.signature.outputs
            return {spec.name: np.zeros((0, *spec.row_shape), DTYPES[spec.dtype]) for spec in outputs}
        answers = self._runtime.run(inputs)
        if len(answers) == 1:
            return answers
        return {spec.name: answers[spec.name] for spec in self.signature.outputs}


def open_engine(
    path: Path, *, engine: str, threads: int, signature: Signature, device: str = "cpu"
) -> Engine:
    """Load a model file into an engine.

    Args:
        path: The model file: ``.onnx`` (onnxruntime, openvino, tensorrt), ``.xml`` (openvino) or
            ``.tflite`` (litert). Already verified by the caller.
        engine: A key of ``ENGINES``.
        threads: Threads the runtime may use for one call; 0 leaves it the choice.
        signature: Inputs and outputs by the names the file uses.
        device: cpu, or with onnxruntime cuda, tensorrt, or auto for the best that is there. Engine
            tensorrt computes on its GPU whatever this says.

    Raises:
        InputError: The engine is unknown, has no such device, or cannot load the file.
        MissingDependencyError: The engine's package is not installed, or lacks what the device needs.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", hint=nearest(engine, ENGINES))
    module_name, package, extra = ENGINES[engine]
    if engine == "openvino":
        # By itself it reports its import to an analytics service and leaves an identifier in the home folder;
        # it does neither where the package it reports through is absent.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SystemError) as error:  # SystemError: tflite-runtime 2.14 beside numpy 2
        raise MissingDependencyError(
            f"engine {engine!r} needs {package}, which cannot be imported here: {error}",
            hint=install_line(extra),
        ) from error
    if engine == "onnxruntime":
        runtime = module.load(path, threads=threads, signature=signature, device=device)
    elif device in ("cpu", "auto"):
        runtime = module.load(path, threads=threads, signature=signature)
    else:
        raise InputError(
            f"engine {engine!r} has no device {device!r}", hint="use engine onnxruntime, or device cpu"
        )
    return Engine(runtime, name=engine, signature=signature)
