"""What a batch run checks before it plans: outputs, columns, empty files, room and address."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import check_reachable, check_room, is_local
from jobs.predict import _check_outputs, _with_bytes
from kit.errors import InputError, SettingsError, UnavailableError
from kit.settings import PredictSettings
from kit.signature import Signature
from kit.tables import list_files
from kit.tensors import TensorSpec

REGRESSION = Signature("regression", (), (TensorSpec("value", "float32", (-1,)),))
CLASSES = Signature(
    "classification",
    (),
    (
        TensorSpec("label", "int64", (-1,), classes=("a", "b")),
        TensorSpec("probabilities", "float32", (-1, 2)),
    ),
)


def settings(**chosen: Any) -> PredictSettings:
    return PredictSettings.model_validate({"model": "m", "input": "in", "output": "out", **chosen})


@pytest.mark.parametrize("outputs", [["label"], ["valeu"], ["value", "valeu"]])
def test_outputs_of_which_the_model_has_none_are_refused(outputs: list[str]) -> None:
    with pytest.raises(InputError, match=r"the model has no output '(label|valeu)'") as caught:
        _check_outputs(settings(outputs=outputs), REGRESSION)
    assert "value" in str(caught.value.hint)


def test_outputs_the_model_has_are_accepted_and_others_are_not() -> None:
    _check_outputs(settings(outputs=["label", "value"]), REGRESSION)
    with pytest.raises(InputError, match="has no output 'labels'"):
        _check_outputs(settings(outputs=["labels", "value"]), REGRESSION)
    for signature in (REGRESSION, CLASSES):
        _check_outputs(settings(), signature)
    _check_outputs(settings(columns=["day"], partition_by=["day", "label"]), CLASSES)


@pytest.mark.parametrize("name", ["origin_file", "origin_row"])
def test_a_kept_column_does_not_hide_the_origin(name: str) -> None:
    _check_outputs(settings(columns=[name]), CLASSES)
    with pytest.raises(InputError, match=f"the kept column '{name}' has the name of the origin's"):
        _check_outputs(settings(columns=[name], origin=True), CLASSES)


def test_a_kept_column_does_not_hide_an_answer() -> None:
    _check_outputs(settings(columns=["label"]), REGRESSION)
    _check_outputs(settings(columns=["label"], outputs=["probabilities"]), CLASSES)
    with pytest.raises(InputError, match="the kept column 'label' has the name of an output"):
        _check_outputs(settings(columns=["label"]), CLASSES)


@pytest.mark.parametrize(
    "chosen, signature, name",
    [
        ({"partition_by": ["day"]}, CLASSES, "day"),
        ({"partition_by": ["label"]}, REGRESSION, "label"),
        ({"partition_by": ["label"], "outputs": ["probabilities"]}, CLASSES, "label"),
        ({"partition_by": ["probabilities"]}, CLASSES, "probabilities"),
    ],
)
def test_rows_are_partitioned_by_what_is_written(
    chosen: dict[str, Any], signature: Signature, name: str
) -> None:
    with pytest.raises(SettingsError, match=f"partition_by names '{name}', which is not written"):
        _check_outputs(settings(**chosen), signature)


def write(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("id\n1\n")


def test_workers_are_held_against_this_machine_but_not_against_a_cluster_that_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    check_room(2, threads=2, address=None)
    for workers, threads, message, hint in (
        (5, 1, "workers = 5, but this machine has 4 CPUs", "set workers to 4"),
        (3, 2, "workers = 3 of 2 threads, but this machine has 4 CPUs", "set workers to 2"),
        (1, 8, "threads = 8, but this machine has 4 CPUs", "set threads to 4"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            check_room(workers, threads=threads, address=None)
        assert hint in str(caught.value.hint)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    check_room(100, threads=2, address="10.0.0.5:6379")


@pytest.mark.parametrize("address", ["http://[x", "http://127.0.0.1:abc", "http://127.0.0.1:99999", "a..b:1"])
def test_an_address_that_is_none_is_refused_in_one_sentence(address: str) -> None:
    with pytest.raises(UnavailableError):
        check_reachable(address)
    if address != "a..b:1":
        with pytest.raises(SettingsError, match="is not an address"):
            is_local(address)


def test_files_without_bytes_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "rows", ["a.csv", "c.csv"])
    (tmp_path / "rows" / "b.csv").touch()
    uri = str(tmp_path / "rows")
    with caplog.at_level(logging.WARNING, logger="kit"):
        assert [file.name for file in _with_bytes(uri, list_files(uri))] == ["a.csv", "c.csv"]
    assert "skipped 1 empty files: b.csv" in caplog.text
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.csv").touch()
    with pytest.raises(InputError, match=r"holds no rows: a\.csv is empty"):
        _with_bytes(uri, list_files(str(tmp_path / "none")))
