"""Rows made ready for a model: the split, and the preprocessing fitted on its training part.

Training, tuning, evaluation and compression all start here, so they learn from the same rows. It
knows nothing of Ray or networks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.data import Part, Split, load
from kit.errors import ProjectError
from kit.project import Project
from kit.signature import Signature

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class Prepared:
    """Rows as the model reads them, and the transformer that made them so.

    Attributes:
        split: The rows in their three parts, as tensors.
        signature: Inputs and outputs.
        transformer: Fitted on the training rows; None where the network reads the input itself.
        train: What is learned from, float32, shape (n_rows, ...).
        validation: Likewise, for early stopping.
    """

    split: Split
    signature: Signature
    transformer: Any | None
    train: np.ndarray
    validation: np.ndarray

    @property
    def n_features(self) -> int:
        """How many values of a row the network reads."""
        return int(np.prod(self.train.shape[1:]))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the training loop reads."""
        return {
            "train_x": self.train,
            "train_y": self.split.train.labels,
            "validation_x": self.validation,
            "validation_y": self.split.validation.labels,
        }

    def read(self, part: Part) -> np.ndarray:
        """Give some rows as the network reads them: float32, shape (n_rows, ...)."""
        if self.transformer is None:
            return np.asarray(part.tensors[_only_input(self.signature)])
        from jobs.preparation.frame import to_features

        return to_features(self.transformer, part.tensors, signature=self.signature)


def prepare_rows(project: Project) -> Prepared:
    """Read, check and split a project's table, and fit the preprocessing on the training part.

    Raises:
        InputError: The data breaks a rule.
        ProjectError: The preprocessing cannot be built, fitted or exported.
    """
    return fit_preparation(project, load(project))


def fit_preparation(project: Project, split: Split) -> Prepared:
    """Fit the project's preprocessing on the training part of a split; see ``prepare_rows``."""
    signature = project.settings.signature(split.classes)
    if project.settings.model.preprocessing is None:
        name = _only_input(signature)
        return Prepared(split, signature, None, split.train.tensors[name], split.validation.tensors[name])
    from jobs.preparation.frame import to_features, to_frame

    reference = project.settings.model.preprocessing
    transformer = _own_transformer(project, reference)
    try:
        transformer.fit(to_frame(split.train.tensors, signature=signature), split.train.labels)
    except (ValueError, TypeError) as error:
        raise ProjectError(
            f"the preprocessing {reference!r} cannot be fitted: {error}",
            hint="check its columns against [[data.inputs]]",
        ) from error
    _log.info("fitted the preprocessing on %d rows", len(split.train.rows))
    return Prepared(
        split,
        signature,
        transformer,
        to_features(transformer, split.train.tensors, signature=signature),
        to_features(transformer, split.validation.tensors, signature=signature),
    )


def _own_transformer(project: Project, reference: str) -> Any:
    """Build the transformer that the project's own Python describes."""
    from sklearn.base import BaseEstimator

    from jobs.preparation.frame import check_transformer

    make = project.load_object(reference)
    try:
        transformer = make()
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(f"{reference!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(transformer, BaseEstimator) or not hasattr(transformer, "transform"):
        raise ProjectError(
            f"{reference!r} returned a value of type {type(transformer).__name__}",
            hint="return an unfitted scikit-learn transformer",
        )
    check_transformer(transformer)
    return transformer


def _only_input(signature: Signature) -> str:
    specs = signature.inputs
    if len(specs) != 1 or specs[0].dtype != "float32" or specs[0].nullable:
        raise ProjectError(
            "without preprocessing the network reads one float32 input without missing values, but "
            "[[data.inputs]] names " + ", ".join(f"{spec.name} ({spec.dtype})" for spec in specs),
            hint="say under [[prepare.features]] how columns become numbers",
        )
    return specs[0].name
