"""The log of a replica: what it holds, what it never holds, and how it stays within its size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve.watching import logs
from serve.watching.logs import RequestIds, RequestLine, RequestLog


def line(**given: Any) -> RequestLine:
    values: dict[str, Any] = {
        "at_s": 1_700_000_000.1234,
        "request_id": "r-1",
        "model": "digits",
        "version": "3",
        "outcome": "ok",
        "status": 200,
        "seconds": 0.00123456,
        "rows": 2,
        "n_bytes": 300,
        "transport": "http",
        "subject": "alice",
    }
    return RequestLine(**(values | given))


def written(folder: Path, name: str = "a.jsonl") -> list[dict[str, Any]]:
    return [json.loads(each) for each in (folder / name).read_text().splitlines()]


def test_a_line_says_all_that_is_known_and_hides_who_asked(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, replica="a", what="all")
    log.request(line())
    log.request(line(outcome="model", status=500, subject=""))
    log.start()
    log.close()
    first, second = written(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", first.pop("subject"))
    assert first == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "event": "request",
        "request_id": "r-1",
        "model": "digits",
        "version": "3",
        "outcome": "ok",
        "status": 200,
        "ms": 1.235,
        "rows": 2,
        "bytes": 300,
        "transport": "http",
    }
    assert (second["level"], second["outcome"], second["subject"]) == ("error", "model", "")
    assert "alice" not in (tmp_path / "a.jsonl").read_text()


def test_all_replicas_hash_a_subject_alike(tmp_path: Path) -> None:
    subjects = []
    for replica in ("a", "b"):
        log = RequestLog(tmp_path, replica=replica, what="all")
        log.request(line(subject="half of a pair: \ud800"))
        log.start()
        log.close()
        subjects.append(written(tmp_path, f"{replica}.jsonl")[0]["subject"])
    assert subjects[0] == subjects[1]
    assert (tmp_path / ".subjects").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "what, wanted", [("all", ["ok", "invalid", "model"]), ("errors", ["invalid", "model"]), ("none", [])]
)
def test_the_setting_says_which_requests_get_a_line(tmp_path: Path, what: Any, wanted: list[str]) -> None:
    log = RequestLog(tmp_path, replica="a", what=what)
    assert [each for each in ("ok", "invalid", "model") if log.wants(each)] == wanted


def test_events_are_written_whatever_the_setting_says(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, replica="a", what="none")
    log.event("release", model="digits", sequence=4)
    log.start()
    log.close()
    (found,) = written(tmp_path)
    assert (found["event"], found["level"], found["sequence"]) == ("release", "info", 4)


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, replica="a", what="all", max_file_bytes=20_000, n_files=3)
    for number in range(2000):
        log.request(line(request_id=f"r-{number}"))
    log.start()
    log.close()
    names = sorted(path.name for path in tmp_path.glob("a.jsonl*"))
    assert names == ["a.jsonl.1", "a.jsonl.2"]
    newest = written(tmp_path, "a.jsonl.1")
    assert newest[-1]["request_id"] == "r-1999"
    most = 20_000 + logs._LINES_AT_ONCE * 300
    assert all((tmp_path / name).stat().st_size < most for name in names)


def test_what_does_not_fit_into_the_queue_is_dropped_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MAX_WAITING", 50)
    log = RequestLog(tmp_path, replica="a", what="all")
    for _ in range(logs._MAX_WAITING + 3):
        log.request(line())
    assert log.dropped == 3
    log.start()
    log.close()
    last = written(tmp_path)[-1]
    assert (last["event"], last["lines"], last["level"]) == ("lines_dropped", 3, "warning")


def test_a_disk_that_refuses_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"a file where a folder should be")
    log = RequestLog(tmp_path / "log", replica="a", what="all")
    log.request(line())
    log.start()
    log.close()
    assert log.dropped >= 1


def test_a_disk_without_room_leaves_no_half_line(tmp_path: Path) -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from pathlib import Path
from serve.watching.logs import RequestLog
log = RequestLog(Path({str(tmp_path)!r}), replica="a")
for batch in range(3):
    for number in range(3):
        log.event("release", sequence=number, note="x" * 100)
    log._write_waiting()
print(log.dropped)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 3
    lines = written(tmp_path)
    assert lines
    assert {each["event"] for each in lines} <= {"release", "lines_dropped"}


@pytest.mark.parametrize("given", [b"a", b"Zz09._-", b"x" * 64])
def test_a_sane_id_of_a_client_is_kept(given: bytes) -> None:
    assert RequestIds().of(given) == given.decode()


@pytest.mark.parametrize(
    "given", [None, b"", b"x" * 65, b"a b", b"a\n", b'{"', "ü".encode(), b"\xff", b"../../etc"]
)
def test_any_other_id_is_replaced_by_a_new_one(given: bytes | None) -> None:
    ids, others = RequestIds(), RequestIds()
    made = [ids.of(given), ids.of(given), others.of(given)]
    assert len(set(made)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", each) for each in made)
