"""Tensors as the Open Inference Protocol's JSON writes them, for the endpoint and for its client.

A JSON value becomes an array only when its type, its shape and its number of values are what the
specification says; whether the values are allowed is the signature's to decide. It knows nothing
of HTTP, of requests or of bytes.

JSON has no NaN: null stands for it in both directions, for a missing string too.

Source: Open Inference Protocol v2, "Tensor Data", kserve/open-inference-protocol.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.tensors import DTYPES, TensorSpec

#: The protocol's datatype for each dtype of a signature. BF16 is not among them: numpy has no such dtype.
DATATYPES: dict[str, str] = {
    "float32": "FP32",
    "float64": "FP64",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint64": "UINT64",
    "uint32": "UINT32",
    "uint16": "UINT16",
    "uint8": "UINT8",
    "bool": "BOOL",
    "string": "BYTES",
}
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_TENSOR_KEYS = frozenset({"name", "datatype", "shape", "data", "parameters"})
_WHOLE: frozenset[type] = frozenset({float, int})  # which floats are whole is checked with the values
#: Kind of a numpy dtype to the JSON types it is written as, and their name.
_ACCEPTED: dict[str, tuple[frozenset[type], str]] = {
    "f": (frozenset({float, int, type(None)}), "a number"),
    "i": (_WHOLE, "a whole number"),
    "u": (_WHOLE, "a whole number"),
    "b": (_WHOLE | {bool}, "true or false"),
    "O": (frozenset({str, type(None)}), "a string"),
}
#: JSON's parser makes a float of a whole number below 64 bits, and the float nearest to it is in their range.
_LEAST_FLOAT = -(2.0**63)


def encode_tensor(spec: TensorSpec, array: np.ndarray) -> dict[str, Any]:
    """Describe an array as the protocol's tensor object.

    Args:
        spec: Its name and dtype.
        array: Shape (n_rows, *spec.row_shape).

    Returns:
        The object; ``data`` is flat in row-major order, an array of numbers (orjson writes it, NaN
        as null) or a list of strings.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return {
        "name": spec.name,
        "datatype": DATATYPES[spec.dtype],
        "shape": list(array.shape),
        "data": flat.tolist() if spec.dtype == "string" else flat,
    }


def decode_tensor(spec: TensorSpec, value: dict[str, Any], *, kind: str) -> np.ndarray:
    """Read a tensor object.

    Args:
        spec: The tensor that is expected.
        value: The parsed JSON object; ``data`` may be flat or nested.
        kind: What messages call it, ``input`` or ``output``.

    Returns:
        The array, shape (n_rows, *spec.row_shape), n_rows >= 1, in the specification's dtype.

    Raises:
        InputError: A key is unknown or missing, or the datatype, the shape, the number or the type
            of the values is not what the specification says.
    """
    what = f"{kind} {spec.name!r}"
    check_object(value, what=what, allowed=_TENSOR_KEYS, required=("datatype", "shape", "data"))
    shape = check_shape(spec, value, what=what)
    flat = _flattened(value["data"], shape=shape, what=what)
    accepted, _ = _ACCEPTED[DTYPES[spec.dtype].kind]
    if not accepted.issuperset(map(type, flat)):
        index = next(index for index, item in enumerate(flat) if type(item) not in accepted)
        raise _refused(spec, flat[index], index=index, what=what)
    return _array(spec, flat, what=what).reshape(shape)


def dtype_of(datatype: object) -> str:
    """Give the signature's dtype for a datatype of the protocol.

    Raises:
        InputError: The kit has no such dtype.
    """
    if datatype == "BF16":
        raise InputError("datatype 'BF16' is not supported", hint="send the values as FP32")
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise InputError(f"datatype {_shown(datatype)} is not known", hint=f"valid: {', '.join(_DTYPES)}")
    return _DTYPES[datatype]


def check_object(value: object, *, what: str, allowed: frozenset[str], required: tuple[str, ...]) -> None:
    """Refuse what is not an object, and keys that are unknown or missing.

    Args:
        value: Parsed JSON.
        what: What messages call it.
        allowed: Every key it may have; ``parameters`` must hold an object or null.
        required: The keys it must have.

    Raises:
        InputError: One of these rules is broken.
    """
    if not isinstance(value, dict):
        raise InputError(f"{what} is {_kind(value)} where an object is expected")
    if not allowed.issuperset(value):
        unknown = next(key for key in value if key not in allowed)
        raise InputError(f"{what} has an unknown key {unknown[:40]!r}", hint=nearest(unknown[:40], allowed))
    for key in required:
        if key not in value:
            raise InputError(f"{what} has no {key!r}", hint=f"add {key!r}")
    if not isinstance(value.get("parameters"), (dict, type(None))):
        raise InputError(f"the 'parameters' of {what} are {_kind(value['parameters'])}, not an object")


def check_shape(spec: TensorSpec, value: Mapping[str, Any], *, what: str) -> tuple[int, ...]:
    """Check the datatype and the shape of a tensor object, whose values may lie elsewhere.

    Args:
        spec: The tensor that is expected.
        value: The parsed JSON object, with ``datatype`` and ``shape``.
        what: What messages call it.

    Returns:
        The shape, (n_rows, *spec.row_shape), n_rows >= 1.

    Raises:
        InputError: One of them is not what the specification says.
    """
    expected, shape = DATATYPES[spec.dtype], value["shape"]
    if value["datatype"] != expected:
        raise InputError(f"{what} has datatype {_shown(value['datatype'])}; {expected} is expected")
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise InputError(f"{what} has shape {_shown(shape)}; a list of whole numbers is expected")
    if len(shape) != len(spec.shape) or tuple(shape[1:]) != spec.row_shape:
        raise InputError(
            f"{what} has shape {_shown(shape)}; {list(spec.shape)} is expected "
            "(-1 stands for any number of rows)"
        )
    if shape[0] == 0:
        raise InputError(f"{what} has no rows", hint="send at least one row")
    return tuple(shape)


def _flattened(data: object, *, shape: tuple[int, ...], what: str) -> list[Any]:
    if not isinstance(data, list):
        raise InputError(f"the 'data' of {what} is {_kind(data)} where a list is expected")
    count = 1
    for size in shape:
        count *= size
    flat: list[Any] = data
    if flat and type(flat[0]) is list and len(shape) > 1:  # nested: one level per axis, no deeper
        if len(flat) != shape[0]:
            raise InputError(f"{what} has {len(flat)} rows of data; its shape {list(shape)} says {shape[0]}")
        for axis, size in enumerate(shape[1:], start=1):
            if any(type(item) is not list or len(item) != size for item in flat):
                raise InputError(
                    f"the nested 'data' of {what} does not hold lists of {size} along axis {axis}"
                )
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != count:
        raise InputError(f"{what} has {len(flat)} values; its shape {list(shape)} says {count}")
    return flat


def _array(spec: TensorSpec, flat: list[Any], *, what: str) -> np.ndarray:
    dtype = DTYPES[spec.dtype]
    if spec.dtype == "string":
        array = np.empty(len(flat), dtype=object)
        array[:] = ["" if item is None else item for item in flat]
        return array
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for the dtype is infinity, which the signature names
            try:
                return np.array(flat, dtype=dtype)
            except OverflowError as error:
                raise InputError(f"{what} holds a number too large for {DATATYPES[spec.dtype]}") from error
    # The rule of the signature's rows: 3.0 is a whole number, 1 and 0 are truth values.
    is_truth = dtype.kind == "b"
    if set(map(type, flat)) - {bool if is_truth else int}:
        for index, item in enumerate(flat):
            if item not in (0, 1) if is_truth else not _is_whole(item):
                raise _refused(spec, item, index=index, what=what)
        flat = [int(item) for item in flat]
    if is_truth:
        return np.array(flat, dtype=dtype)
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    if min(flat) < low or max(flat) > high:
        index = next(i for i, item in enumerate(flat) if not low <= item <= high)
        place = f"{what}, row {index // spec.row_size}"
        raise InputError(f"{place}: {_shown(flat[index])} does not fit {DATATYPES[spec.dtype]}")
    return np.array(flat, dtype=dtype)


def _is_whole(item: float) -> bool:
    return type(item) is int or (item.is_integer() and item > _LEAST_FLOAT)


def _refused(spec: TensorSpec, item: object, *, index: int, what: str) -> InputError:
    _, word = _ACCEPTED[DTYPES[spec.dtype].kind]
    return InputError(
        f"{what}, row {index // spec.row_size}: {_shown(item)} is not {word} ({DATATYPES[spec.dtype]})"
    )


def _kind(value: object) -> str:
    """Name a JSON value's type as JSON does."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    """Show a value from outside, at most 40 characters of it and nothing nested (repr would recurse)."""
    flat = isinstance(value, list) and len(value) <= 8 and not any(isinstance(v, (list, dict)) for v in value)
    if isinstance(value, dict) or (isinstance(value, list) and not flat):
        return _kind(value)
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 40 else f"{text[:37]}..."
