"""Which of the varied settings moved the metric: functional ANOVA where Optuna can, rank correlation else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.tuning.space import Dimension, Space
from jobs.tuning.study import Trial

_log = logging.getLogger("kit")
_FEWEST = 4  # trials with a value; fewer say nothing about which setting it was


def importance(space: Space, trials: Sequence[Trial], *, seed: int = 0) -> dict[str, float]:
    """Give each setting's share of what moved the metric.

    Args:
        space: What was varied.
        trials: Those with a value count.
        seed: Of the forest that is fitted.

    Returns:
        Name to share, the largest first, together 1; empty with too few trials or equal values.

    Source: Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter
    Importance" (2014), in Optuna's implementation.
    """
    counted = [each for each in trials if each.value is not None and each.status != "failed"]
    if len(counted) < _FEWEST or len({each.value for each in counted}) < 2:
        return {}
    try:
        shares = _anova(space, counted, seed=seed)
    except Exception as error:  # Optuna and its forest refuse in many ways; a share is worth no study
        _log.debug("Optuna gives no importance: %s", error)
        shares = _correlation(space, counted)
    total = sum(shares.values())
    if not total > 0:
        return {}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {name: round(float(share / total), 4) for name, share in ordered}


def _anova(space: Space, trials: Sequence[Trial], *, seed: int) -> dict[str, float]:
    import optuna

    distributions = {each.name: distribution(each) for each in space.dimensions}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params={each.name: encode(each, trial.parameters[each.name]) for each in space.dimensions},
                distributions=distributions,
                value=trial.value,
            )
        )
    shares: dict[str, float] = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed)
    )
    return shares


def _correlation(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Take the absolute rank correlation with the metric instead."""
    values = np.array([each.value for each in trials], dtype=np.float64)
    shares = {}
    for dimension in space.dimensions:
        column = [encode(dimension, each.parameters[dimension.name]) for each in trials]
        if dimension.kind == "choice":
            column = [dimension.bounds.index(each) for each in column]
        shares[dimension.name] = (
            abs(float(np.corrcoef(_ranks(column), _ranks(values))[0, 1])) if len(set(column)) > 1 else 0.0
        )
    return shares


def _ranks(values: Any) -> np.ndarray:
    """Rank values from 0; equal ones share their mean rank."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: np.ndarray = (ends - (counts + 1) / 2)[place]
    return means


def distribution(dimension: Dimension) -> Any:
    """Give a dimension as Optuna's distribution; a power of two as its exponent."""
    from optuna import distributions

    if dimension.kind == "choice":
        return distributions.CategoricalDistribution(dimension.bounds)
    if dimension.kind == "power_of_two":
        values = dimension.values or ()
        return distributions.IntDistribution(int(np.log2(values[0])), int(np.log2(values[-1])))
    low, high = dimension.bounds
    if dimension.kind == "integer":
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(float(low), float(high), log=dimension.kind == "log")


def encode(dimension: Dimension, value: Any) -> Any:
    """Give a value as Optuna knows it."""
    return int(np.log2(value)) if dimension.kind == "power_of_two" else value


def decode(dimension: Dimension, value: Any) -> Any:
    """Give a value of Optuna's as the trial knows it."""
    return int(2**value) if dimension.kind == "power_of_two" else value
