"""Fitted preprocessing as data: impute, scale, encode and bin, run in numpy.

For runtimes whose model files cannot hold strings or lookup tables. The arithmetic repeats
scikit-learn's on float32 columns, operation by operation, so the features equal those of the
ONNX graph. It knows nothing of scikit-learn, of files or of how the steps were fitted. Runs on
a device: standard library and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.errors import InputError, nearest

_FORMAT = 1


@dataclass(frozen=True)
class Block:
    """Columns of one kind and what is done to them, in order.

    Attributes:
        kind: ``number`` (read as float32) or ``string``.
        columns: Tensor name and the position in one of its rows, per column.
        operations: JSON objects ``{"op": name, ...}``; see ``OPERATIONS``. Only the last one may
            turn columns into codes or several columns.
    """

    kind: str
    columns: tuple[tuple[str, int], ...]
    operations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Steps:
    """Preprocessing fitted on the training rows.

    Attributes:
        blocks: Each yields some of the features; they are joined in this order.
        n_features: Number of float32 values per row.
    """

    blocks: tuple[Block, ...]
    n_features: int

    def apply(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Turn input tensors into features.

        Args:
            tensors: Arrays of shape (n_rows, ...) by name, already validated by the signature;
                a missing number is NaN and a missing string is empty.

        Returns:
            ``features``: float32, shape (n_rows, n_features).

        Raises:
            InputError: A tensor that the steps read is not there.
        """
        parts = []
        with np.errstate(all="ignore"):  # extremes overflow here exactly as they do in the graph
            for block in self.blocks:
                values = _columns(block, tensors)
                for operation in block.operations:
                    values = OPERATIONS[operation["op"]].run(operation, values)
                parts.append(np.asarray(values, dtype=np.float32))
        return {"features": np.ascontiguousarray(np.concatenate(parts, axis=1))}

    def to_json(self) -> dict[str, Any]:
        """Give the steps as the object ``preprocessing.json`` holds."""
        return {
            "format": _FORMAT,
            "n_features": self.n_features,
            "blocks": [
                {
                    "kind": block.kind,
                    "columns": [list(column) for column in block.columns],
                    "operations": [dict(operation) for operation in block.operations],
                }
                for block in self.blocks
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Steps:
        """Read the object ``preprocessing.json`` holds.

        Raises:
            InputError: A key, an operation or a length is not one this kit writes.
        """
        _expect_keys(value, {"format", "n_features", "blocks"}, where="the preprocessing")
        if value["format"] != _FORMAT:
            raise InputError(
                f"the preprocessing has format {value['format']!r}; this kit reads {_FORMAT}",
                hint="use the kit version that wrote it, or export the model again",
            )
        if not isinstance(value["blocks"], list) or not value["blocks"]:
            raise InputError("the preprocessing holds no list of blocks")
        blocks = tuple(_block(entry, index) for index, entry in enumerate(value["blocks"]))
        width = sum(_width(block) for block in blocks)
        if value["n_features"] != width:
            raise InputError(
                f"the preprocessing says {value['n_features']!r} features, but its blocks yield {width}"
            )
        return cls(blocks=blocks, n_features=width)


@dataclass(frozen=True)
class _Operation:
    """What an operation's JSON must hold, and what it does to values of shape (n_rows, n_columns).

    ``per_column`` keys hold one entry per column; ``scalars`` hold one value for all of them.
    """

    kinds: tuple[str, ...]
    per_column: tuple[str, ...]
    scalars: tuple[str, ...]
    run: Callable[[Mapping[str, Any], np.ndarray], np.ndarray]


def _impute(operation: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    missing = operation["missing"]
    absent = np.isnan(values) if missing is None else values == missing
    return np.where(absent, np.array(operation["values"], dtype=values.dtype), values)


def _scale(operation: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    return _rounded(_rounded(values - _float64(operation["subtract"])) / _float64(operation["divide"]))


def _affine(operation: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    moved = _rounded(_rounded(values * _float64(operation["multiply"])) + _float64(operation["add"]))
    clip = operation["clip"]
    return moved if clip is None else np.clip(moved, np.float32(clip[0]), np.float32(clip[1]))


def _one_hot(operation: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    parts = [
        (values[:, index, None] == np.array(categories, dtype=values.dtype)[None, :]).astype(np.float32)
        for index, categories in enumerate(operation["categories"])
    ]
    return np.concatenate(parts, axis=1)


def _ordinal(operation: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    unknown = math.nan if operation["unknown"] is None else operation["unknown"]
    codes = np.full(values.shape, unknown, dtype=np.float32)
    for index, categories in enumerate(operation["categories"]):
        for code, category in enumerate(categories):
            codes[values[:, index] == category, index] = code
    return codes


def _bins(operation: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    codes = np.empty(values.shape, dtype=np.int64)
    for index, edges in enumerate(operation["edges"]):
        codes[:, index] = np.searchsorted(np.array(edges, dtype=np.float64), values[:, index], side="right")
    if not operation["one_hot"]:
        return codes
    parts = [
        codes[:, index, None] == np.arange(len(edges) + 1) for index, edges in enumerate(operation["edges"])
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


#: Every operation a block may name. ``bins`` holds the inner edges only: k edges make k+1 bins.
OPERATIONS: dict[str, _Operation] = {
    "impute": _Operation(("number", "string"), ("values",), ("missing",), _impute),
    "scale": _Operation(("number",), ("subtract", "divide"), (), _scale),
    "affine": _Operation(("number",), ("multiply", "add"), ("clip",), _affine),
    "one_hot": _Operation(("number", "string"), ("categories",), (), _one_hot),
    "ordinal": _Operation(("number", "string"), ("categories",), ("unknown",), _ordinal),
    "bins": _Operation(("number",), ("edges",), ("one_hot",), _bins),
}

#: Operations whose per-column entries are lists of the named element, not single values.
_LISTS = {"categories", "edges"}


def _float64(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round to float32 after every step, as scikit-learn does when it works in place on float32."""
    return values.astype(np.float32)


def _columns(block: Block, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    parts = []
    for name, position in block.columns:
        if name not in tensors:
            raise InputError(f"input {name!r} is missing", hint=nearest(name, tensors))
        array = tensors[name]
        flat = array.reshape(len(array), int(np.prod(array.shape[1:])))
        if position >= flat.shape[1]:
            raise InputError(f"input {name!r} has {flat.shape[1]} values per row; value {position} is read")
        parts.append(flat[:, position])
    stacked = np.stack(parts, axis=1)
    return stacked.astype(np.float32 if block.kind == "number" else object)


def _width(block: Block) -> int:
    if block.operations:
        last = block.operations[-1]
        if last["op"] == "one_hot":
            return sum(len(categories) for categories in last["categories"])
        if last["op"] == "bins" and last["one_hot"]:
            return sum(len(edges) + 1 for edges in last["edges"])
    return len(block.columns)


def _block(value: Any, index: int) -> Block:
    where = f"preprocessing block {index}"
    _expect_keys(value, {"kind", "columns", "operations"}, where=where)
    if value["kind"] not in ("number", "string"):
        raise InputError(f"{where} has the kind {value['kind']!r}", hint="write 'number' or 'string'")
    columns = value["columns"]
    if not isinstance(columns, list) or not columns or not all(_is_column(column) for column in columns):
        raise InputError(f"{where} does not list its columns as [tensor, position]")
    if not isinstance(value["operations"], list):
        raise InputError(f"{where} holds no list of operations")
    for position, operation in enumerate(value["operations"]):
        _check_operation(
            operation,
            kind=value["kind"],
            n_columns=len(columns),
            where=f"{where}, operation {position}",
        )
        ends = operation["op"] in ("one_hot", "ordinal", "bins")
        if ends and position + 1 < len(value["operations"]):
            raise InputError(f"{where}: nothing may follow {operation['op']!r}")
    if value["kind"] == "string" and (
        not value["operations"] or value["operations"][-1]["op"] not in ("one_hot", "ordinal")
    ):
        raise InputError(f"{where} leaves strings where numbers are expected")
    return Block(
        kind=value["kind"],
        columns=tuple((name, position) for name, position in columns),
        operations=tuple(value["operations"]),
    )


def _is_column(column: Any) -> bool:
    return (
        isinstance(column, list)
        and len(column) == 2
        and isinstance(column[0], str)
        and type(column[1]) is int
        and column[1] >= 0
    )


def _check_operation(operation: Any, *, kind: str, n_columns: int, where: str) -> None:
    if not isinstance(operation, Mapping) or not isinstance(operation.get("op"), str):
        raise InputError(f"{where} does not name its 'op'")
    name = operation["op"]
    if name not in OPERATIONS:
        raise InputError(f"{where}: {name!r} is not an operation", hint=nearest(name, OPERATIONS))
    rule = OPERATIONS[name]
    _expect_keys(operation, {"op", *rule.per_column, *rule.scalars}, where=f"{where} ({name})")
    if kind not in rule.kinds:
        raise InputError(f"{where}: {name!r} cannot work on {kind} columns")
    for key in rule.per_column:
        entries = operation[key]
        if not isinstance(entries, list) or len(entries) != n_columns:
            raise InputError(f"{where}: {key!r} must hold {n_columns} entries, one per column")
        nested = key in _LISTS
        if nested and not all(isinstance(entry, list) for entry in entries):
            raise InputError(f"{where}: every entry of {key!r} must be a list")
        values = [value for entry in entries for value in entry] if nested else entries
        if not all(_is_value(value, kind) for value in values):
            raise InputError(f"{where}: {key!r} must hold {kind}s only")
    _check_scalars(operation, kind=kind, where=where)


def _check_scalars(operation: Mapping[str, Any], *, kind: str, where: str) -> None:
    name = operation["op"]
    if name == "impute":
        missing = operation["missing"]
        right = (missing is None and kind == "number") or _is_value(missing, kind)
    elif name == "affine":
        clip = operation["clip"]
        right = clip is None or (
            isinstance(clip, list) and len(clip) == 2 and all(_is_value(bound, "number") for bound in clip)
        )
    elif name == "ordinal":
        right = operation["unknown"] is None or _is_value(operation["unknown"], "number")
    elif name == "bins":
        right = type(operation["one_hot"]) is bool
    else:
        right = True
    if not right:
        raise InputError(f"{where}: {name!r} holds a value of the wrong type: {dict(operation)!r:.120}")


def _is_value(value: Any, kind: str) -> bool:
    if kind == "string":
        return isinstance(value, str)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _expect_keys(value: Any, keys: set[str], *, where: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is a {type(value).__name__}; an object is expected")
    for key in value:
        if key not in keys:
            raise InputError(f"{where} has the unknown key {key!r}", hint=nearest(str(key), keys))
    absent = sorted(keys - set(value))
    if absent:
        raise InputError(f"{where} lacks {', '.join(absent)}")
