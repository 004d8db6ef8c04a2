from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import BundleResult, Difference, bundle
from edge.bundling.parts import write_papers
from kit import archive
from kit.cli import main
from kit.errors import GateError, InputError, SettingsError, VerificationError
from kit.files import canonical_json, read_json
from kit.keypair import generate_key
from kit.project import Project
from kit.project_file import build
from kit.settings import BundleSettings
from tests.manifests import DATA, VERSION, bundle_manifest

PAPERS = ("bom.cdx.json", "provenance.json", "licenses.txt")
CORE = {
    "inputs": [{"name": "features", "dtype": "float32", "shape": [-1, 2]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, 2]}],
}
ONNX = {
    "target": "onnx-float32",
    "engine": "onnxruntime",
    "precision": "float32",
    "model": "model.onnx",
    "core": CORE,
    "requirements": {"engine": "onnxruntime", "packages": {"onnxruntime": ">=1.20"}, "memory_mb": 12.5},
}

PROJECT = """
[project]
name = "shapes"
[data]
path = "shapes.parquet"
label = "kind"
[[data.inputs]]
name = "features"
[model]
factory = "model:build"
"""

Maker = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a signing key; a bundle asks nothing else of one."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "kit.toml").write_text(PROJECT, encoding="utf-8")
    generate_key(Project.open(folder).signing_key_path())
    return Project.open(folder)


@pytest.fixture
def make(bundles: Any, project: Project) -> Maker:
    """Makes bundle files around a network that onnxruntime runs, signed with the project's key."""
    bundles.key = project.signing_key()

    def made(
        *,
        replaced: Mapping[str, bytes | None] | None = None,
        papers: Mapping[str, Any] | None = None,
        golden_shift: float = 0.0,
        key: Path | None = None,
        **changes: Any,
    ) -> Path:
        """Make one.

        Args:
            replaced: Files put into it after its papers are written, or left out where None.
            papers: Entries of the manifest that its papers, and they alone, believe.
            golden_shift: See ``bundles``.
            key: Another key that signs it.
            changes: Entries of the manifest.
        """
        manifest = bundle_manifest(**{**ONNX, **changes})
        folder: Path = bundles.make(manifest=manifest, golden_shift=golden_shift).folder
        (folder / "model.bin").rename(folder / manifest["model"])
        (folder / "manifest.json").write_bytes(canonical_json({**manifest, **(papers or {})}))
        write_papers(folder, parameters={"io": "float"}, licence="MIT")
        (folder / "manifest.json").write_bytes(canonical_json(manifest))
        for name, data in (replaced or {}).items():
            (folder / name).unlink(missing_ok=True) if data is None else (folder / name).write_bytes(data)
        path: Path = bundles.pack(folder, key=key).path
        return path

    return made


def run(project: Project, action: str, *paths: Path) -> BundleResult:
    names = dict(zip(("bundle", "other"), map(str, paths), strict=False))
    return bundle(project, build(BundleSettings, {"action": action, **names}, where="kit bundle"))


def wrong(result: BundleResult) -> dict[str, str]:
    return {each.name: each.detail for each in result.checks if each.passed is False}


def test_a_bundle_that_holds_is_verified_down_to_its_golden_rows(make: Maker, project: Project) -> None:
    result = run(project, "verify", make())
    assert {each.name: each.passed for each in result.checks} == {
        "signature": True,
        "files": True,
        "manifest.json": True,
        **dict.fromkeys(PAPERS, True),
        "golden rows": True,
    }
    assert "4 rows by onnxruntime" in result.checks[-1].detail
    result.require_passed()


def test_a_flipped_byte_names_the_bundle_and_the_file(make: Maker, project: Project) -> None:
    path = make()
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MatMud", 1))
    for action in ("show", "verify"):
        with pytest.raises(VerificationError) as caught:
            run(project, action, path)
        assert "'model.onnx'" in caught.value.message
        assert str(path) in caught.value.message


def test_a_bundle_of_an_unknown_key_is_not_believed(make: Maker, project: Project, tmp_path: Path) -> None:
    generate_key(tmp_path / "other.pem")
    path = make(key=tmp_path / "other.pem")
    for action in ("show", "verify"):
        with pytest.raises(VerificationError, match="key"):
            run(project, action, path)


def test_a_file_that_nobody_signed_is_refused(make: Maker, project: Project, bundles: Any) -> None:
    path = make()
    folder = bundles.made[-1].folder
    (folder / "profile.json").write_text("{}")
    archive.pack(folder, path)
    with pytest.raises(VerificationError, match=r"'profile\.json' .* is not in its signature"):
        run(project, "verify", path)


def test_a_signed_file_that_the_target_does_not_have_is_named(make: Maker, project: Project) -> None:
    result = run(project, "verify", make(replaced={"model.bin": b"stowaway"}))
    assert "model.bin belongs to no onnx-float32" in wrong(result)["manifest.json"]
    assert "it leaves out file model.bin" in wrong(result)["bom.cdx.json"]
    assert "it leaves out file model.bin" in wrong(result)["provenance.json"]
    with pytest.raises(VerificationError, match=r"model\.bin belongs to no onnx-float32"):
        result.require_passed()


def test_preprocessing_that_the_bill_of_materials_leaves_out_is_named(make: Maker, project: Project) -> None:
    result = run(project, "verify", make(replaced={"preprocessing.json": b"{}"}))
    assert wrong(result)["bom.cdx.json"] == "it leaves out file preprocessing.json"


def test_papers_that_name_another_digest_are_refused(make: Maker, project: Project) -> None:
    path = make()
    replaced = {}
    for name, change in (("bom.cdx.json", _other_hash), ("provenance.json", _other_subject)):
        document = read_json(_unpacked(path, name))
        change(document)
        replaced[name] = canonical_json(document)
    result = run(project, "verify", make(replaced=replaced))
    for name in replaced:
        assert f"file model.onnx is {'f' * 64}, and the bundle has" in wrong(result)[name]
    with pytest.raises(VerificationError, match=r"bom\.cdx\.json: it says that file model\.onnx is ffff"):
        result.require_passed()


def _unpacked(path: Path, name: str) -> Path:
    folder = path.parent / f"{path.stem}-unpacked"
    if not folder.exists():
        archive.unpack(path, folder)
    return folder / name


def _other_hash(document: dict[str, Any]) -> None:
    (file,) = [each for each in document["components"] if each["name"] == "model.onnx"]
    file["hashes"][0]["content"] = "f" * 64


def _other_subject(statement: dict[str, Any]) -> None:
    statement["subject"][0]["digest"]["sha256"] = "f" * 64


@pytest.mark.parametrize(
    "papers, named",
    [
        ({"model_digest": "b" * 64}, {"bom.cdx.json": "the model", "provenance.json": "the model version"}),
        ({"release": 9}, {"bom.cdx.json": "the bundle", "provenance.json": "the bundle"}),
        ({"toolchain": {}}, dict.fromkeys(PAPERS, "torch")),
        ({"batch_sizes": [8]}, {"provenance.json": "the batch sizes"}),
    ],
)
def test_papers_of_another_bundle_are_refused(
    make: Maker, project: Project, papers: dict[str, Any], named: dict[str, str]
) -> None:
    found = wrong(run(project, "verify", make(papers=papers)))
    assert set(found) == set(named)
    for name, words in named.items():
        assert words in found[name]


@pytest.mark.parametrize("name", PAPERS)
def test_a_bundle_without_its_papers_is_refused(make: Maker, project: Project, name: str) -> None:
    assert wrong(run(project, "verify", make(replaced={name: None}))) == {name: f"{name} does not exist"}


@pytest.mark.parametrize("junk", [b"{}", b'{"metadata": [1], "predicate": 2}'])
def test_papers_that_no_kit_has_written_are_refused(make: Maker, project: Project, junk: bytes) -> None:
    found = wrong(run(project, "verify", make(replaced={"bom.cdx.json": junk, "provenance.json": junk})))
    assert set(found) == {"bom.cdx.json", "provenance.json"}
    for detail in found.values():
        assert "it is not one that this kit writes" in detail


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"classes": ["low"]}, "classes is ['low'], and the signature says ['low', 'high']"),
        ({"precision": "int8"}, "precision is 'int8', and target onnx-float32 says 'float32'"),
        ({"target": "onnx-int9"}, "there is no target 'onnx-int9'"),
    ],
)
def test_a_manifest_that_contradicts_the_bundle_is_refused(
    make: Maker, project: Project, changes: dict[str, Any], words: str
) -> None:
    assert words in wrong(run(project, "verify", make(**changes)))["manifest.json"]


def test_a_network_that_reads_what_nothing_gives_is_refused(make: Maker, project: Project) -> None:
    core = {**CORE, "inputs": [{**CORE["inputs"][0], "name": "pixels"}]}
    assert "the network reads 'pixels'" in wrong(run(project, "verify", make(core=core)))["manifest.json"]


def test_golden_rows_answered_wrongly_are_a_gate_that_does_not_pass(make: Maker, project: Project) -> None:
    result = run(project, "verify", make(golden_shift=2.0))
    assert "is below 1.0000, by onnxruntime" in wrong(result)["golden rows"]
    with pytest.raises(GateError, match="golden rows: agreement"):
        result.require_passed()


def test_a_model_that_its_engine_cannot_load_does_not_hold(make: Maker, project: Project) -> None:
    result = run(project, "verify", make(replaced={"model.onnx": b"no network"}))
    assert "golden rows" in wrong(result)
    with pytest.raises(VerificationError):  # and the papers name the network that it was
        result.require_passed()


def test_without_the_engine_the_golden_rows_are_not_run_and_what_is_missing_is_said(
    make: Maker, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "kit.engines.onnxruntime", raising=False)
    result = run(project, "verify", path)
    assert result.checks[-1].passed is None
    assert result.checks[-1].detail == "not run: needs onnxruntime >=1.20"
    result.require_passed()


def test_on_another_processor_the_golden_rows_are_not_run(make: Maker, project: Project) -> None:
    needs = {**ONNX["requirements"], "gpu": True, "arch": ["sparc64"]}
    result = run(project, "verify", make(requirements=needs))
    assert result.checks[-1].detail == "not run: needs onnxruntime >=1.20, on an NVIDIA GPU, on sparc64"


def test_a_bundle_of_an_older_kit_says_what_it_lacks(bundles: Any, project: Project) -> None:
    bundles.key = project.signing_key()
    path = bundles.make().path
    assert "it lacks precision, classes" in wrong(run(project, "verify", path))["manifest.json"]
    assert main(["bundle", "show", str(path), "--project", str(project.folder)]) == 0


def test_show_says_what_a_person_wants_to_know(
    make: Maker, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make()
    result = run(project, "show", path)
    assert main(["bundle", "show", str(path), "--project", str(project.folder)]) == 0
    said = capsys.readouterr().out
    facts = result.bundles[0]
    for words in (
        "shapes for onnx-float32, release 3",
        f"sha256:{facts.digest[:12]}",
        f"sha256:{VERSION}",
        facts.key_id,
        "weights int8",
        "0.985 (float: 0.99)",
        f"360 held-out rows, fingerprint {DATA}",
        "onnxruntime >=1.20",
        "memory_mb 12.5",
        "classification of low, high",
        "torch 2.13.0+cpu",
        *(each.sha256 for each in facts.files),
    ):
        assert words in said, words


def test_json_holds_all_that_was_found(
    make: Maker, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(golden_shift=2.0)
    assert main(["bundle", "verify", str(path), "--project", str(project.folder), "--json"]) == 4
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["bundles"][0]["manifest"]["release"] == 3
    assert found["checks"][-1]["passed"] is False
    assert "golden rows" in captured.err


def test_verify_shows_every_check(make: Maker, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(papers={"release": 9})
    assert main(["bundle", "verify", str(path), "--project", str(project.folder)]) == 3
    said = capsys.readouterr().out
    assert said.count("DOES NOT HOLD") == 2
    assert "by the trusted key" in said


def test_diff_names_keys_metrics_and_files_that_differ(make: Maker, project: Project) -> None:
    metrics = {**bundle_manifest()["metrics"], "value": 0.97}
    old = make(lineage={"data": {"fingerprint": DATA, "n_rows": 5, "note": None}})
    new = make(release=4, metrics=metrics, lineage={"data": {"fingerprint": DATA, "n_rows": 5}})
    result = run(project, "diff", old, new)
    found = {(each.of, each.name): each for each in result.differences}
    assert found["manifest", "release"] == Difference("manifest", "release", "changed", 3, 4)
    assert found["metrics", "metrics.value"] == Difference("metrics", "metrics.value", "changed", 0.985, 0.97)
    assert found["manifest", "lineage.data.note"].change == "removed"
    assert found["bundle", "digest"].change == "changed"
    assert ("file", "manifest.json") in found
    assert ("file", "model.onnx") not in found
    changed = found["file", "manifest.json"]
    assert changed.old.sha256 != changed.new.sha256


def test_a_difference_inside_a_list_is_named_by_its_place(make: Maker, project: Project) -> None:
    tensors = bundle_manifest()["tensors"]
    other = {**tensors, "inputs": [{**tensors["inputs"][0], "scale": 0.125}]}
    result = run(project, "diff", make(), make(tensors=other))
    assert Difference("manifest", "tensors.inputs[0].scale", "changed", 0.5, 0.125) in result.differences


def test_a_bundle_does_not_differ_from_itself(
    make: Maker, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make()
    assert run(project, "diff", path, path).differences == ()
    assert main(["bundle", "diff", str(path), str(path), "--project", str(project.folder)]) == 0
    assert "they do not differ" in capsys.readouterr().out


def test_diff_shows_both_and_what_only_one_has(
    make: Maker, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = make(), make(release=4, replaced={"licenses.txt": None})
    assert main(["bundle", "diff", str(old), str(new), "--project", str(project.folder)]) == 0
    said = capsys.readouterr().out
    assert "release 3" in said
    assert "release 4" in said
    (line,) = [each for each in said.splitlines() if each.startswith("licenses.txt")]
    assert line.endswith("-")
    assert main(["bundle", "diff", str(old), str(new), "--project", str(project.folder), "--json"]) == 0
    kinds = {each["of"] for each in json.loads(capsys.readouterr().out)["differences"]}
    assert kinds == {"bundle", "manifest", "file"}


def test_diff_believes_neither_before_it_is_verified(make: Maker, project: Project) -> None:
    good, bad = make(), make(release=4)
    bad.write_bytes(bad.read_bytes().replace(b"MatMul", b"MatMud", 1))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(VerificationError, match=r"model\.onnx"):
            run(project, "diff", *pair)


def test_a_bundle_that_is_not_there_is_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.bundle cannot be read"):
        run(project, "show", tmp_path / "none.bundle")


@pytest.mark.parametrize(
    "action, n_paths, words",
    [("diff", 1, "diff needs two bundles"), ("show", 2, "show takes one bundle")],
)
def test_as_many_bundles_are_named_as_are_needed(
    project: Project, action: str, n_paths: int, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        run(project, action, *([Path("a.bundle")] * n_paths))
