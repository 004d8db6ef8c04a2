"""Train a project's model and register a candidate version.

Reads and splits the data, fits the preprocessing on the training rows, fits the network on Ray Train,
or an estimator in this process, exports, checks that the exported graph answers like the Python it came
from, and only then signs and registers. Everything that can be refused is refused before Ray starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jobs.alone import alone
from jobs.candidate import Candidate, check_ready, code_digest, register_candidate, run_identity
from jobs.fitting.baseline import constant_loss, warn_if_no_better
from jobs.fitting.estimators import check_settings, used_settings
from jobs.fitting.loop import Epoch, FitConfig, Fitted
from jobs.fitting.memory import compute_twice
from jobs.fitting.network import build_network, check_network
from jobs.fitting.workers import fit_on_workers
from jobs.preparation.prepared import Prepared, prepare_rows
from jobs.tracking import tracked
from kit.project import Project
from kit.settings import TrainSettings

#: Settings of train that change nothing in what is learned, or that an interrupted run may go on without.
OUTSIDE = {
    *("promote", "resume", "address", "auto_batch", "checkpoint_interval_s"),
    *("parity_tolerance", "golden_rows"),  # of the version that is made of it
}


@dataclass(frozen=True)
class TrainResult:
    """What training produced.

    Attributes:
        candidate: The registered version, its metrics and its gates.
        epochs: Figures of each epoch.
        best_epoch: Whose weights were kept, from 1.
        record: Where the run's record lies.
    """

    candidate: Candidate
    epochs: tuple[Epoch, ...]
    best_epoch: int
    record: Path

    def require_passed(self) -> None:
        """Refuse a candidate that was to be promoted and did not pass; see ``Candidate``."""
        self.candidate.require_passed()


def train(project: Project, settings: TrainSettings) -> TrainResult:
    """Train, export, check, sign, register; see the module.

    An interrupted run goes on from its last checkpoint when the same command is run again on the same
    data, code and settings. MLflow is told where MLFLOW_TRACKING_URI says so.

    Raises:
        InputError: The data, the project's Python or the settings break a rule; training diverged, or
            memory ran out.
        ConflictError: The same training is running already, or the project's Python was changed meanwhile.
        GateError: The exported graph does not answer like the Python pipeline.
        NotFoundError: There is no signing key.
        UnavailableError: The cluster, the store or the disk fails.
    """
    check_settings(project, settings)
    check_ready(project)
    code = code_digest(project)
    prepared = prepare_rows(project)
    used = used_settings(project, settings)
    asked = {name: value for name, value in used.items() if name not in OUTSIDE}
    identity = run_identity(project, prepared.split, asked)
    storage = project.state / "train"
    with alone(storage, identity), tracked(project, "train", identity=identity) as tracker:
        tracker.log_parameters({"train": asked, "model": project.settings.model.model_dump(mode="json")})
        fitted = _fit(project, settings, prepared, storage=storage, identity=identity, hear=tracker.log_epoch)
        _compare(fitted, prepared, settings)
        fitted = replace(fitted, code=code)
        candidate = register_candidate(project, settings, prepared, fitted, promote=settings.promote)
        record = _record(project, prepared, fitted, candidate)
        tracker.log_metrics(candidate.metrics)
        tracker.log_artifact(record)
        tracker.register(candidate.version)
        shutil.rmtree(storage / identity, ignore_errors=True)  # last: until here the same command goes on
    return TrainResult(candidate, fitted.epochs, fitted.best_epoch, record)


def _fit(
    project: Project,
    settings: TrainSettings,
    prepared: Prepared,
    *,
    storage: Path,
    identity: str,
    hear: Callable[[dict[str, Any]], object],
) -> Fitted:
    if project.settings.model.estimator is not None:
        from jobs.fitting.estimators import fit_estimator

        return fit_estimator(project, prepared, seed=settings.seed, threads=settings.threads)
    classes = prepared.split.classes
    build = partial(build_network, n_features=prepared.n_features, n_classes=len(classes))
    # Built once before Ray starts: a factory that cannot work is refused in a second.
    network = build(project)
    check_network(network, rows=prepared.trial, n_classes=len(classes))
    if settings.gradient_checkpointing:
        compute_twice(network)
    return fit_on_workers(
        project,
        settings,
        prepared.arrays,
        fit=FitConfig.of(settings, project=project, n_classes=len(classes), classes=classes),
        build=build,
        storage=storage,
        identity=identity,
        hear=hear,
    )


def _compare(fitted: Fitted, prepared: Prepared, settings: TrainSettings) -> None:
    """Warn of a network that learned nothing."""
    split = prepared.split
    labels = split.train.labels, split.validation.labels
    loss = constant_loss(*labels, classes=split.classes, class_weights=settings.class_weights)
    warn_if_no_better(fitted.epochs, than=loss, classes=split.classes)


def _record(project: Project, prepared: Prepared, fitted: Fitted, candidate: Candidate) -> Path:
    version, split = candidate.version, prepared.split
    return project.write_record(
        "train",
        f"{version.number:04d}",
        {
            "model": project.name,
            "number": version.number,
            "digest": version.digest,
            "task": project.settings.project.task,
            "classes": list(split.classes),
            "epochs": [asdict(epoch) for epoch in fitted.epochs],
            "best_epoch": fitted.best_epoch,
            "used": dict(fitted.used),
            "metrics": candidate.metrics,
            "gates": [asdict(gate) for gate in candidate.gates],
            "promoted": candidate.promoted,
            "n_rows": {"train": len(split.train.rows), "test": len(split.test.rows)},
            "parity": candidate.parity.max_relative_difference,
            "confusion": [list(row) for row in candidate.confusion],
        },
    )
