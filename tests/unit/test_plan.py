"""The plan of a batch run: every row of the table in exactly one shard, whatever the files are like."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pyarrow import csv, parquet

from jobs.cluster import check_reachable, check_room, is_local
from jobs.output import claimed, cleared_on_failure
from jobs.predict import (
    PredictResult,
    Shard,
    _check_count,
    _check_outputs,
    _first_rows,
    _read,
    _row_of_file,
    _with_bytes,
    plan,
)
from kit.errors import ConflictError, GateError, InputError, SettingsError, UnavailableError
from kit.settings import PredictSettings
from kit.signature import Signature, TensorSpec
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


def test_a_string_column_of_a_csv_file_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("code,n\n01,1\n1,2\n")
    (shard,) = planned(tmp_path, shard_rows=10)
    assert _read(str(tmp_path), shard, strings=("code",))["code"].to_pylist() == ["01", "1"]
    assert _first_rows(str(tmp_path), shard.file, strings=("code",))["code"].to_pylist() == ["01"]


def test_a_file_with_a_damaged_page_is_named_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    parquet.write_table(pa.table({"name": ["a", "b"] * 500}), path, compression="zstd", use_dictionary=False)
    shard = planned(tmp_path, shard_rows=10_000)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
    reads: list[Callable[[], pa.Table]] = [
        lambda: _read(str(tmp_path), shard),
        lambda: _first_rows(str(tmp_path), shard.file),
    ]
    for read in reads:
        with pytest.raises(InputError, match=r"damaged\.parquet.* cannot be read") as caught:
            read()
        assert "\n" not in caught.value.message


def test_an_output_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(str(out)):
        assert list_files_of(out) != []
        with pytest.raises(ConflictError, match=f"{out} is held by another run"), claimed(str(out)):
            pass
    assert not out.exists()
    out.mkdir()
    (out / "_running-elsewhere-1-2").touch()
    with pytest.raises(ConflictError) as caught, claimed(str(out)):
        pass
    assert "if it was killed, remove the folder" in str(caught.value.hint)
    assert list_files_of(out) == ["_running-elsewhere-1-2"]


def list_files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_run_takes_back_its_own_parts_only(tmp_path: Path) -> None:
    kept = [".hidden", "part-00001.parquet", "rows.csv"]
    for name in (*kept, "part-00000.parquet", ".part-00000.parquet.x1y2"):
        (tmp_path / name).touch()
    with pytest.raises(KeyboardInterrupt), cleared_on_failure(str(tmp_path), parts={"part-00000.parquet"}):
        raise KeyboardInterrupt
    assert list_files_of(tmp_path) == kept


def test_a_clean_up_that_fails_does_not_hide_why_it_was_needed(
    s3_environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens
    caplog.set_level(logging.WARNING, logger="kit")
    parts = {"part-00000.parquet"}
    with pytest.raises(InputError, match="the real one"), cleared_on_failure("s3://gone/out", parts=parts):
        raise InputError("the real one")
    assert "s3://gone/out could not be cleared" in caplog.text


def test_a_bucket_that_does_not_exist_is_found_before_anything_runs(
    s3_endpoint: str, s3_environment: pytest.MonkeyPatch
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    with pytest.raises(UnavailableError, match="the bucket does not exist"), claimed("s3://never-made/out"):
        pass


def test_outputs_of_which_the_model_has_none_are_refused() -> None:
    regression = Signature("regression", (), (TensorSpec("value", "float32", (-1,)),))
    for outputs, refused in ((["label"], True), (["label", "value"], False), (["valeu"], True)):
        chosen = PredictSettings.model_validate(
            {"model": "m", "input": "in", "output": "out", "outputs": outputs}
        )
        if not refused:
            _check_outputs(chosen, regression)
            continue
        with pytest.raises(InputError, match=f"no output '{outputs[0]}'") as caught:
            _check_outputs(chosen, regression)
        assert "value" in str(caught.value.hint)


def test_rows_that_got_lost_are_a_gate_that_was_missed() -> None:
    result = PredictResult("m@1", "0", "out", 10, 9, 1, 1.0, 9.0, {})
    with pytest.raises(GateError, match="10 rows went in and 9 came out"):
        _check_count(result)


def test_workers_are_held_against_this_machine_but_not_against_a_cluster_that_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    check_room(2, threads=2, address=None)
    for workers, threads, message, hint in (
        (5, 1, "workers = 5, but this machine has 4 CPUs", "set workers to 4"),
        (3, 2, "workers = 3 of 2 threads, but this machine has 4 CPUs", "set workers to 2"),
        (1, 8, "threads = 8, but this machine has 4 CPUs", "set threads to 4"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            check_room(workers, threads=threads, address=None)
        assert hint in str(caught.value.hint)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    check_room(100, threads=2, address="10.0.0.5:6379")


@pytest.mark.parametrize("address", ["http://[x", "http://127.0.0.1:abc", "http://127.0.0.1:99999", "a..b:1"])
def test_an_address_that_is_none_is_refused_in_one_sentence(address: str) -> None:
    with pytest.raises(UnavailableError):
        check_reachable(address)
    if address != "a..b:1":
        with pytest.raises(SettingsError, match="is not an address"):
            is_local(address)


def test_files_without_bytes_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "rows", [3, 2])
    (tmp_path / "rows" / "00.csv").touch()
    uri = str(tmp_path / "rows")
    with caplog.at_level(logging.WARNING, logger="kit"):
        assert [file.name for file in _with_bytes(uri, list_files(uri))] == ["00.parquet", "01.parquet"]
    assert "skipped 1 empty files: 00.csv" in caplog.text
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.csv").touch()
    with pytest.raises(InputError, match=r"holds no rows: a\.csv is empty"):
        _with_bytes(uri, list_files(str(tmp_path / "none")))
