"""The ledger of a batch run: what it holds, what is written once, what a damaged record says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.batch.ledger import (
    Commit,
    Ledger,
    PartFile,
    check_unused,
    ledgers,
    require_run,
    verify,
)
from jobs.batch.places import Place, open_place
from kit.errors import ConflictError, InputError, VerificationError
from kit.files import sha256_bytes


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "out"))


def put(place: Place, name: str, data: bytes, *, rows: int = 1) -> PartFile:
    place.put(name, data)
    return PartFile(name, len(data), sha256_bytes(data), rows)


def commit(shard: str, *files: PartFile, quarantine: PartFile | None = None) -> Commit:
    out, refused = sum(each.rows for each in files), quarantine.rows if quarantine else 0
    return Commit(
        shard=shard,
        rows_in=out + refused,
        rows_out=out,
        rows_refused=refused,
        files=files,
        quarantine=quarantine,
        reasons={"a value is missing": refused} if refused else {},
        seconds={"read": 0.1, "prepare": 0.2, "infer": 0.3, "write": 0.4},
        started_s=1.5,
        ended_s=2.5,
        node="ab" * 28,
        market="spot",
        batch_rows=64,
        labels=(1, 2),
        observed={"columns": {"x": [0, 1]}},
    )


def test_a_commit_is_read_as_it_was_written() -> None:
    part, aside = PartFile("part-00000.parquet", 5, "0" * 64, 3), PartFile("_quarantine/p", 1, "1" * 64, 1)
    for written in (commit("part-00000", part, quarantine=aside), commit("part-00000"), commit("å")):
        assert Commit.from_json(written.to_json(), name="x") == written


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'"text"'],
)
def test_a_record_that_is_no_commit_is_named(place: Place, data: bytes) -> None:
    ledger = Ledger(place)
    place.put(ledger.commit_name("part-00003"), data)
    for use in (lambda: ledger.commit_of("part-00003"), ledger.commits):
        with pytest.raises(
            VerificationError, match=r"commit record _run/commits/part-00003\.json cannot be read"
        ):
            use()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("rows_in"),
        lambda value: value.update(files=None),
        lambda value: value.update(labels=None),
        lambda value: value.update(quarantine={"name": "p"}),
        lambda value: value["files"][0].update(more=1),
        lambda value: value["files"][0].pop("sha256"),
    ],
)
def test_a_commit_that_lacks_something_is_refused(change: Change) -> None:
    value = json.loads(commit("part-00000", PartFile("part-00000.parquet", 5, "0" * 64, 3)).to_json())
    change(value)
    with pytest.raises(VerificationError, match="the commit record x cannot be read"):
        Commit.from_json(json.dumps(value).encode(), name="x")


def test_the_first_commit_of_a_shard_stands(place: Place) -> None:
    ledger = Ledger(place)
    first = commit("part-00000")
    assert ledger.commit(first) is first
    assert ledger.commit(replace(first, rows_in=7, node="other")) == first
    assert ledger.commits() == {"part-00000": first}


def test_commits_come_in_the_order_of_the_shards_and_only_one_s_own(place: Place) -> None:
    ledger, retry = Ledger(place), Ledger(place, retry=1)
    for number in (3, 0, 2, 1):
        ledger.commit(commit(f"part-{number:05d}"))
    retry.commit(commit("retry-001-part-00000"))
    place.put("_run/commits/notes.txt", b"not a record")
    assert list(ledger.commits()) == [f"part-{number:05d}" for number in range(4)]
    assert list(retry.commits()) == ["retry-001-part-00000"]
    assert Ledger(place, retry=2).commits() == {}
    assert ledger.commit_of("part-00009") is None


def test_records_of_a_run_and_of_its_retries_have_places_of_their_own(place: Place) -> None:
    run, retry = Ledger(place), Ledger(place, retry=12)
    assert (run.name("plan"), run.prefix) == ("_run/plan.json", "")
    assert run.name("report.html") == "_run/report.html"
    assert (retry.name("plan"), retry.prefix) == ("_run/retry-012/plan.json", "retry-012-")
    assert run.commit_name("s") == "_run/commits/s.json"
    assert retry.commit_name("s") == "_run/retry-012/commits/s.json"


def test_a_record_is_created_once_and_put_as_often_as_one_likes(place: Place, tmp_path: Path) -> None:
    ledger = Ledger(place)
    assert ledger.read("engine") is None
    assert ledger.create("engine", {"batch_rows": 64})
    assert not ledger.create("engine", {"batch_rows": 128})
    assert ledger.read("engine") == {"batch_rows": 64}
    assert (tmp_path / "out" / "_run" / "engine.json").is_file()
    ledger.put("report.json", b"1")
    ledger.put("report.json", b"2")
    assert (tmp_path / "out" / "_run" / "report.json").read_bytes() == b"2"


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b"\xff"])
def test_a_damaged_record_is_named_with_its_folder(place: Place, data: bytes) -> None:
    place.put("_run/manifest.json", data)
    with pytest.raises(VerificationError, match=r"out/_run/manifest\.json is damaged"):
        Ledger(place).read("manifest")


def test_the_ledgers_of_a_folder_are_the_run_and_its_retries_in_order(place: Place) -> None:
    assert list(ledgers(place)) == []
    with pytest.raises(InputError, match="out holds no batch run"):
        require_run(place)
    Ledger(place, retry=1).create("plan", {})
    assert list(ledgers(place)) == [], "a retry without its run is none"
    Ledger(place).create("plan", {})
    for number in (2, 4):
        Ledger(place, retry=number).create("plan", {})
    assert [each.retry for each in ledgers(place)] == [None, 1, 2]
    assert require_run(place).retry is None


def test_a_folder_that_holds_something_else_is_refused_and_a_held_one_is_not(
    place: Place, tmp_path: Path
) -> None:
    check_unused(place)
    with place.held():
        check_unused(place)
    (tmp_path / "out").mkdir(exist_ok=True)
    check_unused(place)
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(ConflictError, match=r"is not empty \(it holds thesis\.txt\)"):
        check_unused(place)


def test_verify_finds_nothing_wrong_with_what_was_committed(place: Place) -> None:
    commits = [
        commit("part-00000", put(place, "part-00000.parquet", b"abc", rows=3)),
        commit("part-00001", quarantine=put(place, "_quarantine/part-00001.parquet", b"de", rows=2)),
        commit("part-00002"),
    ]
    checked = verify(Ledger(place), commits)
    assert (checked.n_files, checked.n_bytes, checked.rows, checked.wrong) == (2, 5, 5, ())


def test_verify_names_each_file_that_is_not_as_it_was_committed(place: Place, tmp_path: Path) -> None:
    names = ["flipped", "gone", "grown", "cut", "sound"]
    files = [put(place, f"{name}.parquet", b"x" * (3 << 20), rows=10) for name in names]
    folder = tmp_path / "out"
    data = bytearray((folder / "flipped.parquet").read_bytes())
    data[2 << 20] ^= 1
    (folder / "flipped.parquet").write_bytes(data)
    (folder / "gone.parquet").unlink()
    with (folder / "grown.parquet").open("ab") as stream:
        stream.write(b"x")
    (folder / "cut.parquet").write_bytes(b"x")
    checked = verify(Ledger(place), [commit("part-00000", *files)])
    assert [each.partition(" ")[0] for each in checked.wrong] == [f"{name}.parquet" for name in names[:4]]
    assert "has the sha256" in checked.wrong[0]
    assert checked.wrong[1:] == (
        "gone.parquet is missing",
        "grown.parquet has 3,145,729 bytes, and 3,145,728 were committed",
        "cut.parquet has 1 bytes, and 3,145,728 were committed",
    )
    assert (checked.n_files, checked.rows) == (5, 10)
