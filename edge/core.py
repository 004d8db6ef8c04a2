"""What a converter is given and what it gives: the network alone, the rows it is calibrated on, the files.

It knows no target and converts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge.layers import Layer
from edge.recipes import Recipe
from kit.errors import InputError
from kit.model_version import ModelVersion
from kit.steps import Steps
from kit.tensors import TensorSpec


@dataclass(frozen=True)
class Core:
    """The part of a model version that becomes a device's model file: the network alone.

    Attributes:
        version: The opened, verified version.
        input: What the network reads: the inner tensor ``features``, or the model's only input.
        output: What it answers: ``logits``, or ``value`` for regression.
        steps: The preprocessing in front of it, as data; None where there is none.
    """

    version: ModelVersion
    input: TensorSpec
    output: TensorSpec
    steps: Steps | None

    def tensors(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Give what the network reads for some rows, shape (n_rows, ...)."""
        prepared = inputs if self.steps is None else self.steps.apply(inputs)
        return prepared[self.input.name]


@dataclass(frozen=True)
class Material:
    """What a converter makes files of.

    Attributes:
        core: The network, of a verified version.
        calibration: Rows that ranges are taken from, as the network reads them, shape (n_rows, ...).
        batch_sizes: Sizes a file with fixed shapes must hold, ascending.
        io: What a full-integer file reads and answers: ``int8`` or ``float``.
        work: A folder that the converters of one export share, to keep what several recipes need.
    """

    core: Core
    calibration: np.ndarray
    batch_sizes: tuple[int, ...]
    io: str
    work: Path


@dataclass(frozen=True)
class FileFacts:
    """What a model file says about itself.

    Attributes:
        packages: Package to the versions that load it and answer rightly; one of them is needed.
        inputs: Its tensors as the engine is given them: name, dtype, shape, and scale and zero point
            where it reads whole numbers for real ones (None elsewhere).
        outputs: Likewise.
    """

    packages: dict[str, str]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]


def plain_tensor(spec: TensorSpec) -> dict[str, Any]:
    """Describe a tensor that a file reads as it is."""
    shape = list(spec.shape)
    return {"name": spec.name, "dtype": spec.dtype, "shape": shape, "scale": None, "zero_point": None}


class Converter(Protocol):
    """What a target's ``converter`` module holds."""

    def convert(self, material: Material, recipe: Recipe, *, kept: Sequence[str], folder: Path) -> None:
        """Write the target's model files into a folder, the same bytes for the same input.

        Args:
            material: The network and its calibration rows.
            recipe: How.
            kept: Names of the layers that stay in float, of those ``layers`` has named.
            folder: Where the files go.

        Raises:
            InputError: The network cannot be converted; the sentence names the operator and its place.
        """

    def layers(self, material: Material, recipe: Recipe, *, rows: np.ndarray) -> tuple[Layer, ...]:
        """Measure what every layer adds to the error of a recipe.

        Args:
            material: The network and its calibration rows.
            recipe: One that keeps no layer in float.
            rows: Rows to measure on, as the network reads them.

        Returns:
            The layers that could stay in float, in the order of the graph.
        """

    def describe(self, material: Material, *, folder: Path) -> FileFacts:
        """Say what the files that ``convert`` wrote need, and what they read and answer."""


def core_of(version: ModelVersion) -> Core:
    """Find the network inside a model version.

    Raises:
        InputError: The version is an estimator of a library, has preprocessing that is not available as
            data, or its network does not read exactly one tensor of numbers.
    """
    estimator = version.manifest.get("lineage", {}).get("model", {}).get("estimator")
    if estimator is not None:
        raise InputError(
            f"model {version.name!r} is the estimator {estimator!r}; no device runtime holds its operators",
            hint="predict or serve it with the kit, or train a network (factory in [model]) for devices",
        )
    signature = version.signature
    if signature.task == "regression":
        output = TensorSpec("value", "float32", (-1,))
    else:
        output = TensorSpec("logits", "float32", (-1, len(signature.classes)))
    steps = version.preprocessing()
    features = version.manifest["graph"]["features"]
    if features is not None:
        if steps is None:
            reason = version.manifest["graph"].get("missing_steps") or "its steps are not available as data"
            raise InputError(
                f"model {version.name!r} has preprocessing that a device cannot run: {reason}",
                hint="change the step and train again, or serve the model instead",
            )
        return Core(version, TensorSpec(features, "float32", (-1, steps.n_features)), output, steps)
    spec = signature.inputs[0]
    if len(signature.inputs) != 1 or spec.dtype not in ("float32", "int32", "int64"):
        listed = ", ".join(f"{spec.name} ({spec.dtype})" for spec in signature.inputs)
        raise InputError(
            f"model {version.name!r} reads {listed}; a device's network reads one tensor of float32, int32 "
            "or int64",
            hint="give the project a preprocessing, and train again",
        )
    return Core(version, TensorSpec(spec.name, spec.dtype, spec.shape, nullable=spec.nullable), output, None)
