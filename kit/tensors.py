"""Tensors: what one may be, and the check that it is.

Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

import numpy as np

from kit.errors import InputError, VerificationError

#: Tensor dtypes a signature may name, and the numpy dtype each stands for.
DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "string": np.dtype(object),
}

Tensors = dict[str, np.ndarray]
ClassName = Union[int, str]


@dataclass(frozen=True)
class TensorSpec:
    """Describe one tensor.

    Attributes:
        name: The tensor's name in the graph, in a request and in kit.toml.
        dtype: A key of ``DTYPES``.
        shape: The first entry is -1 and stands for rows; the rest are sizes of one row.
        columns: The table columns the tensor is made of: as many scalar columns as a row has
            values, or one column of lists. Empty for outputs.
        nullable: Whether NaN (floats) and the empty string (strings) are allowed; an absent
            value in a table or a request becomes one of these.
        minimum: Smallest allowed value, inclusive; None for no bound.
        maximum: Largest allowed value, inclusive; None for no bound.
        classes: For the output ``label``: the class each index stands for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    classes: tuple[ClassName, ...] = ()

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: ``shape`` without the leading -1."""
        return self.shape[1:]

    @cached_property
    def limits(self) -> tuple[Any, Any] | None:
        """The least and the greatest allowed value; None where the dtype is the only limit."""
        dtype = DTYPES[self.dtype]
        bounded = self.minimum is not None or self.maximum is not None
        if dtype.kind not in "fiu" or (dtype.kind != "f" and not bounded):
            return None
        ends: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        low = ends.min if self.minimum is None else self.minimum
        high = ends.max if self.maximum is None else self.maximum
        return (float(low), float(high)) if dtype.kind == "f" else (low, high)

    @property
    def row_size(self) -> int:
        """How many values one row holds."""
        return int(np.prod(self.row_shape, dtype=np.int64)) if self.row_shape else 1

    def to_json(self) -> dict[str, Any]:
        """Give the specification as a JSON object; entries that say nothing are left out."""
        value: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.columns:
            value["columns"] = list(self.columns)
        if self.nullable:
            value["nullable"] = True
        for key in ("minimum", "maximum"):
            if getattr(self, key) is not None:
                value[key] = getattr(self, key)
        if self.classes:
            value["classes"] = list(self.classes)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorSpec:
        """Read a specification, refusing keys and dtypes it does not know.

        Raises:
            VerificationError: A key, dtype or shape is not one a kit writes.
        """
        unknown = set(value) - set(cls.__dataclass_fields__)
        if unknown or not {"name", "dtype", "shape"} <= set(value):
            raise VerificationError(
                f"a tensor in the signature has the keys {sorted(value)}, which this kit cannot read",
                hint="use the kit version that made the model, or make the model again",
            )
        for key, rule, holds in _FIELD_RULES:
            if key in value and not holds(value[key]):
                raise VerificationError(
                    f"the signature's {value['name']!r} has {key} = {value[key]!r}, which is not {rule}"
                )
        return cls(
            name=value["name"],
            dtype=value["dtype"],
            shape=tuple(value["shape"]),
            columns=tuple(value.get("columns", ())),
            nullable=bool(value.get("nullable", False)),
            minimum=value.get("minimum"),
            maximum=value.get("maximum"),
            classes=tuple(value.get("classes", ())),
        )


def check_tensor(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Check one tensor against its specification.

    Args:
        spec: What is allowed.
        array: Shape (n_rows, *spec.row_shape).

    Returns:
        The array, contiguous and in the specification's dtype.

    Raises:
        InputError: The dtype, the shape or a value is not allowed.
    """
    if array.shape[1:] != spec.row_shape or array.ndim == 0:
        raise InputError(
            f"input {spec.name!r} has shape {list(array.shape)}; {list(spec.shape)} is expected "
            "(-1 stands for any number of rows)"
        )
    if spec.dtype == "string":
        return _checked_strings(spec, array)
    dtype = DTYPES[spec.dtype]
    if array.dtype != dtype:
        raise InputError(f"input {spec.name!r} has dtype {array.dtype}; {spec.dtype} is expected")
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    limits = spec.limits
    if limits is None or not array.size:
        return array
    flat = array.reshape(-1)
    # The least and the greatest value say whether all are finite and within bounds: NaN is taken for either,
    # and is neither smaller nor larger than anything. What is not all right goes the long way, which names
    # the fault. To find their places takes a quarter of the time of ``min`` and ``max``.
    if flat[flat.argmin()] >= limits[0] and flat[flat.argmax()] <= limits[1]:
        return array
    if array.dtype.kind == "f":
        _check_finite(spec, array)
    _check_range(spec, array)
    return array


def _checked_strings(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "U":
        array = array.astype(object)
    if array.dtype != object:
        raise InputError(f"input {spec.name!r} has dtype {array.dtype}; string is expected")
    for index, value in enumerate(array.reshape(-1)):
        if isinstance(value, str) and (value or spec.nullable):
            continue
        row, place = divmod(index, spec.row_size)
        if not isinstance(value, str):
            raise InputError(f"{_place(spec, place)}, row {row}: {value!r} is not a string")
        raise InputError(f"{_place(spec, place)}, row {row}: a value is missing", hint=_null_hint(spec))
    return np.ascontiguousarray(array)


def _check_finite(spec: TensorSpec, array: np.ndarray) -> None:
    # The sum is finite only if every value is: one pass without a temporary for the usual case. Finite
    # values whose sum overflows take the long way, to the same end.
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum()):
            return
    infinite = np.isinf(array)
    if infinite.any():
        row, place = first_row(infinite), int(np.argmax(infinite.reshape(-1))) % spec.row_size
        raise InputError(f"{_place(spec, place)}, row {row}: infinity is not allowed")
    missing = np.isnan(array)
    if missing.any() and not spec.nullable:
        row, place = first_row(missing), int(np.argmax(missing.reshape(-1))) % spec.row_size
        raise InputError(f"{_place(spec, place)}, row {row}: a value is missing (NaN)", hint=_null_hint(spec))


def _check_range(spec: TensorSpec, array: np.ndarray) -> None:
    for bound, bad, word in (
        (spec.minimum, np.less, "below the minimum"),
        (spec.maximum, np.greater, "above the maximum"),
    ):
        if bound is None:
            continue
        outside = bad(array, bound)
        if outside.any():
            row = first_row(outside)
            value = array[row][outside[row]].reshape(-1)[0]
            place = int(np.argmax(outside[row].reshape(-1)))
            raise InputError(
                f"{_place(spec, place)}, row {row}: {value} is {word} {bound:g}",
                hint=f"correct the value, or change the bound of input {spec.name!r} and train again",
            )


def _place(spec: TensorSpec, index: int) -> str:
    """Name an input and, where it goes by another name, the column that holds a value of its rows."""
    column = spec.columns[min(index, len(spec.columns) - 1)] if spec.columns else spec.name
    return f"input {spec.name!r}" + (f" (column {column!r})" if column != spec.name else "")


def first_row(mask: np.ndarray) -> int:
    """Find the first row that a mask holds something of.

    Args:
        mask: Shape (n_rows, ...), true somewhere.
    """
    return int(np.argmax(mask.reshape(len(mask), -1).any(axis=1)))


def _null_hint(spec: TensorSpec) -> str:
    return f"fill the value, or set nullable = true for input {spec.name!r} and train again"


def is_list_of(value: Any, kind: Any) -> bool:
    """Say whether a value is a list, or a tuple, of things of one kind."""
    return isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_shape(value: Any) -> bool:
    if not is_list_of(value, int) or not value or value[0] != -1:
        return False
    return all(size >= 1 for size in value[1:])


#: What each field of a specification must be in a file: the rule in words, and the test.
_FIELD_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("name", "a name", lambda value: isinstance(value, str) and bool(value)),
    ("dtype", "one of " + ", ".join(DTYPES), lambda value: isinstance(value, str) and value in DTYPES),
    ("shape", "-1 and then sizes of one row", _is_shape),
    ("columns", "a list of names", lambda value: is_list_of(value, str)),
    ("nullable", "true or false", lambda value: isinstance(value, bool)),
    ("minimum", "a number", _is_number),
    ("maximum", "a number", _is_number),
    ("classes", "a list of names or whole numbers", lambda value: is_list_of(value, (str, int))),
)
