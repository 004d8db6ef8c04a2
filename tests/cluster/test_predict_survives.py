"""What a batch run survives: its workers, its driver, its disk and its input going away under it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import parquet

from jobs.predict import predict
from jobs.runs import runs
from kit.errors import DiskFullError, UnavailableError, VerificationError
from kit.project import Project
from kit.settings import RunsSettings
from tests.cluster.test_predict import reference, settings

N_MANY = 400_000
SHARD_ROWS = 4_000


@pytest.fixture(scope="module")
def many(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a hundred shards."""
    path: Path = tmp_path_factory.mktemp("many") / "in.parquet"
    parquet.write_table(lab.table(N_MANY), path, row_group_size=SHARD_ROWS)
    return path


def given(source: Path, output: Path, **flags: Any) -> dict[str, Any]:
    return {
        "model": "blobs",
        "input": str(source),
        "output": str(output),
        "columns": ["id"],
        "shard_rows": SHARD_ROWS,
        "batch_rows": 256,
        **flags,
    }


def committed(output: Path) -> list[Path]:
    return list((output / "_run" / "commits").glob("*.json"))


def workers(lab: Any, driver: subprocess.Popen[str]) -> list[psutil.Process]:
    found: list[psutil.Process] = lab.processes("ShardActor", of=driver.pid)
    return found


def await_commits(lab: Any, driver: subprocess.Popen[str], output: Path, *, n: int) -> None:
    lab.await_event(lambda: len(committed(output)) >= n or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()[1]


def kill_driver(lab: Any, project: Project, settings: dict[str, Any], *, n: int) -> None:
    """Start a run and kill its driver once so many shards are committed."""
    driver = lab.start(project, "predict", settings)
    await_commits(lab, driver, Path(settings["output"]), n=n)
    driver.kill()
    driver.communicate()


def assert_every_row_once(project: Project, output: Path, *, n_rows: int = N_MANY) -> None:
    assert parquet.read_table(output)["id"].to_pylist() == list(range(n_rows))
    assert runs(project, RunsSettings(action="verify", output=str(output))).wrong == ()


def flags() -> dict[str, Any]:
    return {"columns": ["id"], "shard_rows": SHARD_ROWS, "batch_rows": 256}


class _Killer:
    """Kills every worker as soon as it works."""

    def __init__(self, lab: Any) -> None:
        self.lab, self.n_killed, self.end = lab, 0, threading.Event()
        self.thread = threading.Thread(target=self._kill)

    def __enter__(self) -> _Killer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join()

    def _kill(self) -> None:
        while not self.end.wait(0.05):
            for each in self.lab.processes("ray::ShardActor.run"):
                each.kill()
                self.n_killed += 1


def test_a_model_that_was_touched_after_the_start_is_not_loaded(
    lab: Any, trained: Any, tmp_path: Path, at: Any
) -> None:
    parquet.write_table(lab.table(20), tmp_path / "in.parquet")
    _, version = trained.project.open_version("blobs")
    whole = version.model_path.read_bytes()

    def flip() -> None:
        version.model_path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    saboteur = at("starting Ray", flip)
    try:
        with pytest.raises(VerificationError, match=r"model\.onnx"):
            predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    finally:
        version.model_path.write_bytes(whole)
    assert saboteur.done
    assert list((tmp_path / "out").glob("*.parquet")) == []
    result = predict(trained.project, settings(trained.project, tmp_path / "in.parquet", tmp_path / "out"))
    assert result.rows_out == 20


def test_a_shard_that_kills_its_workers_is_named_and_not_tried_for_ever(
    lab: Any, trained: Any, tmp_path: Path, many: Path
) -> None:
    killer = _Killer(lab)
    with (
        killer,
        pytest.raises(
            UnavailableError, match=r"workers died 3 times over part-\d+ \(in\.parquet from row \d+\)"
        ),
    ):
        predict(trained.project, settings(trained.project, many, tmp_path / "out", workers=1, **flags()))
    assert killer.n_killed >= 3


def test_an_input_that_is_cut_off_during_the_run_ends_it_by_name(
    lab: Any, trained: Any, tmp_path: Path, many: Path
) -> None:
    source = tmp_path / "in.parquet"
    source.write_bytes(many.read_bytes())
    out = tmp_path / "out"
    driver = lab.start(trained.project, "predict", given(source, out))
    await_commits(lab, driver, out, n=3)
    os.truncate(source, source.stat().st_size // 2)
    said = driver.communicate()[1]
    assert driver.returncode != 0
    assert re.search(r"error: in\.parquet changed during the run", said), said
    assert not (out / "_run" / "manifest.json").exists()


@pytest.mark.usefixtures("one_ray")
def test_killed_workers_and_drivers_cost_no_row_and_double_none(
    lab: Any, trained: Any, tmp_path: Path, many: Path
) -> None:
    out = tmp_path / "out"
    for n in (10, 40):
        driver = lab.start(trained.project, "predict", given(many, out))
        await_commits(lab, driver, out, n=n)
        workers(lab, driver)[0].kill()
        await_commits(lab, driver, out, n=len(committed(out)) + 5)
        before = {path.name: path.stat().st_mtime_ns for path in committed(out)}
        driver.kill()
        driver.communicate()
        assert not (out / "_run" / "manifest.json").exists()
        assert len(before) < N_MANY // SHARD_ROWS
    predict(trained.project, settings(trained.project, many, out, workers=1, **flags()))  # on fewer CPUs
    assert_every_row_once(trained.project, out)
    after = {path.name: path.stat().st_mtime_ns for path in committed(out)}
    assert {name: after[name] for name in before} == before  # what was done was not done again
    table = parquet.read_table(many)
    answers = parquet.read_table(out)
    assert answers["label"].to_pylist() == reference(trained.project, table)["label"].tolist()


@pytest.mark.usefixtures("one_ray")
def test_an_interrupt_finishes_what_is_in_flight_and_the_same_command_resumes(
    lab: Any, trained: Any, tmp_path: Path, many: Path
) -> None:
    out = tmp_path / "out"
    driver = lab.start(trained.project, "predict", given(many, out))
    await_commits(lab, driver, out, n=10)
    driver.send_signal(signal.SIGINT)
    said = driver.communicate()[1]
    assert "the shards in flight are finished first" in said
    assert f"of {N_MANY // SHARD_ROWS} shards are done and kept in {out}; the same command resumes" in said
    left = [path.name for path in out.glob("*") if path.name.startswith(".")]
    assert left == []
    assert len(list(out.glob("part-*.parquet"))) == len(committed(out)) < N_MANY // SHARD_ROWS
    again = predict(trained.project, settings(trained.project, many, out, **flags()))
    assert again.n_resumed >= 10
    assert_every_row_once(trained.project, out)


@pytest.mark.usefixtures("one_ray")
def test_a_disk_that_fills_up_keeps_what_is_done_and_more_room_finishes_it(
    trained: Any, many: Path, disk_of: Callable[[str], Path]
) -> None:
    disk = disk_of("3m")
    out = disk / "out"
    chosen = settings(trained.project, many, out, **flags())
    with pytest.raises(DiskFullError, match="is full"):
        predict(trained.project, chosen)
    n_done = len(committed(out))
    assert 0 < n_done < N_MANY // SHARD_ROWS
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert predict(trained.project, chosen).n_resumed >= n_done  # a worker may have finished its shard
    assert_every_row_once(trained.project, out)


@pytest.mark.usefixtures("one_ray")
def test_a_part_that_is_gone_or_cut_off_is_made_anew(
    lab: Any, trained: Any, tmp_path: Path, many: Path
) -> None:
    out = tmp_path / "out"
    kill_driver(lab, trained.project, given(many, out), n=20)
    (out / "part-00000.parquet").unlink()
    os.truncate(out / "part-00001.parquet", 100)
    predict(trained.project, settings(trained.project, many, out, **flags()))
    assert_every_row_once(trained.project, out)


@pytest.mark.usefixtures("one_ray")
def test_an_input_that_was_moved_with_its_times_is_the_same_input(
    lab: Any, trained: Any, tmp_path: Path, many: Path
) -> None:
    source, out = tmp_path / "before" / many.name, tmp_path / "out"
    source.parent.mkdir()
    shutil.copy2(many, source)
    kill_driver(lab, trained.project, given(source, out), n=5)
    source.parent.rename(tmp_path / "after")
    moved = tmp_path / "after" / many.name
    assert predict(trained.project, settings(trained.project, moved, out, **flags())).n_resumed >= 5
    assert_every_row_once(trained.project, out)
