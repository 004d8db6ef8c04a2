from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.bundling.parts import (
    pack_bundle,
    rounded,
    unpack_bundle,
    write_manifest,
    write_papers,
    write_parts,
)
from edge.core import core_of
from edge.targets import TARGETS, find_target
from kit.bundle import open_bundle
from kit.errors import ConflictError, InputError, NotFoundError, VerificationError
from kit.files import canonical_json, read_json, sha256_file
from kit.keypair import generate_key, load_trusted
from kit.model_version import ModelVersion, Parts, write_model_version
from kit.seal import seal
from kit.signature import Signature
from kit.steps import Block, Steps
from kit.tensors import TensorSpec

SIGNATURE = Signature(
    "classification",
    (TensorSpec("x", "float32", (-1, 2), columns=("a", "b")),),
    (
        TensorSpec("label", "int64", (-1,), classes=("no", "yes")),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
    ),
)
STEPS = Steps((Block("number", (("x", 0), ("x", 1)), ()),), 2)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "keys" / "signing.pem")
    return tmp_path / "keys" / "signing.pem"


@pytest.fixture
def trusted(key: Path) -> tuple[bytes, ...]:
    return load_trusted(key.parent)


def _version(
    folder: Path,
    key: Path,
    *,
    signature: Signature = SIGNATURE,
    features: str | None = None,
    steps: Steps | None = None,
) -> ModelVersion:
    parts = Parts(
        name="toy",
        onnx=b"onnx",
        program=None,
        signature=signature,
        golden_inputs={"x": np.zeros((2, 2), np.float32)},
        golden_outputs={"label": np.zeros(2, np.int64), "logits": np.zeros((2, 2), np.float32)},
        profile={},
        steps=steps,
        manifest={"graph": {"features": features}, "lineage": {"data": {"fingerprint": "f" * 64}}},
    )
    write_model_version(parts, folder=folder, key=key)
    return ModelVersion.open(folder, trusted=load_trusted(key.parent))


def _bundle_folder(folder: Path, version: ModelVersion, *, release: int = 1) -> Path:
    folder.mkdir()
    core = core_of(version)
    write_parts(folder, core=core)
    (folder / "model.tflite").write_bytes(b"a network")
    golden = {"min_agreement": 1.0, "max_output_error": 0.1, "output_scale": 1.0}
    target = find_target("litert-int8")
    write_manifest(
        folder,
        core=core,
        target=target,
        recipe=target.ladder[0],
        release=release,
        facts={
            "golden": golden,
            "batch_sizes": [1],
            "calibration": None,
            "budgets": {"max_output_error": 0.1},
            "metrics": {},
            "requirements": {"engine": "litert", "packages": {"ai-edge-litert": ">=2.1,<3"}},
            "tensors": {"inputs": [], "outputs": []},
        },
    )
    write_papers(folder, parameters={"release": release}, licence="MIT")
    return folder


@pytest.fixture
def packed(tmp_path: Path, key: Path) -> Path:
    folder = _bundle_folder(tmp_path / "parts", _version(tmp_path / "version", key))
    pack_bundle(folder, tmp_path / "toy.bundle", key=key)
    return tmp_path / "toy.bundle"


def test_a_bundle_opens_with_what_was_put_in(
    packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]
) -> None:
    bundle = unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted)
    assert bundle.signature == SIGNATURE
    assert bundle.manifest["engine"] == "litert"
    assert bundle.manifest["release"] == 1
    assert bundle.manifest["core"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 2]}]
    assert open_bundle(bundle.folder, trusted=trusted).digest == bundle.digest


def test_papers_say_what_is_in_the_bundle_and_where_it_comes_from(
    packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]
) -> None:
    folder = unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted).folder
    digest = sha256_file(folder / "model.tflite")
    assert digest in (folder / "bom.cdx.json").read_text()
    subjects = read_json(folder / "provenance.json")["subject"]
    assert subjects == [{"name": "model.tflite", "digest": {"sha256": digest}}]
    assert "MIT" in (folder / "licenses.txt").read_text()


def test_the_same_parts_give_the_same_bytes(tmp_path: Path, key: Path) -> None:
    version = _version(tmp_path / "version", key)
    for name in ("one", "two"):
        pack_bundle(_bundle_folder(tmp_path / name, version), tmp_path / f"{name}.bundle", key=key)
    assert (tmp_path / "one.bundle").read_bytes() == (tmp_path / "two.bundle").read_bytes()


def test_a_flipped_byte_names_the_file_and_leaves_nothing(
    packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]
) -> None:
    packed.write_bytes(packed.read_bytes().replace(b"a network", b"a netwerk"))
    with pytest.raises(VerificationError, match=r"'model\.tflite' .* is not the file that was signed"):
        unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted)
    assert not (tmp_path / "b").exists()


def test_an_unknown_key_is_refused(packed: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "other" / "signing.pem")
    with pytest.raises(VerificationError):
        unpack_bundle(packed, folder=tmp_path / "b", trusted=load_trusted(tmp_path / "other"))


def test_a_removed_or_added_file_is_named(packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]) -> None:
    bundle = unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted)
    (bundle.folder / "model.bin").write_bytes(b"")
    with pytest.raises(VerificationError, match=r"'model\.bin' .* is not in its signature"):
        open_bundle(bundle.folder, trusted=trusted)
    (bundle.folder / "model.bin").unlink()
    (bundle.folder / "model.tflite").unlink()
    with pytest.raises(VerificationError, match=r"'model\.tflite' is signed but missing"):
        open_bundle(bundle.folder, trusted=trusted)


def test_a_file_python_could_run_is_refused(packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]) -> None:
    bundle = unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted)
    (bundle.folder / "preprocessing.py").write_text("x")
    with pytest.raises(VerificationError, match=r"'preprocessing\.py'"):
        open_bundle(bundle.folder, trusted=trusted)


def test_a_bundle_without_a_signature_is_refused(
    packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]
) -> None:
    bundle = unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted)
    (bundle.folder / "model.sig").unlink()
    with pytest.raises(VerificationError, match="nobody signed it"):
        open_bundle(bundle.folder, trusted=trusted)


def test_a_model_version_is_not_a_bundle(tmp_path: Path, key: Path, trusted: tuple[bytes, ...]) -> None:
    version = _version(tmp_path / "version", key)
    with pytest.raises(VerificationError, match="names None as its model file"):
        open_bundle(version.folder, trusted=trusted)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"target": "openvino-int8"}, "is signed as 'toy-litert-int8'"),
        ({"format": 2}, "has format 2"),
        ({"model": "../model.tflite"}, "'../model.tflite' as its model file"),
        ({"model": "model.xml"}, "has no model.xml"),
        ({"release": 0}, "release is 0, not a whole number from 1"),
        ({"release": True}, "release is True, not a whole number from 1"),
    ],
)
def test_a_signed_manifest_that_contradicts_the_bundle_is_refused(
    tmp_path: Path, key: Path, trusted: tuple[bytes, ...], change: dict[str, object], words: str
) -> None:
    folder = _bundle_folder(tmp_path / "parts", _version(tmp_path / "version", key))
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").write_bytes(canonical_json({**manifest, **change}))
    seal(folder, name="toy-litert-int8", key=key)
    with pytest.raises(VerificationError) as caught:
        open_bundle(folder, trusted=trusted)
    assert words in caught.value.message


def test_an_existing_folder_is_not_overwritten(
    packed: Path, tmp_path: Path, trusted: tuple[bytes, ...]
) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(ConflictError):
        unpack_bundle(packed, folder=tmp_path / "b", trusted=trusted)
    assert (tmp_path / "b").is_dir()


def test_figures_keep_six_digits() -> None:
    assert rounded(0.1 + 0.2) == 0.3
    assert rounded(123456.789) == 123457.0


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="'litert-in8'") as caught:
        find_target("litert-in8")
    assert caught.value.hint is not None
    assert "'litert-int8'" in caught.value.hint


def test_a_target_lists_the_file_its_engine_opens() -> None:
    for name, target in TARGETS.items():
        assert name == target.name
        assert target.model in target.files


def test_the_core_of_a_preprocessed_model_reads_the_features(tmp_path: Path, key: Path) -> None:
    core = core_of(_version(tmp_path / "version", key, features="features", steps=STEPS))
    assert core.input == TensorSpec("features", "float32", (-1, 2))
    rows = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(core.tensors({"x": rows}), rows)


def test_preprocessing_that_is_not_data_is_refused(tmp_path: Path, key: Path) -> None:
    version = _version(tmp_path / "version", key, features="features")
    with pytest.raises(InputError, match="preprocessing that a device cannot run"):
        core_of(version)


def test_a_model_that_reads_two_tensors_without_preprocessing_is_refused(tmp_path: Path, key: Path) -> None:
    second = TensorSpec("y", "int64", (-1,), columns=("c",))
    signature = Signature("classification", (*SIGNATURE.inputs, second), SIGNATURE.outputs)
    version = _version(tmp_path / "version", key, signature=signature)
    with pytest.raises(InputError, match=r"reads x \(float32\), y \(int64\)"):
        core_of(version)
