"""Rules of column statistics: every value is counted once, and nothing is too strange to be described."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kit.columns import MAX_CATEGORIES, MAX_CHARACTERS, ColumnStatistics, class_balance, describe


def described(
    values: Any, *, kind: pa.DataType | None = None, n_train: int | None = None
) -> ColumnStatistics:
    """Describe a column whose first rows are trained on and whose others are held out."""
    column = pa.chunked_array([pa.array(values, kind)])
    cut = len(column) // 2 if n_train is None else n_train
    rows = np.arange(len(column))
    return describe(column, name="x", role="input", train_rows=rows[:cut], test_rows=rows[cut:])


def test_numbers_are_described_by_what_is_known_of_them() -> None:
    found = described([1.0, 2.0, 3.0, 4.0, None, math.nan, math.inf, 2.0])
    assert (found.kind, found.missing, found.n_unique) == ("number", 3, 4)
    assert (found.minimum, found.maximum) == (1.0, 4.0)
    assert found.mean == pytest.approx(2.4)
    assert found.quartiles == (2.0, 2.0, 3.0)
    assert sum(found.train_counts) == 4
    assert sum(found.test_counts) == 1


@pytest.mark.parametrize(
    "values,kind",
    [
        ([True, False, None, True], pa.bool_()),
        ([1, 2, None, 2**62], pa.int64()),
        ([1, 2, None, 2], pa.decimal128(10, 2)),
    ],
)
def test_whole_numbers_decimals_and_booleans_are_numbers(values: list[Any], kind: pa.DataType) -> None:
    found = described(values, kind=kind)
    assert (found.kind, found.missing) == ("number", 1)
    assert sum(found.train_counts) + sum(found.test_counts) == 3


def test_a_list_is_described_over_all_its_values() -> None:
    found = described([[1.0, 2.0], [3.0, None], None, [5.0, 5.0]])
    assert (found.kind, found.missing, found.n_unique) == ("list", 2, 4)
    assert (sum(found.train_counts), sum(found.test_counts)) == (3, 2)


def test_strings_are_counted_by_part_and_the_empty_one_is_missing() -> None:
    found = described(["b", "a", "", None, "a", "ä\N{SNOWMAN}"])
    assert (found.kind, found.missing, found.n_unique) == ("string", 2, 3)
    assert list(found.categories.items()) == [("a", 2), ("b", 1), ("ä\N{SNOWMAN}", 1)]
    assert (found.train_counts, found.test_counts) == ((1, 1, 0), (1, 0, 1))
    assert found.quartiles == ()


def test_documents_are_cut_and_many_categories_are_not_all_kept() -> None:
    found = described([f"{index:03} " + "x" * 5000 for index in range(100)])
    assert (found.n_unique, len(found.categories)) == (100, MAX_CATEGORIES)
    assert {len(text) for text in found.categories} == {MAX_CHARACTERS}


def test_a_dictionary_and_a_date_are_described_as_strings() -> None:
    assert described(pa.array(["a", "b", "a", "b"]).dictionary_encode()).categories == {"a": 2, "b": 2}
    assert described([0, 1, 1, 1], kind=pa.date32()).categories == {"1970-01-02": 3, "1970-01-01": 1}


@pytest.mark.parametrize(
    "values",
    [
        [None, None],
        [math.nan, math.nan],
        [7.0] * 10,
        [5e-324, 0.0],
        [-1.7e308, 1.7e308, 0.0, 1.0],
        [1.0, math.nextafter(1.0, 2)],
        [*np.linspace(0, 1, 1000), 1e300],
    ],
)
def test_every_known_value_is_in_one_bin(values: list[Any]) -> None:
    found = described(values, kind=pa.float64(), n_train=len(values) - 1)
    known = [value for value in values if value is not None and math.isfinite(value)]
    assert sum(found.train_counts) + sum(found.test_counts) == len(known)
    assert list(found.edges) == sorted(set(found.edges))
    assert all(
        figure is None or math.isfinite(figure) for figure in (found.mean, found.std, *found.quartiles)
    )


def test_a_value_far_out_does_not_push_all_others_into_one_bin() -> None:
    found = described([*np.linspace(0, 1, 999), 1e6], n_train=1000)
    assert found.edges[0] == 0
    assert found.edges[-1] == 1e6
    assert max(found.train_counts) < 100


def test_a_table_without_rows_has_nothing_to_describe() -> None:
    for kind in (pa.float64(), pa.string(), pa.list_(pa.float32())):
        found = described([], kind=kind)
        assert (found.missing, found.n_unique, found.train_counts) == (0, 0, ())


def test_classes_are_counted_by_part_even_where_a_part_has_none() -> None:
    one, two = np.array([0, 0, 1]), np.array([1])
    balance = class_balance((3, "b"), train=one, validation=two, test=np.array([], dtype=np.int64))
    assert balance == {
        "3": {"train": 2, "validation": 0, "test": 0},
        "b": {"train": 1, "validation": 1, "test": 0},
    }
    assert class_balance((), train=one.astype(np.float32), validation=two, test=two) == {}
