"""Make a TFLite file out of a version's torch.export program.

The one place outside training that opens ``model.pt2``, and only of a version that was verified. LiteRT's
converter holds no free batch size: a file has one signature per size, named ``batch_1`` and so on. It knows
nothing of bundles or budgets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.converters.litert_file import LiteRTFile, packages, stamped
from edge.core import FileFacts, Material
from edge.layers import Layer, LayerErrors
from edge.recipes import Recipe
from kit.errors import InputError
from kit.files import write_atomic

_INPUT = "args_0"  # litert_torch's name for the first positional argument
_OTHERS = "the openvino-* and onnx-* targets are made from the ONNX graph, which holds it"
_CLIPPED_SHARE = 0.001
_FLOAT16_OPERATORS = (
    "FULLY_CONNECTED",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "CONV_2D_TRANSPOSE",
    "EMBEDDING_LOOKUP",
)
_LINEAR_OPERATORS = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP")


def convert(material: Material, recipe: Recipe, *, kept: Sequence[str], folder: Path) -> None:
    """Write ``model.tflite``; see ``edge.core.Converter``.

    Raises:
        InputError: The version has no torch.export program, or an operator of it has no counterpart.
    """
    write_atomic(folder / "model.tflite", _converted(material, recipe, kept=kept))


def layers(material: Material, recipe: Recipe, *, rows: np.ndarray) -> tuple[Layer, ...]:
    """Measure what every layer adds to the error of a recipe; see ``edge.core.Converter``."""
    before, after = _float_model(material), _converted(material, recipe, kept=())
    file = LiteRTFile(before)
    errors = LayerErrors(file.places())
    plain, quantised = _watched(before), _watched(after)

    def answers(interpreter: Any, row: np.ndarray) -> dict[str, np.ndarray]:
        found = _answers(interpreter, row)
        return {name: found[tensor] for name, tensor in file.tensors.items() if tensor in found}

    for row in rows:
        errors.add(answers(plain, row), answers(quantised, row))
    return errors.layers()


def describe(material: Material, *, folder: Path) -> FileFacts:
    """Say what ``model.tflite`` needs, reads and answers; see ``edge.core.Converter``."""
    data = (folder / "model.tflite").read_bytes()
    interpreter = _watched(data)
    core = material.core
    return FileFacts(
        packages(data, has_int16=any(each["dtype"] == np.int16 for each in interpreter.get_tensor_details())),
        (_described(core.input.name, interpreter.get_input_details()[0]),),
        (_described(core.output.name, interpreter.get_output_details()[0]),),
    )


def _described(name: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    scale, zero_point = detail["quantization"]
    return {
        "name": name,
        "dtype": np.dtype(detail["dtype"]).name,
        "shape": [int(each) for each in detail["shape"]],
        "scale": float(scale) or None,
        "zero_point": int(zero_point) if scale else None,
    }


def _converted(material: Material, recipe: Recipe, *, kept: Sequence[str]) -> bytes:
    model = _float_model(material)
    if recipe.weights == "float32":
        return model
    from ai_edge_quantizer import quantizer

    if recipe.scope == "linear" and not {"FULLY_CONNECTED"} & LiteRTFile(model).operators.keys():
        raise InputError(
            f"model {material.core.version.name!r} has no linear layer that {recipe.name} could quantise",
            hint="choose litert-int8 or litert-float16",
        )
    tensors = LiteRTFile(model).tensors
    rules = _rules(recipe, kept=[tensors[name] for name in kept], io=material.io)
    made = quantizer.Quantizer(bytearray(model), rules)
    ranges = _ranges(material, recipe, model=model, rules=rules) if recipe.calibrates else None
    done = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    data = bytes(done.quantized_model)
    return stamped(data) if recipe.activations == "dynamic" else data


def _float_model(material: Material) -> bytes:
    """Convert the program to float32 TFLite, once for all recipes of an export."""
    kept = material.work / "litert-float32.tflite"
    if kept.is_file():
        return kept.read_bytes()
    core = material.core
    program = core.version.folder / "model.pt2"
    if not program.is_file():
        raise InputError(
            f"model {core.version.name!r} has no model.pt2, which the LiteRT converter reads",
            hint="train it with this kit, or leave this target out",
        )
    import litert_torch
    import torch

    module = torch.export.load(program).module()
    converter: Any = litert_torch
    for size in material.batch_sizes:
        # Real rows: what a table or an index may not hold, zeros among them, stops the tracing.
        rows = np.resize(material.calibration, (size, *material.calibration.shape[1:]))
        converter = converter.signature(f"batch_{size}", module, (torch.from_numpy(rows),))
    try:
        converter.convert().export(str(kept))
    except Exception as error:  # the converter's layers raise whatever they like about a user's network
        raise InputError(
            f"the network holds an operator that LiteRT has no counterpart for: {_named(error)}; {_OTHERS}"
        ) from error
    _require_kernels(kept.read_bytes())
    return kept.read_bytes()


def _require_kernels(model: bytes) -> None:
    """Refuse a file with an operator that was converted but that the runtime cannot compute."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(model_content=model, num_threads=1).allocate_tensors()
    except (ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        found = re.search(r"builtin opcode '(\w+)'|\((\w+)\) failed to prepare", str(error))
        kind = (found.group(1) or found.group(2)) if found else ""
        file = LiteRTFile(model)
        place = next((each for each in file.places() if each.kind == kind), None)
        where = f" at {place.name}, which makes {file.tensors[place.name]!r}" if place else ""
        raise InputError(
            f"LiteRT has no kernel for what the network does{where}: {said[:200]}; {_OTHERS}"
        ) from error


def _named(error: Exception) -> str:
    """Find the operator and its place in a converter's message."""
    text = str(error)
    operator = re.search(
        r"(?:operator|op|target)[^'\"`\w]*['\"`]?((?:aten|torch|tfl|stablehlo)[\w.:]+)", text
    )
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{operator.group(1)}: {line[:200]}" if operator else f"{type(error).__name__}: {line[:240]}"


def _rules(recipe: Recipe, *, kept: Sequence[str], io: str) -> Any:
    """Write a recipe in the quantizer's words."""
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    names, algorithms = qtyping.TFLOperationName, algorithm_manager.AlgorithmName
    rules = recipe_manager.RecipeManager()
    if recipe.weights == "float16":
        halves = qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=16, dtype=qtyping.TensorDataType.FLOAT
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        for operator in _FLOAT16_OPERATORS:
            rules.add_quantization_config(
                ".*", names(operator), halves, algorithm_key=algorithms.FLOAT_CASTING
            )
        return rules.get_quantization_recipe()
    if recipe.scope == "linear":
        for operator in _LINEAR_OPERATORS:
            rules.add_dynamic_config(regex=".*", operation_name=names(operator), num_bits=8)
    else:
        rules.add_static_config(
            regex=".*",
            operation_name=names.ALL_SUPPORTED,
            activation_num_bits=16 if recipe.activations == "int16" else 8,
            weight_num_bits=8,
        )
        if io == "float":
            for edge in (names.INPUT, names.OUTPUT):
                rules.add_quantization_config(".*", edge, algorithm_key=algorithms.NO_QUANTIZE)
    for name in kept:
        rules.add_quantization_config(
            f"^{re.escape(name)};", names.ALL_SUPPORTED, algorithm_key=algorithms.NO_QUANTIZE
        )
    return rules.get_quantization_recipe()


def _ranges(material: Material, recipe: Recipe, *, model: bytes, rules: Any) -> dict[str, Any]:
    """Take every tensor's range from the calibration rows, once for all recipes with the same rule."""
    kept = material.work / f"litert-{recipe.activations}-{recipe.ranges}.npz"
    if not kept.is_file():
        _write_ranges(kept, _taken_ranges(material, recipe, model=model, rules=rules))
    with np.load(kept, allow_pickle=False) as read:
        names = [str(name) for name in read["names"]]
        return {
            name: {end: read[f"{end}{index}"] for end in ("min", "max")} for index, name in enumerate(names)
        }


def _write_ranges(path: Path, ranges: Mapping[str, Any]) -> None:
    arrays = {
        f"{end}{index}": each[end] for index, each in enumerate(ranges.values()) for end in ("min", "max")
    }
    np.savez(path, names=np.array(list(ranges)), **arrays)


def _taken_ranges(material: Material, recipe: Recipe, *, model: bytes, rules: Any) -> dict[str, Any]:
    from ai_edge_quantizer import calibrator, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(rules)
    taken = calibrator.Calibrator(bytearray(model), num_threads=1, qsv_update_func=_widened)
    rows = material.calibration
    if rows.dtype == np.int64:
        rows = rows.astype(np.int32)  # what LiteRT makes of 64-bit inputs
    batches = {
        f"batch_{size}": [{_INPUT: _batch(rows, start, size)} for start in range(0, len(rows), size)]
        for size in material.batch_sizes
    }
    taken.calibrate(batches, manager)
    ranges: dict[str, Any] = taken.get_model_qsvs()
    if recipe.ranges == "clipped":
        for name, (low, high) in _clipped(model, rows=material.calibration).items():
            if name in ranges:
                known = ranges[name]
                ranges[name] = {
                    "min": np.maximum(known["min"], np.full_like(known["min"], low)),
                    "max": np.minimum(known["max"], np.full_like(known["max"], high)),
                }
    return ranges


def _batch(rows: np.ndarray, start: int, size: int) -> np.ndarray:
    """Take rows from a position on, beginning again at the end."""
    return rows[np.arange(start, start + size) % len(rows)]


def _widened(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the true minimum and maximum.

    The quantizer's own rule is a moving average of each row's extremes, which clips: an MLP's
    output error was 0.287 with it and 0.018 with this one.
    """
    return {"min": np.minimum(known["min"], new["min"]), "max": np.maximum(known["max"], new["max"])}


def _clipped(model: bytes, *, rows: np.ndarray) -> dict[str, tuple[float, float]]:
    """Average over rows the ends between which all but a thousandth of a tensor's values lie."""
    interpreter = _watched(model)
    ends: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, values in _answers(interpreter, row).items():
            if values.dtype.kind == "f" and values.size:
                low, high = np.quantile(values, (_CLIPPED_SHARE / 2, 1 - _CLIPPED_SHARE / 2))
                ends.setdefault(name, []).append((float(low), float(high)))
    # 0 stays inside: padding and activation functions need it exactly.
    return {
        name: (
            min(0.0, sum(low for low, _ in each) / len(each)),
            max(0.0, sum(high for _, high in each) / len(each)),
        )
        for name, each in ends.items()
    }


def _watched(model: bytes) -> Any:
    """Open a file so that every tensor can be read after a call."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    return interpreter


def _answers(interpreter: Any, row: np.ndarray) -> dict[str, np.ndarray]:
    """Ask about one row and give every tensor in real numbers, by name."""
    detail = interpreter.get_input_details()[0]
    shape = tuple(detail["shape"])
    values = np.broadcast_to(row, shape)
    scale, zero = detail["quantization"]
    if scale and values.dtype.kind == "f":
        limits = np.iinfo(detail["dtype"])
        values = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
    interpreter.set_tensor(detail["index"], np.ascontiguousarray(values.astype(detail["dtype"])))
    interpreter.invoke()
    found = {}
    for each in interpreter.get_tensor_details():
        try:
            answer = interpreter.get_tensor(each["index"])
        except ValueError:  # a tensor the runtime has optimised away
            continue
        scale, zero = each["quantization"]
        if scale and answer.dtype.kind == "i":
            answer = (answer.astype(np.float32) - zero) * scale
        found[each["name"]] = answer
    return found
