"""Extreme values: found against limits fitted on training rows, or isolated by a forest.

Everything that decides is exact in float32, so the graph decides alike: limits are float32 numbers, and
a forest adds path lengths that float32 sums without rounding. What is done about an outlier (clip, flag,
drop) is for ``jobs.preparation.build`` to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

LIMITS = {"iqr": 1.5, "z-score": 3.0, "isolation-forest": 0.01}
# Path lengths of a hundred trees stay below 2^11; in steps of 2^-12, float32 sums them exactly in any order.
_STEP = 2.0**-12
_TREES = 100


class Limits(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Move values beyond a column's limits to the limit.

    Attributes:
        low_: float32, shape (n_columns,).
        high_: Likewise.
    """

    def __init__(self, method: str = "iqr", limit: float = 1.5) -> None:
        self.method = method
        self.limit = limit

    def fit(self, values: Any, labels: Any = None) -> Limits:
        """Fit the limits; values are float, shape (n_rows, n_columns)."""
        wide = np.asarray(values, dtype=np.float64)
        self.n_features_in_ = wide.shape[1]
        if self.method == "iqr":
            low, high = np.nanpercentile(wide, [25, 75], axis=0)
            reach = self.limit * (high - low)
        else:
            low = high = np.nanmean(wide, axis=0)
            reach = self.limit * np.nanstd(wide, axis=0)
        self.low_ = (low - reach).astype(np.float32)
        self.high_ = (high + reach).astype(np.float32)
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Clip; float32, shape (n_rows, n_columns)."""
        return np.asarray(np.clip(np.asarray(values, dtype=np.float32), self.low_, self.high_))

    def beyond(self, values: Any) -> np.ndarray:
        """Say which values are beyond the limits: bool, shape (n_rows, n_columns)."""
        narrow = np.asarray(values, dtype=np.float32)
        return np.asarray((narrow < self.low_) | (narrow > self.high_))


class Flags(Limits):
    """Say which values are beyond a column's limits: 1 or 0 each."""

    def transform(self, values: Any) -> np.ndarray:
        """Flag; float32, shape (n_rows, n_columns)."""
        return self.beyond(values).astype(np.float32)


class Isolated(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Say which rows an isolation forest isolates early: one column of 1 or 0.

    Attributes:
        forest_: scikit-learn's IsolationForest.
        leaves_: Per tree, each node's path length in steps of 2^-12; 0 for inner nodes.
        bound_: Rows whose path lengths sum to less are outliers; no sum equals it.

    Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008.
    """

    def __init__(self, share: float = 0.01) -> None:
        self.share = share

    def fit(self, values: Any, labels: Any = None) -> Isolated:
        """Fit a forest and the bound that isolates the share of the training rows."""
        from sklearn.ensemble import IsolationForest

        narrow = np.asarray(values, dtype=np.float32)
        self.n_features_in_ = narrow.shape[1]
        self.forest_ = IsolationForest(n_estimators=_TREES, random_state=0).fit(narrow)
        self.leaves_ = [_path_lengths(tree.tree_) for tree in self.forest_.estimators_]
        wanted = float(np.quantile(self.path_lengths(narrow), self.share))
        self.bound_ = (np.ceil(wanted / _STEP) - 0.5) * _STEP
        return self

    def path_lengths(self, values: np.ndarray) -> np.ndarray:
        """Sum a row's path lengths over the trees, shape (n_rows,)."""
        total = np.zeros(len(values))
        for tree, lengths in zip(self.forest_.estimators_, self.leaves_, strict=True):
            total += lengths[tree.tree_.apply(values)]
        return total

    def transform(self, values: Any) -> np.ndarray:
        """Flag; float32, shape (n_rows, 1)."""
        narrow = np.ascontiguousarray(values, dtype=np.float32)
        return np.asarray((self.path_lengths(narrow) < self.bound_).astype(np.float32)[:, None])

    def beyond(self, values: Any) -> np.ndarray:
        """Say which rows are isolated: bool, shape (n_rows, 1)."""
        return np.asarray(self.transform(values) > 0)


def _path_lengths(tree: Any) -> np.ndarray:
    """Give each leaf's depth and the mean depth of a tree grown on its rows, rounded to the step."""
    depths = np.zeros(tree.node_count)
    for node in range(tree.node_count):  # a parent comes before its children
        for child in (tree.children_left[node], tree.children_right[node]):
            if child >= 0:
                depths[child] = depths[node] + 1
    n_rows = tree.n_node_samples.astype(np.float64)
    grown = np.where(n_rows == 2, 1.0, 0.0)
    many = n_rows > 2
    grown[many] = 2 * (np.log(n_rows[many] - 1) + np.euler_gamma) - 2 * (n_rows[many] - 1) / n_rows[many]
    lengths = np.round((depths + grown) / _STEP) * _STEP
    return np.where(tree.children_left < 0, lengths, 0.0)
