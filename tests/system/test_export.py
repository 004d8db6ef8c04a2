"""Real conversions: a small CNN and an MLP behind preprocessing, to both INT8 targets."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edge.agent.device import Device
from edge.bundling.parts import unpack_bundle
from edge.export import ExportReport, export
from edge.flash import flash
from edge.targets import TARGETS
from kit.data import load
from kit.engines import open_engine
from kit.errors import GateError, InputError, MissingDependencyError, VerificationError
from kit.golden import read_tensors
from kit.lineage import held_out_digest
from kit.model_version import Parts, write_model_version
from kit.project import Project
from kit.runner import Runner
from kit.settings import ExportSettings, FlashSettings
from kit.signing import generate_key

DIGITS_TOML = """
[project]
name = "digits"
[data]
path = "data.parquet"
label = "label"
[[data.inputs]]
name = "image"
shape = [1, 8, 8]
columns = ["pixels"]
minimum = 0.0
maximum = 16.0
[model]
factory = "model:build"
"""

TABULAR_TOML = """
[project]
name = "tabular"
[data]
path = "data.parquet"
label = "label"
[[data.inputs]]
name = "numbers"
columns = [{columns}]
nullable = true
[[data.inputs]]
name = "site"
dtype = "string"
nullable = true
[model]
factory = "model:build"
preprocessing = "model:preprocessing"
"""


def _digits_project(folder: Path) -> Project:
    from sklearn.datasets import load_digits
    from torch import nn

    digits = load_digits()
    table = pa.table({"pixels": list(digits.data.astype(np.float32)), "label": digits.target})

    class Scaled(nn.Module):
        def forward(self, image):  # type: ignore[no-untyped-def]
            return image / 16.0

    def network() -> nn.Module:
        return nn.Sequential(
            *(Scaled(), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    return _registered(folder, DIGITS_TOML, table, network, preprocessing=None, epochs=15)


def _tabular_project(folder: Path) -> Project:
    from sklearn.compose import make_column_transformer
    from sklearn.datasets import load_breast_cancer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from torch import nn

    cancer = load_breast_cancer()
    values = cancer.data.astype(np.float32)
    values[np.random.default_rng(0).random(values.shape) < 0.05] = np.nan
    names = [name.replace(" ", "_") for name in cancer.feature_names]
    sites = np.array(["north", "south", None], dtype=object)[(cancer.data[:, 0] * 7).astype(int) % 3]
    table = pa.table({**dict(zip(names, values.T, strict=True)), "site": list(sites), "label": cancer.target})
    preprocessing = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), names),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["site"]),
    )

    def network() -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(33, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)),
        )

    toml = TABULAR_TOML.format(columns=", ".join(f'"{name}"' for name in names))
    return _registered(folder, toml, table, network, preprocessing=preprocessing, epochs=40)


def _regression_project(folder: Path, *, with_program: bool = True) -> Project:
    from sklearn.datasets import load_diabetes
    from torch import nn

    data = load_diabetes()
    table = pa.table({"x": list((data.data * 20).astype(np.float32)), "label": data.target / 100})
    toml = DIGITS_TOML.replace("digits", "sugar").replace("[1, 8, 8]", "[10]").replace("pixels", "x")
    toml = toml.replace("minimum = 0.0\nmaximum = 16.0\n", "").replace(
        "[data]", 'task = "regression"\n[data]'
    )
    return _registered(
        *(folder, toml, table, lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))),
        preprocessing=None,
        epochs=30,
        with_program=with_program,
    )


def _registered(folder, toml, table, network, *, preprocessing, epochs, with_program=True):  # type: ignore[no-untyped-def]
    """Train in this process, without Ray, and register the version as champion."""
    import torch

    from jobs.exporting.graph import FEATURES, export_onnx, export_program
    from jobs.exporting.parity import run_onnx
    from jobs.preparation.device import fitted_steps
    from jobs.preparation.frame import to_features, to_frame

    folder.mkdir(parents=True)
    (folder / "kit.toml").write_text(toml)
    pq.write_table(table, folder / "data.parquet")
    project = Project.open(folder)
    generate_key(project.signing_key_path())
    split = load(project)
    signature = project.settings.signature(split.classes)
    if preprocessing is None:
        rows = split.train.tensors[signature.inputs[0].name]
    else:
        preprocessing.fit(to_frame(split.train.tensors, signature=signature))
        rows = to_features(preprocessing, split.train.tensors, signature=signature)
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, y = torch.from_numpy(rows), torch.from_numpy(split.train.labels)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            answer = model(x[batch])
            if split.classes:
                torch.nn.functional.cross_entropy(answer, y[batch]).backward()
            else:
                torch.nn.functional.mse_loss(answer[:, 0], y[batch]).backward()
            optimizer.step()
    onnx = export_onnx(model, transformer=preprocessing, signature=signature, sample=rows[:2])
    golden = {name: array[:16] for name, array in split.test.tensors.items()}
    parts = Parts(
        name=project.name,
        onnx=onnx,
        program=export_program(model, sample=rows[:2]) if with_program else None,
        signature=signature,
        golden_inputs=golden,
        golden_outputs={name: np.asarray(value) for name, value in run_onnx(onnx)(golden).items()},
        profile={},
        steps=None if preprocessing is None else fitted_steps(preprocessing, signature=signature),
        manifest={
            "graph": {"features": None if preprocessing is None else FEATURES},
            "lineage": {
                "data": {
                    "fingerprint": split.fingerprint,
                    "seed": 0,
                    "n_train": len(split.train.rows),
                    "n_validation": len(split.validation.rows),
                    "n_test": len(split.test.rows),
                    "held_out": held_out_digest(split.test),
                }
            },
        },
    )
    with tempfile.TemporaryDirectory(dir=folder) as work:
        digest = write_model_version(parts, folder=Path(work) / "version", key=project.signing_key())
        uri = project.store().put(Path(work) / "version", digest=digest)
    project.registry().register(project.name, digest=digest, uri=uri, summary={})
    project.registry().promote(f"{project.name}@1")
    return project


PROJECTS: dict[str, Callable[[Path], Project]] = {"digits": _digits_project, "tabular": _tabular_project}


@pytest.fixture(scope="module", params=sorted(PROJECTS))
def exported(request, tmp_path_factory) -> tuple[Project, ExportReport]:  # type: ignore[no-untyped-def]
    project = PROJECTS[request.param](tmp_path_factory.mktemp(request.param) / "project")
    return project, export(project, ExportSettings(model=project.name))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_int8_stays_within_a_point_and_a_megabyte(exported: tuple[Project, ExportReport]) -> None:
    _, report = exported
    report.require_passed()
    for result in report.targets:
        assert result.comparison is not None
        assert result.comparison.drop <= 0.01
        assert result.comparison.agreement is not None
        assert result.comparison.agreement >= 0.99
        assert result.comparison.output_error < 0.03
        assert result.size_bytes is not None
        assert result.size_bytes < 1_000_000


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
        assert np.mean(answers["label"] == test.labels) == pytest.approx(result.comparison.value)
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
    before = {result.bundle: _sha256(result.bundle) for result in report.targets if result.bundle}
    code = (
        "from pathlib import Path; from kit.project import Project; from kit.settings import ExportSettings; "
        "from edge.export import export; import sys; "
        "export(Project.open(Path(sys.argv[1])), ExportSettings(model=sys.argv[2], output='again'))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(project.folder), project.name],
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"},
        capture_output=True,
        timeout=500,
    )
    for path, digest in before.items():
        assert _sha256(project.folder / "again" / path.name) == digest
    in_this_process = export(project, ExportSettings(model=project.name, output="third"))
    assert {
        result.bundle.name: _sha256(result.bundle) for result in in_this_process.targets if result.bundle
    } == {path.name: digest for path, digest in before.items()}


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
    project, report = exported
    sizes = {result.target: result.size_bytes for result in report.targets}
    small, large = sorted(sizes, key=lambda name: sizes[name] or 0)
    budget_mb = (sizes[small] + sizes[large]) / 2e6  # type: ignore[operator]
    stale = project.folder / "tight" / f"{project.name}-{large}.bundle"
    stale.parent.mkdir()
    stale.write_bytes(b"an older bundle")
    tight = export(project, ExportSettings(model=project.name, output="tight", max_size_mb=budget_mb))
    with pytest.raises(GateError, match=f"{large} was not written: size in MB .* is above max_size_mb"):
        tight.require_passed()
    assert [path.name for path in stale.parent.iterdir()] == [f"{project.name}-{small}.bundle"]
    record = json.loads(tight.record.read_bytes())
    assert [target["passed"] for target in record["targets"]] == [
        target["target"] == small for target in record["targets"]
    ]


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
    with pytest.raises(MissingDependencyError, match="'openvino-int8' needs nncf") as caught:
        export(project, ExportSettings(model=project.name, output="never"))
    assert caught.value.hint == "pip install 'batch-edge-kit[export]'"
    assert not (project.folder / "never").exists()


def test_a_regression_is_measured_by_its_rmse_and_bundled(tmp_path: Path) -> None:
    project = _regression_project(tmp_path / "project")
    report = export(project, ExportSettings(model="sugar"))
    report.require_passed()
    for result in report.targets:
        assert result.comparison is not None
        assert (result.comparison.metric, result.comparison.agreement) == ("rmse", None)
        assert result.comparison.output_error < 0.05
        assert result.bundle is not None
        opened = unpack_bundle(result.bundle, folder=tmp_path / result.target, trusted=project.trusted())
        runner = Runner.open(opened.folder, threads=1)
        answers = runner.run(load(project).test.tensors)
        assert answers["value"].shape == (len(load(project).test.labels),)
        assert runner.check_golden().passed


def test_a_network_one_converter_cannot_read_still_reaches_the_other_target(tmp_path: Path) -> None:
    project = _regression_project(tmp_path / "project", with_program=False)
    report = export(project, ExportSettings(model="sugar"))
    assert [(result.target, result.passed) for result in report.targets] == [
        ("litert-int8", False),
        ("openvino-int8", True),
    ]
    with pytest.raises(GateError, match=r"litert-int8 was not written: model 'sugar' has no model\.pt2"):
        report.require_passed()
    assert [path.name for path in (project.folder / "bundles").iterdir()] == ["sugar-openvino-int8.bundle"]


def test_a_runtime_that_refuses_a_file_still_leaves_the_other_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_converter.py").write_text(
        "def convert(core, *, calibration, folder):\n    (folder / 'model.tflite').write_bytes(b'no model')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    broken = replace(TARGETS["litert-int8"], converter="broken_converter:convert")
    monkeypatch.setitem(TARGETS, "litert-int8", broken)
    project = _regression_project(tmp_path / "project", with_program=False)
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
    flash(project, FlashSettings(bundle=str(report.targets[0].bundle), device=f"path:{device}"))

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
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert (found["healthy"], found["engine"], found["engine_version"]) == (True, "litert", "2.14.0")
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
