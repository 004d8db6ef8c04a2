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

    PACKAGE = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter

    PACKAGE = "tflite-runtime"

from kit.errors import InputError
from kit.signature import Signature
from kit.tensors import Tensors

_LIMITS = {
    np.dtype(kind): (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64)
}
_FAR = 1e30  # scales are larger than 1e-8, so nothing nearer overflows
_DIRECT = ("SetTensor", "Invoke", "GetTensor")


class LiteRT:
    """One interpreter with one or several fixed batch sizes, fed as many times as the rows need."""

    version: str = metadata.version(PACKAGE)
    device = "cpu"

    def __init__(self, interpreter: Any, signature: Signature) -> None:
        names = [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]
        signatures = list(interpreter.get_signature_list())
        made: list[_Whole | _Signature]
        if len(signatures) > 1:
            made = [_Signature(interpreter.get_signature_runner(name), *names) for name in signatures]
        else:
            made = [_Whole(interpreter, *names)]
        self._programs = sorted(made, key=lambda program: program.size, reverse=True)
        self._by_size = {program.size: program for program in self._programs}
        self._outputs = signature.outputs

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors, the largest batch first that they fill."""
        n_rows = len(next(iter(inputs.values())))
        exact = self._by_size.get(n_rows)
        if exact is not None:  # all rows in one call, most often one row: nothing to cut and join
            try:
                return exact.run(inputs)
            except RuntimeError as error:
                raise _failed(error) from error
        parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in self._outputs}
        start = 0
        while start < n_rows:
            left = n_rows - start
            program = next((each for each in self._programs if each.size <= left), self._programs[-1])
            taken = min(program.size, left)
            try:
                answer = program.run({name: array[start : start + taken] for name, array in inputs.items()})
            except RuntimeError as error:
                raise _failed(error) from error
            for name, part in parts.items():
                part.append(answer[name][:taken])
            start += taken
        return {name: np.concatenate(part) for name, part in parts.items()}


class _Whole:
    """The only signature of a file: its tensors are set and read by index, which is fastest."""

    def __init__(self, interpreter: Any, inputs: list[str], outputs: list[str]) -> None:
        self._interpreter = interpreter
        self._inputs = _by_name(interpreter.get_input_details(), inputs)
        self._outputs = _by_name(interpreter.get_output_details(), outputs)
        self.size = int(next(iter(self._inputs.values()))["shape"][0])
        # One tensor in, one out, and nothing quantised: the interpreter's own three calls and no more.
        (given, *_), (answered, *_) = list(self._inputs.values()), list(self._outputs.values())
        scales = given["quantization"][0], answered["quantization"][0]
        self._is_plain = len(inputs) == len(outputs) == 1 and not any(scales)
        self._plain = (inputs[0], given["index"], np.dtype(given["dtype"]), outputs[0], answered["index"])

    def run(self, inputs: Tensors) -> Tensors:
        if self._is_plain:
            given, index, dtype, answered, place = self._plain
            rows = inputs[given]
            if len(rows) == self.size and rows.dtype == dtype:
                interpreter = self._interpreter
                interpreter.set_tensor(index, rows)
                interpreter.invoke()
                return {answered: interpreter.get_tensor(place)}
        for name, detail in self._inputs.items():
            self._interpreter.set_tensor(detail["index"], _filled(inputs[name], detail, size=self.size))
        self._interpreter.invoke()
        return {
            name: _dequantised(self._interpreter.get_tensor(detail["index"]), detail)
            for name, detail in self._outputs.items()
        }


class _Signature:
    """One signature of several, for one batch size."""

    def __init__(self, runner: Any, inputs: list[str], outputs: list[str]) -> None:
        self._runner = runner
        self._inputs = _by_key(runner.get_input_details(), inputs)
        self._outputs = _by_key(runner.get_output_details(), outputs)
        self.size = int(next(iter(self._inputs.values()))[1]["shape"][0])
        # Called itself, a signature's runner has all of its memory laid out anew each time, 30 us of a call.
        # Its sizes are fixed, so what it does then is done here once it has been called.
        self._direct: Any = None
        self._subgraph = getattr(runner, "_subgraph_index", None)

    def run(self, inputs: Tensors) -> Tensors:
        if self._direct is not None:
            direct, subgraph = self._direct, self._subgraph
            for name, (_, detail) in self._inputs.items():
                direct.SetTensor(detail["index"], _filled(inputs[name], detail, size=self.size), subgraph)
            direct.Invoke(subgraph)
            return {
                name: _dequantised(direct.GetTensor(detail["index"], subgraph), detail)
                for name, (_, detail) in self._outputs.items()
            }
        fed = {
            key: _filled(inputs[name], detail, size=self.size) for name, (key, detail) in self._inputs.items()
        }
        answers = self._runner(**fed)
        wrapper = getattr(self._runner, "_interpreter_wrapper", None)
        if self._subgraph is not None and all(hasattr(wrapper, name) for name in _DIRECT):
            self._direct = wrapper
        return {name: _dequantised(answers[key], detail) for name, (key, detail) in self._outputs.items()}


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


def _failed(error: RuntimeError) -> InputError:
    return InputError(f"litert fails on these rows: {str(error)[:300]}")


def _by_name(details: list[dict[str, Any]], names: list[str]) -> dict[str, dict[str, Any]]:
    """Match tensors by name, or by position where the file has one tensor only."""
    there = {detail["name"]: detail for detail in details}
    if len(details) == len(names) == 1:
        return {names[0]: details[0]}
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(f"the model file has no tensor {missing[0]!r}; it has {sorted(there)}")
    return {name: there[name] for name in names}


def _by_key(details: dict[str, dict[str, Any]], names: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Match a signature's tensors by name, or by position where it has one tensor only."""
    if len(details) == len(names) == 1:
        return {names[0]: next(iter(details.items()))}
    missing = [name for name in names if name not in details]
    if missing:
        raise InputError(f"the model file has no tensor {missing[0]!r}; it has {sorted(details)}")
    return {name: (name, details[name]) for name in names}


def _filled(rows: np.ndarray, detail: dict[str, Any], *, size: int) -> np.ndarray:
    """Quantise rows and repeat the last until the batch is full."""
    values = _quantised(rows, detail)
    missing = size - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values


def _quantised(rows: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = detail["dtype"]
    scale, zero_point = detail["quantization"]
    if np.issubdtype(dtype, np.integer) and rows.dtype.kind == "f" and scale:
        return _levels(rows, scale, zero_point, dtype)
    return np.ascontiguousarray(rows, dtype=dtype)  # 64-bit integers, which LiteRT reads as 32-bit ones


def _levels(rows: np.ndarray, scale: float, zero_point: int, dtype: Any) -> np.ndarray:
    limits = _LIMITS[np.dtype(dtype)]
    flat = rows.reshape(-1)
    least, most = flat.argmin(), flat.argmax()  # the place of NaN, if there is any
    if float(flat[least]) > -_FAR and float(flat[most]) < _FAR:
        levels = np.rint(rows / scale)
        levels += zero_point
        found = levels.reshape(-1)  # rounding keeps the order, so the ends are where they were
        if found[least] >= limits[0] and found[most] <= limits[1]:
            return np.asarray(levels, dtype=dtype)
    with np.errstate(over="ignore"):  # an extreme saturates, as in the kernels
        levels = np.clip(np.rint(rows / scale) + zero_point, *limits)
    # 8 bits have no NaN; the level of 0 is the same answer on every machine.
    return np.asarray(np.where(np.isnan(levels), zero_point, levels), dtype=dtype)


def _dequantised(answer: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if answer.dtype.kind in "iu" and scale:
        return np.asarray((answer.astype(np.float32) - zero_point) * scale, dtype=np.float32)
    return answer
