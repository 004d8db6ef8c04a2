"""Running the training loop on Ray Train: workers, checkpoints, what a worker refuses.

Knows nothing of tables, registries or exports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.cluster import check_room, connected, is_disk_full, translated
from jobs.fitting.listening import disk_full, listening, refused
from jobs.fitting.local import Build, device_here, settle
from jobs.fitting.loop import FitConfig, Fitted, read_fitted
from jobs.fitting.memory import OutOfMemoryError, compute_twice, is_out_of_memory, keeps_only_averages
from jobs.fitting.trainer import Trainer
from kit.errors import InputError, KitError, SettingsError
from kit.project import Project
from kit.settings import TrainSettings

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("kit")
_MAX_FAILURES = 3


def fit_on_workers(
    project: Project,
    settings: TrainSettings,
    arrays: Mapping[str, np.ndarray],
    *,
    fit: FitConfig,
    build: Build,
    storage: Path,
    identity: str,
    hear: Callable[[dict[str, Any]], object] | None = None,
    may_stop: bool = False,
) -> Fitted:
    """Train on Ray Train; a run of the same identity that was interrupted goes on.

    Args:
        project: Travels to the workers.
        settings: Workers, threads, where to run, whether to resume.
        arrays: ``train_x``, ``train_y``, ``validation_x``, ``validation_y``, rows first, and
            ``train_teacher`` where ``fit.teacher_weight`` is above 0.
        fit: What the loop needs to know.
        build: Makes the network from the project.
        storage: Folder of checkpoints, shared by every node.
        identity: Names the run in it.
        hear: Told of each epoch, in a thread of this process, with the figures ``fit_here`` gives. An epoch
            that is done again after a failure is told again. An error it raises stops the training and is
            raised here; so does False stop it, after a later epoch where the workers do not wait.
        may_stop: Whether the workers wait for what ``hear`` returns: False then stops the training after
            that very epoch.

    Raises:
        InputError: The project or a setting breaks a rule; training diverged, or memory ran out.
        UnavailableError: The cluster or the disk fails.
    """
    if settings.address is None:
        device_here(fit)  # what this machine cannot do is refused before Ray starts
    if not settings.resume:
        shutil.rmtree(storage / identity, ignore_errors=True)
    elif (storage / identity).exists():
        _log.info("continuing the interrupted run %s", identity)
    with connected(settings.address, project=project):
        run = partial(
            _run_trainer,
            arrays,
            settings,
            build=build,
            hear=hear,
            may_stop=may_stop,
            storage=storage,
            identity=identity,
        )
        try:
            checkpoint = _with_room(run, fit)
        except OutOfMemoryError:  # with --auto-batch it may go on from here
            raise
        except InputError:  # nothing to continue: something has to be changed first
            shutil.rmtree(storage / identity, ignore_errors=True)
            raise
        with checkpoint.as_directory() as folder:
            return read_fitted(build(project), Path(folder))


def _with_room(run: Callable[[FitConfig], Any], fit: FitConfig) -> Any:
    """Run a fit, in ever smaller batches where memory runs out and ``auto_batch`` is set."""
    while True:
        try:
            return run(fit)
        except Exception as error:  # Ray's memory monitor kills a worker, which has many shapes
            if not is_out_of_memory(error):
                raise
            smaller = fit.halved()
            if smaller is None:
                raise error if isinstance(error, OutOfMemoryError) else fit.out_of_memory() from error
            said = error.message if isinstance(error, OutOfMemoryError) else fit.out_of_memory().message
        _log.info("%s; going on with %d", said, smaller.batch_size)
        fit = smaller


def _run_trainer(
    arrays: Mapping[str, np.ndarray],
    settings: TrainSettings,
    fit: FitConfig,
    *,
    build: Build,
    hear: Callable[[dict[str, Any]], object] | None,
    may_stop: bool,
    storage: Path,
    identity: str,
) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    class Interruptible(TorchTrainer):
        """Leaves Ctrl-C to Python: Ray's own handler would end the process as if it had succeeded."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    fewest = settings.min_workers or settings.workers
    check_room(fewest, threads=settings.threads, address=settings.address)
    scaling = _scaling(settings, fit)
    with listening(hear) as listener, refused(listener), translated():
        config = {
            "fit": fit,
            "build": build,
            "arrays": ray.put(dict(arrays)),
            "listener": listener,
            "may_stop": may_stop,
            "watched": os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0",
        }
        trainer = Interruptible(
            _work,
            train_loop_config=config,
            scaling_config=scaling,
            run_config=RunConfig(
                name=identity,
                storage_path=str(storage),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is None:
        raise InputError("training ended without a checkpoint", hint="run again with --no-resume")
    return result.checkpoint


def _scaling(settings: TrainSettings, fit: FitConfig) -> Any:
    """Say how many workers there are and what each of them takes.

    Raises:
        SettingsError: GPUs are asked for and this machine has too few; fp16 is to run on CPUs.
    """
    import ray
    from ray.train import ScalingConfig

    fewest = settings.min_workers or settings.workers
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's gap
    n_gpus = int(resources.get("GPU", 0))
    on_gpus = fit.device == "cuda" or (fit.device == "auto" and n_gpus >= fewest)
    if on_gpus and n_gpus < fewest and settings.address is None:
        raise SettingsError(
            f"workers = {fewest}, but this machine has {n_gpus} GPUs",
            hint=f"set workers to {max(n_gpus, 1)} or less",
        )
    fit.check_precision("cuda" if on_gpus else "cpu")
    each = {"CPU": settings.threads} | ({"GPU": 1} if on_gpus else {})
    workers: Any = settings.workers if settings.min_workers is None else (fewest, settings.workers)
    return ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker=each)


def _work(config: dict[str, Any]) -> None:
    """Train on this worker; Ray Train calls it on each.

    A refusal is told to the listener first: Ray starts the loop again after any failure, and
    what a user has to correct is not worth a second try.

    Args:
        config: ``fit`` (a FitConfig), ``build``, ``arrays`` (a reference to train and validation
            arrays), ``listener`` (an actor that hears of each epoch and of a refusal), ``may_stop``
            (whether its answer is waited for) and ``watched`` (whether somebody would say that this
            machine is taken away).
    """
    import ray

    listener = config["listener"]
    if ray.get(listener.refusal.remote()) is not None:
        return
    try:
        _train(config)
    except KitError as error:
        ray.get(listener.refuse.remote(error))
        raise
    except Exception as error:  # torch, pyarrow and Ray each wrap the system's error in their own
        refusal: KitError | None = None
        if is_disk_full(error):
            refusal = disk_full()
        elif is_out_of_memory(error):  # outside a step: the network itself, or the rows
            refusal = config["fit"].out_of_memory()
        if refusal is None:
            raise
        ray.get(listener.refuse.remote(refusal))
        raise refusal from error


def _train(config: dict[str, Any]) -> None:
    import ray
    import torch
    from ray import train
    from ray.train.torch import get_device

    fit: FitConfig = config["fit"]
    listener = config["listener"]
    settle(fit)
    torch.manual_seed(fit.seed)
    folder = Path(fit.folder)
    project = Project.open(folder if folder.is_dir() else Path.cwd())
    context = train.get_context()
    trainer = Trainer(
        _spread(config["build"](project), fit),
        fit,
        ray.get(config["arrays"]),
        device=get_device(),
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            trainer.resume(Path(kept))
    told: list[Any] = []

    def tell(figures: dict[str, Any]) -> bool:
        goes_on = True
        with contextlib.suppress(ray.exceptions.RayError):  # a listener that is gone stops nobody
            goes_on = all(ray.get(told))  # an asynchronous actor may take two calls in either order
        told[:] = [listener.hear.remote(figures, wait=config["may_stop"])]
        if config["may_stop"]:
            with contextlib.suppress(ray.exceptions.RayError):
                goes_on = ray.get(told[0])
        return goes_on

    trainer.run(
        hear=tell,
        keep=lambda: _report(trainer),
        interval_s=fit.checkpoint_interval_s,
        noticed=_notices() if config["watched"] else None,
    )
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(told)


def _spread(network: torch.nn.Module, fit: FitConfig) -> torch.nn.Module:
    """Put a network on this worker's device and, where there are several workers, average its gradients."""
    from ray.train.torch import prepare_model

    if fit.gradient_checkpointing:
        compute_twice(network)
    # Running averages are sent before validation instead of before every step: the steps do not read them.
    spread: torch.nn.Module = prepare_model(
        network,
        parallel_strategy_kwargs={
            "gradient_as_bucket_view": True,
            "broadcast_buffers": not keeps_only_averages(network),
        },
    )
    return spread


def _notices() -> Callable[[], bool]:
    """Give a question that is answered once for every notice that a machine is to be taken away."""
    from ray import train

    seen: set[str] = set()

    def noticed() -> bool:
        notice = train.get_preemption_info()  # every worker waits here for the others
        if notice is None or repr(notice) in seen:
            return False
        seen.add(repr(notice))
        return True

    return noticed


def _report(trainer: Trainer) -> None:
    """Report a checkpoint to Ray Train, which waits for every worker; the first one brings the files."""
    from ray import train

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if trainer.rank == 0:
            trainer.save(Path(folder))
            checkpoint = train.Checkpoint.from_directory(folder)
        epochs = trainer.progress.epochs
        train.report(asdict(epochs[-1]) if epochs else {}, checkpoint=checkpoint)
