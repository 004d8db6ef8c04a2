"""What a network must beat: always answering the class shares, or the mean, of the training rows.

Knows losses and labels alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from jobs.fitting.loop import Epoch
from jobs.fitting.losses import class_weights_of

_log = logging.getLogger("kit")


def constant_loss(
    train: np.ndarray,
    validation: np.ndarray,
    *,
    classes: Sequence[int | str],
    class_weights: str | Mapping[str, float] = "none",
) -> float:
    """Measure the loss, as training does, of one answer for every row, the best for the training rows.

    Args:
        train: Class numbers or values, shape (n_rows,).
        validation: Likewise, of the rows the loss is measured on.
        classes: Their names; empty for regression.
        class_weights: As in [train].
    """
    if not classes:
        return float(np.mean((validation.astype(np.float64) - train.mean(dtype=np.float64)) ** 2))
    counts = np.bincount(train, minlength=len(classes)).astype(np.float64)
    given = class_weights_of(class_weights, n_classes=len(classes), classes=classes)
    weights = 1 / np.maximum(counts, 1) if given == "balanced" else np.array(given or (1.0,) * len(classes))
    weights = weights * counts.sum() / (weights * counts).sum()
    shares = np.maximum(weights * counts / (weights * counts).sum(), np.finfo(np.float32).tiny)
    return float(np.mean(weights[validation] * -np.log(shares[validation])))


def warn_if_no_better(epochs: Sequence[Epoch], *, than: float, classes: Sequence[int | str]) -> None:
    """Log a warning where no epoch's validation loss was below that of a constant answer.

    Args:
        epochs: Of the training; nothing is said without any.
        than: The constant answer's loss.
        classes: Empty for regression.
    """
    if not epochs:
        return
    best = min(epoch.validation_loss for epoch in epochs)
    if best >= than:
        _log.warning(
            "the network is no better than always answering %s: its validation loss never went below %.4f "
            "(best: %.4f); train longer, change learning_rate, or scale the inputs",
            "the shares of the classes" if classes else "the mean",
            than,
            best,
        )
