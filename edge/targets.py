"""The targets a model can be exported for, the recipes of each, and what every converter is given.

The table comes first: a new target is a row in it, a new way to make one is a recipe in its ladder. Nothing
here converts or runs anything, and nothing heavy is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge.layers import Layer
from kit.errors import InputError, MissingDependencyError, NotFoundError, install_line, nearest
from kit.model_version import ModelVersion
from kit.signature import TensorSpec
from kit.steps import Steps


@dataclass(frozen=True)
class Recipe:
    """One way to make a target's file.

    Attributes:
        name: What the tables call it.
        weights: int8, float16 or float32.
        activations: int8, int16, dynamic (8 bits, ranges taken at every call) or float32.
        ranges: Where the activations' ranges come from: ``true`` minimum and maximum, or ``clipped`` to
            all but a thousandth of the values.
        scope: ``all`` operations; ``products`` for convolutions and matrix products alone; ``linear`` for
            linear layers (and LiteRT's embeddings) alone.
        narrow_weights: Whether weights keep to 7 bits, for processors whose 8-bit products saturate.
        smooth: Whether SmoothQuant moves scale from activations into weights.
        n_kept: How many of the most sensitive layers stay in float.
        controlled: Whether NNCF's accuracy control decides which layers stay in float.
    """

    name: str
    weights: str = "int8"
    activations: str = "int8"
    ranges: str = "true"
    scope: str = "all"
    narrow_weights: bool = False
    smooth: bool = False
    n_kept: int = 0
    controlled: bool = False

    @property
    def calibrates(self) -> bool:
        """Whether ranges are taken from calibration rows."""
        return self.activations in ("int8", "int16")

    @property
    def says(self) -> str:
        """The recipe in words."""
        words = {"int8": "8-bit", "int16": "16-bit", "dynamic": "8-bit", "float16": "16-bit float"}
        if self.weights == "float32":
            return "32-bit float"
        if self.weights == "float16":
            return "16-bit float weights"
        parts = [f"{words[self.weights]} weights, {words[self.activations]} activations"]
        dynamic = self.activations == "dynamic"
        parts += ["ranges taken at every call" if dynamic else f"{self.ranges} ranges"]
        scopes = {"linear": "linear layers only", "products": "convolutions and matrix products only"}
        parts += [scopes[self.scope]] if self.scope in scopes else []
        parts += ["weights in 7 bits"] if self.narrow_weights else []
        parts += ["SmoothQuant"] if self.smooth else []
        parts += [f"{self.n_kept} layer{'s' * (self.n_kept > 1)} in float"] if self.n_kept else []
        parts += ["accuracy control"] if self.controlled else []
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Give the recipe as JSON."""
        return asdict(self)


_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

_FLOAT32 = Recipe("float32", weights="float32", activations="float32")
_FLOAT16 = Recipe("float16", weights="float16", activations="float32")
_INT8 = Recipe("int8")
_CLIPPED = Recipe("int8-clipped", ranges="clipped")
_LINEAR = Recipe("int8-linear", activations="dynamic", scope="linear")
_PRODUCTS = Recipe("int8-products", scope="products")
_KEPT = tuple(Recipe(f"int8-keep-{n}", n_kept=n) for n in (1, 2, 4, 8))


def _narrow(*recipes: Recipe) -> tuple[Recipe, ...]:
    """Keep weights to 7 bits: without VNNI, onnxruntime's unsigned times signed products saturate."""
    return tuple(replace(each, narrow_weights=True) for each in recipes)


@dataclass(frozen=True)
class Target:
    """A runtime and a precision.

    Attributes:
        name: What ``--target`` calls it.
        engine: The engine that runs it (``kit.engines``).
        precision: Of weights and activations.
        model: The file of the bundle that the engine opens.
        files: Every model file of the bundle, ``model`` among them.
        converter: Module of its ``Converter``.
        builders: Importable names the converter needs.
        runtimes: Importable names, one of which runs the file.
        extra: The extra of this distribution that installs the runtime.
        ladder: Its recipes, from the smallest to the safest; the first that keeps every budget wins.
        faster: Whether it is made for speed, so that a recipe slower than float fails.
        gpu: Whether only an NVIDIA GPU runs it.
    """

    name: str
    engine: str
    precision: str
    model: str
    files: tuple[str, ...]
    converter: str
    builders: tuple[str, ...]
    runtimes: tuple[str, ...]
    extra: str
    ladder: tuple[Recipe, ...]
    faster: bool = False
    gpu: bool = False


@dataclass(frozen=True)
class _Runtime:
    """What the targets of one engine share; see ``Target``."""

    engine: str
    files: tuple[str, ...]
    converter: str
    builders: tuple[str, ...]
    runtimes: tuple[str, ...]
    extra: str
    gpu: bool = False

    def target(self, precision: str, *ladder: Recipe, faster: bool = False) -> Target:
        """Make a target; its engine opens the last of its files."""
        return Target(
            name=f"{self.converter.rpartition('.')[2]}-{precision}",
            engine=self.engine,
            precision=precision,
            model=self.files[-1],
            files=self.files,
            converter=self.converter,
            builders=self.builders,
            runtimes=self.runtimes,
            extra=self.extra,
            ladder=ladder,
            faster=faster,
            gpu=self.gpu,
        )


_LITERT = _Runtime(
    engine="litert",
    files=("model.tflite",),
    converter="edge.converters.litert",
    builders=("torch", "litert_torch", "ai_edge_quantizer"),
    runtimes=("ai_edge_litert", "tflite_runtime"),
    extra="litert",
)
_OPENVINO = _Runtime(
    engine="openvino",
    files=("model.bin", "model.xml"),
    converter="edge.converters.openvino",
    builders=("onnx", "nncf", "openvino"),
    runtimes=("openvino",),
    extra="openvino",
)
_ONNX = _Runtime(
    engine="onnxruntime",
    files=("model.onnx",),
    converter="edge.converters.onnx",
    builders=("onnx", "onnxruntime"),
    runtimes=("onnxruntime",),
    extra="onnxruntime",
)
_TENSORRT = _Runtime(
    engine="tensorrt",
    files=("model.onnx",),
    converter="edge.converters.tensorrt",
    builders=("onnx", "onnxruntime"),
    runtimes=("tensorrt",),
    extra="tensorrt",
    gpu=True,
)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _LITERT.target("int8", _INT8, _CLIPPED, *_KEPT, _LINEAR, faster=True),
        _LITERT.target("int8-linear", _LINEAR, faster=True),
        _LITERT.target("int16x8", Recipe("int16x8", activations="int16")),
        _LITERT.target("float16", _FLOAT16),
        _LITERT.target("float32", _FLOAT32),
        _OPENVINO.target(
            "int8",
            *(_INT8, Recipe("int8-smooth", smooth=True), _CLIPPED, *_KEPT),
            *(Recipe("int8-controlled", controlled=True), Recipe("int8-linear", scope="linear")),
            faster=True,
        ),
        _OPENVINO.target("float16", _FLOAT16),
        _ONNX.target("int8", *_narrow(_INT8, _PRODUCTS, _CLIPPED, *_KEPT, _LINEAR), faster=True),
        _ONNX.target("float16", _FLOAT16),
        _ONNX.target("float32", _FLOAT32),
        _TENSORRT.target("fp16", Recipe("fp16", weights="float16", activations="float32"), faster=True),
        _TENSORRT.target("int8", _INT8, _CLIPPED, *_KEPT, faster=True),
    )
}
"""Name to target."""


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


def find_target(name: str) -> Target:
    """Look a target up.

    Raises:
        NotFoundError: There is none of this name.
    """
    if name not in TARGETS:
        raise NotFoundError(f"there is no target {name!r}", hint=nearest(name, TARGETS))
    return TARGETS[name]


def runs_here(target: Target) -> bool:
    """Say whether this machine has a runtime for a target, and the GPU it may need."""
    if target.gpu and not _NVIDIA_DRIVER.exists():
        return False
    return any(map(is_installed, target.runtimes))


def lacks(target: Target) -> str:
    """Say in a few words why a target cannot be built and run here; empty when it can.

    A target for a GPU can be built without one: what runs it stays on the device.
    """
    absent = [name for name in target.builders if not is_installed(name)]
    if absent:
        return f"{', '.join(absent)} not installed"
    if not target.gpu and not runs_here(target):
        return f"{target.runtimes[0]} not installed"
    return ""


def is_installed(name: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module of that name stands in sys.modules without a spec
        return False


def require_packages(targets: Sequence[Target]) -> None:
    """Refuse to start when a converter or a runtime is missing.

    Raises:
        MissingDependencyError: Names the target and what it lacks.
    """
    for target in targets:
        reason = lacks(target)
        if reason:
            raise MissingDependencyError(
                f"target {target.name!r} cannot be built here: {reason}",
                hint=f"{install_line('export')}; `kit export --list` shows what this machine can build",
            )


def load_converter(target: Target) -> Converter:
    """Import a target's converter."""
    converter: Converter = importlib.import_module(target.converter)
    return converter


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
