"""The end of a batch run: rows that add up, how many may be refused, what the manifest says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.batch.finish import Allowance, count, manifest_of
from jobs.batch.ledger import Commit, PartFile
from jobs.batch.places import Place, open_place
from jobs.batch.plan import Plan, Shard
from jobs.batch.sources import Piece, Reading
from kit.errors import GateError, VerificationError
from kit.tables import TableFile

FILE = TableFile("/in/a.csv", "a.csv", "csv", 10, 1)


def part(name: str, rows: int) -> PartFile:
    return PartFile(name, len(name), "0" * 64, rows)


def commit(number: int, *, out: int = 8, refused: int = 2, reasons: dict[str, int] | None = None) -> Commit:
    name = f"part-{number:05d}"
    return Commit(
        shard=name,
        rows_in=out + refused,
        rows_out=out,
        rows_refused=refused,
        files=(part(f"{name}.parquet", out),) if out else (),
        quarantine=part(f"_quarantine/{name}.parquet", refused) if refused else None,
        reasons={"a value is missing": refused} if reasons is None and refused else reasons or {},
        seconds={},
        started_s=1.0,
        ended_s=2.0,
        node="a",
        market="local",
        batch_rows=64,
        labels=(),
    )


def plan(*rows: int | None) -> Plan:
    shards = tuple(
        Shard(f"part-{number:05d}", (Piece(FILE, row=7, n_rows=each),), 10)
        for number, each in enumerate(rows)
    )
    return Plan("m@1", "d" * 64, {"codec": "zstd"}, Reading("/in", ("x",), {}), (FILE,), shards)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "out"))


def written(place: Place, *commits: Commit) -> list[Commit]:
    for each in commits:
        for file in (*each.files, *filter(None, [each.quarantine])):
            place.put(file.name, b"x" * file.size_bytes)
    return list(commits)


def test_rows_that_add_up_are_counted(place: Place) -> None:
    commits = written(place, commit(0), commit(1, out=5, refused=0), commit(2, out=0, refused=3))
    counts = count(plan(10, None, 3), commits, place)
    assert (counts.rows_in, counts.rows_out, counts.rows_refused) == (18, 13, 5)


def test_a_shard_that_was_never_done_is_named(place: Place) -> None:
    with pytest.raises(GateError, match="part-00001 was never done"):
        count(plan(10, 10), written(place, commit(0)), place)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(commit(0), rows_in=11),
        replace(commit(0), rows_in=9),
        replace(commit(0), files=(part("part-00000.parquet", 7),)),
        replace(commit(0), files=(part("a", 4), part("b", 5))),
        replace(commit(0), quarantine=None),
        replace(commit(0), quarantine=part("q", 3)),
        commit(0, out=9, refused=2),
    ],
)
def test_rows_that_do_not_add_up_are_a_gate_that_was_missed(place: Place, wrong: Commit) -> None:
    with pytest.raises(GateError, match=r"the rows of part-00000 \(a\.csv from row 7\) do not add up"):
        count(plan(10), written(place, wrong), place)


def test_fewer_rows_than_planned_are_said_with_the_plan(place: Place) -> None:
    with pytest.raises(GateError, match="8 in, 8 out, 0 refused, and 10 were planned; no manifest"):
        count(plan(10), written(place, commit(0, out=8, refused=0)), place)


@pytest.mark.parametrize("name", ["part-00000.parquet", "_quarantine/part-00000.parquet"])
def test_a_file_that_is_gone_or_of_another_size_is_named(place: Place, name: str) -> None:
    commits = written(place, commit(0))
    place.put(name, b"")
    with pytest.raises(VerificationError, match=rf"{name} was committed with \d+ bytes, and has 0"):
        count(plan(10), commits, place)
    place.delete([name])
    with pytest.raises(VerificationError, match=rf"{name} was committed with \d+ bytes, and is gone"):
        count(plan(10), commits, place)


@pytest.mark.parametrize(
    "allowed, n_rows, most",
    [
        (0, 100, 0),
        ("0%", 100, 0),
        (7, 100, 7),
        ("7", None, 7),
        ("1%", 100, 1),
        ("1%", 199, 1),
        ("0.5%", 1000, 5),
        ("0.7%", 1000, 7),
        ("29%", 100, 29),
        ("57%", 100, 57),
        ("0.1%", 999, 0),
        ("33.3%", 10**12, 333 * 10**9),
        ("100%", 10, 10),
        ("100.0%", 10, 10),
    ],
)
def test_an_allowance_ends_exactly_where_it_says(allowed: int | str, n_rows: int | None, most: int) -> None:
    allowance = Allowance(allowed, n_rows=n_rows)
    allowance.require([commit(0, out=0, refused=most)], finished=True)
    with pytest.raises(GateError) as caught:
        allowance.require([commit(0, refused=most), commit(1, refused=1)], finished=True)
    assert f"max_bad_rows = {allowed} allows {most:,};" in caught.value.message


def test_any_share_of_whole_percents_is_exact() -> None:
    wrong = []
    for percent in range(101):
        try:
            Allowance(f"{percent}%", n_rows=100).require([commit(0, refused=percent)], finished=True)
        except GateError:
            wrong.append(percent)
    assert not wrong


def test_a_share_of_rows_nobody_knows_waits_for_the_end() -> None:
    many = [commit(0, out=0, refused=1000)]
    Allowance("1%", n_rows=None).require(many, finished=False)
    with pytest.raises(GateError):
        Allowance("1%", n_rows=1000).require(many, finished=True)


def test_too_many_refused_rows_are_told_with_the_commonest_reason_and_where_they_are() -> None:
    commits = [
        commit(0, refused=0),
        commit(1, refused=3, reasons={"a": 2, "b": 1}),
        commit(2, refused=4, reasons={"b": 4}),
    ]
    with pytest.raises(GateError) as caught:
        Allowance(6, n_rows=1234).require(commits, finished=False)
    assert caught.value.message == (
        "7 rows of 1,234 were refused so far, and max_bad_rows = 6 allows 6; the commonest reason: b"
    )
    assert "_quarantine/part-00001.parquet" in str(caught.value.hint)
    with pytest.raises(GateError, match="7 rows were refused, and"):
        Allowance(6, n_rows=None).require(commits, finished=True)


def test_the_manifest_names_every_file_and_counts_every_row(place: Place) -> None:
    commits = written(place, commit(0), commit(1, refused=0), commit(2, out=0, refused=1))
    value = manifest_of(plan(10, 8, 1), commits, count(plan(10, 8, 1), commits, place))
    assert (value["rows_in"], value["rows_out"], value["rows_refused"], value["n_shards"]) == (19, 16, 3, 3)
    assert [each["name"] for each in value["parts"]] == ["part-00000.parquet", "part-00001.parquet"]
    assert [each["name"] for each in value["quarantine"]] == [
        "_quarantine/part-00000.parquet",
        "_quarantine/part-00002.parquet",
    ]
    assert sum(each["rows"] for each in (*value["parts"], *value["quarantine"])) == value["rows_in"]
    assert (value["run_id"], value["digest"], value["input"]) == (plan(10, 8, 1).run_id, "d" * 64, "/in")
    assert all(set(each) == {"name", "size_bytes", "sha256", "rows"} for each in value["parts"])
