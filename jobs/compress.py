"""Make a model version smaller or easier to quantise, and register the result as a candidate.

Opens the parent, changes its network (``jobs.compression``), fine-tunes on Ray Train, exports and
checks as training does, and measures parent and result side by side. Everything that can be refused
is refused before Ray starts. A result that does not pay is registered and reported as such, and
never promoted.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.alone import alone
from jobs.candidate import Candidate, check_ready, code_digest, register_candidate, run_identity
from jobs.compression.distill import student_parameters
from jobs.compression.measure import Measured, Subject, compare
from jobs.compression.parent import Parent, load_parent, logits_of, open_parent, recorded_network
from jobs.compression.prune import pruned_network
from jobs.compression.quantize import plain_network, quantising_network, ranging_batches
from jobs.compression.verdict import verdict
from jobs.fitting.local import Build
from jobs.fitting.loop import Epoch, FitConfig, Fitted
from jobs.fitting.network import check_network
from jobs.fitting.workers import fit_on_workers
from jobs.preparation.prepared import Prepared, prepare_rows
from jobs.tracking import tracked
from jobs.train import OUTSIDE
from kit.models import models
from kit.project import Project
from kit.settings import CompressSettings, ModelsSettings, TrainSettings
from kit.settings.training import DECIDES

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("kit")

#: Step size where none is given, as a share of that of [train]: a student starts from nothing, a pruned
#: network has to recover, a rounded one is nearly there.
RATES = {"prune": 1 / 3, "distill": 1.0, "quantize": 1 / 10}


@dataclass(frozen=True)
class CompressResult:
    """What a compression produced.

    Attributes:
        candidate: The registered version, its metrics and its gates.
        method: How it was compressed.
        parent: What it was made of, ``name@number``.
        before: The parent, measured.
        after: The candidate, measured.
        pays: Whether it was worth it, by the rules of ``jobs.compression.verdict``.
        reason: Why, in a sentence.
        epochs: Figures of each epoch of fine-tuning.
        best_epoch: Whose weights were kept, from 1.
        record: Where the run's record lies.
    """

    candidate: Candidate
    method: str
    parent: str
    before: Measured
    after: Measured
    pays: bool
    reason: str
    epochs: tuple[Epoch, ...]
    best_epoch: int
    record: Path

    def require_passed(self) -> None:
        """Refuse a candidate that paid, was to be promoted and did not pass a gate; see ``Candidate``."""
        self.candidate.require_passed()


@dataclass(frozen=True)
class Plan:
    """A compression that nothing speaks against.

    Attributes:
        project: Whose version is compressed.
        settings: Of the command.
        fine_tuning: Of the training that follows the change.
        prepared: The rows.
        parent: The version.
        parameters: Arguments of the factory that made the network.
        build: Makes the changed network, the same in every process.
        arrays: What the training loop reads.
        fit: What it needs to know.
        plain: Gives the network to export from the trained one.
    """

    project: Project
    settings: CompressSettings
    fine_tuning: TrainSettings
    prepared: Prepared
    parent: Parent
    parameters: dict[str, Any]
    build: Build
    arrays: dict[str, np.ndarray]
    fit: FitConfig
    plain: Callable[[torch.nn.Module], torch.nn.Module]

    def identity(self) -> str:
        """Name the run by everything that decides its outcome."""
        return run_identity(self.project, self.prepared.split, self.decided())

    def decided(self) -> dict[str, Any]:
        """Give what decides the outcome besides the data and the project's Python."""
        return {
            "parent": self.parent.version.digest,
            "compress": self.facts(),
            "train": self.fine_tuning.model_dump(mode="json", exclude=OUTSIDE),
        }

    def facts(self) -> dict[str, Any]:
        """Give the method and what it was decided by, for the lineage."""
        method = self.settings.method
        given = self.settings.model_dump(mode="json", include=set(DECIDES[method]))
        return {"method": method, **given}


def compress(project: Project, settings: CompressSettings) -> CompressResult:
    """Change, fine-tune, export, check, measure and register; see the module.

    Interrupted runs continue where their last epoch ended when the same command is run again on
    the same parent, data, code and settings. MLflow is told where MLFLOW_TRACKING_URI says so.

    Raises:
        InputError: The parent, the data, the project's Python or the settings break a rule.
        GateError: The exported graph does not answer like the Python pipeline.
        NotFoundError: Nobody knows the version, or there is no signing key.
        VerificationError: The parent's files or signature do not hold.
        ConflictError: The same compression is running already.
        UnavailableError: The cluster, the store or the disk fails.
    """
    check_ready(project)
    code = code_digest(project)
    planned = plan(project, settings)
    identity = planned.identity()
    storage = project.state / "compress"
    with alone(storage, identity), tracked(project, "compress", identity=identity) as tracker:
        tracker.log_parameters(planned.decided())
        fitted = fit_on_workers(
            project,
            planned.fine_tuning,
            planned.arrays,
            fit=planned.fit,
            build=planned.build,
            storage=storage,
            identity=identity,
            hear=tracker.log_epoch,
        )
        result = conclude(planned, dataclasses.replace(fitted, code=code))
        tracker.log_metrics(
            {**result.candidate.metrics, "before": asdict(result.before), "after": asdict(result.after)}
        )
        tracker.log_artifact(result.record)
        tracker.register(result.candidate.version)
        shutil.rmtree(storage / identity, ignore_errors=True)  # last: until here the same command goes on
    return result


def plan(project: Project, settings: CompressSettings) -> Plan:
    """Find the parent, and refuse what cannot be done to it.

    Raises:
        InputError: The parent, the data, the project's Python or the settings break a rule.
        NotFoundError: Nobody knows the version.
        VerificationError: The parent's files or signature do not hold.
    """
    fine_tuning = _fine_tuning(project, settings)
    record, version = open_parent(project, settings.model)
    prepared = prepare_rows(project)
    parent = load_parent(project, record, version, prepared=prepared)
    parameters = parent.parameters
    if settings.method == "distill":
        parameters = student_parameters(project, parent, student=settings.student, prepared=prepared)
    n_classes = len(prepared.split.classes)
    known: dict[str, Any] = {
        "parameters": parameters,
        "n_features": prepared.n_features,
        "n_classes": n_classes,
    }
    build = _build(settings, fine_tuning, parent, prepared=prepared, known=known)
    check_network(build(project), rows=prepared.trial, n_classes=n_classes)
    arrays, taught = dict(prepared.arrays), {}
    if settings.method != "prune" and settings.teacher_weight > 0:
        arrays["train_teacher"] = logits_of(parent.network, prepared.train)
        taught = {"teacher_weight": settings.teacher_weight, "temperature": settings.temperature}

    def plain(trained: torch.nn.Module) -> torch.nn.Module:
        if settings.method != "quantize":
            return trained
        return plain_network(trained, plain=recorded_network(project, **known))

    return Plan(
        project=project,
        settings=settings,
        fine_tuning=fine_tuning,
        prepared=prepared,
        parent=parent,
        parameters=parameters,
        build=build,
        arrays=arrays,
        fit=FitConfig.of(
            fine_tuning,
            project=project,
            n_classes=n_classes,
            classes=[str(each) for each in prepared.split.classes],
            **taught,
        ),
        plain=plain,
    )


def conclude(planned: Plan, fitted: Fitted) -> CompressResult:
    """Register what was fine-tuned, measure it beside its parent, and say whether it pays.

    Args:
        planned: What was planned.
        fitted: The network of ``planned.build``, trained.

    Raises:
        GateError: The exported graph does not answer like the Python pipeline.
        UnavailableError: The store or the disk fails.
    """
    project, parent, settings = planned.project, planned.parent, planned.settings
    finished = dataclasses.replace(fitted, model=planned.plain(fitted.model))
    model = project.settings.model.model_copy(update={"parameters": planned.parameters})
    candidate = register_candidate(
        project,
        planned.fine_tuning,
        planned.prepared,
        finished,
        promote=False,  # what it is worth is not known before it is measured
        lineage={
            "model": model.model_dump(mode="json"),
            "parent": {"number": parent.record.number, "digest": parent.version.digest},
            "compress": planned.facts(),
        },
    )
    _log.info("measuring %s beside %s", _name(candidate), parent.name)
    _, version = project.open_version(_name(candidate))
    compared = compare(
        Subject(parent.network, parent.version.model_path.read_bytes()),
        Subject(finished.model, version.model_path.read_bytes()),
        prepared=planned.prepared,
    )
    decided = verdict(settings.method, compared, min_rows=project.settings.gates.min_rows)
    wanted = settings.promote and decided.pays
    promoted = wanted and all(gate.passed for gate in candidate.gates)
    if promoted:  # by the door everyone takes, which asks whom the gates were held against
        models(project, ModelsSettings(action="promote", reference=_name(candidate)))
    result = CompressResult(
        candidate=dataclasses.replace(candidate, wanted=wanted, promoted=promoted),
        method=settings.method,
        parent=parent.name,
        before=compared.before,
        after=compared.after,
        pays=decided.pays,
        reason=decided.reason,
        epochs=fitted.epochs,
        best_epoch=fitted.best_epoch,
        record=project.state,
    )
    return dataclasses.replace(result, record=_record(planned, result))


def _fine_tuning(project: Project, settings: CompressSettings) -> TrainSettings:
    """Take the settings of [train], with what [compress] says otherwise."""
    flags: dict[str, Any] = {"resume": settings.resume, "address": settings.address}
    if settings.epochs is not None:
        flags["epochs"] = settings.epochs
    trained = project.command("train", TrainSettings, flags)
    rate = settings.learning_rate or trained.learning_rate * RATES[settings.method]
    return project.command("train", TrainSettings, {**flags, "learning_rate": rate})


def _build(
    settings: CompressSettings,
    fine_tuning: TrainSettings,
    parent: Parent,
    *,
    prepared: Prepared,
    known: dict[str, Any],
) -> Build:
    """Say how every worker makes the changed network: with what it needs in hand, so all make the same."""
    if settings.method == "distill":
        return partial(recorded_network, **known)
    if settings.method == "prune":
        return partial(
            pruned_network,
            weights=parent.weights(),
            ratio=settings.ratio,
            parameters=known["parameters"],
            rows=prepared.trial,
            n_classes=known["n_classes"],
        )
    n_batches = ranging_batches(
        len(prepared.train),
        batch_size=fine_tuning.batch_size,
        workers=fine_tuning.workers,
        epochs=fine_tuning.epochs,
    )
    return partial(quantising_network, weights=parent.weights(), n_batches=n_batches, **known)


def _name(candidate: Candidate) -> str:
    return f"{candidate.version.model}@{candidate.version.number}"


def _record(planned: Plan, result: CompressResult) -> Path:
    version, parent = result.candidate.version, planned.parent
    return planned.project.write_record(
        "compress",
        f"{version.number:04d}",
        {
            "model": version.model,
            "number": version.number,
            "digest": version.digest,
            "parent": {"number": parent.record.number, "digest": parent.version.digest},
            **planned.facts(),
            "before": asdict(result.before),
            "after": asdict(result.after),
            "pays": result.pays,
            "reason": result.reason,
            "promoted": result.candidate.promoted,
            "gates": [asdict(gate) for gate in result.candidate.gates],
            "epochs": [asdict(epoch) for epoch in result.epochs],
            "best_epoch": result.best_epoch,
        },
    )
