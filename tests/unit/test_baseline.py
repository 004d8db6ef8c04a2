"""The constant answer a network is held against, and the warning where it did not beat it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jobs.fitting.baseline import constant_loss, warn_if_no_better
from jobs.fitting.loop import Epoch


def test_the_constant_answer_is_the_mean_or_the_shares_of_the_classes() -> None:
    assert constant_loss(np.array([0.0, 2.0]), np.array([4.0, 1.0]), classes=()) == 4.5
    labels = np.array([0, 0, 0, 1])
    shares = -(3 * math.log(0.75) + math.log(0.25)) / 4
    assert constant_loss(labels, labels, classes=("a", "b")) == pytest.approx(shares)
    balanced = constant_loss(labels, labels, classes=("a", "b"), class_weights="balanced")
    assert balanced == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss, n_said", [(0.9, 0), (1.0, 1), (1.1, 1)])
def test_a_network_that_never_beats_it_is_warned_of(
    caplog: pytest.LogCaptureFixture, loss: float, n_said: int
) -> None:
    with caplog.at_level("WARNING", logger="kit"):
        warn_if_no_better([Epoch(1, 0.1, 1.5, 1.0), Epoch(2, 0.1, loss, 1.0)], than=1.0, classes=())
    assert len(caplog.messages) == n_said
    assert all("no better than always answering the mean" in each for each in caplog.messages)
    warn_if_no_better([], than=1.0, classes=())
