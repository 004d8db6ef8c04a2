"""Rules of the house that no linter we use can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

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


SOURCES = {ids(path): path.read_text(encoding="utf-8") for path in FILES}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def test_a_function_fits_on_a_screen() -> None:
    assert not [
        f"{name}: {each.name} has {n_lines(each)} lines"
        for name, tree in TREES.items()
        for each in functions(tree)
        if n_lines(each) > MAX_FUNCTION_LINES
    ]


def test_everything_public_has_a_docstring() -> None:
    bare = [f"{name} does not say what it is" for name, tree in TREES.items() if not ast.get_docstring(tree)]
    for name, tree in TREES.items():
        for owner in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            private = isinstance(owner, ast.ClassDef) and owner.name.startswith("_")
            for node in owner.body:
                documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                public = documented and not private and not node.name.startswith("_")
                if public and not ast.get_docstring(node):
                    bare.append(f"{name}: {node.name}")
    assert not bare


def lines(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, source in sources.items():
        for number, line in enumerate(source.splitlines(), start=1):
            yield f"{name}:{number}", line


def test_a_broad_except_gives_its_reason() -> None:
    for place, line in lines(SOURCES):
        if re.match(r"\s*except(\s*:|.*\b(Base)?Exception\b)", line):
            cleanup = "BaseException:" in line  # these clean up and raise again; checked below
            assert cleanup or re.search(r":\s+# \w+", line), f"{place} gives no reason"


def test_an_except_for_everything_raises_again_or_gives_its_reason() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            broad = isinstance(node, ast.ExceptHandler) and node.type is not None
            if not broad or ast.unparse(node.type) != "BaseException":
                continue
            if "#" not in SOURCES[name].splitlines()[node.lineno - 1]:
                assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node)), f"{name}:{node.lineno}"


def test_a_waiver_names_its_rule_and_reason() -> None:
    tests = {
        ids(path): path.read_text(encoding="utf-8")
        for path in (ROOT / "tests" / "unit").glob("*.py")
        if path != Path(__file__)
    }
    for place, line in lines(SOURCES | tests):
        waiver = _WAIVER.search(line)
        if waiver is None:
            continue
        assert waiver["code"], f"{place} waives every rule"
        assert re.search(r"\w{3}", waiver["code"] + waiver["reason"]), place
        assert re.search(r"(#|-|\u2013)\s*\w", line[waiver.start() + 1 :]), f"{place} gives no reason"


def test_nothing_is_left_for_later() -> None:
    left = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
    assert not [place for place, line in lines(SOURCES) if left.search(line)]


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in TESTS if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
    assert not list((ROOT / "tests").rglob("__init__.py"))
