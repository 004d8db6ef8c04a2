"""A retry of the quarantine: which rows it takes, what it shares with its run, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from jobs.batch import retry
from jobs.batch.ledger import Commit, Ledger, PartFile
from jobs.batch.places import Place, open_place
from jobs.batch.plan import Plan, make_shards, shaping
from jobs.batch.sources import Piece, Reading, read
from kit.errors import ConflictError, InputError, SettingsError
from kit.files import sha256_bytes
from kit.model_version import ModelVersion
from kit.project import Project
from kit.registry import VersionRecord
from kit.settings import PredictSettings
from kit.tables import TableFile

COLUMNS = ("origin_file", "origin_row", "reason", "width", "height")
ROWS = [("a.csv", 3, "too large", 99.0, 1.0), ("a.csv", 8, "a value is missing", None, 2.0)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "out"))


@pytest.fixture
def run(place: Place, tmp_path: Path) -> Ledger:
    """A finished run with two rows in quarantine."""
    ledger = Ledger(place)
    file = TableFile(str(tmp_path / "a.csv"), "a.csv", "csv", 10, 1)
    plan = Plan(
        model="tiny@1",
        digest="d" * 64,
        settings=shaping(settings(origin=True, codec="snappy")),
        reading=Reading(str(tmp_path), ("width", "height"), {"width": "float", "height": "float"}),
        files=(file,),
        shards=make_shards([[Piece(file)]], prefix="", files=(file,)),
    )
    ledger.create("plan", plan.to_json())
    commit(ledger, "part-00000", ROWS)
    ledger.create("manifest", {})
    return ledger


def commit(ledger: Ledger, shard: str, rows: list[tuple[Any, ...]]) -> None:
    """Commit a shard of which these rows were refused."""
    name = f"_quarantine/{shard}.parquet"
    sink = pa.BufferOutputStream()
    parquet.write_table(table(rows), sink)
    data = sink.getvalue().to_pybytes()
    if rows:
        ledger.place.put(name, data)
    aside = PartFile(name, len(data), sha256_bytes(data), len(rows)) if rows else None
    many = len(rows)
    ledger.commit(Commit(shard, many, 0, many, (), aside, {}, {}, 1.0, 2.0, "a", "local", 64, (), {}))


def table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    return pa.table(dict(zip(COLUMNS, map(list, columns), strict=True)))


def settings(**chosen: Any) -> PredictSettings:
    return PredictSettings.model_validate(
        {"model": "tiny", "output": "out", "retry_quarantine": True, **chosen}
    )


@pytest.fixture
def prepared(digits_project: Path, tiny_version: ModelVersion, place: Place) -> Any:
    """Prepares a retry with these settings."""

    def prepare(**chosen: Any) -> tuple[PredictSettings, Ledger, Plan]:
        record = VersionRecord("tiny", 2, "e" * 64, "", 1, {}, ())
        return retry.prepared(Project.open(digits_project), settings(**chosen), record, tiny_version, place)

    return prepare


def test_a_retry_takes_the_rows_in_quarantine_as_they_stand_there(run: Ledger, prepared: Any) -> None:
    chosen, ledger, plan = prepared()
    assert (ledger.retry, plan.model, plan.digest) == (1, "tiny@2", "e" * 64)
    assert [shard.name for shard in plan.shards] == ["retry-001-part-00000"]
    assert (chosen.origin, chosen.codec) == (True, "snappy"), "as the run wrote them"
    chunks = [chunk for shard in plan.shards for piece in shard.pieces for chunk in read(plan.reading, piece)]
    rows = pa.concat_tables([chunk.table for chunk in chunks])
    assert rows["origin_row"].to_pylist() == [3, 8]
    assert rows["width"].to_pylist() == [99.0, None]


def test_a_retry_that_was_not_finished_is_taken_up_and_a_finished_one_is_followed(
    run: Ledger, prepared: Any
) -> None:
    _, first, plan = prepared()
    assert prepared()[2] == plan
    commit(first, "retry-001-part-00000", ROWS[:1])
    first.create("manifest", {})
    _, second, following = prepared()
    assert second.retry == 2
    assert [file.name for file in following.files] == ["retry-001-part-00000.parquet"]
    commit(second, "retry-002-part-00000", [])
    second.create("manifest", {})
    with pytest.raises(InputError, match=r"no row of .* is in quarantine"):
        prepared()


def test_an_unfinished_run_and_a_folder_without_one_cannot_be_retried(
    place: Place, run: Ledger, prepared: Any
) -> None:
    place.delete(["_run/manifest.json"])
    with pytest.raises(ConflictError, match="is not finished"):
        prepared()
    place.delete(["_run/plan.json"])
    with pytest.raises(InputError, match="holds no batch run"):
        prepared()


def test_another_retry_does_not_replace_one_that_was_begun(run: Ledger, prepared: Any) -> None:
    prepared()
    _, ledger, plan = prepared(batch_rows=7)
    assert plan.settings["batch_rows"] == 7, "nothing was done yet"
    commit(ledger, "retry-001-part-00000", ROWS[:1])
    with pytest.raises(ConflictError, match=r"an unfinished retry in .* is another one"):
        prepared(batch_rows=8)


def test_a_setting_the_run_and_its_retry_share_cannot_be_changed(run: Ledger, prepared: Any) -> None:
    prepared(codec="snappy")
    with pytest.raises(SettingsError, match="codec is 'gzip', and the run's was 'snappy'"):
        prepared(codec="gzip")


def corrected(folder: Path, rows: list[tuple[Any, ...]]) -> str:
    path = folder / "corrected.csv"
    csv.write_csv(table(rows), path)
    return str(path)


def test_corrected_rows_are_those_in_quarantine_in_any_order(
    run: Ledger, prepared: Any, tmp_path: Path
) -> None:
    uri = corrected(tmp_path, [(*ROWS[1][:3], 1.0, 2.0), (*ROWS[0][:3], 9.0, 1.0)])
    plan = prepared(input=uri)[2]
    assert [file.path for file in plan.files] == [uri]


@pytest.mark.parametrize(
    "rows, said",
    [
        (ROWS[:1], "lacks row 8 of a.csv, which is in quarantine"),
        ([*ROWS, ("a.csv", 4, "", 1.0, 1.0)], "holds row 4 of a.csv, which is not in quarantine"),
        ([*ROWS, ROWS[0]], "holds 3 rows for 2 in quarantine"),
        ([("b.csv", *ROWS[0][1:]), ROWS[1]], "lacks row 3 of a.csv"),
        ([("a.csv", None, "", 1.0, 1.0), ROWS[1]], "origin_row"),
        ([("a.csv", "third", "", 1.0, 1.0), ("a.csv", "8", "", 1.0, 1.0)], "origin_row"),
    ],
)
def test_corrected_rows_that_are_not_those_in_quarantine_are_refused(
    run: Ledger, prepared: Any, tmp_path: Path, rows: list[tuple[Any, ...]], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        prepared(input=corrected(tmp_path, rows))
    assert said in caught.value.message
