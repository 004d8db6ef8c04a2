"""What is measured: tables of float32 columns, and two versions trained by the kit itself.

Everything is made once, from fixed seeds, and kept in a folder. What runs the versions is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

N_FEATURES = 32
N_CLASSES = 10
COLUMNS = tuple(f"f{index:02d}" for index in range(N_FEATURES))
CLASSES = tuple(f"class-{index}" for index in range(N_CLASSES))

#: Hidden layers: read and written as fast as computed; and computed nearly all of the time.
WIDTHS = {"light": (64, 64), "heavy": (2048, 1536, 512)}

_TRAINING_ROWS = 4000
_KIT_TOML = """
[project]
name = "{name}"

[data]
path = "rows.parquet"
label = "class"
inputs = [{{ name = "x", columns = [{columns}] }}]

[model]
factory = "model:build"

[train]
epochs = 2
batch_size = 256
golden_rows = 8
"""
_MODEL_PY = """
from itertools import pairwise

from torch import nn

WIDTHS = {widths}


def build(*, n_classes):
    layers = []
    for before, after in pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], n_classes))
"""


@dataclass(frozen=True)
class Subject:
    """A trained version.

    Attributes:
        name: ``light`` or ``heavy``; its project's name as well.
        project: Folder of the project.
        model: The version's ONNX file, which the others open.
    """

    name: str
    project: Path
    model: Path


def make_subject(name: str, folder: Path) -> Subject:
    """Train a version, unless that was done before.

    Args:
        name: A key of ``WIDTHS``.
        folder: Where projects lie.
    """
    from jobs.train import train
    from kit.errors import NotFoundError
    from kit.keypair import generate_key
    from kit.project import Project
    from kit.settings import TrainSettings

    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    columns = ", ".join(f'"{each}"' for each in COLUMNS)
    (place / "kit.toml").write_text(_KIT_TOML.format(name=name, columns=columns))
    (place / "model.py").write_text(_MODEL_PY.format(widths=(N_FEATURES, *WIDTHS[name])))
    project = Project.open(place)
    if not project.signing_key_path().is_file():
        generate_key(project.signing_key_path())
    try:
        _, version = project.open_version(name)
    except NotFoundError:
        parquet.write_table(_labelled(), place / "rows.parquet")
        train(project, project.command("train", TrainSettings, {"promote": True})).require_passed()
        _, version = project.open_version(name)
    return Subject(name, place, version.model_path)


def make_files(folder: Path, *, n_rows: int, n_files: int) -> tuple[Path, ...]:
    """Write Parquet files of equally many rows, unless they are there; gives them in order."""
    folder.mkdir(parents=True, exist_ok=True)
    n_each = n_rows // n_files
    paths = tuple(folder / f"rows-{index:03d}.parquet" for index in range(n_files))
    for index, path in enumerate(paths):
        if not path.is_file():
            written = path.with_suffix(".new")
            parquet.write_table(_rows(n_each, seed=index), written, use_dictionary=False)
            written.replace(path)
    return paths


def make_csv(path: Path, *, n_rows: int) -> None:
    """Write a CSV of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    csv.write_csv(_rows(n_rows, seed=0), path)


def make_long_file(path: Path, *, size_bytes: int, longest_bytes: int) -> int:
    """Write one Parquet file of row groups of 64 MB, with a very long one in the middle; gives its rows.

    Args:
        path: The file; written again only if it is not there.
        size_bytes: Of the file, roughly.
        longest_bytes: Of the long row group.
    """
    row_bytes = 4 * N_FEATURES
    sizes = [64 << 20] * max((size_bytes - longest_bytes) // (64 << 20), 0)
    sizes.insert(len(sizes) // 2, longest_bytes)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        written, schema = path.with_suffix(".new"), _rows(1, seed=0).schema
        with parquet.ParquetWriter(written, schema, use_dictionary=False, compression="none") as writer:
            for index, size in enumerate(sizes):
                n_rows = size // row_bytes
                writer.write_table(_rows(n_rows, seed=index), row_group_size=n_rows)
        written.replace(path)
    return parquet.read_metadata(path).num_rows


def _rows(n_rows: int, *, seed: int) -> pa.Table:
    values = np.random.default_rng(seed).standard_normal((N_FEATURES, n_rows), dtype=np.float32)
    return pa.table(dict(zip(COLUMNS, values, strict=True)))


def _labelled() -> pa.Table:
    """Name the class of each row by a rule that a network can learn: its largest feature of the first ten."""
    table = _rows(_TRAINING_ROWS, seed=1 << 20)
    first = np.stack([table.column(name).to_numpy() for name in COLUMNS[:N_CLASSES]])
    return table.append_column("class", pa.array(np.array(CLASSES)[first.argmax(axis=0)]))
