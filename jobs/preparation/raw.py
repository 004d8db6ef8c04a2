"""The one tensor a network reads as it is, where nothing is prepared: which one, and rows made for it.

A network may read numbers or integers: token ids, or codes that it looks up in a table. A table fails
on an integer it does not hold, so integers need bounds, and everything made up here stays inside them. Knows
signatures; no tables, no networks.
"""

from __future__ import annotations

import math

import numpy as np

from kit.errors import ProjectError
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec

INTEGERS = ("int32", "int64")


def raw_input(signature: Signature, *, integers: bool = True, missing: bool = False) -> TensorSpec:
    """Give the input that is read as it is, refusing a signature without such a one.

    Args:
        signature: Of the project or the graph.
        integers: Whether they may be read; a library's estimator reads float32 alone.
        missing: Whether values may be missing; a graph leaves that to who reads it.

    Raises:
        ProjectError: There are several inputs, or it holds strings, missing values or another type, or
            integers without both bounds.
    """
    allowed = ("float32", *INTEGERS) if integers else ("float32",)
    specs = signature.inputs
    if len(specs) != 1 or specs[0].dtype not in allowed or (specs[0].nullable and not missing):
        kinds = "float32, int32 or int64" if integers else "float32"
        reader = "a network" if integers else "an estimator"
        listed = ", ".join(
            f"{spec.name} ({spec.dtype}{', nullable' if spec.nullable else ''})" for spec in specs
        )
        raise ProjectError(
            f"without preprocessing {reader} reads one input of {kinds} without missing values, but "
            f"[[data.inputs]] names {listed}",
            hint="say under [[prepare.features]] how columns become numbers",
        )
    spec = specs[0]
    lacking = [key for key in ("minimum", "maximum") if getattr(spec, key) is None]
    if spec.dtype in INTEGERS and lacking:
        raise ProjectError(
            f"the input {spec.name!r} is {spec.dtype} and has no {' and no '.join(lacking)}; integers that a "
            "network reads need both",
            hint="set minimum and maximum of the input in kit.toml: a network that looks numbers up in a "
            "table fails on any other",
        )
    return spec


def blank_rows(spec: TensorSpec, *, n_rows: int = 2) -> np.ndarray:
    """Make rows that stand in for real ones where only shape and type count.

    Args:
        spec: From ``raw_input``.
        n_rows: How many.

    Returns:
        Zeros, shape (n_rows, ...); of integers the allowed one that is nearest to 0.
    """
    value = 0 if spec.dtype not in INTEGERS else min(max(0, _lowest(spec)), _highest(spec))
    return np.full((n_rows, *spec.row_shape), value, dtype=DTYPES[spec.dtype])


def edge_rows(spec: TensorSpec) -> np.ndarray:
    """Make the rows a table of too few entries fails on.

    Args:
        spec: From ``raw_input``.

    Returns:
        Of integers the smallest allowed one in every place, then the largest, shape (2, ...); no rows of
        other numbers.
    """
    dtype = DTYPES[spec.dtype]
    if spec.dtype not in INTEGERS:
        return np.empty((0, *spec.row_shape), dtype=dtype)
    return np.stack([np.full(spec.row_shape, edge(spec), dtype=dtype) for edge in (_lowest, _highest)])


def _lowest(spec: TensorSpec) -> int:
    least = int(np.iinfo(spec.dtype).min)
    return least if spec.minimum is None else max(math.ceil(spec.minimum), least)


def _highest(spec: TensorSpec) -> int:
    most = int(np.iinfo(spec.dtype).max)
    return most if spec.maximum is None else min(math.floor(spec.maximum), most)
