"""Sliding windows: the last values of a column, laid into each row as a list.

A window looks back only, so a held-out row's window may hold values of training rows: that is what the
model is given when it answers. The other way round is leakage; which rows a window reaches is said here, and
judged by ``kit.leakage``. A window ends with its own row's value, so none may read the label, which is not
known where the model answers. What is measured over a window belongs to the model's graph, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.cleaning import Change, require_column
from kit.errors import InputError, SettingsError
from kit.row_codes import as_array, value_codes
from kit.settings.prepare import WindowSettings
from kit.times import read_times

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Reach:
    """Whose values the windows of one name hold; each array has shape (n_rows,).

    Attributes:
        window: What kit.toml declares.
        order: Positions of the rows in the order the windows go by, each group after the other.
        starts: Index in ``order`` of the first row that the window of the row at this index reaches.
        known: Whether the row at a position has a value to be held, not a missing one.
    """

    window: WindowSettings
    order: np.ndarray
    starts: np.ndarray
    known: np.ndarray

    def holding(self, rows: np.ndarray) -> np.ndarray:
        """Find the rows whose windows hold a value of any of some rows.

        Args:
            rows: Whether the row at a position is one of them, shape (n_rows,).

        Returns:
            Whether the window of the row at a position holds one, shape (n_rows,).
        """
        sources = (rows & self.known)[self.order]
        before = np.concatenate([[0], np.cumsum(sources)])  # how many lie before each index
        held = np.empty(len(rows), dtype=bool)
        held[self.order] = before[1:] > before[self.starts]
        return held


def check_windows(windows: Sequence[WindowSettings], *, label: str, columns: Sequence[str]) -> None:
    """Refuse windows that would show the model the label, or that nothing reads, before any work.

    Args:
        windows: What kit.toml declares.
        label: Column to predict.
        columns: What the inputs read.

    Raises:
        SettingsError: A window collects the label, or goes by it, or is no input's column.
    """
    for window in windows:
        for key in ("column", "group", "time"):
            if getattr(window, key) == label:
                raise SettingsError(
                    f"the window {window.name!r} has {key} = {label!r}, which is the label: each window ends "
                    "with its own row, so the model would be shown its answer",
                    hint="name another column, or one of your table that holds the label's earlier values "
                    "alone",
                )
        if window.name not in columns:
            raise SettingsError(
                f"the window {window.name!r} is read by no input, so the model would never see it",
                hint=f"declare it under [[data.inputs]]: name = {window.name!r}, shape = [{window.length}], "
                "nullable = true; or remove the window",
            )


def add_windows(
    table: pa.Table, windows: Sequence[WindowSettings], *, time: str | None
) -> tuple[pa.Table, tuple[Change, ...]]:
    """Add the columns that windows declare.

    Each row gets the last ``length`` values of a column within the row's group, its own included, in the
    order of time and oldest first; where there is not so much history, NaN stands at the start.
    Of rows with equal times, those earlier in the table count as earlier.

    Args:
        table: n_rows rows in any order, which they keep.
        windows: What kit.toml declares.
        time: The column [data] time names, for windows that name none.

    Returns:
        The table with one column of lists (float32, ``length`` values each) per window, and one
        change per window.

    Raises:
        InputError: A value of a time or group is missing, or the column does not hold numbers.
        SettingsError: A column is not there, is there already, or no time is named.
    """
    import pyarrow as pa

    changes = []
    for window in windows:
        if window.name in table.column_names:
            raise SettingsError(
                f"the window {window.name!r} has the name of a column of the data", hint="choose another name"
            )
        values = window_values(table, window, time=time)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), window.length)
        table = table.append_column(window.name, lists)
        n_short = int(np.isnan(values[:, 0]).sum())
        whose = f" per {window.group}" if window.group else ""
        detail = (
            f"{window.name!r} holds the last {window.length} values of {window.column!r}{whose}; "
            f"{n_short} rows start with a missing one"
        )
        changes.append(Change("window", window.name, table.num_rows, table.num_rows, table.num_rows, detail))
    return table, tuple(changes)


def window_values(table: pa.Table, window: WindowSettings, *, time: str | None) -> np.ndarray:
    """Collect the values of one window; see ``add_windows``.

    Returns:
        float32, shape (n_rows, length).
    """
    order, groups = _in_order(table, window, time=time)
    return _lay_out(_numbers(table.column(window.column), window.column), order, groups, window.length)


def window_reach(table: pa.Table, window: WindowSettings, *, time: str | None) -> Reach:
    """Say whose values the windows of one name hold; takes and raises what ``window_values`` does."""
    order, groups = _in_order(table, window, time=time)
    index = np.arange(len(order))
    starts = np.maximum(index - _since_start(groups[order]), index - window.length + 1)
    known = ~np.isnan(_numbers(table.column(window.column), window.column))
    return Reach(window, order, starts, known)


def _in_order(table: pa.Table, window: WindowSettings, *, time: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Give the positions of the rows in the order of a window, and the group of each position."""
    time = window.time or time
    if time is None:
        raise SettingsError(
            f"the window {window.name!r} has no time to order the rows by",
            hint="set time under [[prepare.windows]], or [data] time",
        )
    for column in (window.column, time, *((window.group,) if window.group else ())):
        require_column(column, table.column_names, what=f"the window {window.name!r}")
    times = read_times(table.column(time), name=time).values
    groups = np.zeros(len(times), dtype=np.int64)
    if window.group:
        groups = value_codes(table.column(window.group))
        if (groups < 0).any():
            raise InputError(
                f"group column {window.group!r}, row {int((groups < 0).argmax())}: a value is missing",
                hint="fill or drop those rows; each needs a history of its own",
            )
    return np.lexsort((times, groups)), groups  # lexsort is stable


def _since_start(members: np.ndarray) -> np.ndarray:
    """Count the rows before each one of the same group; equal groups lie together."""
    if not len(members):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], members[1:] != members[:-1]]))
    lengths = np.diff(np.concatenate([starts, [len(members)]]))
    return np.arange(len(members)) - np.repeat(starts, lengths)


def _lay_out(values: np.ndarray, order: np.ndarray, groups: np.ndarray, length: int) -> np.ndarray:
    """Lay the values that lie before each in an order into rows, NaN where another group begins."""
    laid = np.empty((len(values), length), dtype=np.float32)
    if not len(values):
        return laid
    since_start = _since_start(groups[order])
    padded = np.concatenate([np.full(length - 1, np.nan, dtype=np.float32), values[order]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, length).copy()
    for index in range(length - 1):
        windows[since_start < length - 1 - index, index] = np.nan
    laid[order] = windows
    return laid


def _numbers(column: Any, name: str) -> np.ndarray:
    import pyarrow as pa

    array = as_array(column)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan, dtype=np.float32)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(
            f"column {name!r} holds values of type {kind}; a window collects numbers",
            hint="name a column of numbers under [[prepare.windows]]",
        )
    with np.errstate(over="ignore"):
        values = array.to_numpy(zero_copy_only=False)
        if values.dtype == object:  # booleans with nulls
            values = np.array([np.nan if value is None else value for value in values])
        return np.asarray(values, dtype=np.float32)
