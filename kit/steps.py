"""Fitted preprocessing as data: impute, scale, encode, bin and select, run in numpy.

For runtimes whose model files cannot hold strings or lookup tables; what an operation does is in
``kit.operations``. It knows nothing of scikit-learn, of files or of how the steps were fitted.
Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.errors import InputError, nearest
from kit.operations import OPERATIONS, check_operation, expect_keys

_FORMAT = 1


@dataclass(frozen=True)
class Block:
    """Columns of one kind and what is done to them, in order.

    Attributes:
        kind: ``number`` (read as float32) or ``string``.
        columns: Tensor name and the position in one of its rows, per column.
        operations: JSON objects ``{"op": name, ...}``; see ``kit.operations``. After one
            that gives codes or flags, only ``select`` may follow.
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
        expect_keys(value, {"format", "n_features", "blocks"}, where="the preprocessing")
        if value["format"] != _FORMAT:
            raise InputError(
                f"the preprocessing has format {value['format']!r}; this kit reads {_FORMAT}",
                hint="use the kit version that wrote it, or export the model again",
            )
        if not isinstance(value["blocks"], list) or not value["blocks"]:
            raise InputError("the preprocessing holds no list of blocks")
        blocks = tuple(_block(entry, index) for index, entry in enumerate(value["blocks"]))
        width = sum(block_width(block) for block in blocks)
        if value["n_features"] != width:
            raise InputError(
                f"the preprocessing says {value['n_features']!r} features, but its blocks yield {width}"
            )
        return cls(blocks=blocks, n_features=width)


def _columns(block: Block, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    parts = []
    dtype = np.float32 if block.kind == "number" else object
    for name, position in block.columns:
        if name not in tensors:
            raise InputError(f"input {name!r} is missing", hint=nearest(name, tensors))
        array = tensors[name]
        flat = array.reshape(len(array), int(np.prod(array.shape[1:])))
        if position >= flat.shape[1]:
            raise InputError(f"input {name!r} has {flat.shape[1]} values per row; value {position} is read")
        # each by itself: int64 beside float32 would become float64 first, and be rounded twice
        parts.append(flat[:, position].astype(dtype))
    return np.stack(parts, axis=1)


def block_width(block: Block) -> int:
    """Count the features a block yields."""
    width = len(block.columns)
    for operation in block.operations:
        width = OPERATIONS[operation["op"]].width(operation, width)
    return width


def _block(value: Any, index: int) -> Block:
    where = f"preprocessing block {index}"
    expect_keys(value, {"kind", "columns", "operations"}, where=where)
    if value["kind"] not in ("number", "string"):
        raise InputError(f"{where} has the kind {value['kind']!r}", hint="write 'number' or 'string'")
    columns = value["columns"]
    if not isinstance(columns, list) or not columns or not all(_is_column(column) for column in columns):
        raise InputError(f"{where} does not list its columns as [tensor, position]")
    if not isinstance(value["operations"], list):
        raise InputError(f"{where} holds no list of operations")
    kind, width, ended = value["kind"], len(columns), ""
    for position, operation in enumerate(value["operations"]):
        place = f"{where}, operation {position}"
        name = operation.get("op") if isinstance(operation, Mapping) else None
        if ended and name != "select":
            raise InputError(f"{where}: nothing may follow {ended!r}")
        rule = check_operation(operation, kind=kind, n_columns=width, where=place)
        width = rule.width(operation, width)
        if rule.ends:
            ended, kind = operation["op"], "number"
    if kind == "string":
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
