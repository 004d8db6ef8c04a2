"""The graphs of a model version: the ONNX file with the preprocessing inside, the torch program.

Training calls this once it has a fitted transformer and a trained network. The same weights
give the same bytes in any process and any folder, and nothing about the machine gets in. It
knows nothing of training, of tables or of where the bytes are kept; whether the graph answers
like the Python it came from is for ``jobs.exporting.parity`` to find out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.exporting.converters import RULES_OPSET, register_converters
from jobs.exporting.estimator_graph import answer_rows, estimator_graph
from jobs.fitting.estimators import is_estimator
from jobs.preparation.frame import check_transformer, frame_columns, steps_of, to_features
from kit.errors import ProjectError
from kit.signature import Signature, Tensors, TensorSpec

if TYPE_CHECKING:
    import onnx
    import torch

#: The tensor inside model.onnx where preprocessing ends and the network begins.
FEATURES = "features"

#: Outputs by task, in the order of the graph.
OUTPUTS = {"classification": ("label", "probabilities", "logits"), "regression": ("value",)}

# One operator set and file version for both halves, so they can be merged.
_OPSET = 18
_OPSET_ML = 3
_IR_VERSION = 10

_ONNX_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float64": 11}


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
            return np.asarray(tensors[_network_input(signature, transformer=None)])
        return to_features(transformer, tensors, signature=signature)

    if is_estimator(network):
        return lambda tensors: answer_rows(network, read_rows(tensors), task=signature.task)
    import torch

    ready = _answering(network, task=signature.task)

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
        sample: What the network reads, float32, shape (n_rows, ...); only the shape is used.

    Returns:
        The bytes of ``model.pt2``: reads one tensor, gives what ``forward`` gives. None for an
        estimator, which has no such program.

    Raises:
        ProjectError: The network cannot be traced.
    """
    if is_estimator(network):
        return None
    import torch

    program = _trace(_evaluating(network), sample)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def export_onnx(network: Any, *, transformer: Any | None, signature: Signature, sample: np.ndarray) -> bytes:
    """Write preprocessing and network as one ONNX graph.

    Args:
        network: Trained, or a fitted estimator; it is not changed.
        transformer: Fitted, or None when the network reads the signature's only input.
        signature: The graph's inputs and outputs, exactly.
        sample: What the network reads, float32, shape (n_rows, ...); only the shape is used.

    Returns:
        The bytes of ``model.onnx``. With a transformer it holds an inner tensor ``features``,
        float32 (rows, features).

    Raises:
        ProjectError: The network or a preprocessing step cannot be written as ONNX, or what the
            network answers does not fit the signature.
    """
    import onnx
    from onnx import compose

    name = _network_input(signature, transformer=transformer)
    if is_estimator(network):
        core = estimator_graph(network, signature=signature, name=name, row_shape=sample.shape[1:])
        core.ir_version = _IR_VERSION
    else:
        core = _network_graph(network, signature=signature, sample=sample, name=name)
    if transformer is None:
        model = core
    else:
        check_transformer(transformer)
        prepared = preprocessing_graph(transformer, signature=signature, n_features=sample.shape[1])
        _raise_opset(core, like=prepared)
        model = compose.merge_models(prepared, core, io_map=[(f"prepare/{FEATURES}", FEATURES)])
        _rename(model.graph, f"prepare/{FEATURES}", FEATURES)
    _canonical(model, signature=signature, n_features=None if transformer is None else sample.shape[1])
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ProjectError(f"the exported graph is not valid ONNX: {_first_line(error)}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _evaluating(network: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)


def _answering(network: torch.nn.Module, *, task: str) -> torch.nn.Module:
    """Wrap a network so that it gives the task's outputs, in the order of ``OUTPUTS``."""
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _evaluating(network)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = self.network(x).to(torch.float32)
            return logits.argmax(dim=1), torch.softmax(logits, dim=1), logits

    class Regressor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _evaluating(network)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.network(x).to(torch.float32).reshape(-1),)

    return (Classifier() if task == "classification" else Regressor()).eval()


def _network_input(signature: Signature, *, transformer: Any | None) -> str:
    """Name the tensor the network reads, refusing a signature it cannot be fed from."""
    names = [spec.name for spec in signature.inputs]
    if transformer is not None:
        taken = sorted({FEATURES, *OUTPUTS[signature.task]} & set(names))
        if taken:
            raise ProjectError(
                f"an input is named {taken[0]!r}, a name the graph needs itself",
                hint="give the input another name in kit.toml",
            )
        return FEATURES
    if len(names) != 1 or signature.inputs[0].dtype != "float32":
        listed = ", ".join(f"{spec.name} ({spec.dtype})" for spec in signature.inputs)
        raise ProjectError(
            f"without preprocessing a network reads exactly one float32 input, not {listed}",
            hint="declare one float32 input, or give the project a scikit-learn preprocessing",
        )
    if names[0] in OUTPUTS[signature.task]:
        raise ProjectError(
            f"the input {names[0]!r} has the name of an output", hint="rename the input in kit.toml"
        )
    return names[0]


def _check_answer(network: torch.nn.Module, *, signature: Signature, sample: np.ndarray) -> None:
    import torch

    with torch.no_grad():
        answer = _evaluating(network)(torch.zeros((2, *sample.shape[1:])))
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


def _trace(module: torch.nn.Module, sample: np.ndarray) -> torch.export.ExportedProgram:
    """Trace with a free number of rows, and forget where the code stood.

    Zeros of the sample's shape stand in for the sample: the program keeps its example inputs,
    and training rows do not belong in a model file.
    """
    import torch

    zeros = torch.zeros((2, *sample.shape[1:]))
    rows = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, (zeros,), dynamic_shapes=({0: rows},))
    except (RuntimeError, ValueError) as error:
        raise ProjectError(
            f"the network cannot be exported with a free number of rows: {_first_line(error)}",
            hint="take no decision in forward on values or on the number of rows; write -1 for it in reshape",
        ) from error
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            for node in graph.graph.nodes:
                # stack_trace, nn_module_stack and the like hold paths and class names
                node.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    return program


def _network_graph(
    network: torch.nn.Module, *, signature: Signature, sample: np.ndarray, name: str
) -> onnx.ModelProto:
    import torch
    from onnx import compose

    _check_answer(network, signature=signature, sample=sample)
    program = _trace(_answering(network, task=signature.task), sample)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    except RuntimeError as error:  # the root of torch.onnx's own errors
        raise ProjectError(
            f"the network holds an operation that ONNX does not know: {_first_line(error)}",
            hint="replace the operation in forward by ones that torch.onnx can export",
        ) from error
    if exported is None:
        raise ProjectError("the network cannot be written as ONNX")
    # The prefix keeps the exporter's names ("linear", "view") apart from a user's input of that name.
    model = compose.add_prefix(exported.model_proto, prefix="network/", rename_functions=False)
    places = (*model.graph.input, *model.graph.output)
    for value, new in zip(places, (name, *OUTPUTS[signature.task]), strict=True):
        _rename(model.graph, value.name, new)
        value.name = new
    model.ir_version = _IR_VERSION
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def preprocessing_graph(transformer: Any, *, signature: Signature, n_features: int) -> onnx.ModelProto:
    """Write the preprocessing alone: kit tensors, columns, scikit-learn's steps, ``prepare/features``.

    Args:
        transformer: Fitted.
        signature: The graph's inputs.
        n_features: Values per row that it gives.

    Raises:
        ProjectError: A step cannot be written as ONNX.
    """
    from onnx import TensorProto, compose, helper

    opset = RULES_OPSET if _holds_rule(transformer) else _OPSET
    converted = compose.add_prefix(
        _converted(transformer, signature=signature, opset=opset), prefix="prepare/", rename_functions=False
    )
    columns = _columns_graph(signature, opset=opset)
    model = compose.merge_models(
        columns,
        converted,
        io_map=[(value.name, value.name) for value in converted.graph.input],
        outputs=[converted.graph.output[0].name],
    )
    graph = model.graph
    target = f"prepare/{FEATURES}"
    graph.node.append(
        helper.make_node("Cast", [graph.output[0].name], [f"{target}/cast"], name=f"{target}/cast", to=1)
    )
    graph.initializer.append(helper.make_tensor(f"{target}/shape", TensorProto.INT64, [2], [-1, n_features]))
    graph.node.append(
        helper.make_node("Reshape", [f"{target}/cast", f"{target}/shape"], [target], name=target)
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(target, TensorProto.FLOAT, ["batch", n_features]))
    return model


def _holds_rule(transformer: Any) -> bool:
    return any(type(step).__name__ == "Matching" for _, step in steps_of(transformer, "preprocessing"))


def _raise_opset(core: onnx.ModelProto, *, like: onnx.ModelProto) -> None:
    """Declare the operator set of the preprocessing for the network too; two halves must name one.

    Raises:
        ProjectError: The network holds an operator whose meaning differs between the two.
    """
    wanted = next(entry.version for entry in like.opset_import if entry.domain == "")
    for entry in core.opset_import:
        if entry.domain == "" and entry.version < wanted:
            # From 18 to 20 every other operator only gained types and optional attributes.
            parts = (core.graph, *core.functions)
            changed = {node.op_type for part in parts for node in part.node} & {"GridSample", "DFT"}
            if changed:
                raise ProjectError(
                    f"the network uses {sorted(changed)[0]}, which cannot stand in one graph with a rule",
                    hint="set otherwise = 'drop' for the rule, or leave the operation out of forward",
                )
            entry.version = wanted
            for function in core.functions:
                for own in function.opset_import:
                    own.version = wanted if own.domain == "" else own.version


def _converted(transformer: Any, *, signature: Signature, opset: int) -> onnx.ModelProto:
    """Let skl2onnx write the transformer, reading one (rows, 1) tensor per column."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    register_converters()
    types = {
        column: (StringTensorType if spec.dtype == "string" else FloatTensorType)([None, 1])
        for spec in signature.inputs
        for column in frame_columns(spec)
    }
    # Converters read the frame's columns by name and order, all of them.
    read = [str(name) for name in getattr(transformer, "feature_names_in_", types)]
    try:
        with _quiet():
            model: onnx.ModelProto = convert_sklearn(
                transformer,
                name="prepare",
                initial_types=[(column, types[column]) for column in read],
                target_opset={"": opset, "ai.onnx.ml": _OPSET_ML},
                # The default, en_US, is a locale many machines do not have installed.
                options={CountVectorizer: {"locale": "C"}, TfidfVectorizer: {"locale": "C"}},
            )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise ProjectError(
            f"a preprocessing step has no ONNX converter: {_first_line(error)}",
            hint="use a step scikit-learn exports to ONNX, or do that part in the network",
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
        hint = "use simpler options for the step the message names"
        if "missing values are string" in str(error):
            hint = "in SimpleImputer for string columns set missing_values='' (a missing string is empty)"
        raise ProjectError(
            f"the preprocessing cannot be written as ONNX: {_first_line(error)}", hint=hint
        ) from error
    if len(model.graph.output) != 1:
        raise ProjectError(f"the preprocessing yields {len(model.graph.output)} outputs; one is expected")
    if len(model.graph.input) != len(read):
        unused = len(read) - len(model.graph.input)
        raise ProjectError(
            f"the preprocessing leaves {unused} of its {len(read)} columns out of the graph",
            hint="declare only columns that the preprocessing uses in the inputs of kit.toml",
        )
    # It changes names that are no identifiers ("mean radius"), so columns are told apart by position.
    for column, value in zip(read, model.graph.input, strict=True):
        _rename(model.graph, value.name, f"column/{column}")
        value.name = f"column/{column}"
    model.ir_version = _IR_VERSION
    # It declares the oldest set that holds the operators it used; the halves must name the same one.
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx.ml")]
    del model.opset_import[:]
    model.opset_import.extend([*_opsets(opset), *others])
    return model


def _opsets(opset: int) -> list[Any]:
    from onnx import helper

    return [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", _OPSET_ML)]


def _columns_graph(signature: Signature, *, opset: int) -> onnx.ModelProto:
    """Build the head that takes the kit's tensors apart into columns of shape (rows, 1)."""
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    inputs: list[Any] = []
    outputs: list[Any] = []
    constants: list[Any] = []
    for spec in signature.inputs:
        names = frame_columns(spec)
        inputs.append(helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.dtype], _dims(spec)))
        head = f"columns/{spec.name}"
        kind = TensorProto.STRING if spec.dtype == "string" else TensorProto.FLOAT
        current = spec.name
        if spec.dtype not in ("string", "float32"):
            nodes.append(helper.make_node("Cast", [current], [f"{head}/cast"], name=f"{head}/cast", to=kind))
            current = f"{head}/cast"
        shape = [-1, spec.row_size]
        constants.append(helper.make_tensor(f"{head}/shape", TensorProto.INT64, [2], shape))
        flat = [f"{head}/flat"] if spec.row_size > 1 else [f"prepare/column/{names[0]}"]
        nodes.append(helper.make_node("Reshape", [current, f"{head}/shape"], flat, name=f"{head}/flat"))
        columns = [f"prepare/column/{column}" for column in names]
        if spec.row_size > 1:
            nodes.append(
                helper.make_node(
                    "Split", flat, columns, name=f"{head}/split", axis=1, num_outputs=len(columns)
                )
            )
        outputs.extend(helper.make_tensor_value_info(column, kind, ["batch", 1]) for column in columns)
    graph = helper.make_graph(nodes, "columns", inputs, outputs, initializer=constants)
    return helper.make_model(graph, opset_imports=_opsets(opset), ir_version=_IR_VERSION)


def _dims(spec: TensorSpec) -> list[str | int]:
    return ["batch", *spec.row_shape]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for attribute in node.attribute:  # the branches of an If and the body of a Loop read it as well
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)


def _canonical(model: onnx.ModelProto, *, signature: Signature, n_features: int | None) -> None:
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
            helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.dtype], _dims(spec)) for spec in specs
        )
    opsets = sorted({(entry.domain, entry.version) for entry in model.opset_import})
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(" You may raise")[0][:200] if lines else type(error).__name__
