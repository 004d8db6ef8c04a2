from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kit.cleaning import Cleaned, apply_rule, check_rules, drop_duplicates
from kit.errors import InputError, SettingsError
from kit.row_codes import same_rows, value_codes
from kit.settings import DuplicatesSettings, RuleSettings


def table(**columns: Any) -> Cleaned:
    made = pa.table(columns)
    return Cleaned(made, np.arange(made.num_rows))


def rule(pattern: str, otherwise: str = "fail", **more: Any) -> RuleSettings:
    values = {"column": "s", "pattern": pattern, "otherwise": otherwise, **more}
    return RuleSettings.model_validate(values)


def duplicates(cleaned: Cleaned, *, time: str | None = None, **more: Any) -> list[int]:
    kept: list[int] = drop_duplicates(
        cleaned, DuplicatesSettings.model_validate(more), time=time
    ).rows.tolist()
    return kept


# rules


def test_a_value_that_breaks_a_rule_is_named_with_its_row() -> None:
    with pytest.raises(InputError, match=r"column 's', row 1: 'zürich' does not match .* \(2 rows do not\)"):
        apply_rule(table(s=["ÄB", "zürich", "C", "zürich"]), rule("[A-ZÄÖÜ]+"), inputs=())


def test_a_pattern_must_match_the_whole_value() -> None:
    for text in ("12a", "a12", "12\n"):
        with pytest.raises(InputError, match="does not match"):
            apply_rule(table(s=[text]), rule(r"\d+"), inputs=())
    assert apply_rule(table(s=["12"]), rule(r"\d+"), inputs=()).changes[0].n_values == 0


def test_a_missing_value_breaks_no_rule() -> None:
    for otherwise in ("fail", "drop", "missing"):
        cleaned = apply_rule(table(s=["1", None, ""]), rule(r"\d+", otherwise), inputs=())
        assert cleaned.table.column("s").to_pylist() == ["1", None, ""]


def test_drop_leaves_rows_out_and_remembers_their_numbers() -> None:
    cleaned = apply_rule(table(s=["1", "x", "3"], n=[0, 1, 2]), rule(r"\d", "drop"), inputs=("s",))
    assert cleaned.rows.tolist() == cleaned.table.column("n").to_pylist() == [0, 2]
    (change,) = cleaned.changes
    assert (change.step, change.column, change.rows_before, change.rows_after) == ("rule", "s", 3, 2)
    with pytest.raises(InputError, match="column 's', row 2: '3'"):
        apply_rule(cleaned, rule("1"), inputs=())


def test_missing_is_done_here_to_other_columns_and_by_the_model_to_its_inputs() -> None:
    texts = ["1", "x", None, "2"]
    other = apply_rule(table(s=texts), rule(r"\d", "missing"), inputs=())
    assert other.table.column("s").to_pylist() == ["1", None, None, "2"]
    read = apply_rule(table(s=texts), rule(r"\d", "missing"), inputs=("s",))
    assert read.table.column("s").to_pylist() == texts
    assert [each.changes[0].n_values for each in (other, read)] == [1, 1]
    assert read.changes[0].detail.endswith("the model takes them for missing")


def test_replace_changes_every_part_that_matches() -> None:
    cleaned = apply_rule(
        table(s=["a b  c", "ü", None], n=[1, 2, 3]),
        rule(r"\s+(\w)", "replace", replacement=r"_\1"),
        inputs=(),
    )
    assert cleaned.table.to_pydict() == {"s": ["a_b_c", "ü", None], "n": [1, 2, 3]}
    assert cleaned.changes[0].n_values == 1
    with pytest.raises(SettingsError, match="does not fit the pattern"):
        apply_rule(cleaned, rule("a", "replace", replacement=r"\2"), inputs=())


def test_replacing_what_the_model_reads_is_refused_with_the_alternative() -> None:
    with pytest.raises(SettingsError, match="a rule replaces values of 's', which the model reads") as caught:
        check_rules([rule("a", "replace")], inputs=("s",), columns=("s",))
    assert "missing" in str(caught.value.hint)


def test_an_unknown_column_comes_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="a rule names the column 's'") as caught:
        check_rules([rule("a")], inputs=(), columns=("ss", "t"))
    assert "did you mean 'ss'?" in str(caught.value.hint)


def test_a_rule_reads_strings_in_every_encoding_and_nothing_else() -> None:
    for column in (
        pa.array(["1", "x"], pa.large_string()),
        pa.array(["1", "x"]).dictionary_encode(),
        pa.chunked_array([["1"], ["x"]]),
    ):
        assert apply_rule(table(s=column), rule(r"\d", "drop"), inputs=()).rows.tolist() == [0]
    assert apply_rule(table(s=pa.nulls(2)), rule(r"\d"), inputs=()).rows.tolist() == [0, 1]
    with pytest.raises(InputError, match="column 's' holds values of type int64; a rule reads strings"):
        apply_rule(table(s=[1]), rule(r"\d"), inputs=())


# duplicates

ROWS = {
    "k": ["a", "b", "a", "a", None, None],
    "v": [1.0, 1.0, None, 3.0, float("nan"), None],
    "t": [3, 1, 2, 3, 1, 1],
}


@pytest.mark.parametrize(
    "keep, expected",
    [("first", [0, 1, 4]), ("last", [1, 3, 5]), ("most-complete", [0, 1, 4]), ("latest", [1, 3, 5])],
)
def test_the_row_that_is_kept_is_the_one_asked_for(keep: str, expected: list[int]) -> None:
    assert duplicates(table(**ROWS), keys=["k"], keep=keep, time="t") == expected


def test_latest_goes_by_the_time_duplicates_name_before_that_of_the_data() -> None:
    rows = table(k=[1, 1], t=[1, 2], seen=[2, 1])
    assert duplicates(rows, keys=["k"], keep="latest", time="t") == [1]
    settings = DuplicatesSettings(keys=("k",), keep="latest", time="seen")
    for data_time in ("t", None):
        assert drop_duplicates(rows, settings, time=data_time).rows.tolist() == [0]
    absent = DuplicatesSettings(keep="latest", time="T")
    with pytest.raises(SettingsError, match=r"\[prepare.duplicates\] time names the column 'T'"):
        drop_duplicates(rows, absent, time="t")
    with pytest.raises(ValueError, match="time = 'seen' belongs to keep = 'latest'"):
        DuplicatesSettings(keys=("k",), time="seen")


def test_most_complete_counts_missing_values_of_every_column() -> None:
    cleaned = table(k=[1, 1, 1], a=[None, 1, 1], b=["x", None, "y"], c=[1.0, 1.0, float("nan")])
    assert duplicates(cleaned, keys=["k"], keep="most-complete") == [0]
    cleaned = table(k=[1, 1, 1], a=[None, 1, 1], b=["x", None, "y"], c=[1.0, 1.0, 2.0])
    assert duplicates(cleaned, keys=["k"], keep="most-complete") == [2]


def test_exact_duplicates_are_equal_in_every_column_and_missing_equals_missing() -> None:
    cleaned = table(a=[1.0, 1.0, None, float("nan"), 0.0, -0.0], b=["x", "y", "z", "z", "ü", "ü"])
    assert duplicates(cleaned) == [0, 1, 2, 4]
    change = drop_duplicates(cleaned, DuplicatesSettings(), time=None).changes[0]
    assert (change.rows_before, change.rows_after, change.n_values) == (6, 4, 2)
    assert change.detail == "2 rows equal in every column to another were dropped; the first was kept"


@pytest.mark.parametrize(
    "more, message",
    [
        ({"keys": ["K"]}, r"\[prepare.duplicates\] keys names the column 'K'"),
        ({"keys": ["k"], "keep": "latest"}, "keep = 'latest' has no time to order the rows by"),
    ],
)
def test_duplicates_that_cannot_be_found_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        duplicates(table(k=[1]), **more)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2], [1, 2], [2, 1], None, None]),
        pa.array([[1.0], [1.0], [1.0, 1.0], [], []]),
        pa.array([[1, 2], [1, 2], [1, 3], [4, 4], [4, 4]], pa.list_(pa.uint8(), 2)),
        pa.array([{"a": "ü"}, {"a": "ü"}, {"a": None}, None, None]),
        pa.array(["x", "x", "y", None, None]).dictionary_encode(),
        pa.array([1.5, 1.5, 2.5, None, float("nan")], pa.float16()),
        pa.chunked_array([[True], [True, False], [None, None]]),
        pa.array([1, 1, 2, 3, 3], pa.timestamp("ns")),
    ],
)
def test_equal_values_of_every_type_have_one_code(column: Any) -> None:
    codes = value_codes(column).tolist()
    assert codes[0] == codes[1] != codes[2]
    assert codes[3] == codes[4] not in codes[:3]


@pytest.mark.parametrize(
    "values, kind",
    [
        pytest.param([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]], pa.list_(pa.float32(), 2), id="zeros"),
        pytest.param([[0.0], [-0.0], [0.0, 2.0]], pa.list_(pa.float64()), id="zeros of uneven lists"),
        pytest.param([[None, 1.0], [float("nan"), 1.0], [0.0, 1.0]], pa.list_(pa.float32()), id="missing"),
        pytest.param([[None], [float("nan")], [1.0, None]], pa.list_(pa.float32()), id="missing, uneven"),
        pytest.param([[-0.0, None], [0.0, None], [None, 0.0]], pa.list_(pa.float16()), id="16 bits"),
        pytest.param([["a", None], ["a", ""], ["", "a"]], pa.list_(pa.string()), id="strings"),
        pytest.param([[[0.0]], [[-0.0]], [[None]]], pa.list_(pa.list_(pa.float64())), id="nested"),
        pytest.param([{"a": -0.0}, {"a": 0.0}, {"a": None}], pa.struct({"a": pa.float64()}), id="struct"),
        pytest.param([[2**60], [2**60], [2**60 + 1], [None]], pa.list_(pa.int64()), id="whole numbers"),
    ],
)
def test_equal_values_inside_lists_have_one_code(values: list[Any], kind: pa.DataType) -> None:
    assert value_codes(pa.array(values, kind)).tolist()[:3] == [0, 0, 1]


def test_missing_values_in_lists_are_equal_whatever_bits_they_hold() -> None:
    bits = np.array([[0x7FC00000, 0], [0xFFC00001, 0]], dtype=np.uint32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(bits.view(np.float32).ravel()), 2)
    assert value_codes(lists).tolist() == [0, 0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_an_empty_string_is_a_missing_one_where_rows_are_compared(kind: pa.DataType) -> None:
    texts = pa.array(["", None, "a"], pa.string()).cast(kind)
    assert same_rows(pa.table({"a": [1, 1, 1], "s": texts}), ["a", "s"]).tolist() == [0, 0, 1]
    assert value_codes(texts).tolist() == [0, -1, 1]  # a group or an id may be empty


def test_the_most_complete_row_is_not_the_one_with_an_empty_string() -> None:
    settings = DuplicatesSettings(keys=("a",), keep="most-complete")
    cleaned = table(a=[1, 1], s=["", "x"], t=[1.0, None], u=[None, 2.0])
    kept = drop_duplicates(cleaned, settings, time=None)
    assert kept.rows.tolist() == [1]


def test_rows_are_told_apart_in_many_columns_of_many_values() -> None:
    generator = np.random.default_rng(0)
    columns = {f"c{index}": generator.integers(0, 40, 500) for index in range(30)}
    columns = {name: np.concatenate([values, values[:100]]) for name, values in columns.items()}
    found = same_rows(pa.table(columns), list(columns))
    assert found.tolist() == [*range(500), *range(100)]
    few = {f"c{index}": generator.integers(0, 2, 500) for index in range(5)}
    expected = np.unique(np.stack(list(few.values()), axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    codes = same_rows(pa.table(few), list(few))
    assert len(set(zip(codes, expected, strict=True))) == len(set(expected))
