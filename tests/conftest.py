"""Fixtures shared by the three test folders: small real versions, projects, bundles and devices."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from kit import archive, bundle, files, golden, keypair, seal
from kit.init import init
from kit.model_version import ModelVersion, Parts, write_model_version
from kit.project import Project
from kit.runner import softmax
from kit.settings import InitSettings
from kit.signature import Signature
from kit.steps import Block, Steps
from kit.tensors import TensorSpec

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("kit", deadline=None)
hypothesis.settings.load_profile("kit")


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Take back what a command run in this process does to the logger: it writes to that test's stderr."""
    logger = logging.getLogger("kit")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:] = handlers
    logger.propagate = propagate
    logger.setLevel(level)


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
        network: str | bytes = "right",
        golden_shift: float = 0.0,
        manifest: Mapping[str, Any] | None = None,
        key: Path | None = None,
    ) -> Bundle:
        """Make a bundle.

        Args:
            release: Its release counter.
            network: ``right``; ``nan`` answers NaN; ``hang`` never answers; or an ONNX file.
            golden_shift: Added to the golden answers' logits of class 1, so that they are wrong.
            manifest: Entries that replace the manifest's.
            key: The private key that signs, where it shall not be the project's.
        """
        folder = self.folder / f"sealed-{len(self.made)}"
        (folder / "golden").mkdir(parents=True)
        model = network if isinstance(network, bytes) else _onnx(network)
        (folder / "model.bin").write_bytes(model)
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
        manifest = files.read_json(folder / "manifest.json")
        name = bundle.bundle_name(manifest["name"], manifest["target"])
        digest = seal.seal(folder, name=name, key=key or self.key)
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
    keypair.generate_key(key)
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


TINY = Signature(
    "classification",
    (TensorSpec("x", "float32", (-1, 2), columns=("width", "height"), minimum=-10, maximum=10),),
    (
        TensorSpec("label", "int64", (-1,), classes=("low", "high")),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
    ),
)


def _tiny_onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    shapes = {"label": (TensorProto.INT64, ["n"]), "probabilities": (TensorProto.FLOAT, ["n", 2])}
    outputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [*outputs, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _tiny_parts(onnx: bytes) -> Parts:
    raw = GOLDEN_ROWS @ WEIGHTS
    return Parts(
        name="tiny",
        onnx=onnx,
        program=b"program",
        signature=TINY,
        golden_inputs={"x": GOLDEN_ROWS},
        golden_outputs={"label": raw.argmax(axis=1), "logits": raw, "probabilities": softmax(raw)},
        profile={"n_rows": 4, "columns": {}},
        steps=Steps((Block("number", (("x", 0), ("x", 1)), ()),), 2),
        manifest={"metrics": {"accuracy": 1.0}, "graph": {"features": None}},
    )


@pytest.fixture(scope="session")
def tiny_signature() -> Signature:
    """The signature of ``tiny_onnx``: float32 ``x`` (n, 2) from -10 to 10, two classes."""
    return TINY


@pytest.fixture(scope="session")
def tiny_onnx() -> bytes:
    """An ONNX graph of one matrix product with label, probabilities and logits."""
    return _tiny_onnx()


@pytest.fixture(scope="session")
def tiny_parts(tiny_onnx: bytes) -> Parts:
    """Everything a version of ``tiny_onnx`` is made of; ``dataclasses.replace`` changes a part."""
    return _tiny_parts(tiny_onnx)


@pytest.fixture
def tiny_version(tmp_path: Path, tiny_parts: Parts, signing_key: Path) -> ModelVersion:
    """A signed model version around ``tiny_onnx``, opened; every file a version may hold is in it."""
    folder = tmp_path / "version"
    write_model_version(tiny_parts, folder=folder, key=signing_key)
    return ModelVersion.open(folder, trusted=keypair.load_trusted(signing_key.parent))


@pytest.fixture(scope="session")
def project_templates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One freshly written project per template, not to be changed; copy one to change it."""
    home = tmp_path_factory.mktemp("projects")
    for template in ("digits", "tabular"):
        init(InitSettings.model_validate({"name": str(home / template), "template": template}))
    return {template: home / template for template in ("digits", "tabular")}


@pytest.fixture
def digits_project(tmp_path: Path, project_templates: Mapping[str, Path]) -> Path:
    """The folder of a digits project of one's own, with a signing key."""
    return _own_project(project_templates["digits"], tmp_path / "digits")


@pytest.fixture
def tabular_project(tmp_path: Path, project_templates: Mapping[str, Path]) -> Path:
    """The folder of a tabular project of one's own, with a signing key."""
    return _own_project(project_templates["tabular"], tmp_path / "tabular")


def _own_project(template: Path, folder: Path) -> Path:
    shutil.copytree(template, folder)
    keypair.generate_key(Project.open(folder).signing_key_path())
    return folder


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts disks that hold no more than a size such as 256k."""
    made: list[Path] = []

    def mount(size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("only root may mount a small tmpfs; tests/system/test_full_disk.py becomes it")
        disk = tmp_path / f"disk-{len(made)}"
        disk.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small tmpfs is not permitted here")
        made.append(disk)
        return disk

    yield mount
    for disk in made:  # lazily, because what was written to may still be open
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def small_disk(disk_of: Callable[[str], Path]) -> Path:
    """A disk of 256 kB."""
    return disk_of("256k")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment with S3 credentials of its own, and no endpoint yet."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-secret")
    return monkeypatch
