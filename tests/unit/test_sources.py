from __future__ import annotations

import csv as writing
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, ipc, parquet

from jobs.batch.sources import (
    Chunk,
    Piece,
    Reading,
    Refused,
    cut,
    is_text,
    read,
    read_pieces,
    survey,
)
from kit.errors import InputError
from kit.images import ImageLayout, list_data
from kit.signature import Signature
from kit.tables import TableFile, list_files, read_table, to_tensors
from kit.tensors import TensorSpec

SIGNATURE = Signature(
    "",
    (
        TensorSpec("size", "float32", (-1, 1), ("größe in cm",), nullable=True),
        TensorSpec("name", "string", (-1, 1), ("name",), nullable=True),
        TensorSpec("n", "int64", (-1,), ("n",)),
    ),
    (),
)
#: Odd on purpose: rows and bytes of a shard that divide nothing.
ODD = ((7, 97), (1000, 333), (13, 64 << 20), (250_000, 64 << 20))


def table_of(n_rows: int, *, quotes: bool = False) -> pa.Table:
    names = [
        None if i % 11 == 0 else ("ü, \n" if quotes and i % 3 == 0 else f"name {i}") for i in range(n_rows)
    ]
    sizes = [None if i % 5 == 0 else i / 4 for i in range(n_rows)]
    return pa.table(
        {
            "größe in cm": pa.array(sizes, pa.float64()),
            "name": pa.array(names, pa.string()),
            "n": range(n_rows),
        }
    )


def write(table: pa.Table, path: Path, *, group: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=group)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as text:  # pyarrow would quote every string
            writer = writing.writer(text, lineterminator="\n")
            writer.writerow(table.column_names)
            writer.writerows(row.values() for row in table.to_pylist())
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()]
        path.write_text("".join(lines), encoding="utf-8")
    elif path.suffix == ".ipc":
        with ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=group)
    else:
        with ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=group)
    return path


def opened(
    path: Path, *, columns: Sequence[str] = (), signature: Signature = SIGNATURE
) -> tuple[Reading, Any]:
    files = list_files(str(path))
    return survey(str(path), files, signature=signature, columns=columns), files


def joined(
    reading: Reading, shards: Sequence[Sequence[Piece]]
) -> tuple[pa.Table, list[tuple[str, int]], list[Refused]]:
    chunks: list[Chunk] = [chunk for shard in shards for chunk in read_pieces(reading, shard)]
    rows = [(chunk.file, row) for chunk in chunks for row in chunk.rows.tolist()]
    assert all(len(chunk.rows) == chunk.table.num_rows for chunk in chunks)
    assert all(chunk.table.column_names == list(reading.columns) for chunk in chunks)
    refused = [each for chunk in chunks for each in chunk.refused]
    return pa.concat_tables([chunk.table for chunk in chunks]), rows, refused


def one(path: Path, *, names: Sequence[str] = ("a",), types: dict[str, str] | None = None) -> Any:
    (file,) = list_files(str(path))
    reading = Reading(str(path), tuple(names), types or dict.fromkeys(names, "double"))
    return joined(reading, [[Piece(file)]])


# every row once


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".arrow", ".ipc"])
@pytest.mark.parametrize("shard_rows, shard_bytes", ODD)
def test_a_table_cut_and_joined_is_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, shard_rows: int, shard_bytes: int
) -> None:
    monkeypatch.setattr("jobs.batch.sources.cuts.SMALL_BYTES", 0)  # every footer is worth reading
    whole = table_of(203)
    for part, (start, stop) in enumerate([(0, 100), (100, 100), (100, 101), (101, 203)]):
        write(whole.slice(start, stop - start), tmp_path / "ein ordner" / f"teil ü {part}{suffix}")
    reading, files = opened(tmp_path / "ein ordner")
    reading = replace(reading, chunk_bytes=200)
    shards = cut(reading, files, shard_rows=shard_rows, shard_bytes=shard_bytes)
    table, rows, refused = joined(reading, shards)
    assert not refused
    assert table.to_pydict() == whole.to_pydict()
    assert [row for _, row in rows] == [*range(100), 0, *range(102)]
    assert shards == cut(reading, files, shard_rows=shard_rows, shard_bytes=shard_bytes)
    for piece in (piece for shard in shards for piece in shard if piece.n_rows is not None):
        chunks = list(read(reading, piece))
        assert sum(len(chunk.rows) for chunk in chunks) == piece.n_rows
        assert chunks[0].rows[0] == piece.row if piece.n_rows else True
    if suffix != ".ipc" and shard_bytes < 100:
        assert len(shards) > 5


def test_what_is_read_is_what_a_whole_table_gives(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv", ".jsonl", ".arrow", ".ipc"):
        path = write(table_of(60, quotes=True), tmp_path / f"t{suffix}")
        reading, files = opened(path)
        table, _, _ = joined(replace(reading, chunk_bytes=500), cut(reading, files))
        expected = to_tensors(read_table(str(path), strings=SIGNATURE.string_columns), SIGNATURE)
        for name, array in to_tensors(table, SIGNATURE).items():
            np.testing.assert_array_equal(array, expected[name])


def test_two_thousand_tiny_files_are_packed_without_opening_them(tmp_path: Path) -> None:
    for index in range(2000):
        (tmp_path / f"{index:04d} ü.csv").write_text(f"a\n{index}\n", encoding="utf-8")
    files = list_files(str(tmp_path))
    (tmp_path / "0700 ü.csv").unlink()  # nobody looks
    reading = Reading(str(tmp_path), ("a",), {"a": "double"})
    shards = cut(reading, files)
    assert len(shards) == 8
    assert [piece.file for shard in shards for piece in shard] == list(files)
    table, _, _ = joined(reading, shards[:2])
    assert table.column("a").to_pylist() == list(range(len(shards[0]) + len(shards[1])))
    with pytest.raises(InputError, match=r"0700 ü\.csv vanished during the run"):
        joined(reading, shards[2:3])


def test_row_groups_make_shards_near_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    write(pa.table({"a": np.random.default_rng(0).random(200_000)}), tmp_path / "a.parquet", group=30_000)
    reading, files = opened(tmp_path, columns=["a"], signature=Signature("", (), ()))
    assert [
        [(piece.first, piece.length, piece.row, piece.n_rows) for piece in shard]
        for shard in cut(reading, files, shard_rows=70_000)
    ] == [
        [(0, 60_000, 0, 60_000)],
        [(60_000, 60_000, 60_000, 60_000)],
        [(120_000, 80_000, 120_000, 80_000)],
    ]


def test_a_row_group_of_many_shards_is_split_into_at_most_eight_ranges(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(200_001)
    write(pa.table({"a": values}), tmp_path / "a.parquet", group=1 << 20)
    reading, files = opened(tmp_path, columns=["a"], signature=Signature("", (), ()))
    assert len(cut(reading, files, shard_rows=50_001)) == 1
    assert len(cut(reading, files, shard_rows=45_000)) == 5
    shards = cut(reading, files, shard_rows=1000)
    assert len(shards) == 8
    table, rows, _ = joined(reading, shards)
    np.testing.assert_array_equal(table.column("a").to_numpy(), values)
    assert [row for _, row in rows] == list(range(200_001))


# lines


def test_json_lines_that_are_no_objects_are_refused_by_themselves(tmp_path: Path) -> None:
    lines = [
        '{"a": 1, "name": "x"}',
        "{",
        "",
        '{"a": "viel"}',
        "[1]",
        "null",
        "  ",
        '{"a": 2.5}\r',
        '{"a": 3} {"a": 4}',
        '{"a": true}',
        '{"a": 1, "a": 2}',
        '{"a": 1e400}',
        '{"name": "ohne a"}',
    ]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"a": "\xff"}\n{"a": 5}')
    table, rows, refused = one(tmp_path / "a.jsonl")
    assert table.column("a").to_pylist() == [1.0, 2.5, None, 5.0]
    assert [row for _, row in rows] == [0, 5, 10, 12]
    assert [each.row for each in refused] == [1, 2, 3, 4, 6, 7, 8, 9, 11]
    assert refused[1].reason == """column 'a': "viel" is not a number"""
    assert refused[2].reason == "the line is a list and not an object"
    assert refused[3].reason == "the line is null and not an object"
    assert refused[3].values == {"line": "null"}
    assert refused[8].values == {"line": '{"a": "\\xff"}'}
    assert refused[8].reason == "the text is not UTF-8"
    assert all(each.file == "a.jsonl" for each in refused)


def test_whole_numbers_of_json_may_be_written_as_floats(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 3.0}\n{"a": 9007199254740993}\n{"a": 2.5}\n{"a": 1e30}\n')
    table, _, refused = one(tmp_path / "a.jsonl", types={"a": "int64"})
    assert table.column("a").to_pylist() == [3, 9007199254740993]
    assert [each.reason for each in refused] == [
        "column 'a': 2.5 is not a whole number",
        "column 'a': 1e+30 is not a whole number",
    ]


def test_lists_of_json_are_read_and_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": [1, 2.5]}\n{"a": [1, "x"]}\n{"a": 3}\n{"a": [3]}\n')
    signature = Signature("", (TensorSpec("x", "float32", (-1, 2), ("a",)),), ())
    reading, files = opened(tmp_path, signature=signature)
    assert reading.types == {"a": "list<item: double>"}
    table, _, refused = joined(reading, cut(reading, files))
    assert table.column("a").to_pylist() == [[1.0, 2.5], [3.0]]
    assert [each.row for each in refused] == [1, 2]


CSV = "a,name\n1,x\n2\n\n3,y,z\nviel,u\n4,\n, \n5,v"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 24])
def test_csv_rows_that_cannot_be_read_are_refused_by_themselves(
    tmp_path: Path, end: str, quoted: bool, chunk_bytes: int
) -> None:
    text = CSV + ('\n6,"zwei\nZeilen"\n7' if quoted else "")
    (tmp_path / "a.csv").write_bytes(text.replace("\n", end).encode())
    (file,) = list_files(str(tmp_path / "a.csv"))
    reading = Reading(
        str(tmp_path / "a.csv"), ("a", "name"), {"a": "int64", "name": "string"}, None, chunk_bytes
    )
    table, rows, refused = joined(reading, [[Piece(file)]])
    assert table.column("a").to_pylist() == [1, 4, None, 5, 6][: table.num_rows]
    assert table.column("name").to_pylist() == ["x", None, " ", "v", f"zwei{end}Zeilen"][: 5 if quoted else 4]
    assert [row for _, row in rows] == [0, 4, 5, 6, 7][: table.num_rows]
    assert [(each.row, each.reason, each.values) for each in refused][:3] == [
        (1, "1 cells where the header has 2", {"line": "2"}),
        (2, "3 cells where the header has 2", {"line": "3,y,z"}),
        (3, "column 'a': 'viel' is not a whole number", {"a": "viel", "name": "u"}),
    ]
    assert [each.row for each in refused[3:]] == ([8] if quoted else [])


def test_csv_cells_are_what_pyarrow_takes_them_for(tmp_path: Path) -> None:
    cells = ["1", " 2 ", "0x10", "1.5", "3.0", "nan", "1e3", "", "+1", "1_0", "99999999999999999999", "\t7"]
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"{cell},0\n" for cell in cells))
    floats, _, refused = one(tmp_path / "a.csv")
    assert (
        str(floats.column("a").to_pylist())
        == "[1.0, 2.0, 16.0, 1.5, 3.0, nan, 1000.0, None, 1.0, 1e+20, 7.0]"
    )
    assert [each.values["a"] for each in refused] == ["1_0"]
    whole, _, refused = one(tmp_path / "a.csv", types={"a": "int64"})
    assert whole.column("a").to_pylist() == [1, 2, 16, 3, 1000, None, 1, 7]
    assert [each.values["a"] for each in refused] == ["1.5", "nan", "1_0", "99999999999999999999"]


def test_text_that_is_not_utf_8_refuses_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("a,name\n1,x\n2,Jürgen\n3,y\n".encode("latin-1"))
    table, rows, refused = one(
        tmp_path / "a.csv", names=["a", "name"], types={"a": "double", "name": "string"}
    )
    assert table.to_pydict() == {"a": [1.0, 3.0], "name": ["x", "y"]}
    assert [row for _, row in rows] == [0, 2]
    assert refused == [
        Refused("a.csv", 1, "column 'name': 'J\\\\xfcrgen' is not text in UTF-8", {"line": "2,J\\xfcrgen"})
    ]


def test_a_csv_file_with_a_quote_anywhere_is_one_piece(tmp_path: Path) -> None:
    rows = [f"{index},name\n" for index in range(500)]
    for name, extra in (("plain.csv", ""), ("quoted.csv", '500,"a\nb"\n')):
        (tmp_path / name).write_text('"a",name\n' + "".join(rows) + extra + "501,\n")
    for name, n_pieces in (("plain.csv", 2), ("quoted.csv", 1)):
        files = list_files(str(tmp_path / name))
        reading = Reading(str(tmp_path), ("a",), {"a": "int64"}, chunk_bytes=100)
        shards = cut(reading, files, shard_bytes=1000)
        assert (sum(map(len, shards)) > 1) == (n_pieces > 1)
        table, numbers, _ = joined(reading, shards)
        assert table.column("a").to_pylist() == [*range(500), *([500] if n_pieces == 1 else []), 501]
        assert [row for _, row in numbers] == list(range(table.num_rows))


def test_a_line_longer_than_a_chunk_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "x" * 5000 + "\n\n" + "y" * 300)
    (file,) = list_files(str(tmp_path))
    reading = Reading(str(tmp_path), ("a",), {"a": "string"}, chunk_bytes=64)
    table, _, _ = joined(reading, [[Piece(file)]])
    assert [len(value) for value in table.column("a").to_pylist()] == [5000, 300]


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"a\n", b"a", b"\xef\xbb\xbfa\n"])
def test_a_csv_file_without_rows_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    files = list_files(str(tmp_path))
    reading = Reading(str(tmp_path), ("a",), {"a": "int64"})
    assert not [row for piece in files for chunk in read(reading, Piece(piece)) for row in chunk.rows]
    assert not [
        row
        for shard in cut(reading, files, shard_bytes=1)
        for c in read_pieces(reading, shard)
        for row in c.rows
    ]


# the beginning


def test_types_follow_from_the_signature_and_kept_columns_from_the_first_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "b.csv").write_text("size\n")
    (tmp_path / "c.csv").write_text("f,i,s,plz,id,x,t\n1,2,3,01234,7,0.5,2024-01-02\nviel,,,9,8,2,\n")
    specs = [
        TensorSpec(name, kind, (-1,), (name,))
        for name, kind in (("f", "float32"), ("i", "int32"), ("s", "string"))
    ]
    reading, files = opened(
        tmp_path, columns=["plz", "id", "x", "t", "i"], signature=Signature("", tuple(specs), ())
    )
    assert reading.columns == ("f", "i", "s", "plz", "id", "x", "t")
    assert reading.types == {
        "f": "double",
        "i": "int64",
        "s": "string",
        "plz": "string",
        "id": "int64",
        "x": "double",
        "t": "string",
    }
    [(chunk,)] = [[*read_pieces(reading, shard)] for shard in cut(reading, files)]
    assert chunk.table.to_pylist() == [
        {"f": 1.0, "i": 2, "s": "3", "plz": "01234", "id": 7, "x": 0.5, "t": "2024-01-02"}
    ]


@pytest.mark.parametrize(
    "dtype, cells, kind",
    [
        ("float32", ["true", "false"], "bool"),
        ("float32", ["1", "0"], "double"),
        ("bool", ["1", "0"], "bool"),
        ("float32", ["[1, 2]", "[3, 4]"], "string"),
        ("float32", ["x", "1"], "double"),
        ("uint8", ["1", "2"], "int64"),
    ],
)
def test_text_of_an_input_has_the_type_its_dtype_needs(
    tmp_path: Path, dtype: str, cells: list[str], kind: str
) -> None:
    csv.write_csv(pa.table({"a": cells, "b": cells}), tmp_path / "a.csv")
    reading, _ = opened(tmp_path, signature=Signature("", (TensorSpec("x", dtype, (-1,), ("a",)),), ()))
    assert reading.types == {"a": kind}


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".arrow"])
def test_a_table_that_lacks_a_column_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(table_of(3), tmp_path / f"a{suffix}")
    with pytest.raises(InputError, match="has no column 'naem'") as caught:
        opened(path, columns=["naem"])
    assert "did you mean 'name'?" in str(caught.value.hint)
    reading = Reading(str(path), ("naem",), {"naem": "string"})
    with pytest.raises(InputError, match=f"a{suffix} has no column 'naem'"):
        list(read(reading, Piece(*list_files(str(path)))))


def test_a_table_without_rows_is_refused_unless_it_has_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\n")
    with pytest.raises(InputError, match=r"holds no rows: a\.csv is empty"):
        opened(tmp_path)
    write(table_of(0), tmp_path / "b.parquet")
    reading, files = opened(tmp_path)
    assert not [
        chunk for shard in cut(reading, files) for chunk in read_pieces(reading, shard) if len(chunk.rows)
    ]


# the quarantine


def test_rows_of_a_quarantine_are_read_as_they_were_in_their_file(tmp_path: Path) -> None:
    table = pa.table(
        {
            "origin_file": ["a.csv"] * 4,
            "origin_row": [5, 6, 7, 8],
            "reason": ["w"] * 4,
            "a": ["1.5", "viel", None, ""],
            "name": ["007", "x", None, "y"],
            "line": [None, None, "1,2,3", None],
        }
    )
    path = tmp_path / "_quarantine" / "part-00000.parquet"
    write(table, path)
    (file,) = list_files(str(path.parent))
    reading = Reading(
        str(path.parent),
        ("a", "name", "origin_row"),
        {"a": "double", "name": "string", "origin_row": "int64"},
    )
    rows, _, refused = joined(reading, [[Piece(file)]])
    assert rows.to_pydict() == {"a": [1.5, None], "name": ["007", "y"], "origin_row": [5, 8]}
    assert [(each.row, each.reason, dict(each.values)) for each in refused] == [
        (1, "column 'a': 'viel' is not a number", {"a": "viel", "name": "x", "origin_row": "6"}),
        (2, "w", {"line": "1,2,3"}),
    ]
    assert [kind for kind in ("csv", "jsonl", "parquet", "ipc", "image") if is_text(kind)] == ["csv"]


# images


def test_images_are_packed_and_a_damaged_one_is_refused_by_itself(tmp_path: Path) -> None:
    for index in range(130):
        Image.new("L", (3, 2), index).save(tmp_path / f"{index:03d} ü.png")
    (tmp_path / "005 ü.png").write_bytes(b"no image")
    (tmp_path / "006 ü.png").write_bytes(b"")
    Image.new("L", (4, 4)).save(tmp_path / "007 ü.png")
    signature = Signature("", (TensorSpec("x", "uint8", (-1, 1, 2, 3), ("bild",)),), ())
    files = list_data(str(tmp_path))
    layout = ImageLayout("bild", (1, 2, 3))
    reading = survey(str(tmp_path), files, signature=signature, columns=["file"], layout=layout)
    (shard,) = cut(reading, files)
    assert len(shard) == 130
    chunks = list(read_pieces(reading, shard))
    assert [len(chunk.rows) + len(chunk.refused) for chunk in chunks] == [64, 64, 2]
    refused = [each for chunk in chunks for each in chunk.refused]
    assert [each.values for each in refused] == [{"file": f"00{index} ü.png"} for index in (5, 6, 7)]
    assert [each.row for each in refused] == [0, 0, 0]
    pixels = [row[0] for chunk in chunks for row in chunk.table.column("bild").to_pylist()]
    assert pixels == [index for index in range(130) if index not in (5, 6, 7)]
    names = [name for chunk in chunks for name in chunk.files]
    assert names == [name for chunk in chunks for name in chunk.table.column("file").to_pylist()]
    assert next(read(reading, shard[9])).files == ("009 ü.png",)
    with pytest.raises(InputError, match="images have no column 'größe'"):
        survey(str(tmp_path), files, signature=signature, columns=["größe"], layout=layout)


# files that do not stay


FORMATS = [".parquet", ".csv", ".jsonl", ".arrow", ".ipc"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_vanishes_changes_or_shrinks_stops_the_run(tmp_path: Path, suffix: str) -> None:
    path = write(table_of(30), tmp_path / f"a{suffix}")
    reading, (file,) = opened(path)
    content = path.read_bytes()
    for damage, message in (
        (content[: len(content) // 2], f"a{suffix} changed during the run: it has"),
        (content, f"a{suffix} changed during the run: it was written again"),
    ):
        path.write_bytes(damage)
        os.utime(path, ns=(file.modified_ns + 1, file.modified_ns + 1))
        with pytest.raises(InputError, match=message):
            list(read(reading, Piece(file)))
    path.unlink()
    with pytest.raises(InputError, match=f"a{suffix} vanished during the run") as caught:
        list(read(reading, Piece(file)))
    assert caught.value.hint


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_changes_while_it_is_read_stops_the_run(tmp_path: Path, suffix: str) -> None:
    path = write(table_of(30), tmp_path / f"a{suffix}")
    reading, (file,) = opened(path)
    chunks = read(replace(reading, chunk_bytes=50), Piece(file))
    assert len(next(chunks).rows)
    os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match=f"a{suffix} changed during the run"):
        list(chunks)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".ipc"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = write(table_of(1000), tmp_path / f"a{suffix}", group=100)
    reading, _ = opened(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    (file,) = list_files(str(path))
    with pytest.raises(InputError, match=f"a{suffix}"):
        list(read(reading, Piece(file)))


def test_a_name_that_lies_about_its_format_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"a,b\n1,2\n" * 200_000)
    (tmp_path / "a.arrow").write_bytes(b"a,b\n1,2\n")
    for name in ("a.parquet", "a.arrow"):
        (file,) = list_files(str(tmp_path / name))
        with pytest.raises(InputError, match=f"{name}.* cannot be read"):
            list(read(Reading(str(tmp_path), ("a",), {}), Piece(file)))
    files: tuple[TableFile, ...] = list_files(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match=r"a\.parquet.* cannot be read"):
        cut(Reading(str(tmp_path), ("a",), {}), files)
