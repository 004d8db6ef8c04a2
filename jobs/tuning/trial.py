"""What one trial does, in the process Ray Tune gives it: train, tell every epoch, keep the best weights.

Whatever the project's Python raises is told as the trial's failure, never raised, because Ray would start the
trial again. It decides nothing about other trials.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jobs.fitting.local import fit_here
from jobs.fitting.loop import Epoch, FitConfig, Fitted
from jobs.fitting.network import build_network
from jobs.preparation.prepared import Prepared
from jobs.tuning.ledger import Ledger
from jobs.tuning.space import Space
from kit.errors import KitError, UnavailableError
from kit.files import write_atomic
from kit.metrics import score
from kit.project import Project
from kit.settings import TrainSettings

if TYPE_CHECKING:
    import torch

BEST = "best.pt"
CURVE = "curve.json"
_LOOP = "loop"
_ROWS = 4096
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate")


@dataclass(frozen=True)
class Work:
    """What every trial of a study needs to know.

    Attributes:
        folder: The project's; where it does not exist, the working folder is used.
        train: Settings of train that the trial's values are put into.
        space: Says which value goes where.
        n_features: Offered to the factory.
        n_classes: Likewise; 0 for regression.
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
    if isinstance(error, MemoryError) or any(word in text.lower() for word in _MEMORY_WORDS):
        return "it ran out of memory" + (f": {text[:200]}" if text else "")
    return text[:300] if isinstance(error, KitError) else f"{type(error).__name__}: {text[:300]}".rstrip(": ")


def read_best(
    project: Project, folder: Path, *, n_features: int, n_classes: int, parameters: Mapping[str, Any]
) -> Fitted:
    """Read the best weights of a trial.

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
    return Fitted(network, epochs, curve[-1]["best_epoch"] if curve else 0)


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
        networks.append(network)
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
    fit = FitConfig.of(settings, project=project, n_classes=work.n_classes)
    if settings.workers > 1:
        _train_on_workers(project, settings, arrays, fit=fit, build=build, teller=teller, work=work)
        return
    fit_here(
        project,
        fit,
        arrays,
        build=build,
        hear=teller.hear,
        folder=home / _LOOP,
        interval_s=0.0 if work.share_epochs else settings.checkpoint_interval_s,
    )
    teller.finish()


def _train_on_workers(
    project: Project,
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
        stopped = bool(ray.get(work.board.is_stopped.remote(teller.number)))
        return not stopped

    fitted = fit_on_workers(
        project,
        settings,
        arrays,
        fit=fit,
        build=build,
        storage=teller.home,
        identity="workers",
        hear=hear,
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
    if given is None:
        return
    with given.as_directory() as other:
        for path in home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(other, home, dirs_exist_ok=True)


class Teller:
    """Hears each epoch of a trial: measures, keeps the best weights, tells Ray Tune.

    Epochs that an earlier process of this trial has told are told again first, so that a scheduler
    that starts anew sees the whole curve.

    Args:
        home: The trial's folder.
        number: Of the trial.
        mode: ``min`` or ``max``.
        measure: Gives the metric of the network after an epoch, from the epoch's figures.
        network: Gives what is being trained; None where workers train it.
        keep: Brings the folder to where the study lies.
        report: Tells Ray Tune.
        share_epochs: As in ``Work``.
    """

    def __init__(
        self,
        home: Path,
        *,
        number: int,
        mode: Literal["min", "max"],
        measure: Callable[[torch.nn.Module | None, Mapping[str, Any]], float],
        network: Callable[[], torch.nn.Module | None],
        keep: Callable[[], None],
        report: Callable[..., None],
        share_epochs: int = 0,
    ) -> None:
        self.number = number
        self.home, self.sign = home, 1.0 if mode == "min" else -1.0
        self.measure, self.network, self.keep, self.report = measure, network, keep, report
        self.share_epochs = share_epochs
        curve = home / CURVE
        self.curve: list[dict[str, Any]] = json.loads(curve.read_text()) if curve.is_file() else []
        self.told = 0 if not share_epochs else len(self.curve)
        self.fresh = True

    def hear(self, figures: Mapping[str, Any]) -> None:
        """Take the figures of an epoch."""
        epoch = int(figures["epoch"])
        self.curve = [each for each in self.curve if each["epoch"] < epoch]
        self._tell_again()
        value = self.measure(self.network(), figures)
        last = self.curve[-1] if self.curve else None
        entry = {
            "epoch": epoch,
            "train_loss": figures["train_loss"],
            "validation_loss": figures["validation_loss"],
            "value": value,
            "best_epoch": epoch,
        }
        if last is not None and self.sign * last["value"] <= self.sign * value:
            entry |= {"value": last["value"], "best_epoch": last["best_epoch"]}
        self.curve.append(entry)
        if entry["best_epoch"] == epoch:
            self.keep_weights(self.network())
        write_quickly(self.home / CURVE, json.dumps(self.curve).encode())
        if entry["best_epoch"] == epoch:
            self.keep()  # before it is told: a trial may be stopped while it tells, and it may be the best
        self._tell(entry)

    def finish(self, *, stopped: bool = False) -> None:
        """Tell what has not been told, and that the training has ended, by itself or because it was to."""
        self._tell_again()
        self.keep()
        self.report({**(self.curve[-1] if self.curve else {}), "ended": True, "stopped": stopped})

    def _tell_again(self) -> None:
        for entry in self.curve:
            if entry["epoch"] > self.told:
                self._tell(entry)

    def _tell(self, entry: Mapping[str, Any]) -> None:
        self.told = int(entry["epoch"])
        if self.share_epochs and (self.fresh or self.told % self.share_epochs == 0):
            from ray import tune

            self.fresh = False
            self.report(dict(entry), checkpoint=tune.Checkpoint.from_directory(str(self.home)))
        else:
            self.report(dict(entry))

    def keep_weights(self, network: torch.nn.Module | None) -> None:
        """Write the weights of a network as the trial's best; nothing where workers hold it."""
        import torch

        if network is None:
            return
        plain = getattr(network, "module", network)
        packed = BytesIO()
        torch.save({name: each.detach().cpu() for name, each in plain.state_dict().items()}, packed)
        write_quickly(self.home / BEST, packed.getvalue())


def write_quickly(path: Path, content: bytes) -> None:
    """Replace a file in one step, without waiting for the disk: a power cut may undo it, a kill may not."""
    partial_file = path.with_name(f".{path.name}.part")
    try:
        partial_file.write_bytes(content)
        os.replace(partial_file, path)
    except OSError:
        write_atomic(path, content)  # says in a sentence what is wrong with the disk


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
            "probabilities": torch.softmax(answer.double(), 1).numpy(),
        }
    else:
        outputs = {"value": answer.reshape(len(rows)).numpy()}
    return score(work.metric, arrays["validation_y"], outputs)
