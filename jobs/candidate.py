"""From a fitted model to a registered candidate: export, parity, metrics, gates, signature.

The one way a model version comes to be, whoever fitted the model: train, tune or compress.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import kit
from jobs.exporting.estimator_graph import check_estimator_parity
from jobs.exporting.parity import ParityReport, adversarial_rows, check_parity, run_onnx
from jobs.fitting.estimator_class import check_estimator, is_estimator, library_versions
from jobs.fitting.estimators import used_settings
from jobs.fitting.loop import Fitted
from jobs.judge import Contender, find_champion, judge
from jobs.preparation.prepared import Prepared
from jobs.tracking import check_tracking
from kit.errors import ConflictError, GateError
from kit.files import canonical_json, digest_of, sha256_file
from kit.gates import GateResult, Judgement, failures, next_step
from kit.lineage import held_out_digest, question
from kit.metrics import evaluate
from kit.model_version import Parts, write_model_version
from kit.profile import profile
from kit.project import Project
from kit.registry import UNSET, VersionRecord
from kit.rows import Split
from kit.settings import TrainSettings
from kit.tensors import Tensors

_log = logging.getLogger("kit")
_PARITY_ROWS = 512
_TOOLS = ("torch", "onnx", "onnxruntime", "onnxscript", "scikit-learn", "skl2onnx", "numpy", "ray")


@dataclass(frozen=True)
class Candidate:
    """A registered candidate version and what was measured on the way.

    Attributes:
        version: The registered version.
        metrics: Metrics of the ONNX graph on the held-out rows.
        gates: How it did at the gates; empty when none are set.
        promoted: Whether champion now stands on it.
        wanted: Whether it was to be promoted.
        parity: How far ONNX is from Python, over ordinary and adversarial rows.
        confusion: Held-out rows by true class (row) and answered class (column); empty for regression.
    """

    version: VersionRecord
    metrics: dict[str, float]
    gates: tuple[GateResult, ...]
    promoted: bool
    wanted: bool
    parity: ParityReport
    confusion: tuple[tuple[int, ...], ...]

    def require_passed(self) -> None:
        """Refuse a candidate that was to be promoted and did not pass.

        Raises:
            GateError: Names every gate it failed, with what it reached.
        """
        said = failures(self.gates)
        if self.wanted and said:
            raise GateError(
                f"{self.version.model}@{self.version.number} was not promoted: {said}",
                hint=f"{next_step(self.gates)}, or promote it anyway: "
                f"kit models promote {self.version.model}@candidate --no-gates",
            )


def check_ready(project: Project) -> Path:
    """Ask once for everything that hours of work need in the end, and check an estimator's settings.

    Returns:
        The private key.

    Raises:
        NotFoundError: There is no signing key, or nobody's signature is trusted.
        ProjectError: The estimator cannot be fitted or exported.
        UnavailableError: The store or, where one is named, MLflow does not answer.
        MissingDependencyError: A package of the estimator's or of MLflow's is not installed.
    """
    key = project.signing_key()
    project.trusted()
    project.store().contains("0" * 64)  # asks S3 once: a missing bucket or key is found now
    if project.settings.model.estimator is not None:
        check_estimator(project)
    check_tracking()
    return key


def register_candidate(
    project: Project,
    settings: TrainSettings,
    prepared: Prepared,
    fitted: Fitted,
    *,
    promote: bool,
    lineage: Mapping[str, Any] | None = None,
) -> Candidate:
    """Export a fitted model, prove the export, measure it, sign it and register it.

    Args:
        project: Whose candidate it becomes.
        settings: Tolerance and golden rows; the rest goes into the lineage.
        prepared: The rows and the preprocessing it was fitted with.
        fitted: The model.
        promote: Whether champion moves to it when the gates pass.
        lineage: What else decided the outcome: a study, a parent.

    Raises:
        ConflictError: The project's Python is not the one the model was fitted with.
        GateError: The exported graph does not answer like the Python pipeline.
        ProjectError: The model cannot be exported.
        UnavailableError: The store or the disk fails.
    """
    parts, parity, outputs = _export(project, settings, prepared, fitted, lineage=lineage or {})
    metrics: dict[str, float] = parts.manifest["metrics"]
    judgement = _judge(project, parts, split=prepared.split, outputs=outputs)
    version = _register(project, parts, metrics=metrics, judgement=judgement)
    promoted = promote and judgement.passed
    if promoted:
        # Where it was held against a champion, it replaces that one and no other.
        expect = judgement.champion if project.settings.gates.max_loss else UNSET
        project.registry().promote(f"{project.name}@{version.number}", expect=expect)
    return Candidate(
        version=version,
        metrics=metrics,
        gates=judgement.results,
        promoted=promoted,
        wanted=promote,
        parity=parity,
        confusion=_confusion(prepared.split, outputs),
    )


def run_identity(project: Project, split: Split, settings: Mapping[str, Any]) -> str:
    """Name a run by everything that decides its outcome, so the same command finds it again.

    Args:
        project: Its Python and its settings count.
        split: Its data counts.
        settings: The command's own, without those that change nothing in the outcome.
    """
    decides = {
        "data": split.fingerprint,
        "code": code_digest(project),
        "project": project.settings.model_dump(
            mode="json", exclude={"commands", "gates", "store", "signing"}
        ),
        "prepare": project.prepare().steps,
        "settings": dict(settings),
    }
    return hashlib.sha256(canonical_json(decides)).hexdigest()[:16]


def code_digest(project: Project) -> str:
    """Name the project's Python by its content; the state folder and hidden folders do not count."""
    files = {}
    for path in sorted(project.folder.rglob("*.py")):
        name = path.relative_to(project.folder)
        if not any(part.startswith(".") for part in name.parts):
            files[name.as_posix()] = sha256_file(path)
    return digest_of(files)


def _export(
    project: Project,
    settings: TrainSettings,
    prepared: Prepared,
    fitted: Fitted,
    *,
    lineage: Mapping[str, Any],
) -> tuple[Parts, ParityReport, Tensors]:
    """Export the pipeline, check it against Python, and measure it on the held-out rows."""
    from jobs.exporting.form import FEATURES
    from jobs.exporting.graph import export_onnx, export_program, python_reference
    from jobs.preparation.device import fitted_steps, missing_steps

    split, signature, transformer = prepared.split, prepared.signature, prepared.transformer
    sample = prepared.blank  # the program keeps it
    _log.info("exporting to ONNX and checking it against Python")
    onnx = export_onnx(fitted.model, transformer=transformer, signature=signature, sample=sample)
    answer = run_onnx(onnx)
    reference = python_reference(fitted.model, transformer=transformer, signature=signature)
    ordinary = {name: array[:_PARITY_ROWS] for name, array in split.test.tensors.items()}
    strange = adversarial_rows(signature, sample={name: array[:8] for name, array in ordinary.items()})
    check = partial(check_estimator_parity, fitted.model) if is_estimator(fitted.model) else check_parity
    parity = check(reference, answer, rows=ordinary, adversarial=strange, tolerance=settings.parity_tolerance)
    outputs = {name: np.asarray(value) for name, value in answer(split.test.tensors).items()}
    golden = {name: array[: settings.golden_rows] for name, array in split.test.tensors.items()}
    parts = Parts(
        name=project.name,
        onnx=onnx,
        program=export_program(fitted.model, sample=sample),
        signature=signature,
        golden_inputs=golden,
        golden_outputs={name: np.asarray(value) for name, value in answer(golden).items()},
        profile=profile(split.train.tensors, signature=signature, outputs=outputs),
        steps=fitted_steps(transformer, signature=signature) if transformer is not None else None,
        manifest={
            "metrics": evaluate(signature.task, split.test.labels, outputs),
            "metrics_python": evaluate(signature.task, split.test.labels, reference(split.test.tensors)),
            "graph": {
                "features": FEATURES if transformer is not None else None,
                "missing_steps": missing_steps(transformer, signature=signature)
                if transformer is not None
                else None,
            },
            "parity": {"tolerance": parity.tolerance, "n_rows": parity.n_rows},
            "lineage": {**_lineage(project, settings, split, fitted=fitted), **lineage},
        },
    )
    return parts, parity, outputs


def _lineage(project: Project, settings: TrainSettings, split: Split, *, fitted: Fitted) -> dict[str, Any]:
    data = project.settings.data
    train = used_settings(project, settings)
    # A batch that was halved, or workers that went away, are what the weights come from.
    train |= {name: value for name, value in fitted.used.items() if name in train}
    code = code_digest(project)
    if fitted.code not in ("", code):
        raise ConflictError(
            "the project's Python was changed while the model was trained with it",
            hint="run the same command again to train with what is there now; with the former files back it "
            "goes on from what was learned",
        )
    return {
        "data": {
            "path": data.path,
            "fingerprint": split.fingerprint,
            "n_files": split.n_files,
            "size_bytes": split.size_bytes,
            "n_rows": split.n_rows,
            "n_train": len(split.train.rows),
            "n_validation": len(split.validation.rows),
            "n_test": len(split.test.rows),
            "held_out": held_out_digest(split.test),
            **question(project),
            **data.model_dump(mode="json", include={"split", "group", "time", "gap", "seed"}),
        },
        "code": {"digest": code},
        "prepare": project.prepare().steps,
        "model": project.settings.model.model_dump(mode="json"),
        "train": train,
        "toolchain": {
            "kit": kit.__version__,
            "python": platform.python_version(),
            **{tool: importlib.metadata.version(tool) for tool in _TOOLS},
            **library_versions(project.settings.model.estimator),
        },
    }


def _judge(project: Project, parts: Parts, *, split: Split, outputs: Tensors) -> Judgement:
    """Hold the exported graph against the gates, and against the champion where they name one."""
    champion = find_champion(project) if project.settings.gates.max_loss else None
    with tempfile.TemporaryDirectory(prefix="kit-judge-") as work:
        path = Path(work) / "model.onnx"
        path.write_bytes(parts.onnx)
        contender = Contender(
            model_path=path,
            signature=parts.signature,
            outputs=outputs,
            data=parts.manifest["lineage"]["data"],
        )
        against = champion[1] if champion is not None else None
        return judge(project, contender, rows=split.test, champion=against, draw=split.draw)


def _register(
    project: Project, parts: Parts, *, metrics: Mapping[str, float], judgement: Judgement
) -> VersionRecord:
    """Sign the version, put it in the store and make it the candidate."""
    project.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="version-", dir=project.state) as work:
        folder = Path(work) / "version"
        digest = write_model_version(parts, folder=folder, key=project.signing_key())
        uri = project.store().put(folder, digest=digest)
    registry = project.registry()
    summary = {"metrics": dict(metrics), "judgement": judgement.to_json()}
    version = registry.register(project.name, digest=digest, uri=uri, summary=summary)
    registry.promote(f"{project.name}@{version.number}", alias="candidate")
    return registry.resolve(f"{project.name}@{version.number}")


def _confusion(split: Split, outputs: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], ...]:
    n_classes = len(split.classes)
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    if n_classes:
        np.add.at(counts, (split.test.labels, outputs["label"]), 1)
    return tuple(tuple(int(count) for count in row) for row in counts)
