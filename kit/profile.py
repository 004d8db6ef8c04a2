"""The profile of the training data: one histogram per input column.

Later windows of live data are compared with it (drift), so it is kept with the model version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kit.signature import Signature, Tensors

_N_BINS = 20
_MAX_CATEGORIES = 200


def profile(tensors: Tensors, *, signature: Signature) -> dict[str, Any]:
    """Describe the training rows.

    Args:
        tensors: Input name to array, shape (n_rows, ...).
        signature: The inputs they belong to.

    Returns:
        ``{"n_rows": int, "columns": {column: {...}}}``; a numeric column has ``edges``
        (n_bins + 1), ``counts`` (n_bins; 20, fewer where the values are too close), ``missing``,
        ``mean`` and ``std`` (null where float64 cannot hold them); a string column has
        ``categories`` (name to count, the most frequent 200) and ``missing``. A column of lists
        is described over all its values.
    """
    columns: dict[str, Any] = {}
    for spec in signature.inputs:
        array = tensors[spec.name]
        flat = array.reshape(len(array), -1)
        for index, column in enumerate(spec.columns):
            values = flat if len(spec.columns) == 1 else flat[:, index]
            describe = _categories if spec.dtype == "string" else _histogram
            columns[column] = describe(values.reshape(-1))
    return {"n_rows": len(next(iter(tensors.values()))), "columns": columns}


def _histogram(values: np.ndarray) -> dict[str, Any]:
    numbers = values.astype(np.float64)
    known = numbers[~np.isnan(numbers)]
    missing = len(numbers) - len(known)
    if not len(known):
        return {"edges": [], "counts": [], "missing": missing, "mean": None, "std": None}
    counts, edges = np.histogram(known, bins=bin_edges(float(known.min()), float(known.max())))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "missing": missing,
        "mean": _finite(np.mean, known),
        "std": _finite(np.std, known),
    }


def bin_edges(low: float, high: float) -> np.ndarray:
    """Cut a range into bins; fewer where neighbouring edges would be the same number.

    Args:
        low: Smallest value, finite.
        high: Largest value, finite.

    Returns:
        The edges, ascending, shape (n_bins + 1,), at most 21.
    """
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.unique(2 * np.linspace(low / 2, high / 2, _N_BINS + 1))  # halves: the difference may overflow
    edges = edges[(edges >= low) & (edges <= high)]
    if len(edges) < 2 or edges[0] > low or edges[-1] < high:
        edges = np.unique([low, *edges, high])
    if len(edges) > 1:
        return edges
    largest = np.finfo(np.float64).max
    return np.array([np.nextafter(low, -largest), np.nextafter(high, largest)])


def _finite(measure: Callable[[np.ndarray], Any], values: np.ndarray) -> float | None:
    with np.errstate(over="ignore", invalid="ignore"):
        result = float(measure(values))
    return result if np.isfinite(result) else None


def _categories(values: np.ndarray) -> dict[str, Any]:
    names, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    order = np.lexsort((names, -counts))[:_MAX_CATEGORIES]
    return {
        "categories": {str(names[index]): int(counts[index]) for index in order},
        "missing": int((values == "").sum()),
    }
