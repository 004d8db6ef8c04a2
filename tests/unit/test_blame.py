"""A shard that kills workers is found out, and named before it kills them all."""

from __future__ import annotations

import pytest

from jobs.batch.pool import Blame
from kit.errors import UnavailableError


def everywhere(node: str) -> bool:
    return bool(node)


def test_the_shard_over_which_workers_die_is_named_with_its_rows() -> None:
    blame = Blame(most=3, place_of={"part-00001": "a.csv from row 7"}.__getitem__, alive=everywhere)
    for _ in range(2):
        blame.add("part-00001", node="n")
    with pytest.raises(UnavailableError) as caught:
        blame.add("part-00001", node="n")
    assert "workers died 3 times over part-00001 (a.csv from row 7)" in caught.value.message
    assert "resumes" in str(caught.value.hint)


def test_deaths_over_different_shards_are_not_added_up() -> None:
    blame = Blame(most=2, place_of=str, alive=everywhere)
    for number in range(10):
        blame.add(f"part-{number:05d}", node="n")
    with pytest.raises(UnavailableError, match="part-00003"):
        blame.add("part-00003", node="n")


def test_a_shard_is_suspected_after_its_first_death_and_no_other_is() -> None:
    blame = Blame(most=3, place_of=str, alive=everywhere)
    assert not blame.suspected("part-00000")
    blame.add("part-00000", node="n")
    assert blame.suspected("part-00000")
    assert not blame.suspected("part-00001")


def test_deaths_on_nodes_that_are_gone_are_forgiven() -> None:
    there = {"a", "b", "c"}
    blame = Blame(most=3, place_of=str, alive=there.__contains__)
    blame.add("part-00000", node="a")
    blame.add("part-00000", node="b")
    there.remove("a")
    blame.add("part-00000", node="c")
    with pytest.raises(UnavailableError, match="part-00000"):
        blame.add("part-00000", node="c")
