"""Whatever meets in a batch, each request gets the answers to its own rows, or its own error."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import ModelError
from kit.inference.errors import DeadlineError, OverloadedError
from kit.inference.finite import only_finite
from kit.tensors import Tensors
from serve.batching import Batcher


@dataclass(frozen=True)
class Asked:
    """A request: what it holds, and what happens to it."""

    n_rows: int
    priority: int
    fate: str  # good, raises, nan
    cancelled: bool
    short: bool
    turns: int  # of the loop, before it is submitted


ASKED = st.builds(
    Asked,
    n_rows=st.sampled_from([0, 1, 1, 1, 2, 3, 7, 20]),
    priority=st.integers(-2, 2),
    fate=st.sampled_from(["good", "good", "good", "raises", "nan"]),
    cancelled=st.sampled_from([False, False, False, True]),
    short=st.sampled_from([False, False, False, True]),
    turns=st.integers(0, 3),
)


class Engine:
    """Answers rows with themselves and their names; fails as the rows say; has memory for ten of them."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self.seen: set[int] = set()

    def __call__(self, inputs: Tensors) -> Tensors:
        assert self._busy.acquire(blocking=False), "two calls at a time"
        try:
            values, names = inputs["value"], inputs["name"]
            assert len(values) == len(names)
            if len(values) > 10:
                raise MemoryError
            self.seen.update(int(value) for value in np.abs(values[:, 0]))
            if (values[:, 1] == 1).any():
                raise RuntimeError("a row raises")
            scores = values[:, 0] * np.where(values[:, 1] == 2, np.nan, 1).astype(np.float64)
            return {"score": scores, "named": names.copy()}
        finally:
            self._busy.release()


def tensors(asked: Asked, *, number: int) -> Tensors:
    first = 1000 * (number + 1)
    values = np.zeros((asked.n_rows, 2))
    values[:, 0] = np.arange(first, first + asked.n_rows)
    values[-1:, 1] = {"good": 0, "raises": 1, "nan": 2}[asked.fate]
    names = np.array([f"row {first + index}" for index in range(asked.n_rows)], dtype=object)
    return {"value": values, "name": names}


async def ask(batcher: Batcher, asked: Asked, *, number: int) -> str:
    for _ in range(asked.turns):
        await asyncio.sleep(0)
    inputs = tensors(asked, number=number)
    deadline_s = time.monotonic() + (0.001 if asked.short else 20)
    try:
        future = batcher.submit(inputs, n_rows=asked.n_rows, deadline_s=deadline_s, priority=asked.priority)
    except OverloadedError:
        return "overloaded"
    except DeadlineError:
        return "late"
    if asked.cancelled and future.cancel():
        return "cancelled"
    try:
        answer = await future
    except DeadlineError:
        return "late"
    except ModelError:
        return "failed"
    assert answer["score"].tolist() == inputs["value"][:, 0].tolist()
    assert answer["named"].tolist() == inputs["name"].tolist()
    return "answered"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ASKED, min_size=1, max_size=24),
    st.integers(1, 16),
    st.sampled_from([0.0, 0.001]),
    st.sampled_from([0.0, 1.0]),
)
def test_results_never_mix(requests: list[Asked], max_rows: int, max_wait_s: float, inline_s: float) -> None:
    engine = Engine()

    async def main() -> None:
        batcher = Batcher(
            only_finite(engine, outputs=["score"]),
            max_rows=max_rows,
            max_wait_s=max_wait_s,
            max_queue_rows=40,
            inline_s=inline_s,
            on_batch=lambda n_requests, n_rows, seconds, waited_s: None,
        )
        fates = await asyncio.gather(*[ask(batcher, each, number=n) for n, each in enumerate(requests)])
        for number, (asked, fate) in enumerate(zip(requests, fates, strict=True)):
            broken = asked.fate != "good" and asked.n_rows > 0
            allowed = {"failed"} if broken else {"answered"}
            allowed |= {"overloaded"} if len(requests) > 1 else set()
            allowed |= {"cancelled"} if asked.cancelled else set()
            allowed |= {"late"} if asked.short else set()
            assert fate in allowed
            if fate in ("overloaded", "cancelled"):
                assert 1000 * (number + 1) not in engine.seen
        batcher.close()
        await asyncio.wait_for(batcher.wait_closed(), 10)
        assert batcher.waiting_rows == 0

    asyncio.run(main())


@pytest.mark.parametrize("inline_s", [0.0, 1.0])
def test_many_clients_get_their_own_answers(inline_s: float) -> None:
    async def main() -> None:
        batcher = Batcher(
            lambda inputs: {"y": inputs["x"] + 1},
            max_rows=16,
            max_wait_s=0.0,
            max_queue_rows=1024,
            inline_s=inline_s,
            on_batch=lambda n_requests, n_rows, seconds, waited_s: None,
        )

        async def client(number: int) -> None:
            for index in range(20):
                value = float(100 * number + index)
                inputs = {"x": np.full((1 + number % 3, 2), value)}
                while True:
                    with contextlib.suppress(OverloadedError):  # the machine is busy, and so is the queue
                        answer = await batcher.submit(
                            inputs, n_rows=1 + number % 3, deadline_s=time.monotonic() + 20
                        )
                        break
                    await asyncio.sleep(0)
                assert (answer["y"] == value + 1).all()

        await asyncio.gather(*[client(number) for number in range(32)])
        batcher.close()
        await batcher.wait_closed()

    asyncio.run(main())
