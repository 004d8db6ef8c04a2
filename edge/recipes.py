"""What a target is made of: a runtime, a precision, and the recipes that are tried for it.

Only words and names; the table of targets is ``edge.targets``. Nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


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
        if self.activations == "float32":
            return f"{words[self.weights]} weights, activations in float"
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


FLOAT32 = Recipe("float32", weights="float32", activations="float32")
FLOAT16 = Recipe("float16", weights="float16", activations="float32")
INT8 = Recipe("int8")
CLIPPED = Recipe("int8-clipped", ranges="clipped")
LINEAR = Recipe("int8-linear", activations="dynamic", scope="linear")
PRODUCTS = Recipe("int8-products", scope="products")
KEPT = tuple(Recipe(f"int8-keep-{n}", n_kept=n) for n in (1, 2, 4, 8))


def narrow(*recipes: Recipe) -> tuple[Recipe, ...]:
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

    @property
    def takes_ranges(self) -> bool:
        """Whether one of its recipes takes ranges from calibration rows."""
        return any(recipe.calibrates for recipe in self.ladder)


@dataclass(frozen=True)
class Runtime:
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


LITERT = Runtime(
    engine="litert",
    files=("model.tflite",),
    converter="edge.converters.litert",
    builders=("torch", "litert_torch", "ai_edge_quantizer"),
    runtimes=("ai_edge_litert", "tflite_runtime"),
    extra="litert",
)
OPENVINO = Runtime(
    engine="openvino",
    files=("model.bin", "model.xml"),
    converter="edge.converters.openvino",
    builders=("onnx", "nncf", "openvino"),
    runtimes=("openvino",),
    extra="openvino",
)
ONNX = Runtime(
    engine="onnxruntime",
    files=("model.onnx",),
    converter="edge.converters.onnx",
    builders=("onnx", "onnxruntime"),
    runtimes=("onnxruntime",),
    extra="onnxruntime",
)
TENSORRT = Runtime(
    engine="tensorrt",
    files=("model.onnx",),
    converter="edge.converters.tensorrt",
    builders=("onnx", "onnxruntime"),
    runtimes=("tensorrt",),
    extra="tensorrt",
    gpu=True,
)
