"""Rules of sealed folders: a folder opens only when it is exactly what was signed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from kit import files, keypair, seal
from kit.errors import InputError, VerificationError

ALLOWED = ("*.onnx", "*.json", "golden/*.npz")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "signing.pem"
    keypair.generate_key(path)
    return path


def fill(folder: Path) -> Path:
    (folder / "golden").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "signature.json").write_bytes(b"{}")
    (folder / "golden" / "inputs.npz").write_bytes(b"rows")
    return folder


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    made = fill(tmp_path / "digits")
    seal.seal(made, name="digits", key=key)
    return made


def opened(folder: Path, key: Path) -> seal.Sealed:
    return seal.open_sealed(folder, trusted=[keypair.public_of(key)], allowed=ALLOWED)


def refusal(folder: Path, key: Path) -> str:
    with pytest.raises(VerificationError) as caught:
        opened(folder, key)
    return caught.value.message


def test_a_sealed_folder_opens_with_name_digest_and_key(tmp_path: Path, key: Path) -> None:
    folder = fill(tmp_path / "digits")
    digest = seal.seal(folder, name="digits", key=key)
    sealed = opened(folder, key)
    names = {"model.onnx", "signature.json", "golden/inputs.npz"}
    assert set(sealed.files) == names
    assert sealed.files == {name: files.sha256_file(folder / name) for name in names}
    assert sealed.digest == digest == files.digest_of(sealed.files)
    assert (sealed.folder, sealed.name) == (folder, "digits")
    assert sealed.key_id == keypair.key_id(keypair.public_of(key))


def test_sealing_the_same_content_twice_gives_the_same_bytes(tmp_path: Path, key: Path) -> None:
    for place in ("one", "two"):
        seal.seal(fill(tmp_path / place), name="digits", key=key)
    first = (tmp_path / "one" / "model.sig").read_bytes()
    assert (tmp_path / "two" / "model.sig").read_bytes() == first
    seal.seal(tmp_path / "one", name="digits", key=key)
    assert (tmp_path / "one" / "model.sig").read_bytes() == first


def test_a_moved_folder_still_opens(folder: Path, key: Path) -> None:
    assert opened(folder.rename(folder.with_name("elsewhere")), key).name == "digits"


@pytest.mark.parametrize("name", ["model.onnx", "signature.json", "golden/inputs.npz"])
def test_a_flipped_byte_names_the_file(folder: Path, key: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 0x01
    (folder / name).write_bytes(content)
    assert f"{name!r} in {folder} is not the file that was signed" in refusal(folder, key)


@pytest.mark.parametrize("name", ["model.onnx", "golden/inputs.npz"])
def test_a_removed_file_is_named(folder: Path, key: Path, name: str) -> None:
    (folder / "golden" / "more.npz").write_bytes(b"")
    seal.seal(folder, name="digits", key=key)
    (folder / name).unlink()
    assert f"{name!r} is signed but missing" in refusal(folder, key)


@pytest.mark.parametrize("name", ["extra.onnx", "golden/extra.npz"])
def test_an_extra_file_of_an_allowed_kind_is_named(folder: Path, key: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert f"{name!r} in {folder} is not in its signature" in refusal(folder, key)


@pytest.mark.parametrize(
    "name", [".hidden", ".model.onnx", ".git/config", ".gitignore", "golden/.x.npz", "x.onnx/y.onnx", "x.py"]
)
def test_a_hidden_or_nested_or_foreign_file_is_named(folder: Path, key: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    assert f"{name!r} in {folder} is not of a kind allowed" in refusal(folder, key)


def test_a_signed_file_of_a_kind_not_allowed_is_refused(folder: Path, key: Path) -> None:
    (folder / "model.pkl").write_bytes(b"")
    seal.seal(folder, name="digits", key=key)
    assert "'model.pkl'" in refusal(folder, key)


def test_a_symbolic_link_to_a_file_is_named(folder: Path, key: Path) -> None:
    target = folder.with_name("model.onnx")
    (folder / "model.onnx").rename(target)
    (folder / "model.onnx").symlink_to(target)
    assert f"'model.onnx' in {folder} is a symbolic link" in refusal(folder, key)


def test_a_symbolic_link_to_a_folder_is_named(folder: Path, key: Path) -> None:
    target = folder.with_name("golden")
    (folder / "golden").rename(target)
    (folder / "golden").symlink_to(target)
    assert f"'golden' in {folder} is a symbolic link" in refusal(folder, key)


def test_a_linked_signature_is_named(folder: Path, key: Path) -> None:
    target = folder.with_name("model.sig")
    (folder / "model.sig").rename(target)
    (folder / "model.sig").symlink_to(target)
    assert f"'model.sig' in {folder} is a symbolic link" in refusal(folder, key)


def test_a_link_to_a_sealed_folder_is_refused(folder: Path, key: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert refusal(link, key) == f"{link} is a link"


def test_a_broken_link_is_named(folder: Path, key: Path) -> None:
    (folder / "model.json").symlink_to("nowhere")
    assert "'model.json'" in refusal(folder, key)


def test_a_pipe_or_socket_is_named_and_never_read(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "pipe.json")
    assert f"'pipe.json' in {folder} is not a plain file" in refusal(folder, key)
    (folder / "pipe.json").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.json")
        assert f"'s.json' in {folder} is not a plain file" in refusal(folder, key)


@pytest.mark.parametrize("name", ["empty", "golden/empty", ".git"])
def test_an_empty_folder_is_named(folder: Path, key: Path, name: str) -> None:
    (folder / name).mkdir()
    assert f"{name!r} in {folder} is an empty folder" in refusal(folder, key)


def test_a_folder_that_is_absent_or_a_file_is_refused(folder: Path, key: Path) -> None:
    absent = folder.with_name("absent")
    assert refusal(absent, key) == f"{absent} cannot be read: No such file or directory"
    assert refusal(folder / "model.onnx", key) == f"{folder / 'model.onnx'} is not a folder"


def test_an_unsigned_folder_is_refused(folder: Path, key: Path) -> None:
    (folder / "model.sig").unlink()
    assert "holds no model.sig" in refusal(folder, key)


def test_a_folder_in_place_of_the_signature_is_refused(folder: Path, key: Path) -> None:
    (folder / "model.sig").unlink()
    (folder / "model.sig").mkdir()
    assert "'model.sig'" in refusal(folder, key)


@pytest.mark.parametrize("n_bytes", [0, 200])
def test_a_truncated_signature_names_its_file(folder: Path, key: Path, n_bytes: int) -> None:
    signature = folder / "model.sig"
    signature.write_bytes(signature.read_bytes()[:n_bytes])
    assert refusal(folder, key).startswith(f"{signature}: ")


def test_a_huge_signature_is_not_read_whole(folder: Path, key: Path) -> None:
    os.truncate(folder / "model.sig", 1 << 40)
    assert "larger than" in refusal(folder, key)


def test_the_signature_of_another_folder_is_refused(folder: Path, key: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other")
    (other / "model.onnx").write_bytes(b"other weights")
    seal.seal(other, name="other", key=key)
    shutil.copy(other / "model.sig", folder / "model.sig")
    assert "'model.onnx'" in refusal(folder, key)


def test_a_folder_sealed_by_another_key_is_refused(folder: Path, key: Path, tmp_path: Path) -> None:
    keypair.generate_key(tmp_path / "other.pem")
    assert "not trusted" in refusal(folder, tmp_path / "other.pem")


def test_the_signature_is_checked_before_any_file_is_read(folder: Path, key: Path) -> None:
    (folder / "model.onnx").write_bytes(b"changed")
    (folder / "model.sig").write_bytes(json.dumps({}).encode())
    assert refusal(folder, key).startswith(f"{folder / 'model.sig'}: ")


def test_a_name_that_is_not_utf_8_is_refused(folder: Path, key: Path) -> None:
    try:
        (folder / os.fsdecode(b"\xff.json")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    assert "udcff" in refusal(folder, key)
    with pytest.raises(InputError, match="udcff"):
        seal.seal(folder, name="digits", key=key)


@pytest.mark.parametrize("name", [".git/config", ".gitattributes"])
def test_files_of_git_are_not_sealed(folder: Path, key: Path, name: str) -> None:
    before = (folder / "model.sig").read_bytes()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        seal.seal(folder, name="digits", key=key)
    assert (folder / "model.sig").read_bytes() == before


def test_a_folder_with_links_or_without_files_is_not_sealed(tmp_path: Path, key: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    with pytest.raises(InputError, match="no files"):
        seal.seal(folder, name="digits", key=key)
    (folder / "model.onnx").symlink_to(key)
    with pytest.raises(InputError, match=r"'model\.onnx'"):
        seal.seal(folder, name="digits", key=key)
    assert not (folder / "model.sig").exists()
