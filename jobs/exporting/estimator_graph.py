"""The graph of a fitted estimator: what ``jobs.exporting.graph`` puts behind the preprocessing.

skl2onnx writes scikit-learn's estimators, onnxmltools the boosters; around them stand the kit's outputs.
The label is the class of the largest probability and the logits are the logarithms of the probabilities,
so an estimator's version reads like a network's. It knows nothing of fitting or of preprocessing.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.exporting.form import OPSET, OPSET_ML
from jobs.exporting.parity import Answer, ParityReport, Units, check_parity
from jobs.fitting.estimators import predict_rows
from kit.errors import GateError, ProjectError
from kit.signature import Signature
from kit.tensors import Tensors

if TYPE_CHECKING:
    import onnx

#: Below this a probability is float32 noise (1 - p of a sure answer): logits end here, at about -13.8.
SMALLEST_PROBABILITY = 1e-6

_BOOSTING_OPSET = 15  # the newest that onnxmltools writes
# What it writes means the same from the oldest operator set it declares to OPSET.
_UNCHANGED = {
    *(
        "Add",
        "ArgMax",
        "ArrayFeatureExtractor",
        "Cast",
        "Concat",
        "Div",
        "Exp",
        "Identity",
        "Mul",
        "Normalizer",
    ),
    *("Reshape", "Sigmoid", "Softmax", "Sub", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
}


def answer_rows(estimator: Any, rows: np.ndarray, *, task: str) -> Tensors:
    """Answer as the graph does, in Python.

    Args:
        estimator: Fitted.
        rows: float32, shape (n_rows, ...).
        task: ``classification`` or ``regression``.

    Returns:
        The task's outputs, as the signature names them.
    """
    found = predict_rows(estimator, rows, task=task)
    if task == "regression":
        return {"value": found}
    logits = np.log(np.clip(found, np.float32(SMALLEST_PROBABILITY), np.float32(1)))
    return {"label": found.argmax(axis=1), "probabilities": found, "logits": logits}


def estimator_graph(
    estimator: Any, *, signature: Signature, name: str, row_shape: tuple[int, ...]
) -> onnx.ModelProto:
    """Write a fitted estimator as ONNX.

    Args:
        estimator: As ``fit_estimator`` gives it.
        signature: The graph's outputs.
        name: The graph's input.
        row_shape: Its shape without the rows; the estimator reads a row laid out flat.

    Returns:
        A graph from ``name``, float32 (rows, *row_shape), to the task's outputs.

    Raises:
        ProjectError: The converter cannot write it, or writes something other than expected.
    """
    from onnx import TensorProto, compose, helper

    n_features = int(np.prod(row_shape))
    inner = compose.add_prefix(_converted(estimator, n_features=n_features), prefix="estimator/")
    wanted = "probabilities" if signature.task == "classification" else "value"
    answer = _answer_of(inner, estimator=estimator, task=signature.task)
    head, flat = helper.make_node, inner.graph.input[0].name
    nodes = [head("Reshape", [name, "row/shape"], [flat], name="row")]
    nodes += _needed(inner.graph, answer)
    constants = [helper.make_tensor("row/shape", TensorProto.INT64, [2], [-1, n_features])]
    if wanted == "value":
        constants.append(helper.make_tensor("value/shape", TensorProto.INT64, [1], [-1]))
        nodes.append(head("Cast", [answer], ["value/float"], name="value/float", to=TensorProto.FLOAT))
        nodes.append(head("Reshape", ["value/float", "value/shape"], ["value"], name="value"))
    else:
        bounds = {"logits/low": SMALLEST_PROBABILITY, "logits/high": 1.0}
        constants += [helper.make_tensor(key, TensorProto.FLOAT, [], [each]) for key, each in bounds.items()]
        nodes.append(head("Cast", [answer], ["probabilities"], name="probabilities", to=TensorProto.FLOAT))
        nodes.append(head("ArgMax", ["probabilities"], ["label"], name="label", axis=1, keepdims=0))
        nodes.append(head("Clip", ["probabilities", *bounds], ["logits/clip"], name="logits/clip"))
        nodes.append(head("Log", ["logits/clip"], ["logits"], name="logits"))
    read = {each for node in nodes for each in node.input}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *row_shape])]
    kinds = {"label": TensorProto.INT64}
    outputs = [
        helper.make_tensor_value_info(
            spec.name, kinds.get(spec.name, TensorProto.FLOAT), ["batch", *spec.row_shape]
        )
        for spec in signature.outputs
    ]
    constants += [each for each in inner.graph.initializer if each.name in read]
    graph = helper.make_graph(nodes, "estimator", inputs, outputs, initializer=constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    return helper.make_model(graph, opset_imports=opsets)


def check_estimator_parity(
    estimator: Any,
    reference: Answer,
    candidate: Answer,
    *,
    rows: Mapping[str, np.ndarray],
    adversarial: Mapping[str, np.ndarray] | None = None,
    tolerance: float,
) -> ParityReport:
    """Compare as ``check_parity`` does, logits as the probabilities they are the logarithms of.

    Near 0 and 1 a float32 probability has no digits left whose logarithm could be compared. The trees of an
    ensemble are added in float32 in another order: XGBoost's hundred differ by 9 ulps at 1e6.

    Raises:
        GateError: They differ; the message names the estimator.
    """

    def comparable(answer: Answer) -> Answer:
        def answers(tensors: Mapping[str, np.ndarray]) -> Tensors:
            found = {name: np.asarray(value) for name, value in answer(tensors).items()}
            return {**found, "logits": np.exp(found["logits"])} if "logits" in found else found

        return answers

    try:
        return check_parity(
            comparable(reference),
            comparable(candidate),
            rows=rows,
            adversarial=adversarial,
            tolerance=tolerance,
            units=Units(("probabilities", "logits"), ulps=_ulps(estimator)),
        )
    except GateError as error:
        raise GateError(
            f"{type(estimator).__name__} as ONNX does not answer like itself: {error.message}",
            hint="name another estimator, or bound the inputs with minimum and maximum in kit.toml where "
            "such values cannot occur",
        ) from error


def _ulps(estimator: Any) -> int:
    """Allow what two orders of a float32 sum over the trees differ by: about the root of their number."""
    n_trees = getattr(estimator, "n_estimators", 0)
    n_trees = 100 if n_trees is None else n_trees  # XGBoost leaves its own default unsaid
    return max(Units().ulps, math.ceil(2 * math.sqrt(n_trees)))


def _converted(estimator: Any, *, n_features: int) -> onnx.ModelProto:
    package = type(estimator).__module__.partition(".")[0]
    convert = {"lightgbm": _lightgbm, "xgboost": _xgboost}.get(package, _scikit_learn)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: onnx.ModelProto = convert(estimator, n_features)
    except Exception as error:  # the converters raise kinds of their own for what they cannot write
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ProjectError(
            f"{type(estimator).__name__} cannot be written as ONNX: "
            f"{lines[0][:200] if lines else type(error).__name__}",
            hint="use simpler parameters, or another estimator",
        ) from error
    if package != "sklearn":
        for node in model.graph.node:
            if node.op_type not in _UNCHANGED:
                raise ProjectError(
                    f"{type(estimator).__name__} is written with the operation {node.op_type}, which the "
                    f"kit's graphs cannot hold",
                    hint="leave objective at its default",
                )
    return model


def _scikit_learn(estimator: Any, n_features: int) -> Any:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    zipped = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
    return convert_sklearn(
        estimator,
        name="estimator",
        initial_types=[("x", FloatTensorType([None, n_features]))],
        target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML},
        options=zipped,
    )


def _lightgbm(estimator: Any, n_features: int) -> Any:
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    # Loaded from text, because that is where thresholds can be changed.
    booster = lightgbm.Booster(model_str=_rounded_down(estimator.booster_.model_to_string()))
    zipped = {"zipmap": False} if hasattr(estimator, "predict_proba") else {}
    return convert_lightgbm(
        booster,
        initial_types=[("x", FloatTensorType([None, n_features]))],
        target_opset=_BOOSTING_OPSET,
        **zipped,
    )


def _rounded_down(text: str) -> str:
    """Round the thresholds of a LightGBM model down to float32, which changes no answer.

    They lie between two float32 values x <= t < y. Written as float32 they may become y, and a row with
    the value y would go the other way; x they may become, for float32 rows.
    """

    def rounded(line: re.Match[str]) -> str:
        exact = np.array(line[1].split(), dtype=np.float64)
        near = exact.astype(np.float32)
        down = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
        return "threshold=" + " ".join(repr(float(value)) for value in down)

    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)  # lengths in bytes, which change
    return re.sub(r"^threshold=(.*)$", rounded, text, flags=re.MULTILINE)


def _xgboost(estimator: Any, n_features: int) -> Any:
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    return convert_xgboost(
        estimator,
        initial_types=[("x", FloatTensorType([None, n_features]))],
        target_opset=_BOOSTING_OPSET,
    )


def _answer_of(model: onnx.ModelProto, *, estimator: Any, task: str) -> str:
    """Name the tensor that holds the probabilities or the values."""
    names: list[str] = [value.name for value in model.graph.output]
    expected = 2 if task == "classification" else 1
    if len(names) < expected or len(model.graph.input) != 1:
        raise ProjectError(f"{type(estimator).__name__} as ONNX has the outputs {', '.join(names)}")
    return names[expected - 1]


def _needed(graph: onnx.GraphProto, answer: str) -> list[Any]:
    """Keep the nodes an answer depends on, in their order."""
    wanted, kept = {answer}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
            for attribute in node.attribute:  # what the bodies of loops read from outside
                if attribute.HasField("g"):
                    wanted |= {name for inner in attribute.g.node for name in inner.input}
    return kept[::-1]
