"""What a tested endpoint serves: a project with two small models, and what their engines answer.

``tiny`` has five versions: 1 to 3 answer, 4 has golden answers that are not its own, 5 answers NaN. ``twin``
has one, which answers NaN for a row with a value above ``BREAKS_ABOVE``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kit.engines import open_engine
from kit.keypair import generate_key
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

COLUMNS = ("a", "b", "c", "d")
CLASSES = ("low", "middle", "high")
BREAKS_ABOVE = 90.0
ONE_ROW = np.array([[0.5, -1.0, 2.0, 0.25]], dtype=np.float32)

SETTINGS = """
[project]
name = "tiny"

[data]
path = "rows.parquet"
label = "y"
inputs = [{ name = "x", columns = ["a", "b", "c", "d"] }]

[model]
factory = "model:build"
"""

SIGNATURE = Signature(
    "classification",
    (TensorSpec("x", "float32", (-1, 4), columns=COLUMNS, minimum=-100.0, maximum=100.0),),
    (
        TensorSpec("label", "int64", (-1,), classes=CLASSES),
        TensorSpec("probabilities", "float32", (-1, 3)),
        TensorSpec("logits", "float32", (-1, 3)),
    ),
)


def make_project(folder: Path, *, serve: str = "") -> Project:
    """Make a project with both models, its champions ``tiny@1`` and ``twin@1``.

    Args:
        folder: Where; must not exist.
        serve: What kit.toml says from ``[serve]`` on.
    """
    folder.mkdir(parents=True)
    (folder / "kit.toml").write_text(SETTINGS + serve)
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    for seed in (1, 2, 3):
        _register(project, "tiny", _network(seed))
    _register(project, "tiny", _network(4), golden_shift=1.0)
    _register(project, "tiny", _network(5, nan="always"), golden=_network(5))
    _register(project, "twin", _network(9, nan="above"))
    for name in ("tiny@1", "twin@1"):
        project.registry().promote(name)
    return project


def _register(
    project: Project, name: str, model: bytes, *, golden: bytes | None = None, golden_shift: float = 0.0
) -> None:
    key = project.signing_key_path()
    rows = np.random.default_rng(1).normal(size=(4, len(COLUMNS))).astype(np.float32)
    answers = run(golden or model, rows, folder=project.folder)
    answers["logits"] = answers["logits"] + np.float32(golden_shift)
    number = len(list(project.folder.glob("version-*")))
    parts = Parts(
        name=name,
        onnx=model,
        program=None,
        signature=SIGNATURE,
        golden_inputs={"x": rows},
        golden_outputs=answers,
        profile={"n_rows": 4, "columns": {}},
        steps=None,
        manifest={},
    )
    version = project.folder / f"version-{number}"
    digest = write_model_version(parts, folder=version, key=key)
    uri = project.store().put(version, digest=digest)
    project.registry().register(name, digest=digest, uri=uri, summary={})


def _network(seed: int, *, nan: str = "") -> bytes:
    draw = np.random.default_rng(seed)
    sizes = {"w0": (4, 16), "w1": (16, 3)}
    constants = [
        numpy_helper.from_array(draw.normal(size=size).astype(np.float32), name)
        for name, size in sizes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["raw"]),
    ]
    if nan:
        limit = BREAKS_ABOVE if nan == "above" else -1000.0
        constants.append(numpy_helper.from_array(np.array(limit, dtype=np.float32), "limit"))
        constants.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"))
        constants.append(numpy_helper.from_array(np.array(0, dtype=np.float32), "zero"))
        nodes += [
            helper.make_node("Sub", ["limit", "x"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["roots"]),  # NaN beyond the limit
            helper.make_node("ReduceSum", ["roots", "axis"], ["root"]),
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", ["raw", "nothing"], ["logits"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["raw"], ["logits"]))
    nodes += [
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    outputs = {
        "label": (TensorProto.INT64, ["n"]),
        "probabilities": (TensorProto.FLOAT, ["n", 3]),
        "logits": (TensorProto.FLOAT, ["n", 3]),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def run(model: bytes, rows: np.ndarray, *, folder: Path) -> Tensors:
    """Ask the engine alone."""
    path = folder / "asked.onnx"
    path.write_bytes(model)
    return dict(open_engine(path, engine="onnxruntime", threads=1, signature=SIGNATURE).run({"x": rows}))


def engine_answers(project: Project, reference: str, rows: np.ndarray) -> Tensors:
    """Answer rows of shape (n_rows, 4) with a version's engine, in one call, without an endpoint."""
    _, version = project.open_version(reference)
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    return dict(engine.run({"x": rows}))


def draw_rows(n_rows: int, *, seed: int = 7) -> np.ndarray:
    """Draw rows the models answer, float32, shape (n_rows, 4)."""
    return np.random.default_rng(seed).normal(size=(n_rows, len(COLUMNS))).astype(np.float32)
