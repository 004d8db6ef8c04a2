"""The signature of a model: what goes in, what comes out, and which values are allowed.

The one place where rows become tensors and where a value is refused. Training, batch, endpoint
and device all call it, so the four cannot disagree. It knows nothing of files, runtimes or
tables. Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Union

import numpy as np

from kit.errors import InputError, VerificationError, nearest

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


@dataclass(frozen=True)
class Signature:
    """Describe a model's inputs and outputs.

    Attributes:
        task: ``classification`` or ``regression``.
        inputs: What the model reads, in order.
        outputs: What it answers: ``label``, ``probabilities`` and ``logits``, or ``value``.
    """

    task: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the signature as the object ``signature.json`` holds."""
        return {
            "task": self.task,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        """Read the object ``signature.json`` holds.

        Raises:
            VerificationError: It is not a signature this kit can read.
        """
        if set(value) != {"task", "inputs", "outputs"} or not all(
            _is_list_of(value[key], Mapping) for key in ("inputs", "outputs")
        ):
            raise VerificationError(
                f"the signature has the keys {sorted(value)}; it needs a task and lists of inputs and outputs"
            )
        return cls(
            task=str(value["task"]),
            inputs=tuple(TensorSpec.from_json(spec) for spec in value["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in value["outputs"]),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every table column the inputs are made of, in order."""
        return tuple(column for spec in self.inputs for column in spec.columns)

    @property
    def string_columns(self) -> tuple[str, ...]:
        """The table columns whose cells are strings, even where they look like numbers or dates."""
        return tuple(column for spec in self.inputs if spec.dtype == "string" for column in spec.columns)

    @property
    def classes(self) -> tuple[ClassName, ...]:
        """The classes that ``label`` may name; empty for regression."""
        return next((spec.classes for spec in self.outputs if spec.name == "label"), ())

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self.inputs)

    def validate(self, inputs: Mapping[str, np.ndarray]) -> Tensors:
        """Check tensors before any runtime sees them.

        Args:
            inputs: One array per input, all with the same number of rows.

        Returns:
            The same tensors, contiguous, in the signature's order and dtypes.

        Raises:
            InputError: A name, dtype, shape or value is not allowed; the message names the
                tensor, the first offending row (from 0) and the rule.
        """
        names = self._names
        if inputs.keys() != names:
            _refuse_names(inputs, names=[spec.name for spec in self.inputs])
        checked: Tensors = {}
        for spec in self.inputs:
            checked[spec.name] = check_tensor(spec, inputs[spec.name])
        if len(checked) > 1 and len({len(array) for array in checked.values()}) > 1:
            rows = {name: len(array) for name, array in checked.items()}
            listed = ", ".join(f"{name} has {count}" for name, count in rows.items())
            raise InputError(f"the inputs differ in their number of rows: {listed}")
        return checked

    def from_columns(self, columns: Mapping[str, Any]) -> Tensors:
        """Make validated input tensors out of table columns.

        Args:
            columns: Column name to an array or list of N values; a list-typed column is an
                array (N, k) or a sequence of N sequences. Columns that are not needed are
                ignored.

        Raises:
            InputError: A column is missing, or its values break the signature.
        """
        tensors: Tensors = {}
        for spec in self.inputs:
            if not spec.columns:
                raise InputError(f"input {spec.name!r} is made of no columns; send it as a tensor")
            parts = []
            for column in spec.columns:
                if column not in columns:
                    raise _missing_column(spec, column, columns)
                parts.append(_column(spec, column, columns[column]))
            n_rows = len(parts[0])
            uneven = [name for name, part in zip(spec.columns, parts) if len(part) != n_rows]
            if uneven:
                raise InputError(f"column {uneven[0]!r} does not have {n_rows} rows like {spec.columns[0]!r}")
            stacked = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
            tensors[spec.name] = stacked.reshape((n_rows, *spec.row_shape))
        return self.validate(tensors)

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> Tensors:
        """Make validated input tensors out of JSON rows.

        Args:
            rows: One object per row, column name to value; an absent or null value counts as
                missing, a whole number may be written 3.0, and true is not a number.

        Raises:
            InputError: A row is not an object, or a value breaks the signature.
        """
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise InputError(f"row {index} is a {type(row).__name__}; each row must be an object")
        if rows:
            for spec in self.inputs:
                for column in spec.columns:
                    if all(column not in row for row in rows):
                        raise _missing_column(spec, column, rows[0])
        columns = {column: [row.get(column) for row in rows] for column in self.columns}
        for spec in self.inputs:
            if spec.dtype not in ("bool", "string"):
                for column in spec.columns:
                    for index, value in enumerate(columns[column]):
                        _refuse_truth(spec, column, index, value)
        return self.from_columns(columns)

    def class_names(self, indices: np.ndarray) -> list[ClassName]:
        """Name the classes that an output ``label`` stands for.

        Args:
            indices: Class indices, shape (n_rows,).
        """
        classes = self.classes
        return [classes[int(index)] for index in indices]


def _refuse_names(inputs: Iterable[str], *, names: list[str]) -> None:
    """Name the input that is unknown or missing."""
    for name in inputs:
        if name not in names:
            raise InputError(f"{name!r} is not an input of this model", hint=nearest(name, names))
    missing = next(name for name in names if name not in inputs)
    raise InputError(f"input {missing!r} is missing", hint=f"send every input: {', '.join(names)}")


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
        row, place = _first_row(infinite), int(np.argmax(infinite.reshape(-1))) % spec.row_size
        raise InputError(f"{_place(spec, place)}, row {row}: infinity is not allowed")
    missing = np.isnan(array)
    if missing.any() and not spec.nullable:
        row, place = _first_row(missing), int(np.argmax(missing.reshape(-1))) % spec.row_size
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
            row = _first_row(outside)
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


def _first_row(mask: np.ndarray) -> int:
    return int(np.argmax(mask.reshape(len(mask), -1).any(axis=1)))


def _null_hint(spec: TensorSpec) -> str:
    return f"fill the value, or set nullable = true for input {spec.name!r} and train again"


def _missing_column(spec: TensorSpec, column: str, there: Iterable[Any]) -> InputError:
    return InputError(
        f"column {column!r} is missing (input {spec.name!r} needs it)",
        hint=nearest(column, [str(name) for name in there]),
    )


def _column(spec: TensorSpec, column: str, values: Any) -> np.ndarray:
    """Bring one column to the tensor's dtype, shape (N,) or (N, row_size)."""
    width = spec.row_size if len(spec.columns) == 1 else 1
    if isinstance(values, np.ndarray) and values.dtype == DTYPES[spec.dtype] and spec.dtype != "string":
        array = values
    elif spec.dtype == "string":
        try:
            array = np.array(values, dtype=object)
        except ValueError as error:
            raise InputError(f"column {column!r} holds rows of different lengths") from error
        array[array == None] = ""  # noqa: E711 - elementwise, which "is None" is not
    else:
        array = _numbers(spec, column, values)
    if array.ndim == 1 and width == 1:
        return array
    if array.ndim >= 1 and array.size == len(array) * width:
        return array.reshape(len(array), width) if width > 1 else array.reshape(len(array))
    raise InputError(f"column {column!r} does not hold {width} values in every row (input {spec.name!r})")


def _numbers(spec: TensorSpec, column: str, values: Any) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        values = _parsed(spec, column, values)
    dtype = DTYPES[spec.dtype]
    if values.dtype.kind not in "fiub":
        raise InputError(
            f"column {column!r} holds values of type {values.dtype}; {spec.dtype} is expected "
            f"(input {spec.name!r})"
        )
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=dtype)
    with np.errstate(invalid="ignore"):
        cast = np.asarray(values).astype(dtype)
    wrong = cast != values
    if wrong.any():
        row = _first_row(wrong)
        value = np.atleast_1d(values[row])[np.atleast_1d(wrong[row])][0]
        if value != value:
            raise InputError(f"column {column!r}, row {row}: a value is missing (input {spec.name!r})")
        raise InputError(f"column {column!r}, row {row}: {value} is not a whole {spec.dtype}")
    return cast


def _parsed(spec: TensorSpec, column: str, values: Sequence[Any]) -> np.ndarray:
    """Turn JSON-like values into numbers, naming the first row that is none."""
    missing = float("nan") if DTYPES[spec.dtype].kind == "f" else None
    rows: list[Any] = []
    for row, value in enumerate(values):
        if isinstance(value, str) and value.startswith("["):  # a list in a CSV cell
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise InputError(f"column {column!r}, row {row}: {value[:40]!r} is no JSON list") from error
            if spec.dtype != "bool":
                _refuse_truth(spec, column, row, value)
        if value is None:
            value = missing
        items = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        if value is None:
            raise InputError(f"column {column!r}, row {row}: a value is missing (input {spec.name!r})")
        for item in items:
            if not isinstance(item, (int, float, np.number, np.bool_)):
                raise _no_number(spec, column, row, item)
        if missing is None:
            value = [_whole(item) for item in items] if items is value else _whole(value)
        rows.append(value)
    if not rows:
        return np.empty((0,), dtype=DTYPES[spec.dtype])
    try:
        # Whole numbers beyond 64 bits are numbers too where the input is a float.
        array = np.array(rows, dtype=np.float64 if missing is not None else None)
    except ValueError as error:
        raise InputError(f"column {column!r} holds rows of different lengths") from error
    except OverflowError:
        array = np.array(rows, dtype=object)
    if array.dtype == object:
        raise InputError(f"column {column!r} holds a number too large for {spec.dtype}")
    return array


def _refuse_truth(spec: TensorSpec, column: str, row: int, value: Any) -> None:
    """Refuse JSON's true and false where a number is expected, as the endpoint does."""
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if item is True or item is False:
            raise _no_number(spec, column, row, item)


def _no_number(spec: TensorSpec, column: str, row: int, item: Any) -> InputError:
    return InputError(
        f"column {column!r}, row {row}: {item!r} is not a number (input {spec.name!r} is {spec.dtype})"
    )


def _whole(item: Any) -> Any:
    # One float among whole numbers would make numpy round them all to float64.
    return int(item) if isinstance(item, float) and item.is_integer() else item


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, kind) for item in value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_shape(value: Any) -> bool:
    if not _is_list_of(value, int) or not value or value[0] != -1:
        return False
    return all(size >= 1 for size in value[1:])


#: What each field of a specification must be in a file: the rule in words, and the test.
_FIELD_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("name", "a name", lambda value: isinstance(value, str) and bool(value)),
    ("dtype", "one of " + ", ".join(DTYPES), lambda value: isinstance(value, str) and value in DTYPES),
    ("shape", "-1 and then sizes of one row", _is_shape),
    ("columns", "a list of names", lambda value: _is_list_of(value, str)),
    ("nullable", "true or false", lambda value: isinstance(value, bool)),
    ("minimum", "a number", _is_number),
    ("maximum", "a number", _is_number),
    ("classes", "a list of names or whole numbers", lambda value: _is_list_of(value, (str, int))),
)
