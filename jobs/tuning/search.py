"""What is tried next, and what is stopped early: Ray Tune's searchers and schedulers, led by our own study.

Ray's searchers propose; which trial is handed out, and that a started one keeps its values, is decided
by ``Study``.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.tuning.importance import decode, distribution, encode
from jobs.tuning.live import short
from jobs.tuning.space import Space, Values
from jobs.tuning.study import Study, Trial
from jobs.tuning.telling import RETOLD
from kit.settings import TuneSettings

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import SearchAlgorithm, Searcher

_log = logging.getLogger("kit")
_VALUE, _EPOCH = "value", "epoch"


def proposer(
    space: Space, settings: TuneSettings, *, mode: str
) -> tuple[Callable[[int], Values | None], Searcher | None]:
    """Choose how values are found.

    Args:
        space: What is varied.
        settings: Search and seed.
        mode: ``min`` or ``max``.

    Returns:
        A function from a trial's number to its values, and the searcher that has to hear of results, if
        one does.

    Raises:
        SettingsError: A grid of a range that has no finite list of values.
    """
    if settings.search == "grid":
        grid = space.grid()
        return lambda number: dict(grid[number - 1]) if number <= len(grid) else None, None
    if settings.search != "optuna":
        # The number seeds the draw, so a trial has the same values whoever hands it out.
        return lambda number: space.sample(np.random.default_rng([settings.seed, number])), None
    optuna = _Optuna(space, settings, mode=mode)
    return optuna.propose, optuna.searcher


class _Optuna:
    """Optuna's TPE through Ray's searcher; trials are known to it by their numbers."""

    def __init__(self, space: Space, settings: TuneSettings, *, mode: str) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.seed = space, settings.seed
        self.searcher = OptunaSearch(
            {each.name: distribution(each) for each in space.dimensions},
            metric=_VALUE,
            mode=mode,
        )

    def propose(self, number: int) -> Values:
        # Seeded anew for each number: a resumed study must not draw again what it drew at its start.
        import optuna

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        study: Any = self.searcher._ot_study
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        found = self.searcher.suggest(str(number)) or {}
        return {each.name: decode(each, found[each.name]) for each in self.space.dimensions}


def tell_ended(searcher: Searcher | None, space: Space, trial: Trial) -> None:
    """Tell a searcher of a trial that ended before this driver started."""
    if searcher is None:
        return
    parameters = {each.name: encode(each, trial.parameters[each.name]) for each in space.dimensions}
    failed = trial.status == "failed" or trial.value is None
    searcher.add_evaluated_point(parameters, trial.value or 0.0, error=failed)


def algorithm(study: Study, *, inner: Searcher | None, space: Space, mode: str) -> SearchAlgorithm:
    """Make what Ray Tune asks for trials: it hands out what the study hands out.

    Args:
        study: Decides.
        inner: Has to hear of results; None where nothing learns.
        space: What is varied.
        mode: ``min`` or ``max``.
    """
    from ray.tune.search import Searcher

    class Handing(Searcher):
        """Gives each of Ray's trials a number and values of the study."""

        def __init__(self) -> None:
            super().__init__(metric=_VALUE, mode=mode)
            self.numbers: dict[str, int] = {}
            self.known: set[int] = set()

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            waited = set(study.trials)
            trial = study.next_trial()
            if trial is None:
                return None
            self.numbers[trial_id] = trial.number
            if trial.number not in waited:
                self.known.add(trial.number)  # the inner searcher has proposed it in this process
            return {"number": trial.number, "values": dict(trial.parameters)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            pass

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            number = self.numbers.pop(trial_id, None)
            if inner is None or number is None or error:  # a process that was killed says nothing yet
                return
            value = (result or {}).get(_VALUE)
            if number in self.known:
                self.known.discard(number)
                found = {_VALUE: value} if value is not None else None
                inner.on_trial_complete(str(number), found, error=value is None)
            elif value is not None:
                parameters = study.trials[number].parameters
                encoded = {each.name: encode(each, parameters[each.name]) for each in space.dimensions}
                inner.add_evaluated_point(encoded, value)

        def save(self, checkpoint_path: str) -> None:
            pass  # the ledger is what is kept

        def restore(self, checkpoint_path: str) -> None:
            pass

    return _generator(study, Handing())


def _generator(study: Study, searcher: Searcher) -> SearchAlgorithm:
    from ray.tune.search.search_generator import SearchGenerator

    class Generator(SearchGenerator):
        """Ends when the study has ended: a killed trial may have to be handed out again after the last."""

        def is_finished(self) -> bool:
            return bool(self._finished) or study.ended

        def save_to_dir(self, dirpath: str, *session: Any, **more: Any) -> None:
            pass

    return Generator(searcher)


def scheduler(
    settings: TuneSettings,
    *,
    mode: str,
    max_epochs: int,
    space: Space,
    trials: Mapping[int, Trial],
    ask: Callable[[int], object] | None = None,
) -> TrialScheduler:
    """Make what stops or changes trials on the way; what is told again fills its books and stops nobody.

    Args:
        settings: Scheduler, grace, reduction, perturbation.
        mode: ``min`` or ``max``.
        max_epochs: Most epochs of any trial.
        space: What a population mutates.
        trials: Those that ended before this driver started; their curves are told first.
        ask: Asks the trial of a number to end by itself; None lets Ray end it.
    """
    from ray.tune.schedulers import (
        AsyncHyperBandScheduler,
        FIFOScheduler,
        MedianStoppingRule,
    )

    made: TrialScheduler
    if settings.search == "pbt":
        return _population(settings, mode=mode, max_epochs=max_epochs, space=space)
    if settings.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    if settings.scheduler == "asha":
        made = AsyncHyperBandScheduler(
            time_attr=_EPOCH,
            metric=_VALUE,
            mode=mode,
            # One more than there are: a trial ends its last epoch by itself, and says so.
            max_t=max(max_epochs, settings.grace_epochs) + 1,
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        )
    else:
        made = MedianStoppingRule(
            time_attr=_EPOCH,
            metric=_VALUE,
            mode=mode,
            grace_period=settings.grace_epochs,
            min_time_slice=float("inf"),  # type: ignore[arg-type]  # never pause a trial for another
        )
    _judge_once(made, ask=ask)
    for trial in trials.values():
        _tell_curve(made, trial)
    return made


def _population(settings: TuneSettings, *, mode: str, max_epochs: int, space: Space) -> TrialScheduler:
    """Make what has the worst of a population go on from the weights of the best, with other values."""
    from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

    draws = np.random.default_rng([settings.seed, 0])
    random.seed(settings.seed)  # Ray draws the donor from Python's own generator

    def explore(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "values": mutated(space, config["values"], draws)}

    class Population(PopulationBasedTraining):
        """Takes trials from our searcher, which chooses their first values and nothing after."""

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(_Nobody(), trial)  # type: ignore[arg-type]  # asked for its searcher alone

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result.get(_EPOCH, 0) >= max_epochs:  # there is no epoch left for other values
                return TrialScheduler.CONTINUE
            return super().on_trial_result(tune_controller, trial, result)

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            """Take over the other's values, and stay the trial that one is."""
            config, operations = super()._get_new_config(trial, trial_to_clone)
            number, other = trial.config["number"], trial_to_clone.config["number"]
            values = ", ".join(f"{name} {short(value)}" for name, value in config["values"].items())
            _log.info("trial %d goes on from the weights of trial %d: %s", number, other, values)
            return {**config, "number": number}, operations

    return Population(
        time_attr=_EPOCH,
        metric=_VALUE,
        mode=mode,
        perturbation_interval=settings.perturb_epochs,
        custom_explore_fn=explore,
        log_config=False,
        require_attrs=False,
    )


def _judge_once(made: TrialScheduler, *, ask: Callable[[int], object] | None) -> None:
    """Have a scheduler judge each epoch of a trial once, and a trial that is to end never again."""
    from ray.tune.schedulers import TrialScheduler

    decide = made.on_trial_result
    asked: set[str] = set()

    def on_trial_result(controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.trial_id in asked or result.get("ended"):  # its end brings no epoch that was not told
            return TrialScheduler.CONTINUE
        decision = decide(controller, trial, result)
        if decision != TrialScheduler.STOP:
            return decision
        if result.get(RETOLD):  # those it is held against now had not come so far when it passed
            # The median rule would refuse its next epoch.
            getattr(made, "_stopped_trials", set()).discard(trial)
            return TrialScheduler.CONTINUE
        if ask is None:
            return decision
        asked.add(trial.trial_id)
        ask(int(trial.config["number"]))
        return TrialScheduler.CONTINUE

    vars(made)["on_trial_result"] = on_trial_result


class _Ended:
    """Stands for a trial of an earlier driver in a scheduler's books."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"ended-{number:04d}"


def _tell_curve(made: Any, trial: Trial) -> None:
    ended = _Ended(trial.number)
    results = [each for each in trial.epochs if each.get(_VALUE) is not None]
    if not results:
        return
    made.on_trial_add(None, ended)
    for result in results:
        made.on_trial_result(_Nobody(), ended, {**result, RETOLD: True})
    made.on_trial_complete(None, ended, dict(results[-1]))


class _Nobody:
    """Stands for the controller where a scheduler must not see ours."""

    search_alg = None

    def get_live_trials(self) -> list[Any]:
        return []


def mutated(space: Space, values: Mapping[str, Any], draws: np.random.Generator) -> Values:
    """Change the values a member of a population has taken over.

    Each is drawn anew with probability 1/4; otherwise a number is multiplied by 0.8 or 1.2 and a choice or
    power of two moves to a neighbour, inside the space.

    Source: Jaderberg et al., "Population Based Training of Neural Networks" (2017), the explore step.
    """
    changed: dict[str, Any] = {}
    for each in space.dimensions:
        value = values[each.name]
        if draws.random() < 0.25:
            changed[each.name] = each.sample(draws)
        elif each.values is not None and value in each.values:
            place = each.values.index(value) + int(draws.choice((-1, 1)))
            changed[each.name] = each.values[min(max(place, 0), len(each.values) - 1)]
        else:
            changed[each.name] = each.bounded(value * float(draws.choice((0.8, 1.2))))
    return changed
