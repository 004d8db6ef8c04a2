"""Permutation importance: how much worse a model gets when a column's values are shuffled.

The model is asked as it is, so whatever it is made of can be explained. Two columns that say the same share
what they are worth. Knows a function from tensors to answers; no files.

Source: Breiman, "Random Forests" (2001); Fisher et al., "All Models are Wrong, but Many are Useful" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kit.metrics import LOSSES, score
from kit.signature import Signature
from kit.tensors import Tensors

Answer = Callable[[Tensors], Mapping[str, np.ndarray]]

REPEATS = 5
#: A column of lists is explained value by value up to this many, and as a whole beyond.
MAX_PLACES = 256


@dataclass(frozen=True)
class Feature:
    """A column as a model reads it.

    Attributes:
        name: The column; with the place in brackets for one value of a list.
        tensor: Which input it is in.
        place: Where in the flat row; None for the whole row.
    """

    name: str
    tensor: str
    place: int | None


@dataclass(frozen=True)
class Importance:
    """What a column is worth.

    Attributes:
        column: Its name; see ``Feature``.
        mean: How much worse the metric is without it, in the metric's unit, averaged over the repeats.
        std: Standard deviation over the repeats.
    """

    column: str
    mean: float
    std: float


def features_of(signature: Signature) -> tuple[Feature, ...]:
    """Name every column a model reads, and where it stands."""
    features = []
    for spec in signature.inputs:
        if len(spec.columns) == spec.row_size:
            features += [Feature(name, spec.name, place) for place, name in enumerate(spec.columns)]
        elif spec.row_size <= MAX_PLACES:
            features += [
                Feature(f"{spec.columns[0]}[{place}]", spec.name, place) for place in range(spec.row_size)
            ]
        else:
            features.append(Feature(spec.columns[0], spec.name, None))
    return tuple(features)


def permutation_importance(
    answer: Answer,
    tensors: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    signature: Signature,
    metric: str,
    seed: int,
) -> tuple[Importance, ...]:
    """Measure every column, the most important first.

    Args:
        answer: The model.
        tensors: Rows it was not trained on, shape (n_rows, ...) each; not changed.
        labels: The truth, shape (n_rows,).
        signature: Which columns make which tensor.
        metric: What gets worse.
        seed: Of the shuffles; the same for every column.

    Raises:
        InputError: The rows do not determine the metric.
    """
    before = score(metric, labels, answer(dict(tensors)))
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(labels)) for _ in range(REPEATS)]
    sign = 1.0 if metric in LOSSES else -1.0
    found = []
    for feature in features_of(signature):
        worse = []
        for order in orders:
            changed = {**tensors, feature.tensor: _shuffled(tensors[feature.tensor], feature.place, order)}
            worse.append(sign * (score(metric, labels, answer(changed)) - before))
        found.append(Importance(feature.name, float(np.mean(worse)), float(np.std(worse))))
    return tuple(sorted(found, key=lambda each: -each.mean))


def _shuffled(array: np.ndarray, place: int | None, order: np.ndarray) -> np.ndarray:
    if place is None:
        return np.asarray(array[order])
    flat = array.reshape(len(array), -1).copy()
    flat[:, place] = flat[order, place]
    return flat.reshape(array.shape)
