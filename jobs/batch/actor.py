"""The worker of a batch run: it reads a shard, answers it and writes its parts, a chunk at a time.

Ray gives an actor two shards at once. They take turns at computing, chunk by chunk, and wait beside each
other: while one is fetched from S3, put in place or on a GPU, the other has the CPU. Two that computed at
once would take each other's cache: 2.6 s of CPU for what takes 2.2 s in turns. The model is verified by every
actor before it loads it.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.batch.ledger import QUARANTINE, Commit, Ledger, PartFile
from jobs.batch.parts import Layout, Parts
from jobs.batch.places import Place, open_place
from jobs.batch.plan import Shard
from jobs.batch.refusals import Batches, accepted
from jobs.batch.sources import Chunk, Reading, is_text, read_pieces
from kit.engines import Engine, open_engine
from kit.errors import ConflictError
from kit.model_version import ModelVersion
from kit.observed import OBSERVED, Observed
from kit.signature import Signature
from kit.store import open_store
from kit.tensors import ClassName, Tensors

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN_FILE, ORIGIN_ROW, REASON, LINE = "origin_file", "origin_row", "reason", "line"
_LINES = {"csv", "jsonl"}  # formats in which a line may not be a row at all
#: Shards an actor works on at a time.
AT_A_TIME = 2
_WARM_ROWS = 1024
_MAX_REASONS = 20  # kept per shard
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _KEPT_BYTES = -1, -3, 256 << 20  # of mallopt(3)


@dataclass(frozen=True)
class Work:
    """What every actor needs to know; plain values, so it travels.

    Attributes:
        store: Address of the model store.
        cache: Where a version of S3 is kept on the node.
        digest: The version.
        trusted: Public keys (PEM) whose signatures are believed.
        output: The output folder.
        retry: Number of the retry of the quarantine; None for a run.
        reading: How the input is read.
        layout: How parts are written.
        columns: Input columns kept beside the answers.
        outputs: Outputs that are written.
        origin: Whether the place of each row is kept.
        engine: What runs the model.
        device: Where onnxruntime computes.
        threads: Engine threads.
        formats: Of the input's files.
    """

    store: str
    cache: Path
    digest: str
    trusted: tuple[bytes, ...]
    output: str
    retry: int | None
    reading: Reading
    layout: Layout
    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    origin: bool
    engine: str
    device: str
    threads: int
    formats: frozenset[str]


@dataclass(frozen=True)
class Ready:
    """An actor that has loaded its model.

    Attributes:
        node: Id of its node, in hexadecimal.
        market: spot, on-demand or local.
        pid: Its process.
        engine: The engine and its version, and where it computes.
    """

    node: str
    market: str
    pid: int
    engine: str


class ShardActor:
    """Runs shards with one verified model.

    The model is opened by ``prepare``, not by ``__init__``: from a method Ray hands our error to the
    driver, from ``__init__`` only its text.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._turns = Turns(
            fetches=work.reading.uri.startswith("s3://"),
            device=threading.Lock() if work.device != "cpu" else None,
        )

    @cached_property
    def _version(self) -> ModelVersion:
        folder = open_store(self._work.store, cache=self._work.cache).fetch(self._work.digest)
        return ModelVersion.open(folder, trusted=self._work.trusted, digest=self._work.digest)

    @cached_property
    def _signature(self) -> Signature:
        """The model's, without the outputs nobody asks for: they are not computed."""
        signature = self._version.signature
        wanted = {*self._work.outputs, *OBSERVED}
        return replace(signature, outputs=tuple(each for each in signature.outputs if each.name in wanted))

    @cached_property
    def _profile(self) -> dict[str, Any]:
        return self._version.profile

    @cached_property
    def _engine(self) -> Engine:
        return open_engine(
            self._version.model_path,
            engine=self._work.engine,
            device=self._work.device,
            threads=self._work.threads,
            signature=self._signature,
        )

    @cached_property
    def _place(self) -> Place:
        return open_place(self._work.output)

    @cached_property
    def _node(self) -> tuple[str, str]:
        from ray import get_runtime_context

        from jobs.spot import MARKET_LABEL

        context = get_runtime_context()
        market = context.get_node_labels().get(MARKET_LABEL, "local")
        return context.get_node_id(), market if isinstance(market, str) else market[0]

    def prepare(self) -> Ready:
        """Verify and load the model."""
        import os

        import pyarrow as pa
        import pyarrow.parquet  # now, rather than while the first shards wait

        _keep_memory()
        pa.set_cpu_count(1)  # each actor has its own CPU; their pools would fight over all of them
        pa.set_io_thread_count(AT_A_TIME * 4)
        node, market = self._node
        engine = self._engine
        self._warm_up()
        return Ready(node, market, os.getpid(), f"{engine.name} {engine.version} ({engine.device})")

    def _warm_up(self) -> None:
        """Do with the golden rows what is done with every shard: none waits for what is loaded late."""
        import pyarrow as pa
        from pyarrow import parquet

        inputs, _ = self._version.golden()
        outputs, _ = Batches(self._engine, batch_rows=_WARM_ROWS).answer(inputs)
        observed = Observed(self._profile, signature=self._signature)
        observed.observe(inputs, outputs)
        observed.to_json()
        table = _with_outputs(pa.table({}), outputs, self._signature, wanted=self._work.outputs)
        sink = pa.BufferOutputStream()
        codec: Any = self._work.layout.codec
        parquet.write_table(table, sink, compression=codec)
        parquet.read_table(pa.BufferReader(sink.getvalue()))
        self._place.read(Ledger(self._place, retry=self._work.retry).name("plan"))

    def measure(self, shard: Shard, batch_rows: int | None) -> dict[str, Any]:
        """Find the rows per call that answer fastest, and how fast the engine alone is.

        Args:
            shard: Where rows for it are taken from.
            batch_rows: Rows per call where that is settled.

        Returns:
            ``{"batch_rows": int, "rows_per_second": float, "tried": {rows: rows per second}}``;
            no speed where the shard has no row to try.
        """
        from jobs.batch.batch_size import search

        for chunk in read_pieces(self._work.reading, shard.pieces):
            tensors, _ = accepted(chunk.table, self._signature)
            if len(next(iter(tensors.values()))):
                return search(self._engine, tensors, batch_rows=batch_rows)
        return {"batch_rows": batch_rows or 1024, "rows_per_second": None, "tried": {}}

    def run(self, shard: Shard, batch_rows: int) -> Commit:
        """Read a shard, answer its rows, write its parts and its record.

        Returns:
            The record that stands; that of an earlier attempt where there is one.
        """
        ledger = Ledger(self._place, retry=self._work.retry)
        if (done := ledger.commit_of(shard.name)) is not None:
            return done
        observed = Observed(self._profile, signature=self._signature)
        job = _Job(shard, Batches(self._engine, batch_rows=batch_rows), observed, turns=self._turns)
        try:
            files, aside = self._written(job, mark=ledger.commit_name(shard.name))
        except ConflictError:  # somebody who was given up for dead has finished it
            done = ledger.commit_of(shard.name)
            if done is None:
                raise
            return done
        return ledger.commit(job.record(files, aside, node=self._node))

    def _written(self, job: _Job, *, mark: str) -> tuple[tuple[PartFile, ...], tuple[PartFile, ...]]:
        work, name = self._work, f"{job.shard.name}.parquet"
        plain = Layout(work.layout.codec, work.layout.row_group_rows)
        with (
            Parts(self._place, name=name, layout=work.layout) as parts,
            Parts(self._place, name=name, layout=plain, folder=f"{QUARANTINE}/") as quarantine,
        ):
            for chunk in job.chunks(work.reading):
                with job.turn():
                    answers, refused = job.answer(chunk, work)
                    with job.timed("write"):
                        parts.write(answers)
                        if refused is not None:
                            quarantine.write(refused)
            with job.timed("write"):
                return parts.finish(mark=mark), quarantine.finish(mark=mark)


def _keep_memory() -> None:
    """Have the C library keep freed memory for the next chunk, which is as large as the last one.

    Given back and asked for anew, it comes page by page: 36,000 page faults in 1.8 million rows of 32
    floats, 10,000 so. Other C libraries than GNU's have no such switch and are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(name, _KEPT_BYTES)


class Turns:
    """Who may compute, of the shards an actor holds.

    Args:
        fetches: Whether reading waits for a network, so that it takes no turn.
        device: Held while a device other than the CPU answers; None where the CPU does.
    """

    def __init__(self, *, fetches: bool, device: threading.Lock | None) -> None:
        self.fetches = fetches
        self.device = device
        self.computing = threading.Lock()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let the other shard compute while this one waits for the device."""
        if self.device is None:
            yield
            return
        self.computing.release()
        try:
            with self.device:
                yield
        finally:
            self.computing.acquire()


class _Job:
    """One shard on its way from its files to its parts."""

    def __init__(self, shard: Shard, batches: Batches, observed: Observed, *, turns: Turns) -> None:
        self.shard, self.batches, self.observed, self.turns = shard, batches, observed, turns
        self.signature: Signature = batches.engine.signature
        self.seconds = dict.fromkeys(("read", "prepare", "infer", "write"), 0.0)
        self.started_s = time.time()
        self.rows_in = self.rows_refused = 0
        self.reasons: Counter[str] = Counter()

    def turn(self) -> threading.Lock:
        """Give what is held while the shard computes."""
        return self.turns.computing

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the time in a stage; waiting for a turn is not part of it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def chunks(self, reading: Reading) -> Iterator[Chunk]:
        """Read the shard a chunk at a time."""
        source = read_pieces(reading, self.shard.pieces)
        while True:
            with contextlib.nullcontext() if self.turns.fetches else self.turn(), self.timed("read"):
                chunk = next(source, None)
            if chunk is None:
                return
            yield chunk

    def answer(self, chunk: Chunk, work: Work) -> tuple[pa.Table, pa.Table | None]:
        """Answer a chunk.

        Returns:
            The rows that are written, and those that are set aside; None where there are none.
        """
        with self.timed("prepare"):
            tensors, unfit = accepted(chunk.table, self.signature)
            fit = _without(np.arange(chunk.table.num_rows), unfit)
        with self.turns.away(), self.timed("infer"):
            outputs, failed = self.batches.answer(tensors)
        started = time.perf_counter()
        reasons = {**unfit, **{int(fit[row]): reason for row, reason in failed.items()}}
        rows = _without(np.arange(chunk.table.num_rows), reasons)
        if failed:
            tensors = {name: array[_without(np.arange(len(fit)), failed)] for name, array in tensors.items()}
        self.rows_in += chunk.table.num_rows + len(chunk.refused)
        self.rows_refused += len(reasons) + len(chunk.refused)
        self.observed.observe(tensors, outputs)
        kept = chunk.table if len(rows) == chunk.table.num_rows else chunk.table.take(rows)
        answered = _with_outputs(
            kept.select(list(work.columns)), outputs, self.signature, wanted=work.outputs
        )
        if work.origin:
            files, numbers = _origin(chunk, rows, retry=work.retry is not None)
            answered = answered.append_column(ORIGIN_FILE, files).append_column(ORIGIN_ROW, numbers)
        aside = _set_aside(chunk, reasons, work) if reasons or chunk.refused else None
        if aside is not None:
            self.reasons.update(str(each) for each in aside.column(REASON).to_pylist())
        self.seconds["prepare"] += time.perf_counter() - started
        return answered, aside

    def record(
        self, files: tuple[PartFile, ...], aside: tuple[PartFile, ...], *, node: tuple[str, str]
    ) -> Commit:
        """Say what became of the shard."""
        return Commit(
            shard=self.shard.name,
            rows_in=self.rows_in,
            rows_out=sum(file.rows for file in files),
            rows_refused=self.rows_refused,
            files=files,
            quarantine=aside[0] if aside else None,
            reasons=dict(self.reasons.most_common(_MAX_REASONS)),
            seconds={name: round(value, 4) for name, value in self.seconds.items()},
            started_s=round(self.started_s, 3),
            ended_s=round(time.time(), 3),
            node=node[0],
            market=node[1],
            batch_rows=self.batches.batch_rows,
            labels=self.observed.labels,
            observed=self.observed.to_json(),
        )


def _without(rows: np.ndarray, reasons: Mapping[int, str]) -> np.ndarray:
    if not reasons:
        return rows
    kept = np.ones(len(rows), dtype=bool)
    kept[list(reasons)] = False
    return rows[kept]


def _with_outputs(
    kept: pa.Table, outputs: Tensors, signature: Signature, *, wanted: tuple[str, ...]
) -> pa.Table:
    """Put the answers beside the kept columns; a label becomes the class's name."""
    import pyarrow as pa

    columns: dict[str, Any] = {name: kept.column(name) for name in kept.column_names}
    for spec in signature.outputs:
        if spec.name not in wanted:
            continue
        array = outputs[spec.name]
        if spec.classes:
            columns[spec.name] = _names(spec.classes).take(_arrow(array))
        elif array.ndim == 1:
            columns[spec.name] = _arrow(array)
        else:
            width = int(np.prod(array.shape[1:]))
            columns[spec.name] = pa.FixedSizeListArray.from_arrays(_arrow(array.reshape(-1)), width)
    return pa.table(columns)


@lru_cache(maxsize=64)
def _names(names: tuple[ClassName, ...]) -> Any:
    """Give names to Arrow; like ``_arrow`` without pandas."""
    import pyarrow as pa

    if not all(isinstance(name, str) for name in names):
        return _arrow(np.array(names))
    encoded = [str(name).encode() for name in names]
    ends: Any = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _arrow(array: np.ndarray) -> Any:
    """Give an array to Arrow without a copy; ``pa.array`` would import pandas, 0.5 s in every worker."""
    import pyarrow as pa

    if array.dtype.kind not in "iuf":
        return pa.array(array)
    held = np.ascontiguousarray(array)
    values: Any = held.view(np.uint8)
    return pa.Array.from_buffers(pa.from_numpy_dtype(held.dtype), len(held), [None, pa.py_buffer(values)])


def _origin(chunk: Chunk, rows: np.ndarray, *, retry: bool) -> tuple[Any, Any]:
    """Say where rows came from; a retry's rows say it themselves."""
    import pyarrow as pa

    if retry and ORIGIN_ROW in chunk.table.column_names:
        table = chunk.table.take(rows)
        return table.column(ORIGIN_FILE), table.column(ORIGIN_ROW)
    if chunk.files:
        return pa.array([chunk.files[row] for row in rows], pa.string()), pa.array(chunk.rows[rows])
    name = _names((chunk.file,))
    return name.take(_arrow(np.zeros(len(rows), dtype=np.int64))), _arrow(chunk.rows[rows])


def _set_aside(chunk: Chunk, reasons: Mapping[int, str], work: Work) -> pa.Table:
    """Make the quarantine's rows: where each was, why it is there, what it held."""
    import pyarrow as pa

    index = np.array(sorted(reasons), dtype=np.int64)
    files, rows = _origin(chunk, index, retry=work.retry is not None)
    lost = chunk.refused
    text = any(is_text(each) for each in work.formats)
    told = {
        ORIGIN_FILE: [*files.to_pylist(), *(each.file for each in lost)],
        ORIGIN_ROW: [*rows.to_pylist(), *(each.row for each in lost)],
        REASON: [*(reasons[row] for row in index), *(each.reason for each in lost)],
    }
    columns: dict[str, Any] = {name: pa.array(values) for name, values in told.items()}
    held = chunk.table.take(index)
    pixels = work.reading.layout.column if work.reading.layout else None  # the file itself keeps them
    for field in held.schema:
        if field.name in columns or field.name == pixels:
            continue
        kind = pa.string() if text or pa.types.is_null(field.type) else field.type
        unread = _unread([each.values.get(field.name) for each in lost], kind)
        columns[field.name] = pa.chunked_array([*held.column(field.name).cast(kind).chunks, unread], kind)
    if not work.formats.isdisjoint(_LINES):
        lines = [*[None] * len(index), *(each.values.get("line") for each in lost)]
        columns[LINE] = pa.array(lines, pa.string())
    return pa.table(columns)


def _unread(cells: list[str | None], kind: pa.DataType) -> Any:
    """Bring cells that could not be read to a column's type; those that do not fit it stand in the reason."""
    import pyarrow as pa

    def fitting(cell: str | None) -> Any:
        try:
            return pa.scalar(cell, pa.string()).cast(kind).as_py()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None

    return pa.array([None if cell is None else fitting(cell) for cell in cells], kind)
