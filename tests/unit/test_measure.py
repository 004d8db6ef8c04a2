from __future__ import annotations

import numpy as np
import pytest

from edge.measure import Budgets, Comparison, Latency, answer_all, compare, measure_latency, output_scale
from kit.errors import InputError

BUDGETS = Budgets(max_metric_drop=0.01, max_output_error=0.05, max_size_mb=1.0, max_latency_ms=10.0)
FINE = Comparison("accuracy", 0.99, 0.98, 0.01, 1.0, 0.05, 100)
FAST = Latency(10.0, 20.0)


def _answers(logits: list[list[float]]) -> dict[str, np.ndarray]:
    array = np.array(logits, np.float32)
    return {"label": array.argmax(axis=1), "logits": array}


def test_figures_on_their_budgets_pass() -> None:
    assert BUDGETS.broken(FINE, size_bytes=1_000_000, latency=FAST) == ""


@pytest.mark.parametrize(
    "drop, error, size_bytes, latency_ms, words",
    [
        (0.02, 0.0, 0, 0.0, "accuracy drop 0.02 is above max_metric_drop = 0.01"),
        (0.0, 0.06, 0, 0.0, "output error 0.06 is above max_output_error = 0.05"),
        (0.0, float("nan"), 0, 0.0, "output error nan is above"),
        (0.0, 0.0, 1_500_000, 0.0, "size in MB 1.5 is above max_size_mb = 1"),
        (0.0, 0.0, 0, 11.0, "median latency in ms 11 is above max_latency_ms = 10"),
    ],
)
def test_a_figure_over_its_budget_is_named(
    drop: float, error: float, size_bytes: int, latency_ms: float, words: str
) -> None:
    comparison = Comparison("accuracy", 0.99, 0.99 - drop, drop, 1.0, error, 100)
    broken = BUDGETS.broken(comparison, size_bytes=size_bytes, latency=Latency(latency_ms, latency_ms))
    assert words in broken


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
