"""Train a project's model and register a candidate version.

Reads and splits the table, fits the preprocessing on the training rows, runs the training loop
on Ray Train, exports, checks that the exported graph answers like the Python it came from, and
only then signs and registers. Everything that can be refused is refused before Ray starts.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kit
from jobs.cluster import check_room, connected, translated
from jobs.fit import BEST, PROGRESS, Epoch, FitConfig, build_network, check_network, loop
from jobs.listening import listening, refused
from kit.data import Split, load
from kit.errors import ConflictError, GateError, InputError, ProjectError, UnavailableError
from kit.files import canonical_json, digest_of, sha256_file
from kit.gates import GateResult, check_floors
from kit.metrics import evaluate
from kit.model_version import Parts, write_model_version
from kit.profile import profile
from kit.project import Project
from kit.registry import VersionRecord
from kit.settings import TrainSettings
from kit.signature import Signature, Tensors

if TYPE_CHECKING:
    import torch

    from jobs.parity import ParityReport

_log = logging.getLogger("kit")
_MAX_FAILURES = 3
_PARITY_ROWS = 512
_TOOLS = ("torch", "onnx", "onnxruntime", "onnxscript", "scikit-learn", "skl2onnx", "numpy", "ray")


@dataclass(frozen=True)
class TrainResult:
    """What training produced.

    Attributes:
        version: The registered candidate.
        metrics: Metrics of the ONNX graph on the held-out rows.
        gates: How it did at the gates; empty when none are set.
        promoted: Whether champion now stands on it.
        epochs: Figures of each epoch.
        best_epoch: Whose weights were kept, from 1.
        parity: How far ONNX is from Python, over ordinary and adversarial rows.
        record: Where the run's record lies.
        wanted: Whether it was to be promoted.
    """

    version: VersionRecord
    metrics: dict[str, float]
    gates: tuple[GateResult, ...]
    promoted: bool
    epochs: tuple[Epoch, ...]
    best_epoch: int
    parity: ParityReport
    record: Path
    wanted: bool

    def require_passed(self) -> None:
        """Refuse a candidate that was to be promoted and did not pass.

        Raises:
            GateError: Names every gate it failed, with what it reached.
        """
        failed = [gate for gate in self.gates if not gate.passed]
        if self.wanted and failed:
            said = "; ".join(f"{gate.metric} is {gate.value:.4f}, the gate {gate.bound:g}" for gate in failed)
            raise GateError(
                f"{self.version.model}@{self.version.number} was not promoted: {said}",
                hint=f"train better, or promote it anyway: "
                f"kit models promote {self.version.model}@candidate --no-gates",
            )


@dataclass(frozen=True)
class _Prepared:
    """Rows as the network reads them, and the transformer that made them so."""

    transformer: Any | None
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class _Fitted:
    network: torch.nn.Module
    epochs: tuple[Epoch, ...]
    best_epoch: int


def train(project: Project, settings: TrainSettings) -> TrainResult:
    """Train, export, check, sign, register; see the module.

    Interrupted runs continue where their last epoch ended when the same command is run again on
    the same data, code and settings.

    Raises:
        InputError: The data, the project's Python or the settings break a rule; training diverged.
        GateError: The exported graph does not answer like the Python pipeline.
        NotFoundError: There is no signing key.
        ConflictError: The same training is running already.
        UnavailableError: The cluster, the store or the disk fails.
    """
    key = project.signing_key()
    project.trusted()
    project.store().contains("0" * 64)  # asks S3 once: a missing bucket or key is found now
    split = load(project)
    signature = project.settings.signature(split.classes)
    prepared = _prepare(project, split, signature)
    # Built once before Ray starts: a factory that cannot work is refused in a second.
    network = build_network(project, n_features=_width(prepared.train), n_classes=len(split.classes))
    check_network(network, rows=prepared.train[:2], n_classes=len(split.classes))
    identity = _run_identity(project, split, settings)
    with _alone(project.state / "train", identity):
        result = _run(project, settings, split, prepared, identity=identity, key=key)
        shutil.rmtree(project.state / "train" / identity, ignore_errors=True)
    return result


def _run(
    project: Project,
    settings: TrainSettings,
    split: Split,
    prepared: _Prepared,
    *,
    identity: str,
    key: Path,
) -> TrainResult:
    """Do what comes after everything that can be refused early."""
    signature = project.settings.signature(split.classes)
    fitted = _fit(project, settings, split, prepared, identity=identity)
    parts, parity, metrics, test_outputs = _export(project, settings, split, prepared, fitted, signature)
    gates = check_floors(metrics, dict[str, float](project.settings.gates.floors.items()))
    version = _register(project, parts, key=key, metrics=metrics)
    passed = all(gate.passed for gate in gates)
    if settings.promote and passed:
        project.registry().promote(f"{project.name}@{version.number}")
    record = project.write_record(
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
            "metrics": metrics,
            "gates": [asdict(gate) for gate in gates],
            "promoted": settings.promote and passed,
            "n_rows": {"train": len(split.train.rows), "test": len(split.test.rows)},
            "parity": parity.max_relative_difference,
            "confusion": _confusion(split, test_outputs),
        },
    )
    return TrainResult(
        version=version,
        metrics=metrics,
        gates=gates,
        promoted=settings.promote and passed,
        epochs=fitted.epochs,
        best_epoch=fitted.best_epoch,
        parity=parity,
        record=record,
        wanted=settings.promote,
    )


@contextmanager
def _alone(folder: Path, identity: str) -> Iterator[None]:
    """Keep a second training of the same identity out: both would write the same checkpoints."""
    lock = folder / f"{identity}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise UnavailableError(
            f"{lock} cannot be written: {error.strerror}", hint="make the folder writable"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):  # held, or its holder has just left
            taken = True
        if taken:
            raise ConflictError(
                f"the training {identity} of the same data, code and settings is running already",
                hint="wait until it has ended, or change a setting",
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _prepare(project: Project, split: Split, signature: Signature) -> _Prepared:
    """Fit the project's preprocessing on the training rows, or find the one float input."""
    if project.settings.model.preprocessing is None:
        name = _only_input(signature)
        return _Prepared(None, split.train.tensors[name], split.validation.tensors[name])
    from sklearn.base import BaseEstimator

    from jobs.preprocessing import check_transformer, to_features, to_frame

    reference = project.settings.model.preprocessing
    make = project.load_object(reference)
    try:
        transformer = make()
    except Exception as error:  # the user's code may raise anything at all
        raise ProjectError(f"{reference!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(transformer, BaseEstimator) or not hasattr(transformer, "transform"):
        raise ProjectError(
            f"{reference!r} returned a value of type {type(transformer).__name__}",
            hint="return an unfitted scikit-learn transformer",
        )
    check_transformer(transformer)
    try:
        transformer.fit(to_frame(split.train.tensors, signature=signature), split.train.labels)
    except (ValueError, TypeError) as error:
        raise ProjectError(
            f"the preprocessing {reference!r} cannot be fitted: {error}",
            hint="check its columns against [[data.inputs]]",
        ) from error
    _log.info("fitted the preprocessing on %d rows", len(split.train.rows))
    return _Prepared(
        transformer,
        to_features(transformer, split.train.tensors, signature=signature),
        to_features(transformer, split.validation.tensors, signature=signature),
    )


def _only_input(signature: Signature) -> str:
    specs = signature.inputs
    if len(specs) != 1 or specs[0].dtype != "float32" or specs[0].nullable:
        raise ProjectError(
            "without preprocessing the network reads one float32 input without missing values, but "
            "[[data.inputs]] names " + ", ".join(f"{spec.name} ({spec.dtype})" for spec in specs),
            hint='set preprocessing = "model:preprocessing" in [model]',
        )
    return specs[0].name


def _width(rows: np.ndarray) -> int:
    return int(np.prod(rows.shape[1:]))


def _run_identity(project: Project, split: Split, settings: TrainSettings) -> str:
    """Name a run by everything that decides its outcome, so the same command finds it again."""
    decides = {
        "data": split.fingerprint,
        "code": _code_digest(project),
        "project": project.settings.model_dump(
            mode="json", exclude={"commands", "gates", "store", "signing"}
        ),
        "settings": settings.model_dump(exclude={"promote", "resume", "address"}),
    }
    return hashlib.sha256(canonical_json(decides)).hexdigest()[:16]


def _code_digest(project: Project) -> str:
    """Name the project's Python by its content; the state folder and hidden folders do not count."""
    files = {}
    for path in sorted(project.folder.rglob("*.py")):
        name = path.relative_to(project.folder)
        if not any(part.startswith(".") for part in name.parts):
            files[name.as_posix()] = sha256_file(path)
    return digest_of(files)


def _fit(
    project: Project, settings: TrainSettings, split: Split, prepared: _Prepared, *, identity: str
) -> _Fitted:
    """Run the training loop on Ray Train and load the best weights."""
    import torch

    storage = project.state / "train"
    if not settings.resume:
        shutil.rmtree(storage / identity, ignore_errors=True)
    elif (storage / identity).exists():
        _log.info("continuing the interrupted run %s", identity)
    arrays = {
        "train_x": prepared.train,
        "train_y": split.train.labels,
        "validation_x": prepared.validation,
        "validation_y": split.validation.labels,
    }
    shared = FitConfig.__dataclass_fields__.keys() & TrainSettings.model_fields.keys()
    fit = FitConfig(
        folder=str(project.folder),
        n_classes=len(split.classes),
        **{name: getattr(settings, name) for name in shared},
    )
    with connected(settings.address, project=project):
        try:
            checkpoint = _run_trainer(fit, arrays, settings, storage=storage, identity=identity)
        except InputError:  # nothing to continue: something has to be changed first
            shutil.rmtree(storage / identity, ignore_errors=True)
            raise
        with checkpoint.as_directory() as folder:
            weights = torch.load(Path(folder) / BEST, weights_only=True)
            kept = json.loads((Path(folder) / PROGRESS).read_text())
    network = build_network(project, n_features=_width(prepared.train), n_classes=len(split.classes))
    network.load_state_dict(weights)
    return _Fitted(network, tuple(Epoch(**each) for each in kept["epochs"]), kept["best_epoch"])


def _run_trainer(
    fit: FitConfig, arrays: dict[str, np.ndarray], settings: TrainSettings, *, storage: Path, identity: str
) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Interruptible(TorchTrainer):
        """Leaves Ctrl-C to Python: Ray's own handler would end the process as if it had succeeded."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    check_room(settings.workers, threads=settings.threads, address=settings.address)
    with listening() as listener, refused(listener), translated():
        trainer = Interruptible(
            loop,
            train_loop_config={"fit": asdict(fit), "arrays": ray.put(arrays), "listener": listener},
            scaling_config=ScalingConfig(
                num_workers=settings.workers, resources_per_worker={"CPU": settings.threads}
            ),
            run_config=RunConfig(
                name=identity,
                storage_path=str(storage),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is None:
        raise InputError("training ended without a checkpoint", hint="run again with --no-resume")
    return result.checkpoint


def _export(
    project: Project,
    settings: TrainSettings,
    split: Split,
    prepared: _Prepared,
    fitted: _Fitted,
    signature: Signature,
) -> tuple[Parts, ParityReport, dict[str, float], Tensors]:
    """Export the pipeline, check it against Python, and measure it on the held-out rows."""
    from jobs.graph import FEATURES, export_onnx, export_program, python_reference
    from jobs.parity import adversarial_rows, check_parity, run_onnx
    from jobs.preprocessing import fitted_steps

    transformer, sample = prepared.transformer, prepared.train[:2]
    _log.info("exporting to ONNX and checking it against Python")
    onnx = export_onnx(fitted.network, transformer=transformer, signature=signature, sample=sample)
    answer = run_onnx(onnx)
    reference = python_reference(fitted.network, transformer=transformer, signature=signature)
    ordinary = {name: array[:_PARITY_ROWS] for name, array in split.test.tensors.items()}
    strange = adversarial_rows(signature, sample={name: array[:8] for name, array in ordinary.items()})
    rows = {name: np.concatenate([ordinary[name], strange[name]]) for name in ordinary}
    parity = check_parity(reference, answer, rows=rows, tolerance=settings.parity_tolerance)
    outputs = {name: np.asarray(value) for name, value in answer(split.test.tensors).items()}
    metrics = evaluate(signature.task, split.test.labels, outputs)
    python_metrics = evaluate(signature.task, split.test.labels, reference(split.test.tensors))
    golden = {name: array[: settings.golden_rows] for name, array in split.test.tensors.items()}
    parts = Parts(
        name=project.name,
        onnx=onnx,
        program=export_program(fitted.network, sample=sample),
        signature=signature,
        golden_inputs=golden,
        golden_outputs={name: np.asarray(value) for name, value in answer(golden).items()},
        profile=profile(split.train.tensors, signature=signature),
        steps=fitted_steps(transformer, signature=signature) if transformer is not None else None,
        manifest={
            "metrics": metrics,
            "metrics_python": python_metrics,
            "graph": {"features": FEATURES if transformer is not None else None},
            "parity": {"tolerance": parity.tolerance, "n_rows": parity.n_rows},
            "lineage": _lineage(project, settings, split),
        },
    )
    return parts, parity, metrics, outputs


def _lineage(project: Project, settings: TrainSettings, split: Split) -> dict[str, Any]:
    data = project.settings.data
    return {
        "data": {
            "path": data.path,
            "fingerprint": split.fingerprint,
            "n_rows": split.n_rows,
            "n_train": len(split.train.rows),
            "n_validation": len(split.validation.rows),
            "n_test": len(split.test.rows),
            "seed": data.seed,
        },
        "code": {"digest": _code_digest(project)},
        "factory": project.settings.model.factory,
        "preprocessing": project.settings.model.preprocessing,
        "parameters": dict(project.settings.model.parameters),
        "train": settings.model_dump(exclude={"promote", "resume", "address"}),
        "toolchain": {
            "kit": kit.__version__,
            "python": platform.python_version(),
            **{tool: importlib.metadata.version(tool) for tool in _TOOLS},
        },
    }


def _register(project: Project, parts: Parts, *, key: Path, metrics: Mapping[str, float]) -> VersionRecord:
    """Sign the version, put it in the store and make it the candidate."""
    project.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="version-", dir=project.state) as work:
        folder = Path(work) / "version"
        digest = write_model_version(parts, folder=folder, key=key)
        uri = project.store().put(folder, digest=digest)
    registry = project.registry()
    version = registry.register(project.name, digest=digest, uri=uri, summary={"metrics": dict(metrics)})
    registry.promote(f"{project.name}@{version.number}", alias="candidate")
    return registry.resolve(f"{project.name}@{version.number}")


def _confusion(split: Split, outputs: Mapping[str, np.ndarray]) -> list[list[int]]:
    """Count held-out rows by true class (row) and answered class (column)."""
    n_classes = len(split.classes)
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    if n_classes:
        np.add.at(counts, (split.test.labels, outputs["label"]), 1)
    rows: list[list[int]] = counts.tolist()
    return rows
