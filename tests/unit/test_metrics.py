from __future__ import annotations

import math

import numpy as np
import pytest

from kit.errors import InputError
from kit.metrics import LOSSES, METRICS, evaluate, leading_metric, score

LABELS = np.array([0, 1, 1, 0])
OUTPUTS = {
    "label": np.array([0, 1, 0, 0]),
    "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], dtype=np.float32),
}


def test_classification_is_measured_by_hand_checked_numbers() -> None:
    found = evaluate("classification", LABELS, OUTPUTS)
    assert list(found) == list(METRICS["classification"])
    assert found["accuracy"] == 0.75
    assert found["auc"] == 1.0
    assert found["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["log_loss"] == pytest.approx(-(math.log(0.9 * 0.8 * 0.4 * 0.7)) / 4, rel=1e-6)


def test_regression_is_measured_by_hand_checked_numbers() -> None:
    labels = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    found = evaluate("regression", labels, {"value": np.array([1.0, 2.0, 5.0], dtype=np.float32)})
    assert found == pytest.approx({"rmse": math.sqrt(4 / 3), "mae": 2 / 3, "r2": -1.0})


def test_three_classes_have_an_auc() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    probabilities = np.eye(3, dtype=np.float32)[labels]
    assert score("auc", labels, {"label": labels, "probabilities": probabilities}) == 1.0


def test_certain_and_wrong_is_a_large_loss_not_an_infinite_one() -> None:
    outputs = {"label": np.array([1]), "probabilities": np.array([[0.0, 1.0]], dtype=np.float32)}
    assert 700 < score("log_loss", np.array([0]), outputs) < 710


def test_the_leading_metric_is_the_first() -> None:
    assert leading_metric("classification") == "accuracy"
    assert leading_metric("regression") in LOSSES


@pytest.mark.parametrize("metric", ["rmse", "acuracy"])
def test_a_metric_of_another_task_is_refused(metric: str) -> None:
    with pytest.raises(InputError, match=f"'{metric}' does not measure this task") as caught:
        score(metric, LABELS, OUTPUTS)
    assert "accuracy" in str(caught.value.hint)


def test_answers_that_are_not_finite_are_not_measured() -> None:
    broken = {**OUTPUTS, "probabilities": np.full((4, 2), np.nan, dtype=np.float32)}
    with pytest.raises(InputError, match="the model's 'probabilities' holds values that are not finite"):
        score("auc", LABELS, broken)
    with pytest.raises(InputError, match="the model's 'value'"):
        score("rmse", LABELS, {"value": np.full(4, np.inf)})


@pytest.mark.parametrize("metric", ["accuracy", "auc", "log_loss"])
def test_rows_that_do_not_determine_a_metric_are_refused(metric: str) -> None:
    n_rows = 2 if metric == "auc" else 0
    outputs = {name: array[:n_rows] for name, array in OUTPUTS.items()}
    with pytest.raises(InputError, match=f"'{metric}' is not defined on these {n_rows} rows"):
        score(metric, np.zeros(n_rows, dtype=np.int64), outputs)
