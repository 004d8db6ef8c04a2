"""Fixtures shared by the three test folders: small real bundles and the devices they go to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit import archive, files, golden, seal, signing
from kit.runner import softmax

WEIGHTS = np.array([[2.0, -1.0], [-1.0, 2.0]], dtype=np.float32)
GOLDEN_ROWS = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25], [-1.0, 1.0]], dtype=np.float32)


@dataclass(frozen=True)
class Bundle:
    """A bundle file, its digest, and the sealed folder it was packed from."""

    path: Path
    digest: str
    folder: Path


@dataclass
class BundleMaker:
    """Makes real signed bundles around an ONNX network of one matrix product."""

    folder: Path
    key: Path
    made: list[Bundle] = field(default_factory=list)

    def make(
        self,
        *,
        release: int = 1,
        network: str = "right",
        golden_shift: float = 0.0,
        manifest: Mapping[str, Any] | None = None,
        key: Path | None = None,
    ) -> Bundle:
        """Make a bundle.

        Args:
            release: Its release counter.
            network: ``right``; ``nan`` answers NaN; ``hang`` never answers.
            golden_shift: Added to the golden answers' logits of class 1, so that they are wrong.
            manifest: Entries that replace the manifest's.
            key: The private key that signs, where it shall not be the project's.
        """
        folder = self.folder / f"sealed-{len(self.made)}"
        (folder / "golden").mkdir(parents=True)
        (folder / "model.bin").write_bytes(_onnx(network))
        features = {"name": "features", "dtype": "float32", "shape": [-1, 2], "columns": ["width", "height"]}
        logits = {"name": "logits", "dtype": "float32", "shape": [-1, 2]}
        label = {"name": "label", "dtype": "int64", "shape": [-1], "classes": ["low", "high"]}
        probabilities = {"name": "probabilities", "dtype": "float32", "shape": [-1, 2]}
        written = {
            "signature.json": {
                "task": "classification",
                "inputs": [features],
                "outputs": [label, probabilities, logits],
            },
            "manifest.json": {
                "format": 1,
                "name": "shapes",
                "model_digest": "0" * 64,
                "release": release,
                "target": "onnx-test",
                "engine": "onnxruntime",
                "model": "model.bin",
                "core": {
                    "inputs": [{"name": "features", "dtype": "float32", "shape": [-1, 2]}],
                    "outputs": [logits],
                },
                "postprocessing": "classification",
                "golden": {"min_agreement": 1.0, "max_output_error": 0.05, "output_scale": 1.0},
                "budgets": {"max_latency_ms": 1000.0},
                **(manifest or {}),
            },
        }
        for name, value in written.items():
            files.write_atomic(folder / name, files.canonical_json(value))
        raw = GOLDEN_ROWS @ WEIGHTS + np.array([0.0, golden_shift], dtype=np.float32)
        golden.write_tensors(folder / "golden" / "inputs.npz", {"features": GOLDEN_ROWS})
        answers = {"label": raw.argmax(axis=1), "logits": raw, "probabilities": softmax(raw)}
        golden.write_tensors(folder / "golden" / "outputs.npz", answers)
        return self.pack(folder, key=key)

    def pack(self, folder: Path, *, key: Path | None = None) -> Bundle:
        """Seal a folder and pack it."""
        digest = seal.seal(folder, name="shapes", key=key or self.key)
        path = self.folder / f"{folder.name}.bundle"
        archive.pack(folder, path)
        self.made.append(Bundle(path, digest, folder))
        return self.made[-1]

    def deliver(self, bundle: Bundle, device: Path) -> Path:
        """Put a bundle into a device's ``incoming/`` as an agent expects it."""
        work = device / "incoming" / f".{bundle.path.name}"
        shutil.copyfile(bundle.path, work)
        return work.rename(device / "incoming" / bundle.path.name)


def _onnx(network: str) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rows = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])
    weights = [numpy_helper.from_array(WEIGHTS, "weights")]
    nodes = [helper.make_node("MatMul", ["features", "weights"], ["raw"])]
    if network == "nan":
        nodes += [
            helper.make_node("Abs", ["raw"], ["positive"]),
            helper.make_node("Neg", ["positive"], ["least"]),
        ]
        nodes += [helper.make_node("Log", ["least"], ["logits"])]
    elif network == "hang":
        weights.append(numpy_helper.from_array(np.array(2**62, dtype=np.int64), "times"))
        weights.append(numpy_helper.from_array(np.array(True), "on"))
        value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n", 2])
        after = helper.make_tensor_value_info("after", TensorProto.FLOAT, ["n", 2])
        step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
        again = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
        going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["again"], ["going"]),
                helper.make_node("Neg", ["value"], ["after"]),
            ],
            "body",
            [step, again, value],
            [going, after],
        )
        nodes.append(helper.make_node("Loop", ["times", "on", "raw"], ["logits"], body=body))
    else:
        nodes.append(helper.make_node("Identity", ["raw"], ["logits"]))
    graph = helper.make_graph(nodes, "shapes", [rows], [logits], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.fixture
def signing_key(tmp_path: Path) -> Path:
    """A private key; its public half lies beside it."""
    key = tmp_path / "signing" / "signing.pem"
    signing.generate_key(key)
    return key


@pytest.fixture
def bundles(tmp_path: Path, signing_key: Path) -> BundleMaker:
    """Makes bundles signed with ``signing_key``."""
    return BundleMaker(tmp_path / "bundles", signing_key)


@pytest.fixture
def device_folder(tmp_path: Path, signing_key: Path) -> Path:
    """A device folder that pins ``signing_key`` and has run nothing yet."""
    folder = tmp_path / "device"
    (folder / "keys").mkdir(parents=True)
    (folder / "incoming").mkdir()
    shutil.copyfile(signing_key.with_suffix(".pub"), folder / "keys" / "signing.pub")
    return folder
