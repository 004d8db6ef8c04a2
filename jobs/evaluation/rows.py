"""The rows a version is measured on: those held out when it was trained, or a labelled table.

Held-out rows are only those when data and split are still what the version was trained with; anything else is
refused, because the rows may be ones it has learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kit.bootstrap import INDEPENDENT, Draw
from kit.cleaning import Cleaned, apply_rule, check_rules, drop_duplicates
from kit.data import load_rows, read_data, rows_as_given, string_columns
from kit.errors import InputError, nearest
from kit.labels import read_labels
from kit.lineage import require_same_question, require_same_rows, require_same_signature
from kit.manifest import fingerprint
from kit.model_version import ModelVersion
from kit.project import Project
from kit.row_codes import value_codes
from kit.rows import Part, Rows, Split
from kit.settings.data import DataSettings
from kit.tables import to_tensors
from kit.times import read_times
from kit.windows import add_windows

if TYPE_CHECKING:
    import pyarrow as pa


#: What else evaluate can do where the held-out rows are not known any more.
_ELSEWHERE = "measure on labelled rows the model has not seen: --data TABLE"


@dataclass(frozen=True)
class MeasuredRows:
    """Rows with their truth.

    Attributes:
        part: Inputs and labels.
        table: The same rows with every column of their table.
        source: Where they come from, in words.
        fingerprint: Names the table.
        draw: Which of them a bootstrap draws together.
        split: The project's split; None for a table of its own.
        rows: All rows of the project's data, for folds; None likewise.
    """

    part: Part
    table: pa.Table
    source: str
    fingerprint: str
    draw: Draw = INDEPENDENT
    split: Split | None = None
    rows: Rows | None = None

    @property
    def held_out(self) -> bool:
        """Whether these are the rows held out when the version was trained."""
        return self.split is not None


def held_out_rows(project: Project, version: ModelVersion) -> MeasuredRows:
    """Give the rows that were held out when a version was trained.

    Raises:
        InputError: The data, the split or the inputs are no longer what the version was trained with.
    """
    rows = load_rows(project)
    train, validation, test = rows.hold_out()
    split = rows.split(train=train, validation=validation, test=test)
    require_same_rows(project, version, split, otherwise=_ELSEWHERE)
    require_same_signature(project, version, classes=split.classes, otherwise=_ELSEWHERE)
    source = f"held-out rows of {project.settings.data.path}"
    return MeasuredRows(split.test, rows.table.take(test), source, split.fingerprint, split.draw, split, rows)


def labelled_rows(project: Project, version: ModelVersion, uri: str) -> MeasuredRows:
    """Read a table of rows with labels.

    Args:
        project: Names the label.
        version: Whose inputs and classes the table must have.
        uri: The table.

    Raises:
        InputError: A column is missing, the label is not there or has values the model does not know, the
            table has no rows, or kit.toml asks another question than the version was trained on.
    """
    require_same_question(project, version)
    signature, label = version.signature, project.settings.data.label
    digest = fingerprint(uri)
    settings, prepare = project.settings.data, project.prepare()
    table = read_data(uri, signature, settings=settings, label=label, strings=string_columns(project))
    if label not in table.column_names:
        raise InputError(
            f"{uri} has no label column {label!r}, so nothing can be measured on it",
            hint=nearest(label, table.column_names),
        )
    inputs = frozenset(signature.columns)
    check_rules(prepare.rules, inputs=inputs, columns=table.column_names)
    cleaned = Cleaned(table, np.arange(table.num_rows))
    for rule in prepare.rules:  # the same steps as in training, so that the same kind of rows is measured
        cleaned = apply_rule(cleaned, rule, inputs=inputs)
    if prepare.duplicates is not None:
        cleaned = drop_duplicates(cleaned, prepare.duplicates, time=settings.time)
    with rows_as_given(cleaned.rows):
        table, _ = add_windows(cleaned.table, prepare.windows, time=settings.time)
        if not table.num_rows:
            raise InputError(f"{uri} has no rows to measure on", hint="name a table with rows")
        column = table.column(label)
        labels, _ = read_labels(column, task=signature.task, name=label, classes=signature.classes)
        part = Part(to_tensors(table, signature), labels, cleaned.rows)
        return MeasuredRows(part, table, f"rows of {uri}", digest, _draw(table, settings))


def _draw(table: pa.Table, settings: DataSettings) -> Draw:
    """Draw a table's rows as the project's own; one by one where it lacks the column."""
    if settings.split == "grouped" and settings.group in table.column_names:
        codes = value_codes(table.column(settings.group))
        if (codes < 0).any():
            raise InputError(
                f"the group {settings.group!r} is missing in {int((codes < 0).sum())} rows",
                hint="fill or drop those rows; nobody knows which others they belong to",
            )
        return Draw.of_groups(codes)
    if settings.split == "time" and settings.time in table.column_names:
        return Draw.of_times(read_times(table.column(settings.time), name=settings.time).values)
    return INDEPENDENT
