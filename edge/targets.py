"""The targets a model can be exported for. A new one is a row in the table, and perhaps a converter.

Nothing here converts or runs anything, and nothing heavy is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from edge.core import Converter
from edge.recipes import (
    CLIPPED,
    FLOAT16,
    FLOAT32,
    INT8,
    KEPT,
    LINEAR,
    LITERT,
    ONNX,
    OPENVINO,
    PRODUCTS,
    TENSORRT,
    Recipe,
    Target,
    narrow,
)
from kit.errors import MissingDependencyError, NotFoundError, install_line, nearest

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        LITERT.target("int8", INT8, CLIPPED, *KEPT, LINEAR, faster=True),
        LITERT.target("int8-linear", LINEAR, faster=True),
        LITERT.target("int16x8", Recipe("int16x8", activations="int16")),
        LITERT.target("float16", FLOAT16),
        LITERT.target("float32", FLOAT32),
        OPENVINO.target(
            "int8",
            *(INT8, Recipe("int8-smooth", smooth=True), CLIPPED, *KEPT),
            *(Recipe("int8-controlled", controlled=True), Recipe("int8-linear", scope="linear")),
            Recipe("int8-weights", activations="float32"),
            faster=True,
        ),
        OPENVINO.target("float16", FLOAT16),
        ONNX.target("int8", *narrow(INT8, PRODUCTS, CLIPPED, *KEPT, LINEAR), faster=True),
        ONNX.target("float16", FLOAT16),
        ONNX.target("float32", FLOAT32),
        TENSORRT.target("fp16", Recipe("fp16", weights="float16", activations="float32"), faster=True),
        TENSORRT.target("int8", INT8, CLIPPED, *KEPT, faster=True),
    )
}
"""Name to target."""

MACHINES = ("aarch64", "x86_64")
"""Processors, as Linux names them, that every engine has wheels for: 64 bits."""

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def find_target(name: str) -> Target:
    """Look a target up.

    Raises:
        NotFoundError: There is none of this name.
    """
    if name not in TARGETS:
        raise NotFoundError(f"there is no target {name!r}", hint=nearest(name, TARGETS))
    return TARGETS[name]


def runs_here(target: Target) -> bool:
    """Say whether this machine has a runtime for a target, and the GPU it may need."""
    if target.gpu and not _NVIDIA_DRIVER.exists():
        return False
    return any(map(is_installed, target.runtimes))


def lacks(target: Target) -> str:
    """Say in a few words why a target cannot be built and run here; empty when it can.

    A target for a GPU can be built without one: what runs it stays on the device.
    """
    absent = [name for name in target.builders if not is_installed(name)]
    if absent:
        return f"{', '.join(absent)} not installed"
    if not target.gpu and not runs_here(target):
        return f"{target.runtimes[0]} not installed"
    return ""


def is_installed(name: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module of that name stands in sys.modules without a spec
        return False


def require_packages(targets: Sequence[Target]) -> None:
    """Refuse to start when a converter or a runtime is missing.

    Raises:
        MissingDependencyError: Names the target and what it lacks.
    """
    for target in targets:
        reason = lacks(target)
        if reason:
            raise MissingDependencyError(
                f"target {target.name!r} cannot be built here: {reason}",
                hint=f"{install_line('export')}; `kit export --list` shows what this machine can build",
            )


def load_converter(target: Target) -> Converter:
    """Import a target's converter."""
    converter: Converter = importlib.import_module(target.converter)
    return converter
