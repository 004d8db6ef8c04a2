"""The step size over a training, as a function of how far it has come.

Nothing is counted here: the same place in a training gives the same step size, whether it was reached
in one go, after a kill, or with another number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: One-cycle: where it starts and ends as a share of the largest step, and when it is reached.
_START, _END, _RISE = 1 / 25, 1 / 25e4, 0.3
_DROP = 0.1  # of step and plateau
_BETTER = 1e-4  # a loss counts as better below (1 - this) times the best


def step_factor(schedule: str, *, done: float, step: float, epochs: int, warmup_epochs: int) -> float:
    """Give the share of ``learning_rate`` for the next step; plateau is asked for separately.

    Args:
        schedule: As in ``TrainSettings``.
        done: Epochs passed before the step, from 0 to below ``epochs``.
        step: Epochs that the step itself takes; warm-up ends its first step above 0 because of it.
        epochs: Of the whole training.
        warmup_epochs: Over which the factor grows from 0 to 1; one-cycle rises over them instead.

    Returns:
        Above 0, at most 1.

    Source: cosine: Loshchilov and Hutter, "SGDR" (2017), without restarts; one-cycle: Smith and Topin,
    "Super-Convergence" (2018), as in ``torch.optim.lr_scheduler.OneCycleLR`` without momentum.
    """
    if schedule == "one-cycle":
        rise = warmup_epochs / epochs or _RISE
        share = done / epochs
        if share < rise:
            return _between(_START, 1.0, share / rise)
        return _between(1.0, _END, (share - rise) / (1 - rise))
    if done < warmup_epochs:
        return min(1.0, (done + step) / warmup_epochs)
    share = (done - warmup_epochs) / (epochs - warmup_epochs)
    if schedule == "cosine":
        return _between(1.0, 0.0, share)
    if schedule == "linear":
        return 1.0 - share
    if schedule == "step":
        return _DROP ** math.floor(3 * share + 1e-9)
    return 1.0


def plateau_factor(losses: Sequence[float], *, patience_epochs: int) -> float:
    """Give the share of ``learning_rate`` after epochs without progress: a tenth, each time it stalls.

    Args:
        losses: Validation losses so far.
        patience_epochs: Epochs without a better loss that are borne before a drop.

    Source: ``torch.optim.lr_scheduler.ReduceLROnPlateau`` with its defaults, replayed.
    """
    best, waited, drops = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - _BETTER):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience_epochs:
            waited, drops = 0, drops + 1
    return _DROP**drops


def _between(start: float, end: float, share: float) -> float:
    """Go from one value to another along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
