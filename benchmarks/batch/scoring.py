"""What a contestant is told and does with a table of rows; whoever runs it decides when and where.

Sees numpy, pyarrow and onnxruntime alone, since the peers' environment holds no kit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
from pyarrow import parquet
from subjects import CLASSES, COLUMNS

N_WORKERS = 2


@dataclass(frozen=True)
class Task:
    """What a contestant is told.

    Attributes:
        model: The ONNX file.
        input: Folder of the Parquet files.
        output: Folder of the parts; not there yet.
        batch_rows: Rows of one call of the model.
    """

    model: str
    input: str
    output: str
    batch_rows: int

    @classmethod
    def from_arguments(cls) -> Task:
        """Read the words of the command line, in the order of the fields."""
        parser = argparse.ArgumentParser()
        for name in ("model", "input", "output"):
            parser.add_argument(name)
        parser.add_argument("batch_rows", type=int)
        return cls(**vars(parser.parse_args()))

    def words(self) -> list[str]:
        """Give the words that ``from_arguments`` reads."""
        return [self.model, self.input, self.output, str(self.batch_rows)]

    def files(self) -> list[str]:
        """List the files of the input in order."""
        return sorted(str(path) for path in Path(self.input).glob("*.parquet"))

    def scorer(self) -> Scorer:
        """Load the model."""
        return Scorer(self.model, batch_rows=self.batch_rows)


class Scorer:
    """A loaded model on one thread."""

    def __init__(self, model: str, *, batch_rows: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._batch_rows = batch_rows
        self._names = pa.array(CLASSES)

    def run(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answer rows, a batch at a time.

        Args:
            rows: float32, shape (n, 32).

        Returns:
            Indices of classes, int64, shape (n,); probabilities, float32, shape (n, 10).
        """
        found = [
            self._session.run(["label", "probabilities"], {"x": rows[start : start + self._batch_rows]})
            for start in range(0, len(rows), self._batch_rows)
        ]
        return np.concatenate([each for each, _ in found]), np.concatenate([each for _, each in found])

    def answer(self, columns: list[np.ndarray]) -> tuple[pa.Array, pa.Array]:
        """Answer columns of equal length; gives the names of the classes and lists of probabilities."""
        rows = np.empty((len(columns[0]), len(COLUMNS)), np.float32)
        for index, column in enumerate(columns):
            rows[:, index] = column
        labels, probabilities = self.run(rows)
        flat = pa.array(probabilities.reshape(-1))
        return self._names.take(pa.array(labels)), pa.FixedSizeListArray.from_arrays(flat, len(CLASSES))

    def answer_table(self, table: pa.Table | pa.RecordBatch) -> pa.Table:
        """Answer a table that has the columns; gives one of ``label`` and ``probabilities``."""
        columns = [table.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS]
        return pa.table(dict(zip(("label", "probabilities"), self.answer(columns), strict=True)))


@cache
def loaded(task: Task) -> Scorer:
    """Load the model once per process, for who calls a function and not an object of its own."""
    return task.scorer()


def write(table: pa.Table, path: str) -> None:
    """Write a part as all of them are written, where a contestant leaves it to us."""
    parquet.write_table(table, path, compression="zstd", use_dictionary=["label"])


def report(*, start_s: float, seconds: float) -> None:
    """Print what the parent reads: seconds until all workers were ready, and from there to the last part."""
    print(json.dumps({"start_s": start_s, "seconds": seconds}), flush=True)
