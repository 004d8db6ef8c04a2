"""The compression section: each run's version before and after, and whether it paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kit.report.records.making import CompressRecord

_MAX_RUNS = 12


@dataclass(frozen=True)
class Compressed:
    """One run as it is shown.

    Attributes:
        run: The record.
        metrics: Metrics that were measured before or after: name, before, after.
        int8_metrics: Likewise, after a plain conversion to INT8.
    """

    run: CompressRecord
    metrics: tuple[tuple[str, float | None, float | None], ...]
    int8_metrics: tuple[tuple[str, float | None, float | None], ...]


@dataclass(frozen=True)
class Compression:
    """The newest runs, and how many are left out."""

    runs: tuple[Compressed, ...]
    n_more_runs: int


def compression(runs: tuple[CompressRecord, ...]) -> Compression | None:
    """Show every run, the newest first."""
    if not runs:
        return None
    shown = tuple(
        Compressed(
            run,
            _beside(run.before.metrics, run.after.metrics),
            _beside(run.before.int8_metrics, run.after.int8_metrics),
        )
        for run in runs[:_MAX_RUNS]
    )
    return Compression(shown, max(len(runs) - _MAX_RUNS, 0))


def _beside(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> tuple[tuple[str, float | None, float | None], ...]:
    return tuple((name, before.get(name), after.get(name)) for name in sorted({*before, *after}))
