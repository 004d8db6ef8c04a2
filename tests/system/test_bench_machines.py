"""Rules of the bench as programs: the command, the device's agent, and an old device's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.cli import main
from kit.errors import InputError
from kit.gauge import Gauge, gauge_in_child
from kit.project import Project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ours(bundles, digits_project: Path):
    """Makes bundles signed with the project's key."""
    bundles.key = Project.open(digits_project).signing_key()
    return bundles


@pytest.fixture(scope="session")
def old_python() -> Path:
    """The interpreter of an old device: tflite-runtime 2.14 and numpy 1."""
    python = Path(os.environ.get("KIT_TFLITE_PYTHON", ROOT / ".venv-tflite" / "bin" / "python"))
    if not python.exists():
        pytest.skip("make .venv-tflite/ready")
    return python


def litert(bundles) -> Any:
    """Make a bundle whose network is a TFLite file that every runtime loads."""
    import onnx

    made = bundles.make(manifest={"target": "litert-float32", "engine": "litert", "model": "model.tflite"})
    same = onnx.load(made.folder / "model.bin").graph.initializer[0]
    (made.folder / "model.bin").unlink()
    (made.folder / "model.tflite").write_bytes(_product(onnx.numpy_helper.to_array(same)))
    return bundles.pack(made.folder)


def _product(weights: np.ndarray) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    buffers = [schema.BufferT(), schema.BufferT()]
    buffers[1].data = np.frombuffer(np.ascontiguousarray(weights.T).tobytes(), dtype=np.uint8)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("features", [1, 2], 0),
        tensor("weights", [2, 2], 1),
        tensor("logits", [1, 2], 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_bundle_is_measured_and_compared_with_a_device(
    ours, digits_project: Path, device_folder: Path, tmp_path: Path, capsys
) -> None:
    made = ours.make(manifest={"batch_sizes": [1, 4]})
    (device_folder / "keys" / "project.pub").write_bytes(ours.key.with_suffix(".pub").read_bytes())
    ours.deliver(made, device_folder)
    board = tmp_path / "board.json"
    for words in (("run", device_folder, "--once"), ("bench", device_folder, "--json-file", board)):
        ended = subprocess.run(
            [sys.executable, "-m", "edge.agent", *map(str, words)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == json.loads(board.read_text())
    there = Gauge.from_json(json.loads(board.read_text()))
    assert (there.digest, there.batch_rows, there.golden_passed) == (made.digest, 4, True)

    words = ["bench", str(made.path), "--project", str(digits_project), "--calls", "20"]
    output = tmp_path / "here.json"
    assert main([*words, "--compare", str(board), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "here / there" in said
    assert made.digest[:12] in said
    here = Gauge.from_json(json.loads(output.read_text()))
    assert (here.digest, here.n_calls, here.machine) == (made.digest, 20, there.machine)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gauge"]["digest"] == made.digest


def test_a_bundle_that_answers_wrongly_is_shown_and_ends_with_4(
    ours, digits_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ours.make(golden_shift=0.5)
    assert main(["bench", str(made.path), "--project", str(digits_project), "--calls", "10"]) == 4
    said = capsys.readouterr()
    assert "golden rows: NOT PASSED" in said.out
    assert "answers its golden rows wrongly on this machine" in said.err


def test_a_missing_runtime_ends_with_8_and_the_line_that_installs_it(
    ours, digits_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ours.make(manifest={"target": "tensorrt-int8", "engine": "tensorrt"})
    assert main(["bench", str(made.path), "--project", str(digits_project)]) == 8
    assert "pip install 'batch-edge-kit[tensorrt]'" in capsys.readouterr().err


def test_a_device_that_runs_nothing_has_nothing_to_measure(device_folder: Path) -> None:
    command = [sys.executable, "-m", "edge.agent", "bench", str(device_folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (5, "")
    assert "no agent has run" in ended.stderr


def test_the_same_file_is_measured_in_todays_runtime_and_in_an_old_one(bundles, old_python: Path) -> None:
    made = litert(bundles)
    new = gauge_in_child(made.folder, threads=1, n_calls=20)
    old = gauge_in_child(made.folder, threads=1, n_calls=20, python=old_python)
    assert (new.runtime, old.runtime) == ("ai-edge-litert", "tflite-runtime")
    assert old.runtime_version == "2.14.0"
    for found in (new, old):
        assert (found.digest, found.golden_passed, found.agreement) == (made.digest, True, 1.0)
        assert 0 < found.load_s < found.first_answer_s
        assert found.memory_peak_mb < 200


def test_what_an_old_runtime_refuses_is_said_in_its_words(bundles, old_python: Path) -> None:
    made = litert(bundles)
    (made.folder / "model.tflite").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"litert cannot load model\.tflite"):
        gauge_in_child(made.folder, threads=1, python=old_python)
