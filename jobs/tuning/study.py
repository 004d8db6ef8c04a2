"""A study as its driver knows it: which trials there are, what each gave, and what is handed out next.

Every change is in the ledger before anything else happens, so that a driver killed at any moment is
followed by one that hands out what had been started, with the same values, and nothing that had ended.
It knows no Ray.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from jobs.tuning.ledger import Ledger
from jobs.tuning.space import Values
from jobs.tuning.telling import CURVE
from kit.errors import InputError

_log = logging.getLogger("kit")
MAX_DEATHS = 3
_NOTED_S = 10.0  # between two notes of the time a study has taken: what a kill can take from its budget
_KEPT = 3  # of the best: where the first cannot be exported, the next is taken

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: From 1, in the order of handing out.
        parameters: Its values, by name; a population's are those it had last.
        status: ``running`` until it has ended; ``stopped`` by the scheduler or the time budget, ``failed``
            for the ``reason``.
        reason: Why it was stopped or failed, in a sentence.
        value: Of the metric at its best epoch; None before the first.
        best_epoch: From 1; 0 before the first, and for an estimator.
        epochs: Figures of each epoch: ``epoch``, ``train_loss``, ``validation_loss`` and ``value``, the
            best of the metric so far.
        seconds: How long it ran.
        deaths: How often its process was killed.
    """

    number: int
    parameters: Values
    status: Status = "running"
    reason: str = ""
    value: float | None = None
    best_epoch: int = 0
    epochs: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    deaths: int = 0

    @classmethod
    def of(cls, record: Mapping[str, Any], *, names: Sequence[str]) -> Trial:
        """Read what ``asdict`` wrote.

        Args:
            record: As it lies in the ledger, whose files sort their keys.
            names: Of the parameters, in the order of the space.

        Raises:
            InputError: The record has other keys.
        """
        try:
            parameters = {name: record["parameters"][name] for name in names}
            return cls(**{**record, "parameters": parameters, "epochs": tuple(record["epochs"])})
        except (TypeError, KeyError) as error:
            raise InputError(
                f"the record of a trial cannot be read: {error}", hint="start the study anew: --no-resume"
            ) from error


@dataclass
class Study:
    """The trials of a study, and its ledger.

    Attributes:
        ledger: Where they are written down.
        budget: Most trials.
        mode: ``min`` or ``max``, of the metric.
        propose: Gives values for a new trial by its number; None when there are no more.
        told: Called with a trial after each change.
        concurrent: Trials handed out at a time; 0 is as many as are asked for.
        drained: Called once no trial runs, after one was killed and before another is handed out; None
            hands out at once.
        trials: By number.
    """

    ledger: Ledger
    budget: int
    mode: Literal["min", "max"]
    propose: Callable[[int], Values | None]
    told: Callable[[Trial], None] = lambda trial: None
    concurrent: int = 0
    drained: Callable[[], None] | None = None
    trials: dict[int, Trial] = field(default_factory=dict)
    _killed: bool = False
    _waiting: list[int] = field(default_factory=list)
    _began_s: dict[int, float] = field(default_factory=dict)
    _held: set[int] = field(default_factory=set)  # ended, their checkpoints still there
    _exhausted: bool = False

    def resume(self, records: Iterable[Mapping[str, Any]], *, names: Sequence[str]) -> None:
        """Take over what an earlier driver has written down; see ``Trial.of``."""
        read = (Trial.of(record, names=names) for record in records)
        self.trials = {trial.number: trial for trial in read}
        self._waiting = [each.number for each in self.trials.values() if each.status == "running"]
        self._held = {each.number for each in self.trials.values() if each.status != "running"}
        for number in self._waiting:  # an epoch is written down when its trial ends, but told to its curve
            kept = self.ledger.read_kept(number, CURVE)
            try:
                curve = json.loads(kept) if kept else []
            except ValueError:  # a power cut undid it; the trial tells its epochs again
                curve = []
            if curve:
                self.heard(number, {**curve[-1], "curve": curve}, parameters=self.trials[number].parameters)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to hand out and every trial has ended."""
        return self._spent and not self._waiting and not self._running

    @property
    def _spent(self) -> bool:
        return self._exhausted or len(self.trials) >= self.budget

    @property
    def _running(self) -> bool:
        return any(each.status == "running" for each in self.trials.values())

    def next_trial(self) -> Trial | None:
        """Hand out a trial: first those that were started, then a new one; None when there is none now."""
        if self.concurrent and len(self._began_s) >= self.concurrent:
            return None
        if self._killed and self.drained is not None:
            if self._began_s:
                return None
            self.drained()
            self._killed = False
        if self._waiting:
            trial = self.trials[self._waiting.pop(0)]
        elif self._spent:
            return None
        else:
            number = len(self.trials) + 1
            values = self.propose(number)
            if values is None:
                self._exhausted = True
                return None
            trial = Trial(number, values)
            self._keep(trial)
        self._began_s[trial.number] = time.monotonic()
        return trial

    def heard(self, number: int, figures: Mapping[str, Any], *, parameters: Values) -> None:
        """Note an epoch of a trial, unless it is known; it is written down when the trial ends.

        Args:
            number: Of the trial.
            figures: ``epoch``, ``train_loss``, ``validation_loss``, ``value`` and ``best_epoch``; with
                ``curve``, such figures of every epoch, which stand for all that was heard before.
            parameters: The values it has now; a population's change, and a change is written down.
        """
        trial = self.trials[number]
        if trial.status != "running":
            return
        kept = _point(figures)
        same = next((each for each in reversed(trial.epochs) if each["epoch"] <= kept["epoch"]), None)
        if kept == same and "curve" not in figures:  # told again: what followed it stands
            return
        before = [_point(each) for each in figures["curve"]] if "curve" in figures else trial.epochs
        changed = replace(
            trial,
            epochs=(*(each for each in before if each["epoch"] < kept["epoch"]), kept)
            if kept["epoch"]
            else (),
            value=kept["value"],
            best_epoch=int(figures.get("best_epoch", 0)),
            parameters=parameters,
        )
        if parameters != trial.parameters:
            self._keep(changed)
        else:
            self.trials[number] = changed
            self.told(changed)

    def end(self, number: int, status: Status, *, reason: str = "") -> None:
        """Note that a trial has ended; the first word on it counts."""
        trial = self.trials[number]
        if trial.status != "running":
            return
        if status != "failed" and trial.value is None:
            status, reason = "failed", reason or "it ended before its first epoch"
        self._keep(replace(trial, status=status, reason=reason, seconds=self._seconds(trial)))
        kept = {each.number for each in self.ranked[:_KEPT]}
        for loser in {number, *self._held} - kept:
            self.ledger.drop_checkpoint(loser)
        self._held = kept

    def reject(self, number: int, *, reason: str) -> None:
        """Note that a trial which has ended cannot be used after all."""
        self._keep(replace(self.trials[number], status="failed", reason=reason))

    def died(self, number: int, *, reason: str, own_fault: bool) -> None:
        """Note that a trial's process has ended without a word.

        Args:
            number: Of the trial.
            reason: In a sentence.
            own_fault: Whether the trial took too much memory; otherwise it goes on from its checkpoint, up
                to ``MAX_DEATHS`` times.
        """
        trial = self.trials[number]
        if trial.status != "running":
            return
        deaths, self._killed = trial.deaths + 1, True
        if own_fault:
            return self.end(number, "failed", reason=reason)
        if deaths > MAX_DEATHS:
            return self.end(number, "failed", reason=f"its process was killed {deaths} times")
        _log.warning("trial %d: %s; it goes on from its checkpoint", number, reason)
        self._keep(replace(trial, deaths=deaths, seconds=self._seconds(trial)))
        self._waiting.append(number)

    @property
    def best(self) -> Trial | None:
        """The trial with the best value, the first of equals; None when none has one."""
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Trials with a value, the best first; the checkpoints of the first few are kept."""
        counted = [
            each
            for each in self.trials.values()
            if each.status in ("finished", "stopped") and each.value is not None
        ]
        sign = 1 if self.mode == "min" else -1
        return tuple(sorted(counted, key=lambda each: (sign * (each.value or 0.0), each.number)))

    def _seconds(self, trial: Trial) -> float:
        began_s = self._began_s.pop(trial.number, None)
        spent_s = 0.0 if began_s is None else time.monotonic() - began_s
        return round(trial.seconds + spent_s, 3)

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self.ledger.write_trial(asdict(trial))
        self.told(trial)


class Clock:
    """Counts the seconds of all drivers of a study, and notes them in its ledger on the way.

    Args:
        ledger: Of the study.
        facts: Of the study; ``seconds`` is what earlier drivers took.
        now: Seconds that only grow.
    """

    def __init__(
        self, ledger: Ledger, facts: Mapping[str, Any], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.ledger, self.facts, self.now = ledger, facts, now
        self.began_s = now() - float(facts["seconds"])
        self.noted_s = self.seconds

    @property
    def seconds(self) -> float:
        """How long all drivers ran together, in seconds."""
        return round(self.now() - self.began_s, 3)

    def tick(self) -> None:
        """Note the time where the last note is some seconds old; called all the while a study runs."""
        if self.seconds - self.noted_s >= _NOTED_S:
            self.noted_s = self.seconds
            self.ledger.write_study({**self.facts, "seconds": self.noted_s})

    def left_s(self, budget_s: float | None) -> float | None:
        """Say what is left of a budget, 0 where it is spent; None without one."""
        return None if budget_s is None else max(budget_s - self.seconds, 0.0)


def _point(figures: Mapping[str, Any]) -> dict[str, Any]:
    names = ("train_loss", "validation_loss", "value")
    return {"epoch": int(figures["epoch"]), **{name: _finite(figures.get(name)) for name in names}}


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
