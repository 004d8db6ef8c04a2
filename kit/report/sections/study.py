"""The study section: the newest study's trials, what mattered, and how they learned."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kit.report.plots import bars
from kit.report.plots import study as plots
from kit.report.records.making import Trial, TuneRecord

_MAX_ROWS = 40
_MAX_FAILED = 15
_MAX_COLUMNS = 6
_LOGARITHMIC = ("log", "power_of_two")


@dataclass(frozen=True)
class Study:
    """The newest study as it is shown; every ``n_more`` says how many are left out."""

    run: TuneRecord
    runs: tuple[TuneRecord, ...]
    statuses: dict[str, int]
    names: tuple[str, ...]
    n_more_names: int
    trials: tuple[Trial, ...]
    n_more_trials: int
    failed: tuple[Trial, ...]
    n_more_failed: int
    parallel: str | None
    n_more_axes: int
    n_more_lines: int
    importance: str | None
    n_more_importance: int
    curves: str | None
    n_more_curves: int


def study(runs: tuple[TuneRecord, ...]) -> Study | None:
    """Show the newest study, and that there were others."""
    if not runs:
        return None
    run = runs[0]
    names = _names(run)
    order = sorted(run.trials, key=lambda trial: _rank(trial, run))
    failed = [trial for trial in run.trials if trial.status == "failed"]
    parallel, n_more_lines = _parallel(run, order, names[: plots.MAX_AXES])
    curves, n_more_curves = _curves(run, order)
    shares = sorted(run.importance.items(), key=lambda each: (-each[1], each[0]))
    drawn = None
    if shares:
        drawn = bars.importance(
            [(name, share, None) for name, share in shares[: bars.MAX_BARS]],
            x_label="share of the differences between trials",
            title="Importance of each parameter",
            name="study-importance",
        )
    return Study(
        run=run,
        runs=runs,
        statuses=dict(sorted(Counter(trial.status for trial in run.trials).items())),
        names=names[:_MAX_COLUMNS],
        n_more_names=max(len(names) - _MAX_COLUMNS, 0),
        trials=tuple(order[:_MAX_ROWS]),
        n_more_trials=max(len(order) - _MAX_ROWS, 0),
        failed=tuple(failed[:_MAX_FAILED]),
        n_more_failed=max(len(failed) - _MAX_FAILED, 0),
        parallel=parallel,
        n_more_axes=max(len(names) - plots.MAX_AXES, 0),
        n_more_lines=n_more_lines,
        importance=drawn,
        n_more_importance=max(len(shares) - bars.MAX_BARS, 0),
        curves=curves,
        n_more_curves=n_more_curves,
    )


def _names(run: TuneRecord) -> tuple[str, ...]:
    """Name the parameters that were tried, the most important first."""
    found = dict.fromkeys(name for trial in run.trials for name in trial.parameters)
    return tuple(sorted(found, key=lambda name: (-run.importance.get(name, 0.0), name)))


def _rank(trial: Trial, run: TuneRecord) -> tuple[bool, bool, float, int]:
    """Order trials: the best first, then by value, then those that failed or have none."""
    value = 0.0 if trial.value is None else trial.value
    worse = value if run.mode == "min" else -value
    last = trial.value is None or trial.status == "failed"
    return (trial.number != run.best, last, worse, trial.number)


def _parallel(run: TuneRecord, order: list[Trial], names: tuple[str, ...]) -> tuple[str | None, int]:
    lines = [
        plots.Line(trial.parameters, trial.value, best=trial.number == run.best)
        for trial in order
        if trial.value is not None and trial.status != "failed"
    ]
    if len(lines) < 2 or not names:
        return None, 0
    drawn = plots.parallel_coordinates(
        lines[: plots.MAX_TRIALS],
        names=names,
        logarithmic={each for each in names if each in run.space and run.space[each].kind in _LOGARITHMIC},
        metric=run.metric,
        lower_is_better=run.mode == "min",
        name="study-parallel",
    )
    return drawn, max(len(lines) - plots.MAX_TRIALS, 0)


def _curves(run: TuneRecord, order: list[Trial]) -> tuple[str | None, int]:
    curves = []
    for trial in order:
        known = [
            (each.epoch, each.validation_loss) for each in trial.epochs if each.validation_loss is not None
        ]
        if known:
            epochs, losses = [epoch for epoch, _ in known], [loss for _, loss in known]
            curves.append(plots.Curve(epochs, losses, trial.status, best=trial.number == run.best))
    if not curves:
        return None, 0
    drawn = plots.trial_curves(curves[: plots.MAX_TRIALS], name="study-curves")
    return drawn, max(len(curves) - plots.MAX_TRIALS, 0)
