"""Training a version again on other rows, in this process, for folds and curves.

It is trained with what its lineage says it was trained with, whatever kit.toml says now, so that a tuned
version is judged as itself. The preprocessing is fitted anew on each training part. Nothing is exported or
registered: the fitted Python answers. Finished trainings are kept on disk, so an interrupted evaluation goes
on with the next one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.network import build_network
from jobs.preparation.prepared import Prepared, fit_preparation
from kit.errors import InputError, SettingsError
from kit.files import canonical_json, write_atomic
from kit.model_version import ModelVersion
from kit.project import Project
from kit.project_file import build
from kit.rows import Split
from kit.settings import ModelSettings, PrepareSettings, TrainSettings
from kit.settings.fields import Settings
from kit.tensors import Tensors

_log = logging.getLogger("kit")

Answer = Callable[[Mapping[str, np.ndarray]], Tensors]
S = TypeVar("S", bound=Settings)
_TRAIN_AGAIN = "restore kit.toml, or train again: kit train"


@dataclass(frozen=True)
class Recipe:
    """What a version was made by.

    Attributes:
        project: The project as it is now, with the version's model parameters.
        train: The settings it was trained with, for one process: what several workers did in a step, one
            worker does in more accumulated batches.
    """

    project: Project
    train: TrainSettings


def recipe_of(project: Project, version: ModelVersion, *, name: str) -> Recipe:
    """Take from a version's lineage what it was trained with.

    Args:
        project: Whose Python and rows are used.
        version: Verified.
        name: Of the version, for messages.

    Raises:
        InputError: It was compressed, its lineage does not say enough or says what no setting is called,
            or kit.toml names another model or another preparation now.
    """
    lineage = version.manifest.get("lineage", {})
    parent = lineage.get("parent", {}).get("number")
    if "compress" in lineage:
        raise InputError(
            f"{name} was made from version {parent} by kit compress; folds and curves train from the start",
            hint=f"train the version it was made from instead: kit evaluate {version.name}@{parent}",
        )
    if not lineage.get("model") or not lineage.get("train"):
        raise InputError(
            f"the lineage of {name} does not say what it was trained with, so it cannot be trained again",
            hint="evaluate a version that kit train or kit tune has made",
        )
    where = f"the lineage of {name}"
    made, now = _recorded(ModelSettings, lineage["model"], where=where), project.settings.model
    differing = [
        f"{key} = {getattr(now, key)!r}, not {getattr(made, key)!r}"
        for key in ("factory", "estimator", "preprocessing")
        if getattr(now, key) != getattr(made, key)
    ]
    if differing:
        raise InputError(
            f"[model] is not what {name} was trained with: {'; '.join(differing)}", hint=_TRAIN_AGAIN
        )
    prepare = _recorded(PrepareSettings, lineage.get("prepare", {}), where=where)
    if prepare.steps != project.prepare().steps:
        raise InputError(f"[prepare] is not what {name} was trained with", hint=_TRAIN_AGAIN)
    train = _recorded(TrainSettings, lineage["train"], where=where)
    whole = project.settings.model_copy(update={"model": made})
    alone = {
        "workers": 1,
        "min_workers": None,
        "accumulation_steps": train.accumulation_steps * train.workers,
        "device": "auto",
    }
    return Recipe(replace(project, settings=whole), train.model_copy(update=alone))


def _recorded(cls: type[S], values: Mapping[str, Any], *, where: str) -> S:
    """Read recorded settings; one that came to be later has its default, which is what was done then."""
    try:
        return build(cls, values, where=where)
    except SettingsError as error:
        raise InputError(
            f"{error.message}: it was made by a kit whose settings this one does not have",
            hint="train again with this kit: kit train",
        ) from error


@dataclass(frozen=True)
class Refit:
    """How the project is trained again.

    Attributes:
        project: Its model and preprocessing.
        settings: Of train; workers are left aside.
        folder: Where finished trainings are kept.
    """

    project: Project
    settings: TrainSettings
    folder: Path

    def with_parameters(self, parameters: Mapping[str, Any]) -> Refit:
        """Give the factory or the estimator other arguments."""
        whole = self.project.settings
        model = whole.model.model_copy(update={"parameters": {**whole.model.parameters, **parameters}})
        return replace(
            self, project=replace(self.project, settings=whole.model_copy(update={"model": model}))
        )

    def answer(self, split: Split) -> Answer:
        """Train on a split's training part, and give the function that answers rows.

        Raises:
            InputError: The rows break a rule, or training diverged.
            ProjectError: The project's Python cannot be used.
        """
        from jobs.exporting.graph import python_reference

        prepared = fit_preparation(self.project, split)
        fitted = self._fitted(prepared)
        return python_reference(fitted.model, transformer=prepared.transformer, signature=prepared.signature)

    def _fitted(self, prepared: Prepared) -> Fitted:
        if self.project.settings.model.estimator is not None:
            from jobs.fitting.estimators import fit_estimator

            return fit_estimator(
                self.project, prepared, seed=self.settings.seed, threads=self.settings.threads
            )
        from jobs.fitting.local import fit_here

        n_classes = len(prepared.split.classes)
        return fit_here(
            self.project,
            FitConfig.of(
                self.settings, project=self.project, n_classes=n_classes, classes=prepared.split.classes
            ),
            prepared.arrays,
            build=partial(build_network, n_features=prepared.n_features, n_classes=n_classes),
            hear=lambda figures: None,
        )

    def remembered(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a piece of work, or read what it gave when it was done before.

        Args:
            name: Of the work, as a file name.
            work: Gives JSON-ready facts.
        """
        path = self.folder / f"{name}.json"
        if path.is_file():
            _log.info("%s is done already", name)
            kept: dict[str, Any] = json.loads(path.read_bytes())
            return kept
        facts = work()
        write_atomic(path, canonical_json(facts))
        return facts
