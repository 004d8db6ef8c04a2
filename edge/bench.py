"""Bench: measure a bundle again on this machine, and lay the figures beside those of another.

The file it writes holds one gauge (``kit.gauge``), as the agent's ``bench`` prints it on a device, so any two
machines can be compared. It knows nothing of budgets; what a bundle may cost is for ``edge.export`` to say.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge.bundling.parts import unpack_bundle
from kit.errors import ConflictError, GateError, InputError, SettingsError, VerificationError
from kit.files import canonical_json, read_json, write_atomic
from kit.gauge import Gauge, gauge_in_child
from kit.project import Project
from kit.settings import BenchSettings

#: What is compared: a heading, and the figure's name in a gauge.
_FIGURES = (
    ("load, s", "load_s"),
    ("first answer, s", "first_answer_s"),
    ("one row, p50 ms", "p50_ms"),
    ("one row, p95 ms", "p95_ms"),
    ("one row, p99 ms", "p99_ms"),
    ("rows/s", "rows_per_s"),
    ("memory before, MB", "memory_before_mb"),
    ("memory loaded, MB", "memory_loaded_mb"),
    ("memory at most, MB", "memory_peak_mb"),
    ("power, W", "watts"),
    ("energy of a row, mJ", "millijoules_per_row"),
)


@dataclass(frozen=True)
class Figure:
    """One figure of a bundle, here and on another machine.

    Attributes:
        name: What it is, with its unit.
        here: On this machine; None where it was not measured.
        there: On the other one; None likewise, and where there is no other one.
        ratio: This machine's over the other's; None where either is missing or the other's is 0.
    """

    name: str
    here: float | None
    there: float | None
    ratio: float | None


@dataclass(frozen=True)
class BenchResult:
    """What a bundle showed on this machine.

    Attributes:
        bundle: The bundle's file.
        gauge: The figures.
        other: Those of the machine it is compared with; None when it is compared with none.
        figures: Both, side by side.
        file: The JSON that was written; None when none was asked for.
    """

    bundle: Path
    gauge: Gauge
    other: Gauge | None
    figures: tuple[Figure, ...]
    file: Path | None

    def require_passed(self) -> None:
        """Refuse figures of a bundle that answers wrongly here.

        Raises:
            GateError: Its golden rows are not within the bounds it was exported with.
        """
        if not self.gauge.golden_passed:
            raise GateError(
                f"{self.bundle.name} answers its golden rows wrongly on this machine: "
                f"{self.gauge.golden_reason}",
                hint="do not use it with this version of its runtime",
            )


def bench(project: Project, settings: BenchSettings) -> BenchResult:
    """Verify a bundle and measure it in a process of its own.

    Args:
        project: Whose keys must have signed the bundle.
        settings: The bundle, how to measure, and what to compare with.

    Returns:
        The figures; call ``require_passed`` on them.

    Raises:
        InputError: The bundle or the file to compare with cannot be read, or a runtime refuses the model.
        ConflictError: The file to compare with is about another bundle.
        VerificationError: The bundle does not hold, or no trusted key signed it.
        MissingDependencyError: The bundle's engine is not installed here.
        ModelError: The runtime crashed or hung.
        UnavailableError: The output cannot be written.
    """
    path = Path(project.locate(settings.bundle))
    output = _output_file(project, settings.output) if settings.output else None
    other = read_gauge(Path(project.locate(settings.compare))) if settings.compare else None
    with tempfile.TemporaryDirectory(prefix="kit-bench-") as scratch:
        folder = Path(scratch) / "bundle"
        try:
            opened = unpack_bundle(path, folder=folder, trusted=project.trusted())
        except VerificationError as error:  # the user knows the bundle, not where it was unpacked
            message = error.message.replace(str(folder), str(path))
            raise VerificationError(message, hint=error.hint) from error
        if other is not None and other.digest != opened.digest:
            raise ConflictError(
                f"{settings.compare} is about the bundle {other.digest[:12]} ({other.target}, release "
                f"{other.release}), not about {opened.digest[:12]}",
                hint="measure the same bundle on both machines",
            )
        found = gauge_in_child(folder, threads=settings.threads, n_calls=settings.calls)
    if output is not None:
        write_atomic(output, canonical_json(found.to_json()))
    return BenchResult(path, found, other, compare(found, other), output)


def _output_file(project: Project, output: str) -> Path:
    path = Path(project.locate(output))
    if "://" in output or path.is_dir():
        raise SettingsError(f"output = {output!r} is not a file", hint="name a file of this machine, *.json")
    return path


def read_gauge(path: Path) -> Gauge:
    """Read figures that ``kit bench --output`` or a device's agent has written.

    Raises:
        InputError: The file is absent, not JSON, or holds something else.
    """
    try:
        return Gauge.from_json(read_json(path))
    except InputError as error:
        hint = "name a file that `kit bench --output` or the agent's bench has written"
        message = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise InputError(message, hint=hint) from error


def compare(here: Gauge, there: Gauge | None) -> tuple[Figure, ...]:
    """Lay the figures of one bundle on two machines side by side.

    Args:
        here: Those of this machine.
        there: Those of the other one; None when there is none.
    """
    found = []
    for name, key in _FIGURES:
        first, second = getattr(here, key), getattr(there, key, None)
        ratio = first / second if first is not None and second else None
        found.append(Figure(name, first, second, ratio))
    return tuple(found)
