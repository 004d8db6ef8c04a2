"""Slices: where a model is worse than it is overall.

Rows are grouped by the values of any column of their table, whether the model reads it or not, and the groups
ranked by how much worse the metric is. Knows answers and a table; no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError, nearest
from kit.metrics import LOSSES, UndefinedMetricError, score

if TYPE_CHECKING:
    import pyarrow as pa

#: Below this many rows a slice is marked: chance alone moves its figure far.
SMALL_ROWS = 30
#: Numbers with more different values than this are cut at their quantiles.
_MAX_VALUES = 12
_N_QUANTILES = 4
#: Of strings with more different values, the most frequent; the rest are one slice.
_MAX_STRINGS = 50
_MISSING = "(missing)"
_REST = "(all others)"


@dataclass(frozen=True)
class Slice:
    """How a model does on the rows that share a value.

    Attributes:
        column: Of the table.
        value: Of the column, or a range of it.
        n_rows: How many rows have it.
        metric: What was measured.
        score: The metric on these rows; None where they do not determine it.
        worse_by: How much worse than on all rows, in the metric's unit; below 0 where it is better.
        small: Whether there are too few rows to make much of it.
    """

    column: str
    value: str
    n_rows: int
    metric: str
    score: float | None
    worse_by: float | None
    small: bool


def check_columns(table: pa.Table, columns: Sequence[str]) -> None:
    """Refuse a column that is not in the table, or whose rows hold more than one value each.

    Raises:
        InputError: Names the column.
    """
    import pyarrow as pa

    for column in columns:
        if column not in table.column_names:
            raise InputError(
                f"there is no column {column!r} to slice by", hint=nearest(column, table.column_names)
            )
        if pa.types.is_nested(table.schema.field(column).type):
            raise InputError(
                f"column {column!r} holds {table.schema.field(column).type}; slices need one value per row",
                hint="name a column of numbers, strings or moments",
            )


def rank_slices(
    table: pa.Table,
    columns: Sequence[str],
    *,
    labels: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    metric: str,
) -> tuple[Slice, ...]:
    """Measure every slice of some columns, the worst first.

    Args:
        table: The rows, in the order of the labels.
        columns: By whose values they are grouped.
        labels: The truth, shape (n_rows,).
        outputs: The model's answers to the rows.
        metric: What is measured.

    Raises:
        InputError: A column is not in the table or holds lists.
    """
    check_columns(table, columns)
    overall = score(metric, labels, outputs)
    sign = 1.0 if metric in LOSSES else -1.0
    slices = []
    for column in dict.fromkeys(columns):
        for value, chosen in _groups(table.column(column)):
            try:
                found: float | None = score(
                    metric, labels[chosen], {name: array[chosen] for name, array in outputs.items()}
                )
            except UndefinedMetricError:
                found = None
            worse_by = None if found is None else sign * (found - overall)
            n_rows = int(chosen.sum())
            slices.append(Slice(column, value, n_rows, metric, found, worse_by, n_rows < SMALL_ROWS))
    return tuple(sorted(slices, key=lambda each: (each.worse_by is None, -(each.worse_by or 0.0))))


def _groups(column: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Give the slices of a column: what to call each, and a mask of its rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        yield _MISSING, missing
    if missing.all():
        return
    if pa.types.is_temporal(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind):
        n_values = pc.count_distinct(column, mode="only_valid").as_py()
        if n_values > _MAX_VALUES:
            yield from _quantiles(column, missing)
            return
    values = [None if gone else each for each, gone in zip(column.to_pylist(), missing, strict=True)]
    counts: dict[Any, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    shown = sorted(counts, key=lambda each: -counts[each])[:_MAX_STRINGS]
    for value in shown:
        yield str(value), np.array([each == value and each is not None for each in values])
    if len(shown) < len(counts):
        known = set(shown)
        yield _REST, np.array([each is not None and each not in known for each in values])


def _quantiles(column: Any, missing: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Cut a column of many numbers or moments into ranges of about as many rows."""
    import pyarrow as pa

    timed = pa.types.is_temporal(column.type)
    numbers = np.full(len(missing), np.nan)
    present = column.drop_null()
    if timed:  # Arrow gives each as whole numbers of its own size alone
        present = present.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    numbers[~column.is_null().to_numpy(zero_copy_only=False)] = present.to_numpy(zero_copy_only=False)
    inside = numbers[~missing]
    cuts = np.unique(np.quantile(inside, np.linspace(0, 1, _N_QUANTILES + 1), method="lower"))
    # A range holds its upper end; the first its lower end as well.
    place = np.where(missing, -1, np.searchsorted(cuts[1:-1], numbers, side="left"))
    for index in range(max(len(cuts) - 1, 1)):
        chosen = np.flatnonzero(place == index)
        if len(chosen):
            ends = (chosen[numbers[chosen].argmin()], chosen[numbers[chosen].argmax()])
            first, last = (_moment(column, end) if timed else f"{numbers[end]:.6g}" for end in ends)
            yield f"{first} to {last}", place == index


def _moment(column: Any, row: int) -> str:
    """Say a moment, a time of day or a duration in words."""
    import pyarrow as pa

    if pa.types.is_time(column.type):
        return str(column.slice(row, 1).cast(pa.string())[0].as_py())
    value = column.slice(row, 1).to_numpy()[0]
    return str(value) if pa.types.is_duration(column.type) else str(np.datetime_as_string(value))
