"""Fitted preprocessing written as data, for devices that have neither scikit-learn nor the ONNX graph.

What a device does with it is in ``kit.steps``. It knows nothing of files or of fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jobs.preparation.frame import check_transformer, frame_columns
from kit.signature import Signature
from kit.steps import Block, Steps, block_width

Place = tuple[str, int, str]
Operation = dict[str, Any]

_REASONS = {
    "Matching": "a rule (otherwise = 'missing') needs the regular expressions of the graph; clean the values "
    "before they reach the device, or set otherwise = 'drop'",
    "Terms": "text = 'tf-idf' needs the tokeniser of the graph; encode the column instead",
    "Isolated": "outliers = 'isolation-forest' needs the trees of the graph; use 'iqr' or 'z-score', or "
    "outlier_action = 'drop'",
}


class _NotDataError(Exception):
    """A step has no counterpart on a device; the message says which."""


def fitted_steps(transformer: Any, *, signature: Signature) -> Steps | None:
    """Write a fitted transformer as data, where all of its steps are ones a device can run.

    Args:
        transformer: Fitted on the frame of ``to_frame``.
        signature: Names the columns.

    Returns:
        The steps, or None when one of them has no counterpart; ``missing_steps`` says which.

    Raises:
        ProjectError: A step is one that ``check_transformer`` refuses.
    """
    try:
        return _written(transformer, signature=signature)
    except _NotDataError:
        return None


def missing_steps(transformer: Any, *, signature: Signature) -> str | None:
    """Say which step keeps a fitted transformer from being written as data; None where none does.

    Returns:
        The step and what to use instead, as a clause for a message.

    Raises:
        ProjectError: A step is one that ``check_transformer`` refuses.
    """
    try:
        _written(transformer, signature=signature)
    except _NotDataError as reason:
        return str(reason)
    return None


def _written(transformer: Any, *, signature: Signature) -> Steps:
    from sklearn.compose import ColumnTransformer

    check_transformer(transformer)
    places = {
        column: (spec.name, index, "string" if spec.dtype == "string" else "number")
        for spec in signature.inputs
        for index, column in enumerate(frame_columns(spec))
    }
    kept: np.ndarray | None = None
    if hasattr(transformer, "steps") and type(transformer.steps[-1][1]).__name__ == "Selection":
        kept = transformer.steps[-1][1].kept_
        transformer = transformer.steps[0][1]
    if isinstance(transformer, ColumnTransformer):
        names = [str(name) for name in transformer.feature_names_in_]
        parts = [(step, _chosen(chosen, names)) for _, step, chosen in transformer.transformers_]
    else:
        parts = [(transformer, list(places))]
    blocks: list[Block] = []
    for step, chosen in parts:
        if chosen and not (isinstance(step, str) and step == "drop"):
            blocks += _blocks(step, [places[column] for column in chosen])
    if kept is not None:
        blocks = _selected(blocks, kept)
    if not blocks:
        raise _NotDataError("the preprocessing reads no column")
    # One trip through JSON types now, so what is written is what was checked.
    unchecked = Steps(blocks=tuple(blocks), n_features=sum(block_width(block) for block in blocks))
    return Steps.from_json(unchecked.to_json())


def _blocks(step: Any, places: Sequence[Place]) -> list[Block]:
    """Write the steps of some columns; a union at the end becomes a block for each of its parts."""
    kinds = sorted({kind for _, _, kind in places})
    if len(kinds) != 1:
        raise _NotDataError("one step reads strings and numbers; give each kind its own")
    columns = tuple((name, index) for name, index, _ in places)
    chains: list[list[Any]] = [[]]
    for part in _flat(step):
        if type(part).__name__ == "FeatureUnion":
            chains = [[*chains[0], *_flat(each)] for _, each in part.transformer_list]
        else:
            for chain in chains:
                chain.append(part)
    blocks = []
    for chain in chains:
        kind = kinds[0]
        operations: list[Operation] = []
        for part in chain:
            if operations and operations[-1]["op"] in _CODES:
                raise _NotDataError(
                    f"{type(part).__name__} follows {operations[-1]['op']!r}; nothing may follow it"
                )
            operations.append(_operation(part, kind))
        if kind == "string" and (not operations or operations[-1]["op"] not in _CODES):
            raise _NotDataError("strings are left as they are; encode them")
        blocks.append(Block(kind=kind, columns=columns, operations=tuple(operations)))
    return blocks


def _operation(part: Any, kind: str) -> Operation:
    name = type(part).__name__
    write = _OPERATIONS.get(name)
    operation = write(part, kind) if write else None
    if operation is None:
        raise _NotDataError(_REASONS.get(name, f"{name}, as it is set, has no counterpart on a device"))
    return operation


def _flat(step: Any) -> list[Any]:
    parts = [part for _, part in step.steps] if hasattr(step, "steps") else [step]
    return [part for part in parts if not _does_nothing(part)]


def _selected(blocks: Sequence[Block], kept: np.ndarray) -> list[Block]:
    """Let each block keep its share of the chosen features; one that keeps none is left out."""
    left = []
    start = 0
    for block in blocks:
        width = block_width(block)
        own = [int(place) - start for place in kept if start <= place < start + width]
        if len(own) == width:
            left.append(block)
        elif own:
            left.append(replace(block, operations=(*block.operations, {"op": "select", "columns": own})))
        start += width
    return left


def _chosen(chosen: Any, names: list[str]) -> list[str]:
    if isinstance(chosen, str):
        return [chosen]
    if isinstance(chosen, slice):
        return names[chosen]
    listed = list(chosen)
    if listed and isinstance(listed[0], (bool, np.bool_)):
        return [name for name, keep in zip(names, listed, strict=True) if keep]
    return [item if isinstance(item, str) else names[int(item)] for item in listed]


def _does_nothing(step: Any) -> bool:
    if step is None or isinstance(step, str):  # "passthrough" as a user writes it
        return True
    return type(step).__name__ == "FunctionTransformer" and step.func is None  # and as it is fitted


def _imputer(step: Any, kind: str) -> dict[str, Any] | None:
    values = [_plain(value, kind) for value in step.statistics_]
    missing = step.missing_values
    is_nan = isinstance(missing, float) and np.isnan(missing)
    if any(value is None for value in values):  # a column without any value: scikit-learn drops it
        return None
    if kind == "string" and not isinstance(missing, str):
        return None
    return {"op": "impute", "missing": None if is_nan else _plain(missing, kind), "values": values}


def _standard(step: Any, kind: str) -> dict[str, Any] | None:
    # Unlike its relatives this one rounds what it learned to the data's dtype before using it.
    mean = None if step.mean_ is None or not step.with_mean else np.float32(step.mean_)
    scale = None if step.scale_ is None else np.float32(step.scale_)
    return _scaling(step.n_features_in_, mean, scale)


def _robust(step: Any, kind: str) -> dict[str, Any] | None:
    return _scaling(step.n_features_in_, step.center_, step.scale_)


def _scaling(n_columns: int, subtract: Any, divide: Any) -> dict[str, Any]:
    return {
        "op": "scale",
        "subtract": _floats(np.zeros(n_columns) if subtract is None else subtract),
        "divide": _floats(np.ones(n_columns) if divide is None else divide),
    }


def _min_max(step: Any, kind: str) -> dict[str, Any] | None:
    clip = [float(bound) for bound in step.feature_range] if step.clip else None
    return {"op": "affine", "multiply": _floats(step.scale_), "add": _floats(step.min_), "clip": clip}


def _one_hot(step: Any, kind: str) -> dict[str, Any] | None:
    if getattr(step, "infrequent_categories_", None) or getattr(step, "_infrequent_enabled", False):
        return None
    categories = [[_plain(value, kind) for value in known] for known in step.categories_]
    if any(value is None for known in categories for value in known):
        return None
    if step.drop_idx_ is not None:  # a dropped category is all zeros, like an unseen one
        for known, index in zip(categories, step.drop_idx_, strict=True):
            if index is not None:
                del known[int(index)]
    return {"op": "one_hot", "categories": categories}


def _ordinal(step: Any, kind: str) -> dict[str, Any] | None:
    if getattr(step, "_infrequent_enabled", False):
        return None
    categories = [[_plain(value, kind) for value in known] for known in step.categories_]
    if any(value is None for known in categories for value in known):
        return None
    return {"op": "ordinal", "categories": categories, "unknown": _plain(step.unknown_value, "number")}


def _bins(step: Any, kind: str) -> dict[str, Any] | None:
    edges = [_floats(column[1:-1]) for column in step.bin_edges_]
    return {"op": "bins", "edges": edges, "one_hot": step.encode != "ordinal"}


def _chain(step: Any, kind: str) -> dict[str, Any] | None:
    return {
        "op": "chain",
        "start": _floats(step.start_),
        "targets": list(step.targets_),
        "weights": [_floats(row) for row in step.weights_],
        "intercepts": _floats(step.intercepts_),
        "bounds": [_floats(row) for row in step.bounds_],
    }


def _neighbors(step: Any, kind: str) -> dict[str, Any] | None:
    donors = [[None if np.isnan(value) else float(value) for value in row] for row in step.donors_]
    return {"op": "neighbors", "donors": donors, "means": _floats(step.means_), "neighbors": step.neighbors}


def _limits(step: Any, kind: str) -> dict[str, Any] | None:
    name = "flag" if type(step).__name__ == "Flags" else "clip"
    return {"op": name, "low": _floats(step.low_), "high": _floats(step.high_)}


def _statistics(step: Any, kind: str) -> dict[str, Any] | None:
    return {"op": "statistics", "lengths": list(step.lengths), "statistics": list(step.statistics)}


def _quantile(step: Any, kind: str) -> dict[str, Any] | None:
    return {
        "op": "quantile",
        "knots": [_floats(column) for column in step.knots_],
        "before": [_floats(column) for column in step.before_],
        "after": [_floats(column) for column in step.after_],
    }


def _target(step: Any, kind: str) -> dict[str, Any] | None:
    if kind != "string":
        return None
    n_classes = len(step.encodings_) // len(step.categories_)
    unknown = _floats(np.atleast_1d(step.target_mean_))
    by_column = [
        np.stack(step.encodings_[start : start + n_classes], axis=1)
        for start in range(0, len(step.encodings_), n_classes)
    ]
    return {
        "op": "target",
        "categories": [[str(value) for value in known] for known in step.categories_],
        "means": [[_floats(row) for row in means] for means in by_column],
        "unknown": [unknown for _ in by_column],
    }


_CODES = ("one_hot", "ordinal", "bins", "target", "flag")
_OPERATIONS: dict[str, Callable[[Any, str], dict[str, Any] | None]] = {
    "SimpleImputer": _imputer,
    "ColumnImputer": _imputer,
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MinMaxScaler": _min_max,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "KBinsDiscretizer": _bins,
    "Bins": _bins,
    "ChainedImputer": _chain,
    "NeighborImputer": _neighbors,
    "Limits": _limits,
    "Flags": _limits,
    "WindowStatistics": _statistics,
    "Ranks": _quantile,
    "TargetMeans": _target,
    "TargetEncoder": _target,
}


def _plain(value: Any, kind: str) -> float | str | None:
    """Turn a fitted value into a JSON one; None for what JSON or the kind cannot hold."""
    if kind == "string":
        return value if isinstance(value, str) else None
    if isinstance(value, str) or value is None or not np.isfinite(value):
        return None
    return float(value)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
