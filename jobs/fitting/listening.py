"""Hearing a training from the driver: its epochs in order, what a worker refused, when it is to stop.

An actor collects what the workers tell and what the driver answers; it knows nothing of training.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.cluster import is_disk_full
from kit.errors import KitError, UnavailableError

_log = logging.getLogger("kit")
_SAY_AFTER_S = 5.0


@contextmanager
def listening(hear: Callable[[dict[str, Any]], object] | None = None) -> Iterator[Any]:
    """Log each epoch as it is reported: an actor collects, a thread of the driver asks it.

    Args:
        hear: Told of each epoch as well, in that thread; False asks the workers to stop, and so does an
            error, which is raised when they have. However slow it is, it hears of every epoch before the
            block is left, unless by Ctrl-C.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's machine: a worker's may be taken away.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    listener: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Listener).remote()
    errors: list[BaseException] = []
    left = threading.Event()  # from here on Ray may be shut down, and asking it would start another one

    def told(figures: dict[str, Any]) -> bool:
        """Say whether the training goes on."""
        _log.info(
            "epoch %(epoch)d: train loss %(train_loss).4f, validation loss %(validation_loss).4f", figures
        )
        if hear is None or errors:
            return not errors
        try:
            return hear(figures) is not False
        except BaseException as error:  # SystemExit too, by which Ray Tune ends a trial: this is a thread
            errors.append(error)
            return False

    def follow() -> None:
        try:
            while (figures := ray.get(listener.next.remote())) is not None and not left.is_set():
                goes_on = told(figures)
                if left.is_set():
                    return
                listener.answer.remote(goes_on)
        except ray.exceptions.RayError:
            _log.debug("the listener is gone; later epochs are not shown")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        try:
            yield listener
        except Exception as error:  # whatever the training raised, what was heard may have come first
            _hear_out(listener, thread)
            if errors:  # it came first
                raise errors[0] from error
            raise
        _hear_out(listener, thread)
        if errors:
            raise errors[0]
    finally:
        if thread.is_alive():  # Ctrl-C, which stands above whatever was heard
            left.set()
            listener.hear.remote(None)
            thread.join(timeout=5)


def _hear_out(listener: Any, thread: threading.Thread) -> None:
    """Wait until the thread has told of every epoch, or has lost the listener."""
    listener.hear.remote(None)
    thread.join(timeout=_SAY_AFTER_S)
    if thread.is_alive():
        _log.info("the training has ended; waiting until its last epochs are told")
        thread.join()


class _Listener:
    """What the workers tell, in order, and what the driver answers; an actor."""

    def __init__(self) -> None:
        import asyncio

        self.news = asyncio.Condition()
        self.told: list[dict[str, Any] | None] = []
        self.n_taken = self.n_answered = 0
        self.goes_on = True
        self.refused: KitError | None = None

    async def hear(self, figures: dict[str, Any] | None, wait: bool = False) -> bool:
        """Take the figures of an epoch, None after the last; say whether the training goes on.

        With ``wait`` that is what the driver answers to these figures, else what it has answered so far.
        """
        async with self.news:
            self.told.append(figures)
            number = len(self.told)
            self.news.notify_all()
            if wait:
                await self.news.wait_for(lambda: self.n_answered >= number)
            return self.goes_on

    async def next(self) -> dict[str, Any] | None:
        async with self.news:
            await self.news.wait_for(lambda: len(self.told) > self.n_taken)
            self.n_taken += 1
            return self.told[self.n_taken - 1]

    async def answer(self, goes_on: bool) -> None:
        async with self.news:
            self.n_answered += 1
            self.goes_on = self.goes_on and goes_on
            self.news.notify_all()

    async def refuse(self, error: KitError) -> None:
        self.refused = error

    async def refusal(self) -> KitError | None:
        return self.refused


@contextmanager
def refused(listener: Any) -> Iterator[None]:
    """Raise what a worker refused, whatever Ray made of it."""
    try:
        yield
    except Exception as error:  # what Ray raises is its own class for every failure
        refusal = refusal_of(listener)
        if refusal is not None:
            raise refusal from error
        if is_disk_full(error):
            raise disk_full() from error
        raise
    refusal = refusal_of(listener)
    if refusal is not None:
        raise refusal


def refusal_of(listener: Any) -> KitError | None:
    """Ask what a worker has refused; a listener that is gone knows of nothing, and stops nobody."""
    import ray

    try:
        refusal: KitError | None = ray.get(listener.refusal.remote())
    except ray.exceptions.RayError:
        return None
    return refusal


def disk_full() -> UnavailableError:
    """Say that a checkpoint found no room; trying again would not make any."""
    return UnavailableError(
        "the disk is full; a checkpoint of the training cannot be written",
        hint="free some space, then run the same command again: it continues from the last checkpoint",
    )
