"""The rows a version is measured on: those held out when it was trained, or a labelled table.

Held-out rows are only those when data and split are still what the version was trained with; anything else is
refused, because the rows may be ones it has learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.cleaning import Cleaned, apply_rule, check_rules, drop_duplicates
from kit.data import Part, Rows, Split, load_rows, read_data
from kit.errors import InputError, nearest
from kit.lineage import require_same_rows
from kit.manifest import fingerprint
from kit.model_version import ModelVersion
from kit.project import Project
from kit.tables import to_tensors
from kit.windows import add_windows

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class MeasuredRows:
    """Rows with their truth.

    Attributes:
        part: Inputs and labels.
        table: The same rows with every column of their table.
        source: Where they come from, in words.
        fingerprint: Names the table.
        split: The project's split; None for a table of its own.
        rows: All rows of the project's data, for folds; None likewise.
    """

    part: Part
    table: pa.Table
    source: str
    fingerprint: str
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
    require_same_rows(project, version, split)
    _check_signature(project, version, classes=split.classes)
    source = f"held-out rows of {project.settings.data.path}"
    return MeasuredRows(split.test, rows.table.take(test), source, split.fingerprint, split, rows)


def labelled_rows(project: Project, version: ModelVersion, uri: str) -> MeasuredRows:
    """Read a table of rows with labels.

    Args:
        project: Names the label.
        version: Whose inputs and classes the table must have.
        uri: The table.

    Raises:
        InputError: A column is missing, the label is not there or has values the model does not know, or
            the table has no rows.
    """
    signature, label = version.signature, project.settings.data.label
    digest = fingerprint(uri)
    settings, prepare = project.settings.data, project.prepare()
    table = read_data(uri, signature, settings=settings, label=label)
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
    table, _ = add_windows(cleaned.table, prepare.windows, time=settings.time)
    if not table.num_rows:
        raise InputError(f"{uri} has no rows to measure on", hint="name a table with rows")
    column = table.column(label)
    labels = _values(column, label) if signature.task == "regression" else _indices(column, label, version)
    part = Part(to_tensors(table, signature), labels, cleaned.rows)
    return MeasuredRows(part, table, f"rows of {uri}", digest)


def _check_signature(project: Project, version: ModelVersion, *, classes: tuple[Any, ...]) -> None:
    if project.settings.input_signature() != version.signature.inputs:
        raise InputError(
            f"[[data.inputs]] is not what {version.name!r} was trained with",
            hint="restore kit.toml, or train again",
        )
    if classes != version.signature.classes:
        raise InputError(
            f"the label has the classes {list(classes)}, and {version.name!r} knows "
            f"{list(version.signature.classes)}",
            hint="restore the data, or train again",
        )


def _values(column: Any, label: str) -> np.ndarray:
    _refuse_missing(column, label)
    values = column.to_numpy(zero_copy_only=False)
    targets = values.astype(np.float32) if values.dtype.kind in "fiu" else np.array([np.nan])
    if not np.isfinite(targets).all():
        raise InputError(f"the label {label!r} holds values that are not finite float32 numbers")
    return np.asarray(targets)


def _indices(column: Any, label: str, version: ModelVersion) -> np.ndarray:
    _refuse_missing(column, label)
    index_of = {name: index for index, name in enumerate(version.signature.classes)}
    indices = np.zeros(len(column), dtype=np.int64)
    for row, value in enumerate(column.to_pylist()):
        known = value if isinstance(value, str) else int(value) if isinstance(value, (int, bool)) else None
        if known not in index_of:
            raise InputError(
                f"row {row} has the class {value!r}, which {version.name!r} does not know",
                hint=nearest(str(value), map(str, index_of)),
            )
        indices[row] = index_of[known]
    return indices


def _refuse_missing(column: Any, label: str) -> None:
    if column.null_count:
        raise InputError(
            f"the label {label!r} is missing in {column.null_count} rows, on which nothing can be measured",
            hint="drop those rows, or label them",
        )
