"""Daft: a class under its data frame, in its own process, whose threads are as many as there are cores.

Its processes (``use_process``) and its own count of instances (``max_concurrency``) are both slower here.
"""

from __future__ import annotations

import time

import daft
import pyarrow as pa
from daft import DataType, Series, col
from scoring import Task, report
from subjects import CLASSES, COLUMNS

_ANSWER = DataType.struct(
    {
        "label": DataType.string(),
        "probabilities": DataType.fixed_size_list(DataType.float32(), len(CLASSES)),
    }
)


@daft.cls(use_process=False)
class Answerer:
    def __init__(self, words: list[str]) -> None:
        model, folder, output, batch_rows = words
        self._scorer = Task(model, folder, output, int(batch_rows)).scorer()

    @daft.method.batch(return_dtype=_ANSWER)
    def answer(self, *columns: Series) -> pa.Array:
        arrays = self._scorer.answer([each.to_arrow().to_numpy(zero_copy_only=False) for each in columns])
        return pa.StructArray.from_arrays(list(arrays), ["label", "probabilities"])


def main() -> None:
    began = time.perf_counter()
    task = Task.from_arguments()
    daft.set_runner_native()
    answerer = Answerer(task.words())
    stood = time.perf_counter()
    answered = daft.read_parquet(task.files()).select(
        answerer.answer(*(col(name) for name in COLUMNS)).alias("answer")
    )
    answered.select(col("answer").get("label"), col("answer").get("probabilities")).write_parquet(
        task.output, compression="zstd"
    )
    report(start_s=stood - began, seconds=time.perf_counter() - stood)


if __name__ == "__main__":
    main()
