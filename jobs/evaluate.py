"""Measure a model version, hold it against the gates, explain it, and write its card.

The version's own files answer on onnxruntime, verified first. Only folds and curves train, in this process,
and register nothing. Everything that can be refused is refused before the first row is answered.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.alone import alone
from jobs.candidate import code_digest, run_identity
from jobs.evaluation.curves import Variation, check_variation, learning_curve, validation_curve
from jobs.evaluation.explain import require_shap, shap_values
from jobs.evaluation.folds import check_folds, cross_validate
from jobs.evaluation.importance import permutation_importance
from jobs.evaluation.refit import Recipe, Refit, recipe_of
from jobs.evaluation.rows import MeasuredRows, held_out_rows, labelled_rows
from jobs.evaluation.slices import check_columns, rank_slices
from jobs.judge import Contender, answer_rows, find_champion, judge, signature_difference
from kit.bootstrap import Bootstrap
from kit.calibration import calibration_curve
from kit.card import write_card
from kit.engines import Engine, open_engine
from kit.errors import GateError, InputError, SettingsError
from kit.files import canonical_json, read_json, write_atomic
from kit.gates import GateResult, Judgement, failures, next_step
from kit.junit import junit_xml
from kit.lineage import question_difference
from kit.metrics import Measured, by_class, leading_metric, measure, statistic
from kit.model_version import ModelVersion
from kit.project import Project
from kit.registry import VersionRecord
from kit.settings import EvaluateSettings
from kit.tensors import Tensors

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured.

    Attributes:
        model: The version, ``name@number``.
        facts: Every figure, as the record and ``--json-report`` hold them.
        gates: How it did at each gate.
        gated: Whether a gate that was not passed fails the command.
        written: The files that were written, the record last.
    """

    model: str
    facts: dict[str, Any]
    gates: tuple[GateResult, ...]
    gated: bool
    written: tuple[Path, ...]

    def require_passed(self) -> None:
        """Refuse a version that did not pass a gate.

        Raises:
            GateError: Names every gate it failed, with what it reached.
        """
        said = failures(self.gates)
        if self.gated and said:
            raise GateError(
                f"{self.model} does not pass: {said}",
                hint=f"{next_step(self.gates)}, or measure alone with --no-gates",
            )


@dataclass(frozen=True)
class _Job:
    """What every measurement of one evaluation shares."""

    project: Project
    settings: EvaluateSettings
    record: VersionRecord
    version: ModelVersion
    rows: MeasuredRows
    champion: tuple[VersionRecord, ModelVersion] | None
    recipe: Recipe | None
    variation: Variation | None

    @property
    def metric(self) -> str:
        return leading_metric(self.version.signature.task)

    @property
    def name(self) -> str:
        return f"{self.record.model}@{self.record.number}"

    @property
    def identity(self) -> str:
        """Name the record: one of each version and table."""
        table = "" if self.rows.held_out else f"-{self.rows.fingerprint[:8]}"
        return f"{self.record.number:04d}{table}"

    def engine(self, version: ModelVersion) -> Engine:
        return open_engine(
            version.model_path,
            engine="onnxruntime",
            threads=self.settings.threads,
            signature=version.signature,
        )


def evaluate(project: Project, settings: EvaluateSettings) -> EvaluateResult:
    """Measure a version; see the module.

    An interrupted evaluation keeps the folds and points of curves that were trained, and what an earlier one
    measured of the same version and rows beyond what is asked for now stays in the record.

    Raises:
        InputError: The data is not what the version was trained on, a table has no labels or classes the
            version does not know, a column to slice by does not exist, or the answers are not finite.
        SettingsError: A file would be written to an address, or a curve varies what does not exist.
        MissingDependencyError: SHAP values are asked for and shap is not installed.
        NotFoundError: Nobody knows the version.
        VerificationError: A file or a signature does not hold.
        ConflictError: The same evaluation is running already.
        UnavailableError: The store or the disk fails.
    """
    job = _prepared(project, settings)
    labels, task = job.rows.part.labels, job.version.signature.task
    engine = job.engine(job.version)
    _log.info("measuring %s on %d %s", job.name, len(labels), job.rows.source)
    outputs = answer_rows(engine, job.rows.part.tensors)
    measured = measure(task, labels, outputs)
    judgement = _judged(job, outputs)
    facts = {
        **_identity(job),
        **_figures(job, outputs, measured),
        "gates": [asdict(result) for result in judgement.results],
        # What lets the registry promote: only rows nobody chose for the purpose count.
        "judgement": judgement.to_json() if job.rows.held_out else None,
        "champion": _champion_facts(job),
        **_explained(job, engine),
    }
    with ExitStack() as held:
        facts |= _trained_again(job, held)
        facts |= _kept(job, facts)
        written = _write(job, facts, judgement)
    return EvaluateResult(job.name, facts, judgement.results, settings.gates, written)


def _prepared(project: Project, settings: EvaluateSettings) -> _Job:
    """Check everything that can be checked before anything is measured."""
    if settings.shap:
        require_shap()
    for key in ("json_report", "junit", "card"):
        place = getattr(settings, key)
        if place is not None and "://" in place:
            raise SettingsError(f"{key} = {place!r} is an address; it is a file", hint="name a file")
    curves = settings.learning_curve or settings.validation_curve is not None
    trains = settings.cross_validation != "none" or curves
    if trains and settings.data is not None:
        raise SettingsError(
            "folds and curves train on the project's own data, so they do not go with data",
            hint="leave --data out, or the folds and curves",
        )
    record, version = project.open_version(settings.model or f"{project.name}@candidate")
    recipe = recipe_of(project, version, name=f"{record.model}@{record.number}") if trains else None
    variation = None
    if recipe is not None and settings.validation_curve is not None:
        variation = Variation.parse(settings.validation_curve, train=recipe.train)
        check_variation(recipe.project, variation)
    champion = find_champion(project) if settings.against is None else project.open_version(settings.against)
    if settings.data is not None:
        rows = labelled_rows(project, version, settings.data)
    else:
        rows = held_out_rows(project, version)
    if not len(rows.part.labels):
        raise InputError("there are no rows to measure on", hint="hold out more rows")
    check_columns(rows.table, settings.slices)
    if rows.rows is not None and settings.cross_validation != "none":
        check_folds(rows.rows, kind=settings.cross_validation, n_folds=settings.folds)
    return _Job(project, settings, record, version, rows, champion, recipe, variation)


def _judged(job: _Job, outputs: Tensors) -> Judgement:
    contender = Contender(
        model_path=job.version.model_path,
        signature=job.version.signature,
        outputs=outputs,
        data=job.version.manifest.get("lineage", {}).get("data", {}),
        digest=job.version.digest,
    )
    champion = job.champion[1] if job.champion is not None else None
    table = None if job.rows.held_out else job.rows.fingerprint
    return judge(
        job.project, contender, rows=job.rows.part, champion=champion, table=table, draw=job.rows.draw
    )


def _identity(job: _Job) -> dict[str, Any]:
    lineage = job.version.manifest.get("lineage", {})
    notes = []
    if not job.rows.held_out and job.rows.fingerprint == lineage.get("data", {}).get("fingerprint"):
        notes.append("these are the rows it was trained on, so the figures say little about new ones")
    data = job.project.settings.data
    if data.split in ("grouped", "time") and job.rows.draw.kind == "rows":
        column = data.group if data.split == "grouped" else data.time
        notes.append(
            f"the table has no column {column!r}, so the intervals take its rows for independent ones"
        )
    if job.recipe is not None and code_digest(job.project) != lineage.get("code", {}).get("digest"):
        notes.append(
            "the project's Python has changed since it was trained; folds and curves use it as it is"
        )
    return {
        "model": job.record.model,
        "number": job.record.number,
        "digest": job.record.digest,
        "task": job.version.signature.task,
        "n_rows": len(job.rows.part.labels),
        "classes": list(job.version.signature.classes),
        "data": {
            "source": job.rows.source,
            "fingerprint": job.rows.fingerprint,
            "held_out": job.rows.held_out,
            "label": job.project.settings.data.label,
        },
        "notes": notes,
        "size_bytes": job.version.model_path.stat().st_size,
    }


def _figures(job: _Job, outputs: Tensors, measured: Measured) -> dict[str, Any]:
    """Measure metrics with their intervals, each class, calibration and slices."""
    labels, gates = job.rows.part.labels, job.project.settings.gates
    bootstrap = Bootstrap(gates.resamples, gates.confidence, gates.seed, job.rows.draw)
    statistics = {metric: statistic(metric, labels, outputs) for metric in measured.values}
    intervals = {
        metric: [interval.low, interval.high]
        for metric, interval in bootstrap.intervals(statistics, n_rows=len(labels)).items()
        if interval.is_bounded
    }
    facts: dict[str, Any] = {
        "metric": job.metric,
        "metrics": measured.values,
        "undefined": measured.undefined,
        "intervals": {
            "confidence": gates.confidence,
            "resamples": gates.resamples,
            "drawn": job.rows.draw.kind,
            "bounds": intervals,
        },
        "by_class": {},
        "calibration": None,
    }
    classes = job.version.signature.classes
    if classes:
        each = by_class(labels, outputs["label"], n_classes=len(classes))
        facts["by_class"] = {str(name): asdict(one) for name, one in zip(classes, each, strict=True)}
        facts["calibration"] = asdict(calibration_curve(labels, outputs["probabilities"]))
    slices = rank_slices(
        job.rows.table, job.settings.slices, labels=labels, outputs=outputs, metric=job.metric
    )
    facts["slices"] = [asdict(each) for each in slices]
    return facts


def _champion_facts(job: _Job) -> dict[str, Any] | None:
    """Measure what the version is compared with, on the same rows; nothing where it is the version itself."""
    if job.champion is None or job.champion[0].digest == job.record.digest:
        return None
    record, version = job.champion
    facts: dict[str, Any] = {
        "model": record.model,
        "number": record.number,
        "digest": record.digest,
        "metrics": {},
        "reason": signature_difference(job.version.signature, version.signature),
    }
    trained_on = [each.manifest.get("lineage", {}).get("data", {}) for each in (version, job.version)]
    if not facts["reason"] and (asked := question_difference(*trained_on)):
        facts["reason"] = f"it was trained on another question: {asked}"
    if not facts["reason"]:
        try:
            outputs = answer_rows(job.engine(version), job.rows.part.tensors)
            facts["metrics"] = measure(version.signature.task, job.rows.part.labels, outputs).values
        except InputError as error:  # the champion's answers are not finite: said, and no reason to stop
            facts["reason"] = error.message
    return facts


def _explained(job: _Job, engine: Engine) -> dict[str, Any]:
    part, seed = job.rows.part, job.project.settings.gates.seed
    order = np.random.default_rng(seed).permutation(len(part.labels))[: job.settings.explain_rows]
    some = part.take(order)
    signature = job.version.signature

    def answer(tensors: Tensors) -> Tensors:
        return answer_rows(engine, tensors)

    _log.info("shuffling columns of %d rows", len(order))
    importance = permutation_importance(
        answer, some.tensors, some.labels, signature=signature, metric=job.metric, seed=seed
    )
    shap: tuple[Any, ...] = ()
    if job.settings.shap:
        _log.info("explaining %d rows by SHAP values", len(order))
        shap = shap_values(answer, some.tensors, signature=signature, seed=seed)
    return {
        "explained": {"n_rows": len(order), "metric": job.metric},
        "importance": [asdict(each) for each in importance],
        "shap": [asdict(each) for each in shap],
    }


def _trained_again(job: _Job, held: ExitStack) -> dict[str, Any]:
    """Train on folds and for curves; what is kept of it goes when the evaluation is written."""
    settings, rows, split = job.settings, job.rows.rows, job.rows.split
    facts: dict[str, Any] = {"cross_validation": None, "learning_curve": [], "validation_curve": None}
    wanted = (settings.cross_validation, settings.learning_curve, settings.validation_curve)
    if job.recipe is None or rows is None or split is None:
        return facts
    project, train = job.recipe.project, job.recipe.train
    identity = run_identity(
        project,
        split,
        {
            "train": train.model_dump(mode="json", exclude={"promote", "resume", "address"}),
            "evaluate": [*map(str, wanted), settings.folds],
        },
    )
    storage = project.state / "evaluate"
    held.enter_context(alone(storage, identity))
    refit = Refit(project, train.model_copy(update={"threads": settings.threads}), storage / identity)
    if settings.cross_validation != "none":
        found = cross_validate(refit, rows, kind=settings.cross_validation, n_folds=settings.folds)
        facts["cross_validation"] = {
            **asdict(found),
            "folds": [{"metrics": fold} for fold in found.folds],
        }
    if settings.learning_curve:
        facts["learning_curve"] = [
            {"n_rows": each.at, "train": each.train, "validation": each.validation}
            for each in learning_curve(refit, split, metric=job.metric)
        ]
    if job.variation is not None:
        points = validation_curve(refit, split, variation=job.variation, metric=job.metric)
        facts["validation_curve"] = {
            "name": job.variation.name,
            "values": [
                {"value": each.at, "train": each.train, "validation": each.validation} for each in points
            ],
        }
    held.enter_context(_Forgetting(storage / identity))
    return facts


class _Forgetting:
    """Removes what was kept of trainings once everything is written, and keeps it where that failed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _kept(job: _Job, facts: dict[str, Any]) -> dict[str, Any]:
    """Find what an earlier evaluation of the same version and rows has measured beyond this one."""
    settings = job.settings
    asked = {
        "cross_validation": settings.cross_validation != "none",
        "learning_curve": settings.learning_curve,
        "validation_curve": settings.validation_curve is not None,
        "shap": settings.shap,
    }
    try:
        before = read_json(job.project.state / "runs" / "evaluate" / f"{job.identity}.json")
    except InputError:  # there is none, or it is damaged; this one replaces it
        return {}
    same = ("fingerprint", "held_out", "label")
    if before.get("digest") != facts["digest"] or any(
        before.get("data", {}).get(name) != facts["data"][name] for name in same
    ):
        return {}
    if before.get("explained") != facts["explained"]:
        asked["shap"] = True  # of other rows than the card says were explained
    kept = {name: before[name] for name, again in asked.items() if not again and before.get(name)}
    if not kept:
        return {}
    listed = ", ".join(name.replace("_", " ") for name in kept)
    return {
        **kept,
        "notes": [*facts["notes"], f"measured by an earlier evaluation of the same rows: {listed}"],
    }


def _write(job: _Job, facts: dict[str, Any], judgement: Judgement) -> tuple[Path, ...]:
    settings = job.settings
    written = []
    if settings.json_report is not None:
        written.append(Path(settings.json_report))
        write_atomic(written[-1], canonical_json(facts))
    if settings.junit is not None:
        written.append(Path(settings.junit))
        write_atomic(written[-1], junit_xml(judgement.results, suite=job.name))
    written += write_card(
        facts, manifest=job.version.manifest, signature=job.version.signature, path=Path(settings.card)
    )
    written.append(job.project.write_record("evaluate", job.identity, facts))
    return tuple(written)
