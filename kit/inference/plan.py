"""What a signature means on the path of every request, worked out once.

A tensor or row in the usual form is packed into its array here in one step of C; anything else, right or
wrong, goes to ``kit.wire`` and ``kit.signature``, whose rules are the only ones and whose messages name
the fault. It knows no request and no bytes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from kit.inference.body import write_json
from kit.inference.request import InferRequest, Requested
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors, TensorSpec, check_tensor
from kit.wire import DATATYPES

_PACK_CODES = {
    "float32": "f",
    "float64": "d",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
}
_INT = frozenset({int})
_MAX_KEPT = 256
_MAX_PACKED = 1 << 16  # arguments of one call; more are packed by numpy


class InputPlan:
    """How one input is read.

    Attributes:
        spec: Its specification.
        name: Its name.
        datatype: The protocol's name of its dtype.
        row_shape: Shape of one row.
        row_size: Values of one row.
    """

    __slots__ = (
        "_bounded",
        "_code",
        "_dtype",
        "_high",
        "_low",
        "_packers",
        "_row",
        "datatype",
        "name",
        "row_shape",
        "row_size",
        "spec",
    )

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.datatype = DATATYPES[spec.dtype]
        self.row_shape = spec.row_shape
        self.row_size = spec.row_size
        self._bounded = spec.minimum is not None or spec.maximum is not None
        self._low: Any
        self._high: Any
        self._low, self._high = spec.limits or (None, None)
        self._row = list(spec.row_shape)
        self._dtype = DTYPES[spec.dtype]
        self._code = _PACK_CODES.get(spec.dtype)
        self._packers: dict[int, Callable[..., bytes]] = {}

    def usual(self, entry: Any) -> np.ndarray | None:
        """Read a tensor object in its usual form; None where it is not, right or wrong.

        Args:
            entry: The object; nowhere in its request stands true or false.
        """
        if type(entry) is not dict or len(entry) != 4 or entry.get("name") != self.name:
            return None
        if entry.get("datatype") != self.datatype:
            return None
        shape, data = entry.get("shape"), entry.get("data")
        if type(shape) is not list or type(data) is not list or not data:
            return None
        if shape[1:] != self._row or not _INT.issuperset(map(type, shape)):
            return None
        n_rows = shape[0]
        if type(data[0]) is list:
            if len(self._row) != 1 or len(data) != n_rows:
                return None
            size = self.row_size
            for row in data:
                if type(row) is not list or len(row) != size:
                    return None
            data = data[0] if n_rows == 1 else list(itertools.chain.from_iterable(data))
        return self.pack(data, n_rows=n_rows)

    def pack(self, flat: Sequence[Any], *, n_rows: int) -> np.ndarray | None:
        """Put JSON numbers into an array, None where one of them is none, or may not be allowed.

        Args:
            flat: Values from JSON without true and false, so that none is NaN.
            n_rows: Rows they should make.
        """
        count = len(flat)
        if count != n_rows * self.row_size or not count:
            return None
        pack = self._packers.get(count) or self._packer(count)
        if pack is None:
            return None
        try:
            buffer = pack(
                *flat
            )  # refuses null, strings, lists, what does not fit, and fractions for integers
        except (struct.error, OverflowError):
            return None
        array: np.ndarray = np.ndarray((n_rows, *self.row_shape), self._dtype, buffer)
        if self._bounded and not self.allows(array):
            return None
        return array

    def allows(self, array: np.ndarray) -> bool:
        """Say whether all values are finite and within bounds, where that is quickly seen.

        The least and the greatest value say both, and unlike a sum they need no care for overflow.
        """
        if self._low is None:
            return True
        flat = array.reshape(-1)
        return bool(np.minimum.reduce(flat) >= self._low and np.maximum.reduce(flat) <= self._high)

    def check(self, array: np.ndarray) -> np.ndarray:
        """Give an aligned array of the right shape and dtype back when its values are allowed.

        Raises:
            InputError: A value is not allowed.
        """
        if self.spec.dtype != "string" and self.allows(array):
            return array
        return check_tensor(self.spec, array)

    def _packer(self, count: int) -> Callable[..., bytes] | None:
        if self._code is None or count > _MAX_PACKED:
            return None
        if len(self._packers) >= _MAX_KEPT:
            self._packers.clear()
        pack = struct.Struct(f"={count}{self._code}").pack
        self._packers[count] = pack
        return pack


def output_head(spec: TensorSpec, n_rows: int) -> bytes:
    """Write an output's object up to its values."""
    described = write_json(
        {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [n_rows, *spec.row_shape]}
    )
    return described[:-1]


class Plan:
    """A signature worked out.

    Attributes:
        signature: What it is the plan of.
        inputs: One entry per input, in order.
        by_name: The same, by name.
        json_outputs: All outputs, as JSON: what a request gets that asks for nothing.
        binary_outputs: All outputs, as bytes.
        outputs: What each output is, by name.
        output_names: The outputs' names, in order.
        frames: What stands before the values of each output in JSON, by number of rows; see ``frame``.
        binary_frames: What describes all outputs as bytes, by number of rows; see ``binary_frame``.
        rows: For each input what takes its values out of a row of JSON; None where that is not so simple.
    """

    __slots__ = (
        "binary_frames",
        "binary_outputs",
        "by_name",
        "frames",
        "inputs",
        "json_outputs",
        "output_names",
        "outputs",
        "rows",
        "signature",
    )

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.inputs = tuple(InputPlan(spec) for spec in signature.inputs)
        self.by_name = {each.name: each for each in self.inputs}
        self.json_outputs = tuple(Requested(spec) for spec in signature.outputs)
        self.binary_outputs = tuple(Requested(spec, True) for spec in signature.outputs)
        self.outputs = {spec.name: spec for spec in signature.outputs}
        self.output_names = tuple(self.outputs)
        self.frames: dict[int, tuple[bytes, ...]] = {}
        self.binary_frames: dict[int, bytes] = {}
        self.rows = tuple(_getter(spec) for spec in signature.inputs)

    def frame(self, n_rows: int) -> tuple[bytes, ...]:
        """Write what stands before the values of each output, and keep it."""
        if len(self.frames) >= _MAX_KEPT:
            self.frames.clear()
        heads = [output_head(spec, n_rows) + b',"data":' for spec in self.outputs.values()]
        frames = (b',"outputs":[' + heads[0], *(b"}," + head for head in heads[1:]))
        self.frames[n_rows] = frames
        return frames

    def binary_frame(self, n_rows: int) -> bytes:
        """Write what describes all outputs as bytes, and keep it; empty when strings differ in size."""
        if any(spec.dtype == "string" for spec in self.outputs.values()):
            return b""
        if len(self.binary_frames) >= _MAX_KEPT:
            self.binary_frames.clear()
        described = [
            b'%s,"parameters":{"binary_data_size":%d}}'
            % (output_head(spec, n_rows), n_rows * spec.row_size * DTYPES[spec.dtype].itemsize)
            for spec in self.outputs.values()
        ]
        frame = b',"outputs":[' + b",".join(described) + b"]}"
        self.binary_frames[n_rows] = frame
        return frame


_plans: dict[int, Plan] = {}


def plan_of(signature: Signature) -> Plan:
    """Give a signature's plan; the same object has the same plan, which keeps it alive."""
    plan = _plans.get(id(signature))
    if plan is None:
        if len(_plans) >= _MAX_KEPT:
            _plans.clear()
        plan = _plans[id(signature)] = Plan(signature)
    return plan


def request_of(
    signature: Signature,
    tensors: Tensors,
    *,
    identity: str | None,
    outputs: tuple[Requested, ...] | None = None,
) -> InferRequest:
    """Make a checked request out of tensors of any origin, as gRPC's messages are.

    Args:
        signature: What they are checked against.
        tensors: By name.
        identity: What the client calls the request.
        outputs: What to answer with; all outputs when None.

    Raises:
        InputError: They break the signature, or have no rows.
    """
    checked = signature.validate(tensors)
    n_rows = len(next(iter(checked.values())))
    return InferRequest(identity, checked, n_rows, outputs or plan_of(signature).json_outputs)


def _getter(spec: TensorSpec) -> Callable[[Mapping[str, Any]], tuple[Any, ...]] | None:
    """Give what takes an input's numbers out of a row; None where a column holds something else."""
    if len(spec.columns) != spec.row_size or not spec.columns or spec.dtype not in _PACK_CODES:
        return None
    if len(spec.columns) == 1:
        column = spec.columns[0]
        return lambda row: (row[column],)
    return itemgetter(*spec.columns)
