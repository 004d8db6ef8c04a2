"""SHAP values: what each column adds to a single answer, summed up over rows.

The shap package's permutation explainer asks the model itself, over a background sample of rows, so any model
is explained by the columns a user knows. Needs the extra ``explain``.

Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions" (2017).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jobs.evaluation.importance import Answer, Feature, features_of
from kit.errors import InputError, MissingDependencyError, install_line
from kit.signature import Signature
from kit.tensors import Tensors

_BACKGROUND_ROWS = 50
_MAX_FEATURES = 512


@dataclass(frozen=True)
class ShapFigures:
    """What a column adds to answers.

    Attributes:
        column: Its name; see ``Feature``.
        mean_abs: Mean size of what it adds, over rows and classes: in probability, or in the label's unit.
    """

    column: str
    mean_abs: float


def require_shap() -> None:
    """Refuse to explain without the package, before anything else is done.

    Raises:
        MissingDependencyError: shap is not installed.
    """
    if importlib.util.find_spec("shap") is None:
        raise MissingDependencyError(
            "SHAP values need shap, which is not installed", hint=install_line("explain")
        )


def shap_values(
    answer: Answer, tensors: Mapping[str, np.ndarray], *, signature: Signature, seed: int
) -> tuple[ShapFigures, ...]:
    """Explain rows, and give each column's mean share, the largest first.

    Args:
        answer: The model.
        tensors: The rows that are explained; some of them are the background.
        signature: Which columns make which tensor.
        seed: Of the background and of the orders in which columns are added.

    Raises:
        InputError: There are too many columns to explain.
        MissingDependencyError: shap is not installed.
    """
    require_shap()
    import shap

    features = features_of(signature)
    if len(features) > _MAX_FEATURES:
        raise InputError(
            f"SHAP values of {len(features)} columns would take hours; {_MAX_FEATURES} are the most",
            hint="leave --shap out; permutation importance is always there",
        )
    codes, values = _coded(tensors, features)
    n_rows = len(codes)
    chosen = np.random.default_rng(seed).permutation(n_rows)[:_BACKGROUND_ROWS]
    output = "probabilities" if "probabilities" in {spec.name for spec in signature.outputs} else "value"

    def ask(rows: np.ndarray) -> np.ndarray:
        answered = answer(_decoded(rows, values, features, tensors))[output]
        return np.asarray(answered, dtype=np.float64)

    masker = shap.maskers.Independent(codes[chosen], max_samples=_BACKGROUND_ROWS)
    explainer = shap.explainers.Permutation(ask, masker, seed=seed)
    explained = explainer(codes, max_evals=2 * len(features) + 1, silent=True)
    size = np.abs(np.asarray(explained.values)).reshape(n_rows, len(features), -1).mean(axis=(0, 2))
    figures = [ShapFigures(feature.name, float(each)) for feature, each in zip(features, size, strict=True)]
    return tuple(sorted(figures, key=lambda each: -each.mean_abs))


def _coded(
    tensors: Mapping[str, np.ndarray], features: tuple[Feature, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Number the values of each column, because shap reads numbers and columns may hold strings or gaps."""
    n_rows = len(next(iter(tensors.values())))
    codes = np.zeros((n_rows, len(features)))
    values = []
    for index, feature in enumerate(features):
        flat = tensors[feature.tensor].reshape(n_rows, -1)
        if feature.place is None:
            values.append(flat)
            codes[:, index] = np.arange(n_rows)
        else:
            column = flat[:, feature.place]
            if column.dtype == object:
                column = column.astype(str)
            distinct, codes[:, index] = np.unique(column, return_inverse=True)
            values.append(distinct)
    return codes, values


def _decoded(
    rows: np.ndarray,
    values: list[np.ndarray],
    features: tuple[Feature, ...],
    tensors: Mapping[str, np.ndarray],
) -> Tensors:
    whole = rows.astype(np.int64)
    made: Tensors = {
        name: np.empty((len(rows), int(np.prod(array.shape[1:], dtype=np.int64))), dtype=array.dtype)
        for name, array in tensors.items()
    }
    for index, feature in enumerate(features):
        place = slice(None) if feature.place is None else feature.place
        made[feature.tensor][:, place] = values[index][whole[:, index]]
    return {name: array.reshape(len(rows), *tensors[name].shape[1:]) for name, array in made.items()}
