"""Make ONNX files for TensorRT out of a version's graph: the build recipe that a bundle carries.

TensorRT 11 takes a network's types from its file and has no switch for them, so the file says which parts are
halves, and where 8 bits begin and end: signed, without zero points, in front of what has weights. The engine
itself is built on the machine that has the GPU (``kit.engines.tensorrt``). No engine has been built from
these files on a GPU yet; onnxruntime computes them as they are written.

Source: NVIDIA's guide to TensorRT 11, "Explicit Quantization" and "Migrating from Weak Typing to Strong
Typing".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.converters.onnx import compared_layers, float_graph, prepared_graph, quantised, write_model
from edge.core import FileFacts, Material, plain_tensor
from edge.layers import Layer
from edge.recipes import Recipe
from kit.errors import InputError

if TYPE_CHECKING:
    import onnx

_PACKAGES = {"tensorrt": ">=10,<12"}
_STANDARD = ("", "ai.onnx")


def convert(material: Material, recipe: Recipe, *, kept: Sequence[str], folder: Path) -> None:
    """Write ``model.onnx``; see ``edge.core.Converter``.

    Raises:
        InputError: The recipe is int8 and the network leaves nothing with weights in 8 bits.
    """
    model = _converted(material, recipe, kept=kept)
    foreign = next((node for node in model.graph.node if node.domain not in _STANDARD), None)
    if foreign is not None:
        raise InputError(
            f"node {foreign.name!r} is {foreign.domain}:{foreign.op_type}, which TensorRT does not have",
            hint="export for onnx-* or openvino-*, or leave the target out",
        )
    write_model(model, folder)


def layers(material: Material, recipe: Recipe, *, rows: np.ndarray) -> tuple[Layer, ...]:
    """Measure what every layer adds to the error of a recipe; see ``edge.core.Converter``."""
    changed = _converted(material, recipe, kept=())
    return compared_layers(prepared_graph(material), changed, material=material, rows=rows)


def describe(material: Material, *, folder: Path) -> FileFacts:
    """Say what ``model.onnx`` needs; see ``edge.core.Converter``."""
    core = material.core
    return FileFacts(dict(_PACKAGES), (plain_tensor(core.input),), (plain_tensor(core.output),))


def _converted(material: Material, recipe: Recipe, *, kept: Sequence[str]) -> onnx.ModelProto:
    if recipe.weights != "int8":
        return float_graph(material.core, weights=recipe.weights)
    model = quantised(prepared_graph(material), material, recipe, kept=kept, symmetric=True)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise InputError(
            f"model {material.core.version.name!r} has no layer with weights to run in 8 bits",
            hint="choose tensorrt-fp16, or leave the target out",
        )
    return model
