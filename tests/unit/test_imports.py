"""Who may import whom. The tables below are the documentation; the test keeps them true."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"kit", "jobs", "serve", "edge"}

#: Package to the packages of ours it may import.
ALLOWED = {
    "kit": {"kit"},
    "kit/cli": {"kit", "jobs", "serve", "edge"},
    "jobs": {"kit", "jobs"},
    "serve": {"kit", "serve"},
    "edge": {"kit", "edge"},
}

#: The device core: what runs on a device, on the standard library and what is named here.
DEVICE_CORE = {
    "kit.archive": {"numpy", "cryptography"},
    "kit.arithmetic": {"numpy"},
    "kit.bundle": {"numpy", "cryptography"},
    "kit.cells": {"numpy"},
    "kit.child": set(),
    "kit.delta": {"numpy", "bsdiff4"},  # bsdiff4 where deltas are made, never on a device
    "kit.engines": {"numpy"},
    "kit.engines.litert": {"numpy", "ai_edge_litert", "tflite_runtime"},
    "kit.engines.onnxruntime": {"numpy", "onnxruntime"},
    "kit.engines.openvino": {"numpy", "openvino"},
    "kit.engines.tensorrt": {"numpy", "tensorrt"},
    "kit.envelope": {"cryptography"},
    "kit.errors": set(),
    "kit.files": set(),
    "kit.gauge": {"numpy"},
    "kit.golden": {"numpy"},
    "kit.inference": set(),
    "kit.inference.asking": {"numpy"},
    "kit.inference.binary": {"numpy"},
    "kit.inference.body": set(),
    "kit.inference.card": set(),
    "kit.inference.compression": set(),
    "kit.inference.errors": set(),
    "kit.inference.failures": set(),
    "kit.inference.finite": {"numpy"},
    "kit.inference.health": set(),
    "kit.inference.metadata": set(),
    "kit.inference.paths": set(),
    "kit.inference.plan": {"numpy"},
    "kit.inference.request": set(),
    "kit.inference.rest": {"numpy"},
    "kit.keypair": {"cryptography"},
    "kit.keyring": {"cryptography"},
    "kit.machine": set(),
    "kit.observed": {"numpy"},
    "kit.operations": {"numpy"},
    "kit.override": {"cryptography"},
    "kit.paper": {"cryptography"},
    "kit.power": set(),
    "kit.profile": {"numpy"},
    "kit.runner": {"numpy"},
    "kit.seal": {"cryptography"},
    "kit.signature": {"numpy"},
    "kit.signing": {"cryptography"},
    "kit.steps": {"numpy"},
    "kit.tensors": {"numpy"},
    "kit.wire": {"numpy"},
}

#: What a module of the agent imports where it is installed, besides.
OPTIONAL = {"edge.agent.pulling.notices": {"paho"}}

#: What `kit --help` must not wait for; imported inside functions in kit and edge.
HEAVY = {
    *("ray", "torch", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "litert_torch", "jax"),
    *("ai_edge_litert", "ai_edge_quantizer", "pandas", "pyarrow", "sklearn", "skl2onnx", "matplotlib"),
    *("boto3", "botocore", "httpx", "jinja2", "rich", "scipy", "PIL", "optuna", "mlflow", "shap"),
    *("lightgbm", "xgboost", "onnxmltools", "torch_pruning", "starlette", "uvicorn"),
}

FILES = sorted(
    path
    for package in OURS
    for path in (ROOT / package).rglob("*.py")
    if "templates" not in path.relative_to(ROOT).parts
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, *, module: str, at_top: bool = False) -> Iterator[str]:
    """Give the modules a piece of code imports; those for type checkers alone are left out."""
    for child in ast.iter_child_nodes(node):
        if typing_only(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module} has a relative import"
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield (
                    name if (ROOT / name.replace(".", "/")).with_suffix(".py").exists() else str(child.module)
                )
        elif not (at_top and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            yield from imports(child, module=module, at_top=at_top)


def found(path: Path, *, at_top: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return set(imports(tree, module=module_of(path), at_top=at_top))


def top(name: str) -> str:
    return name.partition(".")[0]


def ids(path: Path) -> str:
    return module_of(path)


def test_a_package_sees_only_what_it_may() -> None:
    for path in FILES:
        package = "kit/cli" if path.is_relative_to(ROOT / "kit" / "cli") else top(module_of(path))
        if path == ROOT / "kit" / "__main__.py":
            package = "kit/cli"  # python -m kit is the command line
        names = found(path)
        assert {top(name) for name in names} & OURS <= ALLOWED[package], ids(path)
        if package == "kit":
            assert not {name for name in names if name.startswith("kit.cli")}, ids(path)


DEVICE_FILES = [
    path for path in FILES if module_of(path) in DEVICE_CORE or path.is_relative_to(ROOT / "edge" / "agent")
]


@pytest.mark.parametrize("path", DEVICE_FILES, ids=ids)
def test_what_runs_on_a_device_sees_the_device_core_alone(path: Path) -> None:
    more = (DEVICE_CORE | OPTIONAL).get(module_of(path), {"numpy", "cryptography"})
    for name in found(path):
        if top(name) in OURS:
            assert name in DEVICE_CORE or name == "kit" or name.startswith("edge.agent"), name
        else:
            assert top(name) in sys.stdlib_module_names or top(name) in more, name


def test_the_device_core_is_all_there() -> None:
    assert set(DEVICE_CORE) <= {module_of(path) for path in FILES}


# An engine's module is imported when that engine is opened.
ENGINES = [path for path in FILES if path.parent == ROOT / "kit" / "engines" and path.name != "__init__.py"]
LIGHT = [path for path in FILES if top(module_of(path)) in ("kit", "edge") and path not in ENGINES]


def test_nothing_heavy_is_imported_at_the_top() -> None:
    for path in LIGHT:
        assert not {top(name) for name in found(path, at_top=True)} & HEAVY, ids(path)


def test_jobs_import_torch_where_it_is_needed() -> None:
    slow = HEAVY & {"torch", "ray", "optuna", "mlflow", "shap", "lightgbm", "xgboost", "torch_pruning"}
    for path in (path for path in FILES if top(module_of(path)) == "jobs"):
        assert not {top(name) for name in found(path, at_top=True)} & slow, ids(path)
