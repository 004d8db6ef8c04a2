"""The LiteRT engine: ``.tflite`` files, by ai-edge-litert or, on old devices, tflite-runtime."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter

    _PACKAGE = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter

    _PACKAGE = "tflite-runtime"

from kit.errors import InputError
from kit.signature import Signature, Tensors


class LiteRT:
    """One interpreter with a fixed batch size, fed as many times as the rows need."""

    version: str = metadata.version(_PACKAGE)
    device = "cpu"

    def __init__(self, interpreter: Any, signature: Signature) -> None:
        self._interpreter = interpreter
        self._inputs = _by_name(interpreter.get_input_details(), [spec.name for spec in signature.inputs])
        self._outputs = _by_name(interpreter.get_output_details(), [spec.name for spec in signature.outputs])
        self._batch = int(next(iter(self._inputs.values()))["shape"][0])

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors, a batch of the file's size at a time."""
        n_rows = len(next(iter(inputs.values())))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs}
        for start in range(0, n_rows, self._batch):
            taken = min(self._batch, n_rows - start)
            for name, detail in self._inputs.items():
                rows = _quantised(inputs[name][start : start + taken], detail)
                if taken < self._batch:
                    rows = np.concatenate([rows, np.repeat(rows[-1:], self._batch - taken, axis=0)])
                self._interpreter.set_tensor(detail["index"], rows)
            self._interpreter.invoke()
            for name, detail in self._outputs.items():
                answer = self._interpreter.get_tensor(detail["index"])
                parts[name].append(_dequantised(answer, detail)[:taken])
        return {name: self._joined(name, part) for name, part in parts.items()}

    def _joined(self, name: str, parts: list[np.ndarray]) -> np.ndarray:
        if parts:
            return np.concatenate(parts)
        return np.zeros((0, *self._outputs[name]["shape"][1:]), np.float32)


def load(path: Path, *, threads: int, signature: Signature) -> LiteRT:
    """Load a TFLite file.

    Raises:
        InputError: The interpreter refuses the file, or it lacks a tensor of the signature.
    """
    try:
        with _without_notices():
            interpreter = Interpreter(model_path=str(path), num_threads=threads or None)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"litert cannot load {path.name}: {str(error)[:300]}") from error
    return LiteRT(interpreter, signature)


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Keep the runtime's notice of its delegate off the user's screen.

    It writes to the file descriptor, and no switch or environment variable of it says otherwise. What
    goes wrong is in its exceptions.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # a service without a standard error has nothing to keep clean
        yield
        return
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _by_name(details: list[dict[str, Any]], names: list[str]) -> dict[str, dict[str, Any]]:
    """Match tensors by name, or by position where the file has one tensor only."""
    there = {detail["name"]: detail for detail in details}
    if len(details) == len(names) == 1:
        return {names[0]: details[0]}
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(f"the model file has no tensor {missing[0]!r}; it has {sorted(there)}")
    return {name: there[name] for name in names}


def _quantised(rows: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = detail["dtype"]
    scale, zero_point = detail["quantization"]
    if np.issubdtype(dtype, np.integer) and rows.dtype.kind == "f" and scale:
        limits = np.iinfo(dtype)
        with np.errstate(over="ignore"):  # an extreme saturates, as in the kernels
            levels = np.clip(np.rint(rows / scale) + zero_point, limits.min, limits.max)
        # 8 bits have no NaN; the level of 0 is the same answer on every machine.
        return np.asarray(np.where(np.isnan(levels), zero_point, levels), dtype=dtype)
    return np.ascontiguousarray(rows)


def _dequantised(answer: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if answer.dtype.kind in "iu" and scale:
        return np.asarray((answer.astype(np.float32) - zero_point) * scale, dtype=np.float32)
    return answer
