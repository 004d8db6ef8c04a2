"""Predict every row of a table, each exactly once, whatever dies on the way.

A run is planned once, its plan kept in the output folder. Shards become parts by ``jobs.batch.run``;
the manifest is written last, and only when every row that was read is in a part or in the
quarantine. The same command again goes on where the ledger says it was.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.batch import retry
from jobs.batch.actor import ORIGIN_FILE, ORIGIN_ROW
from jobs.batch.ledger import Ledger, check_unused
from jobs.batch.places import open_place
from jobs.batch.plan import Plan, make_shards, require_same, shaping
from jobs.batch.refusals import accepted
from jobs.batch.sources import Piece, Reading, cut, read_pieces, survey
from jobs.batch.task import Task, complete
from jobs.runs import output_of, written
from kit.errors import InputError, SettingsError, nearest
from kit.files import canonical_json
from kit.images import image_layout, list_data
from kit.model_version import ModelVersion
from kit.project import Project
from kit.registry import VersionRecord
from kit.settings import PredictSettings
from kit.signature import Signature
from kit.tables import TableFile

_log = logging.getLogger("kit")
_FILES_LOOKED_AT, _ROWS_LOOKED_AT, _LOOK_BYTES = 100, 100, 1 << 20  # before a run starts


@dataclass(frozen=True)
class PredictResult:
    """What a batch run did.

    Attributes:
        run_id: Names the run by its model, input and settings.
        model: The version, as ``name@number``.
        digest: Its digest.
        output: Folder of the parts.
        rows_in: Rows of the table.
        rows_out: Rows answered.
        rows_refused: Rows in the quarantine; with ``rows_out``, as many as ``rows_in``.
        n_parts: Files the answers lie in.
        n_resumed: Shards an earlier driver had finished.
        batch_rows: Rows per call of the engine.
        seconds: Wall time of the shards of this driver, Ray's start not counted.
        rows_per_second: Over that time.
        labels: Class to how many rows were given it; empty for regression.
        report: The page about the run.
    """

    run_id: str
    model: str
    digest: str
    output: str
    rows_in: int
    rows_out: int
    rows_refused: int
    n_parts: int
    n_resumed: int
    batch_rows: int
    seconds: float
    rows_per_second: float
    labels: dict[str, int]
    report: str


def predict(project: Project, settings: PredictSettings) -> PredictResult:
    """Predict every row of a table; see the module.

    Raises:
        InputError: The table, a column or a setting breaks a rule; the message names it.
        ConflictError: The output folder holds another run, or another driver holds it.
        GateError: More rows are refused than ``max_bad_rows`` allows, or the rows do not add up.
        NotFoundError: Nobody knows the model.
        VerificationError: The model's files or signature do not hold, or the ledger is damaged.
        UnavailableError: The cluster, S3 or the disk fails.
        KeyboardInterrupt: It was interrupted; what was in flight is done and kept.
    """
    if settings.input is None and not settings.retry_quarantine:
        raise SettingsError(
            "the input is missing", hint="name it: --input TABLE, or input in [predict] of kit.toml"
        )
    record, version = project.open_version(settings.model)
    _check_outputs(settings, version.signature)
    place = open_place(output_of(project, settings.output))
    if settings.retry_quarantine:
        with place.held() as lost:
            settings, ledger, plan = retry.prepared(project, settings, record, version, place)
            return _done(Task(project, settings, version, ledger, plan, lost))
    source = project.locate(str(settings.input))
    files = _with_bytes(source, list_data(source))
    ledger = Ledger(place)
    if ledger.read("plan") is None:
        check_unused(place)
        plan = planned(settings, record, version, source=source, files=files)
        with place.held() as lost:
            return _done(Task(project, settings, version, ledger, _taken_up(ledger, plan), lost))
    bare = unread(settings, record, version, source=source, files=files)
    with place.held() as lost:
        kept = _taken_up(ledger, bare)
        if not kept.shards:  # another run's plan, of which nothing was done yet
            kept = planned(settings, record, version, source=source, files=files)
            ledger.put("plan", canonical_json(kept.to_json()))
        return _done(Task(project, settings, version, ledger, kept, lost))


def unread(
    settings: PredictSettings,
    record: VersionRecord,
    version: ModelVersion,
    *,
    source: str,
    files: Sequence[TableFile],
) -> Plan:
    """Say what a run is, without reading its input: a plan without shards."""
    reading = Reading(uri=source, columns=(), types={}, layout=None)
    return Plan(
        model=f"{record.model}@{record.number}",
        digest=record.digest,
        settings=shaping(settings),
        reading=reading,
        files=tuple(files),
        shards=(),
    )


def planned(
    settings: PredictSettings,
    record: VersionRecord,
    version: ModelVersion,
    *,
    source: str,
    files: Sequence[TableFile],
) -> Plan:
    """Look at the input and cut it into shards.

    Raises:
        InputError: The model cannot read the table.
        UnavailableError: S3 does not answer or refuses.
    """
    bare = unread(settings, record, version, source=source, files=files)
    reading = _surveyed(settings, version, source=source, files=files)
    groups = cut(reading, files, shard_rows=settings.shard_rows)
    if not groups:
        raise InputError(f"{source} holds no rows", hint="name a table with rows")
    return replace(bare, reading=reading, shards=make_shards(groups, prefix="", files=files))


def _taken_up(ledger: Ledger, plan: Plan) -> Plan:
    """Give the plan that stands: the one that is kept, if it is this run's; else this one, kept now."""
    kept = ledger.read("plan")
    if kept is None:
        if plan.shards:
            ledger.create("plan", plan.to_json())
        return plan
    before = Plan.from_json(kept)
    if before.run_id != plan.run_id and not ledger.commits():
        place = ledger.place
        place.delete(written(place, before, shards={shard.name for shard in before.shards}))
        if plan.shards:
            ledger.put("plan", canonical_json(plan.to_json()))
        return plan
    require_same(before, plan, output=ledger.place.uri)
    return before.found_at(plan.reading.uri, files=plan.files)


def _done(task: Task) -> PredictResult:
    """Complete a run and say what it did."""
    rows_in = complete(task)
    commits, plan = task.commits, task.plan
    counts = [sum(column) for column in zip(*(each.labels for each in commits), strict=True)]
    made = sum(each.rows_in for each in task.made.values())
    return PredictResult(
        run_id=plan.run_id,
        model=plan.model,
        digest=plan.digest,
        output=task.ledger.place.uri,
        rows_in=rows_in,
        rows_out=sum(each.rows_out for each in commits),
        rows_refused=sum(each.rows_refused for each in commits),
        n_parts=sum(len(each.files) for each in commits),
        n_resumed=len(task.kept),
        batch_rows=max((each.batch_rows for each in commits), default=0),
        seconds=round(task.seconds, 3),
        rows_per_second=round(made / task.seconds, 1) if task.seconds else 0.0,
        labels={
            str(name): number for name, number in zip(task.version.signature.classes, counts, strict=False)
        },
        report=f"{task.ledger.place.uri}/{task.ledger.name('report.html')}",
    )


def _with_bytes(uri: str, files: Sequence[TableFile]) -> tuple[TableFile, ...]:
    """Leave out files of no bytes, which hold no rows in any format."""
    empty = [file.name for file in files if not file.size_bytes]
    if len(empty) == len(files):
        raise InputError(f"{uri} holds no rows: {empty[0]} is empty", hint="name a table with rows")
    if empty:
        _log.warning(
            "skipped %d empty files: %s%s", len(empty), ", ".join(empty[:5]), ", ..." * (len(empty) > 5)
        )
    return tuple(file for file in files if file.size_bytes)


def _check_outputs(settings: PredictSettings, signature: Signature) -> None:
    there = [spec.name for spec in signature.outputs]
    defaults = PredictSettings.model_fields["outputs"].default
    for name in settings.outputs:
        if name not in there and name not in defaults:
            raise InputError(f"the model has no output {name!r}", hint=nearest(name, there))
    written = [name for name in there if name in settings.outputs]
    if not written:
        name = settings.outputs[0]
        raise InputError(
            f"the model has no output {name!r}, so no answer would be written", hint=nearest(name, there)
        )
    for key in ("columns", "partition_by"):
        twice = [name for name, number in Counter(getattr(settings, key)).items() if number > 1]
        if twice:
            raise SettingsError(f"{key} names {twice[0]!r} twice", hint="name it once")
    origins = (ORIGIN_FILE, ORIGIN_ROW) if settings.origin else ()
    for name in settings.columns:
        if name in origins:
            raise InputError(
                f"the kept column {name!r} has the name of the origin's",
                hint="leave it out, or leave origin out",
            )
        if name in written:
            raise InputError(
                f"the kept column {name!r} has the name of an output", hint="leave it out or rename it"
            )
    allowed = [*settings.columns, *(["label"] if "label" in written else [])]
    for name in settings.partition_by:
        if name not in allowed:
            raise SettingsError(
                f"partition_by names {name!r}, which is not written",
                hint=f"add it to columns ({nearest(name, allowed)})",
            )


def _surveyed(
    settings: PredictSettings, version: ModelVersion, *, source: str, files: Sequence[TableFile]
) -> Reading:
    """Look at the input's beginning; a window that is not laid out yet is said to be one."""
    layout = image_layout(version.signature) if files[0].format == "image" else None
    try:
        reading = survey(source, files, signature=version.signature, columns=settings.columns, layout=layout)
        _check_first_rows(reading, files, version.signature)
        return reading
    except InputError as error:
        windows = version.manifest.get("lineage", {}).get("prepare", {}).get("windows", ())
        for name in (window["name"] for window in windows):
            if name in version.signature.columns and f"column {name!r}" in error.message:
                raise InputError(
                    f"{settings.input} has no column {name!r}: it is a window, which kit prepare lays out",
                    hint=f"kit prepare --input {settings.input} --output ready, then predict ready",
                ) from error
        raise


def _check_first_rows(reading: Reading, files: Sequence[TableFile], signature: Signature) -> None:
    """Refuse a table of which no row at its beginning can be answered."""
    pieces = [Piece(file) for file in files[:_FILES_LOOKED_AT]]
    chunks = read_pieces(replace(reading, chunk_bytes=_LOOK_BYTES), pieces)
    chunk = next((each for each in chunks if each.table.num_rows or each.refused), None)
    if chunk is None:
        return
    rows = chunk.table.slice(0, _ROWS_LOOKED_AT)
    reasons = [each.reason for each in chunk.refused]
    if rows.num_rows:
        tensors, refused = accepted(rows, signature)
        if len(next(iter(tensors.values()))):
            return
        reasons += refused.values()
    raise InputError(
        f"none of the first rows of {chunk.file} can be answered: {Counter(reasons).most_common(1)[0][0]}",
        hint="give the table the columns and values the model was trained on",
    )
