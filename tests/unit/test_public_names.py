from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kit

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "ConflictError",
    "DiskFullError",
    "Engine",
    "GateError",
    "InputError",
    "KitError",
    "MissingDependencyError",
    "ModelVersion",
    "NotFoundError",
    "Project",
    "ProjectError",
    "Registry",
    "Runner",
    "SettingsError",
    "Signature",
    "TensorSpec",
    "UnavailableError",
    "VerificationError",
    "open_engine",
    "open_store",
]
HEAVY = [
    "ray",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "jax",
    "pandas",
    "pyarrow",
    "sklearn",
    "numpy",
    "rich",
]


def imported(code: str) -> set[str]:
    command = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_public_names_are_these() -> None:
    assert kit.__all__ == ["__version__", *NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kit, name).__name__ == name
    assert name in dir(kit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kit' has no attribute 'open_enigne'"):
        _ = kit.open_enigne


def test_importing_the_kit_imports_nothing_heavy() -> None:
    assert not imported("import kit") & {*HEAVY, "pydantic", "cryptography"}


def test_opening_a_project_imports_no_engine_and_no_cluster() -> None:
    assert not imported("from kit import Project, Registry, ModelVersion, open_engine, open_store") & (
        set(HEAVY) - {"numpy"}
    )
