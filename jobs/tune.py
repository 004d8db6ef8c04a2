"""Search the settings that train a project's model best, and register the best trial as a candidate.

Everything that can be refused is refused before Ray starts: the space against the factory and the
settings of train, the metric, the place of the ledger. The best trial's best weights become the version;
nothing is trained again. The same command goes on where an interrupted study stood.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.alone import alone
from jobs.candidate import Candidate, check_ready, register_candidate
from jobs.cluster import connected, n_cpus, translated
from jobs.fitting.estimators import fit_estimator
from jobs.tracking import Tracker, tracked
from jobs.tuning.importance import importance
from jobs.tuning.ledger import Ledger
from jobs.tuning.live import Live
from jobs.tuning.plan import Plan, plan_study, work_of
from jobs.tuning.resources import growing, room_for
from jobs.tuning.running import Run, end_running, run_study
from jobs.tuning.study import Clock, Study, Trial
from jobs.tuning.trial import has_best, read_best
from kit.errors import GateError, InputError, ProjectError, UnavailableError
from kit.project import Project
from kit.settings import TuneSettings

_log = logging.getLogger("kit")

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


def tune(project: Project, settings: TuneSettings) -> TuneResult:
    """Search, then export, check, sign and register the best trial; see the module.

    Raises:
        InputError: The space, the data or the project's Python break a rule; no trial has worked.
        GateError: None of the best trials' exported graphs answers like its Python pipeline.
        NotFoundError: There is no signing key.
        ConflictError: The same study is running already, or the project's Python was changed meanwhile.
        UnavailableError: The cluster, the ledger's place, the store or the disk fails.
    """
    check_ready(project)
    plan = plan_study(project, settings)
    ledger = Ledger(plan.storage, study=plan.identity)
    with (
        alone(plan.lock_folder, plan.identity),
        tracked(project, "tune", identity=plan.identity) as tracker,
    ):
        facts, study = _open_study(plan, ledger)
        clock = Clock(ledger, facts)
        with _interruptible(plan.identity):
            _search(plan, study, clock=clock)
        end_running(study, of_workers=plan.train.workers > 1)
        best, candidate = _take_best(plan, study)
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


def _open_study(plan: Plan, ledger: Ledger) -> tuple[dict[str, Any], Study]:
    """Take up what an interrupted driver left, or begin anew."""
    study = Study(ledger=ledger, budget=plan.settings.trials, mode=plan.mode, propose=lambda number: None)
    there, trials = ledger.read()
    if there is not None and plan.settings.resume and there.get("status") == "running":
        study.resume(trials.values(), names=[each.name for each in plan.space.dimensions])
        ended = sum(each.status != "running" for each in study.trials.values())
        _log.info(
            "continuing the study %s: %d trials have ended, %d go on",
            *(plan.identity, ended, len(study.trials) - ended),
        )
        return {**there, "seconds": float(there.get("seconds", 0.0))}, study
    ledger.clear()  # of a study that has ended too, or was being removed
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


def _search(plan: Plan, study: Study, *, clock: Clock) -> None:
    """Run what is left of the study on Ray; when its time is up, trials may be left that have not ended."""
    settings = plan.settings
    if study.ended or clock.left_s(settings.time_budget_s) == 0:
        return
    with connected(settings.address, project=plan.project), translated():
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]  # Ray's gap
        room = room_for(
            plan.train,
            concurrent=settings.concurrent,
            cpus=n_cpus(),
            gpus=gpus,
            may_grow=growing(settings) is not None,
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
            study.told = live.show
            most = max(
                (int(v) for each in plan.space.dimensions if each.name == "epochs" for v in each.probes),
                default=plan.train.epochs,
            )
            left_s = clock.left_s(settings.time_budget_s)
            if left_s == 0:  # Ray took what was left to start
                return
            run = Run(
                settings, work_of(plan), max_epochs=most, room=room, seconds_left=left_s, tick=clock.tick
            )
            try:
                rows = plan.prepared if plan.is_estimator else plan.prepared.arrays
                run_study(study, run, rows)
            finally:
                if study.ledger.on_disk:
                    shutil.rmtree(Path(plan.storage) / plan.identity / "ray", ignore_errors=True)


def _take_best(plan: Plan, study: Study) -> tuple[Trial, Candidate]:
    """Register the best trial whose model can be exported; those before it have failed."""
    if not study.trials:
        raise InputError(
            f"the time budget of {plan.settings.time_budget_s} s was spent before a trial started",
            hint="give more with --time-budget-s: the same study goes on",
        )
    if not study.ranked:
        reasons = list(dict.fromkeys(each.reason for each in study.trials.values() if each.reason))
        study.ledger.clear()  # nothing to continue: something has to be changed first
        raise InputError(
            f"none of {len(study.trials)} trials has worked: {'; '.join(reasons[:_REASONS])}",
            hint="correct the model or the space, and try one trial alone: kit train",
        )
    refused: dict[int, GateError | ProjectError] = {}
    for trial in study.ranked:
        try:
            with _weights(plan, study, trial) as folder:
                if folder is None:  # those after it may have theirs
                    _log.warning("the checkpoint of trial %d is gone", trial.number)
                    continue
                candidate = _register(plan, study, trial, folder)
        except (GateError, ProjectError) as error:
            refused[trial.number] = error
            _log.warning("trial %d cannot be exported: %s", trial.number, error.message)
            continue
        for number, refusal in refused.items():  # where none can, the study stays as it is
            study.reject(number, reason=f"it cannot be exported: {refusal.message}")
        return trial, candidate
    if not refused:
        raise InputError(
            f"the checkpoints of the study {plan.identity} are gone", hint="start it anew: --no-resume"
        )
    number, first = next(iter(refused.items()))
    raise type(first)(
        f"none of the {len(refused)} best trials can be exported; trial {number}: {first.message}",
        hint=f"{first.hint or 'correct the model or the space'}; or search anew with --no-resume",
    ) from first


@contextmanager
def _weights(plan: Plan, study: Study, trial: Trial) -> Iterator[Path | None]:
    """Give the checkpoint of a trial, None where it is gone; an estimator needs none."""
    with tempfile.TemporaryDirectory(prefix="best-") as scratch:
        if plan.is_estimator:
            yield Path(scratch)
            return
        folder = study.ledger.checkpoint_folder(trial.number, scratch=Path(scratch))
        yield folder if has_best(folder) else None


def _register(plan: Plan, study: Study, best: Trial, folder: Path) -> Candidate:
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
        fitted = read_best(
            project,
            folder,
            n_features=plan.prepared.n_features,
            n_classes=plan.n_classes,
            parameters=parameters,
        )
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
        project,
        settings,
        plan.prepared,
        replace(fitted, code=plan.code),
        promote=plan.settings.promote,
        lineage=lineage,
    )


def _record(
    plan: Plan, study: Study, candidate: Candidate, *, shares: Mapping[str, float], seconds: float
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


@contextmanager
def _interruptible(identity: str) -> Iterator[None]:
    """Say how an interrupted study goes on."""
    try:
        yield
    except (KeyboardInterrupt, UnavailableError):
        _log.warning("the study %s is interrupted; the same command continues it", identity)
        raise
