"""Every target this machine can build: made, run in its runtime, and under the runtimes of old devices."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edge.bundling.parts import unpack_bundle
from edge.export import ExportReport, TargetResult, export
from edge.listing import list_targets, runnable
from edge.targets import TARGETS
from kit.cli import main
from kit.data import load
from kit.errors import InputError, NotFoundError, SettingsError, UnavailableError
from kit.files import read_json
from kit.project import Project
from kit.runner import Runner
from kit.settings import ExportSettings
from tests.awaiting import await_true
from tests.system.edge_projects import digits_project

ROOT = Path(__file__).parents[2]
OLD = Path(os.environ.get("KIT_TFLITE_PYTHON", ROOT / ".venv-tflite" / "bin" / "python"))
CPU_TARGETS = tuple(name for name, target in TARGETS.items() if not target.gpu)
OLD_REFUSES = ("litert-int8-linear",)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return digits_project(tmp_path_factory.mktemp("digits") / "project")


@pytest.fixture(scope="module")
def every(project: Project) -> ExportReport:
    report = export(
        project,
        ExportSettings(
            model="digits",
            target=("all", "tensorrt-fp16", "tensorrt-int8"),
            max_slowdown=100.0,
            verify_with=(str(OLD),) if OLD.exists() else (),
            licence="Apache-2.0",
            explain=True,
        ),
    )
    return report


def of(report: ExportReport, name: str) -> TargetResult:
    return next(result for result in report.targets if result.target == name)


def opened(project: Project, result: TargetResult, folder: Path) -> Path:
    assert result.bundle is not None
    return unpack_bundle(result.bundle, folder=folder, trusted=project.trusted()).folder


def test_every_target_keeps_the_budgets(every: ExportReport) -> None:
    every.require_passed()
    assert [result.target for result in every.targets] == [*CPU_TARGETS, "tensorrt-fp16", "tensorrt-int8"]
    for result in every.targets:
        assert result.figures is not None
        assert result.figures.comparison.drop <= 0.005
        assert result.figures.comparison.output_error <= 0.03


def test_an_int8_file_of_litert_is_2_9_times_smaller_than_float(every: ExportReport) -> None:
    figures = of(every, "litert-int8").figures
    assert figures is not None
    assert figures.float_bytes is not None
    assert figures.float_bytes / figures.model_bytes >= 2.9


@pytest.mark.parametrize("name", CPU_TARGETS)
def test_what_the_record_says_was_measured_in_the_targets_own_runtime(every: ExportReport, name: str) -> None:
    result = of(every, name)
    assert result.measured_in.startswith(f"{TARGETS[name].engine} ")
    figures = result.figures
    assert figures is not None
    assert figures.latency is not None
    assert figures.latency.p95_ms >= figures.latency.p50_ms > 0
    assert figures.float_latency is not None
    assert figures.memory_mb is not None
    assert 10 < figures.memory_mb < 1024
    assert figures.load_s is not None


@pytest.mark.parametrize("name", ["tensorrt-fp16", "tensorrt-int8"])
def test_what_has_not_run_on_a_gpu_says_so(
    every: ExportReport, project: Project, tmp_path: Path, name: str
) -> None:
    result = of(every, name)
    if result.figures is not None and result.figures.latency is not None:
        pytest.skip("this machine has a GPU")
    assert result.note == "not run on a GPU: its accuracy is onnxruntime's, its speed was not measured"
    assert result.measured_in.endswith("not on a GPU")
    manifest = read_json(opened(project, result, tmp_path / "b") / "manifest.json")
    assert manifest["requirements"]["gpu"] is True
    assert (tmp_path / "b" / "model.onnx").stat().st_size > 1000


def test_the_manifest_says_what_a_device_needs_and_where_it_comes_from(
    every: ExportReport, project: Project, tmp_path: Path
) -> None:
    for name in ("litert-int8", "openvino-int8", "onnx-int8"):
        folder = opened(project, of(every, name), tmp_path / name)
        manifest = read_json(folder / "manifest.json")
        assert manifest["requirements"]["packages"]
        assert manifest["recipe"]["name"] == "int8"
        assert manifest["calibration"]["n_rows"] == 200
        assert len(manifest["calibration"]["fingerprint"]) == 64
        assert manifest["metrics"]["n_rows"] == 360
        assert len(manifest["classes"]) == 10
        assert manifest["lineage"]["data"]["fingerprint"] == manifest["metrics"]["fingerprint"]
        assert "Apache-2.0" in (folder / "licenses.txt").read_text()
    tensor = read_json(tmp_path / "litert-int8" / "manifest.json")["tensors"]["inputs"][0]
    assert (tensor["dtype"], tensor["shape"], tensor["scale"]) == ("float32", [1, 1, 8, 8], None)


def test_layers_are_measured_and_the_page_shows_them(every: ExportReport) -> None:
    for name in ("litert-int8", "openvino-int8", "onnx-int8"):
        layers = of(every, name).layers
        assert len(layers) >= 4
        assert all(np.isfinite((layer.error, layer.added)).all() for layer in layers)
    assert every.page is not None
    text = every.page.read_text()
    assert all(result.target in text for result in every.targets)


@pytest.mark.parametrize("name", [name for name in CPU_TARGETS if name.startswith("litert")])
def test_the_runtime_of_old_devices_answers_rightly_or_refuses(every: ExportReport, name: str) -> None:
    if not OLD.exists():
        pytest.skip("make .venv-tflite/ready")
    result = of(every, name)
    if name in OLD_REFUSES:
        assert "tflite-runtime refuses it, as it must" in result.note
        assert "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '11'" in result.note
    else:
        assert "tflite-runtime 2.14.0 answers as it should" in result.note


def test_a_list_says_what_can_be_built_and_run(project: Project) -> None:
    listed = list_targets()
    assert [entry.name for entry in listed.targets] == list(TARGETS)
    assert set(CPU_TARGETS) <= set(runnable())
    lacking = [entry for entry in listed.targets if not entry.runs]
    assert all("to run: an NVIDIA GPU and tensorrt" in entry.why for entry in lacking)


def test_the_list_needs_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.startswith(tuple(TARGETS))} >= set(TARGETS)
    assert max(map(len, lines)) <= 100


def test_several_batch_sizes_stand_in_one_file(project: Project, tmp_path: Path) -> None:
    settings = ExportSettings(
        model="digits", target=("litert-int8",), batch_sizes=(8, 1), output="sizes", max_slowdown=100.0
    )
    report = export(project, settings)
    report.require_passed()
    folder = opened(project, report.targets[0], tmp_path / "b")
    assert read_json(folder / "manifest.json")["batch_sizes"] == [1, 8]
    runner = Runner.open(folder, threads=1)
    test = load(project).test
    rows = {name: array[:19] for name, array in test.tensors.items()}
    alone = [
        runner.run({name: array[i : i + 1] for name, array in rows.items()})["logits"] for i in range(19)
    ]
    np.testing.assert_array_equal(runner.run(rows)["logits"], np.concatenate(alone))


def test_a_file_may_read_and_answer_8_bits(project: Project, tmp_path: Path) -> None:
    settings = ExportSettings(
        model="digits", target=("litert-int8",), io="int8", output="bits", max_slowdown=100.0
    )
    report = export(project, settings)
    report.require_passed()
    folder = opened(project, report.targets[0], tmp_path / "b")
    tensors = read_json(folder / "manifest.json")["tensors"]
    assert [each["dtype"] for each in (*tensors["inputs"], *tensors["outputs"])] == ["int8", "int8"]
    assert all(each["scale"] > 0 for each in (*tensors["inputs"], *tensors["outputs"]))
    assert Runner.open(folder, threads=1).check_golden().passed


def test_a_budget_that_cannot_be_met_tries_every_recipe_and_says_why(project: Project) -> None:
    settings = ExportSettings(
        model="digits", target=("onnx-int8",), output="strict", max_output_error=0.00001, max_slowdown=100.0
    )
    report = export(project, settings)
    (result,) = report.targets
    assert not result.passed
    tried = [rung.recipe.name for rung in result.ladder]
    assert tried[:4] == ["int8", "int8-products", "int8-clipped", "int8-keep-1"]
    assert tried[-1] == "int8-linear"
    assert all(rung.reason for rung in result.ladder)
    assert "output error" in result.ladder[0].reason
    kept = next(rung for rung in result.ladder if rung.recipe.name == "int8-keep-2").kept
    assert len(kept) == 2
    assert not list((project.folder / "strict").glob("*.bundle"))
    assert result.layers


def test_a_model_must_be_named(project: Project) -> None:
    with pytest.raises(SettingsError, match="no model version is named"):
        export(project, ExportSettings())


def test_a_missing_key_is_said_before_anything_is_built(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("bundles"))
    (tmp_path / "copy" / ".kit" / "keys" / "signing.pem").unlink()
    with pytest.raises(NotFoundError, match="no signing key"):
        export(Project.open(tmp_path / "copy"), ExportSettings(model="digits"))
    assert not (tmp_path / "copy" / "bundles").exists()


def test_an_interpreter_that_is_none_is_refused(project: Project) -> None:
    settings = ExportSettings(
        model="digits", target=("onnx-float32",), output="nobody", verify_with=("/nowhere/python",)
    )
    with pytest.raises(InputError, match="/nowhere/python, which is no file"):
        export(project, settings)
    assert not (project.folder / "nobody").exists()


def test_an_interpreter_without_the_kit_is_refused(project: Project) -> None:
    settings = ExportSettings(
        model="digits", target=("onnx-float32",), output="nobody", verify_with=("/usr/bin/env",)
    )
    with pytest.raises(InputError, match="cannot import the kit"):
        export(project, settings)


def test_an_interrupt_leaves_no_half_bundle(project: Project) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kit", "export", "digits", "--project", str(project.folder)),
            *("--output", str(project.folder / "cut"), "--target", "onnx-float32", "--target", "litert-int8"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = project.folder / "cut" / "digits-onnx-float32.bundle"
    try:
        await_true(lambda: first.exists() or process.poll() is not None, within_s=240.0)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=240)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert [path.name for path in (project.folder / "cut").iterdir()] == ["digits-onnx-float32.bundle"]
    unpack_bundle(first, folder=project.folder / "whole", trusted=project.trusted())


def test_a_full_disk_leaves_no_half_bundle(project: Project, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(128 << 10))
    settings = ExportSettings(model="digits", target=("onnx-float32",), output=str(small_disk / "out"))
    with pytest.raises(UnavailableError, match="is full"):
        export(project, settings)
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["filler"]


def test_a_full_disk_of_temporary_files_is_said_and_leaves_no_bundle(
    project: Project, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "filler").write_bytes(bytes(128 << 10))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(UnavailableError):
        export(project, ExportSettings(model="digits", target=("onnx-float32",), output="no-room"))
    assert not list((project.folder / "no-room").glob("*"))
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["filler"]
