"""The form every graph of ours has: names, operator sets, and nothing in it that does not compute."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kit.signature import Signature
from kit.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx


#: The tensor inside model.onnx where preprocessing ends and the network begins.
FEATURES = "features"

#: Outputs by task, in the order of the graph.
OUTPUTS = {"classification": ("label", "probabilities", "logits"), "regression": ("value",)}

# One operator set and file version for both halves, so they can be merged.
OPSET = 18
OPSET_ML = 3
IR_VERSION = 10

ONNX_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "string": 8,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress prints and warnings off the user's screen."""
    logger = logging.getLogger("torch")
    level = logger.level
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def opsets(opset: int) -> list[Any]:
    """Name the operator sets of a graph: ONNX's own and that for machine learning."""
    from onnx import helper

    return [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]


def dims(spec: TensorSpec) -> list[str | int]:
    """Give a tensor's dimensions, the rows free."""
    return ["batch", *spec.row_shape]


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value wherever a graph reads or writes it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for attribute in node.attribute:  # the branches of an If and the body of a Loop read it as well
            if attribute.HasField("g"):
                rename(attribute.g, old, new)


def make_canonical(model: onnx.ModelProto, *, signature: Signature, n_features: int | None) -> None:
    """Keep what computes: drop notes, paths and producers, and state inputs and outputs exactly."""
    from onnx import TensorProto, helper

    del model.metadata_props[:]
    model.doc_string, model.domain, model.model_version = "", "", 0
    model.producer_name, model.producer_version = "kit", ""
    graph = model.graph
    graph.name, graph.doc_string = "model", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
    if n_features is not None:  # the cut an exporter for devices makes must know its shape
        graph.value_info.append(
            helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", n_features])
        )
    del graph.input[:], graph.output[:]
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        values.extend(
            helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.dtype], dims(spec)) for spec in specs
        )
    opsets = sorted({(entry.domain, entry.version) for entry in model.opset_import})
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets)


def first_line(error: Exception) -> str:
    """Give the first line of an exporter's message that says something, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(" You may raise")[0][:200] if lines else type(error).__name__
