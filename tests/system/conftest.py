"""Fixtures of the system tests: records of what makes a version, as the commands leave them; an endpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kit.project import Project

if TYPE_CHECKING:
    from tests.system.serving import Served

TOML = """
[project]
name = "digits"
task = "classification"

[data]
path = "data.parquet"
label = "digit"

[[data.inputs]]
name = "image"

[model]
factory = "model:build"
"""
DIGEST = "ab" * 32

NUMBERS: dict[str, Any] = {
    "name": "width",
    "role": "input",
    "kind": "number",
    "missing": 3,
    "n_unique": 90,
    "mean": 1.5,
    "std": 0.5,
    "minimum": -2.0,
    "maximum": 12345.678,
    "quartiles": [1.0, 1.4, 2.0],
    "categories": {},
    "edges": [-2.0, 0.0, 2.0, 12345.678],
    "train_counts": [10, 50, 10],
    "test_counts": [2, 15, 3],
}
STRINGS: dict[str, Any] = {
    **NUMBERS,
    "name": "kind",
    "role": "label",
    "kind": "string",
    "missing": 0,
    "n_unique": 7,
    **dict.fromkeys(("mean", "std", "minimum", "maximum")),
    "quartiles": [],
    "categories": {"oak": 60, "elm": 30, "ash": 5, "fir": 5},
    "edges": [],
    "train_counts": [40, 20, 5, 5],
    "test_counts": [15, 5, 0, 0],
}
PREPARE: dict[str, Any] = {
    "data": {"path": "trees.csv", "fingerprint": DIGEST, "n_rows": 100, "n_files": 2, "size_bytes": 4200},
    "split": {"how": "stratified", "seed": 7, "train": 70, "validation": 8, "test": 20},
    "changes": [
        {
            "step": "rule",
            "column": "kind",
            "rows_before": 100,
            "rows_after": 98,
            "n_values": 2,
            "detail": "2 values did not match",
        },
        {
            "step": "missing",
            "column": None,
            "rows_before": 98,
            "rows_after": 98,
            "n_values": 3,
            "detail": "median",
        },
    ],
    "columns": [STRINGS, NUMBERS],
    "classes": {
        "oak": {"train": 50, "validation": 5, "test": 14},
        "elm": {"train": 20, "validation": 3, "test": 6},
    },
    "n_features": 4,
    "features": ["width", "kind=oak"],
    "leakage": [
        {"check": "id", "found": 0, "detail": "no value of 'tree' is in two parts"},
        {"check": "duplicate rows", "found": 4, "detail": "4 held-out rows are equal to a training row"},
    ],
}


def _trial(number: int, **more: Any) -> dict[str, Any]:
    losses = [1.0 / (epoch + number) for epoch in (1, 2, 3)]
    return {
        "number": number,
        "status": "finished",
        "reason": "",
        "parameters": {"learning_rate": 0.001 * 10**number, "width": 8 * number, "activation": "relu"},
        "value": losses[-1],
        "epochs": [
            {"epoch": index + 1, "train_loss": loss, "validation_loss": loss}
            for index, loss in enumerate(losses)
        ],
        "best_epoch": 3,
        "seconds": 1.5,
        **more,
    }


TUNE: dict[str, Any] = {
    "study": "trees-1f3a",
    "search": "optuna",
    "scheduler": "asha",
    "metric": "validation_loss",
    "mode": "min",
    "space": {"learning_rate": {"kind": "log"}},
    "trials": [
        _trial(1),
        _trial(2, status="stopped", reason="ASHA stopped it after 3 epochs"),
        _trial(3),
        _trial(
            4,
            status="failed",
            reason="the loss is not a number in epoch 2",
            value=None,
            epochs=[
                {"epoch": 1, "train_loss": 9.0, "validation_loss": 8.0},
                {"epoch": 2, "train_loss": None, "validation_loss": None},
            ],
        ),
    ],
    "best": 3,
    "importance": {"learning_rate": 0.8, "width": 0.2},
    "seconds": 61.0,
    "version": 3,
    "model": "digits",
}
EVALUATE: dict[str, Any] = {
    "model": "digits",
    "number": 3,
    "digest": DIGEST,
    "task": "classification",
    "n_rows": 200,
    "classes": ["oak", "elm"],
    "metrics": {"accuracy": 0.955, "auc": 0.985, "log_loss": 0.2},
    "by_class": {
        "oak": {"precision": 0.9, "recall": 0.95, "f1": 0.9243, "support": 140},
        "elm": {"precision": 0.8, "recall": 0.7, "f1": 0.7467, "support": 60},
    },
    "calibration": {
        "edges": [0.0, 0.5, 0.75, 1.0],
        "confidence": [None, 0.6, 0.9],
        "accuracy": [None, 0.55, 0.93],
        "counts": [0, 40, 160],
    },
    "slices": [
        {
            "column": "kind",
            "value": "elm",
            "n_rows": 60,
            "metric": "accuracy",
            "score": 0.7,
            "worse_by": 0.255,
        }
    ],
    "importance": [
        {"column": "width", "mean": 0.2, "std": 0.03},
        {"column": "height", "mean": -0.01, "std": 0.02},
    ],
    "gates": [
        {"metric": "accuracy", "value": 0.955, "bound": 0.9, "passed": True},
        {
            "metric": "auc",
            "value": 0.985,
            "bound": 0.05,
            "passed": True,
            "kind": "max_loss",
            "champion": 0.991,
            "low": -0.02,
            "high": 0.008,
            "n_rows": 200,
            "reason": "",
        },
        {
            "metric": "latency",
            "value": 0.05,
            "bound": 0.1,
            "passed": False,
            "kind": "max_loss",
            "champion": 0.04,
            "low": 0.1,
            "high": 0.4,
            "n_rows": 200,
            "reason": "",
        },
        {
            "metric": "log_loss",
            "value": None,
            "bound": 0.0,
            "passed": False,
            "kind": "max_loss",
            "champion": None,
            "low": None,
            "high": None,
            "n_rows": 40,
            "reason": "40 held-out rows are fewer than min_rows = 100",
        },
    ],
    "champion": {"number": 2, "metrics": {"accuracy": 0.96, "auc": 0.991}},
    "cross_validation": {
        "kind": "k-fold",
        "folds": [{"metrics": {"accuracy": 0.95}}, {"metrics": {"accuracy": None}}],
        "mean": {"accuracy": 0.95},
        "std": {"accuracy": 0.01},
    },
    "learning_curve": [
        {"n_rows": 20, "train": 1.0, "validation": 0.7},
        {"n_rows": 70, "train": 0.98, "validation": None},
    ],
    "validation_curve": {
        "name": "parameters.activation",
        "values": [
            {"value": "relu", "train": 0.98, "validation": 0.9},
            {"value": "tanh", "train": 0.97, "validation": 0.92},
        ],
    },
    "shap": [{"column": "width", "mean_abs": 1.25}],
}
_COST: dict[str, Any] = {
    "size_bytes": 327_700,
    "operations": 150_000,
    "parameters": 81_000,
    "metrics": {"accuracy": 0.975},
    "latency_ms": 0.064,
    "int8_metric": 0.972,
}
COMPRESS: dict[str, Any] = {
    "parent": {"number": 3, "digest": DIGEST},
    "number": 4,
    "digest": "cd" * 32,
    "model": "digits",
    "method": "prune",
    "before": _COST,
    "after": {**_COST, "size_bytes": 120_000, "metrics": {"accuracy": 0.968}},
    "pays": False,
    "reason": "latency does not fall",
}


@pytest.fixture
def making_records() -> dict[str, dict[str, Any]]:
    """Records of prepare, tune, evaluate and compress, by kind; one's own copy."""
    records = {"prepare": PREPARE, "tune": TUNE, "evaluate": EVALUATE, "compress": COMPRESS}
    return copy.deepcopy(records)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that has run nothing, to be reported about; a file with other needs has its own."""
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "kit.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return Project.open(folder)


#: The endpoint's settings of ``served``.
SERVE = """
[serve]
replicas = 2
max_body_mb = 0.1
log_requests = "all"

[serve.jwt]
jwks = "jwks.json"
issuer = "https://login.example"
audience = "kit"
leeway_s = 0.0

[serve.breaker]
min_requests = 5
window_s = 2.0
open_s = 0.5
probes = 1

[serve.prediction_log]
folder = "samples"
share = 1.0
redact = ["b"]

[serve.model.twin]
fallback = { label = "high" }
cache = { max_mb = 1.0 }
"""


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One endpoint of ``tiny`` and ``twin`` for all files; tests leave ``tiny@1`` in force."""
    from tests.system import (
        credentials,
        served_models,
        serving,
    )  # they import much that other tests do without

    project = served_models.make_project(tmp_path_factory.mktemp("serve") / "project", serve=SERVE)
    credentials.write_key_set(project.folder / "jwks.json")
    endpoint = serving.start(project, "tiny", "twin")
    yield endpoint
    if not endpoint.stopped:
        endpoint.stop()
