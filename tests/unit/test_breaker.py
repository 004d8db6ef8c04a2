from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.settings.serving import BreakerSettings
from serve.breaker import Breaker

SETTINGS = BreakerSettings(failure_share=0.5, min_requests=4, window_s=10.0, open_s=5.0, probes=2)


def opened(*, at_s: float = 100.0) -> Breaker:
    breaker = Breaker(SETTINGS)
    for _ in range(4):
        breaker.failed(at_s)
    assert breaker.state == "open"
    return breaker


def test_too_few_answers_open_nothing() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(100.0)
    assert breaker.state == "closed"
    assert breaker.allow(100.0)


def test_a_share_of_failures_opens_it() -> None:
    breaker = Breaker(SETTINGS)
    breaker.succeeded(100.0)
    breaker.succeeded(100.1)
    breaker.failed(100.2)
    assert breaker.allow(100.3)
    breaker.failed(100.4)
    assert not breaker.allow(100.5)
    assert breaker.n_opened == 1


def test_answers_older_than_the_window_count_no_more() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(100.0)
    breaker.failed(110.5)
    assert breaker.state == "closed"


@pytest.mark.parametrize("now_s", [0.0, 108.9])
def test_answers_within_the_window_count(now_s: float) -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(100.0)
    breaker.failed(now_s)  # also where the clock steps back
    assert breaker.state == "open"


def test_an_open_one_says_when_to_come_back() -> None:
    breaker = opened(at_s=100.0)
    assert breaker.retry_after_s(102.0) == pytest.approx(3.0)
    assert not breaker.allow(104.9)
    assert breaker.allow(105.0)


def test_half_open_lets_only_probes_through() -> None:
    breaker = opened(at_s=100.0)
    assert [breaker.allow(105.0) for _ in range(4)] == [True, True, False, False]
    assert breaker.state == "half-open"


def test_good_probes_in_a_row_close_it_and_forget_the_past() -> None:
    breaker = opened(at_s=100.0)
    for _ in range(2):
        assert breaker.allow(105.0)
        breaker.succeeded(105.0)
    assert breaker.state == "closed"
    breaker.failed(105.1)
    assert breaker.state == "closed"


def test_one_bad_probe_opens_it_again() -> None:
    breaker = opened(at_s=100.0)
    assert breaker.allow(105.0)
    breaker.succeeded(105.0)
    assert breaker.allow(105.1)
    breaker.failed(105.2)
    assert not breaker.allow(110.1)
    assert breaker.allow(110.2)


def test_probes_that_never_answer_do_not_keep_it_shut() -> None:
    breaker = opened(at_s=100.0)
    assert breaker.allow(105.0)
    assert breaker.allow(105.0)
    assert not breaker.allow(109.9)
    assert breaker.allow(110.0)


def test_answers_from_before_it_opened_prove_nothing() -> None:
    breaker = opened(at_s=100.0)
    for _ in range(5):
        breaker.succeeded(101.0)
    assert breaker.state == "open"
    breaker.failed(104.0)
    assert breaker.retry_after_s(104.0) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 4.0)), min_size=1, max_size=80))
def test_it_opens_exactly_when_the_window_says_so(answers: list[tuple[bool, float]]) -> None:
    breaker = Breaker(SETTINGS)
    now_s, seen = 1000.0, list[tuple[int, bool]]()
    for good, pause_s in answers:
        now_s += pause_s
        bucket = int(now_s / 1.0)
        seen.append((bucket, good))
        window = [each for at, each in seen if at > bucket - 10]
        (breaker.succeeded if good else breaker.failed)(now_s)
        bad = window.count(False)
        if not good and len(window) >= 4 and bad >= 0.5 * len(window):
            assert breaker.state == "open"
            return
        assert breaker.state == "closed"
