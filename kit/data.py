"""A project's data: read, checked, cleaned, and handed on to be split.

The same split comes out wherever it is asked for (training, export, evaluation), because it
depends on the data's bytes and the settings alone. What is fitted to columns is not done here, and
how rows fall into parts is ``kit.rows``'s.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.cleaning import Cleaned, apply_rule, check_rules, drop_duplicates, require_column
from kit.errors import InputError, SettingsError, nearest
from kit.images import (
    FILE_COLUMN,
    check_pixel_range,
    has_both,
    image_layout,
    list_data,
    read_images,
    takes_images,
)
from kit.labels import read_labels
from kit.leakage import Evidence
from kit.manifest import Manifest, describe_table, digest_files, fingerprint_of, keep_manifest
from kit.row_codes import same_rows, value_codes
from kit.rows import Part, Rows, Split
from kit.settings.data import DataSettings
from kit.settings.prepare import PrepareSettings, WindowSettings
from kit.signature import Signature
from kit.tables import read_table, to_tensors
from kit.times import NO_GAP, Gap, gap_in_units, read_times
from kit.windows import add_windows, check_windows, window_reach

if TYPE_CHECKING:
    import pyarrow as pa

    from kit.project import Project

_log = logging.getLogger("kit")
_ROW = re.compile(r"(?<=, row )\d+")


def load(project: Project) -> Split:
    """Read a project's data, check it, clean it and split it.

    Raises:
        InputError: A column is missing, of the wrong type or empty; the label has missing
            values, one class only, or a class too small to split; an id or a time is in two parts, or
            reached across them by a window; the data changed meanwhile.
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
    check_windows(prepare.windows, label=settings.label, columns=signature.columns)
    table, manifest = _read(project, signature)
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
    images = takes_images(signature) and FILE_COLUMN in table.column_names
    with rows_as_given(cleaned.rows, files=table.column(FILE_COLUMN) if images else None):
        everything = Part(to_tensors(table, signature), labels, cleaned.rows)
    evidence, gap = _evidence(table, settings, signature, windows=prepare.windows)
    return Rows(everything, table, classes, manifest, changes, settings, evidence, raw, gap)


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


def string_columns(project: Project) -> tuple[str, ...]:
    """Name the columns of a project's tables that are read as strings, also where a file shows ``01``.

    Those are the string inputs and what rules read, but for the label: its type says what the classes are.
    """
    signature = Signature("", project.settings.input_signature(), ())
    others = {*signature.columns, project.settings.data.label}
    ruled = [rule.column for rule in project.prepare().rules if rule.column not in others]
    return tuple(dict.fromkeys([*signature.string_columns, *ruled]))


def _split(rows: Rows) -> Split:
    train, validation, test = rows.hold_out()
    split = rows.split(train=train, validation=validation, test=test)
    _log.info(
        "read %d rows of %s: %d to train on, %d to validate, %d held out",
        *(split.n_rows, rows.settings.path, len(train), len(validation), len(test)),
    )
    for fact in split.leakage:
        if fact["check"] == "window" and fact["found"]:
            _log.warning("%s; a grouped or a time split would refuse that", fact["detail"])
    return split


def _read(project: Project, signature: Signature) -> tuple[pa.Table, Manifest]:
    """Read the raw table and its manifest, which are of the same bytes, and say what is new in it."""
    settings = project.settings.data
    uri = project.locate(settings.path)
    strings = string_columns(project)
    if list_data(uri)[0].format == "image":
        check_pixel_range(signature)
    elif settings.images == "resize":
        raise SettingsError(
            f"images = 'resize' does nothing for {settings.path}, which is a table",
            hint="take images out of [data], or name a folder of images under path",
        )
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


def _evidence(
    table: pa.Table, settings: DataSettings, signature: Signature, *, windows: Sequence[WindowSettings]
) -> tuple[Evidence, Gap]:
    """Gather what no two parts may share, and the gap in the unit of the times."""
    times, gap = None, NO_GAP
    if settings.time is not None:
        read = read_times(table.column(settings.time), name=settings.time)
        times, gap = read.values, gap_in_units(settings.gap, read, name=settings.time)
    evidence = Evidence(
        table,
        same_rows(table, signature.columns),
        id=settings.id or "",
        ids=None if settings.id is None else _ids(table, settings.id),
        time=settings.time or "",
        times=times,
        group=settings.group or "",
        groups=None if settings.group is None else _groups(table, settings.group),
        together=settings.split == "grouped",
        windows=tuple(window_reach(table, window, time=settings.time) for window in windows),
        apart=settings.split in ("grouped", "time"),
    )
    return evidence, gap


def _ids(table: pa.Table, name: str) -> np.ndarray:
    ids = value_codes(table.column(name))
    n_missing = int((ids < 0).sum())
    if n_missing == len(ids):
        raise InputError(
            f"the id {name!r} is missing in all {n_missing} rows, so the leakage check can compare none",
            hint="fill the column, or take id out of [data]",
        )
    if n_missing:
        _log.info(
            "the id %r is missing in %d of %d rows; the leakage check compares the others",
            *(name, n_missing, len(ids)),
        )
    return ids


def _groups(table: pa.Table, name: str) -> np.ndarray:
    groups = value_codes(table.column(name))
    missing = groups < 0
    if missing.any():
        raise InputError(
            f"the group {name!r} is missing in {int(missing.sum())} rows, the first {int(missing.argmax())}",
            hint="fill or drop those rows; nobody knows which others they belong to",
        )
    return groups


@contextmanager
def rows_as_given(rows: np.ndarray, *, files: Any = None) -> Iterator[None]:
    """Let a message that names a row of a cleaned table name that of the table as it was read.

    Args:
        rows: Number of each row in the table as it was read, shape (n_rows,).
        files: Column with the image each row is; None where rows are no images.

    Raises:
        InputError: What the block raised, with the other number.
    """
    try:
        yield
    except InputError as error:
        found = _ROW.search(error.message)
        if found is None:
            raise
        row = int(found[0])
        said = f"{error.message[: found.start()]}{rows[row]}{error.message[found.end() :]}"
        if files is not None:
            said = f"{files[row].as_py()}: {said}"
        raise type(error)(said, hint=error.hint) from error


def _is_empty(column: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(column.is_null(nan_is_null=True)).as_py())
