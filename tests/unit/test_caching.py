"""The response cache without a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import InputError, ModelError
from kit.inference.errors import DeadlineError, OverloadedError
from kit.tensors import Tensors
from serve.caching import MemoryCache, ResponseCache, key_of
from serve.caching.memory import owned
from serve.caching.packing import pack, unpack

DIGEST = "a" * 64
KEY = b"k" * 32


def answer_of(value: float) -> Tensors:
    return {"y": np.array([value])}


def cache() -> ResponseCache:
    return ResponseCache(MemoryCache(max_bytes=100_000, ttl_s=60))


class Slow:
    """A computation that ends when it is let, with an answer or an error."""

    def __init__(self, outcome: float | Exception) -> None:
        self.n_calls = 0
        self.cancelled = False
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self._outcome = outcome

    async def __call__(self) -> Tensors:
        self.n_calls += 1
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return answer_of(self._outcome)


async def at_once() -> Tensors:
    return answer_of(7)


def test_an_equal_request_is_answered_from_memory() -> None:
    async def main() -> None:
        kept = cache()
        compute = Slow(1)
        compute.go.set()
        first, hit = await kept.answer(KEY, compute)
        assert not hit
        again, hit = await kept.answer(KEY, compute)
        assert hit
        assert again["y"].tolist() == first["y"].tolist() == [1]
        assert compute.n_calls == 1
        assert kept.counts()["hits"] == kept.counts()["misses"] == kept.counts()["entries"] == 1

    asyncio.run(main())


def test_concurrent_equal_requests_are_computed_once() -> None:
    async def main() -> None:
        kept, compute = cache(), Slow(1)
        waiting = [asyncio.create_task(kept.answer(KEY, compute)) for _ in range(5)]
        await compute.begun.wait()
        compute.go.set()
        answers = await asyncio.gather(*waiting)
        assert [hit for _, hit in answers] == [False, True, True, True, True]
        assert compute.n_calls == 1
        assert kept.counts()["joined"] == 4

    asyncio.run(main())


def test_who_asked_first_and_leaves_takes_no_answer_from_the_others() -> None:
    async def main() -> None:
        kept, compute = cache(), Slow(1)
        first = asyncio.create_task(kept.answer(KEY, compute))
        await compute.begun.wait()
        second = asyncio.create_task(kept.answer(KEY, compute))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        compute.go.set()
        tensors, _ = await second
        assert tensors["y"].tolist() == [1]
        assert compute.n_calls == 1

    asyncio.run(main())


def test_a_computation_nobody_waits_for_ends_and_is_not_joined() -> None:
    async def main() -> None:
        kept, compute = cache(), Slow(1)
        alone = asyncio.create_task(kept.answer(KEY, compute))
        await compute.begun.wait()
        alone.cancel()
        await asyncio.wait([alone])
        tensors, hit = await kept.answer(KEY, at_once)
        assert (tensors["y"].tolist(), hit) == ([7], False)
        assert compute.cancelled

    asyncio.run(main())


@pytest.mark.parametrize("error", [DeadlineError("late"), OverloadedError("full"), OSError("gone")])
def test_a_failure_that_is_the_first_ones_own_lets_the_next_compute(error: Exception) -> None:
    async def main() -> None:
        kept, failing = cache(), Slow(error)
        first = asyncio.create_task(kept.answer(KEY, failing))
        await failing.begun.wait()
        others = [asyncio.create_task(kept.answer(KEY, at_once)) for _ in range(3)]
        await asyncio.sleep(0)
        failing.go.set()
        with pytest.raises(type(error)):
            await first
        assert [tensors["y"].tolist() for tensors, _ in await asyncio.gather(*others)] == [[7]] * 3

    asyncio.run(main())


def test_a_models_failure_concerns_all_who_wait_and_is_not_kept() -> None:
    async def main() -> None:
        kept, failing = cache(), Slow(ModelError("NaN"))
        waiting = [asyncio.create_task(kept.answer(KEY, failing)) for _ in range(3)]
        await failing.begun.wait()
        failing.go.set()
        for each in waiting:
            with pytest.raises(ModelError):
                await each
        assert failing.n_calls == 1
        assert (await kept.answer(KEY, at_once))[0]["y"].tolist() == [7]

    asyncio.run(main())


def test_who_joins_waits_no_longer_than_its_own_deadline() -> None:
    async def main() -> None:
        kept, compute = cache(), Slow(1)
        first = asyncio.create_task(kept.answer(KEY, compute))
        await compute.begun.wait()
        with pytest.raises(DeadlineError):
            await kept.answer(KEY, at_once, deadline_s=time.monotonic() + 0.01)
        compute.go.set()
        assert (await first)[0]["y"].tolist() == [1]

    asyncio.run(main())


def test_what_is_kept_cannot_be_changed_and_keeps_no_batch_alive() -> None:
    batch = np.zeros((1000, 4))
    kept = owned({"y": batch[3:4]})["y"]
    assert kept.base is None
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1


def test_the_least_recently_used_goes_first() -> None:
    memory = MemoryCache(max_bytes=3000, ttl_s=60)
    for name in (b"a", b"b", b"c"):
        memory.put(name, answer_of(1), now_s=0)
    assert memory.get(b"a", now_s=1) is not None
    memory.put(b"d", answer_of(1), now_s=1)
    assert [memory.get(name, now_s=1) is not None for name in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    assert memory.n_evicted == 1


def test_an_entry_ends_with_its_time() -> None:
    memory = MemoryCache(max_bytes=3000, ttl_s=10)
    memory.put(KEY, answer_of(1), now_s=100)
    assert memory.get(KEY, now_s=109.9) is not None
    assert memory.get(KEY, now_s=110) is None
    assert memory.n_bytes == 0


def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    memory = MemoryCache(max_bytes=3000, ttl_s=10)
    memory.put(b"small", answer_of(1), now_s=0)
    memory.put(KEY, {"y": np.zeros(1000)}, now_s=0)
    assert memory.get(KEY, now_s=0) is None
    assert memory.get(b"small", now_s=0) is not None


@pytest.mark.parametrize("kind", ["numbers", "words"])
def test_the_bound_in_bytes_is_one_of_real_memory(kind: str) -> None:
    def entry(index: int) -> Tensors:
        if kind == "numbers":
            return owned({"label": np.array([index]), "scores": np.full((1, 10), index, np.float32)})
        return owned({"text": np.array([f"the word {index}"] * 8, dtype=object)})

    memory = MemoryCache(max_bytes=500_000, ttl_s=60)
    tracemalloc.start()
    for index in range(1000):
        memory.put(index.to_bytes(32, "big"), entry(index), now_s=0)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory.n_evicted > 0
    assert memory.n_bytes <= 500_000
    assert 0.2 * memory.n_bytes < taken < 1.1 * memory.n_bytes


def test_a_key_covers_the_version_and_every_part_of_every_input() -> None:
    base = {"x": np.zeros((2, 3), np.float32), "name": np.array(["ab", "c"], dtype=object)}
    others: list[tuple[str, Tensors]] = [
        (DIGEST, base),
        ("b" * 64, base),
        (DIGEST, {**base, "x": np.zeros((3, 2), np.float32)}),
        (DIGEST, {**base, "x": np.zeros((2, 3), np.int32)}),
        (DIGEST, {**base, "x": np.zeros((2, 3), np.float64)}),
        (DIGEST, {**base, "x": np.eye(2, 3, dtype=np.float32)}),
        (DIGEST, {"y": base["x"], "name": base["name"]}),
        (DIGEST, {"x": base["x"]}),
        (DIGEST, {**base, "name": np.array(["a", "bc"], dtype=object)}),
        (DIGEST, {**base, "name": np.array(["abc", ""], dtype=object)}),
        (DIGEST, {**base, "name": np.array([["ab", "c"]], dtype=object)}),
    ]
    assert len({key_of(digest, inputs) for digest, inputs in others}) == len(others)
    copied = {name: array.copy() for name, array in base.items()}
    assert key_of(DIGEST, copied) == key_of(DIGEST, base)


TEXTS = st.lists(st.text(max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_strings_have_one_key_each(left: list[str], right: list[str]) -> None:
    keys = [key_of(DIGEST, {"s": np.array(each, dtype=object)}) for each in (left, right)]
    assert (keys[0] == keys[1]) == (left == right)


ARRAYS: st.SearchStrategy[np.ndarray] = st.builds(
    lambda dtype, shape: (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype),
    st.sampled_from(["float32", "float64", "int64", "int32", "uint8", "bool"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
) | st.lists(st.text(max_size=3), max_size=4).map(lambda texts: np.array(texts, dtype=object))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), ARRAYS, max_size=3))
def test_tensors_are_unpacked_as_they_were_packed(tensors: Tensors) -> None:
    found = unpack(pack(tensors))
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tolist() == array.tolist()
        assert not found[name].flags.writeable


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.binary(max_size=12), st.integers(0, 12))
def test_damaged_bytes_are_refused_or_read_and_never_more(place: int, noise: bytes, cut: int) -> None:
    packed = pack({"x": np.ones((2, 2), np.float32), "s": np.array(["a", "bc"], dtype=object)})
    damaged = packed[:place] + noise + packed[place + cut :]
    with contextlib.suppress(InputError):
        found = unpack(damaged)
        assert all(array.nbytes <= len(damaged) * 8 for array in found.values())


def test_another_version_of_the_format_is_refused() -> None:
    with pytest.raises(InputError, match="another version"):
        unpack(b"\x02" + pack({})[1:])


def test_what_no_signature_names_is_not_packed() -> None:
    with pytest.raises(InputError, match="complex128"):
        pack({"x": np.zeros(1, complex)})


def test_a_hit_waits_for_nothing() -> None:
    async def main() -> None:
        kept = cache()
        await kept.answer(KEY, at_once)
        with pytest.raises(StopIteration):
            kept.answer(KEY, at_once).send(None)  # ends at once, without giving the loop a turn

    asyncio.run(main())
