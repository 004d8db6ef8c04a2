from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kit.errors import InputError, SettingsError
from kit.settings import WindowSettings
from kit.windows import add_windows, check_windows, window_reach, window_values

NAN = float("nan")


def window(**more: Any) -> WindowSettings:
    return WindowSettings.model_validate({"name": "w", "column": "v", "time": "t", "length": 3, **more})


def values(table: dict[str, Any], **more: Any) -> list[list[float]]:
    laid: list[list[float]] = window_values(pa.table(table), window(**more), time=None).tolist()
    return laid


def same(found: list[list[float]], expected: list[list[float]]) -> bool:
    return np.array_equal(np.array(found), np.array(expected), equal_nan=True)


def test_a_window_holds_the_last_values_oldest_first() -> None:
    found = values({"t": [1, 2, 3, 4], "v": [10, 20, 30, 40]})
    assert same(found, [[NAN, NAN, 10], [NAN, 10, 20], [10, 20, 30], [20, 30, 40]])


def test_rows_may_come_in_any_order_and_keep_it() -> None:
    found = values({"t": [4, 1, 3, 2], "v": [40, 10, 30, 20]})
    assert same(found, [[20, 30, 40], [NAN, NAN, 10], [10, 20, 30], [NAN, 10, 20]])


def test_each_group_has_a_history_of_its_own() -> None:
    found = values({"t": [1, 2, 3, 4], "v": [1, 2, 3, 4], "g": ["ä", "b", "ä", "b"]}, group="g")
    assert same(found, [[NAN, NAN, 1], [NAN, NAN, 2], [NAN, 1, 3], [NAN, 2, 4]])


def test_equal_times_count_in_the_order_of_the_table() -> None:
    assert same(values({"t": [1, 1, 0], "v": [1, 2, 3]}, length=2), [[3, 1], [1, 2], [NAN, 3]])


def test_missing_values_are_kept_in_their_place() -> None:
    assert same(values({"t": [1, 2, 3], "v": [1.0, None, 3.0]}), [[NAN, NAN, 1], [NAN, 1, NAN], [1, NAN, 3]])


@settings(deadline=None, max_examples=60)
@given(
    some.lists(some.tuples(some.integers(0, 5), some.integers(0, 3)), min_size=1, max_size=60),
    some.integers(2, 9),
)
def test_no_window_looks_ahead_or_into_another_group(rows: list[tuple[int, int]], length: int) -> None:
    times, groups = [row[0] for row in rows], [row[1] for row in rows]
    table = {"t": times, "g": groups, "v": list(range(len(rows)))}
    laid = values(table, group="g", length=length)
    for row, found in enumerate(laid):
        history = sorted(
            (index for index in range(len(rows)) if groups[index] == groups[row]),
            key=lambda index: (times[index], index),
        )
        past = history[: history.index(row) + 1][-length:]
        assert same([found], [[NAN] * (length - len(past)) + [float(index) for index in past]])


@settings(deadline=None, max_examples=60)
@given(
    some.lists(
        some.tuples(some.integers(0, 5), some.integers(0, 3), some.booleans()), min_size=1, max_size=60
    ),
    some.integers(2, 9),
    some.integers(0, 2**60),
)
def test_a_window_reaches_the_rows_whose_values_it_holds(
    rows: list[tuple[int, int, bool]], length: int, chosen: int
) -> None:
    values_ = [float(index) if row[2] else None for index, row in enumerate(rows)]
    table = pa.table({"t": [row[0] for row in rows], "g": [row[1] for row in rows], "v": values_})
    asked = np.array([bool(chosen >> index & 1) for index in range(len(rows))])
    made = window(group="g", length=length)
    found = window_reach(table, made, time=None).holding(asked)
    held = [[int(value) for value in row if value == value] for row in window_values(table, made, time=None)]
    assert found.tolist() == [bool(asked[row].any()) for row in held]


def test_windows_become_columns_of_lists_and_are_told() -> None:
    table = pa.table({"t": [2, 1], "v": [1, 2], "text": ["ü", None]})
    wider, changes = add_windows(table, [window(time=None), window(name="w2", length=2)], time="t")
    assert wider.column_names == ["t", "v", "text", "w", "w2"]
    assert wider.schema.field("w").type == pa.list_(pa.float32(), 3)
    assert wider.column("text").to_pylist() == ["ü", None]
    assert [change.step for change in changes] == ["window", "window"]
    assert changes[0].detail == "'w' holds the last 3 values of 'v'; 2 rows start with a missing one"


@pytest.mark.parametrize(
    "more, message",
    [
        ({"column": "V"}, "the window 'w' names the column 'V', which the data does not have"),
        ({"time": "T"}, "the window 'w' names the column 'T'"),
        ({"group": "G"}, "the window 'w' names the column 'G'"),
        ({"time": None}, "the window 'w' has no time to order the rows by"),
        ({"name": "v"}, "the window 'v' has the name of a column"),
    ],
)
def test_a_window_that_cannot_be_made_is_refused(more: dict[str, Any], message: str) -> None:
    table = pa.table({"t": [1], "v": [1]})
    with pytest.raises(SettingsError, match=message) as caught:
        add_windows(table, [window(**more)], time=None)
    assert caught.value.hint


@pytest.mark.parametrize(
    "table, message",
    [
        ({"t": [1], "v": ["x"], "g": [1]}, "holds values of type string; a window collects numbers"),
        ({"t": [None], "v": [1], "g": [1]}, "time column 't', row 0: a value is missing"),
        ({"t": [1], "v": [1], "g": [None]}, "group column 'g', row 0: a value is missing"),
    ],
)
def test_values_a_window_cannot_hold_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        values(table, group="g")


@pytest.mark.parametrize("key", ["column", "group", "time"])
def test_a_window_shows_no_label(key: str) -> None:
    with pytest.raises(SettingsError, match=f"the window 'w' has {key} = 'y', which is the label") as caught:
        check_windows([window(**{key: "y"})], label="y", columns=("w",))
    assert caught.value.hint
    check_windows([window(group="g")], label="y", columns=("w",))


def test_a_window_that_no_input_reads_is_refused() -> None:
    with pytest.raises(SettingsError, match="the window 'w' is read by no input") as caught:
        check_windows([window()], label="y", columns=("v",))
    assert "name = 'w', shape = [3]" in str(caught.value.hint)
