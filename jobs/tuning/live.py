"""What is said while a study runs: a table that renews itself on a terminal, lines where there is none."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from jobs.tuning.study import Study, Trial

_log = logging.getLogger("kit")
_SUMMARY_S = 30.0
_REFRESH_S = 0.25
_ROWS = 12


class Live:
    """Shows a study while the block lasts.

    Args:
        study: Its trials.
        metric: What is compared.
        clock: Seconds that only grow.
    """

    def __init__(self, study: Study, *, metric: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.study, self.metric, self.clock = study, metric, clock
        self.said: dict[int, str] = {each.number: each.status for each in study.trials.values()}
        self.summed_s = self.drawn_s = clock()
        self.live: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the terminal out of copies: Ray Tune keeps one of whatever its callbacks know."""
        return {**self.__dict__, "live": None}

    def __enter__(self) -> Live:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live as RichLive

            self.live = RichLive(self._table(), console=Console(stderr=True), auto_refresh=False)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
            self.live.__exit__(kind, error, where)
            self.live = None  # what ends later is said in lines

    def show(self, trial: Trial) -> None:
        """Take note of a trial that has changed."""
        if self.live is not None:
            if self.clock() - self.drawn_s >= _REFRESH_S:
                self.drawn_s = self.clock()
                self.live.update(self._table(), refresh=True)
            return
        if trial.status != "running" and self.said.get(trial.number) != trial.status:
            self.said[trial.number] = trial.status
            _log.info("%s", line_of(trial, metric=self.metric))
        elif self.clock() - self.summed_s >= _SUMMARY_S:
            self.summed_s = self.clock()
            _log.info("%s", self._summary())

    def _summary(self) -> str:
        trials = self.study.trials.values()
        running = sum(each.status == "running" for each in trials)
        best = self.study.best
        said = f", best {best.value:.4f} (trial {best.number})" if best and best.value is not None else ""
        return f"{len(trials) - running} of {self.study.budget} trials ended, {running} running{said}"

    def _table(self) -> Any:
        from rich.table import Table

        trials = list(self.study.trials.values())
        names = list(trials[0].parameters) if trials else []
        table = Table(title=self._summary(), title_justify="left")
        for heading in ("trial", "status", "epoch", self.metric, *names):
            table.add_column(heading)
        running = [each for each in trials if each.status == "running"]
        ended = [each for each in trials if each.status != "running"]
        for each in [*ended[-max(_ROWS - len(running), 0) :], *running][-_ROWS:]:
            value = "-" if each.value is None else f"{each.value:.4f}"
            epoch = str(each.epochs[-1]["epoch"]) if each.epochs else "-"
            cells = (short(each.parameters.get(name)) for name in names)
            table.add_row(str(each.number), each.status, epoch, value, *cells)
        return table


def line_of(trial: Trial, *, metric: str) -> str:
    """Say in a line how a trial ended."""
    values = ", ".join(f"{name} {short(value)}" for name, value in trial.parameters.items())
    if trial.status == "failed":
        return f"trial {trial.number} failed: {trial.reason} ({values})"
    at = f" at epoch {trial.best_epoch} of {len(trial.epochs)}" if trial.epochs else ""
    value = "-" if trial.value is None else f"{trial.value:.4f}"
    return f"trial {trial.number} {trial.status}: {metric} {value}{at} ({values})"


def short(value: Any) -> str:
    """Write a value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
