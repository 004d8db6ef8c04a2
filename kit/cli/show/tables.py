"""What every result is shown with: JSON, tables, places, sizes, moments."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def to_json(result: Any) -> str:
    """Give any result as JSON text."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return json.dumps(plain(result), indent=2, ensure_ascii=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table; numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        right = bool(listed) and all(isinstance(row[index], (int, float, type(None))) for row in listed)
        made.add_column(heading, justify="right" if right else "left")
    for row in listed:
        made.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fold to
        console.width = 200
    if title:
        print(title)
    with console.capture() as captured:
        console.print(made)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def near(place: Path | str) -> str:
    """Show a place as a user would type it: relative where it lies below the current folder."""
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(place)


def kilobytes(size_bytes: int | None) -> float | None:
    """Give a size in kB, with one decimal."""
    return None if size_bytes is None else round(size_bytes / 1000, 1)


def when(at_ns: int) -> str:
    """Write a moment (Unix time in ns) in UTC."""
    return datetime.datetime.fromtimestamp(at_ns / 1e9, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
