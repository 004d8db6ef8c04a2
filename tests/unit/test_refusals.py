"""Which rows are refused: exactly those that break a rule, found by few calls, whatever the batch size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from jobs.batch.refusals import Batches, accepted, by_halves
from kit.engines import Engine, open_engine
from kit.errors import InputError
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec

VALUE = TensorSpec("value", "float32", (-1,))
SIGNATURE = Signature("regression", (TensorSpec("x", "float32", (-1, 1), columns=("x",)),), (VALUE,))


def attempt(bad: set[int], calls: list[tuple[int, int]]) -> Callable[[int, int], Tensors]:
    def rows(first: int, last: int) -> Tensors:
        calls.append((first, last))
        found = sorted(bad & set(range(first, last)))
        if found:
            raise InputError(f"column 'x', row {found[0] - first}: bad")
        return {"x": np.arange(first, last)}

    return rows


@settings(max_examples=100, deadline=None)
@given(n_rows=some.integers(0, 60), share=some.sets(some.integers(0, 59)))
def test_exactly_the_bad_rows_are_refused_and_the_others_keep_their_order(
    n_rows: int, share: set[int]
) -> None:
    bad = {row for row in share if row < n_rows}
    done, refused = by_halves(n_rows, attempt(bad, []))
    assert refused == dict.fromkeys(bad, "column 'x': bad")
    assert done["x"].tolist() == [row for row in range(n_rows) if row not in bad]


@pytest.mark.parametrize("row", [0, 1, 49_999, 50_000, 77_777, 99_999])
def test_one_bad_row_in_a_hundred_thousand_is_found_by_few_calls(row: int) -> None:
    calls: list[tuple[int, int]] = []
    done, refused = by_halves(100_000, attempt({row}, calls))
    assert list(refused) == [row]
    assert len(done["x"]) == 99_999
    assert len(calls) <= 2 * math.ceil(math.log2(100_000)) + 1


def test_every_row_may_be_bad() -> None:
    calls: list[tuple[int, int]] = []
    done, refused = by_halves(64, attempt(set(range(64)), calls))
    assert list(refused) == list(range(64))
    assert done["x"].shape == (0,)
    assert len(calls) <= 2 * 64


def test_other_errors_are_not_taken_for_refusals() -> None:
    def fails(first: int, last: int) -> Tensors:
        raise MemoryError

    with pytest.raises(MemoryError):
        by_halves(8, fails)


MIXED = Signature(
    "regression",
    (
        TensorSpec("number", "float32", (-1,), columns=("number",), minimum=0, maximum=10),
        TensorSpec("list", "float32", (-1, 2), columns=("list",)),
        TensorSpec("word", "string", (-1,), columns=("word",)),
        TensorSpec("whole", "int64", (-1,), columns=("whole",)),
    ),
    (VALUE,),
)


def mixed() -> pa.Table:
    return pa.table(
        {
            "number": [1.0, None, 2.0, 11.0, float("nan"), float("inf"), 3.0, 4.0, 5.0, -0.5],
            "list": [[1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2], [1, 2, 3], None, [1, None], [1, 2]],
            "word": ["a", "a", None, "a", "a", "a", "a", "a", "a", "a"],
            "whole": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        },
        schema=pa.schema(
            [
                ("number", pa.float32()),
                ("list", pa.list_(pa.float32())),
                ("word", pa.string()),
                ("whole", pa.int64()),
            ]
        ),
    )


def test_rows_are_refused_for_nulls_lists_strings_and_bounds_each_with_its_reason() -> None:
    tensors, refused = accepted(mixed(), MIXED)
    assert sorted(refused) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert tensors["whole"].tolist() == [1]
    assert tensors["list"].tolist() == [[1, 2]]
    assert not [each for each in refused.values() if re.search(r"row \d", each)], "a row of a part"
    assert refused[3] == "input 'number': 11.0 is above the maximum 10"
    assert "'number'" in refused[1]
    assert "missing" in refused[1]
    assert "'word'" in refused[2]
    assert "infinity" in refused[5]
    for row in (6, 7, 8):
        assert "'list'" in refused[row], refused[row]


def test_a_reason_does_not_depend_on_the_rows_around_it() -> None:
    table = mixed()
    together = accepted(table, MIXED)[1]
    alone = {row: accepted(table.slice(row, 1), MIXED)[1].get(0) for row in range(table.num_rows)}
    assert {row: reason for row, reason in alone.items() if reason} == together
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 1), table.slice(4)])
    assert accepted(chunked, MIXED)[1] == together


def test_a_row_whose_list_is_first_and_of_another_length_is_the_one_that_is_refused() -> None:
    signature = Signature("regression", (TensorSpec("x", "float32", (-1, 2), columns=("x",)),), (VALUE,))
    table = pa.table({"x": [[1.0], [1.0, 2.0], [3.0, 4.0], []]})
    tensors, refused = accepted(table, signature)
    assert sorted(refused) == [0, 3]
    assert tensors["x"].tolist() == [[1, 2], [3, 4]]


def test_a_table_of_bad_rows_alone_has_tensors_without_rows() -> None:
    table = pa.table({"x": pa.array([None] * 5, pa.float32())})
    tensors, refused = accepted(table, SIGNATURE)
    assert sorted(refused) == list(range(5))
    assert (tensors["x"].shape, tensors["x"].dtype) == ((0, 1), np.float32)


def test_a_table_without_rows_has_tensors_without_rows() -> None:
    tensors, refused = accepted(pa.table({"x": pa.array([], pa.float32())}), SIGNATURE)
    assert (tensors["x"].shape, refused) == ((0, 1), {})


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"y": [1.0, 2.0]}),
        pa.table({"x": pa.array([{"a": 1}, {"a": 2}])}),
        pa.table({"x": pa.array([b"1", b"2"])}),
    ],
)
def test_a_table_that_is_wrong_whatever_its_rows_is_refused_as_a_whole(table: pa.Table) -> None:
    with pytest.raises(InputError, match="column 'x'"):
        accepted(table, SIGNATURE)


class Lookup:
    """A runtime that fails on some values, and runs out of memory where it is told to."""

    version = "1"
    device = "cpu"

    def __init__(
        self, *, bad: tuple[float, ...] = (), memory_rows: int = 10**9, out_at: tuple[int, ...] = ()
    ) -> None:
        self.bad, self.memory_rows, self.out_at = bad, memory_rows, out_at
        self.sizes: list[int] = []

    def run(self, inputs: Tensors) -> Tensors:
        x = inputs["x"][:, 0]
        self.sizes.append(len(x))
        if len(x) > self.memory_rows or len(self.sizes) in self.out_at:
            raise MemoryError(f"no room for {len(x)} rows")
        if np.isin(x, self.bad).any():
            raise InputError("onnxruntime fails on these rows: indices out of bounds")
        return {"value": x * 2}


def rows(n_rows: int) -> Tensors:
    return {"x": np.arange(n_rows, dtype=np.float32).reshape(-1, 1)}


def answered(runtime: Lookup, *, n_rows: int, batch_rows: int) -> tuple[Batches, list[float], dict[int, str]]:
    batches = Batches(Engine(runtime, name="onnxruntime", signature=SIGNATURE), batch_rows=batch_rows)
    answers, refused = batches.answer(rows(n_rows))
    return batches, answers["value"].tolist(), refused


@pytest.mark.parametrize("batch_rows", [1, 7, 10, 64, 100, 1000])
def test_rows_an_engine_fails_on_are_refused_and_the_others_answered(batch_rows: int) -> None:
    batches, answers, refused = answered(Lookup(bad=(3, 77)), n_rows=100, batch_rows=batch_rows)
    assert refused == dict.fromkeys((3, 77), "onnxruntime fails on these rows: indices out of bounds")
    assert answers == [2.0 * row for row in range(100) if row not in (3, 77)]
    assert batches.batch_rows == batch_rows


@pytest.mark.parametrize("n_rows", [1, 9, 10, 11, 30])
def test_rows_are_answered_in_calls_of_the_size_that_was_asked_for(n_rows: int) -> None:
    runtime = Lookup()
    _, answers, refused = answered(runtime, n_rows=n_rows, batch_rows=10)
    assert (answers, refused) == ([2.0 * row for row in range(n_rows)], {})
    assert runtime.sizes == [10] * (n_rows // 10) + [n_rows % 10] * (n_rows % 10 > 0)


def test_memory_that_runs_out_on_the_third_call_halves_the_batch_and_loses_nothing() -> None:
    runtime = Lookup(out_at=(3,))
    batches, answers, refused = answered(runtime, n_rows=100, batch_rows=20)
    assert (answers, refused) == ([2.0 * row for row in range(100)], {})
    assert runtime.sizes == [20, 20, 20, *[10] * 6]
    assert batches.batch_rows == 10


def test_a_batch_that_was_halved_stays_so() -> None:
    runtime = Lookup(memory_rows=8)
    batches, answers, _ = answered(runtime, n_rows=100, batch_rows=64)
    assert runtime.sizes[:4] == [64, 32, 16, 8]
    assert max(runtime.sizes[3:]) == 8
    assert answers == [2.0 * row for row in range(100)]
    runtime.sizes.clear()
    batches.answer(rows(16))
    assert runtime.sizes == [8, 8]


def test_bad_rows_and_too_little_memory_together_lose_nothing() -> None:
    _, answers, refused = answered(Lookup(bad=(0, 31, 99), memory_rows=4), n_rows=100, batch_rows=64)
    assert sorted(refused) == [0, 31, 99]
    assert answers == [2.0 * row for row in range(100) if row not in (0, 31, 99)]


def test_a_row_for_which_alone_there_is_no_memory_is_refused() -> None:
    _, answers, refused = answered(Lookup(memory_rows=0), n_rows=3, batch_rows=2)
    assert answers == []
    assert refused == dict.fromkeys(range(3), "memory runs out over this row: no room for 1 rows")


def test_an_engine_that_fails_on_every_row_answers_none() -> None:
    _, answers, refused = answered(Lookup(bad=tuple(range(9))), n_rows=9, batch_rows=4)
    assert (answers, sorted(refused)) == ([], list(range(9)))


def test_no_rows_are_answered_with_none() -> None:
    runtime = Lookup()
    _, answers, refused = answered(runtime, n_rows=0, batch_rows=4)
    assert (answers, refused, runtime.sizes) == ([], {}, [])


@pytest.fixture(scope="module")
def gather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that looks ten values up, and so fails on a row whose index is not from 0 to 9."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gather", ["values", "index"], ["value"])],
        "gather",
        [helper.make_tensor_value_info("index", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.arange(10, dtype=np.float32) * 1.5, "values")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("gather") / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch_rows", [8, 33, 1000])
def test_rows_a_real_model_fails_on_are_refused_and_the_others_answered(
    gather: Path, batch_rows: int
) -> None:
    signature = Signature("regression", (TensorSpec("index", "int64", (-1,), columns=("index",)),), (VALUE,))
    engine = open_engine(gather, engine="onnxruntime", threads=1, signature=signature)
    index = np.arange(100) % 10
    index[[3, 77]] = 10, 2**40
    answers, refused = Batches(engine, batch_rows=batch_rows).answer({"index": index})
    assert sorted(refused) == [3, 77]
    assert all(reason.startswith("onnxruntime fails on these rows: ") for reason in refused.values())
    np.testing.assert_array_equal(answers["value"], np.delete(index, [3, 77]) * 1.5)
