"""Running the training loop on Ray Train: workers, checkpoints, what a worker refuses.

Knows nothing of tables, registries or exports.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.cluster import check_room, connected, is_disk_full, translated
from jobs.fitting.listening import disk_full, listening, refused
from jobs.fitting.loop import FitConfig, Fitted, Trainer, read_fitted
from kit.errors import InputError, KitError
from kit.project import Project
from kit.settings import TrainSettings

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("kit")
_MAX_FAILURES = 3

#: Makes the network, in every worker and once more where the weights are read back.
Build = Callable[[Project], "torch.nn.Module"]


def fit_on_workers(
    project: Project,
    settings: TrainSettings,
    arrays: Mapping[str, np.ndarray],
    *,
    fit: FitConfig,
    build: Build,
    storage: Path,
    identity: str,
) -> Fitted:
    """Train on Ray Train; a run of the same identity that was interrupted goes on.

    Args:
        project: Travels to the workers.
        settings: Workers, threads, where to run, whether to resume.
        arrays: ``train_x``, ``train_y``, ``validation_x``, ``validation_y``, rows first.
        fit: What the loop needs to know.
        build: Makes the network from the project.
        storage: Folder of checkpoints, shared by every node.
        identity: Names the run in it.

    Raises:
        InputError: The project or a setting breaks a rule; training diverged.
        UnavailableError: The cluster or the disk fails.
    """
    if not settings.resume:
        shutil.rmtree(storage / identity, ignore_errors=True)
    elif (storage / identity).exists():
        _log.info("continuing the interrupted run %s", identity)
    with connected(settings.address, project=project):
        try:
            checkpoint = _run_trainer(
                {"fit": fit, "build": build}, arrays, settings, storage=storage, identity=identity
            )
        except InputError:  # nothing to continue: something has to be changed first
            shutil.rmtree(storage / identity, ignore_errors=True)
            raise
        with checkpoint.as_directory() as folder:
            return read_fitted(build(project), Path(folder))


def _run_trainer(
    config: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    settings: TrainSettings,
    *,
    storage: Path,
    identity: str,
) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Interruptible(TorchTrainer):
        """Leaves Ctrl-C to Python: Ray's own handler would end the process as if it had succeeded."""

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    check_room(settings.workers, threads=settings.threads, address=settings.address)
    with listening() as listener, refused(listener), translated():
        trainer = Interruptible(
            _work,
            train_loop_config={**config, "arrays": ray.put(dict(arrays)), "listener": listener},
            scaling_config=ScalingConfig(
                num_workers=settings.workers, resources_per_worker={"CPU": settings.threads}
            ),
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


def _work(config: dict[str, Any]) -> None:
    """Train on this worker; Ray Train calls it on each.

    A refusal is told to the listener first: Ray starts the loop again after any failure, and
    what a user has to correct is not worth a second try.

    Args:
        config: ``fit`` (a FitConfig), ``build``, ``arrays`` (a reference to train and validation
            arrays) and ``listener`` (an actor that hears of each epoch and of a refusal).
    """
    import ray

    listener = config["listener"]
    if ray.get(listener.refusal.remote()) is not None:
        return
    try:
        _train(config["fit"], config["build"], ray.get(config["arrays"]), listener=listener)
    except KitError as error:
        ray.get(listener.refuse.remote(error))
        raise
    except Exception as error:  # torch, pyarrow and Ray each wrap the system's error in their own
        if not is_disk_full(error):
            raise
        refusal = disk_full()
        ray.get(listener.refuse.remote(refusal))
        raise refusal from error


def _train(fit: FitConfig, build: Build, arrays: dict[str, np.ndarray], *, listener: Any) -> None:
    import ray
    import torch
    from ray import train
    from ray.train.torch import get_device, prepare_model

    torch.set_num_threads(fit.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(fit.seed)
    folder = Path(fit.folder)
    project = Project.open(folder if folder.is_dir() else Path.cwd())
    context = train.get_context()
    trainer = Trainer(
        prepare_model(build(project)),
        fit,
        arrays,
        device=get_device(),
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    checkpoint = train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            trainer.resume(Path(kept))
    told: list[Any] = []

    def tell(figures: dict[str, Any]) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # what is shown decides nothing
            ray.get(told)  # an asynchronous actor may take two calls in either order
        told[:] = [listener.hear.remote(figures)]

    trainer.run(hear=tell, keep=lambda: _report(trainer), interval_s=fit.checkpoint_interval_s)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(told)


def _report(trainer: Trainer) -> None:
    """Report a checkpoint to Ray Train, which waits for every worker; the first one brings the files."""
    from ray import train

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if trainer.rank == 0:
            trainer.save(Path(folder))
            checkpoint = train.Checkpoint.from_directory(folder)
        train.report(asdict(trainer.progress.epochs[-1]), checkpoint=checkpoint)
