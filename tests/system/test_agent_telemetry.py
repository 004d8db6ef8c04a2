"""Rules of telemetry: bounded, delivered at least once, on the bundle's edges, and in nobody's way."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge.agent.telemetry.counts import Counts
from edge.agent.telemetry.latencies import EDGES_MS, Latencies
from edge.agent.telemetry.ring import MAX_BODY_BYTES, Ring
from edge.fleet.bodies import read_records
from kit.child import CODE_FOLDER
from kit.files import canonical_json
from kit.profile import profile
from kit.runner import softmax
from kit.signature import Signature
from kit.tensors import TensorSpec

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("x", "float32", (-1, 2), columns=("width", "height"), nullable=True),
        TensorSpec("site", "string", (-1, 1), columns=("site",), nullable=True),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("low", "high")),
        TensorSpec("probabilities", "float32", (-1, 2)),
        TensorSpec("logits", "float32", (-1, 2)),
    ),
)


def rows(n_rows: int, *, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    values = random.normal(size=(n_rows, 2)).astype(np.float32)
    sites = np.array([["north", "south", ""][each] for each in random.integers(0, 3, n_rows)], dtype=object)
    answers = {"label": values.argmax(axis=1), "probabilities": softmax(values), "logits": values}
    return {"x": values, "site": sites.reshape(-1, 1)}, answers


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path / "telemetry.sqlite", max_bytes=20_000, max_rows=50)


def test_records_come_in_order_and_stay_until_they_are_dropped(ring: Ring) -> None:
    for n in range(5):
        assert ring.append("event", {"what": "restarted", "n": n}, digest="ab" * 32)
    first = ring.peek(3)
    assert [each["body"]["n"] for each in first] == [0, 1, 2]
    assert first == ring.peek(3)
    ring.drop([each["id"] for each in first[:2]])
    ring.drop(["nobody-1"])
    assert [each["body"]["n"] for each in ring.peek(9)] == [2, 3, 4]
    assert (len(ring), ring.lost) == (3, 0)
    taken = read_records(canonical_json({"records": ring.peek(9)}))  # what a fleet server accepts
    assert [each.kind for each in taken] == ["event"] * 3


def test_ids_are_never_given_twice_whatever_was_dropped_or_restarted(tmp_path: Path) -> None:
    seen: list[str] = []
    for _ in range(3):
        ring = Ring(tmp_path / "telemetry.sqlite")
        for n in range(4):
            ring.append("event", {"n": n})
        seen += [each["id"] for each in ring.peek(99)]
        ring.drop(seen)
        ring.close()
    (tmp_path / "telemetry.sqlite").unlink()
    ring = Ring(tmp_path / "telemetry.sqlite")
    ring.append("event", {})
    seen += [each["id"] for each in ring.peek(99)]
    assert len(set(seen)) == len(seen) == 13


def test_the_oldest_go_when_there_are_too_many_and_are_counted(ring: Ring, tmp_path: Path) -> None:
    for n in range(200):
        assert ring.append("event", {"n": n})
    assert [each["body"]["n"] for each in ring.peek(99)] == list(range(150, 200))
    assert ring.lost == 150
    for n in range(40):
        ring.append("window", {"n": n, "text": "x" * 1000})
    assert 15 <= len(ring) <= 18
    assert ring.lost == 240 - len(ring)
    assert not ring.append("window", {"text": "x" * MAX_BODY_BYTES})
    assert ring.lost == 241 - len(ring)
    ring.close()
    assert Ring(tmp_path / "telemetry.sqlite", max_bytes=20_000, max_rows=50).lost == 240 - len(ring)


def test_the_file_does_not_grow_with_the_months(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "telemetry.sqlite", max_bytes=200_000)
    sizes = []
    for _ in range(4):
        for n in range(1500):
            ring.append("window", {"n": n, "text": "x" * (n % 900)})
        sizes.append(sum(each.stat().st_size for each in tmp_path.iterdir()))
    assert sizes[-1] <= sizes[0] * 1.1
    assert sizes[-1] < 1_000_000


def test_a_killed_writer_loses_no_more_than_what_it_was_writing(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sqlite"
    code = (
        "import sys; from pathlib import Path; from edge.agent.telemetry.ring import Ring\n"
        "ring = Ring(Path(sys.argv[1])); n = 0\n"
        "while ring.append('event', {'n': n}):\n"
        "    n += 1\n"
        "    print(n, flush=True)\n"
    )
    written = 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=CODE_FOLDER, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(30):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].split()
        written += int(said[-1]) if said else 30
        assert len(Ring(path)) >= written
        written = len(Ring(path))
    ids = [each["id"] for each in Ring(path).peek(10_000)]
    assert len(set(ids)) == len(ids) == written


def test_a_full_disk_costs_records_and_nothing_else(disk_of: Callable[[str], Path]) -> None:
    disk = disk_of("1m")
    ring = Ring(disk / "telemetry.sqlite")
    assert ring.append("event", {"n": 0})
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b"x" * 4096):
            pass
    kept = 1 + sum(ring.append("window", {"text": "x" * 2000}) for _ in range(100))
    assert kept < 100
    assert ring.lost >= 101 - kept
    ring.close()
    (disk / "ballast").unlink()
    again = Ring(disk / "telemetry.sqlite")
    assert again.append("event", {"n": 1})
    assert [each["body"] for each in again.peek(999)][::kept] == [{"n": 0}, {"n": 1}]


def test_a_file_that_cannot_be_opened_or_read_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Ring(tmp_path / "nowhere" / "telemetry.sqlite")
    assert not absent.append("event", {})
    assert (absent.peek(5), len(absent), absent.lost) == ([], 0, 1)
    broken = tmp_path / "telemetry.sqlite"
    broken.write_bytes(b"this is no database, and never was one" * 100)
    ring = Ring(broken)
    assert not ring.append("event", {})
    assert ring.append("event", {"n": 1})  # in a new file
    assert [each["body"] for each in ring.peek(9)] == [{"n": 1}]
    assert ring.lost == 1


def test_threads_may_share_a_ring(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "telemetry.sqlite")
    threads = [
        threading.Thread(target=lambda: [ring.append("event", {"n": n}) for n in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each["id"] for each in ring.peek(1000)}) == 200


def test_counts_are_on_the_profiles_edges_and_add_up() -> None:
    inputs, answers = rows(500)
    known = profile(inputs, signature=SIGNATURE, outputs=answers)
    counts = Counts(known, signature=SIGNATURE)
    for n in range(0, 500, 5):
        more, said = rows(5, seed=n)
        more["x"][0, 0] = np.nan if n % 50 == 0 else 1e6
        if counts.add(more, said):
            counts.count()
    found = counts.take()
    width = found["features"]["width"]
    assert len(width["counts"]) == len(known["columns"]["width"]["counts"]) + 2
    assert (sum(width["counts"]) + width["missing"], width["missing"]) == (500, 10)
    assert width["counts"][-1] >= 90
    site = found["features"]["site"]
    assert len(site["counts"]) == len(known["columns"]["site"]["categories"]) + 1
    assert sum(site["counts"]) + site["missing"] == 500
    assert sum(found["prediction"]["label"]["counts"]) == 500
    assert sum(found["prediction"]["confidence"]["counts"]) == 500
    assert found["samples"] == []
    assert counts.take()["features"] == {}  # a new window


def test_rows_are_kept_only_where_that_was_asked_for() -> None:
    counts = Counts({}, signature=SIGNATURE, max_samples=2)
    for n in range(5):
        inputs, answers = rows(1, seed=n)
        answers["logits"][0, 0] = np.inf
        counts.add(inputs, answers)
    found = counts.take()
    assert (found["features"], found["prediction"]) == ({}, {})
    assert len(found["samples"]) == 2
    assert found["samples"][0]["answers"]["logits"][0][0] is None
    assert set(found["samples"][0]["inputs"]) == {"x", "site"}
    large = Counts({}, signature=SIGNATURE, max_samples=2)
    large.add(*rows(5000))
    assert large.take()["samples"] == []


def test_latencies_are_counted_in_bins_and_errors_by_word() -> None:
    latencies = Latencies()
    for ms in (0.05, 0.1, 0.15, 2.5, 99_999.0):
        latencies.add("ok", ms / 1e3)
    for word in ("invalid", "nan", "nan"):
        latencies.add(word, 0.001)
    window = latencies.take()
    assert (window["answers"], window["errors"]) == (5, {"invalid": 1, "nan": 2})
    assert len(window["counts"]) == len(window["edges_ms"]) + 1 == len(EDGES_MS) + 1
    assert (window["counts"][0], window["counts"][1], window["counts"][-1]) == (2, 1, 1)
    assert latencies.take()["answers"] == 0
    health = latencies.health()
    assert (health["answers"], health["errors"]) == (5, 2)  # what callers did wrong is no fault
    assert 0.1 <= health["p50_ms"] <= 0.2
    latencies.forget()
    assert latencies.health() == {"answers": 0, "errors": 0, "p50_ms": None, "p95_ms": None}


def test_the_ring_is_a_plain_database_for_others_to_look_at(ring: Ring, tmp_path: Path) -> None:
    ring.append("event", {"what": "confirmed"})
    path = tmp_path / "telemetry.sqlite"
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone() == (1,)
    assert os.stat(path).st_mode & 0o777 == 0o640
