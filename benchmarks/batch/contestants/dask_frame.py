"""Dask: ``read_parquet``, ``map_partitions`` and ``to_parquet`` of its data frames, on two processes."""

from __future__ import annotations

import time

import dask.dataframe as frames
import pandas as pd
import pyarrow as pa
from dask.distributed import Client, LocalCluster
from scoring import N_WORKERS, Task, loaded, report
from subjects import CLASSES, COLUMNS


def frame_of(names: pa.Array, lists: pa.Array) -> pd.DataFrame:
    """Put answers into a data frame as they are, in Arrow's memory."""
    wrapped = pd.arrays.ArrowExtensionArray
    return pd.DataFrame({"label": wrapped(names), "probabilities": wrapped(lists)})


def answer(rows: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Answer a partition."""
    names, lists = loaded(task).answer([rows[name].to_numpy() for name in COLUMNS])
    return frame_of(names, lists)


def load(task: Task) -> None:
    """Have a worker ready."""
    loaded(task)


def main() -> None:
    began = time.perf_counter()
    task = Task.from_arguments()
    empty = frame_of(pa.array([], pa.string()), pa.array([], pa.list_(pa.float32(), len(CLASSES))))
    with (
        LocalCluster(n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(load, task)
        stood = time.perf_counter()
        rows = frames.read_parquet(task.input, columns=list(COLUMNS))
        rows.map_partitions(answer, task, meta=empty).to_parquet(
            task.output, compression="zstd", write_index=False
        )
        report(start_s=stood - began, seconds=time.perf_counter() - stood)


if __name__ == "__main__":
    main()
