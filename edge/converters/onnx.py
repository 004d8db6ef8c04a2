"""Make ONNX files out of a version's graph: the network alone, in float, in halves, or with Q/DQ pairs.

Needs no torch. INT8 is static (QDQ), with unsigned activations and signed weights per channel, which is what
onnxruntime's CPU kernels are fastest with. It knows nothing of bundles or budgets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.core import Core, FileFacts, Material, plain_tensor
from edge.layers import Layer, LayerErrors, Place
from edge.recipes import Recipe
from kit.errors import InputError
from kit.files import write_atomic

if TYPE_CHECKING:
    import onnx

_PACKAGES = {"onnxruntime": ">=1.20,<2"}
_BATCH_ROWS = 32
_PERCENTILE = 99.9
_LINEAR = ("MatMul", "Gemm")
_WEIGHTED = ("Conv", "ConvTranspose", *_LINEAR)

#: Operators that move values and compute none: to keep one in float by itself changes nothing.
_MOVING = frozenset(
    {
        *("Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Pad"),
        *("Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where", "Equal", "Not"),
    }
)


def convert(material: Material, recipe: Recipe, *, kept: Sequence[str], folder: Path) -> None:
    """Write ``model.onnx``; see ``edge.core.Converter``."""
    write_model(_converted(material, recipe, kept=kept), folder)


def layers(material: Material, recipe: Recipe, *, rows: np.ndarray) -> tuple[Layer, ...]:
    """Measure what every layer adds to the error of a recipe; see ``edge.core.Converter``."""
    plain = prepared_graph(material)
    return compared_layers(plain, _converted(material, recipe, kept=()), material=material, rows=rows)


def describe(material: Material, *, folder: Path) -> FileFacts:
    """Say what ``model.onnx`` needs; see ``edge.core.Converter``."""
    core = material.core
    return FileFacts(dict(_PACKAGES), (plain_tensor(core.input),), (plain_tensor(core.output),))


def _converted(material: Material, recipe: Recipe, *, kept: Sequence[str]) -> onnx.ModelProto:
    if recipe.weights != "int8":
        return float_graph(material.core, weights=recipe.weights)
    if recipe.activations == "dynamic":
        return _dynamic(material, recipe)
    return quantised(prepared_graph(material), material, recipe, kept=kept, symmetric=False)


def write_model(model: onnx.ModelProto, folder: Path) -> None:
    """Write a graph as ``model.onnx``, without a trace of the tools that made it."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "kit", "", ""
    write_atomic(folder / "model.onnx", model.SerializeToString(deterministic=True))


def core_graph(core: Core) -> onnx.ModelProto:
    """Cut the network out of a version's graph: one tensor in, one out, its rows free."""
    import onnx

    whole = onnx.load(core.version.model_path)
    cut: onnx.ModelProto = onnx.utils.Extractor(whole).extract_model([core.input.name], [core.output.name])
    return cut


def float_graph(core: Core, *, weights: str) -> onnx.ModelProto:
    """Give the network in float32, or in float16 with what it reads and answers in 32 bits."""
    if weights == "float32":
        return core_graph(core)
    from onnxruntime.transformers import float16

    halves: onnx.ModelProto = float16.convert_float_to_float16(core_graph(core), keep_io_types=True)
    return halves


def prepared_graph(material: Material) -> onnx.ModelProto:
    """Give the network with what the runtime would fuse fused, as the quantiser wants it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kept = material.work / "onnx-prepared.onnx"
    if not kept.is_file():
        with tempfile.TemporaryDirectory(dir=material.work) as name:
            plain = Path(name) / "core.onnx"
            plain.write_bytes(core_graph(material.core).SerializeToString())
            quant_pre_process(str(plain), str(kept), skip_symbolic_shape=True)
    model: onnx.ModelProto = onnx.load(kept)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def quantised(
    graph: onnx.ModelProto, material: Material, recipe: Recipe, *, kept: Sequence[str], symmetric: bool
) -> onnx.ModelProto:
    """Put Q/DQ pairs into a graph.

    Args:
        graph: What ``prepared_graph`` gives.
        material: Its calibration rows.
        recipe: One with static ranges.
        kept: Names of nodes that stay in float.
        symmetric: Whether pairs are as TensorRT wants them: signed activations without a zero point, in
            front of what has weights and nowhere else, so that it can fuse what follows.
    """
    import onnx
    from onnxruntime import quantization

    clipped = recipe.ranges == "clipped"
    products = symmetric or recipe.scope == "products"
    chosen = _LINEAR if recipe.scope == "linear" else _WEIGHTED if products else ()
    method = quantization.CalibrationMethod
    with tempfile.TemporaryDirectory(dir=material.work) as name:
        path = Path(name) / "quantised.onnx"
        quantization.quantize_static(
            graph,
            str(path),
            _reader(material),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=recipe.narrow_weights,
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(chosen) if chosen else None,
            nodes_to_exclude=list(kept),
            calibrate_method=method.Percentile if clipped else method.MinMax,
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not symmetric,
                "OpTypesToExcludeOutputQuantization": list(_WEIGHTED) if symmetric else [],
                **({"CalibPercentile": _PERCENTILE} if clipped else {}),
            },
        )
        model: onnx.ModelProto = onnx.load(path)
    return model


def _dynamic(material: Material, recipe: Recipe) -> onnx.ModelProto:
    import onnx
    from onnxruntime import quantization

    graph = prepared_graph(material)
    del graph.graph.value_info[:]  # the quantiser turns weights round, and then denies their shapes
    with tempfile.TemporaryDirectory(dir=material.work) as name:
        path = Path(name) / "dynamic.onnx"
        quantization.quantize_dynamic(
            graph,
            str(path),
            op_types_to_quantize=list(_LINEAR),
            per_channel=True,
            reduce_range=recipe.narrow_weights,
            weight_type=quantization.QuantType.QInt8,
        )
        model: onnx.ModelProto = onnx.load(path)
    if not any(node.op_type in ("MatMulInteger", "DynamicQuantizeLinear") for node in model.graph.node):
        raise InputError(
            f"model {material.core.version.name!r} has no linear layer that int8-linear could quantise",
            hint="choose onnx-float16, or leave the target out",
        )
    return model


def _reader(material: Material) -> Any:
    """Hand the calibration rows out, as onnxruntime's calibrators ask for them."""
    from onnxruntime.quantization import CalibrationDataReader

    rows, name = material.calibration, material.core.input.name

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the base has no types
        def __init__(self) -> None:
            self._batches = self._fresh()

        def _fresh(self) -> Iterator[dict[str, np.ndarray]]:
            # All of one size: the percentile's calibrator stacks them.
            size = next(each for each in range(_BATCH_ROWS, 0, -1) if len(rows) % each == 0)
            for start in range(0, len(rows), size):
                yield {name: rows[start : start + size]}

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

        def rewind(self) -> None:
            self._batches = self._fresh()

    return Reader()


def compared_layers(
    plain: onnx.ModelProto, changed: onnx.ModelProto, *, material: Material, rows: np.ndarray
) -> tuple[Layer, ...]:
    """Measure what every node adds to the error of a changed graph.

    Args:
        plain: The float graph.
        changed: The same with Q/DQ pairs; nodes and values keep their names.
        material: Names the input.
        rows: Rows to measure on.
    """
    made: dict[str, str] = {}
    places = []
    for node in plain.graph.node:
        if not node.output or not node.output[0]:
            continue
        read = tuple(made[name] for name in node.input if name in made)
        places.append(Place(node.name, node.op_type, read, can_be_kept=node.op_type not in _MOVING))
        made.update(dict.fromkeys(node.output, node.name))
    values = {node.name: node.output[0] for node in plain.graph.node if node.output}
    there = {name for node in changed.graph.node for name in node.output}
    rounded = {name: f"{name}_DequantizeLinear_Output" for name in values.values()}
    sources = {name: rounded[name] if rounded[name] in there else name for name in values.values()}
    shown = {name: source for name, source in sources.items() if source in there}
    errors = LayerErrors(places)
    ask_plain, ask_changed = _asked(plain, list(shown)), _asked(changed, list(shown.values()))
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = {material.core.input.name: rows[start : start + _BATCH_ROWS]}
        before = dict(zip(shown, ask_plain(batch), strict=True))
        after = dict(zip(shown, ask_changed(batch), strict=True))
        errors.add(
            {place: before[value] for place, value in values.items() if value in before},
            {place: after[value] for place, value in values.items() if value in after},
        )
    return errors.layers()


def _asked(model: onnx.ModelProto, names: list[str]) -> Any:
    """Open a session that answers with inner values, nothing fused away."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feed: session.run(names, feed)
