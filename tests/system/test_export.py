"""Real conversions: a small CNN and an MLP behind preprocessing, to both INT8 targets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from edge.agent.device import Device
from edge.bundling.parts import unpack_bundle
from edge.export import ExportReport, export
from edge.flash import flash
from edge.reproduce import Winner, require_same_bytes
from edge.targets import TARGETS
from kit.data import load
from kit.engines import open_engine
from kit.errors import GateError, InputError, MissingDependencyError, VerificationError
from kit.golden import read_tensors
from kit.project import Project
from kit.runner import Runner
from kit.settings import ExportSettings, FlashSettings
from tests.system.edge_projects import digits_project, regression_project, tabular_project

PROJECTS: dict[str, Callable[[Path], Project]] = {"digits": digits_project, "tabular": tabular_project}


@pytest.fixture(scope="module", params=sorted(PROJECTS))
def exported(request, tmp_path_factory) -> tuple[Project, ExportReport]:  # type: ignore[no-untyped-def]
    project = PROJECTS[request.param](tmp_path_factory.mktemp(request.param) / "project")
    # Which recipe wins shall not depend on what this processor is fast at.
    return project, export(project, ExportSettings(model=project.name, max_slowdown=100.0))


def test_int8_stays_within_a_point_and_a_megabyte(exported: tuple[Project, ExportReport]) -> None:
    _, report = exported
    report.require_passed()
    for result in report.targets:
        for rung in (result.ladder[0], result.winner):  # the first recipe, whatever this processor is fast at
            assert rung is not None
            assert rung.figures is not None
            compared = rung.figures.comparison
            assert compared.drop <= 0.01
            assert compared.agreement is not None
            assert compared.agreement >= 0.99
            assert compared.output_error <= 0.03
            assert rung.figures.size_bytes < 1_000_000


def test_a_bundle_answers_held_out_rows_like_the_record_says(exported: tuple[Project, ExportReport]) -> None:
    project, report = exported
    test = load(project).test
    for result in report.targets:
        assert result.bundle is not None
        with tempfile.TemporaryDirectory() as work:
            opened = unpack_bundle(result.bundle, folder=Path(work) / "b", trusted=project.trusted())
            runner = Runner.open(opened.folder, threads=1)
            answers = runner.run(test.tensors)
            golden = runner.check_golden()
        assert np.mean(answers["label"] == test.labels) == pytest.approx(result.figures.comparison.value)
        np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1.0, atol=1e-5)
        assert golden.passed, golden.reason
        assert opened.digest == result.digest


def test_the_record_holds_what_the_report_shows(exported: tuple[Project, ExportReport]) -> None:
    _, report = exported
    record = json.loads(report.record.read_bytes())
    assert record["digest"] == report.digest
    assert [target["target"] for target in record["targets"]] == ["litert-int8", "openvino-int8"]
    assert all(target["latency_ms"]["p50"] > 0 and target["passed"] for target in record["targets"])
    assert record["reference"]["value"] == report.reference.value


def test_another_process_exports_the_same_bytes(exported: tuple[Project, ExportReport]) -> None:
    project, report = exported
    settings = ExportSettings(model=project.name, max_slowdown=100.0)
    winners = [
        Winner(result.target, result.winner.recipe.to_json(), result.winner.kept, result.digest)
        for result in report.targets
        if result.winner and result.digest
    ]
    assert len(winners) == 2
    require_same_bytes(project, settings, winners)
    wrong = [replace(winners[0], digest="0" * 64)]
    with pytest.raises(VerificationError, match="litert-int8 is not reproducible: 000000000000 at first"):
        require_same_bytes(project, settings, wrong)


def test_a_bundle_names_no_place_of_this_machine(exported: tuple[Project, ExportReport]) -> None:
    project, report = exported
    places = (str(project.folder), tempfile.gettempdir() + "/", str(Path(__file__).parents[2]), sys.prefix)
    for result in report.targets:
        assert result.bundle is not None
        data = result.bundle.read_bytes()
        assert not [place for place in places if place.encode() in data]


def test_a_target_over_budget_leaves_no_bundle_and_lets_the_other_pass(
    exported: tuple[Project, ExportReport],
) -> None:
    project, _ = exported
    large, small = targets = ("litert-float32", "litert-float16")
    first = export(project, ExportSettings(model=project.name, target=targets, output="tight"))
    sizes = {result.target: result.figures.size_bytes for result in first.targets if result.figures}
    budget_mb = (sizes[small] + sizes[large]) / 2e6
    tight = export(
        project,
        ExportSettings(model=project.name, target=targets, output="tight", max_size_mb=budget_mb),
    )
    with pytest.raises(GateError, match=f"{large} was not written: size in MB .* is above max_size_mb"):
        tight.require_passed()
    bundles = [path.name for path in (project.folder / "tight").glob("*.bundle")]
    assert bundles == [f"{project.name}-{small}.bundle"]
    record = json.loads(tight.record.read_bytes())
    assert [target["passed"] for target in record["targets"]] == [False, True]


def test_the_core_network_answers_batches_of_any_size(exported: tuple[Project, ExportReport]) -> None:
    project, report = exported
    tensors = load(project).test.tensors
    for result in report.targets:
        assert result.bundle is not None
        with tempfile.TemporaryDirectory() as work:
            opened = unpack_bundle(result.bundle, folder=Path(work) / "b", trusted=project.trusted())
            runner = Runner.open(opened.folder, threads=1)
            many = runner.run({name: array[:7] for name, array in tensors.items()})["logits"]
            one = [runner.run({name: array[i : i + 1] for name, array in tensors.items()}) for i in range(7)]
        np.testing.assert_allclose(np.concatenate([each["logits"] for each in one]), many, atol=1e-4)


def test_a_flipped_byte_in_a_bundle_is_found(exported: tuple[Project, ExportReport], tmp_path: Path) -> None:
    project, report = exported
    assert report.targets[0].bundle is not None
    data = bytearray(report.targets[0].bundle.read_bytes())
    data[data.index(b"TFL3") + 5000] ^= 1
    (tmp_path / "flipped.bundle").write_bytes(data)
    with pytest.raises(VerificationError, match=r"'model\.tflite' .* is not the file that was signed"):
        unpack_bundle(tmp_path / "flipped.bundle", folder=tmp_path / "b", trusted=project.trusted())
    assert not (tmp_path / "b").exists()


def test_other_data_than_the_model_was_trained_on_is_refused(
    exported: tuple[Project, ExportReport], tmp_path: Path
) -> None:
    project, _ = exported
    table = pq.read_table(project.folder / "data.parquet")
    (tmp_path / "kit.toml").write_text(
        (project.folder / "kit.toml").read_text().replace("[data]", f'state = "{project.state}"\n[data]')
    )
    pq.write_table(table.slice(0, len(table) - 1), tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"has the fingerprint .* was trained on"):
        export(Project.open(tmp_path), ExportSettings(model=project.name))


def test_another_split_than_the_model_was_trained_on_is_refused(
    exported: tuple[Project, ExportReport], tmp_path: Path
) -> None:
    project, _ = exported
    text = (project.folder / "kit.toml").read_text()
    (tmp_path / "kit.toml").write_text(text.replace("[data]", f'state = "{project.state}"\n[data]\nseed = 1'))
    (tmp_path / "data.parquet").write_bytes((project.folder / "data.parquet").read_bytes())
    with pytest.raises(InputError, match=r"hold out other rows than model .* \(seed = 1, not 0\)"):
        export(Project.open(tmp_path), ExportSettings(model=project.name))


def test_a_missing_converter_is_named_before_anything_starts(
    exported: tuple[Project, ExportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = exported
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependencyError, match="'openvino-int8' cannot be built here: nncf") as caught:
        export(project, ExportSettings(model=project.name, output="never"))
    assert (caught.value.hint or "").startswith("pip install 'batch-edge-kit[export]'")
    assert not (project.folder / "never").exists()


def test_a_regression_is_measured_by_its_rmse_and_bundled(tmp_path: Path) -> None:
    project = regression_project(tmp_path / "project")
    report = export(project, ExportSettings(model="sugar"))
    report.require_passed()
    for result in report.targets:
        assert result.figures is not None
        compared = result.figures.comparison
        assert (compared.metric, compared.agreement) == ("rmse", None)
        assert compared.output_error < 0.05
        assert result.bundle is not None
        opened = unpack_bundle(result.bundle, folder=tmp_path / result.target, trusted=project.trusted())
        runner = Runner.open(opened.folder, threads=1)
        answers = runner.run(load(project).test.tensors)
        assert answers["value"].shape == (len(load(project).test.labels),)
        assert runner.check_golden().passed


def test_a_network_one_converter_cannot_read_still_reaches_the_other_target(tmp_path: Path) -> None:
    project = regression_project(tmp_path / "project", with_program=False)
    report = export(project, ExportSettings(model="sugar"))
    assert [(result.target, result.passed) for result in report.targets] == [
        ("litert-int8", False),
        ("openvino-int8", True),
    ]
    with pytest.raises(GateError, match=r"litert-int8 was not written: model 'sugar' has no model\.pt2"):
        report.require_passed()
    bundles = [path.name for path in (project.folder / "bundles").glob("*.bundle")]
    assert bundles == ["sugar-openvino-int8.bundle"]


BROKEN_CONVERTER = """
from edge.core import FileFacts


def convert(material, recipe, *, kept, folder):
    (folder / "model.tflite").write_bytes(b"no model")


def describe(material, *, folder):
    return FileFacts({}, (), ())
"""


def test_a_runtime_that_refuses_a_file_still_leaves_the_other_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_converter.py").write_text(BROKEN_CONVERTER)
    monkeypatch.syspath_prepend(tmp_path)
    broken = replace(TARGETS["litert-int8"], converter="broken_converter")
    monkeypatch.setitem(TARGETS, "litert-int8", broken)
    project = regression_project(tmp_path / "project", with_program=False)
    report = export(project, ExportSettings(model="sugar"))
    assert [result.passed for result in report.targets] == [False, True]
    assert "litert cannot load model.tflite" in report.targets[0].reason


def test_a_place_that_cannot_hold_bundles_is_refused(exported: tuple[Project, ExportReport]) -> None:
    project, _ = exported
    (project.folder / "file").write_bytes(b"")
    with pytest.raises(InputError, match="output = 'file' is not a folder"):
        export(project, ExportSettings(model=project.name, output="file"))


ANSWERS = (
    "import json, sys; from pathlib import Path; from edge.agent.device import Device; "
    "from kit import golden; from kit.runner import Runner; "
    "folder = Device.open(Path(sys.argv[1])).good_slot().bundle.folder; "
    "inputs = golden.read_tensors(folder / 'golden' / 'inputs.npz'); "
    "print(json.dumps(Runner.open(folder, threads=1).run(inputs)['label'].tolist()))"
)


def test_the_runtime_of_old_devices_gives_the_same_labels(
    exported: tuple[Project, ExportReport], tmp_path: Path
) -> None:
    project, report = exported
    root = Path(__file__).parents[2]
    python = Path(os.environ.get("KIT_TFLITE_PYTHON", root / ".venv-tflite" / "bin" / "python"))
    if not python.exists():
        pytest.skip("make .venv-tflite/ready")
    device = tmp_path / "device"
    flash(project, FlashSettings(bundle=str(report.targets[0].bundle), device=f"path:{device}", yes=True))

    def old(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *arguments],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    ended = old("-m", "edge.agent", "health", str(device))
    assert ended.stderr == ""
    found = json.loads(ended.stdout)
    assert (found["reason"], found["engine"], found["engine_version"]) == ("", "litert", "2.14.0")
    assert ended.returncode == 0
    folder = Device.open(device).good_slot().bundle.folder
    here = Runner.open(folder, threads=1).run(read_tensors(folder / "golden" / "inputs.npz"))["label"]
    assert json.loads(old("-c", ANSWERS, str(device)).stdout) == here.tolist()


def test_the_device_says_nothing_of_its_runtime(
    exported: tuple[Project, ExportReport], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    project, report = exported
    assert report.targets[0].bundle is not None
    opened = unpack_bundle(report.targets[0].bundle, folder=tmp_path / "b", trusted=project.trusted())
    capfd.readouterr()
    Runner.open(opened.folder, threads=1).check_golden()
    assert "".join(capfd.readouterr()) == ""


def test_the_converters_do_not_write_on_the_users_screen(
    exported: tuple[Project, ExportReport], capfd: pytest.CaptureFixture[str]
) -> None:
    project, _ = exported
    capfd.readouterr()
    export(project, ExportSettings(model=project.name, output="silent"))
    assert "".join(capfd.readouterr()) == ""


def test_the_reference_engine_and_the_golden_answers_agree(exported: tuple[Project, ExportReport]) -> None:
    project, _ = exported
    _, version = project.open_version(project.name)
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    inputs, outputs = version.golden()
    assert (engine.run(inputs)["label"] == outputs["label"]).all()


def test_converting_reports_to_nobody(tmp_path: Path) -> None:
    # In a process of its own: NNCF keeps quiet by itself wherever pytest is loaded.
    code = (
        "from edge.converters.openvino import import_nncf; import_nncf(); "
        "from nncf.telemetry.wrapper import telemetry; print(type(telemetry).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    assert done.stdout.strip() != "NNCFTelemetry"
    assert not (tmp_path / "intel").exists()
