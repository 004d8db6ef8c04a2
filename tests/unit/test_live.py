from __future__ import annotations

import logging
import os
import pickle
import pty
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from jobs.batch.ledger import Commit
from jobs.batch.live import Extent, Live


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, whatever an earlier test has set."""
    logger = logging.getLogger("kit")
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [], True
    caplog.set_level(logging.INFO, logger="kit")
    yield caplog
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def commit(rows_in: int = 1000, *, rows_refused: int = 0) -> Commit:
    return Commit(
        shard="part-00000",
        rows_in=rows_in,
        rows_out=rows_in - rows_refused,
        rows_refused=rows_refused,
        files=(),
        quarantine=None,
        reasons={},
        seconds={},
        started_s=0.0,
        ended_s=1.0,
        node="a",
        market="spot",
        batch_rows=64,
        labels=(),
    )


def run(live: Live, clock: Clock, *, n_shards: int, each_s: float, n_bytes: int = 0) -> None:
    for _ in range(n_shards):
        clock.now_s += each_s
        live.done(commit(), n_bytes=n_bytes)


def test_the_first_shard_is_said_and_then_every_tenth_part(
    clock: Clock, said: pytest.LogCaptureFixture
) -> None:
    with Live(Extent(100, rows=100_000), clock=clock) as live:
        run(live, clock, n_shards=100, each_s=0.01)
    assert [line.split(" of ")[0] for line in said.messages] == [
        str(n) for n in (1, *range(11, 100, 10), 100)
    ]


def test_every_ten_seconds_something_is_said_even_when_nothing_was_done(
    clock: Clock, said: pytest.LogCaptureFixture
) -> None:
    with Live(Extent(1000, rows=None), clock=clock) as live:
        for _ in range(12):
            clock.now_s += 1
            live.pool({"spot": 2}, actors=4)
        assert said.messages == ["0 of 1,000 shards, 0 rows; nothing done yet; 4 actors on nodes: 2 spot"]


def test_a_line_says_rows_pace_what_is_left_and_who_works(
    clock: Clock, said: pytest.LogCaptureFixture
) -> None:
    with Live(Extent(4, rows=4000), clock=clock) as live:
        live.pool({"on-demand": 1, "spot": 2}, actors=6, restarts=1)
        clock.now_s += 2
        live.done(commit(rows_refused=3))
    assert said.messages == [
        "1 of 4 shards, 1,000 of 4,000 rows, 3 of them refused; 500 rows/s now, 500 overall, 0:06 left; "
        "6 actors on nodes: 1 on-demand, 2 spot, 1 replaced"
    ]


def test_the_pace_of_late_is_told_from_the_overall_one(clock: Clock) -> None:
    live = Live(Extent(200, rows=200_000), clock=clock)
    run(live, clock, n_shards=50, each_s=2)
    run(live, clock, n_shards=100, each_s=0.5)
    recent, overall = live.paces
    assert (recent, overall) == (pytest.approx(2000), pytest.approx(1000))
    assert live.left_s == pytest.approx(25)


def test_where_rows_are_unknown_bytes_tell_how_far_it_is(clock: Clock) -> None:
    live = Live(Extent(4, n_bytes=1000), clock=clock)
    run(live, clock, n_shards=1, each_s=1, n_bytes=700)
    assert (live.share, live.left_s) == (0.7, pytest.approx(3 / 7))


def test_where_nothing_is_known_shards_tell_how_far_it_is(clock: Clock) -> None:
    live = Live(Extent(4), clock=clock)
    assert live.left_s is None
    run(live, clock, n_shards=1, each_s=1)
    assert live.left_s == pytest.approx(3)


def test_a_resumed_run_counts_what_was_done_and_estimates_by_what_it_does(
    clock: Clock, said: pytest.LogCaptureFixture
) -> None:
    with Live(Extent(4, rows=4000), resumed=Extent(2, rows=2000), clock=clock) as live:
        run(live, clock, n_shards=2, each_s=1)
    assert said.messages[0].startswith("3 of 4 shards, 3,000 of 4,000 rows; 1,000 rows/s now")
    assert "0:01 left" in said.messages[0]
    assert "left" not in said.messages[1]


def test_a_copy_that_travels_has_no_terminal(clock: Clock) -> None:
    live = Live(Extent(4), clock=clock)
    live.live, live.streams = sys.stderr, [(logging.StreamHandler(), sys.stderr)]
    copy = pickle.loads(pickle.dumps(live))  # noqa: S301 - made in the line above
    assert (copy.live, copy.streams, copy.total) == (None, [], live.total)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Make standard error a terminal when first called; then give what it shows."""
    other, end = pty.openpty()
    os.set_blocking(other, False)
    stream = os.fdopen(end, "w", buffering=1)

    def shown() -> str:
        if sys.stderr is not stream:  # in the test's own time: pytest puts its own there before it
            monkeypatch.setattr(sys, "stderr", stream)
            monkeypatch.setenv("TERM", "xterm")
            monkeypatch.setenv("COLUMNS", "100")
            return ""
        stream.flush()
        said = b""
        while True:
            try:
                said += os.read(other, 1 << 16)
            except BlockingIOError:
                return said.decode()

    yield shown
    stream.close()
    os.close(other)


def terminal_of(stream: TextIO, terminal: Callable[[], str]) -> str:
    """Read the terminal while the display stands in for standard error."""
    aside, sys.stderr = sys.stderr, stream
    try:
        return terminal()
    finally:
        sys.stderr = aside


def test_on_a_terminal_log_lines_stand_above_the_display(terminal: Callable[[], str], clock: Clock) -> None:
    terminal()
    logger, stream = logging.getLogger("kit"), sys.stderr
    handler = logging.StreamHandler(stream)
    logger.handlers[:] = [handler]
    with Live(Extent(2, rows=2000), clock=clock) as live:
        before = terminal_of(stream, terminal)
        live.note("node abc is about to go")
        noted = terminal_of(stream, terminal)
        clock.now_s += 1
        live.done(commit())
        after = terminal_of(stream, terminal)
    assert handler.stream is stream
    assert "0 of 2 shards" in before
    # The display is wiped, the line stands in its place, and the display is drawn again below.
    assert noted.index("\x1b[2K") < noted.index("node abc is about to go") < noted.index("0 of 2 shards")
    assert "1 of 2 shards, 1,000 of 2,000 rows" in after


def test_a_quiet_run_draws_nothing(terminal: Callable[[], str], clock: Clock) -> None:
    terminal()
    logging.getLogger("kit").setLevel(logging.WARNING)
    with Live(Extent(2), clock=clock) as live:
        clock.now_s += 60
        live.done(commit())
    assert terminal() == ""


def test_where_there_is_no_terminal_nothing_is_drawn(clock: Clock) -> None:
    with Live(Extent(2), clock=clock) as live:
        assert live.live is None
