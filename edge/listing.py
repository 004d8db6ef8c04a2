"""What this machine can build and run: the table behind ``kit export --list``."""

from __future__ import annotations

from dataclasses import dataclass

from edge.recipes import Target
from edge.targets import TARGETS, is_installed, runs_here
from kit.errors import install_line
from kit.settings import ExportSettings


@dataclass(frozen=True)
class TargetEntry:
    """One target.

    Attributes:
        name: What ``--target`` calls it.
        builds: Whether its files can be made here.
        runs: Whether they can be run here.
        why: What is missing, and how to get it; empty when nothing is.
        files: Its model files.
        recipes: The recipes it tries, in order.
    """

    name: str
    builds: bool
    runs: bool
    why: str
    files: tuple[str, ...]
    recipes: tuple[str, ...]


@dataclass(frozen=True)
class TargetList:
    """All targets, in the order of the table."""

    targets: tuple[TargetEntry, ...]


def list_targets(settings: ExportSettings | None = None) -> TargetList:
    """Look at what is installed here, importing none of it.

    Args:
        settings: Those of the command, which do not matter to it.
    """
    del settings
    return TargetList(tuple(_entry(target) for target in TARGETS.values()))


def runnable() -> tuple[str, ...]:
    """Name every target that can be built and run here."""
    return tuple(entry.name for entry in list_targets().targets if entry.builds and entry.runs)


def _entry(target: Target) -> TargetEntry:
    absent = [name for name in target.builders if not is_installed(name)]
    runs = runs_here(target)
    reasons = [f"to build: {', '.join(absent)} ({install_line('export')})"] if absent else []
    if not runs:
        what = "an NVIDIA GPU and tensorrt" if target.gpu else target.runtimes[0]
        reasons.append(f"to run: {what} ({install_line(target.extra)})")
    recipes = tuple(recipe.name for recipe in target.ladder)
    return TargetEntry(target.name, not absent, runs, "; ".join(reasons), target.files, recipes)
