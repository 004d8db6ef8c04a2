from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import files
from kit.errors import InputError, UnavailableError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4))
def test_json_depends_on_the_value_alone(value: dict[str, Any]) -> None:
    written = files.canonical_json(value)
    assert files.canonical_json(dict(reversed(value.items()))) == written
    assert written.endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}, "\ud800"])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="cannot be written as JSON"):
        files.canonical_json(value)


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "does not exist"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[1]", "holds a list where an object is expected"),
    ],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"record\.json {message}"):
        files.read_json(path)


def test_written_json_is_read_back(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a.json", files.canonical_json({"ü": [1, None]}))
    assert files.read_json(tmp_path / "a.json") == {"ü": [1, None]}


def test_a_digest_does_not_depend_on_how_it_is_read(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_file(tmp_path / "a") == files.sha256_bytes(data)


def test_a_set_of_files_is_named_by_names_and_content() -> None:
    one = files.digest_of({"a": "1", "b": "2"})
    assert files.digest_of({"b": "2", "a": "1"}) == one
    assert len({one, files.digest_of({"a": "2", "b": "1"}), files.digest_of({"a": "1"})}) == 3


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "key"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["key"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_a_write_that_breaks_off_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "record.json"
    files.write_atomic(path, b"old")

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, step, stop)
    with pytest.raises((KeyboardInterrupt, UnavailableError)) as caught:
        files.write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["record.json"]
    if isinstance(error, OSError):
        assert f"the disk that holds {path} is full" in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_folder_that_breaks_off_is_never_seen(tmp_path: Path, error: type[BaseException]) -> None:
    def fill() -> None:
        with files.atomic_folder(tmp_path / "version") as work:
            (work / "model.onnx").write_bytes(b"half")
            assert not (tmp_path / "version").exists()
            raise error

    with pytest.raises(error):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "new" / "version") as work:
        (work / "golden").mkdir()
        (work / "golden" / "a").write_bytes(b"a")
    assert (tmp_path / "new" / "version" / "golden" / "a").read_bytes() == b"a"
    assert os.listdir(tmp_path / "new") == ["version"]


def test_the_folder_that_was_first_stays(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "version") as work:
        (work / "a").write_bytes(b"second")
        (tmp_path / "version").mkdir()
        (tmp_path / "version" / "a").write_bytes(b"first")
    assert (tmp_path / "version" / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["version"]


@pytest.mark.parametrize("name", ["file/inside", "folder", "n" * 300])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UnavailableError, match=f"{name} cannot be written"):
        files.write_atomic(tmp_path / name, b"data")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    with (
        pytest.raises(UnavailableError, match="version cannot be written"),
        files.atomic_folder(tmp_path / "version") as work,
    ):
        (work / "a").touch()
    assert os.listdir(tmp_path) == ["version"]


def test_the_contents_of_a_folder_are_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []

    def sync(handle: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    def rename(old: Path, new: Path) -> None:
        happened.append("rename")
        original(old, new)

    original = os.rename
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    with files.atomic_folder(tmp_path / "slot") as work:
        (work / "golden").mkdir()
        (work / "golden" / "inputs.npz").write_bytes(b"1")
        (work / "a.json").write_bytes(b"2")
    assert set(happened[:2]) < {"inputs.npz", "golden", "a.json"}
    assert happened.index("inputs.npz") < happened.index("golden")
    assert happened[3:] == [work.name, "rename", tmp_path.name]


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_that_create_a_file_at_once_one_succeeds(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what a FAT card answers

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "keys" / "key"
    made = []
    start = threading.Barrier(8)

    def create(index: int) -> None:
        start.wait()
        if files.create_once(path, str(index).encode(), mode=0o600):
            made.append(index)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == str(*made).encode()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]


def test_a_link_in_the_place_of_a_new_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to("elsewhere")
    assert not files.create_once(tmp_path / "key", b"1")
    assert not (tmp_path / "elsewhere").exists()


def test_a_new_file_where_none_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="key cannot be written"):
        files.create_once(tmp_path / "file" / "key", b"1")
