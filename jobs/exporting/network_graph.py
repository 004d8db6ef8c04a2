"""The network as a traced program and as the core of an ONNX graph.

It knows nothing of preprocessing.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from jobs.exporting.form import (
    IR_VERSION,
    OPSET,
    OUTPUTS,
    first_line,
    quiet,
    rename,
)
from kit.errors import ProjectError
from kit.signature import Signature

if TYPE_CHECKING:
    import onnx
    import torch


def evaluating(network: torch.nn.Module) -> torch.nn.Module:
    """Copy a network to the CPU, in evaluation mode."""
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)


def answering(network: torch.nn.Module, *, task: str) -> torch.nn.Module:
    """Wrap a network so that it gives the task's outputs, in the order of ``OUTPUTS``."""
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = evaluating(network)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = self.network(x).to(torch.float32)
            return logits.argmax(dim=1), torch.softmax(logits, dim=1), logits

    class Regressor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = evaluating(network)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.network(x).to(torch.float32).reshape(-1),)

    return (Classifier() if task == "classification" else Regressor()).eval()


def _check_answer(network: torch.nn.Module, *, signature: Signature, sample: np.ndarray) -> None:
    import torch

    with torch.no_grad():
        answer = evaluating(network)(_blank(sample))
    if not isinstance(answer, torch.Tensor):
        raise ProjectError(
            f"the network answers with a value of type {type(answer).__name__}; one tensor is expected"
        )
    shape = tuple(answer.shape)
    if signature.task == "regression":
        if shape not in ((2,), (2, 1)):
            raise ProjectError(
                f"the network answers 2 rows with shape {list(shape)}; [2] or [2, 1] is expected"
            )
        return
    n_classes = next(spec.row_size for spec in signature.outputs if spec.name == "logits")
    if shape != (2, n_classes):
        raise ProjectError(
            f"the network answers 2 rows with shape {list(shape)}, but the data has {n_classes} classes",
            hint=f"let the last layer have {n_classes} outputs",
        )


def trace(module: torch.nn.Module, sample: np.ndarray) -> torch.export.ExportedProgram:
    """Trace with a free number of rows, and forget where the code stood.

    Rows without content stand in for the sample (``_blank``): the program keeps its example inputs,
    and training rows do not belong in a model file.
    """
    import torch

    rows = torch.export.Dim("batch")
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (_blank(sample),), dynamic_shapes=({0: rows},))
    except (RuntimeError, ValueError) as error:
        raise ProjectError(
            f"the network cannot be exported with a free number of rows: {first_line(error)}",
            hint="take no decision in forward on values or on the number of rows; write -1 for it in reshape",
        ) from error
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            for node in graph.graph.nodes:
                # stack_trace, nn_module_stack and the like hold paths and class names
                node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    return program


def _blank(sample: np.ndarray) -> torch.Tensor:
    """Give two rows of the sample's shape and type: zeros, or its smallest integer, which a table knows."""
    import torch

    value = sample.min() if sample.dtype.kind in "iu" else 0
    return torch.from_numpy(np.full((2, *sample.shape[1:]), value, dtype=sample.dtype))


def network_graph(
    network: torch.nn.Module, *, signature: Signature, sample: np.ndarray, name: str
) -> onnx.ModelProto:
    """Write a network and its answers as an ONNX graph that reads one tensor of the given name."""
    import torch
    from onnx import compose

    _check_answer(network, signature=signature, sample=sample)
    program = trace(answering(network, task=signature.task), sample)
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except RuntimeError as error:  # the root of torch.onnx's own errors
        raise ProjectError(
            f"the network holds an operation that ONNX does not know: {first_line(error)}",
            hint="replace the operation in forward by ones that torch.onnx can export",
        ) from error
    if exported is None:
        raise ProjectError("the network cannot be written as ONNX")
    # The prefix keeps the exporter's names ("linear", "view") apart from a user's input of that name.
    model = compose.add_prefix(exported.model_proto, prefix="network/", rename_functions=False)
    places = (*model.graph.input, *model.graph.output)
    for value, new in zip(places, (name, *OUTPUTS[signature.task]), strict=True):
        rename(model.graph, value.name, new)
        value.name = new
    model.ir_version = IR_VERSION
    return model
