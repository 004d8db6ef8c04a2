"""Rows made ready for a model: the split, and the preprocessing fitted on its training part.

Training, tuning, evaluation and compression all start here, so they learn from the same rows. It
knows nothing of Ray or networks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from jobs.preparation.frame import (
    check_transformer,
    frame_columns,
    steps_of,
    to_features,
    to_frame,
    to_matrix,
)
from jobs.preparation.plan import Plan, plan_features
from jobs.preparation.raw import blank_rows, edge_rows, raw_input
from kit.cleaning import Change
from kit.data import load
from kit.errors import InputError, KitError, ProjectError
from kit.project import Project
from kit.rows import Part, Split
from kit.signature import Signature
from kit.tensors import TensorSpec

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class Prepared:
    """Rows as the model reads them, and the transformer that made them so.

    Attributes:
        split: The rows in their three parts, as tensors; of the training part, those that are left.
        signature: Inputs and outputs.
        transformer: Fitted on the training rows; None where the network reads the input itself.
        train: What is learned from, shape (n_rows, ...): float32, or the integers of the only input.
        validation: Likewise, for early stopping.
        dropped: What leaving training rows out did.
        features: Names of what the network reads, such as ``age`` or ``color=red``; empty where a
            transformer of the project's own does not name them.
        planned: Whether [[prepare.features]] describes the transformer, not the project's own Python.
    """

    split: Split
    signature: Signature
    transformer: Any | None
    train: np.ndarray
    validation: np.ndarray
    dropped: tuple[Change, ...] = ()
    features: tuple[str, ...] = ()
    planned: bool = False

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """What was done to the table, then what each fitted step does to the training rows.

        Found when it is asked for: steps run again for it, which trials and folds need not wait for.
        """
        if not self.planned:
            return self.split.changes
        from jobs.preparation.changes import describe_changes

        frame = to_frame(self.split.train.tensors, signature=self.signature)
        return (*self.split.changes, *self.dropped, *describe_changes(self.transformer, frame))

    @property
    def n_features(self) -> int:
        """How many values of a row the network reads."""
        return int(np.prod(self.train.shape[1:]))

    @property
    def blank(self) -> np.ndarray:
        """Two rows that stand in for training rows in a file, where only shape and type count."""
        if self.transformer is None:
            return blank_rows(raw_input(self.signature))
        return np.zeros((2, *self.train.shape[1:]), dtype=self.train.dtype)

    @property
    def trial(self) -> np.ndarray:
        """A few rows to try a network on; of integers the smallest and the largest allowed are among them."""
        if self.transformer is None:
            return np.concatenate([self.train[:2], edge_rows(raw_input(self.signature))])
        return self.train[:2]

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
        """Give some rows as the network reads them, in the type of ``train``, shape (n_rows, ...)."""
        if self.transformer is None:
            return np.asarray(part.tensors[raw_input(self.signature).name])
        return to_features(self.transformer, part.tensors, signature=self.signature)


def prepare_rows(project: Project) -> Prepared:
    """Read, check and split a project's table, and fit the preprocessing on the training part.

    Raises:
        InputError: The data breaks a rule.
        SettingsError: [[prepare.features]] or [prepare.select] asks for what cannot be done.
        ProjectError: The preprocessing cannot be built, fitted or exported; there is none, and the inputs
            cannot be read as they are.
    """
    if plan_features(project) is None and project.settings.model.preprocessing is None:
        _raw_input(project, project.settings.signature(()))  # refused before the table is read
    prepared = fit_preparation(project, load(project))
    if prepared.transformer is not None:
        _warn_of_lost_words(prepared)
    return prepared


def fit_preparation(project: Project, split: Split) -> Prepared:
    """Fit the project's preprocessing on the training part of a split; see ``prepare_rows``."""
    signature = project.settings.signature(split.classes)
    plan = plan_features(project)
    if plan is not None:
        return _fit_plan(project, split, plan=plan, signature=signature)
    reference = project.settings.model.preprocessing
    if reference is None:
        spec = _raw_input(project, signature)
        return Prepared(
            split,
            signature,
            None,
            split.train.tensors[spec.name],
            split.validation.tensors[spec.name],
            features=frame_columns(spec),
        )
    return _fit_own(project, split, reference=reference, signature=signature)


def _warn_of_lost_words(prepared: Prepared) -> None:
    """Say once how many words of a text column TF-IDF takes apart; folds and trials do not repeat it."""
    from jobs.preparation.columns import Terms, lost_share

    terms = [step for _, step in steps_of(prepared.transformer, "") if isinstance(step, Terms)]
    if not terms:
        return
    from jobs.preparation.build import fitted_parts

    frame = to_frame(prepared.split.train.tensors, signature=prepared.signature)
    for _, steps, columns in fitted_parts(prepared.transformer):
        if any(isinstance(step, Terms) for _, step in steps) and (share := lost_share(frame[columns])):
            _log.warning(
                "text = 'tf-idf' takes words apart at letters beyond a to z: %.1f %% of the words of %r hold "
                "one; spell them in ASCII (ue for ü) before training and asking, or encode the column",
                100 * share,
                columns[0],
            )


def _fit_own(project: Project, split: Split, *, reference: str, signature: Signature) -> Prepared:
    """Fit the transformer that the project's own Python describes."""
    transformer = _own_transformer(project, reference)
    frame = to_frame(split.train.tensors, signature=signature)
    try:
        if hasattr(transformer, "fit_transform"):  # differs from what follows where labels are cross-fitted
            fitted = transformer.fit_transform(frame, split.train.labels)
        else:
            fitted = transformer.fit(frame, split.train.labels).transform(frame)
        train = to_matrix(fitted)
        validation = to_features(transformer, split.validation.tensors, signature=signature)
    except KitError:
        raise
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(
            f"the preprocessing {reference!r} cannot be fitted: {type(error).__name__}: {error}",
            hint="check its columns against [[data.inputs]]",
        ) from error
    _log.info("fitted the preprocessing on %d rows", len(train))
    return Prepared(
        split,
        signature,
        transformer,
        train,
        validation,
        features=_own_names(transformer),
    )


def _fit_plan(project: Project, split: Split, *, plan: Plan, signature: Signature) -> Prepared:
    """Drop outliers where that is asked for, and fit what [[prepare.features]] describes."""
    # scikit-learn takes a second to import; commands that prepare nothing do not wait for it
    from jobs.preparation.build import build_transformer, feature_names, fit_transformer
    from jobs.preparation.changes import check_fitted, check_values, rows_to_drop
    from jobs.preparation.selection import check_not_negative

    frame = to_frame(split.train.tensors, signature=signature)
    check_values(plan, frame)
    drop, dropped = rows_to_drop(plan, frame)
    if drop.any():
        split = replace(split, train=_without(split, drop))
        frame = to_frame(split.train.tensors, signature=signature)
    prepare = project.prepare()
    transformer = build_transformer(plan, select=prepare.select, n_classes=len(split.classes))
    try:
        if prepare.select is not None and prepare.select.method == "chi-squared":
            before = build_transformer(plan, select=None, n_classes=len(split.classes))
            counts = fit_transformer(before, frame, split.train.labels)
            check_not_negative(counts, features=feature_names(before))
        train = fit_transformer(transformer, frame, split.train.labels)
    except KitError:
        raise
    except (ValueError, TypeError) as error:
        raise ProjectError(
            f"[[prepare.features]] cannot be fitted: {error}", hint="change the entry the message is about"
        ) from error
    check_fitted(transformer)
    _log.info("fitted [[prepare.features]] on %d rows: %d features", *train.shape)
    return Prepared(
        split,
        signature,
        transformer,
        train,
        to_features(transformer, split.validation.tensors, signature=signature),
        dropped=tuple(dropped),
        features=feature_names(transformer),
        planned=True,
    )


def _without(split: Split, drop: np.ndarray) -> Part:
    part = split.train.take(np.flatnonzero(~drop))
    gone = set(range(len(split.classes))) - set(np.unique(part.labels).tolist()) if split.classes else set()
    if gone:
        raise InputError(
            f"outlier_action = 'drop' leaves no training row of class {split.classes[min(gone)]!r}",
            hint="raise outlier_limit, or use outlier_action = 'clip' or 'flag'",
        )
    return part


def _own_names(transformer: Any) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in transformer.get_feature_names_out())
    except (AttributeError, ValueError, TypeError):
        return ()  # a step that does not name what it gives


def _own_transformer(project: Project, reference: str) -> Any:
    """Build the transformer that the project's own Python describes."""
    from sklearn.base import BaseEstimator

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


def _raw_input(project: Project, signature: Signature) -> TensorSpec:
    return raw_input(signature, integers=project.settings.model.estimator is None)
