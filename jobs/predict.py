"""Predict every row of a table: a frozen plan of shards, actors that run them, a count that must fit.

A shard is a range of rows of one file and becomes one Parquet part with a fixed name. Every actor
verifies the model before it loads it. The report is written last, and only when the rows that
went out are as many as came in.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.cluster import check_room, connected, n_cpus, translated
from jobs.output import REPORT, claimed, cleared_on_failure, write, write_part
from kit.engines import Engine, open_engine
from kit.errors import GateError, InputError, UnavailableError, nearest
from kit.files import canonical_json
from kit.model_version import ModelVersion
from kit.project import Project
from kit.settings import PredictSettings
from kit.signature import Signature, Tensors
from kit.store import open_store
from kit.tables import (
    TableFile,
    list_files,
    open_file_system,
    read_file,
    reading,
    to_tensors,
)

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("kit")
_MAX_RESTARTS = 3


@dataclass(frozen=True)
class Shard:
    """A range of rows of one file.

    Attributes:
        part: Name of the part it becomes.
        file: Where the rows are.
        start: First row, from 0.
        n_rows: How many; None for all of a file whose rows cannot be counted without reading it.
    """

    part: str
    file: TableFile
    start: int
    n_rows: int | None


@dataclass(frozen=True)
class Done:
    """What became of a shard.

    Attributes:
        part: Its name.
        rows_in: Rows read.
        rows_out: Rows written.
        seconds: Wall time of the actor.
        labels: Rows by answered class, in the order of the classes; empty for regression.
    """

    part: str
    rows_in: int
    rows_out: int
    seconds: float
    labels: tuple[int, ...]


@dataclass(frozen=True)
class PredictResult:
    """What a batch run did.

    Attributes:
        model: The version, as ``name@number``.
        digest: Its digest.
        output: Folder of the parts.
        rows_in: Rows of the table.
        rows_out: Rows written; the same.
        n_parts: Parts written.
        seconds: Wall time of the shards, Ray's start not counted.
        rows_per_second: Over that time.
        labels: Class to how many rows were given it; empty for regression.
    """

    model: str
    digest: str
    output: str
    rows_in: int
    rows_out: int
    n_parts: int
    seconds: float
    rows_per_second: float
    labels: dict[str, int]


@dataclass(frozen=True)
class _Work:
    """What every actor needs to know; plain values, so it travels."""

    store: str
    cache: Path
    digest: str
    trusted: tuple[bytes, ...]
    input: str
    output: str
    settings: PredictSettings


def predict(project: Project, settings: PredictSettings) -> PredictResult:
    """Predict every row of a table; see the module.

    Raises:
        InputError: The table, a column or a value breaks a rule; the message names file and row.
        ConflictError: The output folder is not empty, or another run holds it.
        GateError: Not as many rows came out as went in.
        NotFoundError: Nobody knows the model.
        VerificationError: The model's files or signature do not hold.
        UnavailableError: The cluster, S3 or the disk fails.
    """
    record, version = project.open_version(settings.model)
    _check_outputs(settings, version.signature)
    source, target = project.locate(settings.input), project.locate(settings.output)
    strings = version.signature.string_columns
    files = _with_bytes(source, list_files(source))
    shards = plan(source, files, shard_rows=settings.shard_rows)
    first = _first_rows(source, files[0], strings=strings)
    _check_windows(settings, version, first)
    _check_columns(settings, version.signature, first)
    work = _Work(
        store=project.store().uri,
        cache=project.state / "cache",
        digest=record.digest,
        trusted=project.trusted(),
        input=source,
        output=target,
        settings=settings,
    )
    with claimed(target), cleared_on_failure(target, parts={shard.part for shard in shards}):
        with connected(settings.address, project=project):
            started = time.monotonic()
            done = _run(work, shards)
            seconds = time.monotonic() - started
        result = _summary(
            f"{record.model}@{record.number}", record.digest, target, done, version.signature, seconds
        )
        _check_count(result)
        facts = {**asdict(result), "shards": [asdict(each) for each in done], "engine": settings.engine}
        write(target, REPORT, canonical_json(facts))
    project.write_record("predict", f"{record.number:04d}-{time.time_ns()}", facts)
    return result


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


def plan(uri: str, files: Sequence[TableFile], *, shard_rows: int) -> tuple[Shard, ...]:
    """Cut a table into shards.

    Args:
        uri: The table.
        files: Its files, sorted.
        shard_rows: Most rows of a shard of a Parquet file; other formats are one shard a file.

    Raises:
        InputError: A file is not what its name says.
        UnavailableError: S3 does not answer or refuses.
    """
    from pyarrow import parquet

    system, _ = open_file_system(uri)
    ranges: list[tuple[TableFile, int, int | None]] = []
    for file in files:
        if file.format != "parquet":
            ranges.append((file, 0, None))
            continue
        with reading(uri, file):
            n_rows = parquet.read_metadata(file.path, filesystem=system).num_rows
        ranges += [(file, start, min(shard_rows, n_rows - start)) for start in range(0, n_rows, shard_rows)]
    return tuple(
        Shard(f"part-{index:05d}.parquet", file, start, n_rows)
        for index, (file, start, n_rows) in enumerate(ranges)
    )


class ShardActor:
    """Runs shards, one at a time, with one verified model.

    The model is opened by the first shard, not by ``__init__``: from a method Ray hands our error
    to the driver, from ``__init__`` only its text.
    """

    def __init__(self, work: _Work) -> None:
        self._work = work

    @cached_property
    def _version(self) -> ModelVersion:
        folder = open_store(self._work.store, cache=self._work.cache).fetch(self._work.digest)
        return ModelVersion.open(folder, trusted=self._work.trusted, digest=self._work.digest)

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(
            self._version.model_path,
            engine=self._work.settings.engine,
            threads=self._work.settings.threads,
            signature=self._version.signature,
        )

    def run(self, shard: Shard) -> Done:
        """Read a shard, answer its rows, write its part."""
        started = time.monotonic()
        engine, signature = self._engine, self._version.signature
        table = _read(self._work.input, shard, strings=signature.string_columns)
        if shard.n_rows not in (None, table.num_rows):
            raise InputError(
                f"{shard.file.name} changed: {shard.n_rows} rows were expected from row {shard.start}, "
                f"and {table.num_rows} are there",
                hint="run again when nobody writes to the table",
            )
        try:
            tensors = to_tensors(table, signature)
        except InputError as error:
            raise InputError(
                f"{shard.file.name}: {_row_of_file(error.message, shard)}", hint=error.hint
            ) from error
        outputs = _answer(engine, tensors, batch_rows=self._work.settings.batch_rows)
        kept = table.select(list(self._work.settings.columns))
        answered = _with_outputs(kept, outputs, signature, wanted=self._work.settings.outputs)
        write_part(self._work.output, shard.part, answered)
        counts = (
            np.bincount(outputs["label"], minlength=len(signature.classes)).tolist()
            if "label" in outputs
            else []
        )
        return Done(shard.part, table.num_rows, answered.num_rows, time.monotonic() - started, tuple(counts))


def _run(work: _Work, shards: Sequence[Shard]) -> list[Done]:
    import ray

    threads = max(work.settings.threads, 1)
    wanted = work.settings.workers or max(n_cpus() // threads, 1)
    check_room(wanted, threads=threads, address=work.settings.address)
    n_actors = max(1, min(wanted, len(shards)))
    actor: Any = ray.remote(num_cpus=threads, max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_RESTARTS)(
        ShardActor
    )
    _log.info("predicting %d shards with %d actors", len(shards), n_actors)
    done: list[Done] = []
    left = iter(shards)
    waiting: dict[Any, tuple[Any, Shard]] = {}
    for shard in islice(left, n_actors):
        each = actor.remote(work)
        waiting[each.run.remote(shard)] = each, shard
    with translated():
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting))
            each, shard = waiting.pop(ready)
            with _survived(shard):
                finished: Done = ray.get(ready)
            done.append(finished)
            _log.info("%s: %d rows in %.2f s", finished.part, finished.rows_out, finished.seconds)
            if (shard_after := next(left, None)) is not None:
                waiting[each.run.remote(shard_after)] = each, shard_after
            del each  # an actor without work goes, and makes room for one that still waits for a CPU
    return sorted(done, key=lambda each: each.part)


@contextlib.contextmanager
def _survived(shard: Shard) -> Iterator[None]:
    """Say which shard a worker died over, time and again."""
    from ray import exceptions

    try:
        yield
    except (exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.WorkerCrashedError) as error:
        raise UnavailableError(
            f"the worker died {_MAX_RESTARTS + 1} times over {shard.part} ({shard.file.name} from row "
            f"{shard.start}); it may have run out of memory",
            hint="lower shard_rows or workers",
        ) from error


def _first_rows(uri: str, file: TableFile, *, strings: Sequence[str] = ()) -> pa.Table:
    """Read a few rows; a file that is not Parquet is read whole."""
    if file.format != "parquet":
        return read_file(uri, file, strings=strings).slice(0, 1)
    import pyarrow as pa
    from pyarrow import parquet

    system, _ = open_file_system(uri)
    with reading(uri, file), parquet.ParquetFile(file.path, filesystem=system) as opened:
        return pa.Table.from_batches(list(islice(opened.iter_batches(batch_size=1), 1)), opened.schema_arrow)


def _read(uri: str, shard: Shard, *, strings: Sequence[str] = ()) -> pa.Table:
    if shard.n_rows is None:
        return read_file(uri, shard.file, strings=strings)
    from pyarrow import parquet

    system, _ = open_file_system(uri)
    with reading(uri, shard.file), parquet.ParquetFile(shard.file.path, filesystem=system) as opened:
        groups, skipped, seen = [], 0, 0
        for index in range(opened.num_row_groups):
            n_rows = opened.metadata.row_group(index).num_rows
            if seen + n_rows > shard.start and seen < shard.start + shard.n_rows:
                groups.append(index)
            elif not groups:
                skipped += n_rows
            seen += n_rows
        table: pa.Table = opened.read_row_groups(groups)
    return table.slice(shard.start - skipped, shard.n_rows)


def _row_of_file(message: str, shard: Shard) -> str:
    """Count the row a message names from the file's first row instead of the shard's."""
    return re.sub(r"(?<=, row )\d+", lambda found: str(int(found[0]) + shard.start), message, count=1)


def _answer(engine: Engine, tensors: Tensors, *, batch_rows: int) -> Tensors:
    """Run validated tensors through the engine, a batch at a time."""
    parts: dict[str, list[np.ndarray]] = {}
    for start, stop in _batches(len(next(iter(tensors.values()))), batch_rows):
        batch = {name: array[start:stop] for name, array in tensors.items()}
        for name, array in engine.run_validated(batch).items():
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _batches(n_rows: int, batch_rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, max(n_rows, 1), batch_rows):
        yield start, min(start + batch_rows, n_rows)


def _with_outputs(
    kept: pa.Table, outputs: Tensors, signature: Signature, *, wanted: Sequence[str]
) -> pa.Table:
    """Put the answers beside the kept columns; a label becomes the class's name."""
    import pyarrow as pa

    columns: dict[str, Any] = {name: kept.column(name) for name in kept.column_names}
    for spec in signature.outputs:
        if spec.name not in wanted:
            continue
        array = outputs[spec.name]
        if spec.classes:
            columns[spec.name] = pa.array(np.array(spec.classes)[array])
        elif array.ndim == 1:
            columns[spec.name] = pa.array(array)
        else:
            flat = pa.array(np.ascontiguousarray(array).reshape(-1))
            columns[spec.name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return pa.table(columns)


def _check_outputs(settings: PredictSettings, signature: Signature) -> None:
    there = [spec.name for spec in signature.outputs]
    defaults = PredictSettings.model_fields["outputs"].default
    for name in settings.outputs:
        if name not in there and name not in defaults:
            raise InputError(f"the model has no output {name!r}", hint=nearest(name, there))
    if not set(there) & set(settings.outputs):
        name = settings.outputs[0]
        raise InputError(
            f"the model has no output {name!r}, so no answer would be written", hint=nearest(name, there)
        )


def _check_count(result: PredictResult) -> None:
    if result.rows_in != result.rows_out:
        raise GateError(
            f"{result.rows_in} rows went in and {result.rows_out} came out; nothing was kept",
            hint="run again, and report it if it happens again",
        )


def _check_windows(settings: PredictSettings, version: ModelVersion, table: pa.Table) -> None:
    """Refuse a table whose windows are not laid out yet, and say which command does that."""
    windows = version.manifest.get("lineage", {}).get("prepare", {}).get("windows", ())
    for name in (window["name"] for window in windows):
        if name in version.signature.columns and name not in table.column_names:
            raise InputError(
                f"{settings.input} has no column {name!r}: it is a window, which kit prepare lays out",
                hint=f"kit prepare --input {settings.input} --output ready, then predict ready",
            )


def _check_columns(settings: PredictSettings, signature: Signature, table: pa.Table) -> None:
    """Refuse a table the model cannot read, before Ray starts: its first rows tell."""
    for name in settings.columns:
        if name not in table.column_names:
            raise InputError(
                f"{settings.input} has no column {name!r}", hint=nearest(name, table.column_names)
            )
        if name in settings.outputs and name in {spec.name for spec in signature.outputs}:
            raise InputError(
                f"the kept column {name!r} has the name of an output", hint="leave it out or rename it"
            )
    to_tensors(table.slice(0, 1), signature)


def _summary(
    model: str, digest: str, output: str, done: Sequence[Done], signature: Signature, seconds: float
) -> PredictResult:
    rows_out = sum(each.rows_out for each in done)
    counts = np.sum([each.labels for each in done], axis=0) if signature.classes and done else []
    return PredictResult(
        model=model,
        digest=digest,
        output=output,
        rows_in=sum(each.rows_in for each in done),
        rows_out=rows_out,
        n_parts=len(done),
        seconds=round(seconds, 3),
        rows_per_second=round(rows_out / seconds, 1) if seconds else 0.0,
        labels={str(name): int(count) for name, count in zip(signature.classes, counts, strict=False)},
    )
