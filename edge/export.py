"""Export a model version for devices: convert, measure against the reference, bundle.

Per target the recipes of its ladder are tried until one keeps every budget; a bundle is written only then,
and what was measured is kept as a record and shown on a page either way. Latencies stay out of the bundle,
whose bytes must not depend on the day.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.attempt import Bench, Built, open_baseline
from edge.job import Job, prepare_job
from edge.ladder import BROKEN, Climb, Rung, climb
from edge.layers import Layer
from edge.listing import runnable
from edge.measure import Figures, Latency, confusion, error_histogram, measure_latency
from edge.recipes import Recipe, Target
from edge.reproduce import Winner, require_same_bytes
from edge.runtimes import require_interpreters
from edge.targets import TARGETS, find_target, require_packages
from kit.archive import SUFFIX
from kit.bundle import bundle_name
from kit.engines import open_engine
from kit.errors import GateError, InputError, MissingDependencyError, SettingsError
from kit.files import canonical_json, sha256_bytes, write_atomic
from kit.machine import this_machine
from kit.metrics import leading_metric, score
from kit.project import Project
from kit.settings import ExportSettings

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class Reference:
    """The float model on the held-out rows.

    Attributes:
        metric: The metric's name.
        value: Its value.
        size_bytes: Size of model.onnx.
        latency: Of one row.
    """

    metric: str
    value: float
    size_bytes: int
    latency: Latency


@dataclass(frozen=True)
class TargetResult:
    """One target, measured: the figures of the recipe that won, or of the last that was tried.

    Attributes:
        target: Its name.
        engine: What runs it.
        precision: Of weights and activations.
        recipe: The recipe that won; None when none did.
        figures: What was measured; None when nothing could be.
        measured_in: The engine and its version.
        note: What a user should know although it passed; may be empty.
        passed: Whether every budget was kept.
        reason: Why not; empty when passed.
        bundle: The bundle file; None when not passed.
        digest: The digest that names the bundle's content; None when not passed.
        ladder: Every recipe that was tried, in order.
        winner: The one that was shipped; None when none was.
        layers: What each layer adds to the error, where it was measured.
        confusion: Labels of the reference by labels of the target; None for regression.
        errors: Histogram of signed output errors; None when nothing was measured.
    """

    target: str
    engine: str
    precision: str
    recipe: str | None
    figures: Figures | None
    measured_in: str
    note: str
    passed: bool
    reason: str
    bundle: Path | None
    digest: str | None
    ladder: tuple[Rung, ...]
    winner: Rung | None
    layers: tuple[Layer, ...]
    confusion: dict[str, Any] | None
    errors: dict[str, Any] | None


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        model: The version, ``name@number``.
        digest: Its digest.
        reference: The float model, measured.
        targets: One result per target, in the order asked for.
        record: The file that keeps all of this.
        page: The page that shows it; None where what draws it is not installed.
    """

    model: str
    digest: str
    reference: Reference
    targets: tuple[TargetResult, ...]
    record: Path
    page: Path | None

    def require_passed(self) -> None:
        """Refuse a report with a failed target.

        Raises:
            GateError: Names every failed target with its figures and budgets.
        """
        failed = [result for result in self.targets if not result.passed]
        if failed:
            raise GateError(
                "; ".join(f"{result.target} was not written: {result.reason}" for result in failed),
                hint="raise the budget it breaks, see which layers cost with --explain, or leave the target "
                "out",
            )


def export(project: Project, settings: ExportSettings) -> ExportReport:
    """Export a model version for every target asked for.

    Writes ``<output>/<name>-<target>.bundle`` for each target within its budgets, a page beside them, and a
    record under ``<state>/runs/export``. A target that fails leaves no bundle, not even an older one of
    that name, and does not stop the others: call ``require_passed`` on the report.

    Raises:
        InputError: The data is not what the model was trained on, or the calibration rows or
            the model cannot be used; nothing was written.
        MissingDependencyError: A converter or a runtime is not installed.
        NotFoundError: The model, a target or the signing key is not known.
        VerificationError: The version's files or signature do not hold; or with ``check_reproducible`` a
            second build had other bytes.
        UnavailableError: The disk is full or cannot be written.
    """
    if settings.list:
        raise SettingsError(
            "[export] list = true stands in kit.toml, where it exports nothing", hint="take it out"
        )
    if settings.model is None:
        raise SettingsError(
            "no model version is named", hint=f"kit export {project.name}, or kit export --list"
        )
    require_interpreters(settings.verify_with)
    targets = _targets(settings)
    output = _output_folder(project, settings)
    project.signing_key()  # a missing one is said before anything is built
    version_record, version = project.open_version(settings.model)
    with tempfile.TemporaryDirectory(prefix="kit-export-") as name:
        job = prepare_job(project, settings, version=version, targets=targets, work=Path(name))
        results = []
        for number, target in enumerate(targets, start=1):
            _log.info("target %d of %d: %s", number, len(targets), target.name)
            results.append(_export_target(job, target, output=output))
        reference = _reference(job)
        if settings.check_reproducible:
            winners = [each for each in map(_winner, results) if each]
            require_same_bytes(project, settings, winners)
            _log.info("built again in another process: %d bundles, the same bytes", len(winners))
    model = f"{version.name}@{version_record.number}"
    facts = _facts(model, version.digest, reference, results, job, folder=project.folder)
    identity = f"{version.name}-{version.digest[:12]}-{sha256_bytes(canonical_json(facts['settings']))[:8]}"
    record = project.write_record("export", identity, facts)
    page = _write_page(project, facts, output / f"{version.name}-export.html")
    return ExportReport(model, version.digest, reference, tuple(results), record, page)


def _targets(settings: ExportSettings) -> list[Target]:
    names: dict[str, None] = dict.fromkeys(settings.target)
    if "all" in names:
        names = dict.fromkeys((*runnable(), *(name for name in names if name != "all")))
    targets = [find_target(name) for name in names]
    if not targets:
        raise MissingDependencyError(
            "this machine can build and run no target", hint="see what is missing: kit export --list"
        )
    require_packages(targets)
    return targets


def _output_folder(project: Project, settings: ExportSettings) -> Path:
    if "://" in settings.output:
        raise SettingsError(
            f"output = {settings.output!r} is an address; bundles are written to a folder",
            hint="name a folder",
        )
    folder = Path(project.locate(settings.output))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output = {settings.output!r} is not a folder", hint="name a folder")
    return folder


def _export_target(job: Job, target: Target, *, output: Path) -> TargetResult:
    """Climb a target's ladder and show the bundle that won; otherwise leave none under its name."""
    began_s = time.monotonic()
    path = output / f"{bundle_name(job.core.version.name, target.name)}{SUFFIX}"
    bench: Bench | None = None
    try:
        baseline = open_baseline(job, target)
    except InputError as error:  # not a recipe but the engine's converter refuses the network
        climbed = Climb((Rung(_float_of(target), (), None, {BROKEN: error.message}),), None)
    else:
        bench = Bench(job, target, baseline=baseline)
        climbed = climb(target.ladder, attempt=bench.attempt, rank=bench.rank)
    layers: tuple[Layer, ...] = ()
    if bench is not None and (job.settings.explain or not climbed.rungs[0].passed):
        layers = _layers(bench, target)
    winner = climbed.winner
    shown = winner or climbed.rungs[-1]
    built = bench.built.get(shown.recipe.name) if bench else None
    if winner is not None and built is not None:
        write_atomic(path, built.file.read_bytes())
        taken_s = time.monotonic() - began_s
        _log.info("%s: wrote %s by %s in %.0f s", target.name, path.name, winner.recipe.name, taken_s)
    else:
        _remove(path)
        _log.warning("%s: not written: %s", target.name, _reason(climbed))
    return _result(job, target, climbed, built=built, layers=layers, path=path)


def _reason(climbed: Climb) -> str:
    """Say why no recipe won: what was wrong with the last, and with how many others."""
    if climbed.winner is not None:
        return ""
    more = len(climbed.rungs) - 1
    others = f" (and {more} other recipe{'s' * (more > 1)} failed)" if more else ""
    return f"{climbed.rungs[-1].reason}{others}"


def _float_of(target: Target) -> Recipe:
    return next(each.ladder[0] for each in TARGETS.values() if each.engine == target.engine)


def _layers(bench: Bench, target: Target) -> tuple[Layer, ...]:
    recipe = target.ladder[0]
    if recipe.weights == "float32":
        return ()
    try:
        return bench.explain(recipe)
    except Exception as error:  # the converters' layers raise whatever they like about a user's network
        _log.warning("%s: its layers cannot be measured one by one: %s", target.name, str(error)[:200])
        return ()


def _result(
    job: Job,
    target: Target,
    climbed: Climb,
    *,
    built: Built | None,
    layers: tuple[Layer, ...],
    path: Path,
) -> TargetResult:
    shown = climbed.winner or climbed.rungs[-1]
    passed = climbed.winner is not None
    answers = built.answers if built is not None else None
    classes = job.core.version.signature.classes
    return TargetResult(
        target=target.name,
        engine=target.engine,
        precision=target.precision,
        recipe=shown.recipe.name if passed else None,
        figures=shown.figures,
        measured_in=built.measured_in if built is not None else "",
        note=_note(target, shown, built=built) if passed else "",
        passed=passed,
        reason=_reason(climbed),
        bundle=path if passed else None,
        digest=built.digest if passed and built is not None else None,
        ladder=climbed.rungs,
        winner=climbed.winner,
        layers=layers,
        confusion=confusion(job.expected, answers, classes=classes) if answers is not None else None,
        errors=error_histogram(job.expected, answers, scale=job.scale) if answers is not None else None,
    )


def _winner(result: TargetResult) -> Winner | None:
    if result.digest is None or result.winner is None:
        return None
    return Winner(result.target, result.winner.recipe.to_json(), result.winner.kept, result.digest)


def _note(target: Target, rung: Rung, *, built: Built | None) -> str:
    """Say what a user should know although the target passed."""
    notes = []
    if target.gpu and built is not None and "not on a GPU" in built.measured_in:
        notes.append("not run on a GPU: its accuracy is onnxruntime's, its speed was not measured")
    if rung.figures is not None and rung.figures.is_slower:
        notes.append(f"{rung.figures.slowdown:.1f} times the latency of float32 in {target.engine}")
    if built is not None:
        notes += built.notes
    return "; ".join(notes)


def _reference(job: Job) -> Reference:
    version = job.core.version
    engine = open_engine(
        version.model_path,
        engine="onnxruntime",
        threads=job.settings.threads,
        signature=version.signature,
    )
    metric = leading_metric(version.signature.task)
    return Reference(
        metric=metric,
        value=score(metric, job.held_out.labels, job.expected),
        size_bytes=version.model_path.stat().st_size,
        latency=measure_latency({"reference": engine.run}, job.held_out.tensors)["reference"],
    )


def _remove(path: Path) -> None:
    """Leave no older bundle under a failed target's name."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be removed: {error.strerror}", hint="name a folder this user can write as output"
        ) from error


def _write_page(project: Project, facts: dict[str, Any], path: Path) -> Path | None:
    from kit.report import export_report

    try:
        page = export_report(project, facts)
    except MissingDependencyError as error:
        _log.warning("no page was written: %s; %s", error.message, error.hint)
        return None
    write_atomic(path, page)
    return path


def _facts(
    model: str, digest: str, reference: Reference, results: list[TargetResult], job: Job, *, folder: Path
) -> dict[str, Any]:
    """Give the record's content; bundles are named from the project's folder, where they lie below it."""
    machine = this_machine()
    return {
        "model": model,
        "digest": digest,
        "settings": job.settings.model_dump(mode="json"),
        "machine": {
            "cpu": machine.cpu,
            "arch": machine.arch,
            "cores": machine.cores,
            "threads": job.settings.threads,
        },
        "calibration": {
            "n_rows": len(job.calibration.rows),
            "fingerprint": job.calibration.fingerprint,
            "n_left_out": job.calibration.n_left_out,
        },
        "reference": {
            "metric": reference.metric,
            "value": reference.value,
            "size_bytes": reference.size_bytes,
            "latency_ms": reference.latency.to_json(),
        },
        "targets": [_target_facts(result, folder) for result in results],
    }


def _target_facts(result: TargetResult, folder: Path) -> dict[str, Any]:
    figures = result.figures
    bundle = result.bundle
    if bundle is not None and bundle.is_relative_to(folder):
        bundle = bundle.relative_to(folder)
    return {
        "target": result.target,
        "engine": result.engine,
        "precision": result.precision,
        "recipe": result.recipe,
        "metric": figures and figures.comparison.metric,
        "n_rows": figures and figures.comparison.n_rows,
        **_figures(figures),
        "float_latency_ms": figures and figures.float_latency and figures.float_latency.to_json(),
        "float_bytes": figures and figures.float_bytes,
        "measured_in": result.measured_in,
        "note": result.note,
        "passed": result.passed,
        "reason": result.reason,
        "bundle": bundle and str(bundle),
        "bundle_digest": result.digest,
        "ladder": [
            {
                "recipe": rung.recipe.name,
                "says": rung.recipe.says,
                **_figures(rung.figures),
                "passed": rung is result.winner,
                "reason": rung.reason,
                "kept": list(rung.kept),
            }
            for rung in result.ladder
        ],
        "confusion": result.confusion,
        "errors": result.errors,
        "layers": [layer.to_json() for layer in result.layers],
    }


def _figures(figures: Figures | None) -> dict[str, Any]:
    comparison = figures and figures.comparison
    found = {
        "value": comparison and comparison.value,
        "drop": comparison and comparison.drop,
        "agreement": comparison and comparison.agreement,
        "output_error": comparison and comparison.output_error,
        "size_bytes": figures and figures.size_bytes,
        "model_bytes": figures and figures.model_bytes,
        "memory_mb": figures and figures.memory_mb,
        "load_s": figures and figures.load_s,
    }
    # JSON has no NaN and no infinity; a page shows that there is no figure, and the reason says which.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }
    return {**finite, "latency_ms": figures and figures.latency and figures.latency.to_json()}
