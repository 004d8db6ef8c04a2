"""The Parquet files of a shard: whole, hashed, in order, and Hive folders that other readers read back."""

from __future__ import annotations

import datetime
import errno
import gc
import random
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pyarrow import dataset, parquet

from jobs.batch.ledger import PartFile
from jobs.batch.parts import Layout, Parts
from jobs.batch.places import open_place
from jobs.batch.places.folder import FolderPlace
from kit.errors import InputError, UnavailableError
from kit.files import sha256_file
from kit.settings.batch import Codec

MARK = "_run/commits/part-00000.json"
NAME = "part-00000.parquet"


def write(folder: Path, *tables: pa.Table, layout: Layout | None = None) -> tuple[PartFile, ...]:
    with Parts(open_place(str(folder)), name=NAME, layout=layout or Layout()) as parts:
        for each in tables:
            parts.write(each)
        return parts.finish(mark=MARK)


def partitioned(folder: Path, values: Any, *more: pa.Table) -> tuple[PartFile, ...]:
    table = pa.table({"v": values, "n": range(len(values))})
    return write(folder, table, *more, layout=Layout(partition_by=("v",)))


def all_files(folder: Path) -> list[str]:
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())


def numbers(path: Path) -> list[int]:
    found: list[int] = parquet.ParquetFile(path).read()["n"].to_pylist()
    return found


def groups(path: Path) -> list[int]:
    metadata = parquet.read_metadata(path)
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


def test_a_part_is_named_with_its_size_digest_and_rows(tmp_path: Path) -> None:
    (file,) = write(tmp_path, *(pa.table({"n": range(at, at + 10)}) for at in range(0, 50, 10)))
    path = tmp_path / NAME
    assert file == PartFile(NAME, path.stat().st_size, sha256_file(path), 50)
    assert numbers(path) == list(range(50))
    assert all_files(tmp_path) == [NAME]


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    tables = [pa.table({"n": range(1000), "s": [str(each) for each in range(1000)]})] * 3
    layout = Layout(row_group_rows=700)
    assert write(tmp_path / "a", *tables, layout=layout) == write(tmp_path / "b", *tables, layout=layout)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_every_codec_that_can_be_set_is_the_one_in_the_file(tmp_path: Path, codec: str) -> None:
    write(tmp_path, pa.table({"n": range(10)}), layout=Layout(codec=codec))
    found = parquet.read_metadata(tmp_path / NAME).row_group(0).column(0).compression
    assert found == {"none": "UNCOMPRESSED"}.get(codec, codec.upper())
    assert numbers(tmp_path / NAME) == list(range(10))


@pytest.mark.parametrize(
    "sizes, limit, made",
    [((10,), 100, [10]), ((3, 3, 3), 5, [5, 1, 3]), ((100,), 30, [30, 30, 30, 10]), ((5, 5), 5, [5, 5])],
)
def test_a_row_group_has_no_more_rows_than_allowed(
    tmp_path: Path, sizes: tuple[int, ...], limit: int, made: list[int]
) -> None:
    tables = [pa.table({"n": range(size)}) for size in sizes]
    write(tmp_path, *tables, layout=Layout(row_group_rows=limit))
    assert groups(tmp_path / NAME) == made


@pytest.mark.parametrize("n_tables", [1, 6])
def test_large_rows_make_smaller_row_groups(tmp_path: Path, n_tables: int) -> None:
    blob = pa.array([b"\0" * (1 << 20)] * (96 // n_tables), pa.binary())  # 96 MiB in all
    write(tmp_path, *[pa.table({"blob": blob})] * n_tables, layout=Layout(codec="snappy"))
    assert groups(tmp_path / NAME) == [32, 32, 32]


@pytest.mark.parametrize("layout", [Layout(), Layout(partition_by=("v",))])
def test_no_rows_make_no_file(tmp_path: Path, layout: Layout) -> None:
    empty = pa.table({"v": pa.array([], pa.string()), "n": pa.array([], pa.int64())})
    assert write(tmp_path, layout=layout) == ()
    assert write(tmp_path, empty, empty, layout=layout) == ()
    assert all_files(tmp_path) == []


def test_rows_after_no_rows_are_written(tmp_path: Path) -> None:
    table = pa.table({"n": range(3)})
    (file,) = write(tmp_path, table.slice(0, 0), table, table.slice(0, 0))
    assert file.rows == 3


@pytest.mark.parametrize("by", [(), ("v",)])
def test_a_shard_that_is_left_early_leaves_nothing_behind(tmp_path: Path, by: tuple[str, ...]) -> None:
    table = pa.table({"v": ["a", "b"] * 50, "n": range(100)})
    place = open_place(str(tmp_path))
    with Parts(place, name=NAME, layout=Layout(row_group_rows=10, partition_by=by)) as parts:
        parts.write(table)
        assert place.leftovers(), "it was being written"
    del parts
    gc.collect()  # what Arrow still holds is closed now, and must not write any more
    assert all_files(tmp_path) == []


class FullDisk(FolderPlace):
    """A folder whose disk has no room for what is spooled."""

    def spool(self, name: str) -> Path:
        path = super().spool(name)
        path.symlink_to("/dev/full")
        return path


@pytest.mark.parametrize("n_rows", [10, 200_000])
def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing_behind(tmp_path: Path, n_rows: int) -> None:
    table = pa.table({"n": np.random.default_rng(0).random(n_rows)})

    def fill() -> None:
        with Parts(FullDisk(tmp_path), name=NAME, layout=Layout(row_group_rows=100_000)) as parts:
            parts.write(table)
            parts.finish(mark=MARK)

    with pytest.raises(UnavailableError, match=r"the disk that holds .* is full") as caught:
        fill()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


AWKWARD = (
    "DE",
    "a/b",
    "São Tomé",
    "日本",
    "..",
    ".",
    ".hidden",
    "_under",
    "a=b",
    "x%41",
    "50%",
    "a:b",
    "it's",
    '"q"',
    "a+b c",
    "#?*[x]{y}",
    "\\back",
    "tab\tnl\n",
    "NULL",
    "null",
    "1",
    "true",
    " ",
    "😀",
)


def read_back(folder: Path, kind: pa.DataType, sql: str) -> tuple[list[Any], list[Any]]:
    """Read all rows by pyarrow and by DuckDB, as (n, v) sorted by n."""
    flavour = dataset.partitioning(flavor="hive", schema=pa.schema([("v", kind)]))
    table = dataset.dataset(folder, partitioning=flavour).to_table(columns=["n", "v"]).sort_by("n")
    rows = duckdb.sql(
        f"select n, v from read_parquet('{folder}/**/*.parquet', hive_partitioning=true, "
        f"hive_types={{'v': {sql}}}) order by n"
    ).fetchall()
    return list(zip(table["n"].to_pylist(), table["v"].to_pylist(), strict=True)), rows


def test_any_text_makes_a_folder_that_other_readers_read_back(tmp_path: Path) -> None:
    values = [*AWKWARD, None] * 2
    files = partitioned(tmp_path, values)
    assert len(files) == len(AWKWARD) + 1
    by_arrow, by_duckdb = read_back(tmp_path, pa.string(), "VARCHAR")
    assert by_arrow == by_duckdb == list(enumerate(values))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some.lists(some.none() | some.text(some.characters(exclude_categories=["Cs"]), max_size=12), min_size=1)
)
def test_whatever_text_there_is_it_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[str | None]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    partitioned(folder, pa.array(values, pa.string()))
    table = dataset.dataset(
        folder, partitioning=dataset.partitioning(flavor="hive", schema=pa.schema([("v", pa.string())]))
    )
    rows = table.to_table(columns=["n", "v"]).sort_by("n")
    assert rows["v"].to_pylist() == [value or None for value in values]


@pytest.mark.parametrize(
    "values, sql, folders",
    [
        (pa.array([True, False, None]), "BOOLEAN", ["false", "true"]),
        (pa.array([-1, 0, 10**15, None]), "BIGINT", ["-1", "0", "1000000000000000"]),
        (pa.array([0.5, -2.0, None]), "DOUBLE", ["-2.0", "0.5"]),
        (pa.array([datetime.date(2026, 2, 28), None]), "DATE", ["2026-02-28"]),
        (pa.array(["a", "b", None]).dictionary_encode(), "VARCHAR", ["a", "b"]),
    ],
)
def test_values_of_other_types_are_read_back(
    tmp_path: Path, values: pa.Array, sql: str, folders: list[str]
) -> None:
    partitioned(tmp_path, values)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        f"v={each}" for each in (*folders, "__HIVE_DEFAULT_PARTITION__")
    )
    kind = pa.string() if pa.types.is_dictionary(values.type) else values.type
    by_arrow, by_duckdb = read_back(tmp_path, kind, sql)
    assert by_arrow == by_duckdb == list(enumerate(values.to_pylist()))


def test_numbers_are_guessed_as_numbers_by_both_readers(tmp_path: Path) -> None:
    partitioned(tmp_path, pa.array([2026, 2027] * 3))
    arrow = dataset.dataset(tmp_path, partitioning="hive").to_table().sort_by("n")["v"].to_pylist()
    rows = duckdb.sql(f"select v from read_parquet('{tmp_path}/**/*.parquet') order by n").fetchall()
    assert arrow == [row[0] for row in rows] == [2026, 2027] * 3


def test_rows_keep_their_order_in_every_partition(tmp_path: Path) -> None:
    draw = random.Random(0)
    values = [draw.choice(["a", "b", "", None, "c"]) for _ in range(1000)]
    tables = [
        pa.table({"v": values[at : at + 99], "n": range(at, min(at + 99, 1000))}) for at in range(0, 1000, 99)
    ]
    files = write(tmp_path, *tables, layout=Layout(row_group_rows=50, partition_by=("v",)))
    seen = [numbers(tmp_path / file.name) for file in files]
    assert all(each == sorted(each) for each in seen)
    assert sorted(number for each in seen for number in each) == list(range(1000))
    assert [file.rows for file in files] == [len(each) for each in seen]
    assert [file.name for file in files] == sorted(file.name for file in files)
    assert all(file.sha256 == sha256_file(tmp_path / file.name) for file in files)


def test_two_columns_make_folders_in_folders_and_are_not_in_the_files(tmp_path: Path) -> None:
    table = pa.table({"b": ["x", "y", "x"], "n": [0, 1, 2], "a": [1, 1, 1]})
    files = write(tmp_path, table, layout=Layout(partition_by=("a", "b")))
    assert [file.name for file in files] == [f"a=1/b=x/{NAME}", f"a=1/b=y/{NAME}"]
    assert parquet.ParquetFile(tmp_path / files[0].name).schema_arrow.names == ["n"]
    assert numbers(tmp_path / files[0].name) == [0, 2]


@pytest.mark.parametrize("name", ["a/b", "a=b", ".x", "_x", "", "a\0b"])
def test_a_column_whose_name_readers_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot begin the name of a folder"):
        write(tmp_path, pa.table({name: ["x"], "n": [1]}), layout=Layout(partition_by=(name,)))
    assert all_files(tmp_path) == []


@pytest.mark.parametrize("values", [[[1], [2]], [{"k": 1}], [b"\xff"]])
def test_a_column_of_values_that_are_no_folder_s_name_is_refused(tmp_path: Path, values: list[Any]) -> None:
    with pytest.raises(InputError, match="partition_by names 'v', which holds values of type"):
        partitioned(tmp_path, values)


@pytest.mark.parametrize("value", ["x" * 300, "日" * 30])
def test_a_value_that_is_too_long_for_a_folder_is_refused(tmp_path: Path, value: str) -> None:
    partitioned(tmp_path / "long", ["x" * 200])
    with pytest.raises(InputError, match="too long for the name of a folder"):
        partitioned(tmp_path / "out", ["a", value])
    assert all_files(tmp_path / "out") == []


@pytest.mark.parametrize("by, said", [(("v",), "leaves no column to write"), (("v", "v"), "names 'v' twice")])
def test_partitions_that_leave_nothing_to_write_are_refused(
    tmp_path: Path, by: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        write(tmp_path, pa.table({"v": ["x"]}), layout=Layout(partition_by=by))


def test_a_column_of_too_many_values_is_refused(tmp_path: Path) -> None:
    table = pa.table({"v": range(1001), "n": range(1001)})
    with Parts(open_place(str(tmp_path)), name=NAME, layout=Layout(partition_by=("v",))) as parts:
        parts.write(table.slice(0, 1000))
        with pytest.raises(InputError, match="v has more than 1000 values in a shard"):
            parts.write(table.slice(1000))
    assert all_files(tmp_path) == []


def test_decimals_and_times_make_folders(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    partitioned(tmp_path / "a", pa.array([Decimal("1.50")]))
    partitioned(tmp_path / "b", pa.array([moment]))
    assert all_files(tmp_path) == [f"a/v=1.50/{NAME}", f"b/v=2026-01-02 03%3A04%3A00+00%3A00/{NAME}"]
