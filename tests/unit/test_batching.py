"""The batcher with an engine that the test holds: it runs when a gate is opened."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from kit.errors import ModelError, UnavailableError
from kit.inference.errors import DeadlineError, OverloadedError
from kit.inference.finite import only_finite
from kit.tensors import Tensors
from serve.batching import Batcher
from serve.batching.batcher import QUEUE_S
from serve.batching.running import Request
from serve.batching.speed import Speed
from serve.batching.waiting import AGEING_S, Waiting, rank_s

Test = Callable[[], Coroutine[Any, Any, None]]


class Gated:
    """An engine that doubles rows, one call at a time, each when the gate lets it."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.threads: set[int] = set()

    def __call__(self, inputs: Tensors) -> Tensors:
        self.calls.append(inputs["x"][:, 0].tolist())
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.gate.acquire(timeout=10)
        return {"y": inputs["x"] * 2}

    async def begins(self) -> None:
        """Wait until the engine is in a call."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


def rows(*values: float) -> Tensors:
    return {"x": np.array(values, dtype=np.float32).reshape(-1, 1)}


def soon() -> float:
    return time.monotonic() + 20


def ask(
    batcher: Batcher, *values: float, deadline_s: float | None = None, priority: int = 0
) -> asyncio.Future[Tensors]:
    return batcher.submit(
        rows(*values), n_rows=len(values), deadline_s=deadline_s or soon(), priority=priority
    )


@asynccontextmanager
async def batching(
    run: Callable[[Tensors], Tensors],
    *,
    max_rows: int = 8,
    max_wait_s: float = 0.0,
    max_queue_rows: int = 64,
    inline_s: float = 0.0,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        run,
        max_rows=max_rows,
        max_wait_s=max_wait_s,
        max_queue_rows=max_queue_rows,
        inline_s=inline_s,
        on_batch=lambda n_requests, n_rows, seconds, waited_s: None,
    )
    try:
        yield batcher
    finally:
        if isinstance(run, Gated):
            run.gate.release(1000)
        batcher.close()
        await asyncio.wait_for(batcher.wait_closed(), 10)


def double(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2}


def test_what_waits_while_the_engine_works_is_one_batch() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine) as batcher:
            first = ask(batcher, 1)
            await engine.begins()
            others = [ask(batcher, value) for value in (2, 3, 4)]
            assert batcher.waiting_rows == 3
            engine.gate.release(2)
            answers = [(await each)["y"].tolist() for each in (first, *others)]
            assert answers == [[[2]], [[4]], [[6]], [[8]]]
            assert engine.calls == [[1], [2, 3, 4]]
            assert threading.get_ident() not in engine.threads

    asyncio.run(main())


def test_a_batch_has_at_most_max_rows_and_no_request_is_torn() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine, max_rows=4) as batcher:
            await_all = [ask(batcher, 0)]
            await engine.begins()
            await_all += [ask(batcher, 1, 1, 1), ask(batcher, 2, 2), ask(batcher, 3)]
            engine.gate.release(10)
            await asyncio.gather(*await_all)
            assert engine.calls == [[0], [1, 1, 1], [2, 2, 3]]

    asyncio.run(main())


def test_a_request_larger_than_a_batch_runs_alone_in_pieces() -> None:
    async def main() -> None:
        engine = Gated()
        engine.gate.release(10)
        async with batching(engine, max_rows=4, max_queue_rows=4) as batcher:
            large, small = ask(batcher, *range(10)), None
            await engine.begins()
            small = ask(batcher, 99)
            assert (await large)["y"].ravel().tolist() == [2.0 * value for value in range(10)]
            assert (await small)["y"].tolist() == [[198]]
            assert engine.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [99]]

    asyncio.run(main())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine, max_queue_rows=2) as batcher:
            first = ask(batcher, 0)
            await engine.begins()
            kept = [ask(batcher, 1), ask(batcher, 2)]
            with pytest.raises(OverloadedError, match="2 rows wait") as refused:
                ask(batcher, 3)
            assert 0 < refused.value.retry_after_s <= 60
            engine.gate.release(2)
            await asyncio.gather(first, *kept)
            assert engine.calls == [[0], [1, 2]]

    asyncio.run(main())


def test_cancelled_requests_make_room_and_are_not_run() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine, max_queue_rows=2) as batcher:
            first = ask(batcher, 0)
            await engine.begins()
            for each in [ask(batcher, 1), ask(batcher, 2)]:
                each.cancel()
            last = ask(batcher, 3)
            engine.gate.release(2)
            await asyncio.gather(first, last)
            assert engine.calls == [[0], [3]]

    asyncio.run(main())


def test_a_cancelled_request_is_not_run() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine) as batcher:
            first = ask(batcher, 0)
            await engine.begins()
            ask(batcher, 1).cancel()
            last = ask(batcher, 2)
            engine.gate.release(2)
            await asyncio.gather(first, last)
            assert engine.calls == [[0], [2]]

    asyncio.run(main())


def test_a_queue_is_no_longer_than_the_engine_can_answer_soon() -> None:
    async def main() -> None:
        def engine(inputs: Tensors) -> Tensors:
            time.sleep(0.02)
            return double(inputs)

        async with batching(engine, max_rows=1, max_queue_rows=1000) as batcher:
            batcher.calibrate(rows(1))
            waiting: list[asyncio.Future[Tensors]] = []

            def flood() -> None:
                for value in range(1000):
                    waiting.append(ask(batcher, value))

            with pytest.raises(OverloadedError) as refused:
                flood()
            assert 20 <= len(waiting) <= QUEUE_S / 0.02 + 1
            assert 0.5 * QUEUE_S < refused.value.retry_after_s < 1.5 * QUEUE_S
            for each in waiting:
                each.cancel()

    asyncio.run(main())


def test_a_deadline_that_has_passed_when_the_engine_is_free_is_not_run() -> None:
    async def main() -> None:
        waiting, loop = Waiting(), asyncio.get_running_loop()
        late, good = (
            Request(1.0, number, loop.create_future(), rows(number), 1, deadline_s, 0.0)
            for number, deadline_s in enumerate((5.0, 20.0))
        )
        waiting.push(late)
        waiting.push(good)
        assert waiting.take(most_rows=8, now_s=10.0) == [good]
        assert isinstance(late.future.exception(), DeadlineError)

    asyncio.run(main())


def test_a_deadline_that_passes_in_the_queue_is_told_while_the_engine_still_works() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine) as batcher:
            first = ask(batcher, 0)
            await engine.begins()
            late = ask(batcher, 1, deadline_s=time.monotonic() + 0.02)
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(late, 5)
            assert not first.done()
            assert batcher.waiting_rows == 0
            engine.gate.release(1)
            await first
            assert engine.calls == [[0]]

    asyncio.run(main())


def test_an_engine_that_hangs_does_not_hold_its_requests_past_their_deadline() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine) as batcher:
            hung = ask(batcher, 0, deadline_s=time.monotonic() + 0.05)
            await engine.begins()
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(hung, 5)

    asyncio.run(main())


def test_a_deadline_that_cannot_be_kept_is_refused_early() -> None:
    async def main() -> None:
        began = threading.Event()

        def engine(inputs: Tensors) -> Tensors:
            began.set()
            time.sleep(0.03)
            return double(inputs)

        async with batching(engine) as batcher:
            batcher.calibrate(rows(1))
            began.clear()
            running = ask(batcher, 1)
            await asyncio.to_thread(began.wait, 10)
            with pytest.raises(DeadlineError, match="would take longer"):
                ask(batcher, 2, deadline_s=time.monotonic() + 0.01)
            await asyncio.gather(running, ask(batcher, 3))

    asyncio.run(main())


def test_a_deadline_in_the_past_is_refused() -> None:
    async def main() -> None:
        async with batching(double) as batcher:
            with pytest.raises(DeadlineError):
                ask(batcher, 1, deadline_s=time.monotonic() - 1)

    asyncio.run(main())


def test_higher_priorities_run_first_and_equal_ones_in_order() -> None:
    async def main() -> None:
        engine = Gated()
        async with batching(engine, max_rows=2) as batcher:
            waiting = [ask(batcher, 0)]
            await engine.begins()
            waiting += [ask(batcher, value, priority=value // 10) for value in (1, 11, 2, 12, 21)]
            engine.gate.release(10)
            await asyncio.gather(*waiting)
            assert engine.calls == [[0], [21, 11], [12, 1], [2]]

    asyncio.run(main())


def test_an_old_request_of_low_priority_comes_before_a_new_one_of_high_priority() -> None:
    assert rank_s(100.0, priority=0) < rank_s(100.0 + 1.1 * AGEING_S, priority=1)
    assert rank_s(100.0, priority=0) > rank_s(100.0 + 0.9 * AGEING_S, priority=1)
    assert rank_s(100.0, priority=10**9) == rank_s(100.0, priority=10)


def test_a_stream_of_high_priority_does_not_starve_a_low_one() -> None:
    async def main() -> None:
        waiting, loop = Waiting(), asyncio.get_running_loop()

        def arrive(now_s: float, *, priority: int) -> Request:
            rank = rank_s(now_s, priority=priority)
            request = Request(rank, waiting.next_sequence(), loop.create_future(), rows(1), 1, 1e9, now_s)
            waiting.push(request)
            return request

        low = arrive(100.0, priority=0)
        for step in range(100):  # two arrive for each that runs
            now_s = 100.0 + 0.1 * step
            arrive(now_s, priority=1)
            arrive(now_s, priority=1)
            if waiting.take(most_rows=1, now_s=now_s) == [low]:
                break
        assert 0.9 * AGEING_S < now_s - 100.0 < 2.1 * AGEING_S

    asyncio.run(main())


def test_only_the_guilty_request_of_a_batch_fails() -> None:
    async def main() -> None:
        gate = threading.Event()

        def engine(inputs: Tensors) -> Tensors:
            gate.wait(10)
            if (inputs["x"] < 0).any():
                raise ValueError("negative")
            return double(inputs)

        async with batching(engine) as batcher:
            waiting = [ask(batcher, value) for value in (1, 2, -3, 4, 5)]
            gate.set()
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(answers[2], ModelError)
            assert isinstance(answers[2].__cause__, ValueError)
            del answers[2]
            assert [each["y"].item() for each in answers if isinstance(each, dict)] == [2, 4, 8, 10]

    asyncio.run(main())


def test_rows_that_do_not_fit_the_memory_run_in_halves_and_are_not_tried_again_soon() -> None:
    async def main() -> None:
        sizes: list[int] = []

        def engine(inputs: Tensors) -> Tensors:
            sizes.append(len(inputs["x"]))
            if len(inputs["x"]) > 3:
                raise MemoryError
            return double(inputs)

        async with batching(engine, max_rows=8) as batcher:
            answers = await asyncio.gather(*[ask(batcher, value) for value in range(8)])
            assert [each["y"].item() for each in answers] == [2 * value for value in range(8)]
            answer = await ask(batcher, *range(8))
            assert answer["y"].ravel().tolist() == [2 * value for value in range(8)]
            assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]

    asyncio.run(main())


def test_a_request_that_does_not_fit_the_memory_runs_in_halves() -> None:
    async def main() -> None:
        sizes: list[int] = []

        def engine(inputs: Tensors) -> Tensors:
            sizes.append(len(inputs["x"]))
            if len(inputs["x"]) > 3:
                raise MemoryError
            return double(inputs)

        async with batching(engine, max_rows=8) as batcher:
            answer = await ask(batcher, *range(8))
            assert answer["y"].ravel().tolist() == [2 * value for value in range(8)]
            assert sizes == [8, 4, 2, 2, 2, 2]

    asyncio.run(main())


def test_who_leaves_a_batch_that_fails_is_not_run_again() -> None:
    async def main() -> None:
        engine = Gated()

        def failing(inputs: Tensors) -> Tensors:
            engine(inputs)
            raise ValueError

        async with batching(failing) as batcher:
            leaving, staying = ask(batcher, 1), ask(batcher, 2)
            await engine.begins()
            leaving.cancel()
            engine.gate.release(10)
            with pytest.raises(ModelError):
                await staying
            assert engine.calls == [[1, 2], [2]]

    asyncio.run(main())


def test_one_row_that_does_not_fit_the_memory_is_the_models_failure() -> None:
    def engine(inputs: Tensors) -> Tensors:
        raise MemoryError

    async def main() -> None:
        async with batching(engine) as batcher:
            with pytest.raises(ModelError, match="MemoryError"):
                await ask(batcher, 1, 2)

    asyncio.run(main())


def test_an_engine_that_answers_another_number_of_rows_fails() -> None:
    async def main() -> None:
        async with batching(lambda inputs: {"y": np.zeros(3)}) as batcher:
            with pytest.raises(ModelError, match="answers 2 rows with 3 of 'y'"):
                await ask(batcher, 1, 2)

    asyncio.run(main())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite_fail_for_their_request_alone(bad: float) -> None:
    async def main() -> None:
        run = only_finite(double, outputs=["y"])
        async with batching(run) as batcher:
            good, ill = ask(batcher, 1), ask(batcher, 2, bad)
            assert (await good)["y"].tolist() == [[2]]
            with pytest.raises(ModelError, match="'y' with numbers that are not finite"):
                await ill

    asyncio.run(main())


def test_large_finite_answers_pass() -> None:
    large = np.full((4, 1), np.finfo(np.float64).max)
    assert only_finite(lambda inputs: {"y": large}, outputs=["y"])({})["y"] is large


def test_an_answer_keeps_no_large_batch_alive() -> None:
    async def main() -> None:
        gate = threading.Event()

        def engine(inputs: Tensors) -> Tensors:
            gate.wait(10)
            return {"y": np.zeros((len(inputs["x"]), 10_000), np.float32)}

        async with batching(engine) as batcher:
            waiting = [ask(batcher, value) for value in range(8)]
            gate.set()
            for each in await asyncio.gather(*waiting):
                assert each["y"].base is None

    asyncio.run(main())


def test_a_fast_engine_runs_on_the_loop_and_a_lone_request_waits_for_nothing() -> None:
    async def main() -> None:
        calls: list[int] = []

        def engine(inputs: Tensors) -> Tensors:
            calls.append(threading.get_ident())
            return double(inputs)

        async with batching(engine, inline_s=1.0) as batcher:
            batcher.calibrate(rows(1))
            calls.clear()
            assert ask(batcher, 1).done()
            assert calls == [threading.get_ident()]

    asyncio.run(main())


def test_requests_of_one_turn_of_the_loop_share_an_inline_call() -> None:
    async def main() -> None:
        sizes: list[int] = []

        def engine(inputs: Tensors) -> Tensors:
            sizes.append(len(inputs["x"]))
            return double(inputs)

        async with batching(engine, inline_s=1.0) as batcher:
            batcher.calibrate(rows(1))
            for expected in ([1, 3], [4], [4]):  # the first turn does not know that it will not be alone
                sizes.clear()
                answers = await asyncio.gather(*[ask(batcher, value) for value in range(4)])
                assert [each["y"].item() for each in answers] == [0, 2, 4, 6]
                assert sizes == expected

    asyncio.run(main())


def test_an_engine_that_becomes_slow_leaves_the_loop_and_comes_back() -> None:
    async def main() -> None:
        pause_s, threads = 0.0, list[int]()

        def engine(inputs: Tensors) -> Tensors:
            threads.append(threading.get_ident())
            time.sleep(pause_s)
            return double(inputs)

        async with batching(engine, inline_s=0.002) as batcher:
            batcher.calibrate(rows(1))
            pause_s = 0.004
            await ask(batcher, 1)
            while threads[-1] == threading.get_ident():
                await ask(batcher, 1)
            pause_s = 0.0
            while threads[-1] != threading.get_ident():
                await ask(batcher, 1)
            assert len(threads) < 100

    asyncio.run(main())


def test_one_slow_call_hardly_changes_what_is_expected() -> None:
    speed = Speed()
    speed.learn(1, 1e-5)
    speed.learn(1, 1.0)
    assert speed.seconds(1) < 3e-5


def test_a_size_that_never_ran_is_judged_by_its_neighbours() -> None:
    speed = Speed()
    assert speed.seconds(1) == math.inf
    speed.learn(8, 0.1)
    assert speed.seconds(2) == 0.1
    assert speed.seconds(64) == pytest.approx(0.8)


def test_an_idle_engine_waits_for_more_rows_when_told_to() -> None:
    async def main() -> None:
        sizes: list[int] = []

        def engine(inputs: Tensors) -> Tensors:
            sizes.append(len(inputs["x"]))
            return double(inputs)

        async with batching(engine, max_rows=4, max_wait_s=0.05) as batcher:
            began_s = time.monotonic()
            first = ask(batcher, 1)
            await asyncio.sleep(0)
            await asyncio.gather(first, ask(batcher, 2))
            assert time.monotonic() - began_s >= 0.045
            assert sizes == [2]
            await asyncio.gather(*[ask(batcher, value) for value in range(4)])
            assert sizes == [2, 4]
            assert time.monotonic() - began_s < 5

    asyncio.run(main())


def test_a_close_deadline_ends_the_wait_for_more_rows() -> None:
    async def main() -> None:
        def engine(inputs: Tensors) -> Tensors:
            time.sleep(0.03)
            return double(inputs)

        async with batching(engine, max_rows=2, max_wait_s=10.0) as batcher:
            batcher.calibrate(rows(1))
            answer = await ask(batcher, 1, deadline_s=time.monotonic() + 0.2)
            assert answer["y"].tolist() == [[2]]

    asyncio.run(main())


def test_closing_answers_what_waits_refuses_what_comes_and_ends_the_thread() -> None:
    async def main() -> None:
        engine = Gated()
        before = threading.active_count()
        async with batching(engine) as batcher:
            first = ask(batcher, 0)
            await engine.begins()
            second = ask(batcher, 1)
            batcher.close()
            with pytest.raises(UnavailableError, match="unloaded"):
                ask(batcher, 2)
            engine.gate.release(2)
            assert [(await each)["y"].item() for each in (first, second)] == [0, 2]
            await batcher.wait_closed()
        engine_threads = [each for each in threading.enumerate() if each.name == "engine"]
        assert not engine_threads
        assert threading.active_count() <= before + 1  # the pool of asyncio.to_thread stays

    asyncio.run(main())


def test_a_batcher_that_never_worked_closes() -> None:
    batcher = Batcher(
        double,
        max_rows=1,
        max_wait_s=0,
        max_queue_rows=1,
        inline_s=0,
        on_batch=lambda n_requests, n_rows, seconds, waited_s: None,
    )
    batcher.close()
    asyncio.run(batcher.wait_closed())
    assert batcher.waiting_rows == 0


def test_every_call_is_told() -> None:
    async def main() -> None:
        told: list[tuple[int, int]] = []
        batcher = Batcher(
            double,
            max_rows=8,
            max_wait_s=0.0,
            max_queue_rows=64,
            inline_s=0.0,
            on_batch=lambda n_requests, n_rows, seconds, waited_s: told.append((n_requests, n_rows)),
        )
        await asyncio.gather(ask(batcher, 1, 2), ask(batcher, 3))
        assert told == [(2, 3)]
        batcher.close()
        await batcher.wait_closed()

    asyncio.run(main())
