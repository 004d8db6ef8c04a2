"""Samples of requests and answers as Parquet files, for later questions about drift.

The event loop tosses a coin and puts references to the tensors into a queue; a thread makes columns of them.
Each file is whole from the moment it has a name, so a replica that is killed loses what it held, half a
minute at most. pyarrow is imported by the thread. Nothing here waits for a disk on behalf of a request: what
does not fit is dropped and counted. The queue holds 65,536 rows and 64 MB; the thread as much again at most.

Columns: ``time`` (UTC), ``request_id``, ``row`` (from 0, in its request), ``model``, ``version``, ``digest``,
``release``, ``input_NAME`` for each table column the model reads (for each tensor where it reads none), and
``output_NAME`` for each answer, ``output_label`` as the class's name. A tensor of several values per row is a
list of them, in C order.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kit.settings.serving import PredictionLogSettings
from kit.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from kit.inference.card import Card

#: Rows after which a file is written without waiting for its time.
FILE_ROWS = 16_384
EVERY_S = 30.0
_MAX_WAITING_ROWS = 65_536
_MAX_WAITING_BYTES = 64_000_000
_ROW_GROUP_ROWS = 4096
# numpy and pyarrow hold the interpreter while they join arrays, and the event loop waits: so in pieces of
# half a millisecond, with a pause after each.
_SAMPLES_AT_ONCE = 64
_PAUSE_S = 0.001


class Answered(NamedTuple):
    """A request and its answer.

    Attributes:
        at_ns: When it was answered (Unix time in ns).
        request_id: Its name.
        card: The version that answered.
        release: Sequence number of the release that sent it there.
        inputs: What the engine read, each of shape (n_rows, ...).
        outputs: What it answered; likewise.
        n_rows: Rows of either.
    """

    at_ns: int
    request_id: str
    card: Card
    release: int
    inputs: Tensors
    outputs: Tensors
    n_rows: int


class PredictionLog:
    """The samples of one replica.

    Args:
        settings: Where they go, how many, how much all of them take, what is left out.
        replica: The replica, which its files are named after.
        every_s: How long a sample waits for its file.
        file_rows: How many rows do not wait.
    """

    def __init__(
        self,
        settings: PredictionLogSettings,
        *,
        replica: str,
        every_s: float = EVERY_S,
        file_rows: int = FILE_ROWS,
    ) -> None:
        self._folder = Path(settings.folder)
        self._share = settings.share
        self._max_bytes = int(settings.max_mb * 1_000_000)
        self._redacted = frozenset(settings.redact)
        self._replica = replica
        self._every_s = every_s
        self._file_rows = file_rows
        self._waiting: deque[Answered] = deque()
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._number = 0
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="kit-prediction-log", daemon=True)
        self._random = random.random
        #: Rows that are in files, and rows there was no room for, in the queue or on the disk.
        self.kept = 0
        self.dropped = 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def offer(self, request_id: str, *, card: Card, release: int, inputs: Tensors, outputs: Tensors) -> None:
        """Toss the coin for a request, and keep it with its answer, later.

        Args:
            request_id: Its name.
            card: The version that answered.
            release: Sequence number of the release that sent it there.
            inputs: What the engine read. Nobody may write into the arrays any more.
            outputs: What it answered, every output by name; likewise.
        """
        if self._random() >= self._share:
            return
        n_rows = max((len(each) for each in inputs.values()), default=0)
        answered = Answered(time.time_ns(), request_id, card, release, inputs, outputs, n_rows)
        size = _bytes_of(answered)
        if (
            self._waiting_rows + answered.n_rows > _MAX_WAITING_ROWS
            or self._waiting_bytes + size > _MAX_WAITING_BYTES
        ):
            self.dropped += answered.n_rows
            return
        self._waiting.append(answered)
        self._waiting_rows += answered.n_rows
        self._waiting_bytes += size
        if self._waiting_rows >= self._file_rows:
            self._wake.set()

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        with contextlib.suppress(ImportError):  # now, while nobody asks yet, and not between two requests
            import pyarrow.parquet  # noqa: F401 - for the side effect
        while not self._ended:
            self._wake.wait(self._every_s)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        """Write all that waits: one file for each version."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not taken:
            return
        # The event loop adds to the two numbers while they are taken from: both are hints, set right here.
        self._waiting_rows = sum(each.n_rows for each in self._waiting.copy())
        self._waiting_bytes = sum(_bytes_of(each) for each in self._waiting.copy())
        versions: dict[tuple[str, str], list[Answered]] = {}
        for each in taken:
            versions.setdefault((each.card.name, each.card.digest), []).append(each)
        for samples in versions.values():
            n_rows = sum(each.n_rows for each in samples)
            try:
                self._write(samples)
                self.kept += n_rows
            except (
                Exception
            ):  # a disk, or rows no column can hold: an endpoint answers on without its samples
                self.dropped += n_rows
        with contextlib.suppress(OSError):
            keep_within(self._folder, max_bytes=self._max_bytes)

    def _write(self, samples: Sequence[Answered]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._folder.mkdir(parents=True, exist_ok=True)
        card = samples[0].card
        self._number += 1
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{card.name}-{card.number}-{moment}-{self._replica}-{self._number:06d}.parquet"
        work = self._folder / f".{name}"
        try:
            pieces = []
            for start in range(0, len(samples), _SAMPLES_AT_ONCE):
                pieces.append(to_table(samples[start : start + _SAMPLES_AT_ONCE], redacted=self._redacted))
                time.sleep(_PAUSE_S)
            table = pa.concat_tables(pieces)
            parquet.write_table(table, work, row_group_size=_ROW_GROUP_ROWS, compression="zstd")
            os.replace(work, self._folder / name)
        finally:
            with contextlib.suppress(OSError):
                work.unlink()


def to_table(samples: Sequence[Answered], *, redacted: Collection[str]) -> pa.Table:
    """Make columns of requests for one version.

    Args:
        samples: At least one, all of one digest.
        redacted: Columns, inputs and outputs that are left out.
    """
    import pyarrow as pa

    rows = [each.n_rows for each in samples]

    def by_row(values: list[Any], kind: pa.DataType) -> pa.Array[Any]:
        return pa.array(np.repeat(np.asarray(values, dtype=object), rows), type=kind)

    card = samples[0].card
    columns: dict[str, pa.Array[Any]] = {
        "time": pa.array(
            np.repeat([each.at_ns // 1000 for each in samples], rows), type=pa.timestamp("us", tz="UTC")
        ),
        "request_id": by_row([each.request_id for each in samples], pa.string()),
        "row": pa.array(np.concatenate([np.arange(n) for n in rows]), type=pa.int32()),
        "model": by_row([card.name] * len(samples), pa.string()),
        "version": by_row([card.number] * len(samples), pa.int32()),
        "digest": by_row([card.digest] * len(samples), pa.string()),
        "release": by_row([each.release for each in samples], pa.int64()),
    }
    for spec in card.signature.inputs:
        if spec.name not in redacted:
            tensor = np.concatenate([each.inputs[spec.name] for each in samples])
            for name, values in _input_columns(spec, tensor):
                if name not in redacted:
                    columns[f"input_{name}"] = _column(values)
    for spec in card.signature.outputs:
        if spec.name not in redacted and all(spec.name in each.outputs for each in samples):
            tensor = np.concatenate([each.outputs[spec.name] for each in samples])
            named = np.asarray(spec.classes, dtype=object)[tensor.reshape(-1)] if spec.classes else tensor
            columns[f"output_{spec.name}"] = _column(named)
    return pa.table(columns)


def _input_columns(spec: TensorSpec, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Undo ``Signature.from_columns``: one array per table column, or the tensor itself where it has none."""
    if len(spec.columns) == spec.row_size:
        flat = tensor.reshape(len(tensor), spec.row_size)
        yield from ((name, flat[:, index]) for index, name in enumerate(spec.columns))
    elif len(spec.columns) > 1:
        yield from ((name, tensor[:, index]) for index, name in enumerate(spec.columns))
    else:
        yield (spec.columns[0] if spec.columns else spec.name), tensor


def _column(values: np.ndarray) -> pa.Array[Any]:
    """Make a column of an array: scalars, or a list per row."""
    import pyarrow as pa

    if values.ndim == 1:
        scalars: pa.Array[Any] = pa.array(values)
        return scalars
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    size = len(flat) // len(values) if len(values) else 0
    listed: pa.Array[Any] = pa.FixedSizeListArray.from_arrays(flat, size)
    return listed


def keep_within(folder: Path, *, max_bytes: int) -> None:
    """Remove the oldest files, whichever replica wrote them, until the rest take no more than allowed.

    Args:
        folder: Holds Parquet files and nothing else of that ending.
        max_bytes: Most they may take; the newest stays in any case.
    """
    found = []
    for path in folder.glob("*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # another replica removes, too
            status = path.stat()
            found.append((status.st_mtime_ns, path, status.st_size))
    found.sort(key=lambda each: each[:2], reverse=True)
    total = 0
    for index, (_, path, size) in enumerate(found):
        total += size
        if index and total > max_bytes:
            path.unlink(missing_ok=True)


def _bytes_of(answered: Answered) -> int:
    """Estimate the memory a sample holds on to."""
    return sum(array.nbytes for tensors in (answered.inputs, answered.outputs) for array in tensors.values())
