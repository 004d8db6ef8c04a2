"""What the rows and the answers of a batch run look like, on the bins of the model's profile.

Labels are counted in full. Everything else is taken from rows at equal distances, at most 1,024 of a shard,
the same ones however the shard is cut into chunks. What a shard leaves is small and adds up over
shards; ``kit.drift`` compares the sum with the profile. Knows no files, no actors and no report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kit.drift import Drift
from kit.drift import compare as compare_column
from kit.errors import InputError
from kit.profile import CONFIDENCE_EDGES, confidence
from kit.signature import Signature, Tensors

#: The outputs that are described.
OBSERVED = ("label", "probabilities", "value")
_MAX_ROWS = 1024
_MIN_ROWS = 16
#: Values held of one input: fewer rows where a row is an image.
_MAX_VALUES = 1 << 20
#: Columns that are described; a record with more of them would no longer be small.
MAX_COLUMNS = 256
_MAX_CATEGORIES = 200  # as many as a profile keeps


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
                columns |= {
                    each: _categories(flat[:, at], self._columns[each]) for at, each in enumerate(names)
                }
            else:
                counted = _histograms(flat, [self._columns[each]["edges"] for each in names])
                columns |= dict(zip(names, counted, strict=True))
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
            named = {name: count for name, count in zip(self._classes, counts, strict=True) if count}
            found["label"] = {"categories": named, "other": 0, "missing": 0}
        if "confidence" in held:
            (found["confidence"],) = _histograms(held["confidence"].reshape(-1, 1), [CONFIDENCE_EDGES])
        if "value" in held and "value" in self._answers:
            edges = self._answers["value"]["edges"]
            (found["value"],) = _histograms(held["value"].reshape(-1, 1), [edges])
        return found


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what shards of one run observed.

    Args:
        parts: What ``Observed.to_json`` gave; empty ones count for nothing.

    Returns:
        The same shape; categories the profile does not name are kept as a count.

    Raises:
        InputError: Two of them counted a column on different bins.
    """
    found: dict[str, Any] = {"n_rows": 0, "n_sampled": 0, "columns": {}, "outputs": {}}
    for part in parts:
        for key in ("n_rows", "n_sampled"):
            found[key] += part.get(key, 0)
        for key in ("columns", "outputs"):
            for name, column in part.get(key, {}).items():
                held = found[key].get(name)
                found[key][name] = dict(column) if held is None else _added(name, held, column)
    return found


def compare(profile: Mapping[str, Any], merged: Mapping[str, Any]) -> list[Drift]:
    """Compare what a run observed with the model's profile, the most moved first.

    Args:
        profile: The model's. One without answers gives no drift of answers.
        merged: What ``merge`` gave.
    """
    answers = profile.get("outputs", {}).get("columns", {})
    found = [
        compare_column(
            name, role="input", reference=_whole(profile["columns"][name], profile), observed=column
        )
        for name, column in merged["columns"].items()
        if name in profile["columns"]
    ]
    found += [
        compare_column(name, role="answer", reference=answers[name], observed=column)
        for name, column in merged["outputs"].items()
        if name in answers
    ]
    return sorted(found, key=lambda each: (-(each.index or 0.0) / (each.threshold or 1.0), each.name))


def _whole(column: Mapping[str, Any], profile: Mapping[str, Any]) -> Mapping[str, Any]:
    """Count the categories that a profile did not keep, where an earlier kit did not write how many."""
    categories = column.get("categories", {})
    if "other" in column or len(categories) < _MAX_CATEGORIES:
        return column
    rest = int(profile["n_rows"]) - sum(categories.values()) - int(column["missing"])
    return {**column, "other": max(rest, 0)}


def _added(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    missing = one["missing"] + other["missing"]
    if "categories" in one:
        total = Counter(one["categories"])
        total.update(other["categories"])
        return {"categories": dict(total), "other": one["other"] + other["other"], "missing": missing}
    if len(one["counts"]) != len(other["counts"]):
        raise InputError(
            f"{name!r} was counted on {len(one['counts'])} bins by one shard and on {len(other['counts'])} "
            "by another",
            hint="do not mix shards of two runs",
        )
    counts = [mine + theirs for mine, theirs in zip(one["counts"], other["counts"], strict=True)]
    return {"counts": counts, "missing": missing}


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
    for line, n_known, bounds in zip(numbers, known.tolist(), edges, strict=True):
        places = [0, 0, n_known]
        if len(bounds):
            places[1:2] = line.searchsorted(bounds).tolist()
            places[-2] = int(line.searchsorted(bounds[-1], side="right"))
        counts = [stop - start for start, stop in pairwise(places)]
        found.append({"counts": counts, "missing": len(line) - n_known})
    return found
