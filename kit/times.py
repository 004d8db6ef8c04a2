"""Columns of time: moments, dates, ISO 8601 text or numbers, as numbers that can be ordered.

Also durations such as ``7d``, in the unit of such a column. Who is split by them is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from kit.errors import InputError, SettingsError
from kit.row_codes import as_array
from kit.settings.data import DURATION

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Times:
    """A column of time.

    Attributes:
        values: int64 or float64, shape (n_rows,), finite; later is larger.
        units_per_s: How many of their units make a second; None for a column of plain numbers.
    """

    values: np.ndarray
    units_per_s: int | None


@dataclass(frozen=True)
class Gap:
    """Time left out between what is learned from and what is held out.

    Attributes:
        length: In the unit of a column of time, 0 or more.
        written: As kit.toml has it, for messages.
    """

    length: int | float = 0
    written: str = "0"


NO_GAP = Gap()


def read_times(column: Any, *, name: str) -> Times:
    """Make a table's column of time comparable.

    Args:
        column: A pyarrow column of timestamps, dates, numbers or ISO 8601 text.
        name: Of the column, for messages.

    Raises:
        InputError: A value is missing or is no time.
    """
    import pyarrow as pa

    array = as_array(column)
    kind = array.type
    if array.null_count:
        row = array.is_null().index(True).as_py()
        raise _missing(name, row, array.null_count)
    if pa.types.is_timestamp(kind):
        return Times(_whole(array), _UNITS_PER_S[kind.unit])
    if pa.types.is_date(kind):
        return Times(_whole(array.cast(pa.timestamp("s"))), 1)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _parsed(array, name)
    if pa.types.is_integer(kind):
        try:
            return Times(_whole(array), None)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"time column {name!r} holds numbers beyond 64 bits: {error}",
                hint="store smaller numbers, or moments",
            ) from error
    if pa.types.is_floating(kind):
        values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise _missing(name, int(wrong.argmax()), int(wrong.sum()))
        return Times(values, None)
    raise InputError(
        f"time column {name!r} holds values of type {kind}; timestamps, dates, numbers or ISO 8601 text "
        "are expected",
        hint="convert the column, or name another one",
    )


def gap_in_units(gap: str | float, times: Times, *, name: str) -> Gap:
    """Give a gap in the unit of a column of time.

    Args:
        gap: A number for a column of numbers, a duration such as ``'7d'`` for one of moments.
        times: The column.
        name: Of the column, for messages.

    Raises:
        SettingsError: The gap does not fit the column.
    """
    if gap == 0:
        return NO_GAP
    if times.units_per_s is None:
        if isinstance(gap, str):
            raise SettingsError(
                f"gap = {gap!r} is a duration, but time column {name!r} holds plain numbers",
                hint="write the gap as a number in the column's unit",
            )
        whole = times.values.dtype.kind == "i" and float(gap).is_integer()
        return Gap(int(gap) if whole else gap, f"{gap:g}")
    match = DURATION.fullmatch(gap) if isinstance(gap, str) else None
    if not isinstance(gap, str) or match is None:
        raise SettingsError(
            f"gap = {gap!r} has no unit of time, but time column {name!r} holds moments",
            hint="write a duration such as '90s', '15m', '12h' or '7d'",
        )
    length = float(match[1]) * _SECONDS[match[2]] * times.units_per_s
    if not np.isfinite(length):
        raise SettingsError(f"gap = {gap[:20]!r}... is longer than any time", hint="set a shorter gap")
    return Gap(round(length), match[0])


def _whole(array: Any) -> np.ndarray:
    import pyarrow as pa

    return np.asarray(array.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _parsed(array: Any, name: str) -> Times:
    """Read ISO 8601 text: Arrow where it can, Python for what Arrow does not know."""
    import pyarrow as pa

    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return Times(_whole(array.cast(kind)), _UNITS_PER_S["us"])
        except pa.ArrowInvalid:
            continue
    values = np.empty(len(array), dtype=np.int64)
    zoned = None
    for row, text in enumerate(array.to_pylist()):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise InputError(
                f"time column {name!r}, row {row}: {text[:40]!r} is no ISO 8601 time",
                hint="write times like 2024-01-31 or 2024-01-31T12:00:00",
            ) from error
        if zoned is not None and zoned != (moment.tzinfo is not None):
            raise InputError(
                f"time column {name!r}, row {row}: {text[:40]!r} and the rows before differ in having a "
                "time zone",
                hint="write every time with an offset, or none",
            )
        zoned = moment.tzinfo is not None
        since = (moment if zoned else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
        values[row] = (since.days * 86400 + since.seconds) * 10**6 + since.microseconds
    return Times(values, _UNITS_PER_S["us"])


def _missing(name: str, row: int, count: int) -> InputError:
    return InputError(
        f"time column {name!r}, row {row}: a value is missing or not finite ({count} rows)",
        hint="fill or drop those rows",
    )
