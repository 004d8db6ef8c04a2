"""The thread a slow engine runs in: takes one batch at a time and reports it to the event loop with one call.

It knows no queue of requests and decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

from kit.inference.finite import Run
from serve.batching.running import Outcome, Request, run_batch

OnDone = Callable[[Sequence[Request], Outcome], None]


class EngineThread:
    """One thread for one engine. It does not keep the process from ending, where an engine never returns.

    Args:
        run: The engine.
        loop: Where reports are called.
        on_done: Called with each batch and what became of it.
        on_end: Called when the thread ends.
    """

    def __init__(
        self, run: Run, *, loop: asyncio.AbstractEventLoop, on_done: OnDone, on_end: Callable[[], None]
    ) -> None:
        self._run = run
        self._loop = loop
        self._on_done = on_done
        self._on_end = on_end
        self._batches: SimpleQueue[tuple[Sequence[Request], int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def answer(self, batch: Sequence[Request], *, max_rows: int) -> None:
        """Have a batch answered; the one before must be done."""
        self._batches.put((batch, max_rows))

    def end(self) -> None:
        """End the thread after its batch."""
        self._batches.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._batches.get()) is not None:
            batch, max_rows = taken
            if not self._report(
                partial(self._on_done, batch, run_batch(self._run, batch, max_rows=max_rows))
            ):
                return
            del taken, batch  # nothing is kept while the thread waits
        self._report(self._on_end)

    def _report(self, call: Callable[[], None]) -> bool:
        """Have the loop call; False when it is closed, and nobody waits any more."""
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return False
        return True
