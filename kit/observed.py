"""What rows and a model's answers look like, on the bins of the model's profile.

Of a batch's shard or of what a device answered in a minute. Labels are counted in full. Everything else is
taken from rows at equal distances, at most 1,024, the same ones however the rows are cut into chunks. What is
left is small and adds up; ``kit.drift`` compares the sum with the profile. Knows no files and no report. Runs
on a device: standard library and numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kit.profile import CONFIDENCE_EDGES, confidence
from kit.signature import Signature
from kit.tensors import Tensors

#: The outputs that are described.
OBSERVED = ("label", "probabilities", "value")
_MAX_ROWS = 1024
_MIN_ROWS = 16
#: Values held of one input: fewer rows where a row is an image.
_MAX_VALUES = 1 << 20
#: Columns that are described; a record with more of them would no longer be small.
MAX_COLUMNS = 256


class Observed:
    """Takes note of the rows and answers of one shard.

    Args:
        profile: The model's, as ``kit.profile.profile`` describes it.
        signature: The model's.
    """

    def __init__(self, profile: Mapping[str, Any], *, signature: Signature) -> None:
        self._inputs = [spec for spec in signature.inputs if spec.columns]
        self._columns: Mapping[str, Any] = profile["columns"]
        self._answers: Mapping[str, Any] = profile.get("outputs", {}).get("columns", {})
        self._classes = tuple(map(str, signature.classes))
        size = max((spec.row_size for spec in self._inputs), default=1)
        self._most = min(_MAX_ROWS, max(_MAX_VALUES // size, _MIN_ROWS))
        self._counts = np.zeros(len(self._classes), dtype=np.int64)
        self._held: dict[str, list[np.ndarray]] = {}
        self._n_rows, self._stride = 0, 1

    @property
    def labels(self) -> tuple[int, ...]:
        """Rows by answered class, in the order of the classes; empty for regression."""
        return tuple(self._counts.tolist())

    def observe(self, tensors: Tensors, outputs: Mapping[str, np.ndarray]) -> None:
        """Take note of some rows, in the shard's order.

        Args:
            tensors: Input name to array, shape (n_rows, ...), as the engine was given them.
            outputs: Output name to array, shape (n_rows, ...), as it answered.
        """
        n_rows = len(next(iter(outputs.values()), ()))
        if "label" in outputs and self._classes:
            self._counts += np.bincount(outputs["label"], minlength=len(self._classes))
        self._thin(self._n_rows + n_rows)
        first = -self._n_rows % self._stride
        self._n_rows += n_rows
        if first >= n_rows:
            return
        taken = slice(first, None, self._stride)
        for spec in self._inputs:
            self._held.setdefault(f"in {spec.name}", []).append(tensors[spec.name][taken].copy())
        if "probabilities" in outputs:
            self._held.setdefault("confidence", []).append(confidence(outputs["probabilities"][taken]))
        if "value" in outputs:
            self._held.setdefault("value", []).append(outputs["value"][taken].reshape(-1).copy())

    def _thin(self, n_rows: int) -> None:
        """Double the distance between rows until those taken of so many are few enough."""
        factor = 1
        while -(-n_rows // (self._stride * factor)) > self._most:
            factor *= 2
        if factor > 1:
            self._stride *= factor
            self._held = {name: [np.concatenate(held)[::factor]] for name, held in self._held.items()}

    def to_json(self) -> dict[str, Any]:
        """Describe the shard's rows and answers.

        Returns:
            ``{"n_rows", "n_sampled", "columns", "outputs"}``; a column has ``counts`` on the profile's
            bins with one more at either end for what lies outside, or ``categories`` and ``other``, the
            count of those the profile does not name; and ``missing``.
        """
        held = {name: np.concatenate(parts) for name, parts in self._held.items()}
        columns: dict[str, Any] = {}
        for spec in self._inputs:
            array = held.get(f"in {spec.name}")
            names = [each for each in spec.columns if each in self._columns]
            if array is None or names != list(spec.columns) or len(columns) >= MAX_COLUMNS:
                continue
            names = names[: MAX_COLUMNS - len(columns)]
            flat = array.reshape(len(array), -1)
            flat = flat.reshape(-1, 1) if len(spec.columns) == 1 else flat[:, : len(names)]
            if spec.dtype == "string":
                for at, each in enumerate(names):
                    columns[each] = _categories(flat[:, at], self._columns[each])
            else:
                counted = _histograms(flat, [self._columns[each]["edges"] for each in names])
                columns.update(zip(names, counted))
        return {
            "n_rows": self._n_rows,
            "n_sampled": -(-self._n_rows // self._stride),
            "columns": columns,
            "outputs": self._answered(held),
        }

    def _answered(self, held: Mapping[str, np.ndarray]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._classes:
            counts = self._counts.tolist()
            named = {name: count for name, count in zip(self._classes, counts) if count}
            found["label"] = {"categories": named, "other": 0, "missing": 0}
        if "confidence" in held:
            (found["confidence"],) = _histograms(held["confidence"].reshape(-1, 1), [CONFIDENCE_EDGES])
        if "value" in held and "value" in self._answers:
            edges = self._answers["value"]["edges"]
            (found["value"],) = _histograms(held["value"].reshape(-1, 1), [edges])
        return found


def _categories(values: np.ndarray, column: Mapping[str, Any]) -> dict[str, Any]:
    """Count the strings of a column: those the profile names, all others, and the missing ones."""
    counts = Counter(values.tolist())
    missing = counts.pop("", 0)
    named = {name: counts.pop(name) for name in column["categories"] if name in counts}
    return {"categories": named, "other": sum(counts.values()), "missing": missing}


def _histograms(values: np.ndarray, edges: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Count the values of each column on its own bins; like ``np.histogram``, the last holds its upper bound.

    Args:
        values: Shape (n_rows, n_columns); what is not finite is missing.
        edges: Bounds of each column's bins; empty where the profile knows no value.
    """
    numbers = np.ascontiguousarray(values.T, dtype=np.float64)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    # Sorted once, the bounds are looked up among the values: three times as fast as the other way round.
    numbers.sort(axis=1)
    known = (~np.isnan(numbers)).sum(axis=1)
    found = []
    for line, n_known, bounds in zip(numbers, known.tolist(), edges):
        places = [0, 0, n_known]
        if len(bounds):
            places[1:2] = line.searchsorted(bounds).tolist()
            places[-2] = int(line.searchsorted(bounds[-1], side="right"))
        counts = [stop - start for start, stop in zip(places, places[1:])]
        found.append({"counts": counts, "missing": len(line) - n_known})
    return found
