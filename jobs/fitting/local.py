"""Fitting in this process, without Ray: trials of a study, folds, fine-tuning of a compressed network.

Knows nothing of workers, tables or registries.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.fitting.checkpoint import note_batch, with_noted_batch
from jobs.fitting.loop import FitConfig, Fitted
from jobs.fitting.memory import OutOfMemoryError, compute_twice
from jobs.fitting.trainer import Trainer
from kit.errors import SettingsError
from kit.project import Project

if TYPE_CHECKING:
    import torch

#: Makes the network; a pickled one travels to workers.
Build = Callable[[Project], "torch.nn.Module"]
_PARTIAL = ".partial"
_log = logging.getLogger("kit")


def fit_here(
    project: Project,
    fit: FitConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    build: Build,
    hear: Callable[[dict[str, Any]], object],
    folder: Path | None = None,
    interval_s: float = 30.0,
    told: int | None = None,
) -> Fitted:
    """Train in this process; with a folder, go on where an interrupted call with the same arguments stood.

    The same arguments give the same weights, interrupted or not. What is kept for the whole process (torch's
    threads and determinism, the generators of torch, numpy and Python) is put back afterwards.

    Args:
        project: What ``build`` makes the network of.
        fit: What the loop needs to know; ``FitConfig.of(settings, project=..., n_classes=...)``.
        arrays: ``train_x``, ``train_y``, ``validation_x``, ``validation_y``, rows first, and
            ``train_teacher`` where ``fit.teacher_weight`` is above 0.
        build: Makes the network from the project.
        hear: Told of each epoch with a dict of ``epoch`` (from 1), ``train_loss``, ``validation_loss`` and
            ``seconds``; stops the training after it by returning False. Epochs of an earlier call are
            not told again, but see ``told``.
        folder: Where checkpoints are written, atomically, and found again; made where it is missing,
            left to the caller afterwards. None keeps none.
        interval_s: Time between checkpoints; 0 writes one after every epoch, before
            ``hear`` is told of it.
        told: How many epochs ``hear`` knows of from earlier calls. With ``interval_s`` = 0 a kill may come
            between the checkpoint and ``hear``: then the checkpoint's last epoch is told now. None where it
            knows of all in the checkpoint.

    Returns:
        The network with its best weights, on the CPU, in evaluation mode.

    Raises:
        InputError: Training diverged, or memory ran out (``OutOfMemoryError``).
    """
    run = _Run(project=project, arrays=arrays, build=build, folder=folder, interval_s=interval_s, told=told)
    given: FitConfig | None = with_noted_batch(folder, fit) if folder is not None else fit
    n_told = 0

    def tell(figures: dict[str, Any]) -> object:
        nonlocal n_told
        if figures["epoch"] <= n_told:  # done again in smaller batches
            return True
        n_told = figures["epoch"]
        return hear(figures)

    while given is not None:
        fit = given
        try:
            with _settled(fit):
                return _fit(run, fit, hear=tell)
        except OutOfMemoryError as error:
            given = fit.halved()
            if given is None:
                raise
            _log.info("%s; going on with batch_size = %d", error.message, given.batch_size)
            if folder is not None:
                note_batch(folder, given)
    raise AssertionError("a fit that is halved is tried again")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same when a fit is tried again in smaller batches; see ``fit_here``."""

    project: Project
    arrays: Mapping[str, np.ndarray]
    build: Build
    folder: Path | None
    interval_s: float
    told: int | None


def _fit(run: _Run, fit: FitConfig, *, hear: Callable[[dict[str, Any]], object]) -> Fitted:
    import torch

    device = torch.device(device_here(fit))
    network = built(run.build, run.project, seed=fit.seed).to(device)
    if fit.gradient_checkpointing:
        compute_twice(network)
    trainer = Trainer(network, fit, run.arrays, device=device, rank=0, world=1)
    kept = _newest(run.folder)
    if kept is not None:
        trainer.resume(kept)

    def keep() -> None:
        if run.folder is not None:
            _keep(trainer, run.folder)

    trainer.run(hear=hear, keep=keep, interval_s=run.interval_s, told=run.told)
    fresh = built(run.build, run.project, seed=fit.seed)
    fresh.load_state_dict(trainer.best)
    fresh.eval()
    return Fitted(fresh, tuple(trainer.progress.epochs), trainer.progress.best_epoch, trainer.used())


def built(build: Build, project: Project, *, seed: int) -> torch.nn.Module:
    """Make a network whose random numbers follow from the seed, whatever generator its factory draws from."""
    with _own_generators():
        _seed(seed)
        return build(project)


def device_here(fit: FitConfig) -> str:
    """Say whether a fit in this process computes on ``cpu`` or ``cuda``.

    Raises:
        SettingsError: A GPU is asked for and there is none; fp16 is to run on a CPU.
    """
    import torch

    there = torch.cuda.is_available()
    if fit.device == "cuda" and not there:
        raise SettingsError("device = cuda, but torch finds no GPU here", hint="set device to auto or cpu")
    device = "cuda" if there and fit.device != "cpu" else "cpu"
    fit.check_precision(device)
    return device


@contextlib.contextmanager
def _settled(fit: FitConfig) -> Iterator[None]:
    """Set what torch keeps for the whole process, and put it back."""
    import torch

    threads = torch.get_num_threads()
    strictness = torch.get_deterministic_debug_mode()
    filling: Any = torch.utils.deterministic
    filled = filling.fill_uninitialized_memory
    settle(fit)
    try:
        with _own_generators():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strictness)
        filling.fill_uninitialized_memory = filled


@contextlib.contextmanager
def _own_generators() -> Iterator[None]:
    """Put the generators of the process back afterwards."""
    import torch

    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def settle(fit: FitConfig) -> None:
    """Set what torch keeps for the whole process, so that two runs give equal bytes."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS adds in any order
    torch.set_num_threads(fit.threads)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports a compiler as well
    filling: Any = torch.utils.deterministic
    filling.fill_uninitialized_memory = (
        False  # costs time, and every tensor here is written before it is read
    )


def _newest(folder: Path | None) -> Path | None:
    if folder is None or not folder.is_dir():
        return None
    whole = [each for each in folder.iterdir() if each.name.isdecimal()]
    return max(whole, key=lambda each: int(each.name), default=None)


def _keep(trainer: Trainer, folder: Path) -> None:
    """Write a checkpoint beside the last one and give it its name when it is whole."""
    last = _newest(folder)
    number = int(last.name) + 1 if last is not None else 1
    partial = folder / f"{number}{_PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    trainer.save(partial)
    os.replace(partial, folder / str(number))
    if last is not None:
        shutil.rmtree(last)
