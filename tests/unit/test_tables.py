from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from kit.errors import InputError
from kit.manifest import fingerprint
from kit.signature import Signature
from kit.tables import list_files, read_table, to_tensors
from kit.tensors import TensorSpec

ROWS = {"größe in cm": [1.5, None, 3.0], "name": ["a", None, "ü, \n"], "n": [1, 2, 3]}
TABLE = pa.table(ROWS)
SIGNATURE = Signature(
    "",
    (
        TensorSpec("size", "float32", (-1, 1), ("größe in cm",), nullable=True),
        TensorSpec("name", "string", (-1, 1), ("name",), nullable=True),
        TensorSpec("n", "int64", (-1,), ("n",)),
    ),
    (),
)


def write(table: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    return path


def spec(dtype: str = "float32", *shape: int, nullable: bool = False) -> Signature:
    return Signature("", (TensorSpec("x", dtype, (-1, *shape), ("a",), nullable=nullable),), ())


def tensor(column: Any, signature: Signature) -> np.ndarray:
    return to_tensors(pa.table({"a": column}), signature)["x"]


# reading


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    table = read_table(str(write(TABLE, tmp_path / f"ein name{suffix}")))
    tensors = to_tensors(table, SIGNATURE)
    np.testing.assert_array_equal(tensors["size"], np.array([[1.5], [np.nan], [3.0]], dtype=np.float32))
    assert tensors["name"].tolist() == [["a"], [""], ["ü, \n"]]
    assert tensors["n"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", "code,day,x\n01,2024-01-02,1\n2,2024-01-03,2\n"),
        (
            "t.jsonl",
            '{"code": "01", "day": "2024-01-02", "x": 1}\n{"code": "2", "day": "2024-01-03", "x": 2}\n',
        ),
    ],
)
def test_a_string_that_looks_like_a_number_or_a_date_stays_a_string(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    table = read_table(str(tmp_path / name), strings=["code", "day", "elsewhere"])
    assert table.to_pydict() == {"code": ["01", "2"], "day": ["2024-01-02", "2024-01-03"], "x": [1, 2]}


def test_a_folder_is_one_table_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for name, first in (("b.parquet", 10), ("a.csv", 0), ("c/d.jsonl", 20)):
        write(pa.table({"n": [first, first + 1]}), folder / name)
    for hidden in (".ds.csv", "_SUCCESS.csv", "_temporary/x.csv", "readme.txt"):
        write(pa.table({"n": [99]}), (folder / hidden).with_suffix(".csv"))
        (folder / hidden).with_suffix(".csv").rename(folder / hidden)
    assert [file.name for file in list_files(str(folder))] == ["a.csv", "b.parquet", "c/d.jsonl"]
    for uri in (str(folder), f"{folder}/"):
        assert read_table(uri).column("n").to_pylist() == [0, 1, 10, 11, 20, 21]


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        path = str(write(TABLE, tmp_path / f"t{suffix}"))
        assert read_table(path, columns=["n"]).column_names == ["n"]
        with pytest.raises(InputError, match="has no column 'naem'") as caught:
            read_table(path, columns=["naem"])
        assert "did you mean 'name'?" in str(caught.value.hint)


def test_a_name_no_file_can_have_is_refused() -> None:
    with pytest.raises(InputError, match="is no place of a table"):
        list_files("rows\0.csv")


def test_types_of_a_column_that_clash_are_named_with_their_files(tmp_path: Path) -> None:
    write(pa.table({"n": [1]}), tmp_path / "a.parquet")
    write(pa.table({"n": ["x"]}), tmp_path / "b.parquet")
    message = r"column 'n' holds values of type int64 in a\.parquet and of type string in b\.parquet"
    for columns in (None, ["n"]):
        with pytest.raises(InputError, match=message) as caught:
            read_table(str(tmp_path), columns=columns)
        assert caught.value.hint == "store the column with one type in every file"


@pytest.mark.parametrize("lacking, owner", [("a.csv", "b.parquet"), ("b.parquet", "a.csv")])
def test_a_file_that_lacks_a_column_of_another_is_named(tmp_path: Path, lacking: str, owner: str) -> None:
    write(pa.table({"n": [1], "größe": [2]}), tmp_path / owner)
    write(pa.table({"n": [1]}), tmp_path / lacking)
    with pytest.raises(InputError, match=f"{lacking} has no column 'größe', which {owner} has") as caught:
        read_table(str(tmp_path))
    assert caught.value.hint
    assert read_table(str(tmp_path), columns=["n"]).num_rows == 2


def test_numbers_of_different_types_and_columns_in_another_order_go_together(tmp_path: Path) -> None:
    write(pa.table({"n": [1], "m": [1]}), tmp_path / "a.parquet")
    write(pa.table({"m": [2], "n": [0.5]}), tmp_path / "b.parquet")
    write(pa.table({"n": pa.nulls(1), "m": [3]}), tmp_path / "c.parquet")
    assert read_table(str(tmp_path)).to_pydict() == {"n": [1.0, 0.5, None], "m": [1, 2, 3]}


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.csv", b"", r"holds no rows: a\.csv is empty"),
        ("a.csv", b"\n\n", r"holds no rows: a\.csv is empty"),
        ("a.jsonl", b" \n", r"holds no rows: a\.jsonl is empty"),
        ("a.parquet", b"", r"holds no rows: a\.parquet is empty"),
        ("a.csv", "wer\nJürgen\n".encode("latin-1"), r"a\.csv, column 'wer': the text is not UTF-8"),
        ("a.csv", b"a,b\n1\n", r"a\.csv cannot be read as csv"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv has the column 'a' more than once"),
        ("a.jsonl", b"{", r"a\.jsonl cannot be read as jsonl"),
        ("a.jsonl", b'{"a": 1}\n{"a": "x"}\n', r"a\.jsonl cannot be read as jsonl"),
        ("a.parquet", b"PAR1", r"a\.parquet.* cannot be read"),
        ("a.parquet", b"no parquet at all", r"a\.parquet.* cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(str(tmp_path / name))


@pytest.mark.parametrize(
    "uri,message",
    [
        ("nowhere.csv", "does not exist"),
        ("empty", "holds no table"),
        ("a.txt", "holds no table"),
        ("http://host/a.csv", "is neither a path nor an s3:// address"),
        ("s3://bucket/a.csv?region=x", "holds a query"),
    ],
)
def test_a_place_without_a_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=message):
        read_table(uri)


def test_a_fingerprint_changes_with_a_byte_and_not_with_the_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write(TABLE, tmp_path / place / "a.csv")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert fingerprint(one) == fingerprint(two)
    data = (tmp_path / "two" / "a.csv").read_bytes()
    (tmp_path / "two" / "a.csv").write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    assert fingerprint(one) != fingerprint(two)


EMPTY = {
    "a.csv": b"",
    "b.csv": b"n\n",
    "c.jsonl": b"",
    "d.jsonl": b"\n\n",
    "e.parquet": b"",
    "f.csv": b"\n",
    "g.csv": b"other,columns\n",
}


def test_an_empty_file_among_many_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in EMPTY.items():
        (tmp_path / name).write_bytes(content)
    write(pa.table({"n": pa.array([], pa.string())}), tmp_path / "h.parquet")
    write(pa.table({"n": [1, 2]}), tmp_path / "i.parquet")
    for columns in (None, ["n"]):
        caplog.clear()
        with caplog.at_level("WARNING", logger="kit"):
            assert read_table(str(tmp_path), columns=columns).to_pydict() == {"n": [1, 2]}
        assert caplog.messages == [
            "skipped 8 files without rows: a.csv, b.csv, c.jsonl, d.jsonl, e.parquet, ..."
        ]


def test_a_folder_of_empty_files_alone_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "c.jsonl"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no rows: a\.csv is empty"):
        read_table(str(tmp_path))


# columns


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0, 2.0], [3.0, 4.0]]),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.int16())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
        pa.chunked_array([[[1, 2]], [[3, 4]]]),
        pa.array([[0, 0], [1, 2], [3, 4]], pa.list_(pa.int64(), 2))[1:],
        pa.array(["[1, 2]", "[3, 4]"]),
    ],
)
def test_lists_become_rows(column: Any) -> None:
    assert tensor(column, spec("float32", 2)).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.chunked_array([pa.array(["a", None]).dictionary_encode(), pa.array(["b"]).dictionary_encode()]),
        pa.array(["a", None, "b"], pa.large_string()),
    ],
)
def test_strings_come_in_every_encoding(column: Any) -> None:
    assert tensor(column, spec("string", nullable=True)).tolist() == ["a", "", "b"]


def test_a_column_of_nulls_alone_is_missing_values() -> None:
    assert np.isnan(tensor(pa.nulls(2), spec(nullable=True))).all()
    assert tensor(pa.nulls(2), spec("string", nullable=True)).tolist() == ["", ""]


@pytest.mark.parametrize(
    "column,signature,message",
    [
        (pa.array([1, None]), spec("int64"), "column 'a', row 1: a value is missing"),
        (pa.array([True, None]), spec("bool"), "column 'a', row 1: a value is missing"),
        (pa.array([1.0, None]), spec(), r"input 'x' \(column 'a'\), row 1: a value is missing"),
        (pa.array(["1", "x"]), spec(), "column 'a', row 0: '1' is not a number"),
        (pa.array([1, 2]), spec("string"), r"input 'x' \(column 'a'\), row 0: 1 is not a string"),
        (pa.array([1.5]), spec("int64"), "column 'a', row 0: 1.5 is not a whole int64"),
        (pa.array([0], pa.timestamp("s")), spec(), r"column 'a' holds values of type timestamp\[s\]"),
        (pa.array([b"x"]), spec("string"), "column 'a' holds values of type binary"),
        (pa.array([[1, 2], None]), spec("float32", 2), "column 'a', row 1: a value is missing"),
        (pa.array([[1, 2], [3]]), spec("float32", 2), "column 'a', row 1: 1 values where row 0 has 2"),
        (pa.array([[1, 2]]), spec("float32", 3), "column 'a' does not hold 3 values in every row"),
        (pa.array([[1, None]]), spec("float32", 2), r"input 'x' \(column 'a'\), row 0: a value is missing"),
        (pa.array([[[1], [2]]]), spec("float32", 2), "column 'a' holds values of type object"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(column: Any, signature: Signature, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tensor(column, signature)


def test_a_missing_column_comes_with_what_is_there() -> None:
    with pytest.raises(InputError, match="column 'name' is missing") as caught:
        to_tensors(TABLE.rename_columns(["größe in cm", "nmae", "n"]), SIGNATURE)
    assert "did you mean 'nmae'?" in str(caught.value.hint)


def test_a_table_without_rows_gives_empty_tensors(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        table = read_table(str(write(TABLE.slice(0, 0), tmp_path / f"t{suffix}")))
        assert {name: a.shape for name, a in to_tensors(table, SIGNATURE).items()} == {
            "size": (0, 1),
            "name": (0, 1),
            "n": (0,),
        }
    assert tensor(pa.array([], pa.list_(pa.float32())), spec("float32", 2)).shape == (0, 2)
