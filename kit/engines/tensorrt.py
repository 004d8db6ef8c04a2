"""The TensorRT engine: ONNX files, on an NVIDIA GPU. It has not run on one yet.

Written against TensorRT 10 and 11: in 10 by a flag and in 11 always, a network is strongly typed, so what is
computed in 16 bits or in 8 is what the file says (halves, Q/DQ pairs) and nothing is chosen here. Tests run
this module over stand-ins for TensorRT and for the driver.

An engine is built anew from the file at every start, which takes seconds to minutes. TensorRT can keep what
it has built, but a kept plan is a program: whoever can write to it runs what he likes on the device, and it
is not in the bundle's signature. So neither plan nor timing cache is kept or read. CUDA is reached through
the driver itself (``libcuda``), which is there wherever a GPU works; no other package is needed.
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import Any

import numpy as np

try:
    import tensorrt as trt
except OSError as error:  # its package is there, the libraries of it are not
    raise ImportError(" ".join(str(error).split())) from error

from kit.errors import InputError, MissingDependencyError, install_line
from kit.files import read_json
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

_DRIVER = "libcuda.so.1"
_DRIVER_HINT = "install NVIDIA's driver on a machine with a GPU, or use a bundle for another target"
_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1
_WORKSPACE_BYTES = 1 << 30
_OLDEST = 10
#: Rows of the smallest, the usual and the largest call, where no manifest lies beside the file.
_PROFILE = (1, 1, 32)


class TensorRT:
    """One built engine with its buffers on the GPU."""

    version: str = trt.__version__
    device = "tensorrt"

    def __init__(self, engine: Any, log: _Log, *, cuda: _Cuda, signature: Signature, max_rows: int) -> None:
        self._engine = engine
        self._log = log  # TensorRT writes to it as long as the engine lives
        self._cuda = cuda
        self._context = engine.create_execution_context()
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._max_rows = max_rows
        self._buffers = {name: _Buffer(cuda) for name in (*self._inputs, *self._outputs)}

    def run(self, inputs: Tensors) -> Tensors:
        """Run the model on validated tensors, at most the profile's largest batch at a time."""
        n_rows = len(inputs[self._inputs[0]])
        self._cuda.use()
        parts = [
            self._batch({name: inputs[name][start : start + self._max_rows] for name in self._inputs})
            for start in range(0, n_rows, self._max_rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _batch(self, inputs: Tensors) -> Tensors:
        sent = []  # a copy under way reads them
        for name, rows in inputs.items():
            array = np.ascontiguousarray(rows, dtype=self._dtype(name))
            sent.append(array)
            if not self._context.set_input_shape(name, array.shape):
                raise InputError(f"tensorrt does not take {name!r} in the shape {array.shape}")
            self._buffers[name].reserve(array.nbytes)
            self._context.set_tensor_address(name, self._buffers[name].address)
            self._cuda.send(array, to=self._buffers[name].address)
        answers = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise InputError(f"tensorrt cannot tell the shape of {name!r} before it runs: {shape}")
            answers[name] = np.empty(shape, dtype=self._dtype(name))
            self._buffers[name].reserve(answers[name].nbytes)
            self._context.set_tensor_address(name, self._buffers[name].address)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise InputError(f"tensorrt fails on these rows: {self._log.last}")
        for name, answer in answers.items():
            self._cuda.fetch(answer, out_of=self._buffers[name].address)
        self._cuda.wait()
        return answers

    def _dtype(self, name: str) -> Any:
        return np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))


def load(path: Path, *, threads: int, signature: Signature) -> TensorRT:
    """Build an engine from an ONNX file for the GPU of this machine.

    Args:
        path: The file, verified. The ``batch_sizes`` of a ``manifest.json`` beside it say for how many rows
            the engine is made.
        threads: Nothing to a GPU.
        signature: Inputs and outputs.

    Raises:
        MissingDependencyError: There is no GPU, or this TensorRT is too old.
        InputError: TensorRT refuses the file, or it lacks a tensor of the signature.
    """
    del threads
    if int(trt.__version__.partition(".")[0]) < _OLDEST:
        raise MissingDependencyError(
            f"tensorrt {trt.__version__} is too old; this kit needs {_OLDEST} or later",
            hint=install_line("tensorrt"),
        )
    cuda = _Cuda(_driver())
    profile = _profile(path.with_name("manifest.json"))
    log = _Log()
    engine = _build(path, log, signature=signature, profile=profile)
    return TensorRT(engine, log, cuda=cuda, signature=signature, max_rows=profile[-1])


def _build(path: Path, log: _Log, *, signature: Signature, profile: tuple[int, int, int]) -> Any:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"tensorrt cannot load {path.name}: {error.strerror}") from error
    if not parser.parse(data):
        found = "; ".join(_said(parser.get_error(index)) for index in range(parser.num_errors))
        raise InputError(f"tensorrt cannot load {path.name}: {(found or log.last)[:300]}")
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    _require(signature.inputs, inputs, path=path)
    _require(
        signature.outputs, [network.get_output(index).name for index in range(network.num_outputs)], path=path
    )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # what is float32 in the file is not rounded to 10 bits
    shapes = builder.create_optimization_profile()
    for spec in signature.inputs:
        shapes.set_shape(spec.name, *((n_rows, *spec.row_shape) for n_rows in profile))
    config.add_optimization_profile(shapes)
    plan = builder.build_serialized_network(network, config)
    engine = None if plan is None else trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f"tensorrt cannot build an engine from {path.name}: {log.last}")
    return engine


def _require(wanted: tuple[TensorSpec, ...], there: list[str], *, path: Path) -> None:
    for spec in wanted:
        if spec.name not in there:
            raise InputError(f"{path.name} has no tensor {spec.name!r}; it has {sorted(there)}")


def _profile(manifest: Path) -> tuple[int, int, int]:
    """Give the rows of the smallest, the usual and the largest call."""
    sizes = read_json(manifest).get("batch_sizes") if manifest.is_file() else None
    if not sizes:
        return _PROFILE
    return 1, int(min(sizes)), int(max(sizes))  # any number of rows leaves a rest


def _said(error: Any) -> str:
    return f"node {error.node()} ({error.node_operator()}): {error.desc()}"


class _Log(trt.ILogger):  # type: ignore[misc]  # its types are not installed where this is checked
    """Keeps the last thing TensorRT was unhappy with; its own logger would print."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.last = "it does not say why"

    def log(self, severity: Any, msg: str) -> None:
        """Be told something by TensorRT."""
        if severity <= trt.ILogger.ERROR:
            self.last = " ".join(msg.split())[:300]


def _driver() -> Any:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise MissingDependencyError(
            f"engine 'tensorrt' needs an NVIDIA GPU, and its driver is not here: {error}", hint=_DRIVER_HINT
        ) from error


class _Cuda:
    """The driver's functions on the first GPU: memory, copies, one stream.

    Uses the device's primary context, which is the one TensorRT uses.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._context = ctypes.c_void_p()
        stream = ctypes.c_void_p()
        device = ctypes.c_int()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGet", ctypes.byref(device), 0)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
            self.use()
            self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        except InputError as error:
            raise MissingDependencyError(
                f"engine 'tensorrt' finds no NVIDIA GPU it can use: {error.message}", hint=_DRIVER_HINT
            ) from error
        self.stream = int(stream.value or 0)

    def use(self) -> None:
        """Compute on this GPU in the thread that calls this."""
        self._call("cuCtxSetCurrent", self._context)

    def reserve(self, n_bytes: int) -> int:
        """Reserve memory on the GPU and give its address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n_bytes))
        return int(address.value)

    def release(self, address: int) -> None:
        """Give memory back."""
        self._driver.cuMemFree_v2(ctypes.c_uint64(address))

    def send(self, array: np.ndarray, *, to: int) -> None:
        """Begin to copy an array to the GPU."""
        place = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(to), place, size, ctypes.c_void_p(self.stream))

    def fetch(self, array: np.ndarray, *, out_of: int) -> None:
        """Begin to copy from the GPU into an array."""
        place = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", place, ctypes.c_uint64(out_of), size, ctypes.c_void_p(self.stream))

    def wait(self) -> None:
        """Wait until all of it is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise MemoryError(f"the GPU has no memory left ({name})")
        if code:
            said = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(said))
            words = (said.value or b"unknown").decode(errors="replace")
            raise InputError(f"CUDA error {code} in {name}: {words}")


class _Buffer:
    """Memory on the GPU that grows as it is needed, and is given back with its owner."""

    def __init__(self, cuda: _Cuda) -> None:
        self._cuda = cuda
        self._size = 0
        self._free: Any = None
        self.address = 0

    def reserve(self, n_bytes: int) -> None:
        """Have room for so many bytes."""
        if n_bytes <= self._size:
            return
        self._size = 0
        if self._free is not None:
            self._free()
        self.address = self._cuda.reserve(n_bytes)
        self._size = n_bytes
        self._free = weakref.finalize(self, self._cuda.release, self.address)
