"""Make OpenVINO models out of a version's ONNX graph.

Cuts the network out of the graph, quantises it with NNCF or halves its weights, and writes ``model.xml`` and
``model.bin`` with a free batch size, without a trace of where or when. Needs no torch. It knows nothing of
bundles or budgets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from edge.converters.onnx import core_graph
from edge.core import FileFacts, Material, plain_tensor
from edge.layers import Layer, LayerErrors, Place
from edge.recipes import Recipe
from kit.files import write_atomic

if TYPE_CHECKING:
    import openvino

_PACKAGES = {"openvino": ">=2025,<2027"}
_BATCH_ROWS = 32
_CLIPPED_SHARE = 0.001
_CONTROLLED_ERROR = 0.03
"""Output error that accuracy control works towards, in standard deviations of the outputs."""
_CONTROLLED_ROWS = 64
_CONTROLLED_STEPS = 12

#: Operations that move values, hold them or round them: to keep one in float by itself changes nothing.
_MOVING = frozenset(
    {
        *("Broadcast", "Concat", "Constant", "Convert", "ConvertLike", "FakeQuantize", "Gather", "Pad"),
        *("Parameter", "Reshape", "Result", "ShapeOf", "Slice", "Split", "Squeeze", "StridedSlice"),
        *("Transpose", "Unsqueeze", "VariadicSplit", "Select", "Equal", "NotEqual", "LogicalNot"),
    }
)


def convert(material: Material, recipe: Recipe, *, kept: Sequence[str], folder: Path) -> None:
    """Write ``model.xml`` and ``model.bin``; see ``edge.core.Converter``."""
    model = _float_model(material)
    if recipe.calibrates:
        model = _quantised(model, material, recipe, kept=kept)
    elif recipe.weights == "int8":
        nncf = import_nncf()
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    _write(model, folder, halve=recipe.weights == "float16")


def layers(material: Material, recipe: Recipe, *, rows: np.ndarray) -> tuple[Layer, ...]:
    """Measure what every layer adds to the error of a recipe; see ``edge.core.Converter``."""
    plain = _float_model(material)
    places, made = [], {}
    for operation in plain.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        inputs = [_source(each) for each in operation.inputs()]
        read = tuple(each for each in inputs if each in made)
        if kind in ("Constant", "Parameter", "Result"):
            continue
        made[name] = kind
        places.append(Place(name, kind, read, can_be_kept=kind not in _MOVING))
    changed = _quantised(plain.clone(), material, recipe, kept=())
    shared = made.keys() & {each.get_friendly_name() for each in changed.get_ops()}
    names = [place.name for place in places if place.name in shared]
    ask_plain, ask_changed = _asked(plain, names), _asked(changed, names)
    errors = LayerErrors(places)
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = rows[start : start + _BATCH_ROWS]
        errors.add(ask_plain(batch), ask_changed(batch))
    return errors.layers()


def describe(material: Material, *, folder: Path) -> FileFacts:
    """Say what ``model.xml`` needs; see ``edge.core.Converter``."""
    core = material.core
    return FileFacts(dict(_PACKAGES), (plain_tensor(core.input),), (plain_tensor(core.output),))


def import_nncf() -> ModuleType:
    """Import NNCF so that it tells nobody.

    By itself it reports every call to Google Analytics and leaves an identifier in the home folder; it
    does neither where the package it reports through is absent.
    """
    _keep_quiet()
    import nncf

    module: ModuleType = nncf
    return module


def _keep_quiet() -> None:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how Python writes "absent"


def _float_model(material: Material) -> openvino.Model:
    _keep_quiet()  # OpenVINO reports its import, too
    import openvino

    model = openvino.Core().read_model(core_graph(material.core).SerializeToString())
    for index, operation in enumerate(model.get_ordered_ops()):
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if name.startswith(f"{kind}_"):  # a default, which counts up over the life of the process
            operation.set_friendly_name(f"{kind} {index}")
    return model


def _quantised(
    model: openvino.Model, material: Material, recipe: Recipe, *, kept: Sequence[str]
) -> openvino.Model:
    nncf = import_nncf()
    rows = material.calibration
    dataset = nncf.Dataset([row[np.newaxis] for row in rows])
    kinds = {each.get_type_name() for each in model.get_ops()}
    linear = sorted(kinds - {"MatMul", *_MOVING}) if recipe.scope == "linear" else []
    options: dict[str, Any] = {
        "subset_size": len(rows),
        "preset": nncf.QuantizationPreset.MIXED,
        # Attention wants other places for its quantisers than a network of layers does.
        "model_type": nncf.ModelType.TRANSFORMER if {"Softmax", "MatMul"} <= kinds else None,
        "ignored_scope": nncf.IgnoredScope(names=list(kept), types=linear, validate=False),
    }
    parameters = _parameters(recipe)
    if recipe.controlled:
        return nncf.quantize_with_accuracy_control(
            model,
            dataset,
            nncf.Dataset([row[np.newaxis] for row in rows[:_CONTROLLED_ROWS]]),
            _validation(model, rows[:_CONTROLLED_ROWS]),
            max_drop=_CONTROLLED_ERROR,
            advanced_accuracy_restorer_parameters=_restorer(),
            advanced_quantization_parameters=parameters,
            **options,
        )
    return nncf.quantize(model, dataset, advanced_parameters=parameters, **options)


def _parameters(recipe: Recipe) -> Any:
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization import range_estimator as estimators

    ranges = estimators.RangeEstimatorParametersSet.MINMAX
    if recipe.ranges == "clipped":
        clipped = [
            estimators.StatisticsCollectorParameters(
                statistics_type=estimators.StatisticsType.QUANTILE,
                aggregator_type=estimators.AggregatorType.MEAN,
                quantile_outlier_prob=_CLIPPED_SHARE / 2,
            )
            for _ in ("min", "max")
        ]
        ranges = estimators.RangeEstimatorParameters(*clipped)
    return advanced.AdvancedQuantizationParameters(
        activations_range_estimator_params=ranges,
        weights_range_estimator_params=estimators.RangeEstimatorParametersSet.MINMAX,
        # NNCF's fast bias correction raised a small CNN's output error from 0.004 to 0.032.
        disable_bias_correction=True,
        # Without VNNI a processor adds pairs of products in 16 bits, which saturate with weights of the
        # full range: error 0.046 on AVX2, 0.010 with this. A device's processor is not this machine's.
        overflow_fix=advanced.OverflowFix.ENABLE,
        smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=0.95 if recipe.smooth else -1),
    )


def _restorer() -> Any:
    """Bound what accuracy control may try: it ranks every layer by running the network without it."""
    from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters

    return AdvancedAccuracyRestorerParameters(
        max_num_iterations=_CONTROLLED_STEPS, ranking_subset_size=_CONTROLLED_ROWS // 2
    )


def _validation(model: openvino.Model, rows: np.ndarray) -> Any:
    """Make what accuracy control measures with: how near the float model's answers lie, at most 1."""
    expected = np.concatenate([np.asarray(each) for each in _run(model, rows)])
    spread = float(expected.std()) or 1.0

    def measure(compiled: Any, data: Iterable[np.ndarray]) -> tuple[float, list[float]]:
        found = np.concatenate([np.array(compiled(each)[0]) for each in data])
        errors = np.abs(found - expected[: len(found)]).reshape(len(found), -1).mean(axis=1) / spread
        return 1.0 - float(errors.mean()), [1.0 - float(each) for each in errors]

    return measure


def _run(model: openvino.Model, rows: np.ndarray) -> Iterable[np.ndarray]:
    compiled = _compiled(model)
    return [np.array(compiled(row[np.newaxis])[0]) for row in rows]


def _compiled(model: openvino.Model) -> Any:
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(model, "CPU", config)


def _source(port: Any) -> str:
    """Name the operation an input is fed by."""
    return str(port.get_source_output().get_node().get_friendly_name())


def _asked(model: openvino.Model, names: Sequence[str]) -> Any:
    """Compile a copy that answers with inner values, by the names of the operations that make them."""
    watched = model.clone()
    by_name = {each.get_friendly_name(): each for each in watched.get_ops()}
    ends = [_source(each.input(0)) for each in watched.get_results()]
    inner = [name for name in names if name not in ends]
    watched.add_outputs([by_name[name].output(0) for name in inner])
    compiled = _compiled(watched)

    def ask(batch: np.ndarray) -> dict[str, np.ndarray]:
        answers = compiled(batch)
        return {name: np.array(answers[index]) for index, name in enumerate([*ends, *inner])}

    return ask


def _write(model: openvino.Model, folder: Path, *, halve: bool) -> None:
    """Save a model so that its bytes depend on the network and the ranges alone."""
    import openvino

    # Default names count up over the life of the process.
    for index, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"op{index}")
    openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=halve)
    tree = ElementTree.parse(folder / "model.xml")
    root = tree.getroot()
    root.set("name", "core")
    # Notes of the tools: versions, paths, parameters, names of fused operations. The runtime reads only
    # the one that says which halves are widened as they are read.
    for parent in list(root.iter()):
        for note in parent.findall("rt_info"):
            for attribute in list(note):
                if attribute.get("name") != "decompression":
                    note.remove(attribute)
            if not len(note):
                parent.remove(note)
    write_atomic(folder / "model.xml", ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
