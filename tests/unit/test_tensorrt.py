"""Rules of the TensorRT engine, over stand-ins for TensorRT and for the driver: no GPU has run it yet."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kit import files
from kit.engines import Engine, open_engine
from kit.errors import InputError, MissingDependencyError
from kit.signature import Signature
from kit.tensors import TensorSpec
from tests import tensorrt_twin as twin

ROWS = np.random.default_rng(0).uniform(-10, 10, (50, 2)).astype(np.float32)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine one with TensorRT, and with a driver unless None."""

    def become(driver: twin.Driver | None, *, version: str = "11.4.0.106") -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", twin.tensorrt(version=version))
        monkeypatch.delitem(sys.modules, "kit.engines.tensorrt", raising=False)
        if driver is not None:
            monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)

    yield become
    sys.modules.pop("kit.engines.tensorrt", None)


@pytest.fixture
def model(tmp_path: Path, tiny_onnx: bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_onnx)
    return path


def opened(path: Path, signature: Signature) -> Engine:
    return open_engine(path, engine="tensorrt", threads=1, signature=signature)


def test_it_answers_like_the_reference(machine, model: Path, tiny_signature: Signature) -> None:
    machine(twin.Driver())
    engine = opened(model, tiny_signature)
    assert (engine.name, engine.version, engine.device) == ("tensorrt", "11.4.0.106", "tensorrt")
    reference = open_engine(model, engine="onnxruntime", threads=1, signature=tiny_signature)
    for n_rows in (1, 7, 32, 50):  # fewer than a batch, one, and more
        found, expected = engine.run({"x": ROWS[:n_rows]}), reference.run({"x": ROWS[:n_rows]})
        for name, answer in expected.items():
            np.testing.assert_allclose(found[name], answer, rtol=1e-5, atol=1e-6)
            assert found[name].dtype == answer.dtype


def test_an_answer_stays_when_the_next_is_asked_for(machine, model: Path, tiny_signature: Signature) -> None:
    machine(twin.Driver())
    engine = opened(model, tiny_signature)
    first = engine.run({"x": ROWS[:5]})["logits"]
    kept = first.copy()
    engine.run({"x": ROWS[5:10]})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("sizes, profile", [(None, (1, 1, 32)), ([4], (1, 4, 4)), ([1, 8, 16], (1, 1, 16))])
def test_the_manifest_beside_the_file_says_for_how_many_rows_it_is_built(
    machine, model: Path, tiny_signature: Signature, sizes: list[int] | None, profile: tuple[int, ...]
) -> None:
    machine(twin.Driver())
    if sizes is not None:
        files.write_atomic(model.with_name("manifest.json"), files.canonical_json({"batch_sizes": sizes}))
    engine = opened(model, tiny_signature)
    built = engine._runtime._engine.shapes["x"]
    assert built == tuple((n_rows, 2) for n_rows in profile)
    assert len(engine.run({"x": ROWS})["label"]) == len(ROWS)


def test_memory_of_the_gpu_grows_with_the_batch_and_is_given_back(
    machine, model: Path, tiny_signature: Signature
) -> None:
    driver = twin.Driver()
    machine(driver)
    engine = opened(model, tiny_signature)
    for n_rows in (1, 20, 3):
        engine.run({"x": ROWS[:n_rows]})
    assert len(driver.held) == 4, "one input, three outputs"
    del engine
    assert driver.held == {}


def test_what_tensorrt_cannot_read_is_named(machine, model: Path, tiny_signature: Signature) -> None:
    machine(twin.Driver())
    with pytest.raises(InputError, match=r"tensorrt cannot load absent\.onnx: No such file"):
        opened(model.with_name("absent.onnx"), tiny_signature)
    model.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"cannot load model\.onnx: node 4 \(Det\): no importer"):
        opened(model, tiny_signature)


def test_a_file_without_a_tensor_of_the_signature_is_refused(
    machine, model: Path, tiny_signature: Signature
) -> None:
    machine(twin.Driver())
    absent = TensorSpec("features", "float32", (-1, 2))
    for signature in (
        Signature("", (absent,), tiny_signature.outputs),
        Signature("", tiny_signature.inputs, (absent,)),
    ):
        with pytest.raises(InputError, match=r"model\.onnx has no tensor 'features'; it has \["):
            opened(model, signature)


def test_an_engine_that_cannot_be_built_says_why(machine, model: Path, tiny_signature: Signature) -> None:
    machine(twin.Driver())
    with pytest.raises(
        InputError, match=r"cannot build an engine from model\.onnx: every input needs a profile"
    ):
        opened(model, Signature("", (), tiny_signature.outputs))


def test_rows_it_fails_on_are_an_input_error_in_one_sentence(machine, tmp_path: Path) -> None:
    machine(twin.Driver())
    index = TensorSpec("index", "int64", (-1,), columns=("index",))
    engine = opened(_gather(tmp_path), Signature("", (index,), (TensorSpec("value", "float32", (-1,)),)))
    with pytest.raises(InputError, match="tensorrt fails on these rows: ") as caught:
        engine.run({"index": np.array([1, 99])})
    assert "\n" not in caught.value.message
    assert engine.run({"index": np.array([1, 9])})["value"].tolist() == [1, 9], "it goes on"


def test_a_gpu_without_memory_is_a_memory_error(machine, model: Path, tiny_signature: Signature) -> None:
    driver = twin.Driver()
    machine(driver)
    engine = opened(model, tiny_signature)
    driver.code = 2
    with pytest.raises(MemoryError, match="no memory left"):
        engine.run({"x": ROWS})
    driver.code = 0
    assert len(engine.run({"x": ROWS})["label"]) == len(ROWS), "it goes on"


def test_a_gpu_that_cannot_be_used_is_said_to_be_missing(
    machine, model: Path, tiny_signature: Signature
) -> None:
    machine(twin.Driver(code=100))
    with pytest.raises(
        MissingDependencyError, match="CUDA error 100 in cuInit: no CUDA-capable device"
    ) as caught:
        opened(model, tiny_signature)
    assert "NVIDIA's driver" in str(caught.value.hint)


def test_a_machine_without_a_driver_is_told_to_install_it(
    machine, model: Path, tiny_signature: Signature
) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        machine(None)
        with pytest.raises(MissingDependencyError, match=r"needs an NVIDIA GPU.*libcuda\.so\.1") as caught:
            opened(model, tiny_signature)
        assert "NVIDIA's driver" in str(caught.value.hint)
    else:
        pytest.skip("this machine has a GPU's driver")


def test_an_old_tensorrt_is_refused(machine, model: Path, tiny_signature: Signature) -> None:
    machine(twin.Driver(), version="8.6.1")
    with pytest.raises(MissingDependencyError, match=r"tensorrt 8\.6\.1 is too old") as caught:
        opened(model, tiny_signature)
    assert "batch-edge-kit[tensorrt]" in str(caught.value.hint)


def test_a_package_without_its_libraries_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, tiny_signature: Signature
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensorrt", "kit.engines.tensorrt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingDependencyError, match=r"needs tensorrt.*libnvinfer\.so\.11") as caught:
        opened(model, tiny_signature)
    assert caught.value.hint == "pip install 'batch-edge-kit[tensorrt]'"


def _gather(folder: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gather", ["values", "index"], ["value"])],
        "gather",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.arange(10, dtype=np.float32), "values")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "gather.onnx"
    path.write_bytes(model.SerializeToString())
    return path
