"""Rules of deltas: the archive that was named comes out to the byte, or nothing does."""

from __future__ import annotations

import bz2
import hashlib
import random
import sys
import tracemalloc
from pathlib import Path

import pytest

from kit import delta
from kit.errors import MissingDependencyError, VerificationError

SIZE = 60_000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of which the second is the first with changes at many places, an insertion and a cut."""
    chance = random.Random(7)
    old = bytearray(chance.randbytes(SIZE))
    new = bytearray(old)
    for _ in range(200):
        new[chance.randrange(SIZE)] ^= 3
    new[20_000:20_000] = chance.randbytes(500)
    del new[40_000:41_000]
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    return tmp_path / "old", tmp_path / "new"


def rebuilt(old: Path, patch: Path, new: Path) -> bytes:
    out = patch.with_name("out")
    data = new.read_bytes()
    delta.apply(old, patch, out, size_bytes=len(data), sha256=sha(data))
    return out.read_bytes()


def test_a_delta_makes_the_new_archive_and_is_smaller(pair, tmp_path: Path) -> None:
    old, new = pair
    n_bytes = delta.make(old, new, tmp_path / "d")
    assert n_bytes == (tmp_path / "d").stat().st_size < SIZE / 10
    assert rebuilt(old, tmp_path / "d", new) == new.read_bytes()
    assert delta.make(old, new, tmp_path / "e") == n_bytes
    assert (tmp_path / "d").read_bytes() == (tmp_path / "e").read_bytes()


def test_bundles_of_two_releases_are_rebuilt(bundles, tmp_path: Path) -> None:
    first, second = bundles.make(), bundles.make(release=2, golden_shift=0.01)
    n_bytes = delta.make(first.path, second.path, tmp_path / "d")
    assert n_bytes is not None
    assert n_bytes < second.path.stat().st_size
    assert rebuilt(first.path, tmp_path / "d", second.path) == second.path.read_bytes()


def test_a_delta_that_would_not_be_smaller_is_not_written(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(random.Random(name).randbytes(5000))
    assert delta.make(tmp_path / "old", tmp_path / "new", tmp_path / "d") is None
    assert not (tmp_path / "d").exists()


def test_without_bsdiff4_the_line_that_installs_it_is_named(pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bsdiff4", None)
    with pytest.raises(MissingDependencyError) as caught:
        delta.make(*pair, tmp_path / "d")
    assert "[fleet]" in str(caught.value.hint)


def test_no_flipped_byte_of_a_delta_makes_another_archive(pair, tmp_path: Path) -> None:
    old, new = pair
    delta.make(old, new, tmp_path / "d")
    data = (tmp_path / "d").read_bytes()
    chance = random.Random(3)
    places = {*range(0, 110, 3), *(chance.randrange(len(data)) for _ in range(60)), len(data) - 1}
    for place in sorted(places):
        (tmp_path / "bad").write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        try:
            made = rebuilt(old, tmp_path / "bad", new)
        except VerificationError:
            assert not (tmp_path / "out").exists()
        else:  # bits that bz2 does not look at
            assert made == new.read_bytes()
            (tmp_path / "out").unlink()


def written(tmp_path: Path, old: Path, new: Path, steps, *, added=b"", fresh=b"", tail=b"") -> Path:
    """Write a delta by hand, with a header that holds."""
    control = bz2.compress(b"".join(delta._STEP.pack(*step) for step in steps))
    streams = [control, bz2.compress(added)]
    a, b = old.read_bytes(), new.read_bytes()
    shas = [hashlib.sha256(data).digest() for data in (a, b)]
    head = delta._HEADER.pack(*shas, len(a), len(b), len(streams[0]), len(streams[1]))
    path = tmp_path / "hostile"
    path.write_bytes(delta._MAGIC + head + b"".join(streams) + bz2.compress(fresh) + tail)
    return path


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("outside", "leads out of its files"),
        ("too long", "leads out of its files"),
        ("no way on", "leads out of its files"),
        ("huge", "leads out of its files"),
        ("short", "ends too early"),
        ("more", "goes on after its end"),
        ("tail", "goes on after its end"),
        ("endless", "more than 1000 steps"),
    ],
)
def test_a_hostile_delta_is_refused(
    kind: str, sentence: str, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "MAX_STEPS", 1000)
    old, new = pair
    n_new = new.stat().st_size
    zeros = bytes(n_new)
    if kind == "endless":
        wide = tmp_path / "wide"
        wide.write_bytes(bytes(delta.MAX_STEPS + 1))
        new, n_new = wide, delta.MAX_STEPS + 1
    path = {
        "outside": lambda: written(tmp_path, old, new, [(SIZE - 10, 20, 0)], added=zeros),
        "too long": lambda: written(tmp_path, old, new, [(0, 0, n_new + 1)], fresh=zeros + b"x"),
        "no way on": lambda: written(tmp_path, old, new, [(0, 0, 0)] * 5),
        "huge": lambda: written(tmp_path, old, new, [(0, 2**63, 2**63)]),
        "short": lambda: written(tmp_path, old, new, [(0, 0, n_new)], fresh=zeros[:-5]),
        "more": lambda: written(tmp_path, old, new, [(0, 0, n_new)], fresh=zeros + b"more"),
        "tail": lambda: written(tmp_path, old, new, [(0, 0, n_new)], fresh=zeros, tail=b"tail"),
        "endless": lambda: written(tmp_path, old, new, [(0, 0, 1)] * n_new, fresh=bytes(n_new)),
    }[kind]()
    with pytest.raises(VerificationError, match=sentence):
        rebuilt(old, path, new)
    assert not (tmp_path / "out").exists()


def test_a_delta_for_another_archive_is_refused(pair, tmp_path: Path) -> None:
    old, new = pair
    delta.make(old, new, tmp_path / "d")
    with pytest.raises(VerificationError, match="starts from another"):
        rebuilt(new, tmp_path / "d", new)
    with pytest.raises(VerificationError, match="makes another"):
        rebuilt(old, tmp_path / "d", old)
    (tmp_path / "d").write_bytes(b"hello")
    with pytest.raises(VerificationError, match="not a delta"):
        rebuilt(old, tmp_path / "d", new)


def test_a_bomb_takes_no_more_memory_than_a_piece(tmp_path: Path) -> None:
    n_bytes = 24 << 20
    (tmp_path / "old").write_bytes(b"o")
    with (tmp_path / "new").open("wb") as file:
        file.truncate(n_bytes)
    path = written(tmp_path, tmp_path / "old", tmp_path / "new", [(0, 0, n_bytes)], fresh=bytes(n_bytes))
    assert path.stat().st_size < 1000
    digest = sha(bytes(n_bytes))
    tracemalloc.start()
    delta.apply(tmp_path / "old", path, tmp_path / "out", size_bytes=n_bytes, sha256=digest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
