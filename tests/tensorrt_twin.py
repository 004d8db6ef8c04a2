"""Stand-ins for TensorRT and for NVIDIA's driver, where there is no GPU.

They hold the parts that the TensorRT engine uses, by TensorRT 11's names and rules, and compute with
onnxruntime in this machine's memory. What they cannot show is that a GPU does the same.
"""

from __future__ import annotations

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

ERROR, WARNING = 1, 2
STRONGLY_TYPED = 1


class Driver:
    """The driver: memory that is this machine's own.

    Attributes:
        code: What every call but those that ask about errors gives; 0 is well.
        held: Address to its memory, of what has been reserved and not given back.
    """

    def __init__(self, *, code: int = 0) -> None:
        self.code = code
        self.held: dict[int, Any] = {}

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own names, here and below
        return self.code

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802 - see above
        return self.code

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802 - see above
        context._obj.value = 11
        return self.code

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802 - see above
        assert context.value == 11
        return self.code

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802 - see above
        stream._obj.value = 22
        return self.code

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:  # noqa: N802 - see above
        if self.code == 0:
            memory = ctypes.create_string_buffer(size.value)
            address._obj.value = ctypes.addressof(memory)
            self.held[address._obj.value] = memory
        return self.code

    def cuMemFree_v2(self, address: Any) -> int:  # noqa: N802 - see above
        del self.held[address.value]
        return self.code

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802 - see above
        assert size.value <= len(self.held[to.value])
        assert stream.value == 22
        ctypes.memmove(to.value, source.value, size.value)
        return self.code

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802 - see above
        assert size.value <= len(self.held[source.value])
        assert stream.value == 22
        ctypes.memmove(to.value, source.value, size.value)
        return self.code

    def cuStreamSynchronize(self, stream: Any) -> int:  # noqa: N802 - see above
        return self.code

    def cuGetErrorString(self, code: int, words: Any) -> int:  # noqa: N802 - see above
        words._obj.value = b"no CUDA-capable device is detected"
        return 0


class ILogger:
    """What TensorRT says things to."""

    ERROR = ERROR

    def log(self, severity: int, msg: str) -> None:
        raise AssertionError("the engine's own logger hears everything")


class _Network:
    def __init__(self) -> None:
        self.data, self.inputs, self.outputs = b"", [], []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]


class _Parser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network = network
        self.num_errors = 0

    def parse(self, model: bytes) -> bool:
        import onnx

        try:
            graph = onnx.load_from_string(model).graph
        except Exception:  # protobuf's errors have no base
            self.num_errors = 1
            return False
        self._network.data = model
        self._network.inputs = [SimpleNamespace(name=each.name) for each in graph.input]
        self._network.outputs = [SimpleNamespace(name=each.name) for each in graph.output]
        return bool(graph.node)

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(node=lambda: 4, node_operator=lambda: "Det", desc=lambda: "no importer")


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self.shapes[input] = (min, opt, max)


class _Config:
    def __init__(self) -> None:
        self.profiles: list[_Profile] = []
        self.flags = {"TF32"}

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        assert (pool, pool_size > 0) == ("WORKSPACE", True)

    def clear_flag(self, flag: str) -> None:
        self.flags.remove(flag)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return 0


class _Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << STRONGLY_TYPED
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> Any:
        assert not config.flags
        [profile] = config.profiles
        if set(profile.shapes) != {each.name for each in network.inputs}:
            self._logger.log(WARNING, "something of no importance")
            self._logger.log(ERROR, "every input needs a\n profile")
            return None
        return (network.data, profile.shapes)


class _Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> _Engine:
        return _Engine(*serialized_engine, self._logger)


class _Engine:
    def __init__(self, data: bytes, shapes: dict[str, Any], logger: ILogger) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.shapes = shapes
        self.logger = logger

    def get_tensor_dtype(self, name: str) -> str:
        tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        return next(each.type for each in tensors if each.name == name)

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.shapes[name]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n_rows = next(iter(self._shapes.values()))[0]
        output = next(each for each in self._engine.session.get_outputs() if each.name == name)
        return tuple(n_rows if isinstance(size, str) else size for size in output.shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 22
        fed = {}
        for name, shape in self._shapes.items():
            fed[name] = np.empty(shape, nptype(self._engine.get_tensor_dtype(name)))
            ctypes.memmove(fed[name].ctypes.data, self._addresses[name], fed[name].nbytes)
        names = [name for name in self._addresses if name not in fed]
        try:
            answers = self._engine.session.run(names, fed)
        except Exception as error:  # onnxruntime's errors have no base
            self._engine.logger.log(ERROR, str(error))
            return False
        for name, answer in zip(names, answers, strict=True):
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(answer).ctypes.data, answer.nbytes)
        return True


def nptype(trt_type: str) -> Any:
    """Give numpy's name of a type."""
    return {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}[trt_type]


def tensorrt(*, version: str = "11.4.0.106") -> ModuleType:
    """Make the package."""
    module = ModuleType("tensorrt")
    module.__dict__.update(
        __version__=version,
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=STRONGLY_TYPED),
        Builder=_Builder,
        ILogger=ILogger,
        OnnxParser=_Parser,
        Runtime=_Runtime,
        nptype=nptype,
    )
    return module
