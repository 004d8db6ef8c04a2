"""Hearing a training from the driver: its epochs in order, and what a worker refused.

An actor collects what the workers tell; it knows nothing of training.
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


@contextmanager
def listening(hear: Callable[[dict[str, Any]], object] | None = None) -> Iterator[Any]:
    """Log each epoch as it is reported: an actor collects, a thread of the driver asks it.

    Args:
        hear: Told of each epoch as well, in that thread.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Listener:
        def __init__(self) -> None:
            import asyncio

            self.queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
            self.refused: KitError | None = None

        async def hear(self, figures: dict[str, Any] | None) -> None:
            await self.queue.put(figures)

        async def next(self) -> dict[str, Any] | None:
            return await self.queue.get()

        async def refuse(self, error: KitError) -> None:
            self.refused = error

        async def refusal(self) -> KitError | None:
            return self.refused

    # On the driver's machine: a worker's may be taken away.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    listener: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Listener).remote()

    def follow() -> None:
        try:
            while (figures := ray.get(listener.next.remote())) is not None:
                _log.info(
                    "epoch %(epoch)d: train loss %(train_loss).4f, validation loss %(validation_loss).4f",
                    figures,
                )
                if hear is not None:
                    hear(figures)
        except ray.exceptions.RayError:
            _log.debug("the listener is gone; later epochs are not shown")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        listener.hear.remote(None)
        thread.join(timeout=5)


@contextmanager
def refused(listener: Any) -> Iterator[None]:
    """Raise what a worker refused, whatever Ray made of it."""
    import ray

    try:
        yield
    except Exception as error:  # what Ray raises is its own class for every failure
        refusal = ray.get(listener.refusal.remote())
        if refusal is not None:
            raise refusal from error
        if is_disk_full(error):
            raise disk_full() from error
        raise
    refusal = ray.get(listener.refusal.remote())
    if refusal is not None:
        raise refusal


def disk_full() -> UnavailableError:
    """Say that a checkpoint found no room; trying again would not make any."""
    return UnavailableError(
        "the disk is full; a checkpoint of the training cannot be written",
        hint="free some space, then run the same command again: it continues from the last checkpoint",
    )
