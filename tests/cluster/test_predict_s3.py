"""A batch run from S3 onto S3, through an endpoint that fails for a while and in the middle of parts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.predict import predict
from jobs.runs import runs
from kit.errors import ConflictError
from kit.settings import RunsSettings
from tests.cluster.test_predict import reference, settings
from tests.faults import Faults

N_ROWS = 120_000


@pytest.fixture
def faults(s3_endpoint: str, s3_environment: pytest.MonkeyPatch) -> Iterator[Faults]:
    with Faults(s3_endpoint) as proxy:
        s3_environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def bucket(lab: Any, tmp_path: Path, faults: Faults) -> Iterator[Any]:
    """A bucket with a table in it."""
    made = boto3.session.Session().resource("s3").create_bucket(Bucket="answers")
    table = lab.table(N_ROWS, seed=2)
    for index in range(2):
        part = table.slice(index * 60_000, 60_000)
        parquet.write_table(part, tmp_path / f"{index}.parquet", row_group_size=10_000)
        made.upload_file(str(tmp_path / f"{index}.parquet"), f"the rows/{index} ü.parquet")
    yield made
    made.objects.all().delete()
    made.delete()


def answers(bucket: Any, folder: Path) -> pa.Table:
    folder.mkdir()
    names = sorted(each.key for each in bucket.objects.filter(Prefix="out/part-"))
    for name in names:
        bucket.download_file(name, str(folder / Path(name).name))
    return parquet.read_table(folder)


def test_a_table_on_s3_is_answered_onto_s3_and_resumed_there(
    lab: Any, trained: Any, tmp_path: Path, bucket: Any
) -> None:
    given = {"columns": ["id"], "shard_rows": 10_000, "batch_rows": 256}
    chosen = settings(trained.project, "s3://answers/the rows/*.parquet", "s3://answers/out", **given)
    result = predict(trained.project, chosen)
    assert (result.rows_in, result.rows_out, result.n_parts) == (N_ROWS, N_ROWS, 12)
    found = answers(bucket, tmp_path / "found")
    assert found["id"].to_pylist() == list(range(N_ROWS))
    expected = reference(trained.project, lab.table(N_ROWS, seed=2))["label"].tolist()
    assert found["label"].to_pylist() == expected
    again = predict(trained.project, chosen)
    assert again.n_resumed == 12
    other = settings(trained.project, "s3://answers/the rows", "s3://answers/out", **given, codec="snappy")
    with pytest.raises(ConflictError, match="codec is 'snappy' and was 'zstd'"):
        predict(trained.project, other)
    checked = runs(trained.project, RunsSettings(action="verify", output="s3://answers/out"))
    assert (checked.files, checked.wrong) == (12, ())


def test_an_endpoint_that_fails_for_a_while_and_in_the_middle_of_parts_costs_no_row(
    lab: Any, trained: Any, tmp_path: Path, bucket: Any, faults: Faults
) -> None:
    busy = faults.answer(503, "SlowDown", times=6)
    cut = faults.cut_request(after_bytes=2000, times=3, only=r"PUT .*/out/part-\d+")
    unheard = faults.cut_answer(times=3, only=r"PUT .*/out/(part-|_run/commits/)")
    given = {"columns": ["id"], "shard_rows": 10_000, "batch_rows": 256}
    result = predict(
        trained.project, settings(trained.project, "s3://answers/the rows", "s3://answers/out", **given)
    )
    assert (busy.n_done, cut.n_done, unheard.n_done) == (6, 3, 3)
    assert (result.rows_in, result.rows_out, result.n_parts) == (N_ROWS, N_ROWS, 12)
    assert answers(bucket, tmp_path / "found")["id"].to_pylist() == list(range(N_ROWS))
    assert runs(trained.project, RunsSettings(action="verify", output="s3://answers/out")).wrong == ()


def test_the_manifest_and_the_commits_are_created_and_never_replaced(
    lab: Any, trained: Any, bucket: Any, faults: Faults
) -> None:
    predict(trained.project, settings(trained.project, "s3://answers/the rows", "s3://answers/out"))
    created = re.compile(r"PUT .*/_run/(commits/.*|manifest|plan)\.json")
    writes = [each for each in faults.seen if created.search(each.line)]
    assert len(writes) >= 3
    assert all(each.headers.get("if-none-match") == "*" for each in writes)
    body = bucket.Object("out/_run/manifest.json").get()["Body"].read()
    assert json.loads(body)["rows_in"] == N_ROWS
