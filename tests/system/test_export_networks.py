"""Standard architectures are exported to INT8 in three engines; what cannot be is named with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.bundling.parts import unpack_bundle
from edge.export import ExportReport, export
from kit.data import load
from kit.files import read_json
from kit.project import Project
from kit.runner import Runner
from kit.settings import ExportSettings
from tests.system import test_transformers as made

#: Every engine for some network; what is slow everywhere (attention in 8 bits) is left to the benchmark.
TARGETS = {
    "mobilenet": ("litert-int8", "onnx-int8"),
    "vit": ("litert-int8-linear", "openvino-int8"),
    "bert": ("litert-int8-linear", "onnx-int8"),
    "series": ("litert-int8", "openvino-int8", "onnx-int8"),
}
SORTING = """
import torch
from torch import nn


class Sorting(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.head = nn.Linear(3 * 64, n_classes)

    def forward(self, signal):
        return self.head(torch.sort(signal.flatten(1), dim=1).values)


def build(n_classes):
    return Sorting(n_classes)
"""


def vision(kind: str) -> Callable[[Path], Project]:
    def project(folder: Path) -> Project:
        trained = f'epochs = 2\nlearning_rate = 0.003\n[model.parameters]\nkind = "{kind}"'
        return made.make_project(
            folder, rows=made.images(240), code=made.VISION, given=made.IMAGE, trained=trained
        )

    return project


def waves(folder: Path, *, code: str = made.SERIES) -> Project:
    trained = "epochs = 3\nlearning_rate = 0.01"
    return made.make_project(folder, rows=made.series(240), code=code, given=made.SIGNAL, trained=trained)


NETWORKS: dict[str, Callable[[Path], Project]] = {
    "mobilenet": vision("mobilenet"),
    "vit": vision("vit"),
    "bert": lambda folder: made.bert(folder, n_rows=400),
    "series": waves,
}


def exported(project: Project, **settings: object) -> ExportReport:
    made.make(project)
    chosen = {
        "calibration_rows": 64,
        "max_metric_drop": 0.25,  # 48 held-out rows of a network that has hardly learned
        "max_output_error": 0.5,
        "max_slowdown": 100.0,
        **settings,
    }
    report = export(project, ExportSettings(model="small", **chosen))  # type: ignore[arg-type]
    return report


@pytest.mark.parametrize("name", NETWORKS)
def test_a_standard_architecture_reaches_int8_in_every_engine(tmp_path: Path, name: str) -> None:
    project = NETWORKS[name](tmp_path / "project")
    report = exported(project, target=TARGETS[name])
    rows = load(project).test.tensors
    for result in report.targets:
        assert result.passed, [(rung.recipe.name, rung.reason) for rung in result.ladder]
        assert result.bundle is not None
        opened = unpack_bundle(result.bundle, folder=tmp_path / result.target, trusted=project.trusted())
        runner = Runner.open(opened.folder, threads=1)
        assert runner.check_golden().passed
        assert np.isfinite(runner.run(rows)["logits"]).all()


def test_where_8_bit_products_do_not_pay_weights_alone_are_tried(tmp_path: Path) -> None:
    project = made.bert(tmp_path / "project", n_rows=400)
    report = exported(project, target=("openvino-int8",), max_slowdown=0.001)  # nothing is that fast
    (result,) = report.targets
    assert [rung.recipe.name for rung in result.ladder] == ["int8", "int8-linear", "int8-weights"]
    figures = result.ladder[-1].figures
    assert figures is not None
    assert figures.float_bytes is not None
    assert figures.comparison.output_error < 0.01
    assert figures.model_bytes < 0.85 * figures.float_bytes  # the rest is the graph in words
    assert not result.passed
    assert "latency" in result.reason
    assert "above max_slowdown = 0.001" in result.reason


def test_an_operator_without_a_counterpart_is_named_and_others_are_offered(tmp_path: Path) -> None:
    project = waves(tmp_path / "project", code=SORTING)
    report = exported(project, target=("litert-int8", "onnx-float32"))
    litert, onnx = report.targets
    assert not litert.passed
    assert "STABLEHLO_SORT" in litert.reason
    assert "which makes" in litert.reason  # its place
    assert "openvino-* and onnx-* targets" in litert.reason
    assert onnx.passed


def test_integers_reach_the_device_as_integers(tmp_path: Path) -> None:
    project = made.bert(tmp_path / "project", n_rows=400)
    report = exported(project, target=("litert-float32", "onnx-float32"))
    for result in report.targets:
        assert result.bundle is not None
        folder = unpack_bundle(
            result.bundle, folder=tmp_path / result.target, trusted=project.trusted()
        ).folder
        (spec,) = read_json(folder / "manifest.json")["core"]["inputs"]
        assert spec["dtype"] == "int64"
        assert result.figures is not None
        assert result.figures.comparison.output_error < 1e-4
