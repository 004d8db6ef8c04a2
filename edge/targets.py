"""The targets a model can be exported for, and what every converter is given.

The table comes first: a new target is a row in it and a converter module. Nothing here converts
or runs anything, and nothing heavy is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kit.errors import InputError, MissingDependencyError, NotFoundError, install_line, nearest
from kit.model_version import ModelVersion
from kit.signature import TensorSpec
from kit.steps import Steps


@dataclass(frozen=True)
class Target:
    """A runtime and a precision.

    Attributes:
        name: What ``--target`` calls it.
        engine: The engine that runs it (``kit.engines``).
        precision: Of weights and activations.
        model: The file of the bundle that the engine opens.
        files: Every model file of the bundle, ``model`` among them.
        converter: ``module:function`` of a ``Converter``.
        packages: Importable names that the converter and the engine need.
    """

    name: str
    engine: str
    precision: str
    model: str
    files: tuple[str, ...]
    converter: str
    packages: tuple[str, ...]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="litert-int8",
            engine="litert",
            precision="int8",
            model="model.tflite",
            files=("model.tflite",),
            converter="edge.convert_litert:convert",
            packages=("torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
        ),
        Target(
            name="openvino-int8",
            engine="openvino",
            precision="int8",
            model="model.xml",
            files=("model.bin", "model.xml"),
            converter="edge.convert_openvino:convert",
            packages=("onnx", "nncf", "openvino"),
        ),
    )
}


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
        """Give what the network reads for some rows: float32, shape (n_rows, ...)."""
        prepared = inputs if self.steps is None else self.steps.apply(inputs)
        return prepared[self.input.name]


class Converter(Protocol):
    """What a target's ``converter`` names."""

    def __call__(self, core: Core, *, calibration: np.ndarray, folder: Path) -> None:
        """Write the target's model files into a folder, the same bytes for the same input."""


def find_target(name: str) -> Target:
    """Look a target up.

    Raises:
        NotFoundError: There is none of this name.
    """
    if name not in TARGETS:
        raise NotFoundError(f"there is no target {name!r}", hint=nearest(name, TARGETS))
    return TARGETS[name]


def require_packages(targets: Sequence[Target]) -> None:
    """Refuse to start when a converter or a runtime is missing.

    Raises:
        MissingDependencyError: Names the target and what it lacks.
    """
    for target in targets:
        absent = [name for name in target.packages if importlib.util.find_spec(name) is None]
        if absent:
            raise MissingDependencyError(
                f"target {target.name!r} needs {', '.join(absent)}, not installed here",
                hint=install_line("export"),
            )


def load_converter(target: Target) -> Converter:
    """Import a target's converter, and with it the target's packages."""
    module, _, function = target.converter.partition(":")
    converter: Converter = getattr(importlib.import_module(module), function)
    return converter


def core_of(version: ModelVersion) -> Core:
    """Find the network inside a model version.

    Raises:
        InputError: The version is an estimator of a library, has preprocessing that is not available as
            data, or its network does not read exactly one float32 tensor.
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
    floats = [spec for spec in signature.inputs if spec.dtype == "float32"]
    if len(signature.inputs) != 1 or not floats:
        listed = ", ".join(f"{spec.name} ({spec.dtype})" for spec in signature.inputs)
        raise InputError(
            f"model {version.name!r} reads {listed}; a device's network reads one float32 tensor",
            hint="give the project a preprocessing, and train again",
        )
    spec = floats[0]
    return Core(version, TensorSpec(spec.name, "float32", spec.shape, nullable=spec.nullable), output, None)
