"""What a trial says of each epoch, and what it keeps: the figures and the best weights.

It measures nothing and trains nothing; both are handed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kit.files import write_atomic

if TYPE_CHECKING:
    import torch

BEST = "best.pt"
CURVE = "curve.json"
#: In a report: the epoch has been judged before, by an earlier driver or in an earlier process of the trial.
RETOLD = "retold"


@dataclass
class Teller:
    """Hears each epoch of a trial: measures, keeps the best weights, tells Ray Tune.

    Epochs that an earlier process of this trial has told are told again first, and marked, so that a
    scheduler that starts anew sees the whole curve and judges none of it a second time.

    Attributes:
        home: The trial's folder.
        number: Of the trial.
        mode: ``min`` or ``max``.
        measure: Gives the metric of the network after an epoch, from the epoch's figures.
        network: Gives what is being trained; None where workers train it.
        keep: Brings the folder to where the study lies.
        report: Tells Ray Tune.
        share_epochs: As in ``Work``.
        curve: What was told of each epoch, best value so far included.
        told: The last epoch that Ray Tune knows of.
        judged: The last epoch that a scheduler has judged.
        fresh: Whether this process has told nothing yet.
    """

    home: Path
    number: int
    mode: Literal["min", "max"]
    measure: Callable[[torch.nn.Module | None, Mapping[str, Any]], float]
    network: Callable[[], torch.nn.Module | None]
    keep: Callable[[], None]
    report: Callable[..., None]
    share_epochs: int = 0
    curve: list[dict[str, Any]] = field(init=False)
    told: int = field(init=False)
    judged: int = field(init=False)
    fresh: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        path = self.home / CURVE
        self.curve = json.loads(path.read_text()) if path.is_file() else []
        self.judged = self.done
        self.told = self.judged if self.share_epochs else 0

    @property
    def done(self) -> int:
        """How many epochs have been told, by whatever process of the trial."""
        return int(self.curve[-1]["epoch"]) if self.curve else 0

    @property
    def _sign(self) -> float:
        return 1.0 if self.mode == "min" else -1.0

    def begin(self) -> None:
        """Tell what earlier processes have told, before anything is trained."""
        for entry in self.curve:
            if entry["epoch"] > self.told:
                self._tell(entry)

    def hear(self, figures: Mapping[str, Any]) -> None:
        """Take the figures of an epoch.

        One that is done again, because the training's checkpoint was older, changes nothing: the best weights
        may be of a later one already. What workers do again counts, because their checkpoint holds the best.
        """
        epoch, network = int(figures["epoch"]), self.network()
        if network is not None and epoch <= self.done:
            return
        self.curve = [each for each in self.curve if each["epoch"] < epoch]
        value = self.measure(network, figures)
        last = self.curve[-1] if self.curve else None
        entry = {
            "epoch": epoch,
            "train_loss": figures["train_loss"],
            "validation_loss": figures["validation_loss"],
            "value": value,
            "best_epoch": epoch,
        }
        if last is not None and self._sign * last["value"] <= self._sign * value:
            entry |= {"value": last["value"], "best_epoch": last["best_epoch"]}
        self.curve.append(entry)
        if entry["best_epoch"] == epoch:
            self.keep_weights(network)
        write_quickly(self.home / CURVE, json.dumps(self.curve).encode())
        if entry["best_epoch"] == epoch:
            self.keep()  # before it is told: a trial may be stopped while it tells, and it may be the best
        self._tell(entry)

    def finish(self, *, stopped: bool = False) -> None:
        """Tell what has not been told, and that the training has ended, by itself or because it was to."""
        self.keep()
        whole = {"curve": self.curve} if self.share_epochs else {}
        self.report({**(self.curve[-1] if self.curve else {}), **whole, "ended": True, "stopped": stopped})

    def _tell(self, entry: Mapping[str, Any]) -> None:
        self.told = int(entry["epoch"])
        again = {RETOLD: True} if self.told <= self.judged else {}
        self.judged = max(self.judged, self.told)
        if self.share_epochs and (self.fresh or self.told % self.share_epochs == 0):
            from ray import tune

            self.fresh = False
            # The whole curve: it may be another trial's so far, or one that an earlier driver has heard.
            told = {**entry, "curve": self.curve}
            self.report(told, checkpoint=tune.Checkpoint.from_directory(str(self.home)))
        else:
            self.report({**entry, **again})

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
