"""Cleaning: rules for strings, and duplicates. What each step changed is told.

Works on tables before anything is fitted. What it does to rows happens once, to the data; what must also
happen where the model answers is ``otherwise = 'missing'`` on an input, which the model's graph does and
this module leaves alone.

Patterns are Python's ``re`` and must match the whole value. They stand in kit.toml, which is trusted like
the project's Python: a pattern that backtracks without end, such as ``(a+)+b``, stops the run, so write
none that repeats a repetition. Each different value is matched once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError, SettingsError, nearest
from kit.row_codes import as_array, same_rows, without_empty
from kit.settings.prepare import DuplicatesSettings, RuleSettings
from kit.times import read_times

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Change:
    """What one step did to the data.

    Attributes:
        step: Which step, for example ``rule`` or ``duplicates``.
        column: The column it read; None for all of them.
        rows_before: Rows it was given.
        rows_after: Rows it left.
        n_values: How many values, or rows, it touched.
        detail: The same in words.
    """

    step: str
    column: str | None
    rows_before: int
    rows_after: int
    n_values: int
    detail: str


@dataclass(frozen=True)
class Cleaned:
    """A table after some steps.

    Attributes:
        table: The rows that are left, in their order.
        rows: Their row numbers in the raw table, shape (n_rows,).
        changes: What the steps did.
    """

    table: pa.Table
    rows: np.ndarray
    changes: tuple[Change, ...] = ()

    def keep(self, mask: np.ndarray, change: Change) -> Cleaned:
        """Give the rows where a mask of shape (n_rows,) is true."""
        if mask.all():
            return Cleaned(self.table, self.rows, (*self.changes, change))
        kept = self.table.filter(mask)
        return Cleaned(kept, self.rows[mask], (*self.changes, change))


def check_rules(rules: Sequence[RuleSettings], *, inputs: Collection[str], columns: Sequence[str]) -> None:
    """Refuse rules that cannot be followed, before any work.

    Args:
        rules: What kit.toml says.
        inputs: Columns the model reads.
        columns: Columns of the table.

    Raises:
        SettingsError: A column is not there, or an input's values would be replaced.
    """
    for rule in rules:
        require_column(rule.column, columns, what="a rule")
        if rule.otherwise == "replace" and rule.column in inputs:
            raise SettingsError(
                f"a rule replaces values of {rule.column!r}, which the model reads, and the model could not "
                "do the same to a value it is asked about",
                hint="set otherwise = 'missing', or correct the table before",
            )


def require_column(column: str, columns: Sequence[str], *, what: str) -> None:
    """Refuse a column that is not there.

    Raises:
        SettingsError: It is not; the nearest is named.
    """
    if column not in columns:
        raise SettingsError(
            f"{what} names the column {column!r}, which the data does not have", hint=nearest(column, columns)
        )


def apply_rule(cleaned: Cleaned, rule: RuleSettings, *, inputs: Collection[str]) -> Cleaned:
    """Follow one rule.

    A missing value (null, or an empty string) breaks no rule.

    Args:
        cleaned: What the steps before left.
        rule: A pattern and what happens otherwise.
        inputs: Columns the model reads; 'missing' leaves their values for the model's graph.

    Raises:
        InputError: The column holds no strings, or a value does not match and the rule says fail.
        SettingsError: The replacement refers to a group the pattern does not have.
    """
    texts, codes = _texts(cleaned.table.column(rule.column), rule.column)
    pattern = re.compile(rule.pattern, re.ASCII)
    if rule.otherwise == "replace":
        return _replace(cleaned, rule, texts, codes)
    holds = np.array([not text or pattern.fullmatch(text) is not None for text in texts] + [True])
    wrong = ~holds[codes]  # a missing value has the code -1: the True at the end
    count, n_rows = int(wrong.sum()), cleaned.table.num_rows
    if rule.otherwise == "fail" and count:
        first = int(wrong.argmax())
        raise InputError(
            f"column {rule.column!r}, row {cleaned.rows[first]}: {texts[codes[first]][:80]!r} does not match "
            f"{rule.pattern!r} ({count} rows do not)",
            hint="correct the values, or set otherwise = 'drop' or 'missing' under [[prepare.rules]]",
        )
    n_left = n_rows - count if rule.otherwise == "drop" else n_rows
    said = f"{count} values of {rule.column!r} do not match {rule.pattern!r}"
    if rule.otherwise == "drop":
        change = Change("rule", rule.column, n_rows, n_left, count, f"{said}; their rows were dropped")
        return cleaned.keep(~wrong, change)
    if rule.otherwise == "missing" and rule.column not in inputs:
        change = Change("rule", rule.column, n_rows, n_left, count, f"{said} and became missing")
        return _with_column(cleaned, rule.column, [*texts, None], np.where(wrong, -1, codes), change)
    if rule.otherwise == "missing":
        said += "; the model takes them for missing"
    change = Change("rule", rule.column, n_rows, n_left, count, said)
    return Cleaned(cleaned.table, cleaned.rows, (*cleaned.changes, change))


def drop_duplicates(cleaned: Cleaned, settings: DuplicatesSettings, *, time: str | None) -> Cleaned:
    """Keep one of the rows that are equal in some columns.

    Missing values are equal to each other, and an empty string is a missing one. Of rows that are equally
    complete the first is kept, of rows equally late the last.

    Args:
        cleaned: What the steps before left.
        settings: Which columns, and which row is kept.
        time: The column [data] time names, for keep = 'latest' where the settings name none.

    Raises:
        InputError: The time column holds what is no time.
        SettingsError: A column is not there, or a time is needed.
    """
    table = cleaned.table
    keys = settings.keys or tuple(table.column_names)
    for key in keys:
        require_column(key, table.column_names, what="[prepare.duplicates] keys")
    where = "[data] time" if settings.time is None else "[prepare.duplicates] time"
    time = settings.time or time
    if settings.keep == "latest" and time is None:
        raise SettingsError(
            "keep = 'latest' has no time to order the rows by",
            hint="set time under [prepare.duplicates], or [data] time",
        )
    groups = same_rows(table, keys)
    place = np.arange(table.num_rows)
    if settings.keep == "first":
        order = np.lexsort((place, groups))
    elif settings.keep == "last":
        order = np.lexsort((-place, groups))
    elif settings.keep == "most-complete":
        order = np.lexsort((place, _n_missing(table), groups))
    else:
        assert time is not None
        require_column(time, table.column_names, what=where)
        late = read_times(table.column(time), name=time).values
        order = np.lexsort((place, late, groups))[::-1]
    ordered = groups[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[order[first]] = True
    n_left = int(mask.sum())
    n_gone = table.num_rows - n_left
    equal = f"equal in {', '.join(map(repr, settings.keys))}" if settings.keys else "equal in every column"
    detail = f"{n_gone} rows {equal} to another were dropped; the {settings.keep} was kept"
    return cleaned.keep(mask, Change("duplicates", None, table.num_rows, n_left, n_gone, detail))


def _replace(cleaned: Cleaned, rule: RuleSettings, texts: list[str], codes: np.ndarray) -> Cleaned:
    pattern = re.compile(rule.pattern, re.ASCII)
    try:
        replaced = [pattern.sub(rule.replacement, text) if text else text for text in texts]
    except (re.error, IndexError) as error:
        raise SettingsError(
            f"the replacement {rule.replacement!r} does not fit the pattern {rule.pattern!r}: {error}",
            hint=r"refer to groups of the pattern only, as in \1",
        ) from error
    differs = np.array([old != new for old, new in zip(texts, replaced, strict=True)] + [False])
    count, n_rows = int(differs[codes].sum()), cleaned.table.num_rows
    detail = f"{rule.pattern!r} was replaced in {count} values of {rule.column!r}"
    change = Change("rule", rule.column, n_rows, n_rows, count, detail)
    return _with_column(cleaned, rule.column, [*replaced, None], codes, change)


def _with_column(
    cleaned: Cleaned, column: str, texts: list[Any], codes: np.ndarray, change: Change
) -> Cleaned:
    """Put a column of strings in the place of one; the code -1 stands for missing."""
    import pyarrow as pa

    changes = (*cleaned.changes, change)
    if not change.n_values:
        return Cleaned(cleaned.table, cleaned.rows, changes)
    places = np.where(codes < 0, len(texts) - 1, codes)
    values = pa.array(texts, pa.large_string()).take(pa.array(places, pa.int64()))
    index = cleaned.table.column_names.index(column)
    return Cleaned(cleaned.table.set_column(index, column, values), cleaned.rows, changes)


def _texts(column: Any, name: str) -> tuple[list[str], np.ndarray]:
    """Give a column's different strings, and which of them each row holds (-1: none)."""
    import pyarrow as pa

    array = as_array(column)
    kind = array.type
    if pa.types.is_null(kind):
        return [], np.full(len(array), -1, dtype=np.int64)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(
            f"column {name!r} holds values of type {kind}; a rule reads strings",
            hint="take the rule out, or store the column as strings",
        )
    encoded = array.dictionary_encode()
    codes = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return encoded.dictionary.to_pylist(), codes


def _n_missing(table: pa.Table) -> np.ndarray:
    counts = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.columns:
        missing = without_empty(column).is_null(nan_is_null=True)
        counts += missing.to_numpy(zero_copy_only=False).astype(np.int64)
    return counts
