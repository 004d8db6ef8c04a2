"""Other runtimes: whether a bundle answers rightly in another interpreter, or refuses there as it must.

The agent of an old device runs with packages of its own (tflite-runtime 2.14 and numpy 1, say). A file that
is loaded there and answers wrongly is worse than one that is refused. It knows no recipes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.errors import InputError, KitError, MissingDependencyError, ModelError
from kit.gauge import gauge_in_child

_CALLS = 10


@dataclass(frozen=True)
class Verified:
    """What another interpreter made of a bundle.

    Attributes:
        python: The interpreter.
        runtime: Package and version that ran it; empty where nothing did.
        fault: What is wrong with the bundle, or with what it claims; empty when nothing is.
        note: What it said; empty when the golden rows hold.
    """

    python: Path
    runtime: str
    fault: str
    note: str


def require_interpreters(pythons: Sequence[str]) -> None:
    """Refuse interpreters that are none, or have no kit.

    Raises:
        InputError: A path names no file, or what it names cannot import what measures a bundle.
    """
    for python in pythons:
        if not Path(python).is_file():
            raise InputError(
                f"verify_with names {python}, which is no file",
                hint="name the python of an environment that holds the kit and a runtime",
            )
        tried = subprocess.run(
            [python, "-c", "import kit.gauge"], cwd="/", capture_output=True, text=True, check=False
        )
        if tried.returncode:
            last = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(
                f"verify_with names {python}, which cannot import the kit: {last[:200]}",
                hint="install the kit and a runtime into that environment",
            )


def verify_elsewhere(folder: Path, *, python: Path, ranges: Mapping[str, str], threads: int) -> Verified:
    """Ask a bundle's golden rows in another interpreter; one without the bundle's engine cannot say.

    Args:
        folder: The unpacked bundle, verified.
        python: An interpreter that can import the kit.
        ranges: Package to versions the bundle claims to run on.
        threads: Threads of its engine.
    """
    try:
        gauge = gauge_in_child(folder, threads=threads, n_calls=_CALLS, python=python)
    except MissingDependencyError as error:  # an environment of another engine
        return Verified(python, "", "", f"not run with {python}: {error.message}")
    except ModelError as error:
        said = f"in {python} {error.message}"
        return Verified(python, "", said, said)
    except KitError as error:
        return _refused(python, error.message, ranges)
    runtime = f"{gauge.runtime} {gauge.runtime_version}"
    if gauge.golden_passed:
        return Verified(python, runtime, "", "")
    said = f"{runtime} loads it and answers wrongly: {gauge.golden_reason}"
    return Verified(python, runtime, said, said)


def _refused(python: Path, said: str, ranges: Mapping[str, str]) -> Verified:
    """A refusal is a fault only where the bundle claims to run."""
    package, reason = _runtime_of(python), said.splitlines()[0]
    if package in ranges:
        fault = f"{package} in {python} refuses it, although it claims {ranges[package]}: {reason}"
        return Verified(python, "", fault, fault)
    return Verified(python, "", "", f"{package or python} refuses it, as it must: {reason}")


def _runtime_of(python: Path) -> str:
    """Name the LiteRT package of an interpreter by what lies beside it."""
    places = (python.parent.parent / "lib").glob("python*/site-packages")
    names = {path.name for place in places for path in place.glob("*")}
    if "ai_edge_litert" in names:
        return "ai-edge-litert"
    if "tflite_runtime" in names:
        return "tflite-runtime"
    return next((name for name in ("openvino", "onnxruntime") if name in names), "")
