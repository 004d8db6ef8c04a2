"""Commands shown in the documents are commands that exist, with flags that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kit.cli import build_parser
from kit.cli.commands import find_command

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def _commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    return re.findall(r"^\$ (kit .*?)(?: &)?(?: +#.*)?$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_a_page_shows_can_be_typed(page: Path) -> None:
    for line in _commands(page):
        for one in [shlex.split(part) for part in line.removeprefix("kit ").split("&& kit ")]:
            if one[0] == "--help":
                continue
            command = find_command(one[0])
            assert command is not None, line
            parsed = build_parser(command).parse_args(one[1 : one.index("--")] if "--" in one else one[1:])
            assert parsed is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_promise_in_the_readme_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) >= 8
    for file, function in named:
        assert (ROOT / file).is_file(), file
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), function
