"""Learning and validation curves: whether more rows, or another value of a setting, would help.

The project is trained again for each point and measured on its training and on its validation rows; the
held-out rows stay unseen, because settings are chosen by these curves.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs.evaluation.refit import Refit
from jobs.fitting.estimator_class import check_estimator
from jobs.fitting.estimators import check_settings
from jobs.tuning.space import FIXED
from kit.errors import ProjectError, SettingsError, nearest
from kit.metrics import UndefinedMetricError, score
from kit.project import Project
from kit.project_file import build
from kit.rows import Part, Split
from kit.settings import TrainSettings

_log = logging.getLogger("kit")

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
Scalar = int | float | bool | str


@dataclass(frozen=True)
class CurvePoint:
    """One training.

    Attributes:
        at: Rows it was trained on, or the value of the setting.
        train: The metric on the rows it was trained on; None where they do not determine it.
        validation: Likewise on the validation rows.
    """

    at: Scalar
    train: float | None
    validation: float | None


@dataclass(frozen=True)
class Variation:
    """One setting and the values it takes.

    Attributes:
        name: ``train.KEY`` or ``parameters.NAME``.
        values: In the order they were given.
    """

    name: str
    values: tuple[Scalar, ...]

    @classmethod
    def parse(cls, text: str, *, train: TrainSettings) -> Variation:
        """Read ``train.learning_rate=0.001,0.01``, and check every value.

        Args:
            text: As typed.
            train: The settings that are varied.

        Raises:
            SettingsError: There is no such key, a value breaks its rule, or a value is given twice.
        """
        name, _, listed = text.partition("=")
        values = tuple(_value(each.strip()) for each in listed.split(","))
        if len(set(map(str, values))) < len(values):
            raise SettingsError(f"validation_curve names a value twice: {listed}", hint="name each once")
        section, _, key = name.partition(".")
        if section == "train":
            varied = TrainSettings.model_fields.keys() - FIXED
            if key not in varied:
                said = f"{key!r} of [train] changes no figure" if key in FIXED else f"[train] has no {key!r}"
                raise SettingsError(f"validation_curve: {said}", hint=nearest(key, varied))
            for value in values:
                _changed(train, {key: value})
        return cls(name, values)


def check_variation(project: Project, variation: Variation) -> None:
    """Refuse a curve over what the factory or the estimator does not take, before anything is trained.

    Args:
        project: Names the factory or the estimator.
        variation: What is to be varied.

    Raises:
        ProjectError: It does not take the argument or a value.
        SettingsError: The key of train means nothing to an estimator.
    """
    section, _, key = variation.name.partition(".")
    if section == "train":
        # What the version was trained with was checked then; the key that is varied is what was written now.
        check_settings(project, TrainSettings(), varied=(key,))
        return
    if project.settings.model.estimator is not None:
        for value in variation.values:
            check_estimator(project, parameters={key: value})
        return
    factory = project.settings.model.factory or ""
    takes = inspect.signature(project.load_object(factory)).parameters
    free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())
    if key not in takes and not free:
        raise ProjectError(f"the factory {factory!r} takes no parameter {key!r}", hint=nearest(key, takes))


def learning_curve(refit: Refit, split: Split, *, metric: str) -> tuple[CurvePoint, ...]:
    """Train on growing shares of the training rows; the smaller share is part of the larger.

    Args:
        refit: How the project is trained.
        split: Its rows.
        metric: What is measured.
    """
    order = _mixed(split.train, n_classes=len(split.classes), seed=refit.settings.seed)
    n_rows = len(order)
    sizes = sorted({max(2, len(split.classes), round(share * n_rows)) for share in SHARES})
    points = []
    for size in sizes:
        some = replace(split, train=split.train.take(np.sort(order[:size])))
        points.append(_point(refit, some, name=f"learning-{size}", at=size, metric=metric))
        _tell(f"on {size:,} rows", points[-1], metric=metric)
    return tuple(points)


def validation_curve(
    refit: Refit, split: Split, *, variation: Variation, metric: str
) -> tuple[CurvePoint, ...]:
    """Train with each value of a setting.

    Args:
        refit: How the project is trained.
        split: Its rows.
        variation: The setting and its values.
        metric: What is measured.
    """
    section, _, key = variation.name.partition(".")
    points = []
    for number, value in enumerate(variation.values, start=1):
        if section == "train":
            changed = replace(refit, settings=_changed(refit.settings, {key: value}))
        else:
            changed = refit.with_parameters({key: value})
        points.append(_point(changed, split, name=f"value-{number}", at=value, metric=metric))
        _tell(f"with {variation.name} = {value}", points[-1], metric=metric)
    return tuple(points)


def _point(refit: Refit, split: Split, *, name: str, at: Scalar, metric: str) -> CurvePoint:
    def work() -> dict[str, Any]:
        answer = refit.answer(split)
        found: dict[str, Any] = {}
        for key, part in (("train", split.train), ("validation", split.validation)):
            try:
                found[key] = score(metric, part.labels, answer(part.tensors))
            except UndefinedMetricError:
                found[key] = None
        return found

    figures = refit.remembered(name, work)
    return CurvePoint(at, figures["train"], figures["validation"])


def _tell(how: str, point: CurvePoint, *, metric: str) -> None:
    found = "undetermined" if point.validation is None else f"{point.validation:.4f}"
    _log.info("trained %s: validation %s %s", how, metric, found)


def _mixed(part: Part, *, n_classes: int, seed: int) -> np.ndarray:
    """Order rows at random so that every beginning holds the classes in their shares."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(part.rows))
    if not n_classes:
        return order
    labels = part.labels[order]
    place = np.zeros(len(order))
    for index in range(n_classes):
        mine = np.flatnonzero(labels == index)
        place[mine] = (np.arange(len(mine)) + 0.5) / max(len(mine), 1)
        if len(mine):
            place[mine[0]] = 0.0  # one row of each class comes first
    return order[np.argsort(place, kind="stable")]


def _changed(settings: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    return build(TrainSettings, {**settings.model_dump(), **values}, where="validation_curve: [train]")


def _value(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if not text:
        raise SettingsError("validation_curve names an empty value", hint="write NAME=VALUE,VALUE")
    return text
