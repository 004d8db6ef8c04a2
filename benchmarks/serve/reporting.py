"""Results: printed as tables, and kept as JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """What one part of the benchmark found.

    Attributes:
        name: Of its files.
        title: Its heading.
        facts: Everything, for JSON.
        text: Tables and sentences, in Markdown.
    """

    name: str
    title: str
    facts: dict[str, Any]
    text: str

    def write(self, folder: Path, *, options: dict[str, Any]) -> None:
        """Keep it as ``NAME.json`` and ``NAME.md``.

        Args:
            folder: Where results lie.
            options: Of the command line.
        """
        folder.mkdir(parents=True, exist_ok=True)
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        kept = {
            "part": self.name,
            "made_s": round(time.time()),
            "machine": machine,
            "load": os.getloadavg(),
            "options": {name: str(value) for name, value in options.items()},
            "facts": self.facts,
        }
        (folder / f"{self.name}.json").write_text(json.dumps(kept, indent=2) + "\n")
        (folder / f"{self.name}.md").write_text(f"### {self.title}\n\n{self.text}\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Write a figure with about three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
