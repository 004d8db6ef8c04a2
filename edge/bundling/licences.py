"""The licences that come with a bundle, as text: the model's own, and those of what runs and made it.

The bundle holds none of these packages; whoever installs a device has to know their licences all the same.
It reads metadata and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edge.bundling.packages import KIT, Package, find_package, with_requirements

NAME = "licenses.txt"
"""What it is called in a bundle."""

#: What the agent on a device imports besides the engine.
_AGENT = (KIT, "cryptography", "numpy")
_UNKNOWN = "NOASSERTION"  # SPDX for: nobody has said


def licences(manifest: Mapping[str, Any], *, licence: str) -> str:
    """Write down the licences of a bundle.

    Args:
        manifest: The bundle's manifest.json.
        licence: The model's own; empty where none is stated.

    Returns:
        The text; it depends on the arguments and on the packages installed here.
    """
    needed = manifest["requirements"]["packages"]
    runs = {package.name: package for package in with_requirements((*_AGENT, *needed))}
    made = [find_package(name, version=said) for name, said in sorted(manifest["toolchain"].items())]
    ranges = {find_package(name).name: said for name, said in needed.items()}
    title = f"Licences of {manifest['name']} for {manifest['target']}, release {manifest['release']}"
    parts = [
        title,
        "=" * len(title),
        "",
        *_heading("The model"),
        licence.strip() or "no licence was stated for the model",
        "",
        *_heading("What runs it on a device"),
        "None of these packages is in the bundle. The versions are those on the machine that made it, or the",
        f"range a device may have where one was not installed there. {_alternatives(ranges)}",
        "",
        *_rows(runs.values(), ranges=ranges),
        "",
        *_heading("What it was made with"),
        *_rows(made, ranges={}),
    ]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def absent_licences(text: str, *, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the packages of a manifest that a text of licences does not speak of."""
    spoken_of = {line.partition(" ")[0] for line in text.splitlines()}
    names = [
        find_package(name).name for name in (*manifest["requirements"]["packages"], *manifest["toolchain"])
    ]
    return tuple(name for name in dict.fromkeys(names) if name not in spoken_of)


def _heading(words: str) -> tuple[str, str]:
    return words, "-" * len(words)


def _alternatives(ranges: Mapping[str, str]) -> str:
    return f"One of {', '.join(sorted(ranges))} is enough." if len(ranges) > 1 else ""


def _rows(packages: Iterable[Package], *, ranges: Mapping[str, str]) -> list[str]:
    cells = [
        (
            package.name,
            package.version or ranges.get(package.name, "-"),
            package.spdx or f"{_UNKNOWN} {f'({package.licence})' if package.licence else ''}",
        )
        for package in packages
    ]
    names, versions = (max((len(row[column]) for row in cells), default=0) for column in (0, 1))
    return [f"{name:{names}}  {version:{versions}}  {spdx}" for name, version, spdx in cells]
