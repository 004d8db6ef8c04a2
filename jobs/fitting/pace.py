"""When a training keeps a checkpoint: on time, on a notice, and at the end, on every worker alike.

Counts steps and seconds; knows nothing of networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

#: Looking costs the workers a word with each other, so they look about ten times per interval.
_LOOKS_PER_INTERVAL, _LONGEST_LOOK_S = 10, 1.0


class Pace:
    """Calls ``keep`` when it is time; every worker must have one, and step it alike."""

    def __init__(
        self,
        interval_s: float,
        *,
        keep: Callable[[], None],
        agree: Callable[..., Sequence[float]],
        noticed: Callable[[], bool] | None,
    ) -> None:
        """Start the clock.

        Args:
            interval_s: Longest time between checkpoints; 0 keeps one after every epoch and none within.
            keep: Called on every worker at the same steps.
            agree: Gives the sum of a figure over the workers, to each of them.
            noticed: Says whether this machine is about to be taken away; asked by all workers at once,
                answered alike. None where nobody would say so.
        """
        self.interval_s = interval_s
        self._keep, self._agree, self._noticed = keep, agree, noticed
        self._look_s = min(_LONGEST_LOOK_S, interval_s / _LOOKS_PER_INTERVAL) or _LONGEST_LOOK_S
        self._steps, self._look_steps = 0, 1
        self._kept_at_s = self._looked_at_s = time.monotonic()

    def step(self) -> None:
        """Note that a step is done, and keep a checkpoint within an epoch when it is time."""
        self._steps += 1
        if self._steps < self._look_steps or not (self.interval_s or self._noticed):
            return
        passed_s = time.monotonic() - self._looked_at_s
        overdue, total_s, count = self._agree(float(self._overdue() and self.interval_s > 0), passed_s, 1.0)
        mean_s = max(total_s / count, 1e-6)  # the same on every worker, as the next look has to be
        self._look_steps = max(1, min(2 * self._look_steps, int(self._steps * self._look_s / mean_s)))
        if overdue or (self._noticed is not None and self._noticed()):
            self._now()
        self._steps, self._looked_at_s = 0, time.monotonic()

    def epoch(self, *, last: bool) -> None:
        """Note that an epoch is done; after the last one a checkpoint is kept in any case."""
        (overdue,) = self._agree(float(self._overdue()))
        if overdue or last:
            self._now()

    def _overdue(self) -> bool:
        # Half a look early: the next one may come too late.
        return time.monotonic() - self._kept_at_s >= self.interval_s - self._look_s * bool(self.interval_s)

    def _now(self) -> None:
        self._keep()
        self._kept_at_s = time.monotonic()
