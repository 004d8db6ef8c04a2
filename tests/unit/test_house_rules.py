"""Rules of the house that no linter we use can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for package in ("kit", "jobs", "serve", "edge")
    for path in (ROOT / package).rglob("*.py")
    if "templates" not in path.relative_to(ROOT).parts
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FUNCTION_LINES = 60
_WAIVER = re.compile(r"#\s*(noqa|type:\s*ignore)(?P<code>[:\[]\s*[\w,\-\s]+\]?)?(?P<reason>.*)$")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def n_lines(function: Function) -> int:
    """Count a function's lines without its docstring."""
    first = function.body[0]
    docstring = ast.get_docstring(function, clean=False) is not None
    n_documentation = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - n_documentation


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_function_fits_on_a_screen(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = {each.name: n_lines(each) for each in functions(tree) if n_lines(each) > MAX_FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{ids(path)} does not say what it is"
    bare = []
    for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        private = isinstance(owner, ast.ClassDef) and owner.name.startswith("_")
        for node in owner.body:
            documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if documented and not private and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(node.name)
    assert not bare


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_broad_except_gives_its_reason(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if re.match(r"\s*except(\s*:|.*\b(Base)?Exception\b)", line):
            cleanup = "BaseException:" in line  # these clean up and raise again; checked below
            assert cleanup or re.search(r":\s+# \w+", line), f"{ids(path)}:{number} gives no reason"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_an_except_for_everything_raises_again_or_gives_its_reason(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        broad = (
            isinstance(node, ast.ExceptHandler) and node.type and ast.unparse(node.type) == "BaseException"
        )
        if broad and "#" not in source.splitlines()[node.lineno - 1]:
            assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node)), f"{ids(path)}:{node.lineno}"


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests" / "unit").glob("*.py"))], ids=ids)
def test_a_waiver_names_its_rule_and_reason(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        waiver = _WAIVER.search(line)
        if waiver is None or path == Path(__file__):
            continue
        assert waiver["code"], f"{ids(path)}:{number} waives every rule"
        assert re.search(r"\w{3}", waiver["code"] + waiver["reason"]), f"{ids(path)}:{number}"
        assert re.search(r"(#|-|\u2013)\s*\w", line[waiver.start() + 1 :]), (
            f"{ids(path)}:{number} gives no reason"
        )


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_is_left_for_later(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b", path.read_text(encoding="utf-8"))


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in TESTS if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
    assert not list((ROOT / "tests").rglob("__init__.py"))
