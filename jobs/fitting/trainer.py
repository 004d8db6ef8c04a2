"""The training loop over arrays: what one worker does, whoever runs it.

Gets a network and arrays, gives back weights and figures through what its caller hands it. It
knows nothing of Ray, tables, registries or exports. Torch is imported when a trainer is made.

Where a training stands is the epoch, the rows it has passed and the losses so far; the order of
rows, the step size and every random number follow from that. So a training ends with the same
weights whether it was interrupted or not.
"""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.fitting.loop import BEST, PROGRESS, WEIGHTS, Epoch, FitConfig, Progress
from jobs.fitting.losses import Loss
from jobs.fitting.memory import memory_watched
from jobs.fitting.pace import Pace
from jobs.fitting.schedules import plateau_factor, step_factor
from kit.errors import InputError

if TYPE_CHECKING:
    import torch

_64_BITS = (1 << 64) - 1


class DivergedError(InputError):
    """A loss is not finite: going on from a checkpoint would come to the same end."""


class Trainer:
    """One worker's network, optimizer and place in the training."""

    def __init__(
        self,
        network: torch.nn.Module,
        fit: FitConfig,
        arrays: Mapping[str, np.ndarray],
        *,
        device: Any,
        rank: int,
        world: int,
    ) -> None:
        """Prepare.

        Args:
            network: On its device; wrapped for data-parallel training where ``world`` is above 1.
            fit: What the loop needs to know.
            arrays: As for ``fit_here``; only read.
            device: A ``torch.device``.
            rank: Of this worker, from 0.
            world: How many workers there are.

        Raises:
            InputError: There are more workers than rows, or a teacher is weighed and has no answers.
        """
        import torch

        self.network, self.fit, self.device = network, fit, device
        self.rank, self.world = rank, world
        self.data = {name: _tensor(array).to(device) for name, array in arrays.items()}
        self._check_arrays()
        self.loss = Loss(
            self.data["train_y"],
            n_classes=fit.n_classes,
            class_weights=fit.class_weights,
            teacher_weight=fit.teacher_weight,
            temperature=fit.temperature,
        )
        self.optimizer = _optimizer(network, fit)
        self.scaler = torch.amp.GradScaler(device.type) if fit.precision == "fp16" else None
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self._total = torch.zeros((), dtype=torch.float64, device=device)  # of this worker, in this epoch

    def _check_arrays(self) -> None:
        n_rows = len(self.data["train_x"])
        if n_rows < self.world:
            raise InputError(
                f"{self.world} workers share {n_rows} training rows",
                hint="set workers to 1, or bring more rows",
            )
        if self.fit.teacher_weight and "train_teacher" not in self.data:
            raise InputError(
                f"teacher_weight is {self.fit.teacher_weight:g}, but there are no answers of a teacher",
                hint="set teacher_weight to 0",
            )

    @property
    def plain(self) -> torch.nn.Module:
        """The network without the wrapper data-parallel training puts around it."""
        from torch.nn.parallel import DistributedDataParallel

        network = self.network
        inner: torch.nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
        return inner

    def resume(self, folder: Path) -> None:
        """Go on where the checkpoint in a folder stood; see ``save``."""
        import torch

        state = torch.load(folder / WEIGHTS, weights_only=True, map_location=self.device)
        self.best = torch.load(folder / BEST, weights_only=True, map_location="cpu")
        self.plain.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # a population goes on with other values
            group |= {name: getattr(self.fit, name) for name in ("weight_decay", "momentum") if name in group}
            group["lr"] = self.fit.learning_rate
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = progress = Progress.of(json.loads((folder / PROGRESS).read_text()))
        totals = progress.totals
        self._total.fill_(totals[self.rank] if len(totals) == self.world else sum(totals) / self.world)

    def save(self, folder: Path) -> None:
        """Write what ``resume`` reads: weights, the best weights, the optimizer, the figures."""
        import torch

        state = {"network": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        for name, content in ((WEIGHTS, state), (BEST, self.best)):
            packed = BytesIO()  # written by Python, which tells a full disk from other failures
            torch.save(content, packed)
            (folder / name).write_bytes(packed.getvalue())
        (folder / PROGRESS).write_text(json.dumps(asdict(self.progress) | self.used()))

    def used(self) -> dict[str, Any]:
        """Say what can differ from what was asked for; see ``Fitted``."""
        return {
            "batch_size": self.fit.batch_size,
            "accumulation_steps": self.fit.accumulation_steps,
            "workers": self.world,
            "device": self.device.type,
        }

    def finished(self) -> bool:
        """Say whether the last epoch is done or patience has run out."""
        done = len(self.progress.epochs)
        return done >= self.fit.epochs or done - self.progress.best_epoch >= self.fit.patience_epochs

    def run(
        self,
        *,
        hear: Callable[[dict[str, Any]], object],
        keep: Callable[[], None],
        interval_s: float,
        noticed: Callable[[], bool] | None = None,
        told: int | None = None,
    ) -> None:
        """Train until finished, or until who hears of an epoch returns False.

        Args:
            hear: Told of each epoch by the first worker.
            keep: Called on every worker at the same steps: about every ``interval_s``, after a notice, and
                at the end.
            interval_s: Time between checkpoints; 0 keeps one after every epoch, before it is told.
            noticed: Says whether this machine is about to be taken away; see ``Pace``.
            told: How many epochs were told before this training was resumed; where the last one was not, it
                is told first. None where all were.

        Raises:
            DivergedError: A loss is not finite.
            OutOfMemoryError: Memory ran out.
        """
        pace = Pace(interval_s, keep=partial(self._keep, keep), agree=self._agreed, noticed=noticed)
        done = self.progress.epochs
        stopped = bool(done) and told is not None and told < len(done) and self._stopped(hear, done[-1])
        while not (stopped or self.finished()):
            with memory_watched(self.fit.out_of_memory):
                figures = self._epoch(pace)
            self._note(figures)
            if not interval_s:  # before it is told: whoever hears of the epoch may hand the checkpoint on
                self._keep(keep)
            stopped = self._stopped(hear, figures)
            if interval_s:
                pace.epoch(last=stopped or self.finished())

    def _stopped(self, hear: Callable[[dict[str, Any]], object], figures: Epoch) -> bool:
        """Tell of an epoch; say whether the workers are to stop after it."""
        (n_stopped,) = self._agreed(float(self.rank == 0 and hear(asdict(figures)) is False))
        return n_stopped > 0

    def _keep(self, keep: Callable[[], None]) -> None:
        own = [0.0] * self.world
        own[self.rank] = float(self._total)
        self.progress.totals = self._agreed(*own)
        keep()

    def _epoch(self, pace: Pace) -> Epoch:
        """Do one epoch, or what is left of it."""
        epoch = len(self.progress.epochs) + 1
        before_s, began_s = self.progress.seconds, time.monotonic()
        order = np.random.default_rng([self.fit.seed, epoch]).permutation(len(self.data["train_x"]))
        rows = _tensor(order).to(self.device)
        self.network.train()
        while share := self._share(len(rows)):
            done = self.progress.rows_done
            self._set_learning_rate(done / len(rows), share * self.world / len(rows))
            self._seed(epoch)
            self._step(rows[done + self.rank * share : done + (self.rank + 1) * share])
            self.progress.rows_done = done + share * self.world
            self.progress.seconds = before_s + time.monotonic() - began_s
            pace.step()
        train, validation = self._agreed(float(self._total), self._validate())
        figures = Epoch(
            epoch,
            train / self.progress.rows_done,
            validation / len(self.data["validation_x"]),
            before_s + time.monotonic() - began_s,
        )
        if not (math.isfinite(figures.train_loss) and math.isfinite(figures.validation_loss)):
            raise DivergedError(
                f"training diverged: the loss of epoch {epoch} is not finite",
                hint=f"lower learning_rate (now {self.fit.learning_rate:g}), or scale the inputs",
            )
        return figures

    def _note(self, figures: Epoch) -> None:
        progress = self.progress
        better = figures.validation_loss < progress.best_loss
        progress.epochs.append(figures)
        progress.rows_done, progress.seconds = 0, 0.0
        self._total.zero_()
        if better:
            progress.best_epoch = figures.epoch
        if better and self.rank == 0:  # whose files are kept
            self.best = {
                name: value.detach().cpu().clone() for name, value in self.plain.state_dict().items()
            }

    def _share(self, n_rows: int) -> int:
        """Count the rows of each worker's next step; 0 when the epoch is over.

        All workers take as many, so up to ``world - 1`` rows are left out, other ones in each epoch; so
        is a single last row, from which batch normalisation cannot learn.
        """
        share = min(self.fit.rows_per_step, (n_rows - self.progress.rows_done) // self.world)
        alone = share == 1 < self.fit.rows_per_step and self.progress.rows_done
        return 0 if alone else share

    def _step(self, rows: torch.Tensor) -> None:
        """Move the weights once, by the mean loss of some rows, taken in batches that fit into memory."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        batches = self._batches(rows)
        for batch in batches[:-1]:
            with self._apart():
                self._backward(batch, len(rows))
        self._backward(batches[-1], len(rows))
        if self.scaler is not None and self.fit.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
        if self.fit.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.fit.clip_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def _apart(self) -> AbstractContextManager[Any]:
        """Keep gradients to this worker; the last batch of a step sends the sum of all."""
        from torch.nn.parallel import DistributedDataParallel

        network = self.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def _batches(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cut the rows of a step into equal batches; none has a single row where that can be helped."""
        size = self.fit.batch_size
        if len(rows) <= size:
            return (rows,)
        count = math.ceil(len(rows) / size)
        return rows.tensor_split(min(count, len(rows) // 2) if size > 1 else count)

    def _backward(self, rows: torch.Tensor, n_rows: int) -> None:
        x, y = self.data["train_x"].index_select(0, rows), self.data["train_y"].index_select(0, rows)
        teacher = self.data["train_teacher"].index_select(0, rows) if self.fit.teacher_weight else None
        with self._arithmetic():
            answer = self.network(x)
        loss = self.loss(answer.float(), y, teacher)
        self._total.add_(loss.detach(), alpha=len(rows))
        if len(rows) != n_rows:
            loss = loss * (len(rows) / n_rows)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def _arithmetic(self) -> AbstractContextManager[Any]:
        import torch

        if self.fit.precision == "float32":
            return nullcontext()
        half = torch.bfloat16 if self.fit.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=half)

    def _set_learning_rate(self, done: float, step: float) -> None:
        """Set the step size for the next step, in float32; ``done`` and ``step`` are parts of the epoch."""
        fit, progress = self.fit, self.progress
        if fit.schedule == "constant" and not fit.warmup_epochs:
            return
        factor = step_factor(
            fit.schedule,
            done=len(progress.epochs) + done,
            step=step,
            epochs=fit.epochs,
            warmup_epochs=fit.warmup_epochs,
        )
        if fit.schedule == "plateau":
            losses = [each.validation_loss for each in progress.epochs]
            factor *= plateau_factor(losses, patience_epochs=fit.patience_epochs // 3)
        for group in self.optimizer.param_groups:
            group["lr"] = fit.learning_rate * factor

    def _seed(self, epoch: int) -> None:
        """Set the generators of dropout and its like by the place in the training, the same after a kill."""
        import torch

        seed = _mixed(self.fit.seed, epoch, self.progress.rows_done, self.rank)
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # a forward may draw from either; both together take 6 us
        random.seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _validate(self) -> float:
        """Sum the loss over this worker's share of the validation rows, in the arithmetic of the export."""
        import torch

        plain, n_rows = self.plain, len(self.data["validation_x"])
        if self.world > 1:
            for buffer in plain.buffers():  # running averages; those of the first worker count
                torch.distributed.broadcast(buffer, 0)
        first, last = (n_rows * each // self.world for each in (self.rank, self.rank + 1))
        plain.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        size = min(4 * self.fit.batch_size, 4096)  # needs no more memory than a training step
        with torch.no_grad():
            for start in range(first, last, size):
                rows = slice(start, min(start + size, last))
                answer = plain(self.data["validation_x"][rows].clone())  # the arrays are shared and read-only
                loss = self.loss(answer, self.data["validation_y"][rows])
                total.add_(loss, alpha=rows.stop - rows.start)
        return float(total)

    def _agreed(self, *figures: float) -> list[float]:
        """Sum figures over the workers, so that every one decides alike."""
        if self.world == 1:
            return list(figures)
        import torch

        summed = torch.tensor(figures, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return [float(figure) for figure in summed]


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Look at an array as a tensor, without a copy: Ray's arrays are shared by the workers, and read-only."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _optimizer(network: torch.nn.Module, fit: FitConfig) -> torch.optim.Optimizer:
    import torch

    shared: dict[str, Any] = {"lr": fit.learning_rate, "weight_decay": fit.weight_decay}
    # One loop over all weights in C++: on the digits network a step takes 0.4 of the time.
    fused = all(each.is_floating_point() for each in network.parameters())
    if fit.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=fit.momentum, fused=fused, **shared)
    return torch.optim.AdamW(network.parameters(), fused=fused, **shared)


def _mixed(*numbers: int) -> int:
    """Mix numbers into 32 well-spread bits; torch's generator looks at no more of its seed.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _64_BITS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _64_BITS
        state ^= state >> 31
    return state >> 32
