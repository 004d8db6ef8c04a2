"""Columns made ready for an encoder or a scaler, where scikit-learn's own step does not fit.

Rules on strings, terms of texts, statistics of lists, bins, target means, and the choice of features at the
end. Each is fitted by scikit-learn where there is something to fit.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import KBinsDiscretizer, QuantileTransformer, TargetEncoder

from jobs.preparation.patterns import compile_pattern
from kit.arithmetic import measure, rank
from kit.errors import InputError

#: What a term is, here and in the graph's tokeniser.
TOKENS = "[a-zA-Z0-9_]+"
_WORD = re.compile(r"\w+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


class Matching(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Make strings missing (empty) that do not match a column's patterns."""

    def __init__(self, patterns: tuple[tuple[str, ...], ...] = ()) -> None:
        self.patterns = patterns

    def fit(self, values: Any, labels: Any = None) -> Matching:
        """Do nothing: the patterns are given."""
        self.n_features_in_ = len(self.patterns)
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Match; objects of str, shape (n_rows, n_columns)."""
        strings = np.array(values, dtype=object)
        for column, patterns in enumerate(self.patterns):
            compiled = [compile_pattern(pattern) for pattern in patterns]
            for row, value in enumerate(strings[:, column]):
                if not all(pattern.fullmatch(value) for pattern in compiled):
                    strings[row, column] = ""
        return strings


class Terms(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Weigh the terms of one column of texts (TF-IDF, rows of length 1).

    A term is a run of ASCII letters, digits and underscores, in lower case. Other characters
    separate terms; they are taken out before lower-casing, which turns a few of them into ASCII.

    Attributes:
        vectorizer_: scikit-learn's TfidfVectorizer, fitted.
    """

    def __init__(self, most: int = 1000, ngrams: tuple[int, int] = (1, 1)) -> None:
        self.most = most
        self.ngrams = ngrams

    def fit(self, values: Any, labels: Any = None) -> Terms:
        """Fit terms and their weights; values are strings, shape (n_rows, 1).

        Raises:
            InputError: The texts hold no term at all.
        """
        self.n_features_in_ = 1
        self.vectorizer_ = TfidfVectorizer(
            token_pattern=TOKENS, max_features=self.most, ngram_range=tuple(self.ngrams)
        )
        try:
            self.vectorizer_.fit(_ascii(values))
        except ValueError as error:
            raise InputError(
                "the texts hold no term: no run of ASCII letters or digits",
                hint="leave the column out, or encode it as categories",
            ) from error
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Weigh; float32, shape (n_rows, n_terms)."""
        # rounded while it is sparse: dense in float64 it takes three times the memory of the result
        return np.asarray(self.vectorizer_.transform(_ascii(values)).astype(np.float32).toarray())


def lost_share(values: Any) -> float:
    """Give the share of words, 0 to 1, that ``Terms`` cannot read whole: they hold a letter beyond ASCII.

    Args:
        values: Strings, shape (n_rows, 1).
    """
    words = [word for value in np.asarray(values, dtype=object)[:, 0] for word in _WORD.findall(value)]
    return sum(not word.isascii() for word in words) / len(words) if words else 0.0


def _ascii(values: Any) -> list[str]:
    return [_NOT_ASCII.sub(" ", value) for value in np.asarray(values, dtype=object)[:, 0]]


class WindowStatistics(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Measure columns of lists, whose values stand side by side in the frame."""

    def __init__(self, lengths: tuple[int, ...] = (), statistics: tuple[str, ...] = ()) -> None:
        self.lengths = lengths
        self.statistics = statistics

    def fit(self, values: Any, labels: Any = None) -> WindowStatistics:
        """Do nothing: there is nothing to learn."""
        self.n_features_in_ = sum(self.lengths)
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Measure; float32, shape (n_rows, n_lists * n_statistics), list by list."""
        narrow = np.asarray(values, dtype=np.float32)
        ends = np.cumsum(self.lengths)
        return np.concatenate(
            [
                measure(narrow[:, end - length : end], statistics=self.statistics)
                for end, length in zip(ends, self.lengths, strict=True)
            ],
            axis=1,
        )


class Bins(KBinsDiscretizer):  # type: ignore[misc]  # scikit-learn has no types
    """scikit-learn's KBinsDiscretizer with edges that float32 holds exactly."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Bins:  # noqa: N803 - scikit-learn's name
        """Fit, and round each edge up: a float32 value lies on the same side of it as before."""
        super().fit(np.asarray(X, dtype=np.float64), y, sample_weight)
        for index, edges in enumerate(self.bin_edges_):
            self.bin_edges_[index] = _rounded_up(edges)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Sort into bins, without the names of columns: ``fit`` has not seen them either."""
        return np.asarray(super().transform(np.asarray(X)))


def _rounded_up(edges: np.ndarray) -> np.ndarray:
    narrow = np.asarray(edges).astype(np.float32)
    return np.where(narrow < edges, np.nextafter(narrow, np.float32(np.inf)), narrow).astype(np.float64)


class Ranks(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Scale numbers to their rank among the training rows, as scikit-learn's QuantileTransformer does.

    Its own graph ranks a value that many rows share differently.

    Attributes:
        knots_: Per column, the distinct quantiles.
        before_: Per column and knot, the lowest share at which it is the quantile.
        after_: Likewise, the highest.
    """

    def __init__(self, most: int = 1000) -> None:
        self.most = most

    def fit(self, values: Any, labels: Any = None) -> Ranks:
        """Fit with scikit-learn; values are float, shape (n_rows, n_columns)."""
        wide = np.asarray(values, dtype=np.float64)
        self.n_features_in_ = wide.shape[1]
        fitted = QuantileTransformer(n_quantiles=min(len(wide), self.most), subsample=None).fit(wide)
        self.knots_, self.before_, self.after_ = [], [], []
        for quantiles in fitted.quantiles_.T:
            knots, first, count = np.unique(quantiles, return_index=True, return_counts=True)
            self.knots_.append(knots)
            self.before_.append(fitted.references_[first])
            self.after_.append(fitted.references_[first + count - 1])
        return self

    def transform(self, values: Any) -> np.ndarray:
        """Rank; float32, shape (n_rows, n_columns), 0 to 1."""
        narrow = np.asarray(values, dtype=np.float32)
        return rank(narrow, knots=self.knots_, before=self.before_, after=self.after_)


class TargetMeans(TargetEncoder):  # type: ignore[misc]  # scikit-learn has no types
    """scikit-learn's TargetEncoder in float32; a converter of the kit's own knows several classes."""

    def fit_transform(self, X: Any, y: Any) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Fit, and encode each row without its own label; float32, shape (n_rows, n_means)."""
        return np.asarray(super().fit_transform(X, y), dtype=np.float32)

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803 - scikit-learn's name
        """Encode; float32, shape (n_rows, n_means)."""
        return np.asarray(super().transform(X), dtype=np.float32)
