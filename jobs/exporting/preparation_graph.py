"""The fitted preprocessing as the head of an ONNX graph: kit tensors, columns, features.

It knows nothing of networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs.exporting.converters import RULES_OPSET, register_converters
from jobs.exporting.form import (
    FEATURES,
    IR_VERSION,
    ONNX_TYPES,
    OPSET,
    OPSET_ML,
    dims,
    first_line,
    opsets,
    quiet,
    rename,
)
from jobs.preparation.frame import frame_columns, steps_of
from kit.errors import ProjectError
from kit.signature import Signature

if TYPE_CHECKING:
    import onnx


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

    opset = RULES_OPSET if _holds_rule(transformer) else OPSET
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


def raise_opset(core: onnx.ModelProto, *, like: onnx.ModelProto) -> None:
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
        with quiet():
            model: onnx.ModelProto = convert_sklearn(
                transformer,
                name="prepare",
                initial_types=[(column, types[column]) for column in read],
                target_opset={"": opset, "ai.onnx.ml": OPSET_ML},
                # The default, en_US, is a locale many machines do not have installed.
                options={CountVectorizer: {"locale": "C"}, TfidfVectorizer: {"locale": "C"}},
            )
    except (MissingConverter, MissingShapeCalculator) as error:
        raise ProjectError(
            f"a preprocessing step has no ONNX converter: {first_line(error)}",
            hint="use a step scikit-learn exports to ONNX, or do that part in the network",
        ) from error
    except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
        hint = "use simpler options for the step the message names"
        if "missing values are string" in str(error):
            hint = "in SimpleImputer for string columns set missing_values='' (a missing string is empty)"
        raise ProjectError(
            f"the preprocessing cannot be written as ONNX: {first_line(error)}", hint=hint
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
        rename(model.graph, value.name, f"column/{column}")
        value.name = f"column/{column}"
    model.ir_version = IR_VERSION
    # It declares the oldest set that holds the operators it used; the halves must name the same one.
    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx.ml")]
    del model.opset_import[:]
    model.opset_import.extend([*opsets(opset), *others])
    return model


def _columns_graph(signature: Signature, *, opset: int) -> onnx.ModelProto:
    """Build the head that takes the kit's tensors apart into columns of shape (rows, 1)."""
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    inputs: list[Any] = []
    outputs: list[Any] = []
    constants: list[Any] = []
    for spec in signature.inputs:
        names = frame_columns(spec)
        inputs.append(helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.dtype], dims(spec)))
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
    return helper.make_model(graph, opset_imports=opsets(opset), ir_version=IR_VERSION)
