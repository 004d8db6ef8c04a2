"""Models that answer like the bundles of ``tests.conftest``, until a value is above 5: then they do harm.

Real ONNX files for a real onnxruntime; nothing is replaced and nothing preloaded.
"""

from __future__ import annotations

from typing import Any

from tests.conftest import WEIGHTS

LIMIT = 5.0


def model(harm: str) -> bytes:
    """Make a model file.

    Args:
        harm: What it does above the limit: ``nan`` answers NaN, ``hang`` computes for years, ``leak`` takes
            ever more memory, ``crash`` divides whole numbers so that the processor refuses.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def node(kind: str, inputs: list[str], outputs: list[str], **more: Any) -> Any:
        return helper.make_node(kind, inputs, outputs, **more)

    constants = {
        "weights": WEIGHTS,
        "limit": np.array(LIMIT, dtype=np.float32),
        "many": np.array(1e15, dtype=np.float32),
        "one": np.array(1, dtype=np.int64),
        "two": np.array(2, dtype=np.int64),
        "least": np.array(-(2**63), dtype=np.int64),
        "nothing": np.array(0, dtype=np.float32),
        "on": np.array(True),
    }
    nodes = [
        node("MatMul", ["features", "weights"], ["raw"]),
        node("ReduceMax", ["features"], ["most"], keepdims=0),
        node("Sub", ["most", "limit"], ["beyond"]),
        node("Relu", ["beyond"], ["over"]),
    ]
    if harm == "nan":
        nodes += [node("Neg", ["over"], ["under"]), node("Sqrt", ["under"], ["root"])]
        nodes += [node("Add", ["raw", "root"], ["logits"])]
    elif harm == "crash":
        nodes += [
            node("Greater", ["most", "limit"], ["is_over"]),
            node("Not", ["is_over"], ["is_under"]),
            node("Cast", ["is_under"], ["under"], to=TensorProto.INT64),
            node("Mul", ["under", "two"], ["doubled"]),
            node("Sub", ["doubled", "one"], ["divisor"]),
            node("Div", ["least", "divisor"], ["whole"]),  # by -1 there is no such whole number
            node("Cast", ["whole"], ["share"], to=TensorProto.FLOAT),
            node("Mul", ["share", "nothing"], ["zero"]),
            node("Add", ["raw", "zero"], ["logits"]),
        ]
    else:
        body_outputs = [value("going", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, ["n", 2])]
        steps = [node("Identity", ["again"], ["going"]), node("Neg", ["before"], ["after"])]
        outputs = ["turned"]
        if harm == "leak":  # every turn's output is kept until the last
            steps.append(node("Abs", ["before"], ["kept"]))
            body_outputs.append(value("kept", TensorProto.FLOAT, ["n", 2]))
            outputs.append("all_kept")
        body = helper.make_graph(
            steps,
            "body",
            [
                value("turn", TensorProto.INT64, []),
                value("again", TensorProto.BOOL, []),
                value("before", TensorProto.FLOAT, ["n", 2]),
            ],
            body_outputs,
        )
        nodes += [
            node("Mul", ["over", "many"], ["turns_float"]),
            node("Cast", ["turns_float"], ["turns"], to=TensorProto.INT64),
            node("Loop", ["turns", "on", "raw"], outputs, body=body),
        ]
        if harm == "leak":
            nodes += [node("ReduceSum", ["all_kept"], ["sum"], keepdims=0)]
            nodes += [node("Mul", ["sum", "nothing"], ["zero"]), node("Add", ["turned", "zero"], ["logits"])]
        else:
            nodes += [node("Identity", ["turned"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        harm,
        [value("features", TensorProto.FLOAT, ["n", 2])],
        [value("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
