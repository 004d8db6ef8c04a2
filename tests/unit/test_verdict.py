"""Whether a compression pays: the rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.compression.measure import Comparison, Measured, Shift
from jobs.compression.verdict import verdict

BEFORE = Measured(
    size_bytes=1000,
    operations=1000,
    parameters=100,
    metrics={"accuracy": 0.95},
    latency_ms=1.0,
    batch_latency_ms=9.0,
    batch_rows=64,
    int8_metric=0.94,
    int8_metrics={"accuracy": 0.94},
    int8_error=0.10,
)


def moved(before: float, after: float, *, noise: float = 0.0, metric: str = "accuracy") -> Shift:
    worse = after - before if metric == "rmse" else before - after
    return Shift(metric, before, after, worse=worse, noise=noise)


def compared(
    *,
    size_bytes: int = 1000,
    operations: int = 1000,
    int8_error: float = 0.10,
    answers: Shift | None = None,
    int8: Shift | None = None,
    n_rows: int = 200,
) -> Comparison:
    after = replace(BEFORE, size_bytes=size_bytes, operations=operations, int8_error=int8_error)
    return Comparison(
        before=BEFORE,
        after=after,
        answers=answers or moved(0.95, 0.95),
        int8=int8 or moved(0.94, 0.94),
        n_rows=n_rows,
    )


@pytest.mark.parametrize("method", ["prune", "distill"])
@pytest.mark.parametrize(
    "size_bytes, operations, pays",
    [(900, 1000, True), (1000, 900, True), (901, 901, False), (1200, 800, True)],
)
def test_a_tenth_of_size_or_operations_has_to_go(
    method: str, size_bytes: int, operations: int, pays: bool
) -> None:
    decided = verdict(method, compared(size_bytes=size_bytes, operations=operations), min_rows=100)
    assert decided.pays is pays
    assert ("has to shrink by 10%" in decided.reason) is not pays


@pytest.mark.parametrize(
    "answers, kept",
    [
        (moved(0.95, 0.941), True),
        (moved(0.95, 0.92), False),
        (moved(0.95, 0.92, noise=0.04), True),
        (moved(2.00, 2.01, metric="rmse"), True),
        (moved(2.00, 2.10, metric="rmse"), False),
        (moved(2.00, 1.50, metric="rmse"), True),
    ],
)
@pytest.mark.parametrize("method", ["prune", "distill", "quantize"])
def test_what_loses_more_than_is_allowed_and_than_noise_does_not_pay(
    method: str, answers: Shift, kept: bool
) -> None:
    decided = verdict(method, compared(size_bytes=100, int8_error=0.01, answers=answers), min_rows=100)
    assert decided.pays is kept
    assert ("noise on 200 held-out rows" in decided.reason) is not kept


@pytest.mark.parametrize(
    "int8, int8_error, pays, said",
    [
        (moved(0.90, 0.94, noise=0.02), 0.10, True, "in INT8, accuracy was 0.9000 and is 0.9400"),
        (moved(0.90, 0.91, noise=0.02), 0.10, False, "a plain INT8 conversion was as good"),
        (moved(0.94, 0.94), 0.075, True, "25% nearer to the float ones"),
        (moved(0.94, 0.94), 0.12, False, "20% farther from the float ones"),
        (moved(0.94, 0.90), 0.01, False, "accuracy in INT8 goes from 0.9400 to 0.9000"),
    ],
)
def test_quantising_pays_when_int8_is_better_than_noise_or_a_quarter_nearer(
    int8: Shift, int8_error: float, pays: bool, said: str
) -> None:
    decided = verdict("quantize", compared(int8=int8, int8_error=int8_error), min_rows=100)
    assert decided.pays is pays
    assert said in decided.reason


@pytest.mark.parametrize("method", ["prune", "distill", "quantize"])
@pytest.mark.parametrize("n_rows, pays", [(20, False), (99, False), (100, True)])
def test_on_fewer_rows_than_the_gates_ask_for_nothing_pays(method: str, n_rows: int, pays: bool) -> None:
    lucky = moved(0.95, 0.80, noise=0.15)  # within the noise that so few rows have
    decided = verdict(
        method, compared(size_bytes=100, int8_error=0.01, answers=lucky, n_rows=n_rows), min_rows=100
    )
    assert decided.pays is pays
    said = f"too few rows to tell: accuracy was 0.9500 and is 0.8000 on {n_rows} held-out rows"
    assert decided.reason.startswith(said) is not pays
