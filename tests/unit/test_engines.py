from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kit.engines import ENGINES, Engine, open_engine
from kit.errors import InputError, MissingDependencyError
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

BOTH = ("onnxruntime", "openvino")
X = np.random.default_rng(0).uniform(-10, 10, (50, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_onnx: bytes) -> Path:
    path = tmp_path_factory.mktemp("engine") / "model.onnx"
    path.write_bytes(tiny_onnx)
    return path


@pytest.fixture(scope="module")
def engines(model: Path, tiny_signature: Signature) -> dict[str, Engine]:
    return {name: open_engine(model, engine=name, threads=1, signature=tiny_signature) for name in BOTH}


def test_the_engines_give_equal_answers(engines: dict[str, Engine]) -> None:
    first, second = (engines[name].run({"x": X}) for name in BOTH)
    np.testing.assert_array_equal(first["label"], second["label"])
    for name in ("logits", "probabilities"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_an_engine_answers_in_the_order_and_types_of_the_signature(
    engines: dict[str, Engine], tiny_signature: Signature, name: str
) -> None:
    for n_rows in (1, 7):
        answers = engines[name].run({"x": X[:n_rows]})
        assert list(answers) == [spec.name for spec in tiny_signature.outputs]
        for spec in tiny_signature.outputs:
            assert (answers[spec.name].dtype.name, answers[spec.name].shape) == (
                spec.dtype,
                (n_rows, *spec.row_shape),
            )


@pytest.mark.parametrize("name", BOTH)
def test_no_rows_have_no_answers(engines: dict[str, Engine], name: str) -> None:
    answers = engines[name].run({"x": X[:0]})
    assert {key: (array.shape, array.dtype.name) for key, array in answers.items()} == {
        "label": ((0,), "int64"),
        "probabilities": ((0, 2), "float32"),
        "logits": ((0, 2), "float32"),
    }


@pytest.mark.parametrize("name", BOTH)
def test_an_answer_stays_when_the_next_is_asked_for(engines: dict[str, Engine], name: str) -> None:
    first = engines[name].run({"x": X[:5]})["logits"]
    kept = first.copy()
    engines[name].run({"x": X[5:10]})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", BOTH)
def test_an_engine_says_what_it_is(engines: dict[str, Engine], name: str) -> None:
    assert engines[name].name == name
    assert engines[name].version[0].isdigit()


class Untouchable:
    version = "0"
    device = "cpu"

    def run(self, inputs: Tensors) -> Tensors:
        raise AssertionError("the runtime saw an input that breaks the signature")


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": X.astype(np.float64)},
        {"x": X[:, :1]},
        {"x": np.full((1, 2), np.nan, np.float32)},
        {"x": np.full((1, 2), 11, np.float32)},
        {"X": X},
        {},
    ],
)
def test_a_bad_input_never_reaches_the_runtime(inputs: Tensors, tiny_signature: Signature) -> None:
    with pytest.raises(InputError):
        Engine(Untouchable(), name="onnxruntime", signature=tiny_signature).run(inputs)


def test_an_unknown_engine_comes_with_the_nearest(model: Path, tiny_signature: Signature) -> None:
    with pytest.raises(InputError, match="there is no engine 'onxruntime'") as caught:
        open_engine(model, engine="onxruntime", threads=1, signature=tiny_signature)
    assert "did you mean 'onnxruntime'?" in str(caught.value.hint)


@pytest.mark.parametrize("name", sorted(set(ENGINES) - {"tensorrt"}))  # see test_tensorrt.py
@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_file_that_is_no_model_is_named(
    tmp_path: Path, tiny_signature: Signature, name: str, content: bytes | None
) -> None:
    path = tmp_path / ("model.tflite" if name == "litert" else "model.onnx")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot load {path.name}"):
        open_engine(path, engine=name, threads=1, signature=tiny_signature)


@pytest.mark.parametrize("name", BOTH)
def test_a_model_without_a_tensor_of_the_signature_is_refused(model: Path, name: str) -> None:
    value = TensorSpec("value", "float32", (-1,))
    wrong_input = Signature("", (TensorSpec("features", "float32", (-1, 2)),), ())
    wrong_output = Signature("", (TensorSpec("x", "float32", (-1, 2)),), (value,))
    for signature, missing in ((wrong_input, "features"), (wrong_output, "value")):
        with pytest.raises(InputError, match=rf"model\.onnx has no tensor '{missing}'; it has \["):
            open_engine(model, engine=name, threads=1, signature=signature)


BLOCKED = """
import sys
from pathlib import Path
blocked = {blocked!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Blocker())
from kit.engines import open_engine
from kit.errors import MissingDependencyError
from kit.signature import Signature
for engine in ("onnxruntime", "openvino", "litert", "tensorrt"):
    try:
        open_engine(Path("model.onnx"), engine=engine, threads=1, signature=Signature("", (), ()))
    except MissingDependencyError as error:
        print(error.message, "|", error.hint)
"""


def test_a_missing_package_says_what_to_install() -> None:
    blocked = {"onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "tensorrt"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    for line, (engine, (_, package, extra)) in zip(lines, ENGINES.items(), strict=True):
        assert line.startswith(f"engine {engine!r} needs {package}, which cannot be imported here: ")
        assert line.endswith(f"| pip install 'batch-edge-kit[{extra}]'")


VALUE = TensorSpec("value", "float32", (-1,))
INDEX = Signature("regression", (TensorSpec("index", "int64", (-1,), columns=("index",)),), (VALUE,))


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that looks ten values up, and fails where an index is not one of them."""
    return _one_node(tmp_path_factory, "Gather", ["values", "index"])


@pytest.fixture(scope="module")
def expand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answer is as long as its input says."""
    return _one_node(tmp_path_factory, "Expand", ["one", "index"])


def _one_node(folders: pytest.TempPathFactory, name: str, inputs: list[str]) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(name, inputs, ["value"])],
        name,
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.arange(10, dtype=np.float32), "values"),
            numpy_helper.from_array(np.ones(1, dtype=np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folders.mktemp(name) / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_rows_a_runtime_fails_on_are_an_input_error_in_one_sentence(gather: Path) -> None:
    engine = open_engine(gather, engine="onnxruntime", threads=1, signature=INDEX)
    with pytest.raises(InputError, match="onnxruntime fails on these rows: ") as caught:
        engine.run({"index": np.array([1, 99], dtype=np.int64)})
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert engine.run({"index": np.array([1, 9], dtype=np.int64)})["value"].tolist() == [1, 9], "it goes on"


def test_rows_there_is_no_memory_for_are_a_memory_error(expand: Path) -> None:
    engine = open_engine(expand, engine="onnxruntime", threads=1, signature=INDEX)
    with pytest.raises(MemoryError, match=r"alloc"):
        engine.run({"index": np.array([2**26, 2**20], dtype=np.int64)})
    assert engine.run({"index": np.array([3], dtype=np.int64)})["value"].tolist() == [1, 1, 1], "it goes on"


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize("name", BOTH)
def test_an_engine_says_where_it_computes(
    model: Path, tiny_signature: Signature, name: str, device: str
) -> None:
    engine = open_engine(model, engine=name, threads=1, signature=tiny_signature, device=device)
    assert engine.device in (
        ("cpu",) if device == "cpu" or name != "onnxruntime" else ("cpu", "cuda", "tensorrt")
    )


def test_a_device_an_engine_does_not_know_is_refused(model: Path, tiny_signature: Signature) -> None:
    with pytest.raises(InputError, match="engine 'openvino' has no device 'cuda'"):
        open_engine(model, engine="openvino", threads=1, signature=tiny_signature, device="cuda")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_says_what_to_install(
    model: Path, tiny_signature: Signature, device: str
) -> None:
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this onnxruntime may compute there")
    with pytest.raises(MissingDependencyError, match=f"cannot compute on {device} here; it has ") as caught:
        open_engine(model, engine="onnxruntime", threads=1, signature=tiny_signature, device=device)
    assert "onnxruntime-gpu" in str(caught.value.hint)
