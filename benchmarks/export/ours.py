"""What `kit export` makes of a version: its bundles, opened as a device opens them; and how long it takes."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subjects import Subject

from edge.bundling.parts import unpack_bundle
from edge.export import TargetResult, export
from edge.targets import TARGETS, find_target
from kit.engines import Engine
from kit.errors import KitError
from kit.runner import Runner
from kit.settings import ExportSettings

TARGET_NAMES = ("litert-int8", "litert-int8-linear", "openvino-int8", "onnx-int8")
"""What is compared with the others' defaults."""


@dataclass(frozen=True)
class Bundle:
    """What an export gave for one target.

    Attributes:
        target: Its name.
        result: Its figures and its ladder; None where the export refused the model as a whole.
        reason: Why there is no bundle; empty when there is.
        model_bytes: Size of the model files in it.
        folder: Its content, unpacked and verified; None where there is no bundle.
    """

    target: str
    result: TargetResult | None
    reason: str
    model_bytes: int = 0
    folder: Path | None = None

    def open(self) -> Engine:
        """Load the bundle's network into its engine, on one thread."""
        assert self.folder is not None
        return Runner.open(self.folder, threads=1).engine

    @property
    def ladder(self) -> list[dict[str, Any]]:
        """What was tried, in order, and what was wrong with it."""
        rungs = () if self.result is None else self.result.ladder
        return [
            {
                "recipe": rung.recipe.name,
                "says": rung.recipe.says,
                "output_error": rung.figures and rung.figures.comparison.output_error,
                "slowdown": rung.figures and rung.figures.slowdown,
                "kept": list(rung.kept),
                "reason": rung.reason,
            }
            for rung in rungs
        ]


def export_bundles(subject: Subject, targets: list[str], *, folder: Path) -> dict[str, Bundle]:
    """Export with the project's own settings, and open every bundle.

    Args:
        subject: What is exported.
        targets: Names of targets.
        folder: Where bundles and their content go; emptied by the caller.
    """
    given = {"model": subject.name, "target": tuple(targets), "output": str(folder)}
    settings = subject.project.command("export", ExportSettings, given)
    try:
        report = export(subject.project, settings)
    except KitError as error:
        return {name: Bundle(name, None, error.message) for name in targets}
    return {result.target: _opened(subject, result, folder) for result in report.targets}


def _opened(subject: Subject, result: TargetResult, folder: Path) -> Bundle:
    if result.bundle is None:
        return Bundle(result.target, result, f"not written: {result.reason}")
    place = folder / result.target
    unpack_bundle(result.bundle, folder=place, trusted=subject.project.trusted())
    n_bytes = sum((place / name).stat().st_size for name in find_target(result.target).files)
    return Bundle(result.target, result, "", n_bytes, place)


def time_command(subject: Subject, *, folder: Path) -> dict[str, Any]:
    """Time `kit export` for every target of a CPU, as a user runs it, from an empty process.

    Args:
        subject: What is exported.
        folder: Where bundles go.
    """
    targets = [target.name for target in TARGETS.values() if not target.gpu]
    words = ["export", subject.name, f"--project={subject.project.folder}", f"--output={folder}"]
    words += [word for name in targets for word in ("--target", name)]
    began_s = time.perf_counter()
    ran = subprocess.run([sys.executable, "-m", "kit", *words], capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - began_s
    written = {path.name for path in folder.glob("*.bundle")}
    return {
        "targets": len(targets),
        "bundles": len(written),
        "wall_s": wall_s,
        "exit_code": ran.returncode,
        "said": ran.stderr.strip().splitlines()[-1:] if ran.returncode else [],
    }
