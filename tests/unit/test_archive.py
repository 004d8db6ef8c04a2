from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from kit import archive
from kit.archive import pack, unpack
from kit.errors import ConflictError, InputError, VerificationError


def _folder(path: Path) -> Path:
    (path / "golden").mkdir(parents=True)
    (path / "golden" / "inputs.npz").write_bytes(b"inputs")
    (path / "manifest.json").write_bytes(b"{}\n")
    (path / "model.tflite").write_bytes(bytes(range(256)) * 5)
    (path / "model.sig").write_bytes(b"signature")
    return path


def _member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as opened:
        for info, data in members:
            opened.addfile(info, io.BytesIO(data))
    return path


def _refused(path: Path, folder: Path) -> str:
    with pytest.raises(VerificationError) as caught:
        unpack(path, folder)
    assert not folder.exists()
    return caught.value.message


def test_what_was_packed_comes_out(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in")
    pack(folder, tmp_path / "a.bundle")
    unpack(tmp_path / "a.bundle", tmp_path / "out")
    for file in folder.rglob("*.*"):
        assert (tmp_path / "out" / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_equal_folders_give_equal_archives(tmp_path: Path) -> None:
    one, two = _folder(tmp_path / "one"), _folder(tmp_path / "two")
    (two / "manifest.json").chmod(0o600)
    (two / "manifest.json").touch()
    assert pack(one, tmp_path / "1") == pack(two, tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_an_archive_is_a_plain_tar_without_dates_or_owners(tmp_path: Path) -> None:
    pack(_folder(tmp_path / "in"), tmp_path / "a.bundle")
    with tarfile.open(tmp_path / "a.bundle", "r:") as opened:
        members = opened.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_a_file_that_is_no_part_of_a_bundle_is_not_packed(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in")
    (folder / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"'notes\.txt'"):
        pack(folder, tmp_path / "a.bundle")
    assert not (tmp_path / "a.bundle").exists()


def test_a_link_is_not_packed(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in")
    (folder / "model.bin").symlink_to("model.tflite")
    with pytest.raises(InputError, match=r"'model\.bin'"):
        pack(folder, tmp_path / "a.bundle")


@pytest.mark.parametrize(
    "name, words",
    [
        ("/manifest.json", "'/manifest.json' is not a relative path"),
        ("../manifest.json", "'../manifest.json' climbs out of its folder"),
        ("golden/../manifest.json", "climbs out of its folder"),
        ("./manifest.json", "'./manifest.json' is no file of a bundle"),
        ("code.py", "'code.py' is no file of a bundle"),
        ("golden/inputs.pkl", "'golden/inputs.pkl' is no file of a bundle"),
        (".git/config", "'.git/config' is no file of a bundle"),
    ],
)
def test_a_member_with_an_odd_name_is_named(tmp_path: Path, name: str, words: str) -> None:
    assert words in _refused(_tar(tmp_path / "a.bundle", _member(name)), tmp_path / "out")


@pytest.mark.parametrize(
    "kind, words",
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.DIRTYPE, "a folder entry"),
        (tarfile.GNUTYPE_SPARSE, "the unknown type"),
    ],
)
def test_a_member_that_is_no_plain_file_is_named(tmp_path: Path, kind: bytes, words: str) -> None:
    member = _member("manifest.json", b"", type=kind, linkname="/etc/passwd")
    message = _refused(_tar(tmp_path / "a.bundle", member), tmp_path / "out")
    assert "'manifest.json'" in message
    assert words in message


def test_a_name_that_occurs_twice_is_named(tmp_path: Path) -> None:
    path = _tar(tmp_path / "a.bundle", _member("manifest.json"), _member("manifest.json", b"other"))
    assert "'manifest.json' twice" in _refused(path, tmp_path / "out")


@pytest.mark.parametrize("fields", [{"mode": 0o755}, {"mtime": 1}, {"uid": 1000}, {"uname": "root"}])
def test_a_header_no_kit_writes_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    path = _tar(tmp_path / "a.bundle", _member("manifest.json", b"{}", **fields))
    assert "'manifest.json' has a header that no kit writes" in _refused(path, tmp_path / "out")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    pack(_folder(tmp_path / "in"), tmp_path / "a.bundle")
    data = (tmp_path / "a.bundle").read_bytes()
    for length in range(0, len(data), 97):
        (tmp_path / "short").write_bytes(data[:length])
        assert "truncated" in _refused(tmp_path / "short", tmp_path / "out")


def test_data_after_the_end_and_in_the_padding_is_refused(tmp_path: Path) -> None:
    pack(_folder(tmp_path / "in"), tmp_path / "a.bundle")
    data = bytearray((tmp_path / "a.bundle").read_bytes())
    (tmp_path / "long").write_bytes(data + b"\0")
    assert "goes on after the end" in _refused(tmp_path / "long", tmp_path / "out")
    data[512 + len(b"inputs")] = 1
    (tmp_path / "padded").write_bytes(data)
    assert "hides in its padding" in _refused(tmp_path / "padded", tmp_path / "out")


def test_more_bytes_than_the_limit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(_folder(tmp_path / "in"), tmp_path / "a.bundle")
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    assert "'model.tflite' holds 1280 bytes" in _refused(tmp_path / "a.bundle", tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_BYTES", 1281)
    assert "more than" in _refused(tmp_path / "a.bundle", tmp_path / "out")


def test_more_members_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(_folder(tmp_path / "in"), tmp_path / "a.bundle")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    assert "more than 3 members" in _refused(tmp_path / "a.bundle", tmp_path / "out")


def test_something_else_than_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bundle").write_bytes(b"not a tar" * 500)
    assert "is not a bundle" in _refused(tmp_path / "a.bundle", tmp_path / "out")


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    pack(_folder(tmp_path / "in"), tmp_path / "a.bundle")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConflictError, match="already exists"):
        unpack(tmp_path / "a.bundle", tmp_path / "out")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.bundle cannot be read"):
        unpack(tmp_path / "none.bundle", tmp_path / "out")
