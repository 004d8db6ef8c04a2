"""Run an unpacked bundle: validate, preprocess, ask the core network, and name the answer.

The same few lines answer on the machine that exports and on the device, so what was measured is
what runs. It trusts the folder it is given: open it with ``kit.bundle.open_bundle`` first. It knows
nothing of slots, networks or archives. Runs on a device: standard library, numpy and one engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kit import golden
from kit.bundle import read_manifest
from kit.engines import Engine, open_engine
from kit.files import read_json
from kit.signature import Signature
from kit.steps import Steps
from kit.tensors import Tensors, TensorSpec


@dataclass(frozen=True)
class GoldenReport:
    """Whether a bundle still answers its golden rows as it did when it was exported.

    Attributes:
        passed: Both figures are within the manifest's bounds.
        agreement: Share of rows whose label equals the reference's; None for regression.
        output_error: Mean absolute difference to the reference's outputs, in the manifest's
            ``golden.output_scale`` (standard deviations of the reference's outputs).
        n_rows: How many rows were asked.
        reason: The figure and the bound it breaks; empty when passed.
    """

    passed: bool
    agreement: float | None
    output_error: float
    n_rows: int
    reason: str


@dataclass(frozen=True)
class Runner:
    """A bundle that is ready to answer.

    Attributes:
        folder: The bundle's folder.
        manifest: Its manifest.json.
        signature: What tables and requests must look like.
        engine: What runs the core network.
        steps: The preprocessing in front of it; None when the core reads the input itself.
    """

    folder: Path
    manifest: Mapping[str, Any]
    signature: Signature
    engine: Engine
    steps: Steps | None

    @classmethod
    def open(cls, folder: Path, *, threads: int, engine: str | None = None) -> Runner:
        """Load a bundle's model into its engine.

        Args:
            folder: An unpacked bundle that ``kit.bundle.open_bundle`` has let pass.
            threads: CPU threads of the engine, at least 1; 0 leaves it to the engine.
            engine: Stands in for the manifest's, on a machine that lacks what that one needs.

        Raises:
            VerificationError: The manifest is not one this kit can read.
            MissingDependencyError: The bundle's engine is not installed.
        """
        manifest = read_manifest(folder)
        signature = Signature.from_json(read_json(folder / "signature.json"))
        preprocessing = folder / "preprocessing.json"
        core = Signature(
            task=signature.task,
            inputs=tuple(TensorSpec.from_json(spec) for spec in manifest["core"]["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec) for spec in manifest["core"]["outputs"]),
        )
        opened = open_engine(
            folder / manifest["model"],
            engine=engine or manifest["engine"],
            threads=threads,
            signature=core,
        )
        steps = Steps.from_json(read_json(preprocessing)) if preprocessing.is_file() else None
        return cls(folder=folder, manifest=manifest, signature=signature, engine=opened, steps=steps)

    def run(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        """Answer rows.

        Args:
            tensors: The signature's inputs, shape (n_rows, ...) each.

        Returns:
            Classification: ``label`` int64 (n_rows,), ``probabilities`` and ``logits`` float32
            (n_rows, n_classes). Regression: ``value`` float32 (n_rows,).

        Raises:
            InputError: A tensor breaks the signature.
        """
        return self.run_validated(self.signature.validate(tensors))

    def run_validated(self, tensors: Tensors) -> Tensors:
        """Answer rows that ``Signature.validate`` has already accepted, without checking twice."""
        if self.steps is not None:
            tensors = self.steps.apply(tensors)
        # Not checked a second time: what the steps make of rows that were let pass (an extreme divided
        # by a small scale is infinite) is answered here as it is in a batch and over HTTP.
        core_input, core_output, is_regression = self._core
        output = self.engine.run_validated({core_input: next(iter(tensors.values()))})[core_output]
        if is_regression:
            return {"value": output.reshape(len(output)).astype(np.float32, copy=False)}
        label = output.argmax(axis=1)
        return {
            "label": label.astype(np.int64, copy=False),
            "probabilities": _softmax_of_row(output, int(label[0])) if len(label) == 1 else softmax(output),
            "logits": output.astype(np.float32, copy=False),
        }

    @cached_property
    def _core(self) -> tuple[str, str, bool]:
        """Name of the core's input and output, and whether a number is answered."""
        core = self.manifest["core"]
        is_regression = self.manifest["postprocessing"] == "regression"
        return core["inputs"][0]["name"], core["outputs"][0]["name"], is_regression

    def check_golden(self) -> GoldenReport:
        """Ask the golden rows, and compare with the reference's answers.

        Raises:
            VerificationError: A golden file cannot be read as tensors.
            InputError: The golden rows break the signature.
        """
        inputs = golden.read_tensors(self.folder / "golden" / "inputs.npz")
        expected = golden.read_tensors(self.folder / "golden" / "outputs.npz")
        found = self.run(inputs)
        bounds = self.manifest["golden"]
        agreement = label_agreement(found, expected)
        error = output_error(found, expected, scale=float(bounds["output_scale"]))
        reason = ""
        if agreement is not None and agreement < bounds["min_agreement"]:
            reason = f"agreement {agreement:.4f} is below {bounds['min_agreement']:.4f}"
        elif not error <= bounds["max_output_error"]:  # written so that NaN fails
            reason = f"output error {error:.4f} is above {bounds['max_output_error']:.4f}"
        n_rows = len(next(iter(found.values())))
        return GoldenReport(not reason, agreement, error, n_rows, reason)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits, shape (n_rows, n_classes), into float32 probabilities of the same shape."""
    with np.errstate(invalid="ignore"):  # infinite logits have no probabilities; NaN says so
        return _shares(np.exp(logits - logits.max(axis=1, keepdims=True)))


def _softmax_of_row(logits: np.ndarray, label: int) -> np.ndarray:
    """Do the same, to the bit, for one row whose largest logit is known, in half the time."""
    highest = logits[0, label]
    return _shares(np.exp(logits - highest)) if math.isfinite(highest) else softmax(logits)


def _shares(powers: np.ndarray) -> np.ndarray:
    shares = powers / np.add.reduce(powers, axis=1, keepdims=True)
    return shares.astype(np.float32, copy=False)


def label_agreement(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float | None:
    """Give the share of rows whose label is the expected one; None where there are no labels."""
    if "label" not in expected:
        return None
    return float(np.mean(found["label"] == expected["label"]))


def output_error(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], *, scale: float
) -> float:
    """Measure how far a model's raw outputs lie from the reference's.

    Args:
        found: The answers under test, with ``logits`` or ``value``.
        expected: The reference's answers to the same rows.
        scale: Standard deviation of the reference's outputs, > 0.

    Returns:
        Mean absolute difference in units of ``scale``; dimensionless, 0 for equal outputs.
    """
    name = "logits" if "logits" in expected else "value"
    return float(np.mean(np.abs(found[name].astype(np.float64) - expected[name]))) / scale
