"""How many rows a call takes: the smallest size near the best, by a clock that only calls move."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from jobs.batch.batch_size import SIZES, search
from kit.engines import Engine
from kit.errors import InputError
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

SIGNATURE = Signature(
    "regression",
    (TensorSpec("x", "float32", (-1, 1), columns=("x",)), TensorSpec("y", "int64", (-1,), columns=("y",))),
    (TensorSpec("value", "float32", (-1,)),),
)


class Timed:
    """A runtime whose calls take the time a function of their rows says, on its own clock."""

    version = "1"
    device = "cpu"

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.now_s = 0.0
        self.sizes: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        n_rows = len(inputs["x"])
        assert len(inputs["y"]) == n_rows
        self.sizes.append(n_rows)
        self.now_s += self.seconds(n_rows)
        return {"value": inputs["x"][:, 0]}


def tensors(n_rows: int) -> Tensors:
    return {"x": np.zeros((n_rows, 1), np.float32), "y": np.arange(n_rows)}


def searched(
    monkeypatch: pytest.MonkeyPatch,
    seconds: Callable[[int], float],
    *,
    n_rows: int = 100_000,
    batch_rows: int | None = None,
) -> tuple[dict[str, object], list[int]]:
    runtime = Timed(seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: runtime.now_s)
    engine = Engine(runtime, name="onnxruntime", signature=SIGNATURE)
    found = search(engine, tensors(n_rows), batch_rows=batch_rows)
    monkeypatch.undo()
    return found, sorted(set(runtime.sizes))


def test_the_size_that_answers_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    best = 1024
    found, _ = searched(monkeypatch, lambda n: n / (1000.0 if n == best else 600.0))
    assert found["batch_rows"] == best
    assert found["rows_per_second"] == 1000.0


def test_of_sizes_that_are_nearly_as_fast_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = dict(zip(SIZES, (500.0, 980.0, 990.0, 1000.0, 995.0), strict=True))
    found, _ = searched(monkeypatch, lambda n: n / speeds[n])
    assert found["batch_rows"] == 256
    assert found["tried"] == {str(size): speed for size, speed in speeds.items()}


def test_sizes_past_the_top_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sizes = searched(monkeypatch, lambda n: n / (1000.0 if n < 1024 else 100.0))
    assert found["batch_rows"] == 64
    assert sizes == [64, 256, 1024]


def test_the_only_size_that_is_asked_for_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sizes = searched(monkeypatch, lambda n: n / 10.0, batch_rows=77)
    assert found == {"batch_rows": 77, "rows_per_second": 10.0, "tried": {"77": 10.0}}
    assert sizes == [77]


@pytest.mark.parametrize("n_rows, sizes", [(1, [64]), (16, [64]), (17, [64]), (65, [64, 256])])
def test_few_rows_are_repeated_but_not_beyond_reason(
    monkeypatch: pytest.MonkeyPatch, n_rows: int, sizes: list[int]
) -> None:
    assert searched(monkeypatch, lambda n: n / 10.0, n_rows=n_rows)[1] == sizes


def raising(error: Exception, *, at: int) -> Callable[[int], float]:
    def seconds(n_rows: int) -> float:
        if n_rows >= at:
            raise error
        return 0.001

    return seconds


def test_a_size_for_which_there_is_no_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    found, sizes = searched(monkeypatch, raising(MemoryError(), at=1024))
    assert found["batch_rows"] == 256
    assert sizes == [64, 256, 1024]


def test_where_no_size_has_the_memory_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = searched(monkeypatch, raising(MemoryError(), at=1))
    assert found == {"batch_rows": SIZES[0], "rows_per_second": None, "tried": {}}


def test_rows_the_engine_fails_on_do_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = searched(monkeypatch, raising(InputError("bad"), at=1))
    assert found == {"batch_rows": 1024, "rows_per_second": None, "tried": {}}
    found, _ = searched(monkeypatch, raising(InputError("bad"), at=1), batch_rows=7)
    assert found["batch_rows"] == 7
    found, _ = searched(monkeypatch, raising(InputError("bad"), at=256))
    assert found["batch_rows"] == 64


def test_the_search_takes_less_than_a_second_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Timed(lambda n: n / 1e6)
    monkeypatch.setattr(time, "perf_counter", lambda: runtime.now_s)
    search(Engine(runtime, name="onnxruntime", signature=SIGNATURE), tensors(100_000))
    assert runtime.now_s < 1
