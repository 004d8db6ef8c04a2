from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv

from kit.errors import InputError
from kit.files import digest_of, sha256_file
from kit.manifest import (
    DataFile,
    Manifest,
    compare,
    describe_table,
    digest_files,
    fingerprint,
    keep_manifest,
    read_manifest,
)
from kit.tables import read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of one table."""
    (tmp_path / "data").mkdir()
    for name, first in (("a.csv", 0), ("c/größe.csv", 10)):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        csv.write_csv(pa.table({"n": [first, first + 1], "ü": ["x", "y"]}), tmp_path / "data" / name)
    return tmp_path / "data"


def manifest_of(folder: Path) -> Manifest:
    return describe_table(digest_files(str(folder)), read_table(str(folder)))


def test_a_manifest_lists_files_columns_and_rows(folder: Path) -> None:
    manifest = manifest_of(folder)
    assert [file.name for file in manifest.files] == ["a.csv", "c/größe.csv"]
    assert manifest.columns == (("n", "int64"), ("ü", "string"))
    assert (manifest.n_rows, manifest.n_files) == (4, 2)
    paths = [folder / file.name for file in manifest.files]
    assert manifest.size_bytes == sum(path.stat().st_size for path in paths)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_fingerprint_is_the_digest_over_names_and_digests(folder: Path) -> None:
    expected = digest_of({name: sha256_file(folder / name) for name in ("a.csv", "c/größe.csv")})
    assert fingerprint(str(folder)) == manifest_of(folder).fingerprint == expected


def test_a_single_files_name_is_no_part_of_the_fingerprint_and_names_of_several_are(
    folder: Path, tmp_path: Path
) -> None:
    before = manifest_of(folder)
    copy = shutil.copy(folder / "a.csv", tmp_path / "copy.csv")
    assert fingerprint(str(copy)) == fingerprint(str(folder / "a.csv"))
    alone = describe_table(digest_files(str(copy)), read_table(str(copy)))
    renamed = describe_table(digest_files(str(folder / "a.csv")), read_table(str(copy)))
    assert compare(alone, renamed).describe("data") == ""
    (folder / "a.csv").rename(folder / "z.csv")
    assert manifest_of(folder).fingerprint != before.fingerprint


def test_added_removed_and_changed_files_are_named(folder: Path) -> None:
    before = manifest_of(folder)
    (folder / "a.csv").write_text("n,ü\n1,z\n", encoding="utf-8")
    (folder / "b.csv").write_text("n,ü\n1,z\n", encoding="utf-8")
    (folder / "c" / "größe.csv").unlink()
    found = compare(before, manifest_of(folder))
    assert (found.changed, found.added, found.removed) == (("a.csv",), ("b.csv",), ("c/größe.csv",))
    assert found.describe("data") == "data/a.csv changed, data/b.csv is new, data/c/größe.csv is gone"


def test_many_changed_files_are_counted_and_one_file_has_its_own_name() -> None:
    none = Manifest((), (), 0)
    many = Manifest(tuple(DataFile(f"{index}.csv", 1, "0") for index in range(5)), (), 1)
    said = compare(none, many).describe("s3://bucket/data/")
    assert said == "s3://bucket/data/0.csv is new, s3://bucket/data/1.csv is new, " + (
        "s3://bucket/data/2.csv is new, and 2 more"
    )
    one = Manifest((DataFile("a.csv", 1, "0"),), (), 1)
    assert compare(none, one).describe("data/a.csv") == "data/a.csv is new"


def test_the_last_manifest_is_kept_and_compared_with(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    before = manifest_of(folder)
    assert keep_manifest(before, state, path="data") is None
    again = keep_manifest(before, state, path="data")
    assert again is not None
    assert again.describe("data") == ""
    (folder / "a.csv").write_text("n,ü\n1,z\n", encoding="utf-8")
    after = manifest_of(folder)
    changed = keep_manifest(after, state, path="data")
    assert changed is not None
    assert changed.changed == ("a.csv",)
    assert read_manifest(state, before.fingerprint) == before
    assert read_manifest(state, after.fingerprint) == after
    assert keep_manifest(after, state, path="elsewhere") is None


def test_a_damaged_note_of_last_time_does_not_stop_the_run(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(folder)
    keep_manifest(manifest, tmp_path, path="data")
    kept = tmp_path / f"{manifest.fingerprint}.json"
    for content in ("{", "{}", kept.read_text(encoding="utf-8").replace(manifest.files[0].sha256, "0" * 64)):
        kept.write_text(content, encoding="utf-8")
        with pytest.raises(InputError):
            read_manifest(tmp_path, manifest.fingerprint)
        assert keep_manifest(manifest, tmp_path, path="data") is None
        assert read_manifest(tmp_path, manifest.fingerprint) == manifest
