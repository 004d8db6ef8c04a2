"""How often a caller may ask: counted in memory, with a clock of the test's."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.inference.errors import OverloadedError
from kit.settings.serving import RateSettings
from serve.guards import rates
from serve.guards.callers import Caller
from serve.guards.rates import MemoryCounts, Rate, RateLimiter, open_rates, parse_rate

ALICE = Caller("alice", frozenset(("infer:*",)), "token")


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    "text, rate",
    [
        ("100/second", Rate(100, 1)),
        ("5/minute", Rate(5, 60)),
        ("1/hour", Rate(1, 3600)),
        ("9/day", Rate(9, 86_400)),
    ],
)
def test_a_rate_is_read(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


def test_without_a_limit_nothing_counts() -> None:
    assert open_rates(RateSettings(), space="test") is None


def test_a_limit_without_redis_needs_no_package_of_it() -> None:
    before = set(sys.modules)
    assert open_rates(RateSettings(requests="1/second"), space="test") is not None
    assert not {name for name in set(sys.modules) - before if name.startswith(("redis", "limits"))}


def test_one_request_more_than_the_limit_is_refused_with_the_time_to_wait() -> None:
    clock = _Clock()
    limiter = RateLimiter(MemoryCounts(Rate(3, 1), clock=clock), redis=None, space="test")
    for _ in range(3):
        assert limiter.check(ALICE, "digits") is None
    with pytest.raises(OverloadedError, match="more than 3 requests per second") as caught:
        limiter.check(ALICE, "digits")
    assert caught.value.retry_after_s == pytest.approx(1.0)
    assert "alice" not in str(caught.value)


def test_callers_kinds_and_models_are_counted_apart() -> None:
    limiter = RateLimiter(MemoryCounts(Rate(1, 60), clock=_Clock()), redis=None, space="test")
    for caller in (ALICE, ALICE._replace(subject="bob"), ALICE._replace(kind="key")):
        for model in ("digits", "other"):
            assert limiter.check(caller, model) is None
            with pytest.raises(OverloadedError):
                limiter.check(caller, model)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32), st.floats(0.01, 3.0))
def test_the_time_to_wait_is_exact(limit: int, seed: int, pace: float) -> None:
    clock, chance = _Clock(), random.Random(seed)
    counts = MemoryCounts(Rate(limit, 60), clock=clock)
    for _ in range(60):
        clock.now_s += chance.expovariate(limit / 60 / pace)
        waits_s = counts.hit("caller")
        if waits_s:
            clock.now_s += waits_s - 1e-4
            assert counts.hit("caller")  # a moment earlier it does not fit
            clock.now_s += 2e-4
            assert counts.hit("caller") == 0  # then it does


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32))
def test_no_window_holds_more_than_twice_the_limit(limit: int, seed: int) -> None:
    clock, chance = _Clock(), random.Random(seed)
    counts = MemoryCounts(Rate(limit, 1), clock=clock)
    accepted = []
    for _ in range(400):
        clock.now_s += chance.choice((0.0, 0.001, 0.1, 0.5)) * chance.random()
        if counts.hit("caller") == 0:
            accepted.append(clock.now_s)
    assert all(sum(start <= each < start + 1.0 for each in accepted) <= 2 * limit for start in accepted)


def test_a_steady_caller_at_the_limit_is_never_refused() -> None:
    clock = _Clock()
    counts = MemoryCounts(Rate(10, 1), clock=clock)
    for _ in range(200):
        assert counts.hit("caller") == 0
        clock.now_s += 0.1001


def test_a_limit_of_nothing_refuses_everything() -> None:
    counts = MemoryCounts(Rate(0, 60), clock=_Clock())
    assert counts.hit("caller") == 60


def test_the_callers_counted_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MAX_COUNTED", 10)
    counts = MemoryCounts(Rate(1, 60), clock=_Clock())
    for number in range(10):
        assert counts.hit(number) == 0
    assert counts.hit(0)  # seen just now, so number 1 is the one to forget
    assert counts.hit(10) == 0
    assert counts.hit(0)
    assert counts.hit(1) == 0
