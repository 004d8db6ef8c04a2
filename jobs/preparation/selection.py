"""Which features are kept, chosen by scikit-learn on the training rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from kit.errors import InputError

# Recursive elimination drops a tenth of the features at a time: refitting for each one takes minutes.
_SHARE = 0.1


class Selection(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Keep some of the features.

    Linear models choose on standardised copies of the features, so units do not decide.

    Attributes:
        kept_: Positions of the features kept, ascending, shape (n_kept,).
    """

    def __init__(
        self,
        method: str = "variance",
        keep: int | None = None,
        threshold: float = 0.0,
        strength: float = 1.0,
        classifies: bool = True,
    ) -> None:
        self.method = method
        self.keep = keep
        self.threshold = threshold
        self.strength = strength
        self.classifies = classifies

    def fit(self, values: Any, labels: Any = None) -> Selection:
        """Choose; values are float, shape (n_rows, n_features), labels shape (n_rows,).

        Raises:
            InputError: More features are to be kept than there are, or none would be.
        """
        wide = np.asarray(values, dtype=np.float64)
        self.n_features_in_ = wide.shape[1]
        if self.keep is not None and self.keep > wide.shape[1]:
            raise InputError(
                f"[prepare.select] keeps {self.keep} features, but there are {wide.shape[1]}",
                hint=f"set keep to at most {wide.shape[1]}",
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # convergence of a linear model that only ranks
            scores = self._scores(wide, np.asarray(labels) if labels is not None else None)
        passing = np.flatnonzero(scores > (self.threshold if self.method == "variance" else 0.0))
        if self.keep is not None:
            # the first of equal scores; by variance and l1, only what passes
            best = np.argsort(-scores, kind="stable")[: self.keep]
            bounded = self.method in ("variance", "l1")
            kept = np.intersect1d(best, passing) if bounded else np.sort(best)
        else:
            kept = passing
        if not len(kept):
            raise InputError(
                f"[prepare.select] method = {self.method!r} leaves none of {wide.shape[1]} features",
                hint="raise strength" if self.method == "l1" else "lower threshold",
            )
        self.kept_ = kept.astype(np.int64)
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Keep the chosen columns, shape (n_rows, n_kept)."""
        return np.asarray(np.asarray(values)[:, self.kept_])

    def _scores(self, wide: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Score every feature, the best highest."""
        from sklearn.feature_selection import RFE, chi2, mutual_info_classif, mutual_info_regression
        from sklearn.preprocessing import StandardScaler

        if self.method == "variance":
            return np.asarray(wide.var(axis=0))
        if self.method == "chi-squared":
            scores = np.asarray(chi2(wide, labels)[0])
            return np.where(np.isnan(scores), -1.0, scores)
        if self.method == "mutual-information":
            information = mutual_info_classif if self.classifies else mutual_info_regression
            return np.asarray(information(wide, labels, random_state=0))
        scaled = StandardScaler().fit_transform(wide)
        if self.method == "recursive":
            ranked = RFE(self._linear(), n_features_to_select=self.keep, step=_SHARE).fit(scaled, labels)
            return np.asarray(-ranked.ranking_.astype(np.float64))
        fitted = self._sparse(len(wide)).fit(scaled, labels)
        return np.asarray(np.abs(np.atleast_2d(fitted.coef_)).max(axis=0))

    def _linear(self) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        return LogisticRegression(max_iter=500) if self.classifies else Ridge()

    def _sparse(self, n_rows: int) -> Any:
        from sklearn.linear_model import Lasso, LogisticRegression

        if self.classifies:
            return LogisticRegression(
                C=self.strength, l1_ratio=1.0, solver="saga", max_iter=2000, tol=1e-3, random_state=0
            )
        # the same balance of loss and penalty as C gives a classifier
        return Lasso(alpha=1.0 / (self.strength * n_rows), max_iter=5000)


def check_not_negative(values: np.ndarray, *, features: Sequence[str]) -> None:
    """Refuse features that chi-squared cannot count.

    Raises:
        InputError: Names the first feature with a negative training value.
    """
    negative = (np.asarray(values) < 0).any(axis=0)
    if negative.any():
        name = features[int(negative.argmax())]
        raise InputError(
            f"[prepare.select] method = 'chi-squared' needs features that are not negative, but {name!r} is "
            f"{float(np.asarray(values)[:, int(negative.argmax())].min()):g} in a training row",
            hint="scale it with 'minmax', 'quantile' or 'bins', or use another method of selection",
        )
