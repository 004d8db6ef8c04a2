"""Rules of a rollout: who is in a wave, who counts as failed, when it goes on and when it stops."""

from __future__ import annotations

import dataclasses
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.fleet import plan, rollout
from edge.fleet.plan import Plan
from edge.fleet.rollout import (
    ABORTED,
    CONFIRMED,
    DONE,
    FAILED,
    PAUSED,
    RUNNING,
    SILENT,
    STOPPED,
    WAITING,
    Rollout,
    Seen,
    step,
)
from kit.errors import ConflictError, InputError

NEW, OLD = "n" * 64, "a" * 64
PLAN = Plan(plan.parse_waves("1,10%,50%,100%"), Fraction(95, 100), Fraction(2, 100), silence_s=1800.0)


def started(n_devices: int, *, told: Plan = PLAN) -> Rollout:
    return Rollout("r", NEW, told, plan.in_order((f"d{each}" for each in range(n_devices)), salt=NEW))


def seen_of(made: Rollout, *, heard_s: float = 0.0, **per_device: Seen) -> dict[str, Seen]:
    return {device: per_device.get(device, Seen(heard_s, OLD)) for device in made.order}


def confirm(made: Rollout, seen: dict[str, Seen], *, now_s: float) -> dict[str, Seen]:
    """Let every released device run the bundle."""
    return {
        device: Seen(now_s, NEW) if device in made.members else dataclasses.replace(each, heard_s=now_s)
        for device, each in seen.items()
    }


@pytest.mark.parametrize(
    "text,sizes",
    [("1,10%,50%,100%", [1, 100, 500, 1000]), ("100%", [1000]), ("5, 20, 100%", [5, 20, 1000])],
)
def test_waves_are_numbers_and_shares(text: str, sizes: list[int]) -> None:
    waves = plan.parse_waves(text)
    assert [wave.bound(1000) for wave in waves] == sizes
    assert ",".join(map(str, waves)) == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    ["", "0", "1", "50%", "0%,100%", "101%", "10%,5%,100%", "5,5,100%", "1,,100%", "-1,100%", "x,100%"],
)
def test_waves_that_leave_somebody_out_or_shrink_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        plan.parse_waves(text)
    assert caught.value.hint


def test_a_duration_and_a_share_are_read_or_refused() -> None:
    assert [plan.parse_duration_s(each) for each in ("90s", "30m", "1.5h", "2d")] == [
        90,
        1800,
        5400,
        172_800,
    ]
    assert plan.parse_share("99.5%") == Fraction(199, 200)
    for text in ("30", "m", "-1m", "1w", ""):
        with pytest.raises(InputError):
            plan.parse_duration_s(text)
    for text in ("95", "101%", "-1%", ""):
        with pytest.raises(InputError):
            plan.parse_share(text)


@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=60), st.integers(0, 3))
def test_raising_a_wave_never_moves_a_device(devices: set[str], wave: int) -> None:
    made = Rollout("r", NEW, PLAN, plan.in_order(devices, salt=NEW))
    assert made.order == plan.in_order(sorted(devices), salt=NEW)
    there = rollout.reached(made, wave=wave)
    assert len(there) >= 1
    for larger in range(wave, 4):
        assert rollout.reached(made, wave=larger)[: len(there)] == there
    assert set(rollout.reached(made, wave=3)) == devices
    removed = there[0]
    without = rollout.reached(made, wave=wave, gone={removed})
    assert set(there) - {removed} <= set(without)  # a removal puts nobody out of a wave


def test_a_rollout_that_every_device_confirms_ends_done() -> None:
    made = started(1000)
    seen = seen_of(made)
    sizes = []
    for now_s in range(20):
        made, _ = step(made, seen, now_s=now_s)
        sizes.append(len(made.members))
        seen = confirm(made, seen, now_s=now_s)
    assert made.status == DONE
    assert [size for size, before in zip(sizes, [0, *sizes], strict=False) if size != before] == [
        1,
        100,
        500,
        1000,
    ]
    assert rollout.count(made.members) == rollout.Count(1000, 1000, 0, 0)


def test_a_wave_waits_for_its_share_and_not_for_the_rest() -> None:
    made = started(
        10, told=dataclasses.replace(PLAN, waves=plan.parse_waves("100%"), success=Fraction(8, 10))
    )
    made, _ = step(made, seen_of(made), now_s=0)
    some = dict.fromkeys(made.order[:7], Seen(1, NEW))
    assert step(made, seen_of(made, **some), now_s=1)[0].status == RUNNING
    some[made.order[7]] = Seen(1, NEW)
    assert step(made, seen_of(made, **some), now_s=1)[0].status == DONE


@pytest.mark.parametrize(
    "bad,reason",
    [
        (Seen(5, OLD, rejected={NEW: "golden rows"}), "golden rows"),
        (Seen(5, NEW, answers=100, errors=3), "3 of its 100"),
        (Seen(5, NEW, phase="trial", rejected={NEW: "crashed"}), "crashed"),
    ],
)
def test_a_failing_first_device_stops_the_rollout(bad: Seen, reason: str) -> None:
    made, _ = step(started(100), seen_of(started(100)), now_s=0)
    first = made.order[0]
    made, happened = step(made, seen_of(made, **{first: bad}), now_s=5)
    assert (made.status, made.members[first].outcome) == (STOPPED, FAILED)
    assert reason in made.members[first].reason
    assert [each.what for each in happened] == ["failed", "stopped"]
    assert len(made.members) == 1  # nobody else was let in


def test_a_few_errors_say_nothing() -> None:
    made, _ = step(started(1), seen_of(started(1)), now_s=0)
    made, _ = step(made, seen_of(made, d0=Seen(1, NEW, answers=10, errors=5)), now_s=1)
    assert made.members["d0"].outcome == CONFIRMED


def test_few_errors_of_each_of_many_devices_stop_a_wave() -> None:
    told = dataclasses.replace(PLAN, waves=plan.parse_waves("100%"), soak_s=600.0)
    made, _ = step(started(20, told=told), seen_of(started(20)), now_s=0)
    seen = dict.fromkeys(made.order, Seen(1, NEW, answers=10, errors=1))
    made, _ = step(made, seen, now_s=1)
    assert made.status == STOPPED
    assert "20 of 200 answers" in made.reason


def test_a_silent_device_counts_as_failed_after_the_deadline_and_not_before() -> None:
    made, _ = step(started(1), seen_of(started(1)), now_s=100)
    made, _ = step(made, seen_of(made), now_s=1900)
    assert made.members["d0"].outcome == WAITING
    made, _ = step(made, seen_of(made), now_s=1900.1)
    assert (made.status, made.members["d0"].outcome) == (STOPPED, SILENT)


def test_a_device_that_asks_and_never_confirms_does_not_hold_the_rollout_up() -> None:
    made, _ = step(started(1), seen_of(started(1)), now_s=0)
    made, _ = step(made, seen_of(made, heard_s=1801), now_s=1801)
    assert made.status == STOPPED
    assert "did not confirm it in time" in made.members["d0"].reason


def test_a_device_that_falls_silent_after_it_confirmed_counts_as_failed() -> None:
    told = dataclasses.replace(PLAN, waves=plan.parse_waves("100%"), soak_s=3600.0)
    made, _ = step(started(1, told=told), seen_of(started(1)), now_s=0)
    made, _ = step(made, {"d0": Seen(10, NEW)}, now_s=10)
    assert made.members["d0"].outcome == CONFIRMED
    made, _ = step(made, {"d0": Seen(10, NEW)}, now_s=1811)
    assert made.status == STOPPED


def test_a_device_whose_process_starts_anew_has_to_show_again_that_it_runs() -> None:
    told = dataclasses.replace(PLAN, waves=plan.parse_waves("100%"), soak_s=1e6)
    made, _ = step(started(1, told=told), seen_of(started(1)), now_s=0)
    made, _ = step(made, {"d0": Seen(10, NEW)}, now_s=10)
    made, _ = step(made, {"d0": Seen(20, None)}, now_s=20)
    assert (made.members["d0"].outcome, made.soaking_s) == (WAITING, None)
    again, _ = step(made, {"d0": Seen(30, NEW)}, now_s=30)
    assert again.members["d0"].outcome == CONFIRMED
    for now_s in range(20, 2000, 60):  # it goes on asking, and never answers again
        made, _ = step(made, {"d0": Seen(now_s, None)}, now_s=now_s)
    assert (made.status, made.members["d0"].outcome) == (STOPPED, SILENT)


def test_a_soak_starts_again_when_the_share_is_lost() -> None:
    told = dataclasses.replace(
        PLAN, waves=plan.parse_waves("100%"), success=Fraction(1, 2), soak_s=60.0, silence_s=1e6
    )
    made, _ = step(started(2, told=told), seen_of(started(2)), now_s=0)
    one = made.order[0]
    made, _ = step(made, seen_of(made, **{one: Seen(0, NEW)}), now_s=10)
    assert made.soaking_s == 10
    made, _ = step(made, seen_of(made, **{one: Seen(0, OLD)}), now_s=50)  # it fell back
    assert (made.status, made.soaking_s) == (RUNNING, None)
    other = {made.order[1]: Seen(0, NEW), one: Seen(0, NEW)}
    made, _ = step(made, other, now_s=60)
    assert made.members[one].outcome == FAILED  # once is enough
    assert step(made, other, now_s=119)[0].status == RUNNING
    assert step(made, other, now_s=120)[0].status == DONE


def test_a_device_that_comes_and_goes_counts_once() -> None:
    told = dataclasses.replace(PLAN, waves=plan.parse_waves("100%"), success=Fraction(1, 2))
    made, _ = step(started(4, told=told), seen_of(started(4)), now_s=0)
    failing = made.order[0]
    for now_s in range(10):
        runs = Seen(now_s, NEW) if now_s % 2 else Seen(now_s, OLD, rejected={NEW: "golden rows"})
        made, _ = step(made, seen_of(made, **{failing: runs}), now_s=now_s)
        assert rollout.count(made.members).failed == 1
    assert made.status == RUNNING


def test_a_silent_device_that_confirms_late_is_counted_as_confirmed() -> None:
    told = dataclasses.replace(PLAN, waves=plan.parse_waves("100%"), success=Fraction(1, 2))
    made, _ = step(started(4, told=told), seen_of(started(4)), now_s=0)
    late = made.order[0]
    soon = {device: Seen(2000, NEW) for device in made.order[1:2]}
    waiting = {device: Seen(2000, OLD) for device in made.order[2:]}
    made, _ = step(made, {**soon, **waiting, late: Seen(0, OLD)}, now_s=100)
    assert rollout.count(made.members).silent == 0
    held = dataclasses.replace(made, plan=dataclasses.replace(told, success=Fraction(1, 4), soak_s=1e6))
    held, _ = step(held, {**soon, **waiting, late: Seen(0, OLD)}, now_s=2000)
    assert held.members[late].outcome == SILENT
    held, _ = step(held, {**soon, **waiting, late: Seen(2100, NEW)}, now_s=2100)
    assert held.members[late].outcome == CONFIRMED


def test_a_pause_lets_nobody_begin_and_counts_for_no_deadline() -> None:
    made, _ = step(started(100), seen_of(started(100)), now_s=0)
    held = rollout.pause(made, now_s=100)
    assert step(held, confirm(held, seen_of(held), now_s=5000), now_s=5000) == (held, ())
    going = rollout.resume(held, now_s=100_000)
    assert step(going, seen_of(going), now_s=101_700)[0].status == RUNNING
    assert step(going, seen_of(going), now_s=101_701)[0].status == STOPPED
    with pytest.raises(ConflictError):
        rollout.pause(held, now_s=1)
    with pytest.raises(ConflictError):
        rollout.resume(made, now_s=1)
    assert rollout.abort(held).status == ABORTED
    with pytest.raises(ConflictError):
        rollout.abort(rollout.abort(held))
    assert held.status == PAUSED


def test_a_removed_device_counts_for_nothing_and_another_stands_in() -> None:
    made, _ = step(started(10), seen_of(started(10)), now_s=0)
    first = made.order[0]
    seen = {device: each for device, each in seen_of(made).items() if device != first}
    made, _ = step(made, seen, now_s=1)
    assert list(made.members) == [made.order[1]]
    made, _ = step(made, {}, now_s=2)
    assert made.status == STOPPED  # nobody is left to confirm anything


FATES = st.sampled_from(["good", "reject", "errors", "silent", "flap"])


@given(
    st.lists(FATES, min_size=1, max_size=40),
    st.sampled_from(["1,10%,50%,100%", "100%", "2,5,100%", "50%,100%"]),
    st.integers(50, 100),
    st.integers(0, 2**32),
)
def test_any_fleet_brings_a_rollout_to_its_right_end(
    fates: list[str], waves: str, success: int, seed: int
) -> None:
    """It ends: done with its share confirmed, stopped with it out of reach; counts never overlap."""
    told = Plan(plan.parse_waves(waves), Fraction(success, 100), Fraction(2, 100), silence_s=10.0)
    made = started(len(fates), told=told)
    fate = {f"d{each}": what for each, what in enumerate(fates)}
    chance = random.Random(seed)
    seen = seen_of(made)
    failed_once: set[str] = set()
    reached_before: set[str] = set()
    for now_s in range(200):
        made, _ = step(made, seen, now_s=now_s)
        assert reached_before <= set(made.members)
        reached_before = set(made.members)
        failed = {device for device, each in made.members.items() if each.outcome == FAILED}
        assert failed_once <= failed
        failed_once = failed
        counted = rollout.count(made.members)
        assert min(counted.waiting, counted.confirmed, counted.failed, counted.silent) >= 0
        if not made.live:
            break
        for device in made.members:
            seen[device] = _next(fate[device], now_s, chance, before=seen[device])
        for device in set(made.order) - set(made.members):
            seen[device] = Seen(now_s, OLD)
    assert not made.live
    good = sum(fate[device] in ("good", "flap") for device in made.order)
    if made.status == DONE:
        assert counted.confirmed >= told.success * len(fates)
        assert good >= told.success * len(fates)
    else:
        there = rollout.reached(made, wave=made.wave)
        bad = sum(fate[device] not in ("good", "flap") for device in there)
        assert bad > len(there) - told.success * len(there)


def _next(fate: str, now_s: int, chance: random.Random, *, before: Seen) -> Seen:
    if fate == "silent":
        return before
    if fate == "reject":
        return Seen(now_s, OLD, rejected={NEW: "golden rows"})
    if fate == "errors":
        return Seen(now_s, NEW, answers=100, errors=50)
    if fate == "flap" and before.digest != NEW and chance.random() < 0.3:
        return before  # away for a while, shorter than the deadline
    return Seen(now_s, NEW)
