from __future__ import annotations

import http.server
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from kit.errors import KitError, NotFoundError, SettingsError, UnavailableError, VerificationError
from kit.files import digest_of, sha256_file
from kit.model_version import Parts, write_model_version
from kit.models import models
from kit.project import Project
from kit.settings import ModelsSettings
from kit.store import Store, open_store

FILES = {
    "model.onnx": b"graph" * 1000,
    "golden/inputs.npz": b"inputs",
    "manifest.json": b"{}",
    "model.sig": b"sig",
}
URI = "s3://models/team/a"
SECRET = "hunter2-secret"


@pytest.fixture
def bucket(s3_endpoint: str, s3_environment: pytest.MonkeyPatch) -> Iterator[Any]:
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    bucket = boto3.session.Session().resource("s3").create_bucket(Bucket="models")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def store(bucket: Any, tmp_path: Path) -> Store:
    return open_store(URI, cache=tmp_path / "cache")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def digest(version: Path) -> str:
    return digest_of({name: sha256_file(version / name) for name in FILES if name != "model.sig"})


def ask_with_error(store: Store) -> KitError:
    started_s = time.monotonic()
    with pytest.raises(KitError) as caught:
        store.contains("0" * 64)
    assert time.monotonic() - started_s < 20
    assert "\n" not in caught.value.message
    assert SECRET not in f"{caught.value.message}{caught.value.hint}"
    assert caught.value.hint
    return caught.value


def test_what_was_put_is_fetched_as_it_was(store: Store, version: Path, digest: str, tmp_path: Path) -> None:
    assert not store.contains(digest)
    assert store.put(version, digest=digest) == f"{URI}/{digest}"
    assert store.contains(digest)
    folder = store.fetch(digest)
    assert folder == tmp_path / "cache" / digest
    assert {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    } == FILES


def test_a_fetched_version_is_reused_without_the_network(
    store: Store, version: Path, digest: str, s3_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.put(version, digest=digest)
    folder = store.fetch(digest)
    s3_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert open_store(URI, cache=tmp_path / "cache").fetch(digest) == folder


@pytest.mark.parametrize("damage", ["changed", "missing", "unsigned", "a file"])
def test_a_damaged_download_is_replaced(
    store: Store, version: Path, digest: str, damage: str, tmp_path: Path
) -> None:
    store.put(version, digest=digest)
    folder = store.fetch(digest)
    if damage == "changed":
        (folder / "model.onnx").write_bytes(b"other")
    elif damage == "a file":
        shutil.rmtree(folder)
        folder.touch()
    else:
        (folder / ("model.sig" if damage == "unsigned" else "manifest.json")).unlink()
    assert store.fetch(digest) == folder
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_a_complete_version_is_not_uploaded_again(
    store: Store, bucket: Any, version: Path, digest: str
) -> None:
    store.put(version, digest=digest)
    written = {entry.key: entry.last_modified for entry in bucket.objects.all()}
    bucket.put_object(Key=f"team/a/{digest}/manifest.json", Body=b"planted")
    store.put(version, digest=digest)
    assert bucket.Object(f"team/a/{digest}/manifest.json").get()["Body"].read() == b"planted"
    assert {entry.key for entry in bucket.objects.all()} == set(written)


def test_an_interrupted_upload_is_not_contained_and_is_completed_by_the_next(
    store: Store, bucket: Any, version: Path, digest: str
) -> None:
    store.put(version, digest=digest)
    bucket.Object(f"team/a/{digest}/model.sig").delete()
    bucket.Object(f"team/a/{digest}/model.onnx").delete()
    assert not store.contains(digest)
    with pytest.raises(NotFoundError, match=digest):
        store.fetch(digest)
    store.put(version, digest=digest)
    assert store.contains(digest)
    assert (store.fetch(digest) / "model.onnx").read_bytes() == FILES["model.onnx"]


def test_the_commit_mark_is_uploaded_last(
    store: Store, version: Path, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="kit"):
        store.put(version, digest=digest)
    uploads = [record.getMessage() for record in caplog.records if record.name == "kit"]
    assert len(uploads) == len(FILES)
    assert uploads[-1].startswith("uploading model.sig ")


@pytest.mark.parametrize(
    "name", ["../escape", "golden/../../escape", "/absolute", "a//b", "golden/", "model.onnx/x"]
)
def test_a_name_that_leaves_the_folder_is_refused(
    store: Store, bucket: Any, version: Path, digest: str, name: str, tmp_path: Path
) -> None:
    store.put(version, digest=digest)
    bucket.put_object(Key=f"team/a/{digest}/{name}", Body=b"planted")
    with pytest.raises(VerificationError, match="cannot be a file of a version"):
        store.fetch(digest)
    assert not (tmp_path / "cache").exists()
    assert not list(tmp_path.rglob("escape"))


@pytest.mark.parametrize("name", ["model.onnx", "extra.txt"])
def test_a_download_that_does_not_match_its_digest_is_not_kept(
    store: Store, bucket: Any, version: Path, digest: str, name: str, tmp_path: Path
) -> None:
    store.put(version, digest=digest)
    bucket.put_object(Key=f"team/a/{digest}/{name}", Body=b"planted")
    with pytest.raises(VerificationError, match=f"{URI}/{digest} have the digest .*, not {digest}"):
        store.fetch(digest)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_version_of_more_than_one_listing_page_is_fetched_whole(
    store: Store, version: Path, digest: str, s3_environment: pytest.MonkeyPatch
) -> None:
    s3_environment.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "1")
    store.put(version, digest=digest)
    assert (store.fetch(digest) / "model.onnx").read_bytes() == FILES["model.onnx"]


def test_a_missing_bucket_is_named(bucket: Any, version: Path, digest: str, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket/x", cache=tmp_path / "cache")
    assert "the bucket 'no-such-bucket'" in ask_with_error(store).message
    for ask in (store.fetch, lambda digest: store.put(version, digest=digest)):
        with pytest.raises(UnavailableError, match="does not exist"):
            ask(digest)


def test_missing_credentials_say_what_to_set(s3_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3_environment.delenv("AWS_ACCESS_KEY_ID")
    s3_environment.delenv("AWS_SECRET_ACCESS_KEY")
    error = ask_with_error(open_store(URI, cache=tmp_path))
    assert isinstance(error, UnavailableError)
    assert error.message == f"no S3 credentials were found for {URI}"
    assert "AWS_ACCESS_KEY_ID" in str(error.hint)
    assert "AWS_PROFILE" in str(error.hint)


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"])
def test_unusable_credentials_are_told_apart(
    s3_environment: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    if variable == "AWS_PROFILE":
        s3_environment.setenv(variable, "nobody")
    else:
        s3_environment.delenv(variable)
    assert "the S3 credentials for" in ask_with_error(open_store(URI, cache=tmp_path)).message


def test_an_unreachable_endpoint_is_named_within_seconds(
    s3_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = unused.getsockname()[1]
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:{port}")
        error = ask_with_error(open_store(URI, cache=tmp_path))
    assert isinstance(error, UnavailableError)
    assert f"127.0.0.1:{port} does not answer" in error.message


def test_an_endpoint_that_is_no_url_is_a_setting_to_correct(
    s3_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3_environment.setenv("AWS_ENDPOINT_URL", f"not a url {SECRET}")
    assert isinstance(ask_with_error(open_store(URI, cache=tmp_path)), SettingsError)


@pytest.mark.parametrize(
    "code,status,words",
    [
        ("AccessDenied", 403, "access to s3://models/team/a is denied"),
        ("InvalidAccessKeyId", 403, "refuses the S3 credentials"),
        ("AccountProblem", 400, "answers AccountProblem"),
    ],
)
def test_a_refusal_is_one_sentence_without_the_servers_own_words(
    s3_environment: pytest.MonkeyPatch, tmp_path: Path, code: str, status: int, words: str
) -> None:
    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>key {SECRET} is bad</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            assert words in ask_with_error(open_store(URI, cache=tmp_path)).message
        finally:
            server.shutdown()
            thread.join()


def test_verify_reads_what_lies_in_the_store_not_an_earlier_download(
    bucket: Any, digits_project: Path, tiny_parts: Parts, tmp_path: Path
) -> None:
    toml = digits_project / "kit.toml"
    toml.write_text(f'{toml.read_text(encoding="utf-8")}\n[store]\nuri = "{URI}"\n', encoding="utf-8")
    project = Project.open(digits_project)
    digest = write_model_version(tiny_parts, folder=tmp_path / "tiny", key=project.signing_key())
    uri = project.store().put(tmp_path / "tiny", digest=digest)
    project.registry().register("tiny", digest=digest, uri=uri, summary={})
    verify = ModelsSettings(action="verify")
    project.open_version("tiny@1")
    assert models(project, verify).checked[1:] == ("tiny@1",)
    bucket.put_object(Key=f"team/a/{digest}/model.onnx", Body=b"other")
    with pytest.raises(VerificationError, match=f"the files in {URI}/{digest} have the digest"):
        models(project, verify)
