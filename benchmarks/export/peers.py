"""What the others make of a network by their defaults, and what the engines are given in float32.

    python benchmarks/export/peers.py NAME FOLDER OUTPUT

Run as a script, it makes one file and answers the held-out rows from it, so that whoever crashes does so
alone. FOLDER holds what ``Subject.hand_out`` writes. It knows nothing of bundles.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.converters.openvino import import_nncf
from kit.engines import Engine, open_engine
from kit.signature import Signature

_TIMEOUT_S = 1200
_LITERT_INPUT = "args_0"  # litert_torch's name for the first positional argument


@dataclass(frozen=True)
class Peer:
    """Somebody who makes a file.

    Attributes:
        title: What the tables call it.
        engine: What runs the file.
        make: Writes the file into a folder, from what an exporter is given.
    """

    title: str
    engine: str
    make: Callable[[Path, Path], None]


MODEL = {"litert": "model.tflite", "openvino": "model.xml", "onnxruntime": "model.onnx"}
"""Engine to the file it opens."""


def _rows(given: Path) -> np.ndarray:
    return np.asarray(np.load(given / "calibration.npy"))


def _litert_float(given: Path, output: Path) -> None:
    import litert_torch
    import torch

    sample = torch.from_numpy(_rows(given)[:1])
    module = torch.export.load(given / "model.pt2").module()
    litert_torch.convert(module, (sample,)).export(str(output / MODEL["litert"]))


def _aiedge(given: Path, output: Path, *, recipe: Any) -> None:
    from ai_edge_quantizer import quantizer

    path = output.parent / "litert-float32" / MODEL["litert"]
    if not path.is_file():
        raise SystemExit("there is no float32 file to quantise")
    made = quantizer.Quantizer(str(path), recipe)
    ranges = None
    if made.need_calibration:
        rows = _rows(given)
        rows = rows.astype(np.int32) if rows.dtype == np.int64 else rows  # what LiteRT makes of such inputs
        (signature,) = _signatures(path)
        ranges = made.calibrate({signature: [{_LITERT_INPUT: row[np.newaxis]} for row in rows]})
    (output / MODEL["litert"]).write_bytes(bytes(made.quantize(ranges).quantized_model))


def _signatures(path: Path) -> list[str]:
    from ai_edge_litert.interpreter import Interpreter

    return list(Interpreter(model_path=str(path)).get_signature_list())


def _aiedge_static(given: Path, output: Path) -> None:
    from ai_edge_quantizer import recipe

    _aiedge(given, output, recipe=recipe.static_wi8_ai8())


def _aiedge_dynamic(given: Path, output: Path) -> None:
    from ai_edge_quantizer import recipe

    _aiedge(given, output, recipe=recipe.dynamic_wi8_afp32())


def _openvino_float(given: Path, output: Path) -> None:
    import openvino

    model = openvino.Core().read_model(given / "core.onnx")
    openvino.save_model(model, output / MODEL["openvino"], compress_to_fp16=False)


def _nncf_default(given: Path, output: Path) -> None:
    import openvino

    nncf = import_nncf()
    dataset = nncf.Dataset([row[np.newaxis] for row in _rows(given)])
    model = nncf.quantize(openvino.Core().read_model(given / "core.onnx"), dataset)
    openvino.save_model(model, output / MODEL["openvino"])


def _onnx_float(given: Path, output: Path) -> None:
    (output / MODEL["onnxruntime"]).write_bytes((given / "core.onnx").read_bytes())


def _onnx_static(given: Path, output: Path) -> None:
    """Follow onnxruntime's documentation: prepare the graph, then quantise it by the defaults."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = iter(_rows(given))
    name = json.loads((given / "signature.json").read_bytes())["inputs"][0]["name"]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(rows, None)
            return None if row is None else {name: row[np.newaxis]}

    prepared = output / "prepared.onnx"
    quant_pre_process(str(given / "core.onnx"), str(prepared))
    quantization.quantize_static(str(prepared), str(output / MODEL["onnxruntime"]), Reader())
    prepared.unlink()


PEERS = {
    "litert-float32": Peer("float32", "litert", _litert_float),
    "aiedge-static": Peer("ai-edge-quantizer static_wi8_ai8", "litert", _aiedge_static),
    "aiedge-dynamic": Peer("ai-edge-quantizer dynamic_wi8_afp32", "litert", _aiedge_dynamic),
    "openvino-float32": Peer("float32", "openvino", _openvino_float),
    "nncf": Peer("nncf.quantize", "openvino", _nncf_default),
    "onnx-float32": Peer("float32", "onnxruntime", _onnx_float),
    "onnx-static": Peer("onnxruntime quantize_static", "onnxruntime", _onnx_static),
}


def make_file(name: str, *, given: Path, output: Path) -> str:
    """Make a peer's file in a process of its own, and answer the held-out rows there: ``answers.npy``.

    Args:
        name: A key of ``PEERS``.
        given: What ``Subject.hand_out`` has written.
        output: Folder of the file; made.

    Returns:
        Why there is none; empty when there is.
    """
    output.mkdir(parents=True)
    words = [sys.executable, __file__, name, str(given), str(output)]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {_TIMEOUT_S} s"
    if ran.returncode < 0:
        return f"crashed: {signal.Signals(-ran.returncode).name}"
    if ran.returncode:
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
        return f"failed: {lines[-1][:200] if lines else ran.returncode}"
    return ""


def open_file(name: str, *, given: Path, output: Path) -> Engine:
    """Open what ``make_file`` has made, on one thread."""
    signature = Signature.from_json(json.loads((given / "signature.json").read_bytes()))
    engine = PEERS[name].engine
    return open_engine(output / MODEL[engine], engine=engine, threads=1, signature=signature)


def _main() -> None:
    name, given, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    PEERS[name].make(given, output)
    engine = open_file(name, given=given, output=output)
    rows = np.load(given / "held_out.npy")
    (read,) = engine.signature.inputs
    (answer,) = engine.run_validated({read.name: rows}).values()
    np.save(output / "answers.npy", answer)


if __name__ == "__main__":
    _main()
