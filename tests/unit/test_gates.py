from __future__ import annotations

import math

import pytest

from kit.errors import InputError
from kit.gates import GateResult, check_floors


def test_a_floor_is_reached_from_above_and_a_loss_from_below() -> None:
    metrics = {"accuracy": 0.9, "log_loss": 0.3}
    assert check_floors(metrics, {"log_loss": 0.3, "accuracy": 0.95}) == (
        GateResult("accuracy", 0.9, 0.95, passed=False),
        GateResult("log_loss", 0.3, 0.3, passed=True),
    )
    assert check_floors(metrics, {"log_loss": 0.2})[0].passed is False
    assert check_floors(metrics, {"accuracy": 0.9})[0].passed is True


def test_without_floors_there_is_nothing_to_pass() -> None:
    assert check_floors({"accuracy": 0.1}, {}) == ()


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_a_metric_that_is_no_number_passes_nothing(metric: str) -> None:
    assert not check_floors({metric: math.nan}, {metric: 0.5})[0].passed


def test_a_gate_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="the gate 'acc' was not measured") as caught:
        check_floors({"accuracy": 1.0}, {"acc": 0.5})
    assert "did you mean 'accuracy'?" in str(caught.value.hint)
