from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge.measure import (
    Budgets,
    Comparison,
    Figures,
    Latency,
    answer_all,
    compare,
    confusion,
    error_histogram,
    measure_latency,
    output_scale,
)
from kit.errors import InputError

BUDGETS = Budgets(
    max_metric_drop=0.01, max_output_error=0.05, max_size_mb=1.0, max_latency_ms=10.0, max_memory_mb=50.0
)
FINE = Figures(
    Comparison("accuracy", 0.99, 0.98, 0.01, 1.0, 0.05, 100),
    size_bytes=1_000_000,
    model_bytes=900_000,
    latency=Latency(10.0, 20.0),
    float_latency=Latency(10.0, 20.0),
    memory_mb=50.0,
)


def _answers(logits: list[list[float]]) -> dict[str, np.ndarray]:
    array = np.array(logits, np.float32)
    return {"label": array.argmax(axis=1), "logits": array}


def test_figures_on_their_budgets_pass() -> None:
    assert BUDGETS.broken(FINE) == {}


def test_figures_that_nothing_here_could_measure_break_no_budget() -> None:
    unmeasured = replace(FINE, latency=None, float_latency=None, memory_mb=None)
    assert replace(BUDGETS, max_slowdown=1.0).broken(unmeasured) == {}
    assert not unmeasured.is_slower


@pytest.mark.parametrize(
    "changes, kind, words",
    [
        ({"drop": 0.02}, "accuracy", "accuracy drop 0.02 is above max_metric_drop = 0.01"),
        ({"output_error": 0.06}, "accuracy", "output error 0.06 is above max_output_error = 0.05"),
        ({"output_error": float("nan")}, "accuracy", "output error nan is above"),
        ({"size_bytes": 1_500_000}, "size", "size in MB 1.5 is above max_size_mb = 1"),
        ({"latency": Latency(11, 11)}, "latency", "median latency in ms 11 is above max_latency_ms = 10"),
        ({"memory_mb": 51.0}, "memory", "resident memory in MB 51 is above max_memory_mb = 50"),
    ],
)
def test_a_figure_over_its_budget_is_named(changes: dict[str, object], kind: str, words: str) -> None:
    inner = {key: value for key, value in changes.items() if key in ("drop", "output_error")}
    outer = {key: value for key, value in changes.items() if key not in inner}
    figures = replace(FINE, comparison=replace(FINE.comparison, **inner), **outer)  # type: ignore[arg-type]
    broken = BUDGETS.broken(figures)
    assert list(broken) == [kind]
    assert words in broken[kind]


def test_two_figures_of_one_kind_are_both_named() -> None:
    wrong = replace(FINE, comparison=replace(FINE.comparison, drop=0.5, output_error=0.5))
    said = BUDGETS.broken(wrong)["accuracy"]
    assert "max_metric_drop" in said
    assert "max_output_error" in said


def test_a_slowdown_is_a_budget_only_where_one_was_set() -> None:
    slow = replace(FINE, latency=Latency(9.0, 9.0), float_latency=Latency(6.0, 6.0))
    assert BUDGETS.broken(slow) == {}
    said = replace(BUDGETS, max_slowdown=1.2).broken(slow)
    assert said == {"latency": "share of float32's latency 1.5 is above max_slowdown = 1.2"}


@pytest.mark.parametrize(
    "this_ms, float_ms, slower",
    [(1.0, 1.0, False), (1.2, 1.0, True), (0.03, 0.01, False), (0.06, 0.01, True), (0.5, 1.0, False)],
)
def test_slower_is_what_two_measurements_would_not_differ_by(
    this_ms: float, float_ms: float, slower: bool
) -> None:
    figures = replace(FINE, latency=Latency(this_ms, 9.0), float_latency=Latency(float_ms, 9.0))
    assert figures.is_slower == slower
    assert figures.slowdown == pytest.approx(this_ms / float_ms)


def test_confusion_counts_the_references_label_by_the_targets() -> None:
    reference, found = {"label": np.array([0, 0, 1, 2])}, {"label": np.array([0, 1, 1, 2])}
    counted = confusion(reference, found, classes=("a", "b", "c"))
    assert counted == {"labels": ["a", "b", "c"], "counts": [[1, 1, 0], [0, 1, 0], [0, 0, 1]]}
    assert confusion({"value": np.ones(3)}, {"value": np.ones(3)}, classes=()) is None


def test_the_error_histogram_counts_every_output_around_zero() -> None:
    reference, found = {"value": np.array([0.0, 2.0, 4.0])}, {"value": np.array([1.0, 2.0, 3.0])}
    histogram = error_histogram(reference, found, scale=2.0)
    assert histogram is not None
    assert sum(histogram["counts"]) == 3
    assert histogram["edges"][0] == -0.5
    assert histogram["edges"][-1] == 0.5
    assert error_histogram(reference, {"value": np.array([np.nan, 0, 0])}, scale=1.0) is None


def test_the_output_error_is_in_standard_deviations_of_the_reference() -> None:
    reference, found = _answers([[0, 2], [4, 2]]), _answers([[1, 2], [4, 3]])
    scale = output_scale(reference)
    compared = compare(reference, found, labels=np.array([1, 0]), metric="accuracy", scale=scale)
    assert scale == pytest.approx(np.sqrt(2))
    assert compared.output_error == pytest.approx(0.5 / np.sqrt(2))
    assert (compared.agreement, compared.drop, compared.n_rows) == (1.0, 0.0, 2)


def test_a_wrong_label_lowers_metric_and_agreement() -> None:
    reference, found = _answers([[0, 2], [4, 2]]), _answers([[3, 2], [4, 3]])
    compared = compare(reference, found, labels=np.array([1, 0]), metric="accuracy", scale=1.0)
    assert (compared.value, compared.drop, compared.agreement) == (0.5, 0.5, 0.5)


def test_a_loss_drops_by_its_rise_as_a_share() -> None:
    reference, found = {"value": np.array([1.0, 3.0])}, {"value": np.array([1.5, 3.5])}
    compared = compare(reference, found, labels=np.array([0.0, 2.0]), metric="rmse", scale=1.0)
    assert compared.drop == pytest.approx(0.5)
    assert compared.agreement is None


def test_a_reference_that_always_answers_alike_is_refused() -> None:
    with pytest.raises(InputError, match="the same answer"):
        output_scale({"value": np.ones(5, np.float32)})


def test_many_rows_are_answered_in_order_and_in_bounded_batches() -> None:
    sizes: list[int] = []

    def double(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(tensors["x"]))
        return {"value": tensors["x"] * 2}

    rows = np.arange(2500)
    np.testing.assert_array_equal(answer_all(double, {"x": rows})["value"], rows * 2)
    assert sizes == [1024, 1024, 452]


def test_latencies_are_taken_in_turns_one_row_at_a_time() -> None:
    calls: list[tuple[str, int]] = []

    def answer(name: str):  # type: ignore[no-untyped-def]
        def ask(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            calls.append((name, int(tensors["x"][0])))
            return {}

        return ask

    found = measure_latency({"a": answer("a"), "b": answer("b")}, {"x": np.arange(3)}, n_calls=200)
    assert [name for name, _ in calls] == ["a", "b"] * 220
    assert {row for _, row in calls} == {0, 1, 2}
    assert 0 <= found["a"].p50_ms <= found["a"].p95_ms
