"""What both kinds of output place promise, through faults of the network, kills and full disks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from jobs.batch.places import HOLDS, LEASE, Entry, Pace, Place, open_place, spooled
from jobs.batch.places.bucket import BucketPlace
from kit.errors import ConflictError, DiskFullError, InputError, NotFoundError, UnavailableError
from kit.files import sha256_bytes
from kit.s3 import MAX_PUT_BYTES
from tests.faults import Faults

URI = "s3://answers/team/out"
NAMES = [
    "Straße=Köln 50%/part-00000.parquet",
    "a b/ü",
    "country=DE=x/%2F/part",
    "part-00000.parquet",
    "東京/x",
]
PART = bytes(range(256)) * 4096 * 3  # 3 MiB
QUICK = Pace(renew_s=0.1, dead_after_s=1.0)


@pytest.fixture
def faults(s3_endpoint: str, s3_environment: pytest.MonkeyPatch) -> Iterator[Faults]:
    with Faults(s3_endpoint) as proxy:
        s3_environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def bucket(s3_endpoint: str, faults: Faults) -> Iterator[Any]:
    bucket = boto3.session.Session().resource("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="answers")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def remote(bucket: Any) -> BucketPlace:
    return BucketPlace(URI, pace=QUICK)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "bucket":
        request.getfixturevalue("bucket")
        return open_place(URI, pace=QUICK)
    return open_place(str(tmp_path / "out"))


def put(place: Place, name: str, data: bytes, *, mark: str | None = None) -> None:
    with spooled(place, name) as path:
        path.write_bytes(data)
        place.put_file(name, path, sha256=sha256_bytes(data), mark=mark)
        assert not path.exists()


def names(place: Place) -> list[str]:
    return [entry.name for entry in place.entries()]


def start(code: str, uri: str) -> subprocess.Popen[str]:
    """Run code with ``place`` and the standard modules of this file in another process."""
    prelude = (
        "import os, sys, threading, time; from jobs.batch.places import Pace, open_place; "
        f"place = open_place({uri!r}, pace=Pace(renew_s=0.1, dead_after_s=1.0))\n"
    )
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_any_relative_name_is_kept_as_it_is(place: Place) -> None:
    for number, name in enumerate(NAMES):
        (place.put if number % 2 else place.create)(name, name.encode())
    put(place, "spooled/ä b=c%20", b"rows")
    assert names(place) == sorted([*NAMES, "spooled/ä b=c%20"])
    assert [place.read(name) for name in NAMES] == [name.encode() for name in NAMES]
    assert place.entries("Straße=Köln 50%/") == [Entry(NAMES[0], len(NAMES[0].encode()))]
    place.delete([*NAMES, "never there"])
    assert names(place) == ["spooled/ä b=c%20"]


def test_a_file_is_replaced_by_put_and_kept_by_create(place: Place) -> None:
    assert place.create("plan.json", b"first")
    assert not place.create("plan.json", b"second")
    assert not place.create("plan.json", b"first"), "equal bytes of another call are another's"
    assert place.read("plan.json") == b"first"
    place.put("plan.json", b"third")
    assert place.read("plan.json") == b"third"


def test_what_is_not_there_reads_as_none_and_does_not_open(place: Place) -> None:
    assert place.read("gone") is None
    assert place.entries() == []
    with pytest.raises(NotFoundError, match="has no file 'gone'"):
        place.open("gone").__enter__()


def test_a_file_is_streamed_for_hashing(place: Place) -> None:
    put(place, "part", PART)
    digest = hashlib.sha256()
    with place.open("part") as stream:
        while chunk := stream.read(100_000):
            assert len(chunk) <= 100_000
            digest.update(chunk)
    assert digest.hexdigest() == sha256_bytes(PART)


def test_more_than_one_page_is_listed_and_deleted(place: Place, s3_environment: pytest.MonkeyPatch) -> None:
    s3_environment.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    s3_environment.setattr("jobs.batch.places.bucket._DELETED_AT_ONCE", 2)
    for number in range(5):
        place.put(f"part-{number}", b"")
    assert names(place) == [f"part-{number}" for number in range(5)]
    place.delete(names(place))
    assert place.entries() == []


def test_the_same_bytes_put_again_are_left_as_they_are(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    put(place, "part", b"rows")
    put(place, "part", b"rows", mark="commit")
    place.create("commit", b"{}")
    put(place, "part", b"rows", mark="commit")
    assert place.read("part") == b"rows"
    assert "replaced" not in caplog.text


def test_other_bytes_without_a_commit_are_replaced_and_said_to_be(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    put(place, "part", b"rows", mark="commit")
    put(place, "part", b"else", mark="commit")
    assert place.read("part") == b"else"
    assert [record.levelname for record in caplog.records if "replaced" in record.message] == ["WARNING"]
    assert names(place) == ["part"]


def test_a_zombie_cannot_replace_what_is_committed(place: Place) -> None:
    put(place, "part", b"rows", mark="commit")
    place.create("commit", b"{}")
    with pytest.raises(ConflictError, match=r"part in .* is committed by commit with other bytes"):
        put(place, "part", b"late", mark="commit")
    assert place.read("part") == b"rows"
    assert names(place) == ["commit", "part"]
    assert place.leftovers() == []


def test_of_two_processes_that_create_at_once_one_wins(place: Place) -> None:
    code = (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(sum(place.create(f'commit-{n}', str(os.getpid()).encode()) for n in range(40)), flush=True)"
    )
    processes = [start(code, place.uri) for _ in range(2)]
    assert [line_of(process) for process in processes] == ["ready", "ready"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    won = [int(line_of(process)) for process in processes]
    for process in processes:
        process.communicate(timeout=500)
    assert sum(won) == 40
    owners = [place.read(f"commit-{number}") for number in range(40)]
    assert [owners.count(str(process.pid).encode()) for process in processes] == won


HOLD = "with place.held():\n    print('held', flush=True); sys.stdin.readline()"


def test_who_lives_keeps_the_place_and_is_named(place: Place) -> None:
    process = start(HOLD, place.uri)
    assert line_of(process) == "held"
    patient = open_place(place.uri, pace=Pace(renew_s=0.1, dead_after_s=60.0))
    with pytest.raises(
        ConflictError, match=rf"held by another run \(host .+, pid {process.pid}, since 20"
    ) as error:
        patient.held().__enter__()
    assert "wait until that run has ended" in str(error.value.hint)
    process.communicate("\n", timeout=500)
    assert place.entries() == []
    with place.held() as lost:
        assert not lost.is_set()


def test_after_a_kill_the_next_driver_gets_the_place(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    process = start(HOLD, place.uri)
    assert line_of(process) == "held"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=500)
    with caplog.at_level("INFO", logger="kit"), place.held():
        place.put("part", b"rows")
    waited = [record.message for record in caplog.records if "waiting 1 s" in record.message]
    assert len(waited) == (1 if place.uri == URI else 0)
    assert all(f"pid {process.pid}" in message for message in waited)


def test_a_driver_that_slept_through_a_takeover_learns_that_it_lost(remote: BucketPlace) -> None:
    code = "with place.held() as lost:\n    print('held', flush=True); print(lost.wait(20), flush=True)"
    process = start(code, URI)
    assert line_of(process) == "held"
    process.send_signal(signal.SIGSTOP)
    with remote.held() as lost:
        process.send_signal(signal.SIGCONT)
        assert line_of(process) == "True"
        process.communicate(timeout=500)
        assert not lost.wait(0.3)
        assert json.loads(remote.read(LEASE) or b"")["pid"] == os.getpid()
    assert json.loads(remote.read(LEASE) or b"")["released"]


def test_a_watcher_judges_by_its_own_clock_and_only_while_the_server_answers(
    bucket: Any, faults: Faults
) -> None:
    """The server takes 15 s for each of its first four answers; 20 s of quick ones must follow."""
    waited_s = [0.0]

    def wait(seconds: float) -> None:
        waited_s[0] += seconds

    def clock() -> float:
        return waited_s[0] + 15.0 * min(4, sum(LEASE in seen.line for seen in faults.seen))

    bucket.put_object(Key=f"team/out/{LEASE}", Body=b'{"host": "h", "pid": 1, "since": "1970"}')
    with BucketPlace(URI, pace=Pace(clock=clock, wait=wait)).held():
        assert waited_s[0] == 3 * 1.25 + 20


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff not json"])
def test_a_lease_that_cannot_be_read_is_of_an_unknown_owner(
    remote: BucketPlace, bucket: Any, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put_object(Key=f"team/out/{LEASE}", Body=damage)
    with caplog.at_level("INFO", logger="kit"), remote.held():
        assert "host unknown, pid unknown" in caplog.text


def test_the_lease_survives_a_server_that_is_busy(remote: BucketPlace, faults: Faults) -> None:
    with remote.held() as lost:
        busy = faults.answer(503, "SlowDown", times=4, only="PUT .*lease")
        assert busy.happened.wait(10)
        cut = faults.cut_answer(times=6, only="PUT .*lease")
        assert cut.happened.wait(30)
        assert not lost.wait(1.0)
    assert json.loads(remote.read(LEASE) or b"")["released"]


def test_who_cleans_the_place_may_remove_the_hold_too(place: Place) -> None:
    with place.held():
        place.put("part", b"rows")
        place.delete([*names(place), *HOLDS])
    assert place.entries() == []
    assert [place.read(name) for name in HOLDS] == [None, None]


def test_a_part_is_whole_and_once_through_a_busy_server(remote: BucketPlace, faults: Faults) -> None:
    busy = faults.answer(503, "SlowDown", times=3, only="PUT .*part")
    put(remote, "part", PART)
    assert (busy.n_done, faults.n_forwarded) == (3, 1)
    assert remote.read("part") == PART
    assert remote.entries() == [Entry("part", len(PART))]


@pytest.mark.parametrize("after_bytes", [0, 1, 1 << 20])
def test_a_part_is_whole_and_once_through_a_cut_upload(
    remote: BucketPlace, faults: Faults, after_bytes: int
) -> None:
    cut = faults.cut_request(after_bytes=after_bytes, times=2, only="PUT .*part")
    put(remote, "part", PART)
    assert (cut.n_done, faults.n_forwarded) == (2, 1)
    assert remote.read("part") == PART


@pytest.mark.parametrize("mark", [None, "commit"])
def test_a_part_whose_answer_was_lost_is_known_again(
    remote: BucketPlace, faults: Faults, mark: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    cut = faults.cut_answer(only="PUT .*part")
    put(remote, "part", PART, mark=mark)
    assert cut.n_done == 1
    assert remote.read("part") == PART
    assert "replaced" not in caplog.text
    cut = faults.cut_answer(times=2, only="PUT .*part")  # the refusal, then the answer to the replacement
    put(remote, "part", b"other", mark=mark)
    assert cut.n_done == 2
    assert remote.read("part") == b"other"


def test_a_create_whose_answer_was_lost_knows_its_own_object(remote: BucketPlace, faults: Faults) -> None:
    cut = faults.cut_answer(only="PUT .*commit")
    assert remote.create("commit", b"mine")
    assert cut.n_done == 1
    faults.cut_answer(only="PUT .*commit")
    assert not remote.create("commit", b"mine"), "this call wrote nothing, equal or not"
    assert remote.read("commit") == b"mine"


def test_a_conflict_of_two_writes_is_sent_again(bucket: Any, faults: Faults) -> None:
    waited: list[float] = []
    remote = BucketPlace(URI, pace=Pace(wait=waited.append))
    conflict = faults.answer(409, "ConditionalRequestConflict", times=3)
    assert remote.create("commit", b"{}")
    assert (conflict.n_done, len(waited)) == (3, 3)
    faults.answer(409, "ConditionalRequestConflict")
    with pytest.raises(UnavailableError, match="answers ConditionalRequestConflict"):
        remote.create("other", b"{}")


def test_a_server_that_refuses_conditions_is_named(remote: BucketPlace, faults: Faults) -> None:
    faults.answer(501, "NotImplemented", only="PUT")
    for use in (lambda: remote.create("a", b""), lambda: remote.held().__enter__()):
        with pytest.raises(UnavailableError, match=f"{faults.url} knows no conditional writes") as caught:
            use()
        assert caught.value.hint


@pytest.mark.parametrize("header", ["if-none-match", "if-match"])
def test_a_server_that_ignores_conditions_is_found_out_before_anything_is_written(
    remote: BucketPlace, faults: Faults, header: str
) -> None:
    faults.forgotten_headers.add(header)
    with pytest.raises(UnavailableError, match="knows no conditional writes"):
        remote.held().__enter__()
    assert remote.entries() == []


def test_a_server_that_stays_busy_is_unavailable_and_leaves_no_spool(bucket: Any, faults: Faults) -> None:
    remote = BucketPlace(URI, pace=QUICK, max_attempts=2)
    faults.answer(503, "SlowDown", only="PUT")
    path = remote.spool("part")
    path.write_bytes(b"rows")
    with pytest.raises(UnavailableError, match="answers SlowDown"):
        remote.put_file("part", path, sha256=sha256_bytes(b"rows"))
    assert list(path.parent.iterdir()) == []
    assert remote.entries() == []


def test_the_server_is_given_the_digest_to_check_and_one_request_per_part(
    remote: BucketPlace, faults: Faults
) -> None:
    put(remote, "part", PART)
    (sent,) = [seen for seen in faults.seen if seen.line.startswith("PUT")]
    assert sent.headers["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(PART).digest()).decode()
    assert sent.headers["x-amz-sdk-checksum-algorithm"] == "SHA256"
    assert sent.headers["if-none-match"] == "*"
    assert int(sent.headers["content-length"]) == len(PART)


def test_a_small_file_that_breaks_off_is_read_again(remote: BucketPlace, faults: Faults) -> None:
    remote.put("plan.json", b"0123456789")
    cut = faults.cut_answer(only="GET .*plan", after_bytes=4, times=2)
    assert remote.read("plan.json") == b"0123456789"
    assert cut.n_done == 2


def test_a_stream_that_breaks_off_is_unavailable(remote: BucketPlace, faults: Faults) -> None:
    put(remote, "part", PART)
    faults.cut_answer(only="GET .*part", after_bytes=1 << 20)

    def read_all() -> None:
        with remote.open("part") as stream:
            while stream.read(1 << 16):
                pass

    with pytest.raises(UnavailableError, match="does not answer"):
        read_all()


def test_a_part_over_what_one_upload_takes_is_refused(remote: BucketPlace, faults: Faults) -> None:
    path = remote.spool("part")
    with path.open("wb") as file:
        file.truncate(MAX_PUT_BYTES + 1)
    with pytest.raises(InputError, match="over the 5 GiB") as caught:
        remote.put_file("part", path, sha256="0" * 64)
    assert caught.value.hint == "lower shard_rows"
    assert not path.exists()
    assert faults.seen == []


def test_a_part_is_uploaded_from_disk_not_from_memory(bucket: Any) -> None:
    code = (
        "import resource; from kit.files import sha256_file; place.read('warm')\n"
        "path = place.spool('part'); path.open('wb').truncate(256 << 20); digest = sha256_file(path)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "place.put_file('part', path, sha256=digest)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    process = start(code, URI)
    grown_kib = int(process.communicate(timeout=300)[0])
    assert grown_kib < 64 << 10
    assert bucket.Object("team/out/part").content_length == 256 << 20


def test_the_spool_of_a_dead_process_is_removed_and_that_of_a_living_one_is_kept(
    remote: BucketPlace, s3_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3_environment.setenv("TMPDIR", str(tmp_path))
    s3_environment.setattr("tempfile.tempdir", None)
    code = "place.spool('part').write_bytes(b'half'); print('spooled', flush=True); sys.stdin.readline()"
    living, dead = start(code, URI), start(code, URI)
    assert [line_of(process) for process in (living, dead)] == ["spooled", "spooled"]
    assert len(list(tmp_path.glob("kit-spool-*"))) == 2
    dead.kill()
    dead.communicate(timeout=500)
    remote.spool("part").write_bytes(b"mine")
    assert len(list(tmp_path.glob("kit-spool-*"))) == 2
    assert sorted(path.read_bytes() for path in tmp_path.glob("kit-spool-*/*")) == [b"half", b"mine"]
    living.communicate("\n", timeout=500)
    assert [path.read_bytes() for path in tmp_path.glob("kit-spool-*/*")] == [b"mine"]


def test_a_missing_bucket_is_named(faults: Faults) -> None:
    place = open_place("s3://no-such-bucket/out", pace=QUICK)
    uses: list[Callable[[], object]] = [
        lambda: place.read("a"),
        lambda: place.create("a", b""),
        lambda: place.entries(),
        lambda: place.delete(["a"]),
        lambda: place.held().__enter__(),
    ]
    for use in uses:
        with pytest.raises(UnavailableError, match="the bucket 'no-such-bucket'"):
            use()


@pytest.mark.parametrize("how", ["put", "create", "put_file"])
def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(small_disk: Path, how: str) -> None:
    place = open_place(str(small_disk / "out"))
    place.put("part", b"old")
    name = "new" if how == "create" else "part"
    data = bytes(512 << 10)
    write: Callable[[], object] = {
        "put": lambda: place.put(name, data),
        "create": lambda: place.create(name, data),
        "put_file": lambda: put(place, name, data),
    }[how]
    with pytest.raises(DiskFullError, match="is full"):
        write()
    assert place.entries() == [Entry("part", 3)]
    assert [path.name for path in (small_disk / "out").iterdir()] == ["part"]
    assert place.read("part") == b"old"


def test_a_full_disk_under_the_spool_is_said_to_be(
    remote: BucketPlace, small_disk: Path, s3_environment: pytest.MonkeyPatch
) -> None:
    s3_environment.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(DiskFullError, match="is full"):
        put(remote, "part", bytes(512 << 10))
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert remote.entries() == []


def test_threads_share_a_place(remote: BucketPlace, faults: Faults) -> None:
    faults.answer(503, "SlowDown", times=3, only="PUT")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: put(remote, f"part-{number}", bytes([number]) * 1000), range(8)))
    assert [remote.read(f"part-{number}") for number in range(8)] == [bytes([n]) * 1000 for n in range(8)]


def test_the_lease_is_renewed_while_the_block_runs(remote: BucketPlace, faults: Faults) -> None:
    with remote.held():
        written = len([seen for seen in faults.seen if seen.line.startswith("PUT")])
        renewed = faults.watch(only="PUT .*lease")
        assert renewed.happened.wait(10)
    assert written == 3  # taken, and asked twice whether conditions hold
    assert "kit-lease" not in [thread.name for thread in threading.enumerate()]
