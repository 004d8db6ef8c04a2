"""Ray Data: a pool of two actors under ``map_batches``, blocks as Arrow tables, ``write_parquet``.

Ray is told of four CPUs, since two actors leave none of two to write with. The clock starts when the second
actor has its model; what the first has done by then is a gift. A small run goes before, not counted.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from scoring import N_WORKERS, Scorer, Task, report


class Actor:
    """Holds a model, and leaves a file when it has it."""

    def __init__(self, task: Task, moments: str) -> None:
        self._scorer: Scorer = task.scorer()
        Path(moments, str(os.getpid())).write_text(str(time.time()))

    def __call__(self, table: Any) -> Any:
        return self._scorer.answer_table(table)


def run(task: Task, files: list[str], output: str) -> tuple[float, float]:
    """Answer files; gives when the last actor was ready and when the last part was there, unix times."""
    with tempfile.TemporaryDirectory() as moments:
        ray.data.read_parquet(files).map_batches(
            Actor,
            fn_constructor_args=(task, moments),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=N_WORKERS),
            num_cpus=1,
        ).write_parquet(output, compression="zstd", use_dictionary=["label"])
        ended = time.time()
        return max(float(path.read_text()) for path in Path(moments).iterdir()), ended


def main() -> None:
    began = time.time()
    task = Task.from_arguments()
    ray.init(
        "local",
        num_cpus=2 * N_WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as warm:
        run(task, task.files()[:2], warm)
    ready, ended = run(task, task.files(), task.output)
    ray.shutdown()
    report(start_s=ready - began, seconds=ended - ready)


if __name__ == "__main__":
    main()
