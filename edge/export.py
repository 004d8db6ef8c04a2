"""Export a model version for devices: convert, measure against the reference, bundle.

A bundle is written only if it keeps every budget; what was measured is kept as a record either
way. Each target is run in its real runtime, through the same ``kit.runner`` as on a device.
Latencies stay out of the bundle, whose bytes must not depend on the day.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge import bundle
from edge.calibrate import Calibration, calibrate
from edge.measure import (
    Answer,
    Budgets,
    Comparison,
    Latency,
    answer_all,
    compare,
    measure_latency,
    output_scale,
)
from edge.targets import Core, Target, core_of, find_target, load_converter, require_packages
from kit.archive import SUFFIX
from kit.bundle import bundle_name
from kit.data import load
from kit.engines import open_engine
from kit.errors import (
    GateError,
    InputError,
    KitError,
    MissingDependencyError,
    SettingsError,
    UnavailableError,
)
from kit.files import canonical_json, sha256_bytes, write_atomic
from kit.lineage import require_same_rows
from kit.metrics import leading_metric, score
from kit.model_version import ModelVersion
from kit.project import Project
from kit.rows import Part
from kit.runner import Runner
from kit.settings import ExportSettings
from kit.signature import Tensors

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
    """One target, measured.

    Attributes:
        target: Its name.
        comparison: With the reference; None when the network could not be converted.
        size_bytes: Size of the bundle file; None when there was none to measure.
        latency: Of one row, preprocessing included; None when there was nothing to time.
        passed: Whether every budget was kept.
        reason: The figures over budget, or why it could not be converted; empty when passed.
        bundle: The bundle file; None when not passed.
        digest: The digest that names the bundle's content; None when not passed.
    """

    target: str
    comparison: Comparison | None
    size_bytes: int | None
    latency: Latency | None
    passed: bool
    reason: str
    bundle: Path | None
    digest: str | None


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        model: The version, ``name@number``.
        digest: Its digest.
        reference: The float model, measured.
        targets: One result per target, in the order asked for.
        record: The file that keeps all of this.
    """

    model: str
    digest: str
    reference: Reference
    targets: tuple[TargetResult, ...]
    record: Path

    def require_passed(self) -> None:
        """Refuse a report with a failed target.

        Raises:
            GateError: Names every failed target with its figures and budgets.
        """
        failed = [result for result in self.targets if not result.passed]
        if failed:
            raise GateError(
                "; ".join(f"{result.target} was not written: {result.reason}" for result in failed),
                hint="raise the budget it breaks, give more calibration_rows, or leave the target out",
            )


@dataclass(frozen=True)
class _Job:
    """What every target of one export shares."""

    core: Core
    calibration: Calibration
    held_out: Part
    expected: Tensors
    scale: float
    fingerprint: str
    settings: ExportSettings
    key: Path
    trusted: tuple[bytes, ...]

    @property
    def budgets(self) -> Budgets:
        settings = self.settings
        return Budgets(
            max_metric_drop=settings.max_metric_drop,
            max_output_error=settings.max_output_error,
            max_size_mb=settings.max_size_mb,
            max_latency_ms=settings.max_latency_ms,
        )


@dataclass(frozen=True)
class _Built:
    """A target's bundle, still out of sight."""

    target: Target
    file: Path
    digest: str
    comparison: Comparison
    runner: Runner


def export(project: Project, settings: ExportSettings) -> ExportReport:
    """Export a model version for every target asked for.

    Writes ``<output>/<name>-<target>.bundle`` for each target within its budgets, and a record
    under ``<state>/runs/export``. A target that fails leaves no bundle, not even an older one of
    that name, and does not stop the others: call ``require_passed`` on the report.

    Raises:
        InputError: The data is not what the model was trained on, or the calibration rows or
            the model cannot be used; nothing was written.
        MissingDependencyError: A converter or a runtime is not installed.
        NotFoundError: The model, a target or the signing key is not known.
        VerificationError: The version's files or signature do not hold.
        UnavailableError: The disk is full or cannot be written.
    """
    targets = [find_target(name) for name in dict.fromkeys(settings.target)]
    require_packages(targets)
    output = _output_folder(project, settings)
    key, trusted = project.signing_key(), project.trusted()
    version_record, version = project.open_version(settings.model)
    job = _prepare(project, settings, version=version, key=key, trusted=trusted)
    with tempfile.TemporaryDirectory(prefix="kit-export-") as name:
        built = [_build(job, target, Path(name) / target.name) for target in targets]
        latencies = _latencies(job, [each for each in built if isinstance(each, _Built)])
        results = tuple(
            _publish(job, each, latency=latencies.get(target.name), target=target, output=output)
            for target, each in zip(targets, built, strict=True)
        )
    reference = Reference(
        metric=leading_metric(version.signature.task),
        value=score(leading_metric(version.signature.task), job.held_out.labels, job.expected),
        size_bytes=version.model_path.stat().st_size,
        latency=latencies["reference"],
    )
    model = f"{version.name}@{version_record.number}"
    facts = _facts(model, version.digest, reference, results, settings)
    identity = f"{version.name}-{version.digest[:12]}-{sha256_bytes(canonical_json(facts['settings']))[:8]}"
    path = project.write_record("export", identity, facts)
    return ExportReport(model, version.digest, reference, results, path)


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


def _prepare(
    project: Project,
    settings: ExportSettings,
    *,
    version: ModelVersion,
    key: Path,
    trusted: tuple[bytes, ...],
) -> _Job:
    core = core_of(version)
    split = load(project)
    require_same_rows(project, version, split)
    calibration = calibrate(core, split, n_rows=settings.calibration_rows, seed=project.settings.data.seed)
    # One thread wherever answers are compared: sums in another order would change the manifest.
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    expected = answer_all(engine.run, split.test.tensors)
    return _Job(
        core=core,
        calibration=calibration,
        held_out=split.test,
        expected=expected,
        scale=output_scale(expected),
        fingerprint=split.fingerprint,
        settings=settings,
        key=key,
        trusted=trusted,
    )


def _build(job: _Job, target: Target, work: Path) -> _Built | str:
    """Convert, compare and pack one target; or say why it cannot be done.

    A converter or a runtime that refuses this network ends this target, and no other one.
    """
    try:
        return _built(job, target, work)
    except (UnavailableError, MissingDependencyError):  # no fault of the network: every target meets it
        raise
    except KitError as error:
        return error.message


def _built(job: _Job, target: Target, work: Path) -> _Built | str:
    folder = work / "parts"
    folder.mkdir(parents=True)
    bundle.write_parts(folder, core=job.core)
    _log.info("%s: converting with %d calibration rows", target.name, len(job.calibration.rows))
    try:
        with _quiet():
            load_converter(target)(job.core, calibration=job.calibration.rows, folder=folder)
    except KitError:
        raise
    except Exception as error:  # the converters' layers raise whatever they like about a user's network
        _log.debug("%s: the converter failed", target.name, exc_info=True)
        lines = str(error).strip().splitlines() or [""]
        return f"the network cannot be converted: {type(error).__name__}: {lines[0][:200]}"
    _log.info("%s: comparing with the reference on %d rows", target.name, len(job.held_out.labels))
    comparison = _compare(job, target, folder)
    file = work / "packed"
    digest = bundle.pack_bundle(folder, file, key=job.key)
    # From here on only the packed file counts: it is unpacked, verified and run as on a device.
    opened = bundle.unpack_bundle(file, folder=work / "unpacked", trusted=job.trusted)
    runner = Runner.open(opened.folder, threads=job.settings.threads)
    return _Built(target, file, digest, comparison, runner)


def _compare(job: _Job, target: Target, folder: Path) -> Comparison:
    """Run the model files on the held-out and the golden rows, and write the manifest."""
    facts: dict[str, Any] = {
        "budgets": asdict(job.budgets),
        "calibration": {
            "n_rows": len(job.calibration.rows),
            "fingerprint": job.calibration.fingerprint,
        },
        "golden": {
            "min_agreement": 0.0,
            "max_output_error": job.budgets.max_output_error,
            "output_scale": bundle.rounded(job.scale),
        },
    }

    def write() -> None:
        bundle.write_manifest(folder, core=job.core, target=target, release=job.settings.release, facts=facts)

    write()
    runner = Runner.open(folder, threads=1)
    comparison = compare(
        job.expected,
        answer_all(runner.run, job.held_out.tensors),
        labels=job.held_out.labels,
        metric=leading_metric(job.core.version.signature.task),
        scale=job.scale,
    )
    golden = runner.check_golden()
    if golden.agreement is None:
        facts["golden"]["min_agreement"] = None
    else:
        # One row of slack: INT8 kernels of other CPUs and runtimes round differently.
        facts["golden"]["min_agreement"] = bundle.rounded(max(0.0, golden.agreement - 1 / golden.n_rows))
    facts["metrics"] = {
        "metric": comparison.metric,
        "reference": bundle.rounded(comparison.reference),
        "value": bundle.rounded(comparison.value),
        "agreement": None if comparison.agreement is None else bundle.rounded(comparison.agreement),
        "output_error": bundle.rounded(comparison.output_error),
        "n_rows": comparison.n_rows,
        "fingerprint": job.fingerprint,
    }
    write()
    return comparison


def _latencies(job: _Job, built: list[_Built]) -> dict[str, Latency]:
    version = job.core.version
    reference = open_engine(
        version.model_path,
        engine="onnxruntime",
        threads=job.settings.threads,
        signature=version.signature,
    )
    answers: dict[str, Answer] = {"reference": reference.run}
    answers.update({each.target.name: each.runner.run for each in built})
    return measure_latency(answers, job.held_out.tensors)


def _publish(
    job: _Job, built: _Built | str, *, latency: Latency | None, target: Target, output: Path
) -> TargetResult:
    """Show the bundle under its name if it kept every budget; otherwise leave none there."""
    path = output / f"{bundle_name(job.core.version.name, target.name)}{SUFFIX}"
    if isinstance(built, str) or latency is None:
        _remove(path)
        return TargetResult(target.name, None, None, None, False, str(built), None, None)
    size_bytes = built.file.stat().st_size
    reason = job.budgets.broken(built.comparison, size_bytes=size_bytes, latency=latency)
    golden = built.runner.check_golden()
    if not reason and not golden.passed:
        reason = f"golden rows: {golden.reason}"
    if reason:
        _remove(path)
        return TargetResult(target.name, built.comparison, size_bytes, latency, False, reason, None, None)
    write_atomic(path, built.file.read_bytes())
    _log.info("%s: wrote %s, %d bytes", target.name, path.name, size_bytes)
    return TargetResult(target.name, built.comparison, size_bytes, latency, True, "", path, built.digest)


def _remove(path: Path) -> None:
    """Leave no older bundle under a failed target's name."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be removed: {error.strerror}", hint="name a folder this user can write as output"
        ) from error


def _facts(
    model: str,
    digest: str,
    reference: Reference,
    results: tuple[TargetResult, ...],
    settings: ExportSettings,
) -> dict[str, Any]:
    """Give the record's content."""
    return {
        "model": model,
        "digest": digest,
        "settings": settings.model_dump(mode="json"),
        "reference": {
            "metric": reference.metric,
            "value": reference.value,
            "size_bytes": reference.size_bytes,
            "latency_ms": reference.latency.to_json(),
        },
        "targets": [_target_facts(result) for result in results],
    }


def _target_facts(result: TargetResult) -> dict[str, Any]:
    comparison = result.comparison
    return {
        "target": result.target,
        "metric": comparison and comparison.metric,
        "value": comparison and comparison.value,
        "agreement": comparison and comparison.agreement,
        "output_error": comparison and comparison.output_error,
        "n_rows": comparison and comparison.n_rows,
        "size_bytes": result.size_bytes,
        "latency_ms": result.latency and result.latency.to_json(),
        "passed": result.passed,
        "reason": result.reason,
        "bundle": result.bundle and str(result.bundle),
        "bundle_digest": result.digest,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' progress bars, C++ logs and warnings off the user's screen.

    Some write to ``sys.stdout``, some to the file descriptors; all of it goes to the debug log.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    previous = logging.root.manager.disable
    written = io.StringIO()  # not a file: some of them keep the stream they find when imported
    with tempfile.TemporaryFile() as sink:
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            logging.disable(logging.CRITICAL)
            with (
                contextlib.redirect_stdout(written),
                contextlib.redirect_stderr(written),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            logging.disable(previous)
            sink.seek(0)
            _log.debug("the converter wrote: %s", written.getvalue() + sink.read().decode(errors="replace"))
