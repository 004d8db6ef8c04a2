"""What one trial does, in the process Ray Tune gives it: train, tell every epoch, keep the best weights.

Whatever the project's Python raises is told as the trial's failure, never raised, because Ray would start the
trial again. It decides nothing about other trials.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jobs.fitting.checkpoint import newest
from jobs.fitting.local import fit_here
from jobs.fitting.loop import PROGRESS, Epoch, FitConfig, Fitted, Progress, read_used
from jobs.fitting.memory import OutOfMemoryError, is_out_of_memory
from jobs.fitting.network import build_network
from jobs.preparation.prepared import Prepared
from jobs.tuning.ledger import Ledger
from jobs.tuning.space import Space
from jobs.tuning.telling import BEST, CURVE, Teller, write_quickly
from kit.errors import KitError, UnavailableError
from kit.metrics import score
from kit.project import Project
from kit.settings import TrainSettings

if TYPE_CHECKING:
    import torch

_LOOP, _WORKERS = "loop", "workers"
_ROWS = 4096


@dataclass(frozen=True)
class Work:
    """What every trial of a study needs to know.

    Attributes:
        folder: The project's; where it does not exist, the working folder is used.
        train: Settings of train that the trial's values are put into.
        space: Says which value goes where.
        n_features: Offered to the factory.
        n_classes: Likewise; 0 for regression.
        classes: Their names, in the order of the labels.
        metric: ``validation_loss``, or a metric measured on the validation rows.
        mode: ``min`` or ``max``, of the metric.
        storage: Where the ledger lies.
        study: Identity of the study.
        share_epochs: Epochs between the checkpoints that a population shares; 0 shares none.
        environment: Where S3 is, for nodes that were not told; no credentials.
        board: An actor that says which trials of several workers are to stop; None for one worker.
    """

    folder: str
    train: TrainSettings
    space: Space
    n_features: int
    n_classes: int
    classes: tuple[int | str, ...]
    metric: str
    mode: Literal["min", "max"]
    storage: str
    study: str
    share_epochs: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    board: Any = None


def run_trial(config: dict[str, Any], *, work: Work, rows: Mapping[str, np.ndarray] | Prepared) -> None:
    """Run one trial inside Ray Tune; see the module.

    Args:
        config: ``number`` and ``values`` of the trial.
        work: The rest of what it needs to know.
        rows: What is learned from: arrays for a network, prepared rows for an estimator.
    """
    from ray import tune

    for name, value in work.environment.items():
        os.environ.setdefault(name, value)
    scratch = Path(tempfile.mkdtemp(prefix="trial-"))
    try:
        if isinstance(rows, Prepared):
            tune.report(_fit_once(config, work, rows))
        else:
            _train(config, work, rows, scratch=scratch, report=tune.report)
    except UnavailableError as error:  # nobody's trial: the study has to stop and be continued
        tune.report({"unavailable": error.message})
    except Exception as error:  # the user's code may raise anything at all
        tune.report({"failed": reason_of(error)})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def reason_of(error: BaseException) -> str:
    """Say in one sentence why a trial failed."""
    text = error.message if isinstance(error, KitError) else " ".join(str(error).split())
    if is_out_of_memory(error) and not isinstance(error, OutOfMemoryError):  # which says so itself
        return "it ran out of memory" + (f": {text[:200]}" if text else "")
    return text[:300] if isinstance(error, KitError) else f"{type(error).__name__}: {text[:300]}".rstrip(": ")


def has_best(folder: Path) -> bool:
    """Say whether a trial's checkpoint is still there."""
    return (folder / BEST).is_file()


def take_from_workers(folder: Path) -> list[dict[str, Any]]:
    """Make the best weights its workers have kept a trial's own, where it could not end by itself.

    Args:
        folder: The trial's checkpoint; its best weights and its curve are replaced.

    Returns:
        The curve up to where those weights stood, as ``Teller`` writes it; empty where none are kept.
    """
    kept = newest(folder / _WORKERS)
    if kept is None:
        return []
    progress = Progress.of(json.loads((kept / PROGRESS).read_text()))
    curve: list[dict[str, Any]] = []
    for each in progress.epochs:
        best = curve[-1] if curve else None
        value, epoch = each.validation_loss, each.epoch
        if best is not None and best["value"] <= value:
            value, epoch = best["value"], best["best_epoch"]
        told = {"epoch": each.epoch, "train_loss": each.train_loss, "validation_loss": each.validation_loss}
        curve.append({**told, "value": value, "best_epoch": epoch})
    if curve:
        write_quickly(folder / BEST, (kept / BEST).read_bytes())
        write_quickly(folder / CURVE, json.dumps(curve).encode())
    return curve


def read_best(
    project: Project, folder: Path, *, n_features: int, n_classes: int, parameters: Mapping[str, Any]
) -> Fitted:
    """Read the best weights of a trial, which are there; see ``has_best``.

    Args:
        project: Builds the network.
        folder: The trial's checkpoint.
        n_features: Offered to the factory.
        n_classes: Likewise.
        parameters: Arguments of the factory that the trial had.
    """
    import torch

    network = build_network(project, n_features=n_features, n_classes=n_classes, parameters=parameters)
    network.load_state_dict(torch.load(folder / BEST, weights_only=True))
    network.eval()
    curve = json.loads((folder / CURVE).read_text())
    epochs = tuple(Epoch(each["epoch"], each["train_loss"], each["validation_loss"]) for each in curve)
    kept = newest(folder / _WORKERS) or newest(folder / _LOOP)
    used = read_used(kept) if kept is not None else {}  # ended before the first checkpoint
    return Fitted(network, epochs, curve[-1]["best_epoch"] if curve else 0, used)


def _train(
    config: Mapping[str, Any],
    work: Work,
    arrays: Mapping[str, np.ndarray],
    *,
    scratch: Path,
    report: Callable[..., None],
) -> None:
    number, values = int(config["number"]), dict(config["values"])
    ledger = Ledger(work.storage, study=work.study)
    home = ledger.checkpoint_folder(number, scratch=scratch)
    if work.share_epochs:
        _take_over(home)
    project = _project(work)
    settings = work.space.train_settings(work.train, values)
    networks: list[torch.nn.Module] = []

    def build(project: Project) -> torch.nn.Module:
        parameters, _ = work.space.split(values)
        network = build_network(
            project, n_features=work.n_features, n_classes=work.n_classes, parameters=parameters
        )
        networks[:] = [network]  # a batch that was halved builds anew
        return network

    teller = Teller(
        home,
        number=number,
        mode=work.mode,
        measure=partial(_measure, work, arrays),
        network=lambda: networks[0] if settings.workers == 1 else None,
        keep=lambda: ledger.keep_checkpoint(number, home),
        report=report,
        share_epochs=work.share_epochs,
    )
    fit = FitConfig.of(settings, project=project, n_classes=work.n_classes, classes=work.classes)
    teller.begin()
    if settings.workers > 1:
        _train_on_workers(settings, arrays, fit=fit, build=build, teller=teller, work=work)
        return
    fit_here(
        project,
        fit,
        arrays,
        build=build,
        hear=teller.hear,
        folder=home / _LOOP,
        interval_s=0.0 if work.share_epochs else settings.checkpoint_interval_s,
        told=teller.done,
    )
    teller.finish()


def _train_on_workers(
    settings: TrainSettings,
    arrays: Mapping[str, np.ndarray],
    *,
    fit: FitConfig,
    build: Callable[[Project], torch.nn.Module],
    teller: Teller,
    work: Work,
) -> None:
    """Train with workers of this trial's own.

    Ray Tune must not stop such a trial from outside: the room its workers hold would stay taken and the
    next trial would wait for ever. The trial asks after each epoch whether it is to stop, and ends by itself.
    """
    import ray

    from jobs.fitting.workers import fit_on_workers

    stopped = False

    def hear(figures: dict[str, Any]) -> bool:
        nonlocal stopped
        teller.hear(figures)
        with contextlib.suppress(ray.exceptions.RayError):  # a board that is gone stops nobody
            stopped = bool(ray.get(work.board.is_stopped.remote(teller.number)))
        return not stopped

    fitted = fit_on_workers(
        _project(work),
        settings,
        arrays,
        fit=fit,
        build=build,
        storage=teller.home,
        identity=_WORKERS,
        hear=hear,
        may_stop=True,
    )
    teller.keep_weights(fitted.model)
    teller.finish(stopped=stopped)


def _fit_once(config: Mapping[str, Any], work: Work, prepared: Prepared) -> dict[str, Any]:
    """Fit an estimator and measure it on the validation rows; it has one value and no epochs."""
    from jobs.fitting.estimators import fit_estimator, predict_rows

    project = _project(work)
    values = dict(config["values"])
    settings = work.space.train_settings(work.train, values)
    parameters, _ = work.space.split(values)
    fitted = fit_estimator(
        project, prepared, seed=settings.seed, threads=settings.threads, parameters=parameters
    )
    answer = predict_rows(fitted.model, prepared.validation, task=project.settings.project.task)
    outputs = {"label": answer.argmax(1), "probabilities": answer} if work.n_classes else {"value": answer}
    metric = work.metric
    if metric == "validation_loss":
        metric = "log_loss" if work.n_classes else "mse"
    value = score(metric, prepared.split.validation.labels, outputs)
    return {"epoch": 0, "best_epoch": 0, "value": value, "ended": True}


def _project(work: Work) -> Project:
    folder = Path(work.folder)
    return Project.open(folder if folder.is_dir() else Path.cwd())


def _take_over(home: Path) -> None:
    """Put the checkpoint that the population gave this trial in the place of its own."""
    from ray import tune

    given = tune.get_checkpoint()
    partial_copy, whole_copy = (home.with_name(f"{home.name}.{end}") for end in ("part", "taken"))
    if given is not None:
        for path in (partial_copy, whole_copy):
            shutil.rmtree(path, ignore_errors=True)
        with given.as_directory() as other:
            shutil.copytree(other, partial_copy)
        os.replace(partial_copy, whole_copy)
    if whole_copy.is_dir():  # or a process that was killed has left it
        shutil.rmtree(home)
        os.replace(whole_copy, home)


def _measure(
    work: Work, arrays: Mapping[str, np.ndarray], network: torch.nn.Module | None, figures: Mapping[str, Any]
) -> float:
    """Measure the network on the validation rows."""
    if network is None or work.metric == "validation_loss":
        return float(figures["validation_loss"])
    import torch

    training = network.training
    network.eval()
    rows = arrays["validation_x"]
    device = next(network.parameters()).device
    with torch.no_grad():
        answers = [
            network(torch.from_numpy(np.array(rows[start : start + _ROWS])).to(device)).cpu()
            for start in range(0, len(rows), _ROWS)
        ]
    network.train(training)
    answer = torch.cat(answers)
    if work.n_classes:
        outputs = {
            "label": answer.argmax(1).numpy(),
            "probabilities": torch.softmax(answer.double(), 1).float().numpy(),
        }
    else:
        outputs = {"value": answer.reshape(len(rows)).numpy()}
    return score(work.metric, arrays["validation_y"], outputs)
