"""The plan of a batch run: every row of the table in exactly one shard, whatever the files are like."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pyarrow import csv, parquet

from jobs.predict import Shard, _read, _row_of_file, plan
from kit.errors import InputError
from kit.tables import list_files


def write(folder: Path, sizes: list[int], *, group_rows: int = 7) -> None:
    folder.mkdir(exist_ok=True)
    start = 0
    for index, n_rows in enumerate(sizes):
        table = pa.table({"id": pa.array(range(start, start + n_rows), pa.int64())})
        parquet.write_table(table, folder / f"{index:02d}.parquet", row_group_size=group_rows)
        start += n_rows


def planned(folder: Path, *, shard_rows: int) -> tuple[Shard, ...]:
    return plan(str(folder), list_files(str(folder)), shard_rows=shard_rows)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=some.lists(some.integers(0, 40), min_size=1, max_size=4),
    shard_rows=some.integers(1, 50),
    group_rows=some.integers(1, 20),
)
def test_the_shards_hold_every_row_once_and_in_order(
    tmp_path: Path, sizes: list[int], shard_rows: int, group_rows: int
) -> None:
    folder = tmp_path / "table"
    for old in folder.glob("*"):
        old.unlink()
    write(folder, sizes, group_rows=group_rows)
    shards = planned(folder, shard_rows=shard_rows)
    tables = [_read(str(folder), shard) for shard in shards]
    assert [row for table in tables for row in table["id"].to_pylist()] == list(range(sum(sizes)))
    assert all(0 < len(table) <= shard_rows for table in tables)
    assert [len(table) for table in tables] == [shard.n_rows for shard in shards]


def test_the_same_table_gives_the_same_plan(tmp_path: Path) -> None:
    write(tmp_path / "a", [10, 3])
    assert planned(tmp_path / "a", shard_rows=4) == planned(tmp_path / "a", shard_rows=4)
    names = [shard.part for shard in planned(tmp_path / "a", shard_rows=4)]
    assert names == [f"part-{index:05d}.parquet" for index in range(4)]


def test_a_csv_file_is_one_shard(tmp_path: Path) -> None:
    csv.write_csv(pa.table({"id": [1, 2, 3]}), tmp_path / "rows.csv")
    (shard,) = planned(tmp_path, shard_rows=2)
    assert (shard.start, shard.n_rows) == (0, None)
    assert _read(str(tmp_path), shard)["id"].to_pylist() == [1, 2, 3]


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read as parquet"):
        planned(tmp_path, shard_rows=10)


def test_a_message_names_the_row_of_the_file_not_of_the_shard(tmp_path: Path) -> None:
    write(tmp_path / "a", [10])
    second = planned(tmp_path / "a", shard_rows=4)[1]
    assert _row_of_file("input 'x', row 2: NaN", second) == "input 'x', row 6: NaN"
    assert _row_of_file("column 'x' is missing", second) == "column 'x' is missing"
