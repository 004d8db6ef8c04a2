"""The graphs of a model version: the ONNX file with the preprocessing inside, the torch program.

Training calls this once it has a fitted transformer and a trained network. The same weights
give the same bytes in any process and any folder, and nothing about the machine gets in. It
knows nothing of training, of tables or of where the bytes are kept; whether the graph answers
like the Python it came from is for ``jobs.exporting.parity`` to find out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jobs.exporting.estimator_graph import answer_rows, estimator_graph
from jobs.exporting.form import (
    FEATURES,
    IR_VERSION,
    OUTPUTS,
    first_line,
    make_canonical,
    quiet,
    rename,
)
from jobs.exporting.network_graph import answering, evaluating, network_graph, trace
from jobs.exporting.preparation_graph import preprocessing_graph, raise_opset
from jobs.fitting.estimator_class import is_estimator
from jobs.preparation.frame import check_transformer, to_features
from jobs.preparation.raw import raw_input
from kit.errors import ProjectError
from kit.signature import Signature
from kit.tensors import Tensors


def python_reference(
    network: Any, *, transformer: Any | None, signature: Signature
) -> Callable[[Mapping[str, np.ndarray]], Tensors]:
    """Answer with the Python pipeline: what the exported graph is measured against.

    Args:
        network: Trained; a copy of it is used, in evaluation mode. Or a fitted estimator.
        transformer: Fitted, or None when the network reads the input itself.
        signature: Inputs and task.

    Returns:
        A function from input tensors to the task's output tensors.
    """

    def read_rows(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        if transformer is None:
            return np.asarray(tensors[_network_input(network, signature, transformer=None)])
        return to_features(transformer, tensors, signature=signature)

    if is_estimator(network):
        return lambda tensors: answer_rows(network, read_rows(tensors), task=signature.task)
    import torch

    ready = answering(network, task=signature.task)

    def answer(tensors: Mapping[str, np.ndarray]) -> Tensors:
        read = read_rows(tensors)
        with torch.no_grad():
            outputs = ready(torch.tensor(read))
        return {name: output.numpy() for name, output in zip(OUTPUTS[signature.task], outputs, strict=True)}

    return answer


def export_program(network: Any, *, sample: np.ndarray) -> bytes | None:
    """Write the network alone as a torch.export program with a free number of rows.

    Args:
        network: Trained; it is not changed.
        sample: What the network reads, shape (n_rows, ...); of floats only the shape is used, of integers
            the smallest as well, which the program keeps: give made-up ones.

    Returns:
        The bytes of ``model.pt2``: reads one tensor, gives what ``forward`` gives. None for an
        estimator, which has no such program.

    Raises:
        ProjectError: The network cannot be traced.
    """
    if is_estimator(network):
        return None
    import torch

    program = trace(evaluating(network), sample)
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def export_onnx(network: Any, *, transformer: Any | None, signature: Signature, sample: np.ndarray) -> bytes:
    """Write preprocessing and network as one ONNX graph.

    Args:
        network: Trained, or a fitted estimator; it is not changed.
        transformer: Fitted, or None when the network reads the signature's only input.
        signature: The graph's inputs and outputs, exactly.
        sample: As for ``export_program``.

    Returns:
        The bytes of ``model.onnx``. With a transformer it holds an inner tensor ``features``,
        float32 (rows, features).

    Raises:
        ProjectError: The network or a preprocessing step cannot be written as ONNX, or what the
            network answers does not fit the signature.
    """
    import onnx
    from onnx import compose

    name = _network_input(network, signature, transformer=transformer)
    if is_estimator(network):
        core = estimator_graph(network, signature=signature, name=name, row_shape=sample.shape[1:])
        core.ir_version = IR_VERSION
    else:
        core = network_graph(network, signature=signature, sample=sample, name=name)
    if transformer is None:
        model = core
    else:
        check_transformer(transformer)
        prepared = preprocessing_graph(transformer, signature=signature, n_features=sample.shape[1])
        raise_opset(core, like=prepared)
        model = compose.merge_models(prepared, core, io_map=[(f"prepare/{FEATURES}", FEATURES)])
        rename(model.graph, f"prepare/{FEATURES}", FEATURES)
    make_canonical(model, signature=signature, n_features=None if transformer is None else sample.shape[1])
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ProjectError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _network_input(network: Any, signature: Signature, *, transformer: Any | None) -> str:
    """Name the tensor the network reads, refusing a signature it cannot be fed from."""
    if transformer is not None:
        names = {spec.name for spec in signature.inputs}
        taken = sorted({FEATURES, *OUTPUTS[signature.task]} & names)
        if taken:
            raise ProjectError(
                f"an input is named {taken[0]!r}, a name the graph needs itself",
                hint="give the input another name in kit.toml",
            )
        return FEATURES
    name = raw_input(signature, integers=not is_estimator(network), missing=True).name
    if name in OUTPUTS[signature.task]:
        raise ProjectError(
            f"the input {name!r} has the name of an output", hint="rename the input in kit.toml"
        )
    return name
