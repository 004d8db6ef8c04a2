from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import ConflictError, InputError
from serve.releases.segments import UNITS, Segment, covers, lay_out, share_out, shares_of
from serve.releases.table import (
    Change,
    Release,
    Weighted,
    check_shares,
    next_release,
    rolled_back,
    target_of_rollback,
)

DIGESTS = {number: f"{number:064x}" for number in range(1, 10)}
USERS = [f"user-{index}".encode() for index in range(4000)]


def after(previous: Release | None, *, sticky: str | None = None, **percents: float) -> Release:
    """Make the release that gives ``v3=10`` and so on."""
    versions = tuple(Weighted(int(name[1:]), DIGESTS[int(name[1:])], each) for name, each in percents.items())
    return next_release(
        "digits",
        previous=previous,
        sequence=previous.sequence + 1 if previous else 1,
        change=Change(versions, "set", sticky=sticky),
        salt="salt",
        made_ns=1,
    )


def placed(release: Release) -> dict[bytes, int]:
    return {user: release.choose(user).number for user in USERS}


@st.composite
def shares(draw: st.DrawFn) -> dict[int, int]:
    owners = draw(st.permutations(range(1, 7)))[: draw(st.integers(1, 6))]
    cuts = sorted(draw(st.lists(st.integers(0, UNITS), min_size=len(owners) - 1, max_size=len(owners) - 1)))
    bounds = [0, *cuts, UNITS]
    return {owner: end - start for owner, start, end in zip(owners, bounds, bounds[1:], strict=False)}


def kept(before: tuple[Segment, ...], now: tuple[Segment, ...], *, owner: int) -> int:
    """Count the units an owner has both before and after."""
    mine = [(each.start, each.end) for each in before if each.owner == owner]
    still = [(each.start, each.end) for each in now if each.owner == owner]
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in mine for b in still)


@settings(max_examples=60, deadline=None)
@given(st.lists(shares(), min_size=2, max_size=12))
def test_a_change_of_shares_moves_exactly_what_it_must(changes: list[dict[int, int]]) -> None:
    segments = lay_out(changes[0])
    for wanted in changes[1:]:
        now = share_out(segments, wanted)
        assert covers(now)
        assert shares_of(now) == {owner: units for owner, units in wanted.items() if units}
        for owner, units in shares_of(segments).items():
            assert kept(segments, now, owner=owner) == min(units, wanted.get(owner, 0))
        segments = now


def test_segments_do_not_crumble_over_many_changes() -> None:
    rng = random.Random(1)
    for n_owners in (2, 3, 8):
        segments = lay_out({0: UNITS})
        for _ in range(200):
            cuts = sorted(rng.randint(0, UNITS) for _ in range(n_owners - 1))
            bounds = [0, *cuts, UNITS]
            owners = rng.sample(range(n_owners), n_owners)
            segments = share_out(
                segments, {owner: bounds[i + 1] - bounds[i] for i, owner in enumerate(owners)}
            )
            assert len(segments) <= 3 * n_owners


def test_raising_a_share_moves_nobody_who_has_the_version() -> None:
    release = after(None, v1=100)
    for percent in (0.1, 1, 10, 33.333, 50, 100):
        raised = after(release, v2=percent, v1=100 - percent)
        before, now = placed(release), placed(raised)
        assert all(now[user] == 2 for user in USERS if before[user] == 2)
        release = raised


def test_lowering_a_share_and_raising_it_again_brings_the_same_users_back() -> None:
    first = after(after(None, v1=100), v1=50, v2=50)
    lowered = after(first, v1=90, v2=10)
    assert {user for user, number in placed(lowered).items() if number == 2} <= {
        user for user, number in placed(first).items() if number == 2
    }
    assert placed(after(lowered, v1=50, v2=50)) == placed(first)


def test_a_version_that_keeps_its_share_keeps_its_users() -> None:
    release = after(None, v1=60, v2=30, v3=10)
    now = placed(after(release, v1=20, v2=30, v4=50))
    assert all(now[user] == 2 for user, number in placed(release).items() if number == 2)


@pytest.mark.parametrize("percent", [0.1, 10.0])
@pytest.mark.parametrize("sticky", [True, False])
def test_shares_are_within_chance(percent: float, sticky: bool) -> None:
    release = after(after(None, v1=100), v2=percent, v1=100 - percent)
    n, share = 100_000, percent / 100
    random.seed(7)
    hits = sum(release.choose(b"%d" % i if sticky else None).number == 2 for i in range(n))
    # 4.4 standard deviations: one in a hundred thousand honest splits would miss it, ours has a fixed seed.
    assert abs(hits - n * share) < 4.4 * math.sqrt(n * share * (1 - share))


def test_neighbouring_keys_fall_independently() -> None:
    release = after(None, v1=50, v2=50)
    sides = [release.choose(b"user-%d" % i).number for i in range(20_000)]
    alike = sum(a == b for a, b in itertools.pairwise(sides))
    assert abs(alike - 10_000) < 4.4 * math.sqrt(20_000 * 0.25)


def test_two_endpoints_split_the_same_users_differently() -> None:
    one = after(None, v1=50, v2=50)
    other = replace(one, salt="another")
    here, there = placed(one), placed(other)
    alike = sum(here[user] == there[user] for user in USERS)
    assert abs(alike - len(USERS) / 2) < 4.4 * math.sqrt(len(USERS) * 0.25)


def test_a_version_without_a_share_is_never_chosen() -> None:
    release = after(None, v1=0, v2=100)
    assert {release.choose(None).number for _ in range(100)} == {2}
    assert [each.number for each in release.needed()] == [2]


def test_a_rollback_restores_every_user_and_follows_no_alias() -> None:
    first = replace(after(None, v1=70, v2=30), follow="champion")
    second = after(first, v1=10, v3=90)
    third = after(second, v2=55, v3=45)
    back = rolled_back(third, target=first, sequence=4, made_ns=9, note="errors")
    assert placed(back) == placed(first)
    assert (back.sequence, back.origin, back.note, back.follow) == (4, "rollback 1", "errors", None)


def test_rolling_back_again_goes_further_back() -> None:
    releases = {1: after(None, v1=100)}
    for sequence, number in ((2, 2), (3, 3)):
        releases[sequence] = after(releases[sequence - 1], **{f"v{number}": 100.0})
    targets = []
    for sequence in (4, 5):
        target = target_of_rollback(releases[sequence - 1], read=releases.__getitem__)
        targets.append(target)
        releases[sequence] = rolled_back(
            releases[sequence - 1], target=releases[target], sequence=sequence, made_ns=1, note=""
        )
    assert targets == [2, 1]
    with pytest.raises(ConflictError, match="cannot go back"):
        target_of_rollback(releases[5], read=releases.__getitem__)


def test_a_number_that_stands_for_other_files_is_another_version() -> None:
    release = after(None, v1=50, v2=50)
    change = Change((Weighted(1, "f" * 64, 50.0), Weighted(2, DIGESTS[2], 50.0)), "set")
    other = next_release("digits", previous=release, sequence=2, change=change, salt="x", made_ns=1)
    assert {each.digest for each in other.versions} == {"f" * 64, DIGESTS[2]}
    assert [user for user, number in placed(other).items() if number == 2] == [
        user for user, number in placed(release).items() if number == 2
    ]


@pytest.mark.parametrize(
    "percents, said",
    [
        ((50.0, 49.0), "add up to 99 %, not 100"),
        ((60.0, 60.0), "add up to 120 %, not 100"),
        ((99.9995, 0.0005), "cannot have 99.9995 %"),
        ((-1.0, 101.0), "cannot have -1 %"),
        ((math.nan, 100.0), "cannot have nan %"),
    ],
)
def test_shares_that_cannot_be_had_are_refused(percents: tuple[float, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_shares([Weighted(index, DIGESTS[index], each) for index, each in enumerate(percents, start=1)])


def test_a_version_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="version 3 is named twice"):
        check_shares([Weighted(3, DIGESTS[3], 50.0), Weighted(3, DIGESTS[3], 50.0)])


@pytest.mark.parametrize(
    "sticky, key",
    [
        ("none", None),
        ("subject", b"ann"),
        ("header:X-User", b"bob"),
        ("header:X-Other", None),
        ("header:X-Empty", None),
        ("field:user_id", b"7"),
        ("field:absent", None),
    ],
)
def test_what_a_user_is_kept_by_comes_from_where_the_release_says(sticky: str, key: bytes | None) -> None:
    release = after(None, sticky=sticky, v1=50, v2=50)
    headers = [(b"x-user", b"bob"), (b"x-user", b"second"), (b"x-empty", b"")]
    fields = {"user_id": "7"}
    assert release.key_of(subject="ann", headers=headers, field=fields.get) == key


def test_nobody_in_particular_is_no_subject() -> None:
    release = after(None, sticky="subject", v1=50, v2=50)
    assert release.key_of(subject=None, headers=[], field=lambda name: None) is None


def test_a_shadow_gets_its_share() -> None:
    release = replace(after(None, v1=100), shadow=Weighted(2, DIGESTS[2], 25.0))
    random.seed(3)
    hits = sum(release.shadows() for _ in range(20_000))
    assert abs(hits - 5000) < 4.4 * math.sqrt(20_000 * 0.25 * 0.75)
    assert [each.number for each in release.needed()] == [1, 2]
    assert not after(None, v1=100).shadows()
