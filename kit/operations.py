"""What a step of the preprocessing may be: what its JSON holds, and what it does to columns.

The arithmetic repeats scikit-learn's on float32 columns, operation by operation, so the features equal those
of the ONNX graph. Runs on a device: standard library and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.arithmetic import STATISTICS, fill_by_chain, fill_by_neighbors, measure, rank
from kit.errors import InputError, nearest

Step = Mapping[str, Any]


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kinds: Of columns it reads, ``number`` or ``string``.
        keys: Key of its JSON to what the value must be: the rule in words, and the test, which is
            given the value, the columns' kind and how many columns there are.
        run: Turns values of shape (n_rows, n_columns) into others.
        width: Number of columns it gives, from its JSON and how many it reads.
        ends: Whether nothing but ``select`` may follow, because it gives codes or flags.
    """

    kinds: tuple[str, ...]
    keys: Mapping[str, tuple[str, Callable[[Any, str, int], bool]]]
    run: Callable[[Step, np.ndarray], np.ndarray]
    width: Callable[[Step, int], int] = lambda step, n_columns: n_columns
    ends: bool = False


def check_operation(operation: Any, *, kind: str, n_columns: int, where: str) -> Operation:
    """Check an operation's JSON.

    Args:
        operation: As read from a file.
        kind: Of the columns it reads.
        n_columns: How many it reads.
        where: Where it stands, for messages.

    Raises:
        InputError: It names no operation of this kit, or a key or value is not one this kit writes.
    """
    if not isinstance(operation, Mapping) or not isinstance(operation.get("op"), str):
        raise InputError(f"{where} does not name its 'op'")
    name = operation["op"]
    if name not in OPERATIONS:
        raise InputError(f"{where}: {name!r} is not an operation", hint=nearest(name, OPERATIONS))
    rule = OPERATIONS[name]
    expect_keys(operation, {"op", *rule.keys}, where=f"{where} ({name})")
    if kind not in rule.kinds:
        raise InputError(f"{where}: {name!r} cannot work on {kind} columns")
    for key, (words, test) in rule.keys.items():
        if not test(operation[key], kind, n_columns):
            said = words.format(n=n_columns, kind=kind)
            raise InputError(f"{where}: {key!r} must hold {said}, not {operation[key]!r:.80}")
    if not _consistent(operation, n_columns):
        raise InputError(f"{where}: the parts of {name!r} do not fit together")
    return rule


def expect_keys(value: Any, keys: set[str], *, where: str) -> None:
    """Refuse an object that lacks a key or has one too many.

    Raises:
        InputError: Names the key.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is a {type(value).__name__}; an object is expected")
    for key in value:
        if key not in keys:
            raise InputError(f"{where} has the unknown key {key!r}", hint=nearest(str(key), keys))
    absent = sorted(keys - set(value))
    if absent:
        raise InputError(f"{where} lacks {', '.join(absent)}")


def _impute(step: Step, values: np.ndarray) -> np.ndarray:
    missing = step["missing"]
    absent = np.isnan(values) if missing is None else values == missing
    return np.asarray(np.where(absent, np.array(step["values"], dtype=values.dtype), values))


def _chain(step: Step, values: np.ndarray) -> np.ndarray:
    return fill_by_chain(
        values,
        start=_float64(step["start"]),
        targets=step["targets"],
        weights=_float64(step["weights"]).reshape(-1, values.shape[1]),
        intercepts=_float64(step["intercepts"]),
        bounds=_float64(step["bounds"]),
    )


def _neighbors(step: Step, values: np.ndarray) -> np.ndarray:
    return fill_by_neighbors(
        values,
        donors=_float64(step["donors"]),  # None becomes NaN
        means=_float64(step["means"]),
        neighbors=step["neighbors"],
    )


def _clip(step: Step, values: np.ndarray) -> np.ndarray:
    low, high = np.array(step["low"], dtype=np.float32), np.array(step["high"], dtype=np.float32)
    return np.asarray(np.clip(values, low, high))


def _flag(step: Step, values: np.ndarray) -> np.ndarray:
    low, high = np.array(step["low"], dtype=np.float32), np.array(step["high"], dtype=np.float32)
    return ((values < low) | (values > high)).astype(np.float32)


def _scale(step: Step, values: np.ndarray) -> np.ndarray:
    return _rounded(_rounded(values - _float64(step["subtract"])) / _float64(step["divide"]))


def _affine(step: Step, values: np.ndarray) -> np.ndarray:
    moved = _rounded(_rounded(values * _float64(step["multiply"])) + _float64(step["add"]))
    clip = step["clip"]
    return moved if clip is None else np.clip(moved, np.float32(clip[0]), np.float32(clip[1]))


def _quantile(step: Step, values: np.ndarray) -> np.ndarray:
    return rank(
        values, **{key: [_float64(column) for column in step[key]] for key in ("knots", "before", "after")}
    )


def _one_hot(step: Step, values: np.ndarray) -> np.ndarray:
    parts = [
        (values[:, index, None] == np.array(categories, dtype=values.dtype)[None, :]).astype(np.float32)
        for index, categories in enumerate(step["categories"])
    ]
    return np.concatenate(parts, axis=1)


def _ordinal(step: Step, values: np.ndarray) -> np.ndarray:
    unknown = math.nan if step["unknown"] is None else step["unknown"]
    codes = np.empty(values.shape, dtype=np.float32)
    for index, categories in enumerate(step["categories"]):
        known = np.array(categories, dtype=values.dtype).tolist()  # numbers as float32, like the values
        places = {category: code for code, category in enumerate(known)}
        codes[:, index] = [places.get(value, unknown) for value in values[:, index].tolist()]
    return codes


def _target(step: Step, values: np.ndarray) -> np.ndarray:
    parts = []
    for index, categories in enumerate(step["categories"]):
        means = np.array([step["unknown"][index], *step["means"][index]], dtype=np.float32)
        places = {category: place for place, category in enumerate(categories, start=1)}
        parts.append(means[[places.get(value, 0) for value in values[:, index]]])
    return np.concatenate(parts, axis=1)


def _bins(step: Step, values: np.ndarray) -> np.ndarray:
    codes = np.empty(values.shape, dtype=np.int64)
    for index, edges in enumerate(step["edges"]):
        codes[:, index] = np.searchsorted(np.array(edges, dtype=np.float64), values[:, index], side="right")
    if not step["one_hot"]:
        return codes
    parts = [codes[:, index, None] == np.arange(len(edges) + 1) for index, edges in enumerate(step["edges"])]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _statistics(step: Step, values: np.ndarray) -> np.ndarray:
    ends = np.cumsum(step["lengths"])
    return np.concatenate(
        [
            measure(values[:, end - length : end], statistics=step["statistics"])
            for end, length in zip(ends, step["lengths"])
        ],
        axis=1,
    )


def _select(step: Step, values: np.ndarray) -> np.ndarray:
    return values[:, step["columns"]]


def _float64(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round to float32 after every step, as scikit-learn does when it works in place on float32."""
    return values.astype(np.float32)


def is_value(value: Any, kind: str) -> bool:
    """Say whether a JSON value is a finite number, or a string, as the kind asks."""
    if kind == "string":
        return isinstance(value, str)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_row(value: Any, kind: str, n_values: int | None = None) -> bool:
    fits = isinstance(value, list) and (n_values is None or len(value) == n_values)
    return fits and all(is_value(each, kind) for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _lists(value: Any, kind: str, n: int) -> bool:
    return isinstance(value, list) and len(value) == n and all(_is_row(each, kind) for each in value)


_EACH = ("{n} entries, one per column, {kind}s only", _is_row)
_LIST_EACH = ("{n} entries, one per column, that are lists of {kind}s only", _lists)
_FLAG = ("true or false, not a value of the wrong type", lambda value, kind, n: type(value) is bool)
_NUMBERS = ("a list of numbers only", lambda value, kind, n: _is_row(value, "number"))
_TABLE = (
    "rows of {n} numbers only",
    lambda value, kind, n: isinstance(value, list) and all(_is_row(row, "number", n) for row in value),
)
_DONORS = (
    "rows of {n} numbers or null",
    lambda value, kind, n: (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and len(row) == n for row in value)
        and all(each is None or is_value(each, "number") for row in value for each in row)
    ),
)
_PLACES = (
    "positions of columns",
    lambda value, kind, n: (
        isinstance(value, list) and bool(value) and all(type(each) is int and 0 <= each < n for each in value)
    ),
)
_OPTIONAL = (
    "null or a number, not a value of the wrong type",
    lambda value, kind, n: value is None or is_value(value, "number"),
)
_MISSING = (
    "what stands for a missing value, not a value of the wrong type",
    lambda value, kind, n: (value is None and kind == "number") or is_value(value, kind),
)
_PAIR = (
    "null or two numbers, not a value of the wrong type",
    lambda value, kind, n: value is None or _is_row(value, "number", 2),
)
_MEANS = (
    "{n} entries, one per column, of lists of numbers per category",
    lambda value, kind, n: (
        isinstance(value, list)
        and len(value) == n
        and all(isinstance(each, list) and all(_is_row(row, "number") for row in each) for each in value)
    ),
)
_UNKNOWN_MEANS = (
    "{n} entries, one per column, that are lists of numbers",
    lambda value, kind, n: _lists(value, "number", n) and all(value),
)
_LENGTHS = (
    "lengths of lists that make up {n} columns",
    lambda value, kind, n: isinstance(value, list) and all(map(_is_count, value)) and sum(value) == n,
)
_MEASURES = (
    "names of statistics",
    lambda value, kind, n: (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, str) and each in STATISTICS for each in value)
    ),
)


def _consistent(step: Step, n_columns: int) -> bool:
    """Check what one key says about another."""
    name = step["op"]
    if name == "chain":
        n_steps = len(step["targets"])
        return len(step["weights"]) == len(step["intercepts"]) == n_steps and len(step["bounds"]) == 2
    if name == "quantile":
        columns = zip(step["knots"], step["before"], step["after"])
        return all(0 < len(knots) == len(before) == len(after) for knots, before, after in columns)
    if name == "target":
        return all(
            len(means) == len(known) and all(len(row) == len(unknown) for row in means)
            for known, means, unknown in zip(step["categories"], step["means"], step["unknown"])
        )
    return True


def _n_bins(step: Step, n_columns: int) -> int:
    return sum(len(edges) + 1 for edges in step["edges"]) if step["one_hot"] else n_columns


def _n_categories(step: Step, n_columns: int) -> int:
    return sum(len(known) for known in step["categories"])


#: Every operation a block may name. ``bins`` holds the inner edges only: k edges make k+1 bins.
OPERATIONS: dict[str, Operation] = {
    "impute": Operation(("number", "string"), {"values": _EACH, "missing": _MISSING}, _impute),
    "chain": Operation(
        ("number",),
        {"start": _EACH, "targets": _PLACES, "weights": _TABLE, "intercepts": _NUMBERS, "bounds": _TABLE},
        _chain,
    ),
    "neighbors": Operation(
        ("number",),
        {
            "donors": _DONORS,
            "means": _EACH,
            "neighbors": ("a whole number from 1", lambda value, kind, n: _is_count(value)),
        },
        _neighbors,
    ),
    "statistics": Operation(
        ("number",),
        {"lengths": _LENGTHS, "statistics": _MEASURES},
        _statistics,
        lambda step, n_columns: len(step["lengths"]) * len(step["statistics"]),
    ),
    "clip": Operation(("number",), {"low": _EACH, "high": _EACH}, _clip),
    "flag": Operation(("number",), {"low": _EACH, "high": _EACH}, _flag, ends=True),
    "scale": Operation(("number",), {"subtract": _EACH, "divide": _EACH}, _scale),
    "affine": Operation(("number",), {"multiply": _EACH, "add": _EACH, "clip": _PAIR}, _affine),
    "quantile": Operation(
        ("number",), {"knots": _LIST_EACH, "before": _LIST_EACH, "after": _LIST_EACH}, _quantile
    ),
    "one_hot": Operation(
        ("number", "string"), {"categories": _LIST_EACH}, _one_hot, _n_categories, ends=True
    ),
    "ordinal": Operation(
        ("number", "string"), {"categories": _LIST_EACH, "unknown": _OPTIONAL}, _ordinal, ends=True
    ),
    "target": Operation(
        ("string",),
        {"categories": _LIST_EACH, "means": _MEANS, "unknown": _UNKNOWN_MEANS},
        _target,
        lambda step, n_columns: sum(len(each) for each in step["unknown"]),
        ends=True,
    ),
    "bins": Operation(("number",), {"edges": _LIST_EACH, "one_hot": _FLAG}, _bins, _n_bins, ends=True),
    "select": Operation(
        ("number",),
        {"columns": _PLACES},
        _select,
        lambda step, n_columns: len(step["columns"]),
        ends=True,
    ),
}
