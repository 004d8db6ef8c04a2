"""What a TFLite file holds: operators, their versions, their places; and which runtimes load it.

tflite-runtime 2.14, the last of its name, loads the dynamic-range files of today's quantizer and answers by
chance from them, without an error. Such a file is stamped: its matrix products ask for a version of the
operator that 2.14 does not have, so it refuses. It knows nothing of recipes.

Source of the versions: files with each operator at each version, opened in tflite-runtime 2.14.0 and
ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import struct
from typing import Any

from edge.layers import Place
from kit.errors import InputError

CURRENT = {"ai-edge-litert": ">=2.1.6,<3"}
"""Package to versions that answer rightly from every file this kit makes.

2.0.2 to 2.1.2 ignore a zero point in 8-bit products of two activations (attention), and 1.1.2 to 1.3.0 answer
wrongly from convolutions with 16-bit float weights; both without an error.
"""

OLD = {"tflite-runtime": ">=2.14,<2.15"}
"""Package to versions that load a file that ``loads_in_old_runtime``."""

#: Operator to the highest version of it that tflite-runtime 2.14 was seen to answer rightly with.
_SEEN_IN_2_14 = {
    **{
        "ADD": 5,
        "AVERAGE_POOL_2D": 3,
        "BATCH_MATMUL": 4,
        "BROADCAST_TO": 3,
        "CONCATENATION": 4,
        "CONV_2D": 7,
    },
    **{"DEPTHWISE_CONV_2D": 7, "DEQUANTIZE": 5, "EMBEDDING_LOOKUP": 3, "FULLY_CONNECTED": 10, "GATHER": 6},
    **{"GELU": 2, "LOGISTIC": 3, "MAX_POOL_2D": 3, "MAXIMUM": 4, "MEAN": 3, "MINIMUM": 4, "MUL": 7, "PAD": 4},
    **{
        "QUANTIZE": 3,
        "RELU": 3,
        "RELU6": 3,
        "RESHAPE": 1,
        "RSQRT": 2,
        "SELECT_V2": 2,
        "SLICE": 6,
        "SOFTMAX": 3,
    },
    **{"SQUARED_DIFFERENCE": 2, "SUB": 5, "SUM": 2, "TANH": 3, "TRANSPOSE": 6, "HARD_SWISH": 1},
}
_STAMPED = "FULLY_CONNECTED"
_STAMP = 11  # 2.14 has up to 10, ai-edge-litert up to 14

#: Operators that move values and compute none: to keep one in float by itself changes nothing.
_MOVING = frozenset(
    {
        *(
            "RESHAPE",
            "TRANSPOSE",
            "SLICE",
            "STRIDED_SLICE",
            "PACK",
            "UNPACK",
            "SPLIT",
            "SQUEEZE",
            "EXPAND_DIMS",
        ),
        *("CONCATENATION", "GATHER", "GATHER_ND", "PAD", "PADV2", "BROADCAST_TO", "CAST", "QUANTIZE"),
        *("DEQUANTIZE", "NOT_EQUAL", "EQUAL", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "SHAPE", "TILE"),
    }
)


class LiteRTFile:
    """A TFLite file, read.

    Attributes:
        operators: Operator to the highest version of it in the file.
        tensors: Name of a place to the name of the tensor it writes.
    """

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._model: Any = schema.Model.GetRootAsModel(bytearray(data), 0)
        self._kinds = [self._kind(index) for index in range(self._model.OperatorCodesLength())]
        self.operators: dict[str, int] = {}
        for index, kind in enumerate(self._kinds):
            version = self._model.OperatorCodes(index).Version()
            self.operators[kind] = max(version, self.operators.get(kind, 0))
        self.tensors: dict[str, str] = {}
        self._places = self._read_places()

    def _kind(self, index: int) -> str:
        code = self._model.OperatorCodes(index)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        names = vars(self._schema.BuiltinOperator)
        return next((name for name, value in names.items() if value == number), f"operator {number}")

    def places(self) -> tuple[Place, ...]:
        """List what the first signature computes, in order; ``CONV_2D 3`` is its operator 3, from 0."""
        return self._places

    def _read_places(self) -> tuple[Place, ...]:
        graph = self._model.Subgraphs(0)
        made: dict[int, str] = {}
        found = []
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            if not operator.OutputsLength():
                continue
            output = operator.Outputs(0)
            kind = self._kinds[operator.OpcodeIndex()]
            name = f"{kind} {index}"
            self.tensors[name] = graph.Tensors(output).Name().decode()
            inputs = [operator.Inputs(each) for each in range(operator.InputsLength())]
            read = tuple(made[each] for each in inputs if each in made)
            found.append(Place(name, kind, read, can_be_kept=kind not in _MOVING))
            made[output] = name
        return tuple(found)

    def loads_in_old_runtime(self) -> bool:
        """Say whether tflite-runtime 2.14 has every operator of the file, as far as it has been seen."""
        return all(version <= _SEEN_IN_2_14.get(kind, 0) for kind, version in self.operators.items())


def stamped(data: bytes) -> bytes:
    """Make a file ask for a matrix product that tflite-runtime 2.14 does not have.

    Raises:
        InputError: It has none whose version is written down, so it cannot be stamped.
    """
    from ai_edge_litert import schema_py_generated as schema

    changed = bytearray(data)
    model: Any = schema.Model.GetRootAsModel(changed, 0)
    done = False
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        if code.BuiltinCode() != getattr(schema.BuiltinOperator, _STAMPED):
            continue
        # In place: what the quantizer has packed behind the flatbuffer would be lost in writing it anew.
        offset = code._tab.Offset(8)
        if offset:
            struct.pack_into("<i", changed, code._tab.Pos + offset, _STAMP)
            done = True
    if not done:
        raise InputError(
            "the file has no matrix product to stamp, and old runtimes would answer wrongly from it",
            hint="choose litert-int8 or litert-float16",
        )
    return bytes(changed)


def packages(data: bytes, *, has_int16: bool) -> dict[str, str]:
    """Name the packages, and their versions, that load a file and answer rightly from it.

    Args:
        data: The file.
        has_int16: Whether it has tensors of 16 bits. tflite-runtime 2.14 has no kernel for some of them and
            fills only a part of others' answers.
    """
    old = not has_int16 and LiteRTFile(data).loads_in_old_runtime()
    return {**CURRENT, **OLD} if old else dict(CURRENT)
