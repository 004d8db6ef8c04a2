from __future__ import annotations

import fcntl
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.batch.places import HOLDS, LOCK, Entry, Place, open_place, spooled
from kit.errors import (
    ConflictError,
    DiskFullError,
    InputError,
    NotFoundError,
    SettingsError,
    UnavailableError,
)
from kit.files import sha256_bytes


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "out"))


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def spool(place: Place, name: str, data: bytes) -> Path:
    path = place.spool(name)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "address", ["", "~/out", "http://host/out", "s3://", "s3://bucket/../x", "s3://bucket/x?secret=1", "a\0b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="is not an output address") as caught:
        open_place(address)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("uri", ["folder", "s3://bucket/prefix"])
@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "..", "a/../b", "../a", "a//b", "a/", "./a", "a\0b", "half-\ud800"]
)
def test_a_name_that_leaves_the_place_is_refused(
    name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = open_place(uri)
    for use in (place.read, lambda name: place.put(name, b""), lambda name: place.create(name, b"")):
        with pytest.raises(InputError, match="is not the name of a file in an output"):
            use(name)
    for use in (place.spool, lambda name: place.delete([name]), lambda name: place.open(name).__enter__()):
        with pytest.raises(InputError, match="is not the name of a file in an output"):
            use(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".hidden", "country=DE/.part", ".git/config"])
def test_a_temporary_name_cannot_be_written_as_a_final_one(place: Place, name: str) -> None:
    for use in (lambda: place.put(name, b""), lambda: place.create(name, b""), lambda: place.spool(name)):
        with pytest.raises(InputError, match="is a temporary name"):
            use()


def test_nothing_is_made_before_the_first_write(place: Place, tmp_path: Path) -> None:
    assert place.read("part") is None
    assert place.entries() == []
    assert place.leftovers() == []
    place.delete(["part"])
    with pytest.raises(NotFoundError, match="has no file 'part'"), place.open("part"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_spooled_file_lies_beside_its_final_place_under_a_temporary_name(
    place: Place, tmp_path: Path
) -> None:
    path = spool(place, "country=DE/part-00000.parquet", b"rows")
    assert path.parent == tmp_path / "out" / "country=DE"
    assert place.entries() == []
    assert place.leftovers() == [f"country=DE/{path.name}"]
    assert place.spool("country=DE/part-00000.parquet") != path


def test_leftovers_of_dead_processes_are_cleared_and_nothing_else(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    place.put("part-00000.parquet", b"rows")
    spool(place, "part-00001.parquet", b"ro")
    spool(place, "country=DE/part-00001.parquet", b"ro")
    kept = [".gitignore", ".part-00000.parquet.crc", ".git/.index.0123abcd", "country=FR/.note"]
    for name in kept:  # none of them is the kit's
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    (out / ".part-00002.parquet.k3j_x0a9").touch()  # what an atomic write leaves when it is killed
    assert len(place.leftovers()) == 3
    place.clear_leftovers()
    assert place.leftovers() == []
    assert everything(out) == sorted([*kept, "part-00000.parquet"])
    assert not (out / "country=DE").exists()


def test_deleting_removes_the_folders_it_empties_but_not_the_place(place: Place, tmp_path: Path) -> None:
    place.put("a/b/one", b"")
    place.put("a/two", b"")
    place.delete(["a/b/one", "gone/three"])
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a", "two"]
    place.delete(["a/two"])
    assert list((tmp_path / "out").iterdir()) == []


def test_of_many_that_link_a_file_at_once_one_decides_what_it_holds(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("_run/commits/part", b"{}")
    spools = [spool(place, "part", bytes([number])) for number in range(16)]
    start = threading.Barrier(len(spools))

    def put(number: int) -> bool:
        start.wait()
        try:
            sha256 = sha256_bytes(bytes([number]))
            place.put_file("part", spools[number], sha256=sha256, mark="_run/commits/part")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(len(spools)) as pool:
        written = list(pool.map(put, range(len(spools))))
    assert sum(written) == 1
    assert place.read("part") == bytes([written.index(True)])
    assert everything(tmp_path / "out") == ["_run/commits/part", "part"]
    assert caplog.records == []


def test_a_file_system_without_hard_links_still_gets_whole_files(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)  # what a FAT card or some network drives answer
    place.put_file("part", spool(place, "part", b"rows"), sha256=sha256_bytes(b"rows"))
    place.put_file("part", spool(place, "part", b"rows"), sha256=sha256_bytes(b"rows"))
    assert everything(tmp_path / "out") == ["part"]


def test_the_lock_names_its_owner_and_goes_with_it(place: Place, tmp_path: Path) -> None:
    with place.held() as lost:
        assert json.loads((tmp_path / "out" / LOCK).read_bytes())["pid"] == os.getpid()
        assert not lost.is_set()
        assert place.entries() == []
        with pytest.raises(ConflictError, match=rf"held by another run \(host .*, pid {os.getpid()}, since "):
            place.held().__enter__()
    assert everything(tmp_path / "out") == []


def test_the_lock_of_one_who_cleans_the_place_is_not_anothers(place: Place, tmp_path: Path) -> None:
    with place.held():
        place.delete(HOLDS)
        with open_place(str(tmp_path / "out")).held():
            pass
        second = open_place(str(tmp_path / "out")).held()
        second.__enter__()
    with pytest.raises(ConflictError):
        place.held().__enter__()
    second.__exit__(None, None, None)
    with place.held():
        pass


def test_a_lock_whose_file_is_gone_by_the_time_it_is_locked_does_not_count(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, locks = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not locks:
            (tmp_path / "out" / LOCK).unlink()  # the earlier owner lets go between our open and our lock
        locks.append(handle)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with place.held():
        assert len(locks) == 2
        with pytest.raises(ConflictError):
            place.held().__enter__()


def test_many_drivers_at_once_hold_the_place_one_after_the_other(place: Place) -> None:
    inside: list[int] = []
    most: list[int] = []

    def hold(number: int) -> None:
        for _ in range(60):
            try:
                with place.held():
                    inside.append(number)
                    most.append(len(inside))
                    inside.remove(number)
            except ConflictError:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))
    assert max(most) == 1


def test_a_place_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    place = open_place(str(tmp_path / "out"))
    for use in (lambda: place.put("a", b""), lambda: place.spool("a"), lambda: place.held().__enter__()):
        with pytest.raises(UnavailableError, match="out") as caught:
            use()
        assert caught.value.hint


def test_what_was_spooled_is_removed_when_writing_it_fails(place: Place, tmp_path: Path) -> None:
    def write(target: Path) -> None:
        with spooled(place, "part") as path:
            path.write_bytes(b"half")
            target.write_bytes(b"more")

    with pytest.raises(UnavailableError, match="cannot be written: Is a directory"):
        write(tmp_path)
    with pytest.raises(DiskFullError, match="is full"):
        write(Path("/dev/full"))
    assert everything(tmp_path / "out") == []


def test_entries_are_sorted_by_name_through_all_folders(place: Place) -> None:
    for name in ("b/2", "a", "b/10", "b-1", "_run/plan.json"):
        place.put(name, b"12")
    assert place.entries() == [Entry(name, 2) for name in ("_run/plan.json", "a", "b-1", "b/10", "b/2")]
    assert [entry.name for entry in place.entries("b/")] == ["b/10", "b/2"]
    assert [entry.name for entry in place.entries("b")] == ["b-1", "b/10", "b/2"]
