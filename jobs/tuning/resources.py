"""How many trials fit at a time, and what can never start: arithmetic over the Ray that is connected."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from jobs.cluster import inside_job
from kit.errors import InputError
from kit.settings import TrainSettings, TuneSettings

_log = logging.getLogger("kit")


@dataclass(frozen=True)
class Room:
    """What one trial takes, and how many run at a time.

    Attributes:
        cpus: CPUs of a trial with all its workers.
        gpus: Likewise.
        concurrent: Trials at a time.
    """

    cpus: int
    gpus: int
    concurrent: int


def growing(settings: TuneSettings) -> str | None:
    """Give the address of the cluster a study runs on, which may get more nodes; None on this machine's Ray.

    Inside a submitted job, which joins the cluster that runs it, that is ``auto``.
    """
    return settings.address or ("auto" if inside_job() else None)


def room_for(train: TrainSettings, *, concurrent: int, cpus: int, gpus: int, may_grow: bool = False) -> Room:
    """Work out how many trials run at a time.

    A trial of one worker takes ``threads`` CPUs. One of more workers takes one CPU for its own process and
    ``threads`` for each worker. With a GPU per worker, GPUs are counted as well.

    Args:
        train: Workers, threads and device of each trial.
        concurrent: Trials at a time; 0 is as many as fit.
        cpus: Of the Ray that is connected.
        gpus: Likewise.
        may_grow: Whether the cluster can get more nodes; then only what is asked for is counted.

    Raises:
        InputError: A single trial, or as many as are asked for, do not fit: Ray would wait for ever.
    """
    workers, threads = train.workers, train.threads
    each = threads if workers == 1 else 1 + workers * threads
    each_gpus = workers if train.device == "cuda" or (train.device == "auto" and gpus >= workers) else 0
    made_of = f"1 and {workers} workers of {threads}" if workers > 1 else f"threads = {threads}"
    if each > cpus or each_gpus > gpus:
        lacking = f"{each} CPUs ({made_of})" if each > cpus else f"{each_gpus} GPUs"
        there = f"{cpus} CPUs" if each > cpus else f"{gpus}"
        if not may_grow:
            raise InputError(
                f"a trial needs {lacking}, but there are {there}",
                hint="lower workers or threads in [train], or give --address of a larger cluster",
            )
        _log.info("a trial needs %s, and the cluster has %s now: waiting for it to grow", lacking, there)
    fit = cpus // each
    if each_gpus:
        fit = min(fit, gpus // each_gpus)
    if concurrent > fit and not may_grow:
        raise InputError(
            f"concurrent = {concurrent} trials of {each} CPUs need {concurrent * each}, but {cpus} are there",
            hint=f"set concurrent to {fit} or less; 0 takes as many as fit",
        )
    return Room(cpus=each, gpus=each_gpus, concurrent=concurrent or max(fit, 1))
