"""A project's data: read, checked, cleaned, split.

The same split comes out wherever it is asked for (training, export, evaluation), because it
depends on the data's bytes and the settings alone. What is fitted to columns is not done here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kit.cleaning import Change as Change
from kit.cleaning import Cleaned, apply_rule, check_rules, drop_duplicates, require_column
from kit.errors import InputError, SettingsError, nearest
from kit.images import has_both, image_layout, list_data, read_images, takes_images
from kit.labels import read_labels
from kit.leakage import Evidence, check_leakage
from kit.manifest import Manifest, describe_table, digest_files, fingerprint_of, keep_manifest
from kit.row_codes import same_rows, value_codes
from kit.settings.data import DataSettings
from kit.settings.prepare import PrepareSettings
from kit.signature import ClassName, Signature, Tensors
from kit.splits import (
    Positions,
    cut_groups,
    cut_random,
    cut_time,
    group_folds,
    k_folds,
    leave_one_out,
    time_folds,
)
from kit.tables import read_table, to_tensors
from kit.times import gap_in_units, read_times
from kit.windows import add_windows

if TYPE_CHECKING:
    import pyarrow as pa

    from kit.project import Project

_log = logging.getLogger("kit")

SplitKind = Literal["random", "stratified", "grouped", "time"]
FoldKind = Literal["k-fold", "leave-one-out", "grouped", "time-series"]


@dataclass(frozen=True)
class Part:
    """Some of the rows.

    Attributes:
        tensors: Input name to array, shape (n_rows, ...).
        labels: Class indices (int64) or values (float32), shape (n_rows,).
        rows: Row numbers in the raw table, from 0, shape (n_rows,).
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
        fingerprint: The sha256 that names the data.
        n_rows: Rows of the raw table.
        changes: What cleaning and splitting did to the rows, in order.
        leakage: What was looked for between the parts: ``check``, ``found``, ``detail``.
        n_files: Files of the data set.
        size_bytes: Their sizes together.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[ClassName, ...]
    fingerprint: str
    n_rows: int
    changes: tuple[Change, ...] = ()
    leakage: tuple[Mapping[str, Any], ...] = ()
    n_files: int = 0
    size_bytes: int = 0


@dataclass(frozen=True)
class Rows:
    """A project's rows, cleaned and not yet split. Positions count from 0 in them.

    Attributes:
        everything: All rows as tensors and labels.
        table: The same rows with all columns, windows included.
        classes: The classes in the order of their indices; empty for regression.
        manifest: Of the data they were read from.
        changes: What the steps so far did.
        settings: How they are split.
        evidence: What no two parts may share; its times order the rows.
        raw: The table as it was read.
        groups: Group of each row as a whole number, shape (n_rows,); None where none is declared.
        gap: Time left out before a later part, in the unit of the times.
    """

    everything: Part
    table: pa.Table
    classes: tuple[ClassName, ...]
    manifest: Manifest
    changes: tuple[Change, ...]
    settings: DataSettings
    evidence: Evidence
    raw: pa.Table
    groups: np.ndarray | None = None
    gap: float = 0

    @property
    def kind(self) -> SplitKind:
        """How they are split."""
        return self.settings.split or ("stratified" if self.classes else "random")

    def hold_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the positions to train on, to validate and to hold out, as [data] says.

        Raises:
            InputError: The rows are too few, or of too few groups or times.
        """
        settings = self.settings
        positions = np.arange(len(self.everything.rows))
        try:
            rest, test = self._cut(positions, settings.test_fraction, kind=self.kind, leave=2)
            train, validation = self._cut(rest, settings.validation_fraction, kind=self.kind)
        except InputError as error:
            raise InputError(
                f"{len(positions)} rows cannot be split by test_fraction = {settings.test_fraction} and "
                f"validation_fraction = {settings.validation_fraction}: {error}",
                hint="collect more rows or change the fractions"
                + (", the gap" if self.kind == "time" and self.gap else ""),
            ) from error
        return train, validation, test

    def carve(self, positions: np.ndarray, *, kind: SplitKind | None = None) -> Positions:
        """Choose validation rows among the rows a fold trains on.

        Args:
            positions: Of the fold's training rows.
            kind: How; as [data] says when None.

        Returns:
            The positions to train on and those to validate on.

        Raises:
            InputError: The rows are too few, or of too few groups or times.
        """
        fraction = self.settings.validation_fraction
        try:
            return self._cut(positions, fraction, kind=kind or self.kind)
        except SettingsError:
            raise
        except InputError as error:
            raise InputError(
                f"{len(positions)} training rows cannot be split by validation_fraction = {fraction}: "
                f"{error}",
                hint="collect more rows, set fewer folds or another fraction",
            ) from error

    def folds(self, kind: FoldKind, *, n_folds: int) -> Iterator[Positions]:
        """Yield the training and the test positions of each fold of a cross-validation.

        Args:
            kind: k-fold keeps the shares of the classes; time-series trains on the past alone.
            n_folds: How many; leave-one-out has one per row whatever this says.

        Raises:
            InputError: The rows are too few, or of too few groups or times.
            SettingsError: [data] group or time is needed.
        """
        n_rows = len(self.everything.rows)
        if kind == "leave-one-out":
            return leave_one_out(n_rows)
        if kind == "grouped":
            return group_folds(self._needed_groups(), n_folds=n_folds)
        if kind == "time-series":
            return time_folds(self._needed_times(), n_folds=n_folds, gap=self.gap)
        strata = self.everything.labels if self.classes else None
        return k_folds(n_rows, n_folds=n_folds, seed=self.settings.seed, strata=strata)

    def split(self, *, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> Split:
        """Put rows into three parts, and look for what crosses between them.

        Args:
            train: Positions of what is fitted on.
            validation: Positions of what early stopping watches.
            test: Positions of what is measured on.

        Raises:
            InputError: An id or a time is in two parts, or a class has no training row.
        """
        parts = {"train": train, "validation": validation, "test": test}
        leakage = check_leakage(self.evidence, parts)
        self._require_classes(train)
        changes = self.changes
        n_rows, n_left = len(self.everything.rows), sum(len(positions) for positions in parts.values())
        if n_left < n_rows:
            detail = f"{n_rows - n_left} rows are in no part"
            if self.gap:
                detail += f", because of the gap of {self.settings.gap}"
            changes = (*changes, Change("split", self.settings.time, n_rows, n_left, n_rows - n_left, detail))
        return Split(
            train=self.everything.take(train),
            validation=self.everything.take(validation),
            test=self.everything.take(test),
            classes=self.classes,
            fingerprint=self.manifest.fingerprint,
            n_rows=self.manifest.n_rows,
            changes=changes,
            leakage=leakage,
            n_files=self.manifest.n_files,
            size_bytes=self.manifest.size_bytes,
        )

    def _cut(self, candidates: np.ndarray, fraction: float, *, kind: SplitKind, leave: int = 1) -> Positions:
        seed = self.settings.seed
        if kind == "time":
            times = self._needed_times()[candidates]
            return cut_time(candidates, times=times, fraction=fraction, gap=self.gap, leave=leave)
        if kind == "grouped":
            groups = self._needed_groups()[candidates]
            return cut_groups(candidates, groups=groups, fraction=fraction, seed=seed, leave=leave)
        strata = self.everything.labels[candidates] if kind == "stratified" else None
        return cut_random(candidates, fraction=fraction, seed=seed, strata=strata)

    def _needed_groups(self) -> np.ndarray:
        if self.groups is None:
            raise SettingsError(
                "rows are to stay together by group, but [data] names none", hint="set group under [data]"
            )
        return self.groups

    def _needed_times(self) -> np.ndarray:
        if self.evidence.times is None:
            raise SettingsError(
                "rows are to be ordered by time, but [data] names none", hint="set time under [data]"
            )
        return self.evidence.times

    def _require_classes(self, train: np.ndarray) -> None:
        if not self.classes:
            return
        counts = np.bincount(self.everything.labels[train], minlength=len(self.classes))
        if not counts.min():
            raise InputError(
                f"class {self.classes[int(counts.argmin())]!r} of the label {self.settings.label!r} has no "
                "row in the training part",
                hint="collect more rows of the class, drop it, or split in another way",
            )


def load(project: Project) -> Split:
    """Read a project's data, check it, clean it and split it.

    Raises:
        InputError: A column is missing, of the wrong type or empty; the label has missing
            values, one class only, or a class too small to split; an id or a time is in two parts;
            the data changed meanwhile.
        SettingsError: kit.toml names a column that is not there, or asks for what cannot be.
    """
    return _split(load_rows(project))


def held_out_table(project: Project) -> pa.Table:
    """Give the held-out rows as the table had them after cleaning, all columns included."""
    rows = load_rows(project)
    return rows.table.take(rows.hold_out()[2])


def load_rows(project: Project) -> Rows:
    """Read a project's data, check it and clean it; see ``load``."""
    settings, prepare = project.settings.data, project.prepare()
    signature = Signature("", project.settings.input_signature(), ())
    table, manifest = _read(project, signature, prepare)
    task = project.settings.project.task
    if not table.num_rows:
        raise InputError(f"{settings.path} has no rows", hint="name a table with rows under [data] path")
    _check_columns(settings, table, task=task)
    cleaned = _clean(table, prepare, settings=settings, signature=signature)
    if not cleaned.table.num_rows:
        raise InputError(
            f"no row of {settings.path} is left after cleaning: {cleaned.changes[-1].detail}",
            hint="correct the rules under [prepare]",
        )
    raw = table
    table, changes = add_windows(cleaned.table, prepare.windows, time=settings.time)
    changes = (*cleaned.changes, *changes)
    for change in changes:
        if change.n_values:
            _log.info("%s", change.detail)
    labels, classes = read_labels(table.column(settings.label), task=task, name=settings.label)
    for column in signature.columns:
        if column in table.column_names and _is_empty(table.column(column)):
            raise InputError(
                f"column {column!r} of {settings.path} holds no value at all",
                hint="fill the column or take it out of [[data.inputs]]",
            )
    everything = Part(_tensors(table, signature, n_raw=manifest.n_rows), labels, cleaned.rows)
    evidence, gap = _evidence(table, settings, signature)
    groups = None if settings.group is None else _groups(table, settings.group)
    return Rows(everything, table, classes, manifest, changes, settings, evidence, raw, groups, gap)


def read_data(
    uri: str, signature: Signature, *, settings: DataSettings, label: str | None = None, strings: Any = ()
) -> pa.Table:
    """Read a table, or a folder of images as one.

    Args:
        uri: A file or a folder, on disk or on S3.
        signature: Whose inputs the rows feed.
        settings: Whether images may be resized.
        label: Column for the names of images' folders; None where they mean nothing.
        strings: Columns read as strings besides the string inputs.

    Raises:
        InputError: Nothing is there, it cannot be read, or it is not clear what is meant.
        SettingsError: Images do not fit the inputs.
        UnavailableError: S3 does not answer or refuses.
    """
    files = list_data(uri)
    if files[0].format == "image":
        layout = image_layout(signature, label=label, resize=settings.images == "resize")
        return read_images(uri, files, layout=layout)
    if takes_images(signature) and has_both(uri):
        raise InputError(
            f"{uri} holds tables ({files[0].name}) and images, and the model could read both",
            hint="move one kind to another folder",
        )
    return read_table(uri, strings=[*signature.string_columns, *strings])


def _split(rows: Rows) -> Split:
    train, validation, test = rows.hold_out()
    split = rows.split(train=train, validation=validation, test=test)
    _log.info(
        "read %d rows of %s: %d to train on, %d to validate, %d held out",
        *(split.n_rows, rows.settings.path, len(train), len(validation), len(test)),
    )
    return split


def _read(project: Project, signature: Signature, prepare: PrepareSettings) -> tuple[pa.Table, Manifest]:
    """Read the raw table and its manifest, which are of the same bytes, and say what is new in it."""
    settings = project.settings.data
    uri = project.locate(settings.path)
    numbers = set(signature.columns) - set(signature.string_columns)
    strings = [rule.column for rule in prepare.rules if rule.column not in {*numbers, settings.label}]
    files = digest_files(uri)
    table = read_data(uri, signature, settings=settings, label=settings.label, strings=strings)
    if fingerprint_of(digest_files(uri)) != fingerprint_of(files):
        raise InputError(
            f"{settings.path} changed while it was read", hint="run again when nobody writes to it"
        )
    manifest = describe_table(files, table)
    changed = keep_manifest(manifest, project.state / "data", path=settings.path)
    if changed is not None and (described := changed.describe(settings.path)):
        _log.info("the data is not what it was the last time: %s", described)
    return table, manifest


def _check_columns(settings: DataSettings, table: pa.Table, *, task: str) -> None:
    """Refuse what [data] names and the table does not have, before any work."""
    if settings.label not in table.column_names:
        raise InputError(
            f"{settings.path} has no label column {settings.label!r}",
            hint=nearest(settings.label, table.column_names),
        )
    for field in ("group", "time", "id"):
        column = getattr(settings, field)
        if column is not None:
            require_column(column, table.column_names, what=f"[data] {field}")
    if settings.split == "stratified" and task == "regression":
        raise SettingsError(
            "split = 'stratified' keeps the shares of classes, and a regression has none",
            hint="set split = 'random', 'grouped' or 'time'",
        )


def _clean(
    table: pa.Table, prepare: PrepareSettings, *, settings: DataSettings, signature: Signature
) -> Cleaned:
    inputs = frozenset(signature.columns)
    check_rules(prepare.rules, inputs=inputs, columns=table.column_names)
    cleaned = Cleaned(table, np.arange(table.num_rows))
    for rule in prepare.rules:
        cleaned = apply_rule(cleaned, rule, inputs=inputs)
    if prepare.duplicates is not None:
        cleaned = drop_duplicates(cleaned, prepare.duplicates, time=settings.time)
    return cleaned


def _evidence(table: pa.Table, settings: DataSettings, signature: Signature) -> tuple[Evidence, float]:
    """Gather what no two parts may share, and the gap in the unit of the times."""
    ids = None if settings.id is None else value_codes(table.column(settings.id))
    times, gap = None, 0.0
    if settings.time is not None:
        read = read_times(table.column(settings.time), name=settings.time)
        times, gap = read.values, gap_in_units(settings.gap, read, name=settings.time)
    inputs = same_rows(table, signature.columns)
    return Evidence(table, inputs, settings.id or "", ids, settings.time or "", times), gap


def _groups(table: pa.Table, name: str) -> np.ndarray:
    groups = value_codes(table.column(name))
    missing = groups < 0
    if missing.any():
        raise InputError(
            f"the group {name!r} is missing in {int(missing.sum())} rows, the first {int(missing.argmax())}",
            hint="fill or drop those rows; nobody knows which others they belong to",
        )
    return groups


def _tensors(table: pa.Table, signature: Signature, *, n_raw: int) -> Tensors:
    try:
        return to_tensors(table, signature)
    except InputError as error:
        if table.num_rows == n_raw:
            raise
        raise InputError(f"{error} (rows are counted after cleaning)", hint=error.hint) from error


def _is_empty(column: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(column.is_null(nan_is_null=True)).as_py())
