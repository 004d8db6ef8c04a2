from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.errors import ConflictError, InputError, NotFoundError, VerificationError
from serve.releases.record import from_bytes, to_bytes
from serve.releases.store import Damage, ReleaseStore
from serve.releases.table import Change, Release, Weighted, next_release

DIGEST = "a" * 64


def made(sequence: int, *, note: str = "") -> Release:
    return next_release(
        "digits",
        previous=None,
        sequence=sequence,
        change=Change(
            (Weighted(1, DIGEST, 99.9), Weighted(2, "b" * 64, 0.1)),
            "set",
            sticky="header:X-User",
            shadow=Weighted(3, "c" * 64, 5.0),
            note=note,
        ),
        salt="salt",
        made_ns=7,
    )


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "releases")


def fill(store: ReleaseStore, *, n_releases: int) -> None:
    for sequence in range(1, n_releases + 1):
        store.append(made(sequence))


def test_a_release_reads_back_as_it_was_written(store: ReleaseStore) -> None:
    store.append(made(1, note="first"))
    assert store.read("digits", sequence=1) == made(1, note="first")
    assert store.head("digits") == made(1, note="first")
    assert store.endpoints() == ["digits"]


def test_an_endpoint_without_releases_has_no_head_and_asking_creates_nothing(store: ReleaseStore) -> None:
    assert store.head("digits") is None
    assert store.last("digits") == 0
    assert store.history("digits") == ()
    assert not store.folder.exists()


def test_of_two_writers_of_one_number_one_is_told(store: ReleaseStore) -> None:
    store.append(made(1))
    store.append(made(2, note="mine"))
    with pytest.raises(ConflictError, match="release 2 of digits"):
        ReleaseStore(store.folder).append(made(2, note="theirs"))
    assert store.read("digits", sequence=2).note == "mine"


def test_a_release_whose_writing_is_repeated_by_the_disk_is_no_conflict(store: ReleaseStore) -> None:
    store.append(made(1))
    store.append(made(1))
    assert store.history("digits") == (made(1),)


def test_a_number_that_leaves_a_gap_is_refused(store: ReleaseStore) -> None:
    store.append(made(1))
    with pytest.raises(InputError, match="no release 2"):
        store.append(made(3))


@pytest.mark.parametrize("hint", [None, "1", "99", "many", ""])
def test_the_head_is_found_whatever_the_hint_says(store: ReleaseStore, hint: str | None) -> None:
    fill(store, n_releases=4)
    if hint is None:
        (store.folder / "digits" / "head").unlink()
    else:
        (store.folder / "digits" / "head").write_text(hint)
    assert ReleaseStore(store.folder).last("digits") == 4


def test_finding_the_head_of_thousands_reads_two_names(
    store: ReleaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, n_releases=3)
    folder = store.folder / "digits"
    for sequence in range(4, 3001):
        (folder / f"{sequence:08d}.json").hardlink_to(folder / "00000003.json")
    (folder / "head").write_text("2999")
    asked: list[Path] = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: (asked.append(path), exists(path))[1])
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("the folder was listed"))
    assert ReleaseStore(store.folder).last("digits") == 3000
    assert len(asked) == 3


@pytest.mark.parametrize("n_bytes", [0, 1, 40, -2])
def test_a_truncated_release_is_named_and_the_one_before_stays_the_head(
    store: ReleaseStore, n_bytes: int
) -> None:
    fill(store, n_releases=3)
    path = store.folder / "digits" / "00000003.json"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(VerificationError, match=r"00000003\.json is damaged"):
        store.read("digits", sequence=3)
    head = store.head("digits")
    assert head is not None
    assert head.sequence == 2
    assert store.last("digits") == 3
    assert isinstance(store.history("digits")[2], Damage)
    store.append(made(4))  # the number of the damaged one is not taken again
    assert store.head("digits") == made(4)


DAMAGE: dict[str, Any] = {
    "format": 2,
    "endpoint": "other",
    "sequence": 9,
    "versions": [{"number": 1, "digest": DIGEST, "percent": 50.0}],
    "segments": [[0, 99_900, 2], [99_900, 100_000, 1]],
    "sticky": "cookie",
    "salt": "",
    "shadow": {"number": 3, "digest": "c" * 64, "percent": 101},
    "follow": 3,
    "made_ns": True,
    "note": None,
    "origin": "elsewhere",
}


@pytest.mark.parametrize("key", [*DAMAGE, "unknown"])
def test_a_release_that_says_what_no_kit_writes_is_refused(key: str) -> None:
    value = json.loads(to_bytes(made(1)))
    value[key] = DAMAGE.get(key)
    with pytest.raises(VerificationError):
        from_bytes(json.dumps(value).encode(), endpoint="digits", sequence=1)
    value.pop(key)
    if key != "unknown":
        with pytest.raises(VerificationError):
            from_bytes(json.dumps(value).encode(), endpoint="digits", sequence=1)


@pytest.mark.parametrize(
    "segments", [[[0, 50, 1]], [[0, 99_900, 1], [99_901, 100_000, 2]], [[0, 100_000, 9]], [[0, 100_000]]]
)
def test_segments_that_do_not_cover_the_line_are_refused(segments: list[list[int]]) -> None:
    value = json.loads(to_bytes(made(1))) | {"segments": segments}
    with pytest.raises(VerificationError):
        from_bytes(json.dumps(value).encode(), endpoint="digits", sequence=1)


def test_a_release_that_is_not_there_is_not_found(store: ReleaseStore) -> None:
    fill(store, n_releases=2)
    with pytest.raises(NotFoundError, match="no release 7, its releases are 1 to 2"):
        store.read("digits", sequence=7)
    assert store.look("digits", sequence=3) is None


def test_a_name_that_leaves_the_folder_is_refused(store: ReleaseStore) -> None:
    for name in ("../digits", "/etc", "Digits", ".hidden"):
        with pytest.raises(InputError, match="not a model name"):
            store.head(name)
        with pytest.raises(InputError, match="not a model name"):
            store.append(replace(made(1), endpoint=name))
