"""Tables on S3: a real server on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import feather, parquet

from jobs.batch.sources import Reading, cut, read_pieces, survey
from kit.errors import InputError, KitError, UnavailableError
from kit.images import ImageLayout, list_data, read_images
from kit.manifest import fingerprint
from kit.signature import Signature
from kit.tables import list_files, read_table

SECRET = "hunter2-secret"


@pytest.fixture
def folder(s3_endpoint: str, s3_environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A local folder, and the same files under s3://tables/a b/."""
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    (tmp_path / "local").mkdir()
    parquet.write_table(pa.table({"n": [1, 2]}), tmp_path / "local" / "a.parquet")
    (tmp_path / "local" / "b.csv").write_text("n\n3\n")
    bucket = boto3.session.Session().resource("s3").create_bucket(Bucket="tables")
    for path in (tmp_path / "local").iterdir():
        bucket.upload_file(str(path), f"a b/{path.name}")
    yield tmp_path / "local"
    bucket.objects.all().delete()
    bucket.delete()


def refusal(uri: str) -> KitError:
    with pytest.raises(KitError) as caught:
        read_table(uri)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    return caught.value


def test_a_folder_on_s3_reads_like_a_local_one(folder: Path) -> None:
    for uri in ("s3://tables/a b", "s3://tables/a b/"):
        assert read_table(uri).equals(read_table(str(folder)))
        assert [file.name for file in list_files(uri)] == ["a.parquet", "b.csv"]
        assert fingerprint(uri) == fingerprint(str(folder))
    assert read_table("s3://tables/a b/b.csv").column("n").to_pylist() == [3]
    assert read_table("s3://tables/a b/a.parquet", columns=["n"]).num_rows == 2


def test_images_on_s3_read_like_local_ones(folder: Path, tmp_path: Path) -> None:
    bucket = boto3.session.Session().resource("s3").Bucket("tables")
    for name in ("bilder/hündin/0.png", "bilder/katze/0.png", "bilder/katze/1.JPG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2), (len(name), 0, 0)).save(tmp_path / name)
        bucket.upload_file(str(tmp_path / name), name)
    layout = ImageLayout("image", (3, 2, 4), label="tier")
    local, remote = str(tmp_path / "bilder"), "s3://tables/bilder/"
    table = read_images(remote, list_data(remote), layout=layout)
    assert table.column("tier").to_pylist() == ["hündin", "katze", "katze"]
    assert table.equals(read_images(local, list_data(local), layout=layout))
    assert fingerprint(remote) == fingerprint(local)
    bucket.put_object(Key="bilder/katze/2.png", Body=b"no image")
    with pytest.raises(InputError, match=r"katze/2\.png cannot be read as an image"):
        read_images(remote, list_data(remote), layout=layout)


def test_a_bucket_or_a_key_that_is_not_there_is_named(folder: Path) -> None:
    for uri in ("s3://nowhere/a.csv", "s3://nowhere/folder/", "s3://nowhere"):
        error = refusal(uri)
        assert isinstance(error, UnavailableError)
        assert error.message == f"{uri}: the bucket does not exist"
    assert refusal("s3://tables/nothing").message == "s3://tables/nothing does not exist"
    for uri in ("s3://", "s3:///a.csv", "s3://tables//a.csv", "s3://UPPER_case/a.csv"):
        assert refusal(uri).message


@pytest.mark.parametrize("url", ["127.0.0.1:9000", "ftp://host", "http://"])
def test_an_endpoint_that_is_no_address_is_refused(s3_environment: pytest.MonkeyPatch, url: str) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", url)
    assert refusal("s3://tables/a.csv").message == "the S3 endpoint that was configured is not a URL"


def test_without_credentials_the_hint_names_them(
    s3_endpoint: str, s3_environment: pytest.MonkeyPatch
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_environment.delenv(name)
    error = refusal("s3://tables/a.csv")
    assert isinstance(error, (UnavailableError, InputError))
    assert error.message.startswith("s3://tables/a.csv")


def test_a_server_that_does_not_answer_is_unavailable(s3_environment: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        error = refusal("s3://tables/a.csv")
    assert isinstance(error, UnavailableError)
    assert error.hint


def rows_of(uri: str, *, shard_bytes: int = 64 << 20) -> list[tuple[str, int, int]]:
    """Read a table as a batch run does; file, row number and value of each row."""
    files = list_files(uri)
    reading = survey(uri, files, signature=Signature("", (), ()), columns=["n"])
    return [
        (chunk.file, row, value)
        for shard in cut(reading, files, shard_bytes=shard_bytes)
        for chunk in read_pieces(reading, shard)
        for row, value in zip(chunk.rows.tolist(), chunk.table.column("n").to_pylist(), strict=True)
    ]


def test_pieces_on_s3_are_read_like_local_ones(folder: Path) -> None:
    bucket = boto3.session.Session().resource("s3").Bucket("tables")
    feather.write_feather(pa.table({"n": [4]}), str(folder / "c ü.arrow"))
    (folder / "d.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(300_000)))
    for name in ("c ü.arrow", "d.jsonl"):
        bucket.upload_file(str(folder / name), f"a b/{name}")
    remote = rows_of("s3://tables/a b/", shard_bytes=1 << 20)
    assert remote == rows_of(str(folder), shard_bytes=1 << 20)
    assert len(remote) == 300_004
    assert rows_of("s3://tables/a b/[ab].*") == remote[:3]


def test_a_pattern_on_s3_names_keys(folder: Path) -> None:
    bucket = boto3.session.Session().resource("s3").Bucket("tables")
    for key in ("in/2024-01/part-1.csv", "in/2024-02/part-2.csv", "in/2025-01/part-3.csv", "in/what?.csv"):
        bucket.put_object(Key=key, Body=b"n\n1\n")
    assert [file.name for file in list_files("s3://tables/in/2024-*/part-?.csv")] == [
        "2024-01/part-1.csv",
        "2024-02/part-2.csv",
    ]
    assert len(list_files("s3://tables/**/part-*.csv")) == 3
    assert [file.name for file in list_files("s3://tables/in/what?.csv")] == ["what?.csv"]
    assert (
        "s3://tables/in/*.parquet is a pattern that no file matches"
        in refusal("s3://tables/in/*.parquet").message
    )
    assert "the bucket does not exist" in refusal("s3://nowhere/*.csv").message
    assert "names no bucket" in refusal("s3://*/a.csv").message


def test_an_object_that_changes_or_vanishes_during_a_run_is_named(folder: Path) -> None:
    bucket = boto3.session.Session().resource("s3").Bucket("tables")
    uri = "s3://tables/a b/b.csv"
    files = list_files(uri)
    reading = Reading(uri, ("n",), {"n": "int64"})
    (shard,) = cut(reading, files)
    bucket.put_object(Key="a b/b.csv", Body=b"n\n33\n")
    with pytest.raises(InputError, match=r"b\.csv changed during the run: it has 5 bytes and had 4"):
        list(read_pieces(reading, shard))
    bucket.Object("a b/b.csv").delete()
    with pytest.raises(InputError, match=r"b\.csv vanished during the run"):
        list(read_pieces(reading, shard))


def test_a_server_that_refuses_for_a_while_is_asked_again(s3_environment: pytest.MonkeyPatch) -> None:
    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) < 5 else 200)
            self.send_header("Content-Length", "4")
            self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        assert [file.name for file in list_files("s3://tables/a.csv")] == ["a.csv"]
    finally:
        server.shutdown()
        server.server_close()
    assert len(asked) == 5
