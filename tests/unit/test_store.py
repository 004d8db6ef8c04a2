from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

from kit.errors import (
    InputError,
    MissingDependencyError,
    NotFoundError,
    SettingsError,
    UnavailableError,
    VerificationError,
)
from kit.files import digest_of, sha256_file
from kit.store import FolderStore, S3Store, open_store

FILES = {
    "model.onnx": b"graph",
    "golden/inputs.npz": b"inputs",
    "manifest.json": b"{}",
    "model.sig": b"signature",
}
UNKNOWN = "0" * 64


def make_version(folder: Path) -> str:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return digest_of({name: sha256_file(folder / name) for name in FILES if name != "model.sig"})


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def version(tmp_path: Path) -> Path:
    make_version(tmp_path / "version")
    return tmp_path / "version"


@pytest.fixture
def digest(version: Path) -> str:
    return make_version(version)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_what_was_put_is_fetched_as_it_was(store: FolderStore, version: Path, digest: str) -> None:
    assert not store.contains(digest)
    assert store.put(version, digest=digest) == str(store.root / digest)
    assert store.contains(digest)
    assert store.fetch(digest) == store.root / digest
    assert contents(store.fetch(digest)) == FILES


def test_putting_twice_copies_once(store: FolderStore, version: Path, digest: str) -> None:
    store.put(version, digest=digest)
    inode = (store.root / digest).stat().st_ino
    assert store.put(version, digest=digest) == str(store.root / digest)
    assert (store.root / digest).stat().st_ino == inode


def test_files_that_do_not_match_the_digest_are_refused(
    store: FolderStore, version: Path, digest: str
) -> None:
    (version / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(VerificationError, match=f"not {digest}"):
        store.put(version, digest=digest)
    assert not store.root.exists()


def test_an_unsigned_folder_is_refused(store: FolderStore, version: Path, digest: str) -> None:
    (version / "model.sig").unlink()
    with pytest.raises(InputError, match=r"has no model\.sig"):
        store.put(version, digest=digest)


def test_a_link_is_refused(store: FolderStore, version: Path, digest: str) -> None:
    (version / "manifest.json").unlink()
    (version / "manifest.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match=r"manifest\.json is not a plain file"):
        store.put(version, digest=digest)


def test_a_missing_folder_is_refused(store: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone is not a folder"):
        store.put(tmp_path / "gone", digest=UNKNOWN)


def test_an_unknown_digest_is_named(store: FolderStore) -> None:
    with pytest.raises(NotFoundError, match=UNKNOWN):
        store.fetch(UNKNOWN)


@pytest.mark.parametrize("digest", ["", "ab12", "../../etc", "A" * 64, "0" * 65])
def test_what_is_no_digest_is_refused(store: FolderStore, version: Path, digest: str) -> None:
    for ask in (store.fetch, store.contains, lambda digest: store.put(version, digest=digest)):
        with pytest.raises(InputError, match="is not a digest"):
            ask(digest)


def test_a_folder_without_the_commit_mark_is_not_mistaken_for_a_version(
    store: FolderStore, version: Path, digest: str
) -> None:
    (store.root / digest).mkdir(parents=True)
    for ask in (store.fetch, store.contains, lambda digest: store.put(version, digest=digest)):
        with pytest.raises(VerificationError, match=r"has no model\.sig") as caught:
            ask(digest)
        assert caught.value.hint == "move that folder away"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing(
    store: FolderStore, version: Path, digest: str, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    copied: list[Path] = []

    def fail_on_the_second(source: Path, target: Path) -> None:
        if copied:
            raise failure
        copied.append(target)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(shutil, "copyfile", fail_on_the_second)
    with pytest.raises((UnavailableError, KeyboardInterrupt)) as caught:
        store.put(version, digest=digest)
    if isinstance(failure, OSError):
        assert "is full" in str(caught.value)
    assert list(store.root.iterdir()) == []


def test_a_file_where_the_store_should_be_is_named(version: Path, digest: str, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(UnavailableError, match="taken"):
        FolderStore(tmp_path / "taken").put(version, digest=digest)


# addresses


def test_the_address_chooses_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path / "models"), cache=tmp_path), FolderStore)
    assert isinstance(open_store("s3://bucket", cache=tmp_path), S3Store)
    assert open_store("s3://bucket/team/models/", cache=tmp_path).uri == "s3://bucket/team/models"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "",
            "~/models",
            "ftp://host/models",
            "file:///models",
            "http://host",
            "S3://bucket",
            "s3:/x",
            "s3:bucket",
        ),
        *("s3://", "s3:///x", "s3://Bucket/x", "s3://a/x", "s3://bu..cket/x", "s3://bucket/x?region=eu"),
        *("s3://bucket/x#y", "s3://bucket//x", "s3://bucket//", "s3://bucket/../x", "s3://bucket/./x"),
        *("s3://bucket/a b", "s3://bucket/a\nb", "s3://bucket/a\\b", "models\0"),
    ],
)
def test_a_bad_address_is_refused_with_the_rule(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a store address") as caught:
        open_store(uri, cache=tmp_path)
    assert "s3://bucket/prefix" in str(caught.value.hint)


@pytest.mark.parametrize(
    "uri", ["s3://KEY:hunter2@bucket/x", "s3://bucket/x?secret=hunter2", "ftp://me:hunter2@h/x"]
)
def test_a_secret_in_an_address_is_not_repeated(uri: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(uri, cache=tmp_path)
    assert "hunter2" not in caught.value.message


def test_without_boto3_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("boto3", "botocore")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingDependencyError, match="needs boto3") as caught:
        open_store("s3://bucket/x", cache=tmp_path).contains(UNKNOWN)
    assert caught.value.hint == "pip install 'batch-edge-kit[cluster]'"
