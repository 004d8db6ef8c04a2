"""Attempts at a target: make a file by a recipe, run it as a device would, measure it, pack it.

Every attempt ends in a sealed bundle out of sight and in figures; which recipe comes next and which bundle
is shown is for ``edge.ladder`` and ``edge.export`` to say.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundling import parts
from edge.core import Converter, FileFacts, Material
from edge.job import Job
from edge.ladder import BROKEN, GAIN, SLOWER, Rung
from edge.layers import Layer, most_sensitive
from edge.measure import ACCURACY, Answer, Comparison, Figures, Latency, answer_all, compare, measure_latency
from edge.recipes import FLOAT32, Recipe, Target
from edge.runtimes import verify_elsewhere
from edge.targets import MACHINES, load_converter, runs_here
from kit.engines import open_engine
from kit.errors import InputError, KitError, MissingDependencyError, UnavailableError
from kit.gauge import gauge_in_child
from kit.metrics import leading_metric
from kit.runner import Runner
from kit.settings import ExportSettings
from kit.signature import Signature
from kit.tensors import Tensors

_log = logging.getLogger("kit")

#: Resident memory of a process with an engine and hardly a model, in MB, as it was measured and rounded up;
#: TensorRT builds its engine, which was not measured.
_BASE_MB = {"litert": 64, "onnxruntime": 96, "openvino": 192, "tensorrt": 2048}
_PAPER_BYTES = 64_000
_GAUGE_CALLS = 50
_LAYER_ROWS = 16
_CANDIDATES = 6
_WEIGHTED = ("CONV", "FULLY_CONNECTED", "MATMUL", "MAT_MUL", "GEMM", "EMBEDDING")

#: Settings that decide a bundle's bytes, for its provenance.
_DECIDING = (
    *("model", "release", "calibration_rows", "batch_sizes", "io", "max_metric_drop", "max_output_error"),
    *("max_size_mb", "max_latency_ms", "max_memory_mb", "max_slowdown", "licence"),
)


@dataclass(frozen=True)
class Packed:
    """A sealed bundle and how it compares.

    Attributes:
        file: The packed bundle.
        digest: Names its content.
        comparison: With the reference, on held-out rows.
        answers: What it answers to them.
        measured_in: The engine that ran it, and its version.
        ranges: Package to the versions it claims to run on.
    """

    file: Path
    digest: str
    comparison: Comparison
    answers: Tensors
    measured_in: str
    ranges: dict[str, str]


@dataclass(frozen=True)
class Built:
    """A bundle that was made, still out of sight.

    Attributes:
        file: The packed bundle.
        digest: Names its content.
        answers: What it answers to the held-out rows.
        measured_in: The engine that ran it, and its version.
        notes: What other interpreters said of it.
    """

    file: Path
    digest: str
    answers: Tensors
    measured_in: str
    notes: tuple[str, ...]


class Bench:
    """Makes and measures one target's recipes.

    Args:
        job: What all targets share.
        target: The target.
        baseline: The same engine's float32 file, to be timed beside; None where nothing here runs it.
    """

    def __init__(self, job: Job, target: Target, *, baseline: Runner | None) -> None:
        self._job = job
        self._target = target
        self._baseline = baseline
        self._converter: Converter = load_converter(target)
        self._folder = job.work / target.name
        self.built: dict[str, Built] = {}
        self.layers: tuple[Layer, ...] = ()

    def attempt(self, recipe: Recipe, kept: tuple[str, ...]) -> Rung:
        """Make and measure a recipe; a network that refuses it gives a broken rung.

        Raises:
            UnavailableError: The disk is full or cannot be written.
            MissingDependencyError: A converter or a runtime is not installed.
        """
        _log.info("%s: %s", self._target.name, recipe.says)
        try:
            figures, faults = self._measured(recipe, kept)
        except (UnavailableError, MissingDependencyError):  # no fault of the network: every recipe meets it
            raise
        except KitError as error:
            return Rung(recipe, kept, None, {BROKEN: error.message})
        return Rung(recipe, kept, figures, faults)

    def rank(self, recipe: Recipe) -> Sequence[str]:
        """Name the layers of a recipe that could stay in float, the most sensitive first.

        Those that add most to the error are tried one by one: how near the answers come when this layer
        alone is in float is what counts.
        """
        rows = self._sample()
        layers = self.explain(recipe)
        heavy = [each for each in layers if any(kind in each.kind.upper() for kind in _WEIGHTED)]
        candidates = dict.fromkeys(
            (*most_sensitive(layers, n_layers=_CANDIDATES), *most_sensitive(heavy, n_layers=_CANDIDATES))
        )
        expected = self._core_answers(FLOAT32, (), rows)
        errors = {}
        for name in candidates:
            with contextlib.suppress(InputError):  # some engines cannot run a network with this one in float
                found = self._core_answers(recipe, (name,), rows)
                errors[name] = float(np.abs(found - expected).mean())
        _log.info("%s: ranked %d layers by what they cost", self._target.name, len(errors))
        return sorted(errors, key=lambda name: errors[name])

    def explain(self, recipe: Recipe) -> tuple[Layer, ...]:
        """Measure what every layer adds to the error of a recipe, once."""
        if not self.layers:
            with quiet():
                plain = replace(recipe, n_kept=0)
                self.layers = self._converter.layers(self._job.material, plain, rows=self._sample())
        return self.layers

    def _sample(self) -> np.ndarray:
        """Take some held-out rows, as the network reads them."""
        held_out = self._job.held_out
        chosen = np.arange(min(_LAYER_ROWS, len(held_out.rows)))
        return self._job.core.tensors(held_out.take(chosen).tensors)

    def _core_answers(self, recipe: Recipe, kept: tuple[str, ...], rows: np.ndarray) -> np.ndarray:
        target, core = self._target, self._job.core
        signature = Signature(core.version.signature.task, (core.input,), (core.output,))
        with tempfile.TemporaryDirectory(dir=self._job.work) as name:
            convert(self._converter, self._job.material, recipe, kept=kept, folder=Path(name))
            engine = open_engine(
                Path(name) / target.model, engine=_stand_in(target), threads=1, signature=signature
            )
            return engine.run_validated({core.input.name: rows})[core.output.name]

    def pack(self, recipe: Recipe, kept: tuple[str, ...]) -> Packed:
        """Make a recipe's files, compare them with the reference, and seal them as one bundle.

        Raises:
            InputError: The network cannot be converted, or its runtime refuses the file.
            UnavailableError: The disk is full or cannot be written.
        """
        job = self._job
        if self._folder.exists():
            shutil.rmtree(self._folder)
        folder = self._folder / "parts"
        folder.mkdir(parents=True)
        parts.write_parts(folder, core=job.core)
        convert(self._converter, job.material, recipe, kept=kept, folder=folder)
        with quiet():
            described = self._converter.describe(job.material, folder=folder)
        facts = self._facts(described, recipe, kept, folder)
        comparison, answers, measured_in = self._compared(recipe, folder, facts)
        parts.write_papers(folder, parameters=_parameters(job.settings), licence=job.settings.licence)
        file = self._folder / "packed"
        digest = parts.pack_bundle(folder, file, key=job.key)
        ranges = facts["requirements"]["packages"]
        return Packed(file, digest, comparison, answers, measured_in, ranges)

    def _measured(self, recipe: Recipe, kept: tuple[str, ...]) -> tuple[Figures, dict[str, str]]:
        job, target = self._job, self._target
        packed = self.pack(recipe, kept)
        # From here on only the packed file counts: it is unpacked, verified and run as on a device.
        opened = parts.unpack_bundle(packed.file, folder=self._folder / "unpacked", trusted=job.trusted)
        model_bytes = sum((opened.folder / name).stat().st_size for name in target.files)
        figures = Figures(packed.comparison, packed.file.stat().st_size, model_bytes)
        faults: dict[str, str] = {}
        if _stand_in(target) == target.engine:
            figures, golden = self._run(opened.folder, figures)
            faults = {ACCURACY: f"golden rows: {golden}"} if golden else {}
        limit = job.settings.max_slowdown
        faults |= replace(job.budgets, max_slowdown=limit if target.faster else None).broken(figures)
        if target.faster and figures.gains_nothing:
            faults[GAIN] = f"neither smaller nor faster than float32 in {target.engine}"
        if target.faster and figures.is_slower and limit is None:
            faults[SLOWER] = f"{figures.slowdown:.2f} times the latency of float32 in {target.engine}"
        elsewhere = [
            verify_elsewhere(
                opened.folder, python=Path(python), ranges=packed.ranges, threads=job.settings.threads
            )
            for python in ([] if target.gpu else job.settings.verify_with)
        ]
        for each in elsewhere:
            if each.fault:
                faults[BROKEN] = each.fault
        notes = tuple(
            each.note or f"{each.runtime} answers as it should"
            for each in elsewhere
            if each.note or each.runtime
        )
        file = self._folder.with_name(f"{target.name} {recipe.name}.bundle")
        os.replace(packed.file, file)
        self.built[recipe.name] = Built(file, packed.digest, packed.answers, packed.measured_in, notes)
        return figures, faults

    def _facts(
        self, described: FileFacts, recipe: Recipe, kept: tuple[str, ...], folder: Path
    ) -> dict[str, Any]:
        """Collect what the manifest says besides names and figures."""
        job, target = self._job, self._target
        model_bytes = sum((folder / name).stat().st_size for name in target.files)
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) + _PAPER_BYTES
        calibration = {
            "n_rows": len(job.calibration.rows),
            "fingerprint": job.calibration.fingerprint,
            "n_left_out": job.calibration.n_left_out,
        }
        return {
            "batch_sizes": list(job.material.batch_sizes),
            "budgets": asdict(job.budgets),
            "calibration": calibration if recipe.calibrates else None,
            "golden": {
                "min_agreement": 0.0,
                "max_output_error": job.budgets.max_output_error,
                "output_scale": parts.rounded(job.scale),
            },
            "kept_in_float": list(kept),
            "requirements": {
                "engine": target.engine,
                "packages": dict(sorted(described.packages.items())),
                "gpu": target.gpu,
                "machines": list(MACHINES),
                "memory_mb": _BASE_MB[target.engine] + math.ceil(3 * model_bytes / 1e6),
                "disk_bytes": 2 * n_bytes,  # the packed file and what is unpacked from it
            },
            "tensors": {"inputs": list(described.inputs), "outputs": list(described.outputs)},
        }

    def _compared(
        self, recipe: Recipe, folder: Path, facts: dict[str, Any]
    ) -> tuple[Comparison, Tensors, str]:
        """Run the model files on the held-out and the golden rows, and write the manifest.

        Returns:
            How the answers compare, the answers, and what gave them.
        """
        job, target = self._job, self._target

        def write() -> None:
            parts.write_manifest(
                folder,
                core=job.core,
                target=target,
                recipe=recipe,
                release=job.settings.release,
                facts=facts,
            )

        write()
        runner = Runner.open(folder, threads=1, engine=_stand_in(target))
        answers = answer_all(runner.run, job.held_out.tensors)
        comparison = compare(
            job.expected,
            answers,
            labels=job.held_out.labels,
            metric=leading_metric(job.core.version.signature.task),
            scale=job.scale,
        )
        golden = runner.check_golden()
        measured_in = f"{runner.engine.name} {runner.engine.version}"
        if runner.engine.name != target.engine:
            measured_in += ", not on a GPU"
        if golden.agreement is None:
            facts["golden"]["min_agreement"] = None
        else:
            # One row of slack: INT8 kernels of other CPUs and runtimes round differently.
            slack = max(0.0, golden.agreement - 1 / golden.n_rows)
            facts["golden"]["min_agreement"] = parts.rounded(slack)
        facts["metrics"] = {
            "metric": comparison.metric,
            "reference": parts.rounded(comparison.reference),
            "value": parts.rounded(comparison.value),
            "drop": parts.rounded(comparison.drop),
            "agreement": None if comparison.agreement is None else parts.rounded(comparison.agreement),
            "output_error": parts.rounded(comparison.output_error),
            "n_rows": comparison.n_rows,
            "fingerprint": job.fingerprint,
            "measured_in": measured_in,
        }
        write()
        return comparison, answers, measured_in

    def _float_bytes(self) -> int | None:
        """Give the size of the engine's float32 files."""
        if self._baseline is None:
            return None
        return sum((self._baseline.folder / name).stat().st_size for name in self._target.files)

    def _run(self, folder: Path, figures: Figures) -> tuple[Figures, str]:
        """Time the unpacked bundle beside float32, and load it in a fresh process."""
        job = self._job
        runner = Runner.open(folder, threads=job.settings.threads)
        answers: dict[str, Answer] = {"this": runner.run}
        if self._baseline is not None:
            answers["float32"] = self._baseline.run
        latencies: dict[str, Latency] = measure_latency(answers, job.held_out.tensors)
        gauge = gauge_in_child(folder, threads=job.settings.threads, n_calls=_GAUGE_CALLS)
        timed = replace(
            figures,
            float_bytes=self._float_bytes(),
            latency=latencies["this"],
            float_latency=latencies.get("float32"),
            memory_mb=gauge.memory_peak_mb,
            load_s=gauge.load_s,
        )
        return timed, gauge.golden_reason


def open_baseline(job: Job, target: Target) -> Runner | None:
    """Make an engine's float32 file, to be timed beside its targets.

    Returns:
        What runs it; None where nothing here does.

    Raises:
        InputError: The engine's converter refuses the network.
    """
    if _stand_in(target) != target.engine:
        return None
    folder = job.work / f"baseline {target.engine}"
    if not folder.exists():
        folder.mkdir()
        parts.write_parts(folder, core=job.core)
        convert(load_converter(target), job.material, FLOAT32, kept=(), folder=folder)
        golden = {"min_agreement": 0.0, "max_output_error": 1.0, "output_scale": job.scale}
        parts.write_manifest(
            folder,
            core=job.core,
            target=target,
            recipe=FLOAT32,
            release=1,
            facts={"golden": golden, "batch_sizes": list(job.material.batch_sizes)},
        )
    return Runner.open(folder, threads=job.settings.threads)


def convert(
    converter: Converter, material: Material, recipe: Recipe, *, kept: Sequence[str], folder: Path
) -> None:
    """Run a converter quietly; whatever its layers raise about a user's network becomes one sentence.

    Raises:
        InputError: The network cannot be converted.
        KitError: As the converter raised it.
    """
    try:
        with quiet():
            converter.convert(material, recipe, kept=kept, folder=folder)
    except (KitError, MemoryError):
        raise
    except OSError as error:
        raise UnavailableError(
            f"{folder} cannot be written: {error.strerror}", hint="make room on the disk of temporary files"
        ) from error
    except Exception as error:  # the converters' layers raise whatever they like about a user's network
        _log.debug("the converter failed", exc_info=True)
        lines = str(error).strip().splitlines() or [""]
        said = f"{type(error).__name__}: {lines[0][:200]}"
        raise InputError(f"the network cannot be converted: {said}") from error


def _parameters(settings: ExportSettings) -> dict[str, Any]:
    values = settings.model_dump(mode="json")
    return {name: values[name] for name in _DECIDING}


def _stand_in(target: Target) -> str:
    """Name the engine that measures a target here: its own, or onnxruntime for one that needs a GPU."""
    return "onnxruntime" if target.gpu and not runs_here(target) else target.engine


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
