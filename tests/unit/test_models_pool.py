from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kit.errors import ConflictError, InputError, KitError, ModelError, UnavailableError, VerificationError
from kit.inference.errors import DeadlineError
from serve.models import Pool, State, VersionKey

A, B, C, D = (VersionKey("digits", number, f"{number:064x}") for number in (1, 2, 3, 4))


class Thing:
    """What the pool holds here: a size, and whether it was closed."""

    def __init__(self, key: VersionKey, memory_bytes: int) -> None:
        self.key = key
        self.memory_bytes = memory_bytes
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Later(Executor):
    """Runs what it is given when told to, on the thread that tells."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any], VersionKey]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if arguments and isinstance(arguments[0], VersionKey):
            self.waiting.append((future, lambda: function(*arguments, **named), arguments[0]))
        else:
            future.set_result(function(*arguments, **named))
        return future

    def keys(self) -> list[VersionKey]:
        return [key for _, _, key in self.waiting]

    def run(self, index: int = 0) -> None:
        future, call, _ = self.waiting.pop(index)
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)


class Shelf:
    """Where loads come from: counts them, and fails where it is told to."""

    def __init__(self) -> None:
        self.sizes: dict[VersionKey, int] = {}
        self.failing: dict[VersionKey, Exception] = {}
        self.loads: list[VersionKey] = []
        self.made: list[Thing] = []

    def load(self, key: VersionKey) -> Thing:
        self.loads.append(key)
        if key in self.failing:
            raise self.failing[key]
        self.made.append(Thing(key, self.sizes.get(key, 10)))
        return self.made[-1]


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 10))


def soon() -> float:
    return time.monotonic() + 5


async def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.001)


async def turn() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def test_what_is_not_loaded_cannot_be_leased_and_is_loaded_once_for_all_who_wait() -> None:
    async def body() -> None:
        shelf, later = Shelf(), Later()
        pool = Pool(shelf.load, max_bytes=100, executor=later)
        assert pool.lease(A) is None
        waiting = [asyncio.create_task(pool.acquire(A, deadline_s=soon())) for _ in range(5)]
        await turn()
        assert later.keys() == [A]
        assert pool.states()[A].status == "LOADING"
        later.run()
        things = await asyncio.gather(*waiting)
        assert len(set(things)) == 1
        assert shelf.loads == [A]
        assert pool.lease(A) is things[0]
        state = pool.states()[A]
        assert (state.status, state.users, state.bytes, pool.total_bytes) == ("READY", 6, 10, 10)

    run(body())


def test_one_who_gives_up_does_not_end_the_load_for_others() -> None:
    async def body() -> None:
        shelf, later = Shelf(), Later()
        pool = Pool(shelf.load, max_bytes=100, executor=later)
        first, second = (asyncio.create_task(pool.acquire(A, deadline_s=soon())) for _ in range(2))
        await turn()
        first.cancel()
        await turn()
        later.run()
        assert (await second).key == A
        assert first.cancelled()
        assert pool.states()[A].users == 1

    run(body())


def test_one_who_is_cancelled_in_the_moment_the_load_ends_holds_nothing() -> None:
    async def body() -> None:
        later = Later()
        pool = Pool(Shelf().load, max_bytes=100, executor=later)
        task = asyncio.create_task(pool.acquire(A, deadline_s=soon()))
        await turn()
        later.run()
        while A not in pool.states() or pool.states()[A].status != "READY":
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            pool.release(A)
        assert pool.states()[A].users == 0

    run(body())


def test_a_deadline_ends_the_wait_but_not_the_load() -> None:
    async def body() -> None:
        later = Later()
        pool = Pool(Shelf().load, max_bytes=100, executor=later)
        with pytest.raises(DeadlineError, match="digits@1"):
            await pool.acquire(A, deadline_s=time.monotonic() + 0.005)
        later.run()
        await until(lambda: pool.states()[A].status == "READY")
        with pytest.raises(DeadlineError):
            await pool.acquire(B, deadline_s=time.monotonic() - 1)
        assert B not in pool.states()

    run(body())


def test_the_longest_unused_version_goes_when_memory_is_short() -> None:
    async def body() -> None:
        shelf = Shelf()
        pool = Pool(shelf.load, max_bytes=25)
        for key in (A, B, A, C):
            assert (await pool.acquire(key, deadline_s=soon())).key == key
            pool.release(key)
        assert {key for key, state in pool.states().items() if state.status == "READY"} == {A, C}
        assert [thing.key for thing in shelf.made if thing.closed] == [B]
        await pool.close()

    run(body())


def test_what_is_used_is_never_closed_for_an_unwanted_version() -> None:
    async def body() -> None:
        shelf = Shelf()
        pool = Pool(shelf.load, max_bytes=15)
        thing = await pool.acquire(A, deadline_s=soon())
        with pytest.raises(UnavailableError, match=r"digits@2 takes 0\.0 MB and does not fit"):
            await pool.acquire(B, deadline_s=soon())
        assert not thing.closed
        assert pool.states()[B].status == "FAILED"
        assert pool.total_bytes == 10
        await until(lambda: shelf.made[1].closed)
        pool.release(A)
        await pool.load(B)
        assert thing.closed
        await pool.close()

    run(body())


def test_a_wanted_version_displaces_one_in_use_as_soon_as_its_last_user_leaves() -> None:
    async def body() -> None:
        pool = Pool(Shelf().load, max_bytes=15)
        thing = await pool.acquire(A, deadline_s=soon())
        pool.want({B})
        await until(lambda: pool.states()[B].status == "READY")
        assert pool.states()[A].status == "UNAVAILABLE"
        assert pool.lease(A) is None
        assert not thing.closed
        pool.release(A)
        assert thing.closed
        assert A not in pool.states()
        await pool.close()

    run(body())


def test_a_wanted_version_that_had_to_leave_is_tried_again_when_its_last_user_left() -> None:
    async def body() -> None:
        pool = Pool(Shelf().load, max_bytes=15)
        thing = await pool.acquire(A, deadline_s=soon())
        pool.want({B})
        await until(lambda: pool.states()[B].status == "READY")
        pool.want({A, B})
        assert pool.states()[A].status == "UNAVAILABLE"
        with pytest.raises(UnavailableError, match="does not fit"):
            await pool.acquire(A, deadline_s=soon())
        pool.release(A)
        assert thing.closed
        await until(lambda: pool.states()[A].status == "FAILED")
        assert "does not fit" in pool.states()[A].reason
        assert pool.total_bytes == 10
        await pool.close()

    run(body())


def test_wanted_versions_are_loaded_unasked_and_stay_for_what_nobody_wants() -> None:
    async def body() -> None:
        pool = Pool(Shelf().load, max_bytes=25, keep_s=0)
        pool.want({A, B})
        await until(
            lambda: all(pool.lease(key) is not None for key in (A, B) if pool.states()[key].users == 0)
        )
        for key in (A, B):
            pool.release(key)
        with pytest.raises(UnavailableError, match="does not fit"):
            await pool.acquire(C, deadline_s=soon())
        assert all(pool.states()[key].status == "READY" for key in (A, B))
        await pool.close()

    run(body())


def test_wanted_versions_that_do_not_fit_together_name_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.models.pool._BACK_OFF_S", 60)  # room is used at once, not after the pause

    async def body() -> None:
        shelf = Shelf()
        shelf.sizes = {A: 7_000_000, B: 8_000_000}
        pool = Pool(shelf.load, max_bytes=10_000_000)
        pool.want({A})
        await until(lambda: pool.states()[A].status == "READY")
        pool.want({A, B})
        await until(lambda: pool.states()[B].status == "FAILED")
        assert pool.states()[B].reason == (
            "digits@2 takes 8.0 MB and does not fit: the versions that releases need take 7.0 MB of the "
            "10.0 MB a replica has for models"
        )
        pool.want({B})
        await until(lambda: pool.states()[B].status == "READY")
        assert pool.total_bytes == 8_000_000
        await pool.close()

    run(body())


def test_a_version_that_lost_its_traffic_is_kept_for_a_while() -> None:
    async def body() -> None:
        shelf = Shelf()
        pool = Pool(shelf.load, max_bytes=100, keep_s=0.03)
        pool.want({A})
        await until(lambda: pool.states()[A].status == "READY")
        began_s = time.monotonic()
        pool.want({B})
        assert pool.lease(A) is not None
        pool.release(A)
        await until(lambda: A not in pool.states())
        assert time.monotonic() - began_s >= 0.03
        assert shelf.made[0].closed
        await until(lambda: pool.states()[B].status == "READY")
        await pool.close()

    run(body())


def test_a_failed_load_is_not_repeated_for_every_request_but_at_once_for_an_operator() -> None:
    async def body() -> None:
        shelf = Shelf()
        shelf.failing[A] = VerificationError("'model.onnx' in /secret/place is not the file that was signed")
        pool = Pool(shelf.load, max_bytes=100)
        for _ in range(20):
            with pytest.raises(VerificationError) as caught:
                await pool.acquire(A, deadline_s=soon())
            assert "secret" not in f"{caught.value} {caught.value.hint}"
        assert shelf.loads == [A]
        assert "/secret/place" in pool.states()[A].reason
        with pytest.raises(VerificationError, match="/secret/place"):
            await pool.load(A)
        shelf.failing.clear()
        await pool.load(A)
        assert pool.states()[A].status == "READY"
        assert shelf.loads == [A, A, A]
        await pool.close()

    run(body())


@pytest.mark.parametrize(
    "raised, told",
    [
        (ModelError("NaN in /x"), ModelError),
        (InputError("/x is refused"), UnavailableError),
        (KeyError("/x"), UnavailableError),
    ],
)
def test_clients_are_told_the_kind_of_a_failure_and_no_place(raised: Exception, told: type[KitError]) -> None:
    async def body() -> None:
        shelf = Shelf()
        shelf.failing[A] = raised
        pool = Pool(shelf.load, max_bytes=100)
        with pytest.raises(told) as caught:
            await pool.acquire(A, deadline_s=soon())
        assert type(caught.value) is told
        assert "/x" not in str(caught.value)
        await pool.close()

    run(body())


def test_a_wanted_version_that_failed_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        shelf = Shelf()
        shelf.failing[A] = UnavailableError("the store is away")
        pool = Pool(shelf.load, max_bytes=100)
        pool.want({A})
        await until(lambda: len(shelf.loads) >= 3)
        shelf.failing.clear()
        await until(lambda: pool.states()[A].status == "READY")
        await pool.close()

    monkeypatch.setattr("serve.models.pool._BACK_OFF_S", 0.01)
    run(body())


def test_unloading_waits_for_the_last_user_and_spares_what_a_release_needs() -> None:
    async def body() -> None:
        pool = Pool(Shelf().load, max_bytes=100)
        await pool.unload(A)
        thing = await pool.acquire(A, deadline_s=soon())
        unloading = asyncio.create_task(pool.unload(A))
        await turn()
        assert pool.lease(A) is None
        assert not unloading.done()
        pool.release(A)
        await unloading
        assert thing.closed
        pool.want({B})
        with pytest.raises(ConflictError, match="digits@2 has traffic"):
            await pool.unload(B)
        await pool.close()

    run(body())


def test_a_version_asked_for_while_it_leaves_stays() -> None:
    async def body() -> None:
        shelf = Shelf()
        pool = Pool(shelf.load, max_bytes=100)
        thing = await pool.acquire(A, deadline_s=soon())
        unloading = asyncio.create_task(pool.unload(A))
        await turn()
        assert await pool.acquire(A, deadline_s=soon()) is thing
        await unloading
        pool.release(A)
        pool.release(A)
        assert pool.lease(A) is thing
        assert shelf.loads == [A]
        pool.release(A)
        await pool.close()

    run(body())


def test_what_nobody_waits_for_any_more_is_not_loaded() -> None:
    async def body() -> None:
        shelf, later = Shelf(), Later()
        pool = Pool(shelf.load, max_bytes=100, executor=later, loads_at_once=1)
        first, second = (asyncio.create_task(pool.acquire(key, deadline_s=soon())) for key in (A, B))
        await turn()
        second.cancel()
        await turn()
        later.run()
        await first
        assert later.keys() == []
        assert B not in pool.states()

    run(body())


def test_what_somebody_waits_for_is_loaded_before_what_is_only_wanted() -> None:
    async def body() -> None:
        shelf, later = Shelf(), Later()
        pool = Pool(shelf.load, max_bytes=100, executor=later, loads_at_once=1)
        pool.want({A, B, C})
        task = asyncio.create_task(pool.acquire(D, deadline_s=soon()))
        await turn()
        later.run()
        await turn()
        assert later.keys() == [D]
        later.run()
        await task

    run(body())


def test_giving_back_more_than_was_leased_is_refused() -> None:
    async def body() -> None:
        pool = Pool(Shelf().load, max_bytes=100)
        with pytest.raises(ConflictError, match="more often"):
            pool.release(A)
        await pool.close()

    run(body())


def test_changes_are_told_in_their_order() -> None:
    async def body() -> None:
        told: list[tuple[VersionKey, State]] = []
        pool = Pool(Shelf().load, max_bytes=100, on_change=lambda key, state: told.append((key, state)))
        await pool.load(A)
        await pool.unload(A)
        await turn()
        assert [state.status for _, state in told] == ["LOADING", "READY", "UNAVAILABLE"]
        assert told[1][1].bytes == 10
        assert told[1][1].loaded_at_s == pytest.approx(time.time(), abs=60)
        await pool.close()

    run(body())


def test_closing_lets_nobody_in_waits_for_users_and_closes_everything() -> None:
    async def body() -> None:
        shelf, later = Shelf(), Later()
        pool = Pool(shelf.load, max_bytes=100, executor=later)
        pool.want({A, B})
        waiting = asyncio.create_task(pool.acquire(C, deadline_s=soon()))
        later.run()
        later.run()
        await turn()
        assert pool.lease(A) is not None
        await turn()
        closing = asyncio.create_task(pool.close())
        with pytest.raises(UnavailableError, match="shutting down"):
            await waiting
        with pytest.raises(UnavailableError, match="shutting down"):
            await pool.acquire(B, deadline_s=soon())
        assert pool.lease(A) is None
        assert not closing.done()
        pool.release(A)
        await closing
        later.run()  # a load that ends afterwards
        await turn()
        assert all(thing.closed for thing in shelf.made)
        assert [thing.key for thing in shelf.made] == [A, B, C]

    run(body())


def test_closing_does_not_wait_forever_and_leaves_open_what_is_used() -> None:
    async def body() -> None:
        pool = Pool(Shelf().load, max_bytes=100)
        thing = await pool.acquire(A, deadline_s=soon())
        await pool.close(timeout_s=0.01)
        assert not thing.closed
        pool.release(A)
        assert thing.closed

    run(body())


def test_the_loop_goes_on_while_a_load_takes_its_time() -> None:
    async def body() -> None:
        go = threading.Event()

        def load(key: VersionKey) -> Thing:
            assert go.wait(5)
            return Thing(key, 1)

        pool = Pool(load, max_bytes=100)
        task = asyncio.create_task(pool.acquire(A, deadline_s=soon()))
        await turn()
        assert not task.done()
        go.set()
        assert (await task).key == A
        pool.release(A)
        await pool.close()

    run(body())


KEYS = (A, B, C, D)
SIZES = {A: 10, B: 10, C: 15, D: 40}
BUDGET = 30


class PoolMachine(RuleBasedStateMachine):
    """Everything users, releases, operators and failing loads do, in any order, one turn of the loop each."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.later = Later()
        self.shelf = Shelf()
        self.shelf.sizes = dict(SIZES)
        self.pool = self.loop.run_until_complete(self._make())
        self.leased: list[Thing] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.wanted: set[VersionKey] = set()
        self.unwanted_at_lease = False

    async def _make(self) -> Pool[Thing]:
        return Pool(self.shelf.load, max_bytes=BUDGET, keep_s=1000, executor=self.later)

    def step(self) -> None:
        self.loop.run_until_complete(turn())
        for task in [each for each in self.tasks if each.done()]:
            self.tasks.remove(task)
            if not task.cancelled() and task.exception() is None and isinstance(task.result(), Thing):
                self.leased.append(task.result())

    @rule(key=st.sampled_from(KEYS))
    def lease(self, key: VersionKey) -> None:
        thing = self.pool.lease(key)
        if thing is not None:
            self.leased.append(thing)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        thing = self.leased.pop(data.draw(st.integers(0, len(self.leased) - 1)))
        self.pool.release(thing.key)
        self.step()

    @rule(key=st.sampled_from(KEYS))
    def acquire(self, key: VersionKey) -> None:
        self.tasks.append(self.loop.create_task(self.pool.acquire(key, deadline_s=time.monotonic() + 100)))
        self.step()

    @rule(key=st.sampled_from(KEYS))
    def load(self, key: VersionKey) -> None:
        self.tasks.append(self.loop.create_task(self.pool.load(key)))
        self.step()

    @rule(key=st.sampled_from(KEYS))
    def unload(self, key: VersionKey) -> None:
        self.tasks.append(self.loop.create_task(self.pool.unload(key)))
        self.step()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), late=st.booleans())
    def cancel(self, data: st.DataObject, late: bool) -> None:
        if late and self.later.waiting:  # in the same turn in which its load ends
            self.later.run()
        self.tasks[data.draw(st.integers(0, len(self.tasks) - 1))].cancel()
        self.step()

    @rule(keys=st.sets(st.sampled_from(KEYS), max_size=3))
    def want(self, keys: set[VersionKey]) -> None:
        self.wanted = keys
        self.pool.want(keys)
        self.step()

    @precondition(lambda self: self.later.waiting)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        index = data.draw(st.integers(0, len(self.later.waiting) - 1))
        key = self.later.keys()[index]
        if fails:
            self.shelf.failing[key] = ModelError("it answers NaN")
        self.later.run(index)
        self.shelf.failing.clear()
        self.step()

    @invariant()
    def nothing_in_use_is_closed(self) -> None:
        assert not any(thing.closed for thing in self.leased)

    @invariant()
    def users_are_counted(self) -> None:
        states = self.pool.states()
        for key in KEYS:
            users = states[key].users if key in states else 0
            assert users == sum(thing.key == key for thing in self.leased)

    @invariant()
    def one_load_per_version(self) -> None:
        keys = self.later.keys()
        assert len(keys) == len(set(keys)) <= 2

    @invariant()
    def one_open_resource_per_version_and_no_leak(self) -> None:
        there = [thing.key for thing in self.shelf.made if not thing.closed]
        assert len(there) == len(set(there))
        assert self.pool.total_bytes == sum(SIZES[key] for key in there)

    @invariant()
    def the_budget_is_kept_but_for_what_leaves(self) -> None:
        states = self.pool.states()
        leaving = sum(state.bytes for state in states.values() if state.status == "UNAVAILABLE")
        assert self.pool.total_bytes - leaving <= BUDGET

    @invariant()
    def what_is_wanted_is_there_or_on_its_way_or_has_a_reason(self) -> None:
        states = self.pool.states()
        for key in self.wanted:
            assert states[key].wanted
            assert states[key].status in ("READY", "LOADING") or states[key].reason

    def teardown(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.step()
        for thing in self.leased:
            self.pool.release(thing.key)
        self.loop.run_until_complete(self.pool.close(timeout_s=0.1))
        while self.later.waiting:
            self.later.run()
        self.loop.run_until_complete(turn())
        assert all(thing.closed for thing in self.shelf.made)
        assert not self.pool.states()
        self.loop.close()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
