"""Prepare a project's data without fitting a model: check, clean, split, describe.

Goes the way training goes, so what it reports is what a model would learn from. Another table can
be laid out as the model reads it, with the windows and none of the cleaning that drops rows.
Knows nothing of Ray or networks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.batch.ledger import check_unused
from jobs.batch.places import open_place
from jobs.preparation.plan import plan_features
from jobs.preparation.prepared import Prepared, fit_preparation
from kit.cleaning import Change, Cleaned, apply_rule
from kit.columns import class_balance, describe
from kit.data import load_rows, read_data, string_columns
from kit.errors import ConflictError, InputError, nearest
from kit.files import atomic_folder, canonical_json, sha256_bytes, write_atomic
from kit.project import Project
from kit.report import data_report
from kit.report.page import local_file
from kit.rows import Part, Rows
from kit.settings import PrepareSettings
from kit.signature import Signature
from kit.windows import add_windows

if TYPE_CHECKING:
    import pyarrow as pa

#: Files of the prepared rows, by part; and the one of another table.
PARTS = {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"}
LAID_OUT = "rows.parquet"


@dataclass(frozen=True)
class PrepareResult:
    """What was prepared.

    Attributes:
        path: The table, as it was named.
        n_rows: Its rows as they were read.
        rows: Part to its rows; ``rows`` alone where another table was laid out.
        how: How the rows were split; empty where another table was laid out, like all below.
        changes: What each step did.
        leakage: What was looked for between the parts: ``check``, ``found``, ``detail``.
        classes: Class to its rows by part; empty for regression.
        n_features: Values of a row that the network reads.
        report: The data report.
        record: The run's record.
        output: Folder of the prepared rows; None where none was asked for.
    """

    path: str
    n_rows: int
    rows: dict[str, int]
    how: str = ""
    changes: tuple[Change, ...] = ()
    leakage: tuple[Mapping[str, Any], ...] = ()
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    n_features: int = 0
    report: Path | None = None
    record: Path | None = None
    output: str | None = None


def prepare(project: Project, settings: PrepareSettings) -> PrepareResult:
    """Read, check, clean, split and describe; see the module.

    Raises:
        InputError: The data breaks a rule, or an id or a time is in two parts.
        SettingsError: kit.toml asks for what cannot be done.
        ProjectError: The preprocessing cannot be built or fitted.
        ConflictError: The output folder holds something else.
        UnavailableError: S3 or the disk fails.
    """
    report = local_file(settings.report, key="report")
    if settings.output is not None:
        _require_own(settings.output)
    plan_features(project)  # refused before a table is read
    if settings.input is not None and settings.output is not None:
        return _lay_out(project, settings, uri=settings.input, output=settings.output)
    rows = load_rows(project)
    train, validation, test = rows.hold_out()
    prepared = fit_preparation(project, rows.split(train=train, validation=validation, test=test))
    facts = _facts(project, rows, prepared)
    if settings.output is not None:
        _write(settings.output, {PARTS[name]: table for name, table in _tables(rows, prepared)})
    identity = sha256_bytes(canonical_json([settings.steps, facts["data"], facts["split"]]))[:16]
    record = project.write_record("prepare", identity, facts)
    return PrepareResult(
        path=rows.settings.path,
        n_rows=rows.manifest.n_rows,
        rows={name: facts["split"][name] for name in PARTS},
        how=rows.kind,
        changes=prepared.changes,
        leakage=prepared.split.leakage,
        classes=facts["classes"],
        n_features=prepared.n_features,
        report=data_report(project, record, output=str(report)),
        record=record,
        output=settings.output,
    )


def _facts(project: Project, rows: Rows, prepared: Prepared) -> dict[str, Any]:
    """Gather the record: JSON-ready, the same for the same data and settings."""
    split, manifest = prepared.split, rows.manifest
    return {
        "data": {
            "path": rows.settings.path,
            "fingerprint": split.fingerprint,
            "n_rows": manifest.n_rows,
            "n_files": manifest.n_files,
            "size_bytes": manifest.size_bytes,
        },
        "split": {
            "how": rows.kind,
            "seed": rows.settings.seed,
            **{name: len(part.rows) for name, part in _parts(prepared)},
        },
        "changes": [asdict(change) for change in prepared.changes],
        "columns": list(_columns(project, rows, prepared)),
        "classes": class_balance(
            split.classes,
            train=split.train.labels,
            validation=split.validation.labels,
            test=split.test.labels,
        ),
        "n_features": prepared.n_features,
        "features": list(prepared.features),
        "leakage": [dict(each) for each in split.leakage],
    }


def _parts(prepared: Prepared) -> tuple[tuple[str, Part], ...]:
    split = prepared.split
    return (("train", split.train), ("validation", split.validation), ("test", split.test))


def _columns(project: Project, rows: Rows, prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Describe the label and the inputs as they were read, and the windows as they were made."""
    split = prepared.split
    made = {window.name for window in project.prepare().windows}
    for name in (rows.settings.label, *prepared.signature.columns):
        window = name in made
        table = rows.table if window else rows.raw
        taken = [_positions(rows, part) if window else part.rows for part in (split.train, split.test)]
        role = "window" if window else "label" if name == rows.settings.label else "input"
        described = describe(
            table.column(name), name=name, role=role, train_rows=taken[0], test_rows=taken[1]
        )
        yield asdict(described)


def _positions(rows: Rows, part: Part) -> np.ndarray:
    """Find a part's rows in the cleaned table, whose raw row numbers ascend."""
    return np.searchsorted(rows.everything.rows, part.rows)


def _tables(rows: Rows, prepared: Prepared) -> Iterator[tuple[str, pa.Table]]:
    for name, part in _parts(prepared):
        yield name, rows.table.take(_positions(rows, part))


def _lay_out(project: Project, settings: PrepareSettings, *, uri: str, output: str) -> PrepareResult:
    """Lay another table out as the model reads it: same rows, same order, windows included.

    A rule that makes an input's values missing is part of the model's graph and is left to it. Rules
    that drop or fail are about what is learned from, so they are not followed here.
    """
    signature = Signature("", project.settings.input_signature(), ())
    inputs = frozenset(signature.columns)
    rules = [
        rule
        for rule in settings.rules
        if rule.otherwise == "replace" or (rule.otherwise == "missing" and rule.column not in inputs)
    ]
    table = read_data(uri, signature, settings=project.settings.data, strings=string_columns(project))
    cleaned = Cleaned(table, np.arange(table.num_rows))
    for rule in rules:
        if rule.column in table.column_names:  # the label, for one, may not be known yet
            cleaned = apply_rule(cleaned, rule, inputs=inputs)
    laid, windows = add_windows(cleaned.table, settings.windows, time=project.settings.data.time)
    for column in signature.columns:
        if column not in laid.column_names:
            raise InputError(f"{uri} has no column {column!r}", hint=nearest(column, laid.column_names))
    _write(output, {LAID_OUT: laid})
    return PrepareResult(
        path=uri,
        n_rows=table.num_rows,
        rows={"rows": laid.num_rows},
        changes=(*cleaned.changes, *windows),
        output=output,
    )


def _require_own(output: str) -> None:
    """Refuse a folder that holds anything but what an earlier run of this command wrote."""
    if output.startswith("s3://"):  # nothing there can be replaced in one step, so it must be empty
        return
    path = Path(output)
    if not path.exists():
        return
    if not path.is_dir():
        raise ConflictError(f"the output {output} is not a folder", hint="name a folder")
    ours = {*PARTS.values(), LAID_OUT}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in ours or not entry.is_file())
    if others:
        raise ConflictError(
            f"the output folder {output} holds something else ({others[0]})",
            hint="choose another folder, or remove this one",
        )


def _write(output: str, tables: Mapping[str, pa.Table]) -> None:
    """Write all files, or none: a folder never holds the parts of two runs."""
    if output.startswith("s3://"):
        place = open_place(output)
        with place.held():
            check_unused(place)
            try:
                for name, table in tables.items():
                    place.put(name, _as_parquet(table))
            except BaseException:
                place.delete(tables)
                raise
        return
    path = Path(output)
    with atomic_folder(path) as work:
        for name, table in tables.items():
            write_atomic(work / name, _as_parquet(table))
        _require_own(output)
        if path.is_dir():
            shutil.rmtree(path)


def _as_parquet(table: pa.Table) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
