"""What a batch run's shards observed, added up and compared with the model's profile.

``kit.observed`` takes note of one shard. Knows no files, no actors and no report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from kit.drift import Drift
from kit.drift import compare as compare_column
from kit.errors import InputError

_MAX_CATEGORIES = 200  # as many as a profile keeps


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
