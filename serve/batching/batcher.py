"""The batcher: one engine, one slot, and a queue in front of it.

Greedy: the engine, whenever it is free, gets all that waits. A batch that is fast runs on the event loop,
because a hand-over to the thread and back costs 20 to 80 us where a small model takes 6 us; a slow one runs
in the batcher's only thread. The queue belongs to the event loop; the thread sees one batch at a time and
reports each with one call.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from kit.errors import UnavailableError
from kit.inference.errors import DeadlineError, OverloadedError
from kit.inference.finite import Run
from kit.tensors import Tensors
from serve.batching.running import Outcome, Request, run_batch
from serve.batching.speed import Speed, measure
from serve.batching.thread import EngineThread
from serve.batching.waiting import Waiting, rank_s, too_late

OnBatch = Callable[[int, int, float, float], None]

#: However many rows may wait, no more do than the engine answers in this time (or one batch), so that who is
#: let in is answered soon and who is not hears so at once.
QUEUE_S = 0.5
#: The queue is looked through for passed deadlines and cancelled requests at most this often.
_SWEEP_S = 0.005
#: After a batch that did not fit the memory, larger ones are tried again after this.
_MEMORY_S = 60.0
_LEAST_RETRY_S, _MOST_RETRY_S = 0.05, 60.0


class Batcher:
    """Answers requests in batches. Belongs to the event loop that first submits.

    Args:
        run: The engine: validated tensors in, one array per output out. Never called twice at a time.
        max_rows: Most rows of one call; a larger request runs alone, in pieces.
        max_wait_s: How long a request may wait for others while the engine is idle.
        max_queue_rows: Most rows that wait, see also ``QUEUE_S``; an empty queue takes any one request.
        inline_s: Batches expected to be faster run on the event loop; 0 for never.
        on_batch: Called on the event loop after each engine call: requests, rows, seconds, and the seconds
            that its requests had waited, added up.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_rows: int,
        max_wait_s: float,
        max_queue_rows: int,
        inline_s: float,
        on_batch: OnBatch,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._most_rows = max_rows  # less for a while after the memory was too small
        self._most_rows_until_s = 0.0
        self._max_wait_s = max_wait_s
        self._max_queue_rows = max_queue_rows
        self._inline_s = inline_s
        self._on_batch = on_batch
        self._engine = Speed(down=0.5)  # what the engine takes: does it run on the loop?
        self._pace = Speed()  # what a batch takes with its way to the thread and back: how long is the queue?
        self._waiting = Waiting()
        self._running: Sequence[Request] = ()
        self._running_since_s = 0.0
        self._running_until_s = 0.0
        self._start_by_s = 0.0
        self._turn_planned = False
        self._turn_requests = 0
        self._alone = max_wait_s == 0  # the last turn of the loop brought one request: so may this one
        self._next_deadline_s = math.inf
        self._timer_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._swept_s = 0.0
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: EngineThread | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def waiting_rows(self) -> int:
        """Rows that wait; those in the engine are not among them."""
        return self._waiting.rows

    def calibrate(self, inputs: Tensors) -> None:
        """Run the engine on repeated rows: warm it, and learn how fast it is. Takes half a second at most.

        Blocks; to be called before the first request, where the model is loaded.

        Args:
            inputs: One validated row.
        """
        for n_rows, seconds in measure(self._run, inputs, max_rows=self._max_rows):
            self._engine.learn(n_rows, seconds)
            self._pace.learn(n_rows, seconds)

    def submit(
        self, inputs: Tensors, *, n_rows: int, deadline_s: float, priority: int = 0
    ) -> asyncio.Future[Tensors]:
        """Queue rows for the engine.

        Cancelling the future takes the rows out, unless they are in the engine already.

        Args:
            inputs: Validated tensors.
            n_rows: Their number of rows.
            deadline_s: Monotonic time (``time.monotonic``) after which the answer is of no use.
            priority: From -10 to 10; the higher runs first, see ``serve.batching.waiting.AGEING_S``.

        Returns:
            The answers: one array per output with ``n_rows`` rows, maybe a view. It raises ``ModelError``
            when the model fails on these rows, and ``DeadlineError`` when the deadline passes.

        Raises:
            DeadlineError: The deadline has passed, or cannot be kept.
            OverloadedError: The queue is full.
            UnavailableError: The batcher is closed.
        """
        now_s = time.monotonic()
        if deadline_s <= now_s:
            raise too_late()
        loop = self._loop or self._adopt_loop()
        future: asyncio.Future[Tensors] = loop.create_future()
        if self._alone and not self._turn_planned and not self._running and n_rows <= self._most_rows:
            request = Request(now_s, 0, future, inputs, n_rows, deadline_s, now_s)
            if self._engine.seconds(n_rows) < self._inline_s:
                # No queue and no switch of tasks; others of this turn wait for its end and share a batch.
                self._plan_turn(loop)
                self._turn_requests = 1
                self._run_inline((request,))
                return future
        if self._closing:
            raise UnavailableError("the version is being unloaded", hint="ask again")
        waiting = self._waiting
        rank = rank_s(now_s, priority=priority)
        if self._running or waiting.rows + n_rows > self._max_rows:
            self._check_room(n_rows, now_s=now_s, deadline_s=deadline_s, rank=rank)
        if not waiting.rows:
            self._start_by_s = now_s + self._max_wait_s
            if not self._running:
                self._next_deadline_s = math.inf
        if deadline_s < self._next_deadline_s:
            self._next_deadline_s = deadline_s
        waiting.push(Request(rank, waiting.next_sequence(), future, inputs, n_rows, deadline_s, now_s))
        self._turn_requests += 1
        if not self._turn_planned:
            self._plan_turn(loop)
        return future

    def close(self) -> None:
        """Take no more requests, answer those that wait, then end the thread; callable from any thread."""
        if self._closing:
            return
        self._closing = True
        self._alone = False
        loop = self._loop
        if loop is not None and loop.is_closed():
            self._end()
        elif loop is not None:
            loop.call_soon_threadsafe(self._end_turn)

    async def wait_closed(self) -> None:
        """Wait until a closed batcher has answered everything and its thread has ended."""
        if self._loop is not None and not (self._ended and self._ended.done()):
            self._ended = self._ended or self._loop.create_future()
            await asyncio.shield(self._ended)
        if self._thread is not None:
            self._thread.join()  # its last act brought us here

    def _adopt_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _plan_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turn_planned = True
        loop.call_soon(self._end_turn)

    def _check_room(self, n_rows: int, *, now_s: float, deadline_s: float, rank: float) -> None:
        """Refuse a request that the queue has no room for, or that would be answered too late."""
        waiting, most_rows = self._waiting, self._most_rows
        full_s = self._pace.seconds(most_rows)
        room = self._max_queue_rows
        if full_s < math.inf:
            room = min(room, max(most_rows, int(most_rows * QUEUE_S / full_s)))
        if waiting.rows + n_rows > room and now_s > self._swept_s + _SWEEP_S:
            self._sweep(now_s)  # cancelled requests may make room
        if waiting.rows and waiting.rows + n_rows > room:
            error = OverloadedError(f"{waiting.rows} rows wait for the model", hint="ask again later")
            if full_s < math.inf:
                wait_s = waiting.rows / most_rows * full_s
                error.retry_after_s = min(_MOST_RETRY_S, max(_LEAST_RETRY_S, wait_s))
            raise error
        # An idle engine refuses nobody: its estimate, if wrong, would never be put right.
        if full_s < math.inf and (self._running or waiting.rows):
            left_s = deadline_s - max(now_s, self._running_until_s)
            if self._expected_s(waiting.rows + n_rows) > left_s and (
                self._expected_s(waiting.rows_before(rank) + n_rows) > left_s
            ):
                raise DeadlineError(
                    f"the answer would take longer than the {deadline_s - now_s:.3f} s that are left",
                    hint="allow more time, or ask again later",
                )

    def _expected_s(self, n_rows: int) -> float:
        """Estimate the engine time of rows, in batches."""
        most_rows = self._most_rows
        n_full, rest = divmod(n_rows, most_rows)
        return n_full * self._pace.seconds(most_rows) + (self._pace.seconds(rest) if rest else 0.0)

    def _end_turn(self) -> None:
        """Start what this turn of the loop brought together."""
        self._turn_planned = False
        self._alone = self._turn_requests <= 1 and self._max_wait_s == 0 and not self._closing
        self._turn_requests = 0
        if len(self._waiting) and not self._running:
            self._start()
        if len(self._waiting) or self._running:
            self._watch()
        elif self._closing and not self._turn_planned:
            self._end()

    def _start(self) -> None:
        """Give the free engine all that waits, unless it is to wait for more."""
        now_s = time.monotonic()
        if self._starts_s() > now_s:
            return
        if now_s > self._most_rows_until_s:
            self._most_rows = self._max_rows
        batch = self._waiting.take(most_rows=self._most_rows, now_s=now_s)
        if not batch:
            return
        loop = self._loop or self._adopt_loop()
        n_rows = sum(request.n_rows for request in batch)
        if self._engine.seconds(n_rows) < self._inline_s and n_rows <= self._most_rows:
            self._run_inline(batch)
            if len(self._waiting) and not self._turn_planned:
                self._plan_turn(loop)  # the loop gets its turn between two batches
            return
        self._running = batch
        self._running_since_s = now_s
        expected_s = self._expected_s(n_rows)
        self._running_until_s = now_s + expected_s if expected_s < math.inf else now_s
        if self._thread is None:
            self._thread = EngineThread(
                self._run, loop=loop, on_done=self._finished, on_end=self._thread_ended
            )
        self._thread.answer(batch, max_rows=self._most_rows)

    def _starts_s(self) -> float:
        """Say when an idle engine starts on what waits: at once, or when more waiting would cost too much."""
        if self._max_wait_s == 0 or self._closing or self._waiting.rows >= self._most_rows:
            return 0.0
        expected_s = self._expected_s(self._waiting.rows)
        needed_s = 2 * (expected_s if expected_s < math.inf else self._max_wait_s) + 2 * _SWEEP_S
        return min(self._start_by_s, self._next_deadline_s - needed_s)

    def _run_inline(self, batch: Sequence[Request]) -> None:
        outcome = run_batch(self._run, batch, max_rows=self._most_rows)
        self._learn(outcome)
        self._settle(batch, outcome)

    def _settle(self, batch: Sequence[Request], outcome: Outcome) -> None:
        """Hand out a batch's answers."""
        for request, answer in zip(batch, outcome.answers, strict=True):
            future = request.future
            if future.done():
                continue
            if type(answer) is dict:
                future.set_result(answer)
            else:
                future.set_exception(answer if isinstance(answer, Exception) else too_late())

    def _learn(self, outcome: Outcome) -> None:
        for n_requests, n_rows, seconds, waited_s in outcome.calls:
            self._engine.learn(n_rows, seconds)
            self._on_batch(n_requests, n_rows, seconds, waited_s)
        if outcome.most_rows is not None:
            self._most_rows = min(self._most_rows, outcome.most_rows)
            self._most_rows_until_s = time.monotonic() + _MEMORY_S

    def _watch(self) -> None:
        """Wake up when a deadline passes, or the wait for more rows is over."""
        wake_s = self._next_deadline_s
        if not self._running:
            wake_s = min(wake_s, self._starts_s())
        if wake_s < self._timer_s:
            loop = self._loop or self._adopt_loop()
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = wake_s
            self._timer = loop.call_later(max(_SWEEP_S, wake_s - time.monotonic()), self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_s = None, math.inf
        self._sweep(time.monotonic())
        if not self._turn_planned:
            self._end_turn()

    def _sweep(self, now_s: float) -> None:
        """Fail what is too late, also in the engine: its answer is dropped when it comes."""
        self._swept_s = now_s
        earliest_s = self._waiting.sweep(now_s)
        for request in self._running:
            if request.future.done():
                continue
            if request.deadline_s <= now_s:
                request.future.set_exception(too_late())
            else:
                earliest_s = min(earliest_s, request.deadline_s)
        self._next_deadline_s = earliest_s

    def _finished(self, batch: Sequence[Request], outcome: Outcome) -> None:
        self._running = ()
        self._learn(outcome)
        if len(outcome.calls) == 1:
            self._pace.learn(outcome.calls[0].n_rows, time.monotonic() - self._running_since_s)
        if len(self._waiting):
            self._start()  # before the answers: the engine works while the loop writes them
        self._settle(batch, outcome)
        if not self._turn_planned:
            self._plan_turn(self._loop or self._adopt_loop())

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.end()
        else:
            self._thread_ended()

    def _thread_ended(self) -> None:
        loop = self._loop or self._adopt_loop()
        self._ended = self._ended or loop.create_future()
        if not self._ended.done():
            self._ended.set_result(None)
