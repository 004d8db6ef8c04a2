"""Devices have old Pythons: what runs on one is written for 3.9, and what is not says so in a sentence."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
import vermin
from packaging.requirements import Requirement

from edge.flashing import onsite
from kit import cli
from tests.unit.test_imports import DEVICE_FILES, ROOT, ids

OLDEST = (3, 9)
FILES = [*DEVICE_FILES, Path(onsite.__file__), ROOT / "kit/cli/__init__.py", ROOT / "kit/cli/commands.py"]
#: What stands on either side of ``|`` in a union, and nowhere else.
UNION = {"None", "bool", "bytes", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple", "type"}


def oldest_for(source: str) -> tuple[int, int]:
    """Give the oldest Python whose syntax and library have what a file uses."""
    config = vermin.Config()
    config.set_eval_annotations(False)
    # Before them the file stays as it is: a quoted or postponed annotation is never computed.
    tree = ast.parse(source)
    postponed = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and node.names[0].name == "annotations"
        for node in tree.body
    )
    needed = vermin.visit(source, config).minimum_versions()[1] or (3, 0)
    unions = _unions(tree, annotations=not postponed)
    return max(needed, (3, 10) if unions else (3, 0))


def _unions(node: ast.AST, *, annotations: bool) -> bool:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") and not annotations:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.BinOp) and isinstance(child.op, ast.BitOr):
                sides = {ast.unparse(child.left), ast.unparse(child.right)}
                if sides & UNION:
                    return True
            if isinstance(child, ast.AST) and _unions(child, annotations=annotations):
                return True
    return False


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_what_runs_on_a_device_runs_on_python_3_9(path: Path) -> None:
    assert oldest_for(path.read_text(encoding="utf-8")) <= OLDEST


@pytest.mark.parametrize(
    "source",
    [
        "match x:\n    case 1: pass",
        "zip(a, b, strict=True)",
        "from dataclasses import dataclass\n@dataclass(slots=True)\nclass A: pass",
        "import tomllib",
        "Either = int | None",
        "def f(x: int | None): ...",
        "from typing import TypeAlias",
        "from itertools import pairwise",
        "with (open(a) as b, open(c) as d): pass\nmatch = aiter(x)",
    ],
)
def test_what_is_newer_than_that_is_seen(source: str) -> None:
    assert oldest_for(source) > OLDEST


def test_the_commands_say_in_one_sentence_which_python_they_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "OLDEST_PYTHON", (sys.version_info[0], sys.version_info[1] + 1))
    assert cli.main(["doctor"]) == 8
    said = capsys.readouterr().err
    assert said.startswith("kit: kit doctor needs Python 3.11 to 3.13; this is 3.")
    assert "python -m edge.agent" in said
    assert cli.main(["--version"]) == 0  # what needs no settings answers everywhere


def test_an_old_python_gets_an_engine_and_nothing_that_is_too_new_for_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.9,<3.14"

    def wanted(extra: str, python: str) -> list[str]:
        needs = map(Requirement, project["optional-dependencies"][extra])
        here = {"python_version": python, "sys_platform": "linux"}
        return [need.name for need in needs if need.marker is None or need.marker.evaluate(here)]

    assert wanted("litert", "3.9") == ["tflite-runtime", "numpy"]
    assert wanted("litert", "3.10") == ["ai-edge-litert"]
    assert wanted("openvino", "3.9") == wanted("openvino", "3.13") == ["openvino"]
    for extra in ("cluster", "export", "boosting", "explain", "fleet", "mlflow", "redis", "dev"):
        assert not wanted(extra, "3.10"), extra
        assert len(wanted(extra, "3.11")) == len(project["optional-dependencies"][extra]), extra
