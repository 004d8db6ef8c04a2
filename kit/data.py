"""A project's data: read, checked, split.

The same split comes out wherever it is asked for (training, export, evaluation), because it
depends on the table's bytes and the settings alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError, nearest
from kit.signature import ClassName, Signature, Tensors
from kit.tables import fingerprint, read_table, to_tensors

if TYPE_CHECKING:
    import pyarrow as pa

    from kit.project import Project

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class Part:
    """Some of the rows.

    Attributes:
        tensors: Input name to array, shape (n_rows, ...).
        labels: Class indices (int64) or values (float32), shape (n_rows,).
        rows: Row numbers in the table, from 0, shape (n_rows,).
    """

    tensors: Tensors
    labels: np.ndarray
    rows: np.ndarray

    def take(self, positions: np.ndarray) -> Part:
        """Give some of the rows, by their position in this part."""
        return Part(
            {name: array[positions] for name, array in self.tensors.items()},
            self.labels[positions],
            self.rows[positions],
        )


@dataclass(frozen=True)
class Split:
    """A project's rows in their three parts.

    Attributes:
        train: What the weights and the preprocessing are fitted on.
        validation: What early stopping watches.
        test: What the metrics, the gates and every comparison are measured on.
        classes: The classes in the order of their indices; empty for regression.
        fingerprint: The sha256 that names the table.
        n_rows: Rows of the table.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[ClassName, ...]
    fingerprint: str
    n_rows: int


def load(project: Project) -> Split:
    """Read a project's table, check it and split it.

    Raises:
        InputError: A column is missing, of the wrong type or empty; the label has missing
            values, one class only, or a class too small to split; the table changed meanwhile.
    """
    return _load(project, *_read(project))


def held_out_table(project: Project) -> pa.Table:
    """Give the held-out rows as the table had them, all columns included."""
    table, digest = _read(project)
    return table.take(_load(project, table, digest).test.rows)


def _read(project: Project) -> tuple[pa.Table, str]:
    """Read the table and its fingerprint, which are of the same bytes."""
    settings = project.settings.data
    uri = project.locate(settings.path)
    signature = Signature("", project.settings.input_signature(), ())
    digest = fingerprint(uri)
    table = read_table(uri, strings=signature.string_columns)
    if fingerprint(uri) != digest:
        raise InputError(
            f"{settings.path} changed while it was read", hint="run again when nobody writes to it"
        )
    return table, digest


def _load(project: Project, table: pa.Table, digest: str) -> Split:
    settings = project.settings.data
    signature = Signature("", project.settings.input_signature(), ())
    if not table.num_rows:
        raise InputError(f"{settings.path} has no rows", hint="name a table with rows under [data] path")
    if settings.label not in table.column_names:
        raise InputError(
            f"{settings.path} has no label column {settings.label!r}",
            hint=nearest(settings.label, table.column_names),
        )
    labels, classes = _labels(table.column(settings.label), project.settings.project.task, settings.label)
    for column in signature.columns:
        if column in table.column_names and _is_empty(table.column(column)):
            raise InputError(
                f"column {column!r} of {settings.path} holds no value at all",
                hint="fill the column or take it out of [[data.inputs]]",
            )
    everything = Part(to_tensors(table, signature), labels, np.arange(table.num_rows))
    train, validation, test = _split(everything, stratified=bool(classes), project=project)
    _log.info(
        "read %d rows of %s: %d to train on, %d to validate, %d held out",
        *(table.num_rows, settings.path, len(train.rows), len(validation.rows), len(test.rows)),
    )
    return Split(train, validation, test, classes, digest, table.num_rows)


def _labels(column: Any, task: str, name: str) -> tuple[np.ndarray, tuple[ClassName, ...]]:
    if column.null_count:
        raise InputError(f"the label {name!r} is missing in {column.null_count} rows", hint="drop those rows")
    values = column.to_numpy(zero_copy_only=False)
    if task == "regression":
        with np.errstate(over="ignore"):
            targets = values.astype(np.float32) if values.dtype.kind in "fiu" else np.array([np.nan])
        if not np.isfinite(targets).all():
            raise InputError(f"the label {name!r} holds values that are not finite float32 numbers")
        return targets, ()
    if not _is_class_type(column.type):
        raise InputError(
            f"the label {name!r} holds values of type {column.type}; classes are whole numbers or strings",
            hint='set task = "regression", or make the label a string',
        )
    classes, indices, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise InputError(f"the label {name!r} has the one value {classes[0]!r}; two classes are needed")
    if counts.min() < 5:
        small = classes[counts.argmin()]
        raise InputError(
            f"class {small!r} of the label {name!r} has {counts.min()} rows; 5 are needed to split it",
            hint="collect more rows of the class, or merge or drop it",
        )
    names: list[ClassName] = [str(value) if isinstance(value, str) else int(value) for value in classes]
    return indices.astype(np.int64), tuple(names)


def _is_empty(column: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(column.is_null(nan_is_null=True)).as_py())


def _is_class_type(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    return any(check(kind) for check in checks)


def _split(everything: Part, *, stratified: bool, project: Project) -> tuple[Part, Part, Part]:
    from sklearn.model_selection import train_test_split

    settings = project.settings.data
    positions = np.arange(len(everything.rows))

    def cut(candidates: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        strata = everything.labels[candidates] if stratified else None
        kept, taken = train_test_split(
            candidates, test_size=fraction, random_state=settings.seed, stratify=strata
        )
        return np.sort(kept), np.sort(taken)

    try:
        rest, test = cut(positions, settings.test_fraction)
        train, validation = cut(rest, settings.validation_fraction)
    except ValueError as error:
        raise InputError(
            f"{len(positions)} rows cannot be split by test_fraction = {settings.test_fraction} and "
            f"validation_fraction = {settings.validation_fraction}: {error}",
            hint="collect more rows or change the fractions",
        ) from error
    return everything.take(train), everything.take(validation), everything.take(test)
