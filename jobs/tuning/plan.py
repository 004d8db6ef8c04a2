"""What a study is about, settled and checked before Ray starts: space, settings, rows, metric, identity.

It starts nothing and writes nothing.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.candidate import code_digest, run_identity
from jobs.fitting.estimator_class import check_estimator
from jobs.fitting.estimators import check_settings
from jobs.fitting.network import build_network, check_network
from jobs.preparation.prepared import Prepared, prepare_rows
from jobs.train import OUTSIDE as OUTSIDE_TRAIN
from jobs.tuning.resources import growing
from jobs.tuning.space import LIVELY, Space, Values
from jobs.tuning.trial import Work
from kit.errors import SettingsError, nearest
from kit.metrics import LOSSES, METRICS
from kit.project import Project
from kit.settings import TrainSettings, TuneSettings

_log = logging.getLogger("kit")

#: Settings of tune that change nothing in what a trial gives.
OUTSIDE = {"promote", "resume", "address", "storage", "concurrent", "time_budget_s"}
_S3_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True)
class Plan:
    """What is settled before Ray starts.

    Attributes:
        project: Whose model is tuned.
        settings: Of tune.
        train: What the values of a trial are put into.
        space: What is varied.
        prepared: The rows.
        mode: ``min`` or ``max``, of the metric.
        identity: Of the study.
        code: Digest of the project's Python.
    """

    project: Project
    settings: TuneSettings
    train: TrainSettings
    space: Space
    prepared: Prepared
    mode: Literal["min", "max"]
    identity: str
    code: str

    @property
    def storage(self) -> str:
        """Where the ledger lies."""
        return self.settings.storage or str(self.project.state / "tune")

    @property
    def lock_folder(self) -> Path:
        """Where the lock lies: beside the ledger, which checkouts may share; on S3 there is none to take."""
        return self.project.state / "tune" if self.storage.startswith("s3://") else Path(self.storage)

    @property
    def is_estimator(self) -> bool:
        """Whether an estimator is fitted instead of a network."""
        return self.project.settings.model.estimator is not None

    @property
    def n_classes(self) -> int:
        """How many classes; 0 for regression."""
        return len(self.prepared.split.classes)


def plan_study(project: Project, settings: TuneSettings) -> Plan:
    """Check everything that needs no Ray, and read the rows.

    Raises:
        InputError: The settings, the space, the data or the project's Python break a rule.
    """
    space = Space.of(settings.space)
    train = project.command("train", TrainSettings)
    _check_choices(project, settings, train, space)
    check_settings(project, train, varied=(each.name for each in space.dimensions if each.of_train))
    space.check_train(train)
    space.check_metric(settings.metric)
    if settings.search == "grid":
        n_trials = len(space.grid())
        settings = settings.model_copy(update={"trials": n_trials})
        _log.info("the grid has %d trials", n_trials)
    prepared = prepare_rows(project)
    n_classes = len(prepared.split.classes)

    def build(parameters: Values) -> Any:
        if project.settings.model.estimator is not None:
            return check_estimator(project, parameters=parameters)
        network = build_network(
            project, n_features=prepared.n_features, n_classes=n_classes, parameters=parameters
        )
        check_network(network, rows=prepared.trial, n_classes=n_classes)
        return tuple((name, tuple(each.shape)) for name, each in network.state_dict().items())

    space.check_build(build, weights_stay=settings.search == "pbt")
    decides = {
        "tune": settings.model_dump(mode="json", exclude=OUTSIDE),
        "train": train.model_dump(mode="json", exclude=OUTSIDE_TRAIN),
    }
    less_is_better = settings.metric == "validation_loss" or settings.metric in LOSSES
    return Plan(
        project=project,
        settings=settings,
        train=train,
        space=space,
        prepared=prepared,
        mode="min" if less_is_better else "max",
        identity=run_identity(project, prepared.split, decides),
        code=code_digest(project),
    )


def _check_choices(project: Project, settings: TuneSettings, train: TrainSettings, space: Space) -> None:
    """Refuse settings that do not go together."""
    known = ("validation_loss", *METRICS[project.settings.project.task])
    if settings.metric not in known:
        raise SettingsError(
            f"metric = {settings.metric!r} does not measure a {project.settings.project.task} project",
            hint=nearest(settings.metric, known),
        )
    if train.workers > 1 and settings.metric != "validation_loss":
        raise SettingsError(
            f"metric = {settings.metric!r} is measured in the trial's own process, but [train] has workers = "
            f"{train.workers}",
            hint="use metric = 'validation_loss', or workers = 1",
        )
    if train.workers > 1 and (settings.storage or "").startswith("s3://"):
        raise SettingsError(
            f"storage = {settings.storage!r} cannot hold the checkpoints of workers = {train.workers}",
            hint="name a folder that every node shares, or set workers = 1",
        )
    if train.workers > 1 and settings.search == "pbt":
        raise SettingsError(
            f"search = 'pbt' trains members of one worker, but [train] has workers = {train.workers}",
            hint="set workers = 1, or use search = 'optuna'",
        )
    if settings.search == "pbt" and project.settings.model.estimator is not None:
        raise SettingsError(
            "search = 'pbt' changes settings between epochs, but an estimator has none",
            hint="use search = 'optuna'",
        )
    if settings.search == "pbt" and settings.trials < 2:
        raise SettingsError(
            "a population of trials = 1 has nobody to learn from", hint="set trials to 4 or more"
        )
    if settings.search == "pbt":
        for each in space.dimensions:
            if each.of_train and each.name not in LIVELY:
                raise SettingsError(
                    f"search = 'pbt' cannot change {each.name!r} while a trial trains",
                    hint=nearest(each.name, LIVELY),
                )


def work_of(plan: Plan) -> Work:
    """Gather what every trial needs to know."""
    return Work(
        folder=str(plan.project.folder),
        train=plan.train.model_copy(update={"address": growing(plan.settings)}),  # not where train would run
        space=plan.space,
        n_features=plan.prepared.n_features,
        n_classes=plan.n_classes,
        classes=tuple(plan.prepared.split.classes),
        metric=plan.settings.metric,
        mode=plan.mode,
        storage=plan.storage,
        study=plan.identity,
        share_epochs=plan.settings.perturb_epochs if plan.settings.search == "pbt" else 0,
        environment={name: os.environ[name] for name in _S3_VARIABLES if name in os.environ},
    )
