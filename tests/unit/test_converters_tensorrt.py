"""Rules of the files for TensorRT: what is in 8 bits, what is in halves, and that they answer alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.converters import tensorrt
from edge.core import Material, core_of
from edge.recipes import Recipe
from edge.targets import find_target
from kit.errors import InputError
from kit.keypair import load_trusted
from kit.model_version import ModelVersion, Parts, write_model_version
from kit.signature import Signature
from kit.tensors import TensorSpec

INT8 = Recipe("int8")
HALVES = find_target("tensorrt-fp16").ladder[0]
ROWS = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
SIGNATURE = Signature(
    "classification",
    (TensorSpec("x", "float32", (-1, 1, 8, 8)),),
    (
        TensorSpec("label", "int64", (-1,), classes=("a", "b", "c")),
        TensorSpec("probabilities", "float32", (-1, 3)),
        TensorSpec("logits", "float32", (-1, 3)),
    ),
)


def network(*, weights: bool = True, foreign: bool = False) -> bytes:
    """A network of two convolutions and a matrix product; or one with nothing to multiply.

    Args:
        weights: Whether it has weights.
        foreign: Whether an activation of it is an operator of onnxruntime's own.
    """
    random = np.random.default_rng(1)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.normal(size=shape).astype(np.float32) / 3, name)

    if weights:
        nodes = [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", kernel_shape=[3, 3]),
            helper.make_node("GlobalAveragePool", ["c2"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], name="head"),
        ]
        values = [tensor("w1", 6, 1, 3, 3), tensor("b1", 6), tensor("w2", 8, 6, 3, 3), tensor("b2", 8)]
        values += [tensor("w3", 8, 3), tensor("b3", 3)]
        if foreign:
            nodes[1] = helper.make_node("Gelu", ["c1"], ["r1"], name="gelu", domain="com.microsoft")
    else:
        values = [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")]
        nodes = [
            helper.make_node("Slice", ["x", "start", "end", "last"], ["row"], name="slice"),
            helper.make_node("ReduceMean", ["row", "axes"], ["once"], keepdims=0, name="mean"),
            helper.make_node("Concat", ["once", "once", "once"], ["logits"], axis=1, name="thrice"),
        ]
        for name, value in (("start", 0), ("end", 4), ("last", 3)):
            values.append(numpy_helper.from_array(np.array([value], np.int64), name))
    nodes += [
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3]),
    ]
    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    graph = helper.make_graph(nodes, "net", [rows], outputs, values)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def material(folder: Path, parts: Parts, key: Path, **network_of: bool) -> Material:
    made = dataclasses.replace(
        parts,
        onnx=network(**network_of),
        signature=SIGNATURE,
        steps=None,
        golden_inputs={"x": ROWS[:2]},
        golden_outputs={"label": np.zeros(2, np.int64), "logits": np.zeros((2, 3), np.float32)},
        manifest={"graph": {"features": None}, "lineage": {}},
    )
    write_model_version(made, folder=folder / "version", key=key)
    core = core_of(ModelVersion.open(folder / "version", trusted=load_trusted(key.parent)))
    (folder / "work").mkdir()
    return Material(core, ROWS, (1,), "float", folder / "work")


@pytest.fixture
def made_of(tmp_path: Path, tiny_parts: Parts, signing_key: Path) -> Material:
    return material(tmp_path, tiny_parts, signing_key)


def converted(made_of: Material, recipe: Recipe, folder: Path, *, kept: tuple[str, ...] = ()) -> Any:
    folder.mkdir()
    tensorrt.convert(made_of, recipe, kept=kept, folder=folder)
    return onnx.load(folder / "model.onnx")


def answers(model: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(each.name, each.type) for each in session.get_inputs()] == [("x", "tensor(float)")]
    assert [(each.name, each.type) for each in session.get_outputs()] == [("logits", "tensor(float)")]
    return session.run(["logits"], {"x": ROWS})[0]


def fed_in_8_bits(model: Any) -> dict[str, list[str]]:
    """Give the nodes that read 8 bits, by operator."""
    rounded = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if rounded & set(node.input):
            found.setdefault(node.op_type, []).append(node.name)
    return found


def test_halves_are_written_down_in_the_file(made_of: Material, tmp_path: Path) -> None:
    model = converted(made_of, HALVES, tmp_path / "fp16")
    kinds = {each.data_type for each in model.graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    np.testing.assert_allclose(answers(model), answers(float_of(made_of, tmp_path)), atol=5e-3)


def float_of(made_of: Material, tmp_path: Path) -> Any:
    recipe = Recipe("float32", weights="float32", activations="float32")
    return converted(made_of, recipe, tmp_path / "float")


def test_8_bits_are_signed_without_zero_points_and_per_channel(made_of: Material, tmp_path: Path) -> None:
    model = converted(made_of, INT8, tmp_path / "int8")
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    weights = [values[node.input[0]] for node in pairs if node.input[0] in values]
    assert {array.dtype for array in weights} == {np.dtype(np.int8)}
    assert all(array.min() >= -127 for array in weights)
    channels = {values[node.input[1]].size for node in pairs if node.input[0] in values}
    assert channels == {6, 8, 3}, "a scale for each channel that comes out"


def test_8_bits_stand_in_front_of_what_has_weights_and_nowhere_else(
    made_of: Material, tmp_path: Path
) -> None:
    fed = fed_in_8_bits(converted(made_of, INT8, tmp_path / "int8"))
    assert set(fed) == {"Conv", "Gemm"}
    assert sum(map(len, fed.values())) == 3


def test_a_file_in_8_bits_answers_like_the_float(made_of: Material, tmp_path: Path) -> None:
    expected = answers(float_of(made_of, tmp_path))
    found = answers(converted(made_of, INT8, tmp_path / "int8"))
    assert 0 < np.abs(found - expected).mean() / expected.std() < 0.05


def test_a_kept_layer_stays_in_float(made_of: Material, tmp_path: Path) -> None:
    names = [each.name for each in tensorrt.layers(made_of, INT8, rows=ROWS[:8])]
    head = next(name for name in names if name == "head")
    fed = fed_in_8_bits(converted(made_of, INT8, tmp_path / "int8", kept=(head,)))
    assert set(fed) == {"Conv"}


def test_layers_come_with_their_errors_in_the_order_of_the_graph(made_of: Material) -> None:
    found = tensorrt.layers(made_of, INT8, rows=ROWS[:8])
    assert [each.name for each in found if each.kind in ("Conv", "Gemm")] == ["first", "second", "head"]
    assert all(each.error > 0 for each in found if each.kind in ("Conv", "Gemm"))


def test_clipped_ranges_are_other_ranges(made_of: Material, tmp_path: Path) -> None:
    true = converted(made_of, INT8, tmp_path / "true")
    clipped = converted(made_of, Recipe("int8-clipped", ranges="clipped"), tmp_path / "clipped")
    assert true.SerializeToString() != clipped.SerializeToString()


@pytest.mark.parametrize("recipe", [INT8, HALVES], ids=lambda recipe: recipe.name)
def test_the_same_network_gives_the_same_bytes(made_of: Material, tmp_path: Path, recipe: Recipe) -> None:
    first = converted(made_of, recipe, tmp_path / "first")
    assert first == converted(made_of, recipe, tmp_path / "second")
    written = [(tmp_path / name / "model.onnx").read_bytes() for name in ("first", "second")]
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]


def test_a_network_without_weights_is_refused(tmp_path: Path, tiny_parts: Parts, signing_key: Path) -> None:
    made_of = material(tmp_path, tiny_parts, signing_key, weights=False)
    with pytest.raises(InputError, match="no layer with weights to run in 8 bits") as caught:
        converted(made_of, INT8, tmp_path / "int8")
    assert "tensorrt-fp16" in str(caught.value.hint)


@pytest.mark.parametrize("recipe", [INT8, HALVES], ids=lambda recipe: recipe.name)
def test_an_operator_of_somebody_elses_is_named_with_its_place(
    tmp_path: Path, tiny_parts: Parts, signing_key: Path, recipe: Recipe
) -> None:
    made_of = material(tmp_path, tiny_parts, signing_key, foreign=True)
    with pytest.raises(InputError, match=r"node 'gelu' is com\.microsoft:Gelu, which TensorRT does not have"):
        converted(made_of, recipe, tmp_path / "refused")


def test_the_file_says_which_tensorrt_loads_it(made_of: Material, tmp_path: Path) -> None:
    facts = tensorrt.describe(made_of, folder=tmp_path)
    assert facts.packages == {"tensorrt": ">=10,<12"}
    assert [each["name"] for each in (*facts.inputs, *facts.outputs)] == ["x", "logits"]
