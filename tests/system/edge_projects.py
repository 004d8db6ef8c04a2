"""Projects with a registered model, fitted in this process without Ray, for what exports them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kit.data import load
from kit.keypair import generate_key
from kit.lineage import held_out_digest
from kit.model_version import Parts, write_model_version
from kit.project import Project

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


def digits_project(folder: Path) -> Project:
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

    return registered(folder, DIGITS_TOML, table, network, preprocessing=None, epochs=15)


def tabular_project(folder: Path) -> Project:
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
    return registered(folder, toml, table, network, preprocessing=preprocessing, epochs=40)


def regression_project(folder: Path, *, with_program: bool = True) -> Project:
    from sklearn.datasets import load_diabetes
    from torch import nn

    data = load_diabetes()
    table = pa.table({"x": list((data.data * 20).astype(np.float32)), "label": data.target / 100})
    toml = DIGITS_TOML.replace("digits", "sugar").replace("[1, 8, 8]", "[10]").replace("pixels", "x")
    toml = toml.replace("minimum = 0.0\nmaximum = 16.0\n", "").replace(
        "[data]", 'task = "regression"\n[data]'
    )
    return registered(
        *(folder, toml, table, lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))),
        preprocessing=None,
        epochs=30,
        with_program=with_program,
    )


def registered(folder, toml, table, network, *, preprocessing, epochs, with_program=True):  # type: ignore[no-untyped-def]
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
