from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kit import keypair, seal
from kit.engines import open_engine
from kit.errors import ConflictError, VerificationError
from kit.files import canonical_json
from kit.model_version import ALLOWED, ModelVersion, Parts, write_model_version

UNSIGNED = tuple(name for name in ALLOWED if name != "model.sig")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def trusted(key: Path) -> tuple[bytes, ...]:
    return keypair.load_trusted(key.parent)


def refusal(version: ModelVersion, key: Path, *, digest: str | None = None) -> str:
    with pytest.raises(VerificationError) as caught:
        ModelVersion.open(version.folder, trusted=trusted(key), digest=digest)
    return caught.value.message


def test_a_version_may_hold_every_allowed_file(tiny_version: ModelVersion) -> None:
    assert sorted(contents(tiny_version.folder)) == sorted(ALLOWED)


def test_an_opened_version_is_what_was_written(tiny_version: ModelVersion, tiny_parts: Parts) -> None:
    assert tiny_version.name == "tiny"
    assert tiny_version.signature == tiny_parts.signature
    assert tiny_version.manifest == {"format": 1, "name": "tiny", **tiny_parts.manifest}
    assert tiny_version.preprocessing() == tiny_parts.steps
    inputs, outputs = tiny_version.golden()
    np.testing.assert_array_equal(inputs["x"], tiny_parts.golden_inputs["x"])
    assert set(outputs) == {"label", "logits", "probabilities"}


def test_its_golden_answers_are_what_the_reference_says(tiny_version: ModelVersion) -> None:
    signature = tiny_version.signature
    engine = open_engine(tiny_version.model_path, engine="onnxruntime", threads=1, signature=signature)
    inputs, outputs = tiny_version.golden()
    for name, answer in engine.run(inputs).items():
        np.testing.assert_allclose(answer, outputs[name], rtol=1e-6)


def test_the_same_parts_give_the_same_bytes(tmp_path: Path, tiny_parts: Parts, signing_key: Path) -> None:
    digests = [
        write_model_version(tiny_parts, folder=tmp_path / name, key=signing_key) for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_version_without_optional_files_opens(tmp_path: Path, tiny_parts: Parts, signing_key: Path) -> None:
    folder = tmp_path / "small"
    write_model_version(replace(tiny_parts, program=None, steps=None), folder=folder, key=signing_key)
    version = ModelVersion.open(folder, trusted=trusted(signing_key))
    assert version.preprocessing() is None
    assert not {"model.pt2", "preprocessing.json"} & set(contents(folder))


def test_an_existing_folder_is_left_alone(
    tiny_version: ModelVersion, tiny_parts: Parts, signing_key: Path
) -> None:
    before = contents(tiny_version.folder)
    with pytest.raises(ConflictError, match="version exists"):
        write_model_version(tiny_parts, folder=tiny_version.folder, key=signing_key)
    assert contents(tiny_version.folder) == before


@pytest.mark.parametrize("name", UNSIGNED)
def test_a_flipped_byte_names_the_file(tiny_version: ModelVersion, signing_key: Path, name: str) -> None:
    path = tiny_version.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"{name!r} in {tiny_version.folder} is not the file that was signed" == refusal(
        tiny_version, signing_key
    )


def test_a_flipped_byte_in_the_signature_names_it(tiny_version: ModelVersion, signing_key: Path) -> None:
    path = tiny_version.folder / "model.sig"
    healthy = path.read_bytes()
    for offset in range(0, len(healthy), 101):
        path.write_bytes(healthy[:offset] + bytes([healthy[offset] ^ 1]) + healthy[offset + 1 :])
        assert "model.sig" in refusal(tiny_version, signing_key)


@pytest.mark.parametrize("name", UNSIGNED)
def test_a_removed_file_is_named(tiny_version: ModelVersion, signing_key: Path, name: str) -> None:
    (tiny_version.folder / name).unlink()
    assert f"{name!r} is signed but missing" in refusal(tiny_version, signing_key)


@pytest.mark.parametrize(
    "name", ["model.pkl", "weights.pt", ".hidden.json", "golden/extra.npz", "model.onnx.data"]
)
def test_an_extra_file_is_named(tiny_version: ModelVersion, signing_key: Path, name: str) -> None:
    (tiny_version.folder / name).write_bytes(b"x")
    assert f"{name!r} in {tiny_version.folder} is not of a kind allowed there" in refusal(
        tiny_version, signing_key
    )


def test_an_extra_file_is_refused_even_when_signed(tiny_version: ModelVersion, signing_key: Path) -> None:
    (tiny_version.folder / "model.pkl").write_bytes(b"x")
    seal.seal(tiny_version.folder, name="tiny", key=signing_key)
    assert "'model.pkl'" in refusal(tiny_version, signing_key)


def test_a_link_is_named(tiny_version: ModelVersion, signing_key: Path) -> None:
    path = tiny_version.folder / "model.onnx"
    target = path.rename(tiny_version.folder.parent / "model.onnx")
    path.symlink_to(target)
    assert "'model.onnx'" in refusal(tiny_version, signing_key)
    assert "link" in refusal(tiny_version, signing_key)


def test_an_unsigned_version_and_a_wrong_key_are_refused(
    tiny_version: ModelVersion, tmp_path: Path, signing_key: Path
) -> None:
    keypair.generate_key(tmp_path / "other" / "other.pem")
    assert "not trusted" in refusal(tiny_version, tmp_path / "other" / "other.pem")
    (tiny_version.folder / "model.sig").unlink()
    assert "holds no model.sig: nobody signed it" in refusal(tiny_version, signing_key)


def test_another_version_than_the_one_asked_for_is_refused(
    tiny_version: ModelVersion, signing_key: Path
) -> None:
    message = refusal(tiny_version, signing_key, digest="ab" * 32)
    assert f"holds version {tiny_version.digest[:12]}, but abababababab was asked for" in message


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "change,message",
    [
        (_write("manifest.json", canonical_json({"format": 2})), "has format 2; this kit reads format 1"),
        (_write("manifest.json", b"[]"), "manifest.json is not a JSON object"),
        (_write("manifest.json", b"\xff"), "manifest.json is not valid JSON"),
        (_write("signature.json", b"{"), "signature.json is not valid JSON"),
        (_write("signature.json", b"{}"), "the signature has the keys"),
        (lambda folder: (folder / "profile.json").unlink(), "has no profile.json; it is not a model version"),
    ],
)
def test_content_that_makes_no_sense_is_refused_though_signed(
    tiny_version: ModelVersion, signing_key: Path, change: Callable[[Path], object], message: str
) -> None:
    change(tiny_version.folder)
    seal.seal(tiny_version.folder, name="tiny", key=signing_key)
    assert message in refusal(tiny_version, signing_key)
