from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from kit.tensors import Tensors
from serve.releases.comparison import Counts, compare, total
from serve.releases.shadow import Shadow

DIGEST = "d" * 64


def outputs(label: list[int], value: list[float]) -> Tensors:
    return {"label": np.array(label, dtype=np.int64), "value": np.array(value, dtype=np.float32)}


GIVEN = outputs([1, 0, 1, 1], [0.5, 0.25, 1.0, 2.0])


def test_labels_agree_and_numbers_differ_by_so_much() -> None:
    found = compare(GIVEN, outputs([1, 1, 1, 1], [0.5, 0.5, 1.0, 1.0]))
    assert (found.labels, found.labels_equal, found.agreement) == (4, 3, 0.75)
    assert (found.numbers, found.difference_max) == (4, 1.0)
    assert found.mean_difference == pytest.approx(1.25 / 4)


def test_equal_infinities_and_nans_are_alike() -> None:
    odd = outputs([0], [np.inf]) | {"other": np.array([np.nan, 1.0])}
    found = compare(odd, {name: array.copy() for name, array in odd.items()})
    assert (found.unlike, found.difference_max, found.numbers) == (0, 0.0, 3)


@pytest.mark.parametrize(
    "shadow",
    [
        {"label": GIVEN["label"]},
        outputs([1], [0.5]),
        outputs([1, 0, 1, 1], [0.5, 0.25, 1.0, np.nan]),
        outputs([1, 0, 1, 1], [0.5, 0.25, 1.0, np.inf]),
        {**GIVEN, "value": np.array([1, 2, 3, 4])},
    ],
    ids=["an output is absent", "another shape", "nan", "infinity", "another kind"],
)
def test_what_cannot_be_compared_is_unlike(shadow: Tensors) -> None:
    assert compare(GIVEN, shadow) == Counts(compared=1, unlike=1)


def test_outputs_nobody_asked_for_and_strings_are_no_trouble() -> None:
    names = np.array(["cat", "dog"], dtype=object)
    found = compare({"name": names}, {"name": np.array(["cat", "cow"], dtype=object), "more": names})
    assert (found.labels, found.labels_equal) == (2, 1)


def test_what_replicas_counted_adds_up() -> None:
    one = compare(GIVEN, outputs([1, 0, 1, 0], [0.5, 0.25, 1.0, 5.0])) + Counts(
        seconds=0.3, answer_seconds=0.1
    )
    other = Counts(compared=1, errors=2, dropped=4, difference_max=1.0, seconds=0.1, answer_seconds=0.1)
    both = total([one, other])
    assert (both.compared, both.errors, both.dropped, both.difference_max) == (2, 2, 4, 3.0)
    assert both.slower_ms == pytest.approx(100.0)
    assert Counts.from_json(json.loads(json.dumps(both.to_json()))) == both
    assert Counts.from_json({"compared": "many"}) == Counts()
    assert (Counts().agreement, Counts().mean_difference, Counts().slower_ms) == (None, None, None)


class Version:
    """A version under trial whose answers come when they are let."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.asked = 0

    async def run(self, inputs: Tensors) -> Tensors:
        self.asked += 1
        await self.may.wait()
        if "bad" in inputs:
            raise ValueError("cannot")
        return GIVEN


async def counted(shadow: Shadow, n: int) -> None:
    async with asyncio.timeout(5):
        while shadow.counts.compared + shadow.counts.errors < n:
            await asyncio.sleep(0)


def test_a_shadow_answers_later_and_what_has_no_room_is_dropped() -> None:
    async def body() -> None:
        version = Version()
        shadow = Shadow(DIGEST, run=version.run)
        taken = [shadow.offer({"x": np.zeros(2)}, GIVEN, seconds=0.01) for _ in range(100)]
        assert taken == [True] * 32 + [False] * 68
        version.may.set()
        await counted(shadow, 32)
        assert (shadow.counts.compared, shadow.counts.dropped, shadow.counts.agreement) == (32, 68, 1.0)
        assert shadow.told()["digest"] == DIGEST
        assert shadow.offer({"x": np.zeros(2)}, GIVEN, seconds=0.01)  # it works again afterwards
        await counted(shadow, 33)

    asyncio.run(body())


def test_large_requests_fill_the_room_by_their_bytes() -> None:
    async def body() -> None:
        version = Version()
        shadow = Shadow(DIGEST, run=version.run)
        large = {"x": np.zeros(1_000_000)}  # 8 MB
        assert [shadow.offer(large, GIVEN, seconds=0.0) for _ in range(3)] == [True, False, False]
        version.may.set()
        await counted(shadow, 1)
        shadow.close()

    asyncio.run(body())


def test_one_request_at_a_time_and_none_while_others_wait() -> None:
    async def body() -> None:
        version = Version()
        busy = False
        shadow = Shadow(DIGEST, run=version.run, busy=lambda: busy)
        for _ in range(3):
            shadow.offer({}, GIVEN, seconds=0.0)
        await asyncio.sleep(0)
        assert version.asked == 1
        busy = True
        assert not shadow.offer({}, GIVEN, seconds=0.0)
        shadow.close()

    asyncio.run(body())


def test_a_shadow_that_raises_is_counted_and_asked_again() -> None:
    async def body() -> None:
        version = Version()
        version.may.set()
        shadow = Shadow(DIGEST, run=version.run)
        shadow.offer({"bad": np.zeros(1)}, GIVEN, seconds=0.0)
        shadow.offer({}, GIVEN, seconds=0.0)
        await counted(shadow, 2)
        assert (shadow.counts.errors, shadow.counts.compared) == (1, 1)

    asyncio.run(body())


def test_a_closed_shadow_asks_no_more() -> None:
    async def body() -> None:
        version = Version()
        shadow = Shadow(DIGEST, run=version.run, counts=Counts(compared=7))
        shadow.offer({}, GIVEN, seconds=0.0)
        shadow.close()
        version.may.set()
        await asyncio.sleep(0.01)
        assert shadow.counts.compared == 7
        assert not shadow.offer({}, GIVEN, seconds=0.0)

    asyncio.run(body())


def test_large_answers_are_compared_off_the_loop() -> None:
    async def body() -> None:
        large = {"value": np.ones((300, 300), dtype=np.float32)}

        async def run(inputs: Tensors) -> Tensors:
            return {"value": large["value"] * 2}

        shadow = Shadow(DIGEST, run=run)
        shadow.offer({}, large, seconds=0.0)
        async with asyncio.timeout(5):
            while not shadow.counts.compared:
                await asyncio.sleep(0.001)
        assert shadow.counts.mean_difference == 1.0

    asyncio.run(body())
