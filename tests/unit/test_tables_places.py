from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather, ipc

from kit.errors import InputError
from kit.signature import Signature
from kit.tables import FORMATS, list_files, read_file, read_table, to_tensors
from kit.tensors import TensorSpec

TABLE = pa.table({"größe": [1.5, None, 3.0], "name": ["a", None, "ü"], "n": [1, 2, 3]})


def names(uri: Path | str) -> list[str]:
    return [file.name for file in list_files(str(uri))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a.csv",
        "b ü.csv",
        "b.txt",
        "in/2024-01/part-1.csv",
        "in/2024-01/part-10.csv",
        "in/2024-02/part-2.csv",
        "in/2025-01/part-3.csv",
        "in/2024-01/_temporary/part-4.csv",
        "in/2024-01/.hidden.csv",
        "_old/c.csv",
        "rows[1].csv",
        "rows1.csv",
        "what?.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("n\n1\n")
    return tmp_path


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("*.csv", ["a.csv", "b ü.csv", "rows1.csv", "rows[1].csv", "what?.csv"]),
        ("[ab]*", ["a.csv", "b ü.csv"]),
        ("b ?.csv", ["b ü.csv"]),
        ("in/2024-*/part-?.csv", ["2024-01/part-1.csv", "2024-02/part-2.csv"]),
        ("in/2024-*", ["2024-01/part-1.csv", "2024-01/part-10.csv", "2024-02/part-2.csv"]),
        ("in/**/part-3.csv", ["2025-01/part-3.csv"]),
        ("**/a.csv", ["a.csv"]),
        ("in/**", ["2024-01/part-1.csv", "2024-01/part-10.csv", "2024-02/part-2.csv", "2025-01/part-3.csv"]),
        ("in/*/_temporary/*.csv", ["2024-01/_temporary/part-4.csv"]),
        ("_ol?/*.csv", ["_old/c.csv"]),
        ("rows[1].csv", ["rows[1].csv"]),
        ("rows[1]*", ["rows1.csv"]),
        ("what?.csv", ["what?.csv"]),
        ("wha?[?].csv", ["what?.csv"]),
    ],
)
def test_a_pattern_names_files_unless_a_file_has_that_very_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, found: list[str]
) -> None:
    assert names(folder / pattern) == found
    monkeypatch.chdir(folder)
    assert names(pattern) == found
    assert read_table(pattern).num_rows == len(found)


@pytest.mark.parametrize("pattern", ["*.parquet", "nowhere/*.csv", "in/2026-*/*.csv", "**/*.txt", "[[]x"])
def test_a_pattern_that_no_file_matches_is_named(folder: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="is a pattern that no file matches") as caught:
        list_files(str(folder / pattern))
    assert pattern in caught.value.message


def test_a_link_is_what_it_points_at(folder: Path) -> None:
    (folder / "link.csv").symlink_to(folder / "a.csv")
    (folder / "broken.csv").symlink_to(folder / "nowhere.csv")
    assert names(folder / "link.csv") == ["link.csv"]
    assert "link.csv" in names(folder)
    assert names(folder / "*n[k].csv") == ["link.csv"]
    assert "broken.csv" not in names(folder / "*.csv")


def test_a_file_written_again_has_another_time(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n\n1\n")
    os.utime(path, ns=(0, 1_700_000_000_123_456_789))
    (before,) = list_files(str(path))
    assert before.modified_ns == 1_700_000_000_123_456_789
    path.write_text("n\n1\n")
    (after,) = list_files(str(path))
    assert after.modified_ns > before.modified_ns
    assert (after.name, after.size_bytes) == (before.name, before.size_bytes)


def write_arrow(
    path: Path, *, table: pa.Table = TABLE, stream: bool = False, codec: str | None = None
) -> Path:
    options = ipc.IpcWriteOptions(compression=codec)
    with (ipc.new_stream if stream else ipc.new_file)(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".ipc"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_arrow_files_and_streams_read_like_others(
    tmp_path: Path, suffix: str, stream: bool, codec: str | None
) -> None:
    assert FORMATS[suffix] == "ipc"
    path = write_arrow(tmp_path / f"ein name{suffix}", stream=stream, codec=codec)
    assert read_table(str(path)).to_pydict() == TABLE.to_pydict()
    (file,) = list_files(str(tmp_path))
    assert read_file(str(tmp_path), file, columns=["n"]).to_pydict() == {"n": [1, 2, 3]}
    with pytest.raises(InputError, match="has no column 'naem'") as caught:
        read_table(str(path), columns=["naem"])
    assert "did you mean 'name'?" in str(caught.value.hint)


def test_feather_and_views_of_strings_make_tensors(tmp_path: Path) -> None:
    feather.write_feather(pa.table({"name": ["a", "ü"]}), str(tmp_path / "a.feather"))
    write_arrow(tmp_path / "b.arrow", table=pa.table({"name": pa.array(["x", None], pa.string_view())}))
    signature = Signature("", (TensorSpec("x", "string", (-1,), ("name",), nullable=True),), ())
    for name, values in (("a.feather", ["a", "ü"]), ("b.arrow", ["x", ""])):
        assert to_tensors(read_table(str(tmp_path / name)), signature)["x"].tolist() == values


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("keep", [3, 60, 0.7])
def test_a_damaged_arrow_file_is_named(tmp_path: Path, stream: bool, keep: float) -> None:
    path = write_arrow(tmp_path / "a.arrow", stream=stream)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else len(content) * keep)])
    with pytest.raises(InputError, match=r"a\.arrow.* cannot be read"):
        read_table(str(path))


def test_a_line_of_json_that_is_null_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n null \n')
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read as jsonl: .*null"):
        read_table(str(tmp_path))
