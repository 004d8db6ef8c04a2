"""What crosses between parts through windows and ids: refused, or counted and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from kit.data import load, load_rows
from kit.errors import InputError
from kit.project import Project
from kit.rows import Split

N_ROWS = 200
TOML = """
[project]
name = "toy"
[data]
path = "data.parquet"
label = "y"
{split}
[[data.inputs]]
name = "last"
shape = [4]
nullable = true
[model]
factory = "model:build"
[[prepare.windows]]
name = "last"
column = "row"
length = 4
{window}
"""
PLAIN = """
[project]
name = "toy"
[data]
path = "data.parquet"
label = "y"
{split}
[[data.inputs]]
name = "row"
[model]
factory = "model:build"
"""


def project(folder: Path, split: str, window: str | None = None, **columns: Any) -> Project:
    """A table of 200 moments, of ten groups in turn, whose values are the numbers of their rows."""
    rows = np.arange(N_ROWS)
    table = {"row": rows.astype(np.float32), "y": rows % 2, "t": rows, "g": rows % 10, "back": rows[::-1]}
    parquet.write_table(pa.table(table | columns), folder / "data.parquet")
    text = PLAIN.format(split=split) if window is None else TOML.format(split=split, window=window)
    (folder / "kit.toml").write_text(text, encoding="utf-8")
    return Project.open(folder)


def leaking(split: Split) -> int:
    """Count the training rows whose windows hold the number of a row of another part, the slow way."""
    others = {*split.validation.rows.tolist(), *split.test.rows.tolist()}
    return sum(any(value in others for value in row) for row in split.train.tensors["last"].tolist())


def facts(split: Split) -> dict[str, Any]:
    return {fact["check"]: (fact["found"], fact["detail"]) for fact in split.leakage}


def test_a_window_across_groups_fails_a_grouped_split(tmp_path: Path) -> None:
    grouped = "split = 'grouped'\ngroup = 'g'"
    with pytest.raises(InputError) as caught:
        load(project(tmp_path, grouped, "time = 't'"))
    parts = load_rows(project(tmp_path, "group = 'g'", "time = 't'"))
    cut = load_rows(project(tmp_path, grouped, "time = 't'")).hold_out()
    count = leaking(parts.split(**dict(zip(("train", "validation", "test"), cut, strict=True))))
    assert count > 0
    assert f"leakage: the window 'last' of {count} of {len(cut[0])} training rows holds values of" in str(
        caught.value
    )
    assert caught.value.hint == (
        "set group = 'g' under [[prepare.windows]] 'last', the group the rows are split by"
    )
    split = load(project(tmp_path, grouped, "time = 't'\ngroup = 'g'"))
    assert facts(split)["window"][0] == leaking(split) == 0


def test_a_window_by_another_time_fails_a_time_split(tmp_path: Path) -> None:
    by_time = "split = 'time'\ntime = 't'"
    with pytest.raises(
        InputError, match="the window 'last' of 3 of 144 training rows holds values"
    ) as caught:
        load(project(tmp_path, by_time, "time = 'back'"))
    assert caught.value.hint == (
        "set time = 't' under [[prepare.windows]] 'last', the time the rows are split by"
    )


def test_held_out_rows_may_hold_the_values_of_earlier_training_rows(tmp_path: Path) -> None:
    split = load(project(tmp_path, "split = 'time'\ntime = 't'", ""))
    learnt = set(split.train.rows.tolist())
    assert any(value in learnt for value in split.validation.tensors["last"][0].tolist())
    assert facts(split)["window"][0] == 0


@pytest.mark.parametrize("how", ["random", "stratified"])
def test_a_random_split_counts_the_windows_that_cross_and_warns_once(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    split = load(project(tmp_path, f"split = '{how}'", "time = 't'"))
    count, detail = facts(split)["window"]
    assert count == leaking(split) > 0
    assert detail.startswith(f"{count} training rows have a window 'last' that holds values of")
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.getMessage().startswith(detail) for record in said] == [True]


def test_folds_of_a_grouped_split_are_held_to_it_too(tmp_path: Path) -> None:
    rows = load_rows(project(tmp_path, "split = 'grouped'\ngroup = 'g'", "time = 't'"))
    train, test = next(rows.folds("grouped", n_folds=5))
    kept, validation = rows.carve(train)
    with pytest.raises(InputError, match="leakage: the window 'last'"):
        rows.split(train=kept, validation=validation, test=test)


@pytest.mark.parametrize(
    "ids", [pa.nulls(N_ROWS), pa.array([None] * N_ROWS, pa.int64()), np.full(N_ROWS, np.nan)]
)
def test_an_id_that_no_row_has_is_refused(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(InputError, match="the id 'i' is missing in all 200 rows") as caught:
        load(project(tmp_path, "id = 'i'", i=ids))
    assert "take id out" in str(caught.value.hint)


def test_ids_that_some_rows_lack_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kit"):
        split = load(project(tmp_path, "id = 'i'", i=[row if row % 4 else None for row in range(N_ROWS)]))
    assert facts(split)["id"] == (
        0,
        "no value of 'i' is in two parts; 50 of 200 rows have none and were not compared",
    )
    assert "the id 'i' is missing in 50 of 200 rows; the leakage check compares the others" in caplog.messages
    whole = load(project(tmp_path, "id = 'i'", i=np.arange(N_ROWS)))
    assert facts(whole)["id"] == (0, "no value of 'i' is in two parts")


@pytest.mark.parametrize("times", [[None] * N_ROWS, [None, *range(1, N_ROWS)]])
def test_a_time_that_is_missing_is_refused_and_counted(tmp_path: Path, times: list[Any]) -> None:
    with pytest.raises(InputError, match=rf"'w', row 0: .* missing .*\({times.count(None)} rows\)"):
        load(project(tmp_path, "split = 'time'\ntime = 'w'", w=pa.array(times, pa.int64())))
