"""The compression section: each run's version before and after, and whether it paid."""

from __future__ import annotations

from dataclasses import dataclass

from kit.report.records.making import CompressRecord

_MAX_RUNS = 12


@dataclass(frozen=True)
class Compressed:
    """One run as it is shown.

    Attributes:
        run: The record.
        metrics: Metrics that were measured before or after: name, before, after.
    """

    run: CompressRecord
    metrics: tuple[tuple[str, float | None, float | None], ...]


@dataclass(frozen=True)
class Compression:
    """The newest runs, and how many are left out."""

    runs: tuple[Compressed, ...]
    n_more_runs: int


def compression(runs: tuple[CompressRecord, ...]) -> Compression | None:
    """Show every run, the newest first."""
    if not runs:
        return None
    shown = tuple(Compressed(run, _metrics(run)) for run in runs[:_MAX_RUNS])
    return Compression(shown, max(len(runs) - _MAX_RUNS, 0))


def _metrics(run: CompressRecord) -> tuple[tuple[str, float | None, float | None], ...]:
    names = sorted({*run.before.metrics, *run.after.metrics})
    return tuple((name, run.before.metrics.get(name), run.after.metrics.get(name)) for name in names)
