"""Records of data: what prepare found in a table, did to it, and made of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kit.report.records.facts import Count, Facts, Record


class Table(Facts):
    """The table that was read."""

    path: str
    fingerprint: str
    n_rows: Count
    n_files: Count
    size_bytes: Count


class Parts(Facts):
    """How the rows were split, and how many came into each part."""

    how: str
    seed: int
    train: Count
    validation: Count
    test: Count


class ChangeFacts(Facts):
    """What one step did to rows and values; see ``kit.cleaning.Change``."""

    step: str
    column: str | None
    rows_before: Count
    rows_after: Count
    n_values: Count
    detail: str = ""


class ColumnFacts(Facts):
    """One column of the raw table; see ``kit.columns``."""

    name: str
    role: str = "input"
    kind: Literal["number", "string", "list"]
    missing: Count
    n_unique: Count
    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    quartiles: tuple[float | None, ...] = ()
    categories: dict[str, Count] = Field(default_factory=dict)
    edges: tuple[float, ...] = ()
    train_counts: tuple[Count, ...] = ()
    test_counts: tuple[Count, ...] = ()


class ClassCounts(Facts):
    """Rows of one class in each part."""

    train: Count
    validation: Count
    test: Count

    @property
    def total(self) -> int:
        """Rows of the class in all parts."""
        return self.train + self.validation + self.test


class Leak(Facts):
    """What one leakage check found."""

    check: str
    found: int
    detail: str = ""


class PrepareRecord(Record):
    """A table that was read, checked, cleaned and split; see ``jobs.prepare``."""

    data: Table
    split: Parts
    changes: tuple[ChangeFacts, ...]
    columns: tuple[ColumnFacts, ...]
    classes: dict[str, ClassCounts]
    n_features: Count
    features: tuple[str, ...] = ()
    leakage: tuple[Leak, ...] = ()
