"""The profile of a model version: one histogram per input column, and how the model answers.

Inputs are described over the rows it was trained on, answers over held-out rows. Later rows and answers
are compared with it (``kit.drift``), so it is kept with the model version. Runs on a device: standard
library and numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kit.signature import Signature
from kit.tensors import Tensors

_N_BINS = 20
_MAX_CATEGORIES = 200

#: Bounds of the bins of an answer's confidence, its largest probability.
CONFIDENCE_EDGES: tuple[float, ...] = tuple(np.linspace(0.0, 1.0, _N_BINS + 1).tolist())


def profile(
    tensors: Tensors, *, signature: Signature, outputs: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Describe the training rows, and the answers to rows that were held out.

    Args:
        tensors: Input name to array, shape (n_rows, ...).
        signature: The inputs and outputs they belong to.
        outputs: Output name to array, shape (n_held_out, ...); None leaves answers undescribed.

    Returns:
        ``{"n_rows": int, "columns": {column: {...}}}``; a numeric column has ``edges``
        (n_bins + 1), ``counts`` (n_bins; 20, fewer where the values are too close), ``missing``,
        ``mean`` and ``std`` (null where float64 cannot hold them); a string column has
        ``categories`` (name to count, the most frequent 200), ``missing`` and, where there are more,
        ``other``: the count of all the rest. A column of lists is described over all its values.
        With answers, ``"outputs": {"n_rows": int, "columns": {...}}`` likewise: ``label`` has all
        classes as ``categories``, ``confidence`` is the largest probability over
        ``CONFIDENCE_EDGES``, ``value`` is a regression's number.
    """
    columns: dict[str, Any] = {}
    for spec in signature.inputs:
        array = tensors[spec.name]
        flat = array.reshape(len(array), -1)
        for index, column in enumerate(spec.columns):
            values = flat if len(spec.columns) == 1 else flat[:, index]
            describe = _categories if spec.dtype == "string" else _histogram
            columns[column] = describe(values.reshape(-1))
    found: dict[str, Any] = {"n_rows": len(next(iter(tensors.values()))), "columns": columns}
    if outputs:
        found["outputs"] = _answers(outputs, signature)
    return found


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """Give how sure each answer is: its largest probability, in float64.

    Args:
        probabilities: Shape (n_rows, n_classes).

    Returns:
        Shape (n_rows,), from 0 to 1; rounding beyond either is taken back.
    """
    sure: np.ndarray = np.clip(probabilities.max(axis=1).astype(np.float64), 0.0, 1.0)
    return sure


def _answers(outputs: Mapping[str, np.ndarray], signature: Signature) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if "label" in outputs:
        counts = np.bincount(outputs["label"], minlength=len(signature.classes)).tolist()
        names = map(str, signature.classes)
        columns["label"] = {"categories": dict(zip(names, counts)), "missing": 0}
    if "probabilities" in outputs:
        columns["confidence"] = _histogram(confidence(outputs["probabilities"]), edges=CONFIDENCE_EDGES)
    if "value" in outputs:
        columns["value"] = _histogram(outputs["value"].reshape(-1))
    return {"n_rows": len(next(iter(outputs.values()))), "columns": columns}


def _histogram(values: np.ndarray, *, edges: Sequence[float] | None = None) -> dict[str, Any]:
    numbers = values.astype(np.float64)
    known = numbers[np.isfinite(numbers)]
    missing = len(numbers) - len(known)
    if not len(known):
        return {"edges": [], "counts": [], "missing": missing, "mean": None, "std": None}
    bins = bin_edges(float(known.min()), float(known.max())) if edges is None else np.asarray(edges)
    counts, _ = np.histogram(known, bins=bins)
    return {
        "edges": bins.tolist(),
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
    order = np.lexsort((names, -counts))
    found: dict[str, Any] = {
        "categories": {str(names[index]): int(counts[index]) for index in order[:_MAX_CATEGORIES]},
        "missing": int((values == "").sum()),
    }
    if len(order) > _MAX_CATEGORIES:
        found["other"] = int(counts[order[_MAX_CATEGORIES:]].sum())
    return found
