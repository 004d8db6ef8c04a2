from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kit.errors import InputError, SettingsError
from kit.times import Gap, Times, gap_in_units, read_times

MOMENTS = [datetime(2024, 1, 2, 3, 4, 5), datetime(1969, 12, 31), datetime(2024, 1, 2)]
SECONDS = [1704164645, -86400, 1704153600]


def read(values: Any, kind: Any = None) -> Times:
    return read_times(pa.chunked_array([pa.array(values, kind)]), name="wann")


@pytest.mark.parametrize(
    "values, kind",
    [
        *((MOMENTS, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        (MOMENTS, pa.timestamp("us", "Europe/Berlin")),
        ([moment.isoformat() for moment in MOMENTS], pa.string()),
        ([str(moment) for moment in MOMENTS], pa.large_string()),
        ([moment.isoformat() + "Z" for moment in MOMENTS], pa.string()),
        (["20240102T030405", "1969-12-31", "2024-01-02"], pa.string()),
    ],
)
def test_moments_come_in_every_spelling(values: list[Any], kind: Any) -> None:
    times = read(values, kind)
    assert times.units_per_s
    assert (times.values / times.units_per_s).tolist() == SECONDS


def test_offsets_are_taken_into_account() -> None:
    zone = timezone(timedelta(hours=2))
    texts = [datetime(2024, 1, 1, 12, tzinfo=zone).isoformat(), "2024-01-01T10:00:00+00:00"]
    times = read(texts).values
    assert times[0] == times[1]


def test_dates_and_numbers_are_times_too() -> None:
    for kind in (pa.date32(), pa.date64()):
        days = read([date(1970, 1, 3), date(1970, 1, 1)], kind)
        assert days.units_per_s
        assert (days.values / days.units_per_s).tolist() == [172800, 0]
    assert read([3, 1], pa.uint8()).values.tolist() == [3, 1]
    assert read([0.5, -1], pa.float32()).values.tolist() == [0.5, -1]
    assert read([2**53, 2**53 + 1]).values.tolist() == [2**53, 2**53 + 1]


@pytest.mark.parametrize(
    "values, message",
    [
        ([1, None], "time column 'wann', row 1: a value is missing or not finite"),
        ([1.0, float("nan")], "row 1: a value is missing or not finite"),
        ([1.0, float("inf")], "row 1: a value is missing or not finite"),
        (["2024-01-01", "gestern"], "row 1: 'gestern' is no ISO 8601 time"),
        (["2024-01-01T00:00:00Z", "2024-01-01"], "row 1: '2024-01-01' and the rows before differ"),
        ([True, False], "holds values of type bool"),
        (pa.array([2**64 - 1, 1], pa.uint64()), "holds numbers beyond 64 bits"),
        ([None, None], "row 0: a value is missing"),
    ],
)
def test_what_is_no_time_is_named(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(values)


@pytest.mark.parametrize(
    "gap, expected",
    [("90s", 90_000), ("15m", 900_000), ("12h", 43_200_000), ("7d", 604_800_000), ("0.5s", 500)],
)
def test_a_duration_is_given_in_the_columns_unit(gap: str, expected: int) -> None:
    assert gap_in_units(gap, read(MOMENTS, pa.timestamp("ms")), name="wann") == Gap(expected, gap)


def test_a_gap_of_numbers_stays_one() -> None:
    numbers = Times(np.array([1, 2]), None)
    assert gap_in_units(2.0, numbers, name="n") == Gap(2, "2")
    assert isinstance(gap_in_units(2.0, numbers, name="n").length, int)
    assert gap_in_units(0.5, numbers, name="n") == Gap(0.5, "0.5")


def test_a_gap_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"gap = 7\.0 has no unit of time"):
        gap_in_units(7.0, read(MOMENTS), name="wann")
    with pytest.raises(SettingsError, match="gap = '7d' is a duration, but time column 'n' holds plain"):
        gap_in_units("7d", Times(np.array([1, 2]), None), name="n")
