"""Where the splits of fitted trees stand: well between two values of the training rows, on none of them.

XGBoost splits at a training value, the others half way between two, which on a grid of whole numbers is
the value of a row to come. There the last digit of a computed feature decides, and an engine may compute
that digit otherwise. Training rows fall as they fell; nothing here knows of graphs.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

#: How far from the lower to the upper value: sqrt(2) - 1, which no short fraction comes near, so that values
#: on a regular grid keep clear of it.
_SHARE = 2.0**0.5 - 1.0


def settle_thresholds(estimator: Any, rows: np.ndarray, *, threads: int) -> None:
    """Move every split of a fitted estimator's trees between the training values on its two sides.

    Args:
        estimator: Fitted; it is changed. One without trees stays as it is.
        rows: What it was fitted to, float32, shape (n_rows, n_features); NaN is a missing value.
        threads: CPU threads its answers may take.
    """
    package = type(estimator).__module__.partition(".")[0]
    values = _Values(rows)
    if package == "xgboost":
        _settle_xgboost(estimator, values, threads=threads)
    elif package == "lightgbm":
        _settle_lightgbm(estimator, values, threads=threads)
    else:
        _settle_trees(estimator, values, columns=np.arange(rows.shape[1]))


class _Values:
    """The distinct values of each feature, looked up once it is split on."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._found: dict[int, np.ndarray] = {}

    def between(self, features: np.ndarray, thresholds: np.ndarray, *, below: bool) -> np.ndarray:
        """Give thresholds that divide the rows alike, as float64 that float32 holds.

        Args:
            features: Indices, shape (n_splits,).
            thresholds: Shape (n_splits,).
            below: Whether a value equal to the threshold goes to the upper side.
        """
        moved = np.array(thresholds, dtype=np.float64)
        for feature in np.unique(features):
            chosen = features == feature
            moved[chosen] = _between(self._of(int(feature)), moved[chosen], below=below)
        return moved

    def _of(self, feature: int) -> np.ndarray:
        if feature not in self._found:
            column = self._rows[:, feature]
            self._found[feature] = np.unique(column[np.isfinite(column)]).astype(np.float64)
        return self._found[feature]


def _between(values: np.ndarray, thresholds: np.ndarray, *, below: bool) -> np.ndarray:
    """Move thresholds of one feature; ``values`` are its own, sorted and distinct."""
    if not len(values):
        return thresholds
    above = np.searchsorted(values, thresholds, side="left" if below else "right")
    inner = (above > 0) & (above < len(values))
    low, high = values[np.maximum(above - 1, 0)], values[np.minimum(above, len(values) - 1)]
    moved = (low + _SHARE * (high - low)).astype(np.float32).astype(np.float64)
    # Two neighbouring float32 leave no room: there the split stands on the one that its comparison allows.
    edge = (moved <= low) if below else (moved >= high)
    moved = np.where(edge, high if below else low, moved)
    # Beyond all values (where only missing ones go one way) it keeps a step away from the outermost.
    steps = np.diff(values)
    first, last = (steps[0], steps[-1]) if len(steps) else (abs(values[0]) + 1.0,) * 2
    outside = np.where(
        above == 0,
        np.minimum(thresholds, np.float64(np.float32(values[0] - _SHARE * first))),
        np.maximum(thresholds, np.float64(np.float32(values[-1] + _SHARE * last))),
    )
    return np.asarray(np.where(inner, moved, outside), dtype=np.float64)


def _settle_xgboost(estimator: Any, values: _Values, *, threads: int) -> None:
    booster = estimator.get_booster()
    model = json.loads(bytes(booster.save_raw("json")).decode())
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        # The text has the digits that name a float32, and 0.9 is not the float32 that it names.
        conditions = np.array(tree["split_conditions"], dtype=np.float32).astype(np.float64)
        # A leaf keeps its answer where others keep their threshold; type 1 is a split by category.
        splits = (np.array(tree["left_children"]) >= 0) & (np.array(tree["split_type"]) == 0)
        features = np.array(tree["split_indices"])[splits]
        conditions[splits] = values.between(features, conditions[splits], below=True)
        tree["split_conditions"] = conditions.tolist()
    booster.load_model(bytearray(json.dumps(model).encode()))
    booster.set_param({"nthread": threads})  # which loading forgets


def _settle_lightgbm(estimator: Any, values: _Values, *, threads: int) -> None:
    import lightgbm

    def settled(tree: re.Match[str]) -> str:
        features, thresholds = (
            np.array(tree[2].split(), dtype=np.int64),
            np.array(tree[4].split(), dtype=float),
        )
        numeric = (np.array(tree[6].split(), dtype=np.int64) & 1) == 0
        thresholds[numeric] = values.between(features[numeric], thresholds[numeric], below=False)
        return tree[1] + tree[2] + tree[3] + " ".join(map(repr, thresholds.tolist())) + tree[5] + tree[6]

    text = estimator.booster_.model_to_string()
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)  # lengths in bytes, which change
    lines = r"^(split_feature=)([^\n]+)(\n(?:[^\n]+\n)*?threshold=)([^\n]+)(\ndecision_type=)([^\n]+)$"
    text = re.sub(lines, settled, text, flags=re.MULTILINE)
    estimator._Booster = lightgbm.Booster(params={"num_threads": threads, "verbosity": -1}, model_str=text)


def _settle_trees(estimator: Any, values: _Values, *, columns: np.ndarray) -> None:
    """Walk scikit-learn's trees; a bagged one may read some of the columns alone."""
    tree = getattr(estimator, "tree_", None)
    if tree is not None:
        splits = tree.children_left >= 0
        features = columns[tree.feature[splits]]
        tree.threshold[splits] = values.between(features, tree.threshold[splits], below=False)
        return
    read = getattr(estimator, "estimators_features_", None)
    for index, part in enumerate(np.ravel(getattr(estimator, "estimators_", ()))):
        _settle_trees(part, values, columns=columns if read is None else columns[read[index]])
    for part in getattr(estimator, "calibrated_classifiers_", ()):
        _settle_trees(part.estimator, values, columns=columns)
