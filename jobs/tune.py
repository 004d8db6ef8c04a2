"""Search the settings that train a project's model best, and register the best trial as a candidate.

Everything that can be refused is refused before Ray starts: the space against the factory and the
settings of train, the metric, the place of the ledger. The best trial's best weights become the version;
nothing is trained again. The same command goes on where an interrupted study stood.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.alone import alone
from jobs.candidate import Candidate, check_ready, register_candidate, run_identity
from jobs.cluster import connected, n_cpus, translated
from jobs.fitting.estimators import check_estimator, fit_estimator
from jobs.fitting.loop import Fitted
from jobs.fitting.network import build_network, check_network
from jobs.preparation.prepared import Prepared, prepare_rows
from jobs.tracking import Tracker, tracked
from jobs.train import OUTSIDE as OUTSIDE_TRAIN
from jobs.tuning.importance import importance
from jobs.tuning.ledger import Ledger
from jobs.tuning.live import Live
from jobs.tuning.resources import room_for
from jobs.tuning.running import Run, run_study
from jobs.tuning.space import LIVELY, Space, Values
from jobs.tuning.study import Study, Trial
from jobs.tuning.trial import Work, read_best
from kit.errors import InputError, SettingsError, UnavailableError, nearest
from kit.metrics import LOSSES, METRICS
from kit.project import Project
from kit.settings import TrainSettings, TuneSettings

_log = logging.getLogger("kit")

#: Settings of tune that change nothing in what a trial gives.
OUTSIDE = {"promote", "resume", "address", "storage", "concurrent", "time_budget_s"}
_S3_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_REASONS = 3  # of failed trials, in the error that says that none has worked


@dataclass(frozen=True)
class TuneResult:
    """What a study found.

    Attributes:
        study: Its identity.
        metric: What was compared.
        mode: ``min`` or ``max``.
        trials: Every trial, by number.
        best: Whose weights were registered.
        importance: Share of each setting in what moved the metric; empty where nothing can be said.
        seconds: How long all drivers of the study ran together.
        candidate: The registered version, its metrics and its gates.
        record: Where the record lies.
    """

    study: str
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    best: Trial
    importance: dict[str, float]
    seconds: float
    candidate: Candidate
    record: Path

    def require_passed(self) -> None:
        """Refuse a candidate that was to be promoted and did not pass; see ``Candidate``."""
        self.candidate.require_passed()


@dataclass(frozen=True)
class _Plan:
    """What is settled before Ray starts."""

    project: Project
    settings: TuneSettings
    train: TrainSettings
    space: Space
    prepared: Prepared
    mode: Literal["min", "max"]
    identity: str

    @property
    def storage(self) -> str:
        return self.settings.storage or str(self.project.state / "tune")

    @property
    def is_estimator(self) -> bool:
        return self.project.settings.model.estimator is not None

    @property
    def n_classes(self) -> int:
        return len(self.prepared.split.classes)


def tune(project: Project, settings: TuneSettings) -> TuneResult:
    """Search, then export, check, sign and register the best trial; see the module.

    Raises:
        InputError: The space, the data or the project's Python break a rule; no trial has worked.
        GateError: The exported graph does not answer like the Python pipeline.
        NotFoundError: There is no signing key.
        ConflictError: The same study is running already.
        UnavailableError: The cluster, the ledger's place, the store or the disk fails.
    """
    check_ready(project)
    plan = _plan(project, settings)
    ledger = Ledger(plan.storage, study=plan.identity)
    with (
        alone(project.state / "tune", plan.identity),
        tracked(project, "tune", identity=plan.identity) as tracker,
    ):
        facts, study = _open_study(plan, ledger)
        clock = _Clock(facts["seconds"])
        with _interruptible(plan.identity):
            _search(plan, study, facts, clock=clock)
        best = _best(study)
        candidate = _register(plan, study, best)
        shares = importance(plan.space, list(study.trials.values()), seed=settings.seed)
        result = TuneResult(
            study=plan.identity,
            metric=settings.metric,
            mode=plan.mode,
            trials=tuple(study.trials.values()),
            best=best,
            importance=shares,
            seconds=clock.seconds,
            candidate=candidate,
            record=_record(plan, study, candidate, shares=shares, seconds=clock.seconds),
        )
        _track(tracker, result)
        ledger.write_study({**facts, "status": "finished", "seconds": clock.seconds})
        for number in study.trials:
            ledger.drop_checkpoint(number)
    return result


def _plan(project: Project, settings: TuneSettings) -> _Plan:
    """Check everything that needs no Ray."""
    space = Space.of(settings.space)
    train = project.command("train", TrainSettings)
    _check_choices(project, settings, train, space)
    _check_estimator(project, settings, space)
    space.check_train(train)
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
        check_network(network, rows=prepared.train[:2], n_classes=n_classes)
        return tuple((name, tuple(each.shape)) for name, each in network.state_dict().items())

    space.check_build(build, weights_stay=settings.search == "pbt")
    decides = {
        "tune": settings.model_dump(mode="json", exclude=OUTSIDE),
        "train": train.model_dump(mode="json", exclude=OUTSIDE_TRAIN),
    }
    less_is_better = settings.metric == "validation_loss" or settings.metric in LOSSES
    return _Plan(
        project=project,
        settings=settings,
        train=train,
        space=space,
        prepared=prepared,
        mode="min" if less_is_better else "max",
        identity=run_identity(project, prepared.split, decides),
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


def _check_estimator(project: Project, settings: TuneSettings, space: Space) -> None:
    """Refuse what an estimator, which is fitted in one go, has no use for."""
    if project.settings.model.estimator is None:
        return
    if settings.search == "pbt":
        raise SettingsError(
            "search = 'pbt' changes settings between epochs, but an estimator has none",
            hint="use search = 'optuna'",
        )
    for each in space.dimensions:
        if each.of_train and each.name != "seed":
            raise SettingsError(
                f"[tune.space.train]: {each.name!r} means nothing to an estimator",
                hint="vary its own arguments under [tune.space.parameters]",
            )


def _open_study(plan: _Plan, ledger: Ledger) -> tuple[dict[str, Any], Study]:
    """Take up what an interrupted driver left, or begin anew."""
    study = Study(ledger=ledger, budget=plan.settings.trials, mode=plan.mode, propose=lambda number: None)
    there, trials = ledger.read()
    if there is not None and plan.settings.resume and there.get("status") == "running":
        study.resume(trials.values())
        ended = sum(each.status != "running" for each in study.trials.values())
        _log.info(
            "continuing the study %s: %d trials have ended, %d go on",
            *(plan.identity, ended, len(study.trials) - ended),
        )
        return {**there, "seconds": float(there.get("seconds", 0.0))}, study
    if there is not None:
        ledger.clear()
    facts = {
        "study": plan.identity,
        "status": "running",
        "seconds": 0.0,
        "model": plan.project.name,
        "settings": plan.settings.model_dump(mode="json", exclude={"address"}),
        "train": plan.train.model_dump(mode="json", exclude={"address"}),
    }
    ledger.write_study(facts)
    return facts, study


def _search(plan: _Plan, study: Study, facts: Mapping[str, Any], *, clock: _Clock) -> None:
    """Run what is left of the study on Ray."""
    settings = plan.settings
    left_s = None if settings.time_budget_s is None else settings.time_budget_s - clock.seconds
    if study.ended or (left_s is not None and left_s <= 0):
        return _end_running(study)
    with connected(settings.address, project=plan.project), translated():
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]  # Ray's gap
        room = room_for(
            plan.train,
            concurrent=settings.concurrent,
            cpus=n_cpus(),
            gpus=gpus,
            may_grow=settings.address is not None,
        )
        # A population is one from the start, and takes turns where not all of it fits.
        study.concurrent = (
            min(room.concurrent, settings.trials) if settings.search != "pbt" else settings.trials
        )
        _log.info(
            "study %s: %s, up to %d trials, %d at a time",
            plan.identity,
            settings.search,
            *(settings.trials, study.concurrent),
        )
        with Live(study, metric=settings.metric) as live:

            def told(trial: Trial) -> None:
                live.show(trial)
                if trial.status != "running" and settings.time_budget_s is not None:
                    study.ledger.write_study({**facts, "seconds": clock.seconds})

            study.told = told
            most = max(
                (int(v) for each in plan.space.dimensions if each.name == "epochs" for v in each.probes),
                default=plan.train.epochs,
            )
            run = Run(settings, _work(plan), max_epochs=most, room=room, seconds_left=left_s)
            try:
                rows = plan.prepared if plan.is_estimator else plan.prepared.arrays
                run_study(study, run, rows, live=live)
            finally:
                if study.ledger.on_disk:
                    shutil.rmtree(Path(plan.storage) / plan.identity / "ray", ignore_errors=True)


def _end_running(study: Study) -> None:
    for number, trial in list(study.trials.items()):
        if trial.status == "running":
            study.end(number, "stopped", reason="the time budget was spent")


def _work(plan: _Plan) -> Work:
    return Work(
        folder=str(plan.project.folder),
        train=plan.train,
        space=plan.space,
        n_features=plan.prepared.n_features,
        n_classes=plan.n_classes,
        metric=plan.settings.metric,
        mode=plan.mode,
        storage=plan.storage,
        study=plan.identity,
        share_epochs=plan.settings.perturb_epochs if plan.settings.search == "pbt" else 0,
        environment={name: os.environ[name] for name in _S3_VARIABLES if name in os.environ},
    )


def _best(study: Study) -> Trial:
    best = study.best
    if best is not None:
        return best
    reasons = list(dict.fromkeys(each.reason for each in study.trials.values() if each.reason))
    study.ledger.clear()  # nothing to continue: something has to be changed first
    raise InputError(
        f"none of {len(study.trials)} trials has worked: {'; '.join(reasons[:_REASONS])}",
        hint="correct the model or the space, and try one trial alone: kit train",
    )


def _register(plan: _Plan, study: Study, best: Trial) -> Candidate:
    """Make the version of the best trial's best weights."""
    project = plan.project
    parameters, changed = plan.space.split(best.parameters)
    model = project.settings.model
    settings = plan.space.train_settings(plan.train, changed)
    _log.info("trial %d is the best and becomes the candidate", best.number)
    if plan.is_estimator:
        # Fitted again, which gives an equal one: it could only be carried here as a pickle.
        fitted = fit_estimator(
            project, plan.prepared, seed=settings.seed, threads=settings.threads, parameters=parameters
        )
    else:
        fitted = _read_best(plan, study, best, parameters=parameters)
    lineage = {
        "model": {**model.model_dump(mode="json"), "parameters": {**model.parameters, **parameters}},
        "study": {
            "study": plan.identity,
            "search": plan.settings.search,
            "scheduler": plan.settings.scheduler,
            "metric": plan.settings.metric,
            "seed": plan.settings.seed,
            "trials": len(study.trials),
            "trial": best.number,
            "parameters": best.parameters,
            "value": best.value,
            "best_epoch": best.best_epoch,
        },
    }
    return register_candidate(
        project, settings, plan.prepared, fitted, promote=plan.settings.promote, lineage=lineage
    )


def _read_best(plan: _Plan, study: Study, best: Trial, *, parameters: Values) -> Fitted:
    with tempfile.TemporaryDirectory(prefix="best-") as scratch:
        return read_best(
            plan.project,
            study.ledger.checkpoint_folder(best.number, scratch=Path(scratch)),
            n_features=plan.prepared.n_features,
            n_classes=plan.n_classes,
            parameters=parameters,
        )


def _record(
    plan: _Plan, study: Study, candidate: Candidate, *, shares: Mapping[str, float], seconds: float
) -> Path:
    settings, version = plan.settings, candidate.version
    best = study.best
    space = {
        each.name: {
            "kind": each.kind,
            "bounds": list(each.bounds),
            "of": "train" if each.of_train else "parameters",
        }
        for each in plan.space.dimensions
    }
    return plan.project.write_record(
        "tune",
        plan.identity,
        {
            "study": plan.identity,
            "model": plan.project.name,
            "version": version.number,
            "digest": version.digest,
            "search": settings.search,
            "scheduler": "none" if settings.search == "pbt" else settings.scheduler,
            "metric": settings.metric,
            "mode": plan.mode,
            "space": space,
            "trials": [{**asdict(each), "epochs": list(each.epochs)} for each in study.trials.values()],
            "best": best.number if best is not None else None,
            "importance": dict(shares),
            "seconds": seconds,
            "metrics": candidate.metrics,
            "gates": [asdict(gate) for gate in candidate.gates],
            "promoted": candidate.promoted,
        },
    )


def _track(tracker: Tracker, result: TuneResult) -> None:
    """Tell MLflow of every trial, of the best one's curve and of the version."""
    if not tracker.on:
        return
    tracker.log_parameters({"study": result.study, "metric": result.metric, "best": result.best.parameters})
    for trial in result.trials:
        with tracker.child(f"trial {trial.number}") as child:
            child.log_parameters({**trial.parameters, "status": trial.status})
            for figures in trial.epochs:
                child.log_epoch(figures)
    for figures in result.best.epochs:
        tracker.log_epoch(figures)
    tracker.log_metrics(result.candidate.metrics)
    tracker.log_metrics({"importance": result.importance})
    tracker.log_artifact(result.record)
    tracker.register(result.candidate.version)


class _Clock:
    """Counts the seconds of all drivers of a study."""

    def __init__(self, before_s: float) -> None:
        self.before_s, self.began_s = before_s, time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self.before_s + time.monotonic() - self.began_s, 3)


@contextmanager
def _interruptible(identity: str) -> Iterator[None]:
    """Say how an interrupted study goes on."""
    try:
        yield
    except (KeyboardInterrupt, UnavailableError):
        _log.warning("the study %s is interrupted; the same command continues it", identity)
        raise
