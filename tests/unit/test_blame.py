"""A shard that kills workers is found out, and named before it kills them all."""

from __future__ import annotations

import pytest

from jobs.batch.pool import Blame
from kit.errors import UnavailableError


def test_the_shard_over_which_workers_die_is_named_with_its_rows() -> None:
    blame = Blame(most=3, place_of={"part-00001": "a.csv from row 7"}.__getitem__)
    for _ in range(2):
        blame.add("part-00001")
    with pytest.raises(UnavailableError) as caught:
        blame.add("part-00001")
    assert "workers died 3 times over part-00001 (a.csv from row 7)" in caught.value.message
    assert "resumes" in str(caught.value.hint)


def test_deaths_over_different_shards_are_not_added_up() -> None:
    blame = Blame(most=2, place_of=str)
    for number in range(10):
        blame.add(f"part-{number:05d}")
    with pytest.raises(UnavailableError, match="part-00003"):
        blame.add("part-00003")


def test_a_shard_is_suspected_after_its_first_death_and_no_other_is() -> None:
    blame = Blame(most=3, place_of=str)
    assert not blame.suspected("part-00000")
    blame.add("part-00000")
    assert blame.suspected("part-00000")
    assert not blame.suspected("part-00001")
