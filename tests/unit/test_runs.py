"""kit runs: what ledgers say, what verify finds, and that clean removes a run and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.batch.finish import count, manifest_of
from jobs.batch.ledger import QUARANTINE, Commit, Ledger
from jobs.batch.parts import Layout, Parts
from jobs.batch.places import open_place
from jobs.batch.plan import Plan, make_shards, shaping
from jobs.batch.sources import Piece, Reading
from jobs.runs import RunsResult, remember, runs
from kit.errors import ConflictError, InputError, VerificationError
from kit.project import Project
from kit.settings import PredictSettings, RunsSettings
from kit.tables import TableFile

N_SHARDS = 3


@pytest.fixture
def project(digits_project: Path) -> Project:
    return Project.open(digits_project)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def make_run(
    out: Path,
    *,
    shards: int = N_SHARDS,
    done: int = N_SHARDS,
    finished: bool = True,
    retry: int | None = None,
    by: tuple[str, ...] = (),
    ended_s: float = 1_790_000_000.0,
) -> None:
    """Write what a run leaves: per shard four rows answered and one refused."""
    place = open_place(str(out))
    ledger = Ledger(place, retry=retry)
    files = tuple(TableFile(f"/in/{n}.csv", f"{n}.csv", "csv", 10, 1) for n in range(shards))
    settings = PredictSettings.model_validate(
        {"model": "m", "input": "in", "output": "out", "partition_by": by, "columns": by}
    )
    groups = [[Piece(file, n_rows=5)] for file in files]
    plan = Plan(
        model="m@1",
        digest="d" * 64,
        settings=shaping(settings),
        reading=Reading("/in", ("x",), {"x": "float"}),
        files=files,
        shards=make_shards(groups, prefix=ledger.prefix, files=files),
    )
    ledger.create("plan", plan.to_json())
    ledger.create("engine", {"batch_rows": 64})
    for index, shard in enumerate(plan.shards[:done]):
        mark, name = ledger.commit_name(shard.name), f"{shard.name}.parquet"
        with (
            Parts(place, name=name, layout=Layout(partition_by=by)) as parts,
            Parts(place, name=name, layout=Layout(), folder=f"{QUARANTINE}/") as aside,
        ):
            parts.write(pa.table({"country": ["DE", "FR"] * 2, "label": [1, 2, 3, 4]}))
            aside.write(pa.table({"reason": ["a value is missing"]}))
            written, (refused,) = parts.finish(mark=mark), aside.finish(mark=mark)
        ledger.commit(
            Commit(
                shard=shard.name,
                rows_in=5,
                rows_out=4,
                rows_refused=1,
                files=written,
                quarantine=refused,
                reasons={"a value is missing": 1} if index else {"too large": 1},
                seconds={},
                started_s=ended_s - 1,
                ended_s=ended_s + index,
                node="ab",
                market="local",
                batch_rows=64,
                labels=(),
            )
        )
    if finished:
        commits = list(ledger.commits().values())
        ledger.put("report.json", b"{}")
        ledger.put("report.html", b"<html>")
        ledger.create("manifest", manifest_of(plan, commits, count(plan, commits, place)))


def asked(project: Project, action: str, output: Path | None = None, **more: Any) -> RunsResult:
    named = {} if output is None else {"output": str(output)}
    return runs(project, RunsSettings.model_validate({"action": action, **named, **more}))


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_run_is_shown_with_its_retries_its_rows_and_its_reasons(project: Project, out: Path) -> None:
    make_run(out)
    make_run(out, retry=1, shards=1, done=1, finished=False)
    first, second = asked(project, "show", out).runs
    assert (first.name, first.status, first.shards, first.shards_done) == ("run", "finished", 3, 3)
    assert (first.rows_in, first.rows_out, first.rows_refused) == (15, 12, 3)
    assert list(first.reasons.items()) == [("a value is missing", 2), ("too large", 1)]
    assert (first.model, first.input, first.output) == ("m@1", "/in", str(out))
    assert first.changed == "2026-09-21T14:13:22+00:00"
    assert first.settings["codec"] == "zstd"
    assert (second.name, second.status, second.rows_in) == ("retry 1", "unfinished", 5)
    assert second.run_id != first.run_id


def test_the_list_shows_unfinished_finished_and_gone_runs_the_latest_first(
    project: Project, tmp_path: Path
) -> None:
    assert asked(project, "list").runs == ()
    for name in ("old", "new", "begun", "gone", "never"):
        remember(project, str(tmp_path / name))
    remember(project, str(tmp_path / "new"))
    make_run(tmp_path / "old", ended_s=1_000_000.0)
    make_run(tmp_path / "new", done=2, finished=False)
    make_run(tmp_path / "begun", done=0, finished=False)
    make_run(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    found = asked(project, "list").runs
    assert [(Path(each.output).name, each.status, each.shards_done) for each in found] == [
        ("new", "unfinished", 2),
        ("old", "finished", 3),
        ("never", "gone", 0),
        ("gone", "gone", 0),
        ("begun", "unfinished", 0),
    ]


def test_a_run_whose_ledger_is_damaged_does_not_hide_the_others(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        remember(project, str(tmp_path / name))
        make_run(tmp_path / name)
    (tmp_path / "bad" / "_run" / "plan.json").write_bytes(b"{")
    assert [Path(each.output).name for each in asked(project, "list").runs] == ["good"]
    assert f"{tmp_path / 'bad'} cannot be read" in caplog.text


@pytest.mark.parametrize("action", ["show", "verify", "clean"])
def test_a_folder_without_a_run_is_refused_and_left_alone(project: Project, out: Path, action: str) -> None:
    out.mkdir()
    (out / "part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match="out holds no batch run"):
        asked(project, action, out)
    assert everything(out) == ["part-00000.parquet"]


@pytest.mark.parametrize("by", [(), ("country",)])
@pytest.mark.parametrize("finished", [True, False])
def test_verify_hashes_every_file_of_a_run_and_of_its_retries(
    project: Project, out: Path, by: tuple[str, ...], finished: bool
) -> None:
    make_run(out, by=by, finished=True)
    make_run(out, by=by, retry=1, finished=finished)
    result = asked(project, "verify", out)
    result.require_passed()
    parts = list(out.rglob("*.parquet"))
    assert (result.files, result.wrong) == (len(parts), ())
    assert result.n_bytes == sum(path.stat().st_size for path in parts)
    assert len(result.runs) == 2


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def change_manifest(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = out / "_run" / "manifest.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(json.dumps(value).encode())


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda out: flip(out / "part-00001.parquet"), "part-00001.parquet has the sha256"),
        (lambda out: flip(out / "_quarantine/part-00001.parquet"), "_quarantine/part-00001.parquet has the"),
        (lambda out: (out / "part-00001.parquet").unlink(), "part-00001.parquet is missing"),
        (lambda out: grow(out / "part-00001.parquet"), "part-00001.parquet has "),
        (
            lambda out: shutil.copy(out / "part-00001.parquet", out / "part-00009.parquet"),
            "part-00009.parquet belongs to no commit record",
        ),
        (
            lambda out: (out / "_quarantine" / "extra.parquet").touch(),
            "_quarantine/extra.parquet belongs to no commit record",
        ),
        (
            lambda out: change_manifest(out, lambda value: value["parts"][1].update(sha256="0" * 64)),
            "part-00001.parquet is in the manifest with another digest",
        ),
        (
            lambda out: change_manifest(out, lambda value: value["parts"].pop(1)),
            "part-00001.parquet is not in the manifest",
        ),
        (lambda out: change_manifest(out, lambda value: value.pop("parts")), "_run/manifest.json is damaged"),
        (
            lambda out: change_manifest(out, lambda value: value.update(parts=[1])),
            "_run/manifest.json is damaged",
        ),
    ],
)
def test_verify_names_the_one_thing_that_is_wrong(
    project: Project, out: Path, harm: Callable[[Path], object], said: str
) -> None:
    make_run(out)
    harm(out)
    result = asked(project, "verify", out)
    assert len(result.wrong) == 1, result.wrong
    assert result.wrong[0].startswith(said)
    with pytest.raises(VerificationError, match="1 of 6 files are not as they were committed"):
        result.require_passed()


def test_verify_misses_the_record_of_a_shard_of_a_finished_run(project: Project, out: Path) -> None:
    make_run(out)
    (out / "_run" / "commits" / "part-00001.json").unlink()
    wrong = asked(project, "verify", out).wrong
    assert "part-00001 has no commit record, and the run is finished" in wrong
    assert "part-00001.parquet is in the manifest, and no commit record names it" in wrong


def test_parts_of_a_shard_that_is_being_written_are_not_wrong(project: Project, out: Path) -> None:
    make_run(out, done=2, finished=False)
    shutil.copy(out / "part-00001.parquet", out / "part-00002.parquet")
    assert asked(project, "verify", out).wrong == ()
    shutil.copy(out / "part-00001.parquet", out / "part-00003.parquet")
    assert asked(project, "verify", out).wrong == ("part-00003.parquet belongs to no commit record",)


def test_a_damaged_plan_or_record_is_a_verification_error(project: Project, out: Path) -> None:
    make_run(out)
    for name in ("_run/commits/part-00001.json", "_run/plan.json"):
        (out / name).write_bytes(b"{}")
        for action in ("show", "verify"):
            with pytest.raises(VerificationError):
                asked(project, action, out)


STRANGERS = (
    "thesis.txt",
    "part-notes.parquet",
    "part-00009.parquet",
    "backup/part-00000.parquet",
    "_quarantine/notes.txt",
    "_quarantine/old/part-00000.parquet",
    "other=1/part-00000.parquet",
    ".hidden",
)


@pytest.mark.parametrize("by", [(), ("country",)])
def test_clean_removes_the_run_and_leaves_what_is_a_stranger_s(
    project: Project, out: Path, by: tuple[str, ...]
) -> None:
    make_run(out, by=by, done=2, finished=False)
    half = open_place(str(out)).spool("part-00002.parquet")
    half.write_bytes(b"half")
    for name in STRANGERS:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    result = asked(project, "clean", out)
    assert [name for name in everything(out) if (out / name).is_file()] == sorted(STRANGERS)
    assert not (out / "_run").exists()
    assert not half.exists()
    assert result.files == (4 if by else 2) + 2 + 4, "parts, quarantine, plan, engine and two records"


def test_clean_removes_a_finished_run_with_its_retries_only_when_told_so(project: Project, out: Path) -> None:
    make_run(out)
    make_run(out, retry=1, shards=1, done=1)
    before = everything(out)
    with pytest.raises(ConflictError, match="is finished: 12 rows are answered there") as caught:
        asked(project, "clean", out)
    assert "--finished" in str(caught.value.hint)
    assert everything(out) == before
    asked(project, "clean", out, finished=True)
    assert everything(out) == []
    with pytest.raises(InputError, match="holds no batch run"):
        asked(project, "clean", out)


def test_a_run_that_somebody_works_at_is_not_cleaned(project: Project, out: Path) -> None:
    make_run(out, done=1, finished=False)
    with (
        open_place(str(out)).held(),
        pytest.raises(ConflictError, match="is held by another run"),
    ):
        asked(project, "clean", out)
    assert (out / "part-00000.parquet").is_file()


def test_a_clean_that_was_cut_short_can_be_repeated(project: Project, out: Path) -> None:
    make_run(out)
    (out / "_run" / "manifest.json").unlink()
    (out / "part-00000.parquet").unlink()
    (out / "_run" / "commits" / "part-00001.json").unlink()
    asked(project, "clean", out)
    assert everything(out) == []
