from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics as theirs

from kit.calibration import N_BINS, calibration_curve
from kit.errors import InputError
from kit.metrics import (
    LOSSES,
    METRICS,
    UndefinedMetricError,
    by_class,
    evaluate,
    leading_metric,
    measure,
    score,
    statistic,
)

LABELS = np.array([0, 1, 1, 0])
OUTPUTS = {
    "label": np.array([0, 1, 0, 0]),
    "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], dtype=np.float32),
}


def test_classification_is_measured_by_hand_checked_numbers() -> None:
    found = evaluate("classification", LABELS, OUTPUTS)
    assert list(found) == list(METRICS["classification"])
    assert found["accuracy"] == 0.75
    assert found["auc"] == found["average_precision"] == 1.0
    assert found["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["log_loss"] == pytest.approx(-(math.log(0.9 * 0.8 * 0.4 * 0.7)) / 4, rel=1e-6)
    assert found["precision_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["recall_macro"] == pytest.approx((1 + 0.5) / 2)
    assert found["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)


def test_regression_is_measured_by_hand_checked_numbers() -> None:
    labels = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    found = evaluate("regression", labels, {"value": np.array([1.0, 2.0, 5.0], dtype=np.float32)})
    expected = {"rmse": math.sqrt(4 / 3), "mae": 2 / 3, "r2": -1.0, "mse": 4 / 3, "mape": 2 / 9}
    assert found == pytest.approx(expected)
    assert list(found) == list(METRICS["regression"])


def rows(*, n_classes: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Answers with many ties, and weights of which some are 0."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, 60)
    probabilities = np.round(generator.dirichlet(np.ones(n_classes), 60), 1) + 1e-3
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = generator.integers(0, 4, 60).astype(np.float64)
    return labels, {"label": probabilities.argmax(axis=1), "probabilities": probabilities}, weights


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_weighted_classification_is_scikit_learns(n_classes: int, seed: int) -> None:
    labels, outputs, weights = rows(n_classes=n_classes, seed=seed)
    answered, present = outputs["label"], weights > 0
    shares = outputs["probabilities"].astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    given = (labels[present], answered[present])
    more = {"sample_weight": weights[present], "zero_division": 0}
    raw = outputs["probabilities"]
    ranked = (labels, raw[:, 1]) if n_classes == 2 else (np.eye(n_classes)[labels], raw)
    expected = {
        "accuracy": theirs.accuracy_score(labels, answered, sample_weight=weights),
        "auc": theirs.roc_auc_score(*ranked, sample_weight=weights),
        "average_precision": theirs.average_precision_score(*ranked, sample_weight=weights),
        "f1_macro": theirs.f1_score(*given, average="macro", **more),
        "f1_weighted": theirs.f1_score(*given, average="weighted", **more),
        "precision_macro": theirs.precision_score(*given, average="macro", **more),
        "recall_macro": theirs.recall_score(*given, average="macro", **more),
        "log_loss": theirs.log_loss(labels, shares, labels=range(n_classes), sample_weight=weights),
    }
    for metric, value in expected.items():
        found = statistic(metric, labels, outputs)(np.stack([weights, weights]))
        np.testing.assert_allclose(found, [value, value], rtol=1e-6, err_msg=metric)


def test_rows_that_tie_in_float32_tie_in_the_rankings() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 5)
    probabilities = np.zeros((105, 3), dtype=np.float32)
    probabilities[:50], probabilities[50:100], probabilities[100:] = (0.2, 0.7, 0.1), (0.2, 0.8, 0), (0, 0, 1)
    outputs = {"label": probabilities.argmax(axis=1), "probabilities": probabilities}
    assert score("auc", labels, outputs) == pytest.approx(
        theirs.roc_auc_score(labels, probabilities, multi_class="ovr"), rel=1e-12
    )
    assert score("average_precision", labels, outputs) == pytest.approx(
        theirs.average_precision_score(np.eye(3)[labels], probabilities), rel=1e-12
    )


def test_a_tiny_target_is_a_share_as_large_as_scikit_learn_lets_it_be() -> None:
    labels = np.array([1e-20, 1.0], dtype=np.float32)
    value = np.array([1.0, 1.0], dtype=np.float32)
    expected = theirs.mean_absolute_percentage_error(labels, value)
    assert score("mape", labels, {"value": value}) == pytest.approx(expected)


def test_weighted_regression_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(5, 1, 50)
    value = labels + generator.normal(size=50)
    weights = generator.integers(0, 4, 50).astype(np.float64)
    expected = {
        "rmse": theirs.root_mean_squared_error,
        "mse": theirs.mean_squared_error,
        "mae": theirs.mean_absolute_error,
        "r2": theirs.r2_score,
        "mape": theirs.mean_absolute_percentage_error,
    }
    for metric, function in expected.items():
        found = statistic(metric, labels, {"value": value})(weights[None])
        assert found[0] == pytest.approx(function(labels, value, sample_weight=weights), rel=1e-9), metric


def test_three_classes_have_an_auc() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    probabilities = np.eye(3, dtype=np.float32)[labels]
    assert score("auc", labels, {"label": labels, "probabilities": probabilities}) == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certain_and_wrong_costs_what_scikit_learn_says(dtype: type) -> None:
    probabilities = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.75]], dtype=dtype)
    labels = np.array([0, 0, 1])
    found = score("log_loss", labels, {"label": probabilities.argmax(axis=1), "probabilities": probabilities})
    assert found == pytest.approx(theirs.log_loss(labels, probabilities), rel=1e-6)
    assert found == pytest.approx({np.float32: 5.41, np.float64: 12.11}[dtype], abs=0.01)


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
    with pytest.raises(InputError, match="the model's 'probabilities'"):
        evaluate("classification", LABELS, broken)
    with pytest.raises(InputError, match="the model's 'value'"):
        score("rmse", LABELS, {"value": np.full(4, np.inf)})


@pytest.mark.parametrize("metric", ["accuracy", "auc", "log_loss"])
def test_rows_that_do_not_determine_a_metric_are_refused(metric: str) -> None:
    n_rows = 2 if metric == "auc" else 0
    outputs = {name: array[:n_rows] for name, array in OUTPUTS.items()}
    with pytest.raises(UndefinedMetricError, match=f"'{metric}' is not defined on these {n_rows} rows"):
        score(metric, np.zeros(n_rows, dtype=np.int64), outputs)


def test_a_class_that_is_absent_takes_its_rankings_with_it_and_nothing_else() -> None:
    measured = measure("classification", np.zeros(4, dtype=np.int64), OUTPUTS)
    assert set(measured.undefined) == {"auc", "average_precision"}
    assert "some class or value is not among them" in measured.undefined["auc"]
    assert measured.values["accuracy"] == 0.75


def test_a_zero_target_leaves_out_the_share_of_it_alone() -> None:
    labels = np.array([0.0, 1.0, 2.0])
    measured = measure("regression", labels, {"value": labels + 1})
    assert set(measured.undefined) == {"mape"}
    assert "a target is 0" in measured.undefined["mape"]
    assert measured.values["mae"] == 1.0


@pytest.mark.parametrize("value", [0.1, 7.0, 1e6])
def test_equal_targets_have_no_r2(value: float) -> None:
    labels = np.full(7, value)
    measured = measure("regression", labels, {"value": labels + np.arange(7)})
    assert set(measured.undefined) == {"r2"}


def test_no_rows_are_not_measured() -> None:
    with pytest.raises(InputError, match="there are no rows"):
        measure("classification", LABELS[:0], {name: array[:0] for name, array in OUTPUTS.items()})


def test_each_class_is_measured_and_one_without_rows_has_no_support() -> None:
    low, high, absent = by_class(LABELS, OUTPUTS["label"], n_classes=3)
    assert (low.precision, low.recall, low.support) == (pytest.approx(2 / 3), 1.0, 2)
    assert (high.precision, high.recall, high.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (0.0, 0.0, 0.0, 0)


def test_the_calibration_curve_holds_every_row_once() -> None:
    curve = calibration_curve(LABELS, OUTPUTS["probabilities"])
    assert sum(curve.counts) == 4
    assert len(curve.edges) == N_BINS + 1
    filled = [bin for bin, count in enumerate(curve.counts) if count]
    assert [curve.accuracy[bin] for bin in filled] == [0.0, 1.0, 1.0, 1.0]
    assert [curve.confidence[bin] for bin in filled] == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert curve.accuracy[0] is None
    # the curve and the metric are one thing
    gaps = [
        abs(a - c) * n for a, c, n in zip(curve.accuracy, curve.confidence, curve.counts, strict=True) if n
    ]
    assert score("calibration_error", LABELS, OUTPUTS) == pytest.approx(sum(gaps) / 4)


def test_certainty_falls_into_the_last_bin() -> None:
    curve = calibration_curve(np.array([0]), np.array([[1.0, 0.0]], dtype=np.float32))
    assert curve.counts[-1] == 1
