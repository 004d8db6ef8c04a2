"""The data section: the table's newest preparation, as ``kit prepare`` left it."""

from __future__ import annotations

from dataclasses import dataclass

from kit.report.plots import data as plots
from kit.report.records.data import ChangeFacts, ClassCounts, ColumnFacts, Leak, PrepareRecord

MAX_COLUMNS = 100
_MAX_CHANGES = 40
_MAX_LEAKS = 20
_MAX_CATEGORIES = 3


@dataclass(frozen=True)
class Column:
    """A column as it is shown.

    Attributes:
        facts: Its statistics.
        n_rows: Rows of the raw table.
        frequent: Its most frequent values and their shares of the rows; for strings.
        histogram: Training rows against held-out rows; the empty text where there is none.
    """

    facts: ColumnFacts
    n_rows: int
    frequent: tuple[tuple[str, float], ...]
    histogram: str

    @property
    def missing(self) -> float:
        """Share of the rows that hold no value; not for a column of lists, whose values are counted."""
        return self.facts.missing / (self.n_rows or 1)


@dataclass(frozen=True)
class Data:
    """The newest preparation as it is shown; every ``n_more`` says how many are left out."""

    run: PrepareRecord
    leaks: tuple[Leak, ...]
    changes: tuple[ChangeFacts, ...]
    n_more_changes: int
    columns: tuple[Column, ...]
    n_more_columns: int
    classes: tuple[tuple[str, ClassCounts], ...]
    n_more_classes: int
    balance: str | None

    @property
    def n_leaks(self) -> int:
        """How many checks found something."""
        return sum(1 for leak in self.run.leakage if leak.found)

    @property
    def parts(self) -> tuple[tuple[str, int, float], ...]:
        """The parts: what they are for, their rows and their share of all that are left."""
        split = self.run.split
        total = split.train + split.validation + split.test or 1
        named = (("train", split.train), ("validation", split.validation), ("held out", split.test))
        return tuple((name, rows, rows / total) for name, rows in named)


def data(runs: tuple[PrepareRecord, ...]) -> Data | None:
    """Show the newest preparation."""
    if not runs:
        return None
    run = runs[0]
    leaks = sorted(run.leakage, key=lambda leak: not leak.found)
    classes = list(run.classes.items())
    n_more = max(len(classes) - plots.MAX_CLASSES, 0)
    if n_more:
        classes = sorted(classes, key=lambda each: -each[1].total)[: plots.MAX_CLASSES]
    balance = None
    if classes:
        balance = plots.class_balance(
            [(name, each.train, each.validation, each.test) for name, each in classes],
            n_rows=sum(each.total for each in run.classes.values()),
            name="class-balance",
        )
    return Data(
        run=run,
        leaks=tuple(leaks[:_MAX_LEAKS]),
        changes=run.changes[:_MAX_CHANGES],
        n_more_changes=max(len(run.changes) - _MAX_CHANGES, 0),
        columns=tuple(_column(each, n_rows=run.data.n_rows) for each in run.columns[:MAX_COLUMNS]),
        n_more_columns=max(len(run.columns) - MAX_COLUMNS, 0),
        classes=tuple(classes),
        n_more_classes=n_more,
        balance=balance,
    )


def _column(facts: ColumnFacts, *, n_rows: int) -> Column:
    frequent = sorted(facts.categories.items(), key=lambda each: (-each[1], each[0]))[:_MAX_CATEGORIES]
    return Column(
        facts,
        n_rows,
        tuple((name, count / (n_rows or 1)) for name, count in frequent),
        plots.histogram(facts.train_counts, facts.test_counts),
    )
