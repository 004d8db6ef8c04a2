"""Training the project again on other rows, in this process, for folds and curves.

The preprocessing is fitted anew on each training part. Nothing is exported or registered: the fitted Python
answers. Finished trainings are kept on disk, so an interrupted evaluation goes on with the next one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.network import build_network
from jobs.preparation.prepared import Prepared, fit_preparation
from kit.data import Split
from kit.files import canonical_json, write_atomic
from kit.project import Project
from kit.settings import TrainSettings
from kit.signature import Tensors

_log = logging.getLogger("kit")

Answer = Callable[[Mapping[str, np.ndarray]], Tensors]


@dataclass(frozen=True)
class Refit:
    """How the project is trained again.

    Attributes:
        project: Its model and preprocessing.
        settings: Of train; what needs workers is left aside.
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
