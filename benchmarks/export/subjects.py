"""What is measured: versions that the kit has trained, and what their exporters are given.

Each is made once, from fixed seeds, in this process and without Ray, and kept in a folder. What converts or
runs them is not known here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from architectures import ARCHITECTURES, Architecture
from pyarrow import parquet

from edge.calibrate import calibrate
from edge.converters.onnx import core_graph
from edge.core import Core, core_of
from edge.measure import output_scale
from kit.data import load
from kit.engines import open_engine
from kit.errors import NotFoundError
from kit.files import canonical_json
from kit.init import init
from kit.keypair import generate_key
from kit.project import Project
from kit.settings import ExportSettings, InitSettings, TrainSettings
from kit.signature import Signature

TITLES = {
    "digits": "digits CNN",
    "tabular": "tabular MLP",
    "mobilenet": "MobileNetV2",
    "vit": "ViT",
    "bert": "BERT",
    "series": "1-D convolution",
}
"""Subject to what the tables call it."""


@dataclass(frozen=True)
class Subject:
    """A trained version, cut to its network.

    Attributes:
        name: A key of ``TITLES``; its project's name as well.
        project: Its project.
        core: The network.
        signature: What the network reads and answers.
        calibration: The rows that the kit takes ranges from, as the network reads them.
        held_out: Rows that are judged on, likewise.
        expected: What the float network answers to them in onnxruntime.
        labels: The truth about them.
    """

    name: str
    project: Project
    core: Core
    signature: Signature
    calibration: np.ndarray
    held_out: np.ndarray
    expected: np.ndarray
    labels: np.ndarray

    @property
    def scale(self) -> float:
        """Standard deviation of what is expected: the unit of errors."""
        return output_scale({"logits": self.expected})

    @property
    def accuracy(self) -> float:
        """Share of held-out rows the float network is right about."""
        return float(np.mean(self.expected.argmax(axis=1) == self.labels))

    def hand_out(self, folder: Path) -> None:
        """Write what an exporter is given: both graphs, calibration rows, rows to answer."""
        folder.mkdir(parents=True)
        (folder / "core.onnx").write_bytes(core_graph(self.core).SerializeToString())
        shutil.copy(self.core.version.folder / "model.pt2", folder / "model.pt2")
        (folder / "signature.json").write_bytes(canonical_json(self.signature.to_json()))
        np.save(folder / "calibration.npy", self.calibration)
        np.save(folder / "held_out.npy", self.held_out)


def make_subject(name: str, folder: Path) -> Subject:
    """Train a version, unless that was done before, and take the rows an export takes.

    Args:
        name: A key of ``TITLES``.
        folder: Where projects lie.
    """
    project = _project(name, folder / name)
    try:
        _, version = project.open_version(name)
    except NotFoundError:
        _train(project)
        _, version = project.open_version(name)
    core, split = core_of(version), load(project)
    settings = project.command("export", ExportSettings, {"model": name})
    rows = calibrate(core, split, n_rows=settings.calibration_rows, seed=project.settings.data.seed).rows
    signature = Signature(version.signature.task, (core.input,), (core.output,))
    held_out = core.tensors(split.test.tensors)
    engine = open_engine(version.model_path, engine="onnxruntime", threads=1, signature=version.signature)
    expected = engine.run(split.test.tensors)["logits"]
    return Subject(name, project, core, signature, rows, held_out, expected, split.test.labels)


def _project(name: str, place: Path) -> Project:
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in ARCHITECTURES:
            _write(ARCHITECTURES[name], place)
        else:
            init(InitSettings.model_validate({"name": str(place), "template": name}))
    project = Project.open(place)
    if not project.signing_key_path().is_file():
        generate_key(project.signing_key_path())
    return project


def _write(architecture: Architecture, place: Path) -> None:
    rows, kinds = architecture.rows(architecture.n_rows)
    column = architecture.given.split('"')[1]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows[0].size)
    named = np.array([f"kind-{index}" for index in range(kinds.max() + 1)])[kinds]
    place.mkdir()
    (place / "kit.toml").write_text(architecture.toml(place.name))
    (place / "model.py").write_text(architecture.code)
    parquet.write_table(pa.table({column: flat, "kind": named}), place / "rows.parquet")


def _train(project: Project) -> None:
    """Do what ``kit train`` does, in this process."""
    from jobs.candidate import register_candidate
    from jobs.fitting.local import fit_here
    from jobs.fitting.loop import FitConfig
    from jobs.fitting.network import build_network
    from jobs.preparation.prepared import prepare_rows

    settings = project.command("train", TrainSettings)
    prepared = prepare_rows(project)
    n_classes = len(prepared.split.classes)

    def build(each: Project) -> Any:
        return build_network(each, n_features=prepared.n_features, n_classes=n_classes)

    chosen = FitConfig.of(settings, project=project, n_classes=n_classes)
    fitted = fit_here(project, chosen, prepared.arrays, build=build, hear=lambda epoch: None)
    register_candidate(project, settings, prepared, fitted, promote=True)
