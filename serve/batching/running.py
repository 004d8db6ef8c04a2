"""A batch through the engine: join the rows, run, cut the answers apart, find who is to blame when it fails.

Synchronous, on whichever thread calls it. It knows no queue and no event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kit.errors import ModelError
from kit.inference.finite import Run
from kit.tensors import Tensors

#: An answer is a view into its batch's, unless that would keep alive more than this and more than so many
#: times its own size; then it is a copy.
_VIEW_BYTES = 64 * 1024
_VIEW_TIMES = 4


class Request(NamedTuple):
    """Rows that wait for the engine, in the order they run.

    Attributes:
        rank_s: Time of arrival, moved back for priority; the least runs first.
        sequence: Order of arrival, which decides between equals.
        future: Gets the answer; done when nobody waits any more.
        inputs: Validated tensors.
        n_rows: Their number of rows.
        deadline_s: Monotonic time after which the answer is of no use.
        arrived_s: Monotonic time of arrival.
    """

    rank_s: float
    sequence: int
    future: asyncio.Future[Tensors]
    inputs: Tensors
    n_rows: int
    deadline_s: float
    arrived_s: float


class EngineCall(NamedTuple):
    """One call of the engine: requests, rows, seconds, and the seconds its requests had waited, added up."""

    n_requests: int
    n_rows: int
    seconds: float
    waited_s: float


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        answers: One per request, in order: tensors, why there are none, or None where nobody waits any more.
        calls: The engine calls that succeeded.
        most_rows: Rows that fit the memory, where the batch did not; None when it did.
    """

    answers: list[Tensors | Exception | None]
    calls: list[EngineCall]
    most_rows: int | None


def run_batch(run: Run, requests: Sequence[Request], *, max_rows: int) -> Outcome:
    """Answer a batch; where it fails, halve it until only the guilty fail.

    Args:
        run: The engine.
        requests: At most ``max_rows`` rows together, or a single larger request, which runs in pieces.
        max_rows: Most rows of one engine call.
    """
    batch = _Batch(run, max_rows=max_rows)
    return Outcome(batch.answer(requests), batch.calls, batch.most_rows)


class _Batch:
    """The calls one batch takes."""

    def __init__(self, run: Run, *, max_rows: int) -> None:
        self._run = run
        self._max_rows = max_rows
        self.calls: list[EngineCall] = []
        self.most_rows: int | None = None

    def answer(self, requests: Sequence[Request]) -> list[Tensors | Exception | None]:
        """Answer requests together, or in two halves when that fails."""
        if len(requests) == 1:
            return [self._answer_one(requests[0])]
        n_rows = sum(request.n_rows for request in requests)
        try:
            names = requests[0].inputs
            joined = {name: np.concatenate([each.inputs[name] for each in requests]) for name in names}
            outputs = self._call(joined, requests=requests, n_rows=n_rows)
        except MemoryError:
            self._remember(n_rows)
        except Exception:  # an engine is foreign code; run alone, the guilty shows itself
            pass
        else:
            return _cut(outputs, requests)
        waiting = [request for request in requests if _is_awaited(request)]
        if len(waiting) <= 1:
            return [self._answer_one(request) if _is_awaited(request) else None for request in requests]
        middle = len(requests) // 2
        return self.answer(requests[:middle]) + self.answer(requests[middle:])

    def _answer_one(self, request: Request) -> Tensors | Exception | None:
        if not _is_awaited(request):
            return None
        try:
            return self._pieces(request, most_rows=self._max_rows)
        except ModelError as error:
            return error
        except Exception as error:  # an engine is foreign code, and these rows passed the signature
            failure = ModelError(f"the model fails on these rows ({type(error).__name__})")
            failure.__cause__ = error
            return failure

    def _pieces(self, request: Request, *, most_rows: int) -> Tensors:
        """Answer one request's rows, in smaller pieces where the memory is too small."""
        inputs, n_rows = request.inputs, request.n_rows
        while True:
            try:
                if n_rows <= most_rows:
                    return self._call(inputs, requests=(request,), n_rows=n_rows)
                parts = []
                for start in range(0, n_rows, most_rows):
                    piece = {name: array[start : start + most_rows] for name, array in inputs.items()}
                    n_piece = min(most_rows, n_rows - start)
                    parts.append(self._call(piece, requests=(request,), n_rows=n_piece))
                return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            except MemoryError:
                tried = min(most_rows, n_rows)
                if tried <= 1:
                    raise
                self._remember(tried)
                most_rows = tried // 2

    def _call(self, inputs: Tensors, *, requests: Sequence[Request], n_rows: int) -> Tensors:
        now_s = time.monotonic()
        waited_s = sum(now_s - request.arrived_s for request in requests)
        start_s = time.perf_counter()
        outputs = self._run(inputs)
        seconds = time.perf_counter() - start_s
        for name, array in outputs.items():
            if len(array) != n_rows:
                raise ModelError(f"the model answers {n_rows} rows with {len(array)} of {name!r}")
        self.calls.append(EngineCall(len(requests), n_rows, seconds, waited_s))
        return outputs

    def _remember(self, too_many_rows: int) -> None:
        self.most_rows = min(self.most_rows or too_many_rows, max(1, too_many_rows // 2))


def _is_awaited(request: Request) -> bool:
    return not request.future.done() and time.monotonic() < request.deadline_s


def _cut(outputs: Tensors, requests: Sequence[Request]) -> list[Tensors | Exception | None]:
    """Give each request its rows of the batch's answers."""
    answers: list[Tensors | Exception | None] = []
    large = sum(array.nbytes for array in outputs.values()) > _VIEW_BYTES
    n_rows = sum(request.n_rows for request in requests)
    start = 0
    for request in requests:
        stop = start + request.n_rows
        if large and request.n_rows * _VIEW_TIMES < n_rows:
            answers.append({name: array[start:stop].copy() for name, array in outputs.items()})
        else:
            answers.append({name: array[start:stop] for name, array in outputs.items()})
        start = stop
    return answers
