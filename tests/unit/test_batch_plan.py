"""The frozen plan of a batch run: what names it, what differs from another, and what a damaged one says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs.batch.plan import SHAPING, Plan, Shard, make_shards, require_same, shaping
from jobs.batch.sources import Piece, Reading
from kit.errors import ConflictError, VerificationError
from kit.files import canonical_json
from kit.images import ImageLayout
from kit.settings import PredictSettings
from kit.tables import TableFile

Change = Callable[[dict[str, Any]], object]


def file(name: str, *, size_bytes: int = 1000, modified_ns: int = 1_700_000_000_000_000_001) -> TableFile:
    return TableFile(f"/data/{name}", name, "parquet", size_bytes, modified_ns)


def settings(**changed: Any) -> PredictSettings:
    return PredictSettings.model_validate({"model": "m", "input": "in", "output": "out", **changed})


def plan(*names: str, layout: ImageLayout | None = None, **changed: Any) -> Plan:
    files = tuple(file(name) for name in names or ("a.parquet", "b.parquet"))
    groups = [(Piece(each, 0, 5, 0, 5), Piece(each, 5, 5, 5, 5)) for each in files]
    return Plan(
        model="m@1",
        digest="d" * 64,
        settings=shaping(settings(**changed)),
        reading=Reading("/data", ("x", "id"), {"x": "float", "id": "int64"}, layout),
        files=files,
        shards=make_shards(groups, prefix="", files=files),
    )


def again(value: Plan) -> Plan:
    return Plan.from_json(json.loads(canonical_json(value.to_json())))


@pytest.mark.parametrize("layout", [None, ImageLayout("pixels", (3, 8, 9), resize=True, label="kind")])
def test_a_plan_is_read_as_it_was_written(layout: ImageLayout | None) -> None:
    written = plan(layout=layout, columns=["id"], partition_by=["id"])
    assert again(written) == written
    assert again(written).run_id == written.run_id


def test_a_plan_without_shards_or_row_counts_is_read_as_it_was_written() -> None:
    unknown = Shard("part-00000", (Piece(file("a.parquet")),), 1000)
    for shards in ((), (unknown,)):
        written = replace(plan("a.parquet"), shards=shards)
        assert again(written) == written
    assert replace(plan("a.parquet"), shards=(unknown,)).n_rows is None
    assert plan("a.parquet").n_rows == 10


def test_a_plan_of_twenty_thousand_files_stays_small_and_is_read_as_it_was_written() -> None:
    files = tuple(file(f"year=2026/{index:05d}.parquet") for index in range(20_000))
    groups = [[Piece(each, n_rows=5)] for each in files]
    written = replace(plan(), files=files, shards=make_shards(groups, prefix="", files=files))
    data = canonical_json(written.to_json())
    read = Plan.from_json(json.loads(data))
    assert len(data) < 8 << 20
    assert (read.run_id, read.files, read.shards) == (written.run_id, written.files, written.shards)
    assert read.n_rows == 100_000
    assert read.shards[-1].pieces[0].file is read.files[-1], "a file is held once, not once per piece"


def test_names_of_shards_sort_like_their_numbers() -> None:
    for n_shards, last in ((0, ""), (1, "part-00000"), (11, "part-00010"), (100_001, "part-100000")):
        names = [each.name for each in make_shards([()] * n_shards, prefix="", files=())]
        assert names == sorted(set(names))
        assert names[-1:] == [last] * (n_shards > 0)
    (retried,) = make_shards([[Piece(file("a"))]], prefix="retry-001-", files=[file("a")])
    assert retried.name == "retry-001-part-00000"


def test_a_shard_has_its_share_of_its_files_bytes() -> None:
    files = [file("a", size_bytes=900), file("b", size_bytes=50)]
    thirds = [Piece(files[0], index) for index in range(3)]
    shards = make_shards([thirds[:2], [thirds[2], Piece(files[1])]], prefix="", files=files)
    assert [each.n_bytes for each in shards] == [600, 350]


def test_a_shard_says_where_its_rows_are() -> None:
    pieces = (Piece(file("a.csv"), 100, 50, 7), Piece(file("b.csv")))
    assert Shard("part-00000", pieces[:1], 1).place == "a.csv from row 7"
    assert Shard("part-00000", pieces, 1).place == "a.csv from row 7 and 1 more files"


OTHER = {
    "engine": "openvino",
    "device": "cuda",
    "columns": ["id"],
    "outputs": ["label"],
    "origin": True,
    "partition_by": ["label"],
    "codec": "snappy",
    "row_group_rows": 7,
    "batch_rows": 128,
    "shard_rows": 1000,
}


@pytest.mark.parametrize("name", SHAPING)
def test_every_setting_that_shapes_the_output_makes_another_run_and_is_named(name: str) -> None:
    before, now = plan(), plan(**{name: OTHER[name]})
    assert before.run_id != now.run_id
    with pytest.raises(ConflictError) as caught:
        require_same(again(before), now, output="out")
    assert caught.value.message == (
        f"out holds another run: {name} is {now.settings[name]!r} and was {before.settings[name]!r}"
    )


def test_settings_that_shape_nothing_do_not_make_another_run() -> None:
    free = {
        "workers": 7,
        "threads": 2,
        "max_bad_rows": 5,
        "address": "auto",
        "prices": {"spot": 1.0},
        "output": "elsewhere",
    }
    kept, now = again(plan()), plan(**free)
    require_same(kept, now, output="out")
    assert now.run_id == kept.run_id


def test_every_setting_either_shapes_the_output_or_is_known_not_to() -> None:
    free = {"model", "input", "output", "max_bad_rows", "retry_quarantine", "workers", "threads"}
    assert set(PredictSettings.model_fields) == {*SHAPING, *free, "address", "prices"}


@pytest.mark.parametrize(
    "files, said",
    [
        ((file("a"),), "the input has 1 files and had 2 (b)"),
        ((file("a"), file("b"), file("c")), "the input has 3 files and had 2 (c)"),
        ((file("a"), file("c")), "the input has c and had b"),
        ((file("a"), file("b", size_bytes=1001)), "b has 1,001 bytes and had 1,000"),
        ((file("a"), file("b", modified_ns=2)), "b was written again since"),
        ((file("b"), file("a")), "the input's files are in another order"),
    ],
)
def test_an_input_that_differs_is_named(files: tuple[TableFile, ...], said: str) -> None:
    kept = plan("a", "b")
    with pytest.raises(ConflictError) as caught:
        require_same(kept, replace(kept, files=files), output="out")
    assert caught.value.message == f"out holds another run: {said}"
    assert "kit runs clean" in str(caught.value.hint)


def test_another_model_is_named_with_everything_else_that_differs() -> None:
    kept = plan("a", "b")
    now = replace(plan("a", codec="none"), model="m@2", digest="e" * 64)
    with pytest.raises(ConflictError) as caught:
        require_same(kept, now, output="out")
    assert caught.value.message == (
        "out holds another run: the model is m@2 (eeeeeeeeeeee) and was m@1 (dddddddddddd); "
        "the input has 1 files and had 2 (b); codec is 'none' and was 'zstd'"
    )


def test_an_input_that_lies_elsewhere_with_the_same_files_is_the_same_run() -> None:
    kept = plan("a", "b")
    moved = tuple(replace(each, path=f"/mnt/{each.name}") for each in kept.files)
    now = replace(kept, files=moved)
    require_same(kept, now, output="out")
    assert now.run_id == kept.run_id


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("run_id"),
        lambda value: value.pop("sha256"),
        lambda value: value.pop("shards"),
        lambda value: value.update(run_id="0" * 16),
        lambda value: value.update(format=2),
        lambda value: value.update(files=None),
        lambda value: value.update(settings=[]),
        lambda value: value["shards"].pop(),
        lambda value: value["shards"][0]["pieces"].pop(),
        lambda value: value["shards"][0]["pieces"][0].__setitem__(1, 6),
        lambda value: value["shards"][0]["pieces"][0].__setitem__(0, 9),
        lambda value: value["files"][0].__setitem__(3, float("nan")),
        lambda value: value["reading"].update(columns=["x"]),
        lambda value: value["settings"].update(codec="none"),
    ],
)
def test_a_plan_that_was_changed_is_refused(change: Change) -> None:
    value = plan().to_json()
    change(value)
    with pytest.raises(VerificationError, match="the run's plan cannot be read: ") as caught:
        Plan.from_json(value)
    assert caught.value.hint


@pytest.mark.parametrize("value", [{}, {"format": 1}, {"format": 1, "sha256": "0" * 64}, [], [1]])
def test_what_is_no_plan_is_refused(value: Any) -> None:
    with pytest.raises(VerificationError, match="the run's plan cannot be read: "):
        Plan.from_json(value)
