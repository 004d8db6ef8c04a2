"""Statistics of a table's columns: what they hold, and how training rows differ from held-out rows.

Columns of numbers, strings and lists, as they were read. Knows no project, no model and no step;
what is done about a column is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kit.profile import bin_edges

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CATEGORIES = 20
#: A category's name is cut to this; a column of documents would fill the page otherwise.
MAX_CHARACTERS = 80
_TAIL = 0.005
#: Where all values span so many times what all but the tails span, the outer bins take the tails.
_FAR_OUT = 3.0


@dataclass(frozen=True)
class ColumnStatistics:
    """What a column holds; measured over all rows but for the two counts.

    Attributes:
        name: Its name.
        role: ``input``, ``label``, or what else it is used as.
        kind: ``list`` is described over all values of all rows.
        missing: Values that are null, NaN or infinite; for strings, null or empty.
        n_unique: Distinct values that are not missing.
        mean: Of the values that are not missing; None, like all figures below, where there are none, where
            float64 cannot hold the figure, or for strings.
        std: Their standard deviation (population).
        minimum: The smallest.
        maximum: The largest.
        quartiles: The 25th, 50th and 75th percentile; empty for strings.
        categories: The most frequent strings and how often they occur; at most ``MAX_CATEGORIES``.
        edges: Bounds of the bins, n_bins + 1; empty for strings. The outer bins are wider where a
            few values lie far out.
        train_counts: Training values in each bin, or rows that hold each category.
        test_counts: Held-out values likewise.
    """

    name: str
    role: str
    kind: Literal["number", "string", "list"]
    missing: int
    n_unique: int
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    quartiles: tuple[float | None, ...] = ()
    categories: dict[str, int] = field(default_factory=dict)
    edges: tuple[float, ...] = ()
    train_counts: tuple[int, ...] = ()
    test_counts: tuple[int, ...] = ()


def describe(
    column: pa.ChunkedArray[Any], *, name: str, role: str, train_rows: np.ndarray, test_rows: np.ndarray
) -> ColumnStatistics:
    """Describe one column of a table.

    Args:
        column: n_rows values: numbers, booleans, strings or lists of numbers; any other type is
            described as the strings it is written as.
        name: Its name.
        role: What it is used as.
        train_rows: Row numbers of the training part, from 0, shape (n_train,).
        test_rows: Likewise of the held-out part.
    """
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _lists(column, name=name, role=role, parts=(train_rows, test_rows))
    numeric = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(check(kind) for check in numeric):
        return _strings(column, name=name, role=role, parts=(train_rows, test_rows))
    values = _floats(column)
    parts = (values[train_rows], values[test_rows])
    return _numbers(values, name=name, role=role, kind="number", parts=parts)


def _floats(column: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    values = pc.cast(column, pa.float64(), safe=False).to_numpy()
    return np.asarray(values, dtype=np.float64)


def _lists(column: Any, *, name: str, role: str, parts: tuple[np.ndarray, np.ndarray]) -> ColumnStatistics:
    import pyarrow.compute as pc

    def flat(rows: Any) -> np.ndarray:
        return _floats(pc.list_flatten(rows))

    numbers = flat(column)
    taken = (flat(column.take(parts[0])), flat(column.take(parts[1])))
    found = _numbers(numbers, name=name, role=role, kind="list", parts=taken)
    return replace(found, missing=found.missing + column.null_count)


def _numbers(
    values: np.ndarray,
    *,
    name: str,
    role: str,
    kind: Literal["number", "list"],
    parts: tuple[np.ndarray, np.ndarray],
) -> ColumnStatistics:
    known = values[np.isfinite(values)]
    missing = len(values) - len(known)
    if not len(known):
        return ColumnStatistics(name, role, kind, missing, 0)
    edges = _edges(known)
    counts = [np.histogram(part[np.isfinite(part)], bins=edges)[0].tolist() for part in parts]
    return ColumnStatistics(
        name,
        role,
        kind,
        missing,
        n_unique=len(np.unique(known)),
        mean=_finite(np.mean, known),
        std=_finite(np.std, known),
        minimum=float(known.min()),
        maximum=float(known.max()),
        quartiles=tuple(_finite(partial(np.quantile, q=share), known) for share in (0.25, 0.5, 0.75)),
        edges=tuple(edges.tolist()),
        train_counts=tuple(counts[0]),
        test_counts=tuple(counts[1]),
    )


def _edges(known: np.ndarray) -> np.ndarray:
    """Cut the range of values into bins, so that a few far ones do not push all others into one."""
    low, high = float(known.min()), float(known.max())
    with np.errstate(over="ignore", invalid="ignore"):
        first, last = np.quantile(known, [_TAIL, 1 - _TAIL])
        far = high - low > _FAR_OUT * (last - first) > 0
    if not far:
        return bin_edges(low, high)
    inner = bin_edges(float(first), float(last))
    return np.unique([low, *inner[1:-1], high])


def _strings(column: Any, *, name: str, role: str, parts: tuple[np.ndarray, np.ndarray]) -> ColumnStatistics:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts: Any = pc.cast(column, pa.string())  # the stubs know fewer types than the functions
    filled = pc.if_else(pc.equal(texts, pa.scalar("")), pa.scalar(None, pa.string()), texts)
    n_unique = pc.count_distinct(filled, mode="only_valid").as_py()
    cut = pc.utf8_slice_codeunits(filled, 0, MAX_CHARACTERS)
    counts = _counts(cut)
    frequent = sorted(counts, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
    by_part = [_counts(cut.take(pa.array(rows))) for rows in parts]
    return ColumnStatistics(
        name,
        role,
        "string",
        missing=filled.null_count,
        n_unique=n_unique,
        categories={text: counts[text] for text in frequent},
        train_counts=tuple(by_part[0].get(text, 0) for text in frequent),
        test_counts=tuple(by_part[1].get(text, 0) for text in frequent),
    )


def _counts(column: Any) -> dict[str, int]:
    import pyarrow.compute as pc

    return {
        each["values"]: each["counts"]
        for each in pc.value_counts(column).to_pylist()
        if each["values"] is not None
    }


def _finite(measure: Callable[[np.ndarray], Any], values: np.ndarray) -> float | None:
    """Measure values; None where float64 cannot hold the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = float(measure(values))
    return result if np.isfinite(result) else None


def class_balance(
    classes: Sequence[object], *, train: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> dict[str, dict[str, int]]:
    """Count the rows of each class in each part.

    Args:
        classes: The classes in the order of their indices.
        train: Class indices of the training rows, shape (n_train,).
        validation: Likewise.
        test: Likewise.

    Returns:
        Class to its rows by part; empty where there are no classes.
    """
    counts = {
        part: np.bincount(labels.astype(np.int64), minlength=len(classes))
        for part, labels in (("train", train), ("validation", validation), ("test", test))
        if classes
    }
    return {
        str(name): {part: int(each[index]) for part, each in counts.items()}
        for index, name in enumerate(classes)
    }
