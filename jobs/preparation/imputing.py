"""Missing values filled: from their own column, or by MICE and nearest neighbours from the others.

scikit-learn fits them; applying them is ``kit.arithmetic``, which an ONNX graph and a device repeat
operation by operation. scikit-learn's own ``IterativeImputer`` has no ONNX converter, and the graph of its
``KNNImputer`` answers differently where donors are equally far.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer

from kit.arithmetic import fill_by_chain, fill_by_neighbors

#: Most training rows kept as donors; each is a row of the graph's constants and of every distance.
MOST_DONORS = 500
_ROUNDS = 5  # as many as R's mice; each adds a prediction per column to the graph


class ColumnImputer(SimpleImputer):  # type: ignore[misc]  # scikit-learn has no types
    """scikit-learn's SimpleImputer for numbers, with means summed in float64.

    Its own sums take the dtype they are given: of a million float32 values around 1000, row after row,
    the mean is off by 9.
    """

    def fit(self, X: Any, y: Any = None) -> ColumnImputer:  # noqa: N803 - scikit-learn's name
        """Fit; a frame or an array of floats, shape (n_rows, n_columns)."""
        super().fit(X.astype(np.float64), y)
        return self


class ChainedImputer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fill each column by a Bayesian ridge regression on the others, in rounds (MICE, one imputation).

    A prediction is held within the smallest and largest value the column had while fitting.

    Attributes:
        start_: Means, shape (n_columns,).
        targets_: The column each prediction fills.
        weights_: Shape (n_predictions, n_columns).
        intercepts_: Shape (n_predictions,).
        bounds_: Shape (2, n_columns).
    """

    def fit(self, values: Any, labels: Any = None) -> ChainedImputer:
        """Fit with scikit-learn's IterativeImputer; values are float, shape (n_rows, n_columns)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - makes the next line importable
        from sklearn.impute import IterativeImputer
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no types

        wide = np.asarray(values, dtype=np.float64)
        self.n_features_in_ = wide.shape[1]
        self.bounds_ = np.stack([np.nanmin(wide, axis=0), np.nanmax(wide, axis=0)])
        imputer = IterativeImputer(
            max_iter=_ROUNDS,
            random_state=0,
            min_value=self.bounds_[0],
            # it refuses a column whose bounds are equal, which is a constant one
            max_value=np.maximum(self.bounds_[1], np.nextafter(self.bounds_[0], np.inf)),
        )
        # hundreds of small fits: threads of BLAS only wait for each other
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            imputer.fit(wide)
        self.start_ = np.asarray(imputer.initial_imputer_.statistics_, dtype=np.float64)
        sequence = imputer.imputation_sequence_
        self.targets_ = [int(step.feat_idx) for step in sequence]
        self.weights_ = np.zeros((len(sequence), wide.shape[1]))
        self.intercepts_ = np.zeros(len(sequence))
        for index, step in enumerate(sequence):
            self.weights_[index, step.neighbor_feat_idx] = step.estimator.coef_
            self.intercepts_[index] = step.estimator.intercept_
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Fill what is NaN; float32, shape (n_rows, n_columns)."""
        return fill_by_chain(
            np.asarray(values, dtype=np.float32),
            start=self.start_,
            targets=self.targets_,
            weights=self.weights_,
            intercepts=self.intercepts_,
            bounds=self.bounds_,
        )


class NeighborImputer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Fill by the mean of the nearest training rows, as scikit-learn's KNNImputer does.

    With more than ``MOST_DONORS`` training rows, a fixed random choice of that many are the donors.

    Attributes:
        donors_: Shape (n_donors, n_columns); NaN where missing.
        means_: Means of all training rows, shape (n_columns,).
    """

    def __init__(self, neighbors: int = 5) -> None:
        self.neighbors = neighbors

    def fit(self, values: Any, labels: Any = None) -> NeighborImputer:
        """Keep the donors; values are float, shape (n_rows, n_columns)."""
        wide = np.asarray(values, dtype=np.float32).astype(np.float64)
        self.n_features_in_ = wide.shape[1]
        self.means_ = np.nanmean(wide, axis=0)
        if len(wide) > MOST_DONORS:
            chosen = np.random.default_rng(0).choice(len(wide), MOST_DONORS, replace=False)
            wide = wide[np.sort(chosen)]
        self.donors_ = wide
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Fill what is NaN; float32, shape (n_rows, n_columns)."""
        return fill_by_neighbors(
            np.asarray(values, dtype=np.float32),
            donors=self.donors_,
            means=self.means_,
            neighbors=self.neighbors,
        )
