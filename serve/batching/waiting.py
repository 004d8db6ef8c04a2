"""The requests that wait for the engine, and who of them comes next.

It keeps order, counts rows and lets go of what nobody waits for. It knows no engine, no event loop and no
clock: the time is given.
"""

from __future__ import annotations

import heapq
import math

from kit.inference.errors import DeadlineError
from serve.batching.running import Request

#: A step of priority is worth so much waiting: a request of priority 1 runs before those of priority 0 that
#: came up to half a second earlier, and none waits longer than that for later ones of the next priority.
AGEING_S = 0.5
#: Priorities beyond are taken for these, which bounds how long a low one can be overtaken.
MOST_PRIORITY = 10


def rank_s(now_s: float, *, priority: int) -> float:
    """Give the place in the queue of a request that arrives now; the least comes first."""
    if not priority:
        return now_s
    return now_s - max(-MOST_PRIORITY, min(MOST_PRIORITY, priority)) * AGEING_S


def too_late() -> DeadlineError:
    """Make the error of a request whose deadline passed before it was answered."""
    return DeadlineError(
        "the deadline passed before the model answered", hint="allow more time, or ask for less"
    )


class Waiting:
    """A queue by rank.

    Attributes:
        rows: Rows that wait.
    """

    __slots__ = ("_heap", "_sequence", "rows")

    def __init__(self) -> None:
        self._heap: list[Request] = []
        self._sequence = 0
        self.rows = 0

    def __len__(self) -> int:
        return len(self._heap)

    def next_sequence(self) -> int:
        """Count an arrival."""
        self._sequence += 1
        return self._sequence

    def push(self, request: Request) -> None:
        """Queue a request."""
        heapq.heappush(self._heap, request)
        self.rows += request.n_rows

    def take(self, *, most_rows: int, now_s: float) -> list[Request]:
        """Take the next batch: what comes first and fits; a larger request alone.

        Args:
            most_rows: Most rows of the batch.
            now_s: Requests whose deadline is earlier fail, cancelled ones are dropped.

        Returns:
            Requests that somebody waits for; none when none are left.
        """
        batch: list[Request] = []
        room = most_rows
        heap = self._heap
        while heap:
            request = heap[0]
            if request.future.done():
                self._drop_first()
            elif request.deadline_s <= now_s:
                self._drop_first()
                request.future.set_exception(too_late())
            elif request.n_rows <= room or not batch:
                self._drop_first()
                batch.append(request)
                room -= request.n_rows
            else:
                break
        return batch

    def sweep(self, now_s: float) -> float:
        """Let go of cancelled requests, fail those whose deadline has passed.

        Returns:
            The earliest deadline left, infinite when nothing waits.
        """
        kept: list[Request] = []
        earliest_s = math.inf
        for request in self._heap:
            if request.future.done():
                continue
            if request.deadline_s <= now_s:
                request.future.set_exception(too_late())
                continue
            kept.append(request)
            earliest_s = min(earliest_s, request.deadline_s)
        if len(kept) < len(self._heap):
            heapq.heapify(kept)
            self._heap = kept
            self.rows = sum(request.n_rows for request in kept)
        return earliest_s

    def rows_before(self, rank_s: float) -> int:
        """Count the rows that run before a request of this rank would."""
        return sum(request.n_rows for request in self._heap if request.rank_s <= rank_s)

    def _drop_first(self) -> None:
        self.rows -= heapq.heappop(self._heap).n_rows
