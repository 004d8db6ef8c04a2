"""Tables on S3: a real server on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from kit.errors import InputError, KitError, UnavailableError
from kit.images import ImageLayout, list_data, read_images
from kit.manifest import fingerprint
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
