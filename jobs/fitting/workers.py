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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.cluster import check_room, connected, inside_job, is_disk_full, translated
from jobs.fitting.checkpoint import newest, note_batch, take_up, with_noted_batch
from jobs.fitting.listening import disk_full, listening, refusal_of, refused
from jobs.fitting.local import Build, built, device_here, settle
from jobs.fitting.loop import FitConfig, Fitted, read_fitted
from jobs.fitting.memory import OutOfMemoryError, compute_twice, is_out_of_memory, keeps_only_averages
from jobs.fitting.network import has_idle_weights
from jobs.fitting.trainer import DivergedError, Trainer
from kit.errors import InputError, KitError, ProjectError, SettingsError
from kit.project import Project
from kit.settings import TrainSettings

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("kit")
_MAX_FAILURES = 3
_UNREDUCED = "Expected to have finished reduction"  # what DistributedDataParallel says of a missing gradient


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same when a training is tried again in smaller batches; see ``fit_on_workers``."""

    settings: TrainSettings
    arrays: Mapping[str, np.ndarray]
    build: Build
    hear: Callable[[dict[str, Any]], object] | None
    may_stop: bool
    folder: Path


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

    Its last checkpoint stays whatever ends it, but for a loss that is not finite.

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
    folder = storage / identity
    if settings.address is None:
        device_here(fit)  # what this machine cannot do is refused before Ray starts
    if not settings.resume:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        _log.info("continuing the interrupted run %s", identity)
    with connected(settings.address, project=project):
        run = _Run(settings=settings, arrays=arrays, build=build, hear=hear, may_stop=may_stop, folder=folder)
        try:
            kept = with_room(partial(_run_trainer, run), fit, folder=folder)
        except InputError as error:  # something has to be changed first, perhaps only where it runs
            if isinstance(error, DivergedError) or newest(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return read_fitted(built(build, project, seed=fit.seed), kept)


def with_room(run: Callable[[FitConfig], Path], fit: FitConfig, *, folder: Path) -> Path:
    """Run a fit, in ever smaller batches where memory runs out and ``auto_batch`` is set.

    Args:
        run: Gives the checkpoint it ended with.
        fit: With the batch that was asked for.
        folder: Of the run; the batch is noted there for when it is interrupted.

    Raises:
        OutOfMemoryError: Memory ran out, and there is no smaller batch or nobody asked for one.
    """
    fit = with_noted_batch(folder, fit)
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
        note_batch(folder, smaller)
        fit = smaller


def _run_trainer(run: _Run, fit: FitConfig) -> Path:
    """Train until the end, or until something fails; gives the checkpoint of the end."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.backend import BackendConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    settings = run.settings
    # Each is a process, 2 s of a core to start: one hands out Ray Datasets, of which there are none;
    # one frees what a dead controller held, and on this machine all that ends with the command.
    idle = {"DatasetsCallback"}
    if settings.address is None and not inside_job():
        idle.add("PlacementGroupCleanerCallback")

    class Trimmed(DataParallelTrainer):
        """Leaves Ctrl-C to Python: Ray's own handler would end the process as if it had succeeded."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if type(each).__name__ not in idle]

    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    fewest = settings.min_workers or settings.workers
    check_room(fewest, threads=settings.threads, address=settings.address)
    scaling = _scaling(settings, fit)
    kept = take_up(run.folder)
    with listening(run.hear) as listener, refused(listener), translated():
        config = {
            "fit": fit,
            "build": run.build,
            "arrays": ray.put(dict(run.arrays)),
            "kept": kept,
            "listener": listener,
            "may_stop": run.may_stop,
            "watched": os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0",
        }
        trainer = Trimmed(
            _work,
            train_loop_config=config,
            # One worker needs no process group, nor Ray's controller torch, whose import takes 1.2 s.
            backend_config=TorchConfig() if settings.workers > 1 else BackendConfig(),
            scaling_config=scaling,
            run_config=RunConfig(
                name=run.folder.name,
                storage_path=str(run.folder.parent),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            ),
        )
        result = trainer.fit()
    if result.checkpoint is not None:
        kept = Path(result.checkpoint.path)
    if kept is None:
        raise InputError("training ended without a checkpoint", hint="run again with --no-resume")
    return kept


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
            arrays), ``kept`` (the checkpoint of an earlier driver, or None), ``listener`` (an actor that
            hears of each epoch and of a refusal), ``may_stop`` (whether its answer is waited for) and
            ``watched`` (whether somebody would say that this machine is taken away).
    """
    listener = config["listener"]
    if refusal_of(listener) is not None:
        return
    try:
        _train(config)
    except KitError as error:
        _refuse(listener, error)
        raise
    except Exception as error:  # torch, pyarrow and Ray each wrap the system's error in their own
        refusal = refusal_for(error, config["fit"])
        if refusal is None:
            raise
        _refuse(listener, refusal)
        raise refusal from error


def refusal_for(error: Exception, fit: FitConfig) -> KitError | None:
    """Say what a user can do about an error of a worker; None where another try may help.

    Args:
        error: Of torch, pyarrow or Ray.
        fit: What was tried.
    """
    if is_disk_full(error):
        return disk_full()
    if is_out_of_memory(error):  # outside a step: the network itself, or the rows
        return fit.out_of_memory()
    if _UNREDUCED in str(error):
        return ProjectError(
            "the network uses other weights for some rows than for others, and workers that average their "
            "gradients wait for those of all weights",
            hint="use every weight in each forward pass, or set workers to 1",
        )
    return None


def _refuse(listener: Any, error: KitError) -> None:
    import ray

    with contextlib.suppress(ray.exceptions.RayError):  # a listener that is gone must not hide the error
        ray.get(listener.refuse.remote(error))


def _train(config: dict[str, Any]) -> None:
    import ray
    from ray import train
    from ray.train.torch import get_device

    fit: FitConfig = config["fit"]
    listener = config["listener"]
    settle(fit)
    folder = Path(fit.folder)
    project = Project.open(folder if folder.is_dir() else Path.cwd())
    context = train.get_context()
    arrays, world = ray.get(config["arrays"]), context.get_world_size()
    network = built(config["build"], project, seed=fit.seed)
    trainer = Trainer(
        _spread(network, fit, idle=world > 1 and has_idle_weights(network, arrays["train_x"][:2])),
        fit,
        arrays,
        device=get_device(),
        rank=context.get_world_rank(),
        world=world,
    )
    checkpoint = train.get_checkpoint()
    kept: Path | None = config["kept"] if checkpoint is None else Path(checkpoint.path)
    if kept is not None:
        trainer.resume(kept)
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


def _spread(network: torch.nn.Module, fit: FitConfig, *, idle: bool) -> torch.nn.Module:
    """Put a network on this worker's device and, where there are several workers, average its gradients.

    Args:
        network: On the CPU.
        fit: Whether activations are computed twice.
        idle: Whether some weights have no gradient; looking for them takes a tenth of a small step.
    """
    from ray.train.torch import prepare_model

    if fit.gradient_checkpointing:
        compute_twice(network)
    # Running averages are sent before validation instead of before every step: the steps do not read them.
    spread: torch.nn.Module = prepare_model(
        network,
        parallel_strategy_kwargs={
            "gradient_as_bucket_view": True,
            "broadcast_buffers": not keeps_only_averages(network),
            "find_unused_parameters": idle,
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
