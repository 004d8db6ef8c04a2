"""What is served: small graphs made from fixed seeds, in a version of a project and as a file for the others.

Nothing is trained, since only time is measured. What serves them is not known here.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("low", "middle", "high")
N_FEATURES = 32
SLOW_MS = 20.0

_NEAR_MS = 4.0
_RUNS = 50
_TRIED_PRODUCTS = 64
_SIDE = 256  # of the square matrices that keep the slow model busy
_KIT_TOML = """
[project]
name = "{name}"

[data]
path = "rows.parquet"
label = "y"
inputs = [{{ name = "x", columns = ["x"], shape = {shape} }}]

[model]
factory = "model:build"

{more}
"""


@dataclass(frozen=True)
class Subject:
    """A model.

    Attributes:
        name: Under which it is served.
        onnx: The graph's bytes; input ``x``, outputs ``label`` and ``probabilities``.
        row_shape: Of one row of ``x``, float32.
    """

    name: str
    onnx: bytes
    row_shape: tuple[int, ...]

    def rows(self, n_rows: int, *, seed: int) -> np.ndarray:
        """Make rows of ``x``, shape (n_rows, *row_shape)."""
        return np.random.default_rng(seed).standard_normal((n_rows, *self.row_shape), dtype=np.float32)

    def answers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answer rows as onnxruntime does; gives indices of classes and probabilities."""
        label, probabilities = open_session(self.onnx).run(["label", "probabilities"], {"x": rows})
        return label, probabilities


def open_session(model: bytes) -> Any:
    """Open a graph on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def mlp(name: str = "mlp", *, widths: tuple[int, ...] = (64, 64), seed: int = 0) -> Subject:
    """Make a network of 32 numbers, hidden layers and three classes."""
    return Subject(name, _classifier((N_FEATURES,), widths, seed=seed), (N_FEATURES,))


def image() -> Subject:
    """Make a linear model of an image of 3 x 64 x 64, so that the request is what costs."""
    shape = (3, 64, 64)
    return Subject("image", _classifier(shape, (), seed=0), shape)


def large(*, seed: int) -> Subject:
    """Make a network of 10 MB."""
    return mlp("large", widths=(1568, 1568), seed=seed)


def slow(folder: Path) -> Subject:
    """Make a model whose batch takes about 20 ms, one row or 32; kept, since it is fitted to the machine.

    A chain of products of matrices hangs on the mean of the batch and adds nothing that float32 could hold.
    """
    kept = folder / "slow.onnx"
    if kept.is_file():
        found = Subject("slow", kept.read_bytes(), (N_FEATURES,))
        if abs(slow_run_ms(found) - SLOW_MS) < _NEAR_MS:
            return found
    per_product_ms = slow_run_ms(_slow(_TRIED_PRODUCTS)) / _TRIED_PRODUCTS
    found = _slow(max(1, round(SLOW_MS / per_product_ms)))
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(found.onnx)
    return found


def slow_run_ms(subject: Subject, *, n_rows: int = 8) -> float:
    """Measure what one batch takes when nobody disturbs it: the fastest of many runs."""
    session, rows = open_session(subject.onnx), subject.rows(n_rows, seed=0)
    taken = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        session.run(None, {"x": rows})
        taken.append((time.perf_counter() - began) * 1000)
    return min(taken)


def make_project(folder: Path, subjects: tuple[Subject, ...], *, more: str = "") -> None:
    """Make a project anew and register subjects in order; the first version is the champion.

    Args:
        folder: Of the project; what is there is removed.
        subjects: Versions, all of one name.
        more: Further sections of kit.toml.
    """
    from kit.engines import open_engine
    from kit.keypair import generate_key
    from kit.model_version import Parts, write_model_version
    from kit.project import Project
    from kit.signature import Signature
    from kit.tensors import TensorSpec

    first = subjects[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "kit.toml").write_text(
        _KIT_TOML.format(name=first.name, shape=list(first.row_shape), more=more)
    )
    project = Project.open(folder)
    key = project.signing_key_path()
    generate_key(key)
    signature = Signature(
        "classification",
        (TensorSpec("x", "float32", (-1, *first.row_shape), columns=("x",), minimum=-100.0, maximum=100.0),),
        (
            TensorSpec("label", "int64", (-1,), classes=CLASSES),
            TensorSpec("probabilities", "float32", (-1, len(CLASSES))),
        ),
    )
    for index, subject in enumerate(subjects):
        model, version = folder / "model.onnx", folder / "version"
        model.write_bytes(subject.onnx)
        golden = {"x": subject.rows(4, seed=1)}
        engine = open_engine(model, engine="onnxruntime", threads=1, signature=signature)
        parts = Parts(
            name=subject.name,
            onnx=subject.onnx,
            program=None,
            signature=signature,
            golden_inputs=golden,
            golden_outputs=engine.run(golden),
            profile={},
            steps=None,
            manifest={},
        )
        digest = write_model_version(parts, folder=version, key=key)
        uri = project.store().put(version, digest=digest)
        project.registry().register(subject.name, digest=digest, uri=uri, summary={})
        shutil.rmtree(version)
        if not index:
            project.registry().promote(f"{subject.name}@1")


def _classifier(shape: tuple[int, ...], widths: tuple[int, ...], *, seed: int) -> bytes:
    nodes, weights = _layers(shape, widths, seed=seed)
    nodes.append(helper.make_node("Identity", [nodes[-1].output[0]], ["logits"]))
    return _graph(nodes, weights, shape)


def _layers(
    shape: tuple[int, ...], widths: tuple[int, ...], *, seed: int
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Make linear layers with a rectifier between them; the last node's output are logits."""
    random = np.random.default_rng(seed)
    nodes, weights, last = [helper.make_node("Flatten", ["x"], ["flat"])], {}, "flat"
    sizes = (int(np.prod(shape)), *widths, len(CLASSES))
    for index, (n_in, n_out) in enumerate(pairwise(sizes)):
        weights[f"w{index}"] = (random.standard_normal((n_in, n_out)) / np.sqrt(n_in)).astype(np.float32)
        weights[f"b{index}"] = random.standard_normal(n_out).astype(np.float32) / 10
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"z{index}"]))
        last = f"z{index}"
        if index < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"a{index}"]))
            last = f"a{index}"
    return nodes, weights


def _slow(n_products: int) -> Subject:
    nodes, weights = _layers((N_FEATURES,), (), seed=0)
    logits = nodes[-1].output[0]
    random = np.random.default_rng(1)
    turning, _ = np.linalg.qr(random.standard_normal((_SIDE, _SIDE)))  # keeps the size of what it turns
    weights |= {
        "turning": turning.astype(np.float32),
        "start": random.standard_normal((_SIDE, _SIDE)).astype(np.float32),
        "nothing": np.array(1e-30, np.float32),
    }
    nodes += [
        helper.make_node("ReduceMean", [logits], ["mean"], keepdims=0),
        helper.make_node("Add", ["start", "mean"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{i}", "turning"], [f"m{i + 1}"]) for i in range(n_products)),
        helper.make_node("ReduceMean", [f"m{n_products}"], ["busy"], keepdims=0),
        helper.make_node("Mul", ["busy", "nothing"], ["added"]),
        helper.make_node("Add", [logits, "added"], ["logits"]),
    ]
    return Subject("slow", _graph(nodes, weights, (N_FEATURES,)), (N_FEATURES,))


def _graph(nodes: list[Any], weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> bytes:
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "served",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", len(CLASSES)]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
