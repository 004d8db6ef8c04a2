"""Samples of requests and answers: what lies in the files, what is left out, and what is never waited for."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kit.inference.card import Card
from kit.settings.serving import PredictionLogSettings
from kit.signature import Signature
from kit.tensors import Tensors, TensorSpec
from serve.watching import prediction_log
from serve.watching.prediction_log import Answered, PredictionLog, keep_within

SIGNATURE = Signature(
    "classification",
    (
        TensorSpec("numbers", "float32", (-1, 2), ("width", "height")),
        TensorSpec("place", "string", (-1,), ("city",), nullable=True),
        TensorSpec("history", "float32", (-1, 2, 3), ("load", "wind")),
        TensorSpec("image", "uint8", (-1, 1, 2, 2)),
    ),
    (
        TensorSpec("label", "int64", (-1,), classes=("low", "high")),
        TensorSpec("probabilities", "float32", (-1, 2)),
    ),
)
CARD = Card("shapes", 3, "d" * 64, "onnxruntime", SIGNATURE)


def inputs(n_rows: int = 2) -> Tensors:
    return {
        "numbers": np.arange(n_rows * 2, dtype=np.float32).reshape(n_rows, 2),
        "place": np.array(["Ulm", ""][:n_rows] * (n_rows // min(n_rows, 2)), dtype=object),
        "history": np.arange(n_rows * 6, dtype=np.float32).reshape(n_rows, 2, 3),
        "image": np.full((n_rows, 1, 2, 2), 7, dtype=np.uint8),
    }


def outputs(n_rows: int = 2) -> Tensors:
    return {
        "label": np.arange(n_rows) % 2,
        "probabilities": np.full((n_rows, 2), 0.5, dtype=np.float32),
    }


ANSWERED = Answered(0, "a", CARD, 4, inputs(), outputs(), 2)


def log(
    folder: Path, *, share: float = 1.0, redact: tuple[str, ...] = (), max_mb: float = 1.0
) -> PredictionLog:
    settings = PredictionLogSettings(folder=str(folder), share=share, redact=redact, max_mb=max_mb)
    return PredictionLog(settings, replica="r1")


def offer(to: PredictionLog, request_id: str = "a", *, card: Card = CARD, n_rows: int = 2) -> None:
    to.offer(request_id, card=card, release=4, inputs=inputs(n_rows), outputs=outputs(n_rows))


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def test_a_file_holds_every_column_of_every_row(tmp_path: Path) -> None:
    samples = log(tmp_path)
    offer(samples, "a")
    offer(samples, "b", n_rows=1)
    samples.start()
    samples.close()
    table = read(tmp_path)
    rows = table.drop_columns(["time"]).to_pylist()
    assert rows[1] == {
        "request_id": "a",
        "row": 1,
        "model": "shapes",
        "version": 3,
        "digest": "d" * 64,
        "release": 4,
        "input_width": 2.0,
        "input_height": 3.0,
        "input_city": "",
        "input_load": [6.0, 7.0, 8.0],
        "input_wind": [9.0, 10.0, 11.0],
        "input_image": [7, 7, 7, 7],
        "output_label": "high",
        "output_probabilities": [0.5, 0.5],
    }
    assert [(row["request_id"], row["row"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0)]
    age = datetime.datetime.now(datetime.UTC) - table["time"][0].as_py()
    assert abs(age.total_seconds()) < 10
    assert (samples.kept, samples.dropped) == (3, 0)


def test_duckdb_reads_the_folder(tmp_path: Path) -> None:
    samples = log(tmp_path)
    offer(samples)
    samples.start()
    samples.close()
    query = f"select avg(input_width), count(*) from '{tmp_path}/*.parquet' where output_label = 'high'"
    assert duckdb.sql(query).fetchall() == [(2.0, 1)]


def test_redacted_columns_inputs_and_outputs_are_nowhere(tmp_path: Path) -> None:
    samples = log(tmp_path, redact=("width", "place", "image", "probabilities"))
    offer(samples)
    samples.start()
    samples.close()
    kept = [name for name in read(tmp_path).column_names if name.startswith(("input_", "output_"))]
    assert kept == ["input_height", "input_load", "input_wind", "output_label"]


def test_each_version_has_files_of_its_own(tmp_path: Path) -> None:
    samples = log(tmp_path)
    offer(samples)
    offer(samples, card=Card("shapes", 4, "e" * 64, "onnxruntime", SIGNATURE))
    samples.start()
    samples.close()
    assert sorted(path.name[:9] for path in tmp_path.iterdir()) == ["shapes-3-", "shapes-4-"]


def test_about_the_share_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    samples = log(tmp_path, share=0.1)
    for _ in range(2000):
        offer(samples, n_rows=1)
    samples.start()
    samples.close()
    assert 120 < samples.kept < 280  # six standard deviations of 200


@pytest.mark.parametrize(
    "bound, most",
    [("_MAX_WAITING_ROWS", 5), ("_MAX_WAITING_BYTES", 2 * prediction_log._bytes_of(ANSWERED) + 1)],
)
def test_what_the_queue_cannot_hold_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(prediction_log, bound, most)
    samples = log(tmp_path)
    for _ in range(4):
        offer(samples)
    samples.start()
    samples.close()
    assert (samples.kept, samples.dropped) == (4, 4)


def test_a_folder_that_cannot_be_written_costs_samples_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "samples").write_bytes(b"a file where a folder should be")
    samples = log(tmp_path / "samples")
    offer(samples)
    samples.start()
    samples.close()
    assert (samples.kept, samples.dropped) == (0, 2)


def test_enough_rows_do_not_wait_for_their_time(tmp_path: Path) -> None:
    settings = PredictionLogSettings(folder=str(tmp_path), share=1.0)
    samples = PredictionLog(settings, replica="r1", every_s=600.0, file_rows=4)
    samples.start()
    offer(samples)
    offer(samples)
    until_s = time.monotonic() + 20
    while samples.kept < 4 and time.monotonic() < until_s:
        threading.Event().wait(0.001)
    assert samples.kept == 4
    samples.close()


def test_a_disk_without_room_costs_samples_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
import numpy as np
from kit.settings.serving import PredictionLogSettings
from kit.signature import Signature
from kit.tensors import TensorSpec
from kit.inference.card import Card
from serve.watching.prediction_log import PredictionLog
signature = Signature("regression", (TensorSpec("x", "float32", (-1,)),), ())
card = Card("shapes", 3, "d" * 64, "onnxruntime", signature)
settings = PredictionLogSettings(folder={str(tmp_path / "samples")!r}, share=1.0)
samples = PredictionLog(settings, replica="r1")
samples.offer("a", card=card, release=1, inputs={{"x": np.zeros(2, np.float32)}}, outputs={{}})
samples.start()
samples.close()
print(samples.kept, samples.dropped)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "2"]
    assert os.listdir(tmp_path / "samples") == []


def test_answers_no_column_can_hold_cost_their_file_alone(tmp_path: Path) -> None:
    samples = log(tmp_path)
    wrong = outputs() | {"label": np.array([0, 99])}
    samples.offer("a", card=CARD, release=1, inputs=inputs(), outputs=wrong)
    offer(samples, card=Card("shapes", 4, "e" * 64, "onnxruntime", SIGNATURE))
    samples.start()
    samples.close()
    assert (samples.kept, samples.dropped) == (2, 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_files_go_when_all_take_too_much(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number,) * 2)
    (tmp_path / "notes.txt").write_bytes(bytes(1000))
    keep_within(tmp_path, max_bytes=250)
    assert sorted(os.listdir(tmp_path)) == ["3.parquet", "4.parquet", "notes.txt"]


def test_the_newest_file_stays_even_if_it_alone_takes_too_much(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(bytes(1000))
    keep_within(tmp_path, max_bytes=1)
    assert os.listdir(tmp_path) == ["a.parquet"]
