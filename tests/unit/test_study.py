"""A study's books: what is handed out, what a killed driver leaves, which trial is the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.tuning.importance import importance
from jobs.tuning.ledger import Ledger
from jobs.tuning.live import Live, line_of
from jobs.tuning.resources import room_for
from jobs.tuning.search import mutated, proposer
from jobs.tuning.space import Space
from jobs.tuning.study import MAX_DEATHS, Study, Trial
from kit.errors import InputError
from kit.settings import SpaceSettings, TrainSettings, TuneSettings

SPACE = {
    "parameters": {"width": {"choice": [8, 16]}},
    "train": {"learning_rate": {"log": [1e-4, 1e-1]}},
}


def make_space(values: dict[str, Any] = SPACE) -> Space:
    return Space.of(SpaceSettings.model_validate(values))


def make_study(folder: Path, *, budget: int = 3, **more: Any) -> Study:
    ledger = Ledger(str(folder), study="s")
    draw = make_space()
    return Study(
        ledger,
        budget=budget,
        mode="min",
        propose=lambda number: draw.sample(np.random.default_rng(number)),
        **more,
    )


def again(folder: Path, **more: Any) -> Study:
    """What the next driver sees after the last one was killed."""
    study = make_study(folder, **more)
    study.ledger.write_study({"status": "running"})
    names = [each.name for each in make_space().dimensions]
    study.resume(study.ledger.read()[1].values(), names=names)
    return study


def hear(study: Study, trial: Trial, *values: float) -> None:
    for epoch, value in enumerate(values, start=1):
        best = int(np.argmin(values[:epoch])) + 1
        figures = {"epoch": epoch, "train_loss": value, "validation_loss": value}
        figures |= {"value": min(values[:epoch]), "best_epoch": best}
        study.heard(trial.number, figures, parameters=trial.parameters)


def handed(study: Study) -> Trial:
    trial = study.next_trial()
    assert trial is not None
    return trial


def test_a_trial_is_in_the_ledger_before_it_starts(tmp_path: Path) -> None:
    trial = handed(make_study(tmp_path))
    kept = json.loads((tmp_path / "s" / "trials" / "0001.json").read_text())
    assert kept["status"] == "running"
    assert kept["parameters"] == trial.parameters


def test_the_next_driver_hands_out_what_was_started_first_and_with_the_same_values(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    first, second = handed(study), handed(study)
    hear(study, first, 0.5, 0.3)
    study.end(first.number, "finished")
    resumed = again(tmp_path)
    taken = handed(resumed)
    assert (taken.number, taken.parameters) == (second.number, second.parameters)
    assert handed(resumed).number == 3
    assert resumed.next_trial() is None
    assert resumed.trials[1] == study.trials[1]
    assert list(resumed.trials[1].parameters) == ["width", "learning_rate"]  # as the space has them


def test_a_trial_whose_process_was_killed_is_handed_out_again_a_few_times(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=1)
    trial = handed(study)
    for _ in range(MAX_DEATHS):
        study.died(trial.number, reason="killed", own_fault=False)
        assert not study.ended
        assert handed(study).parameters == trial.parameters
    study.died(trial.number, reason="killed", own_fault=False)
    assert study.trials[1].reason == "its process was killed 4 times"
    assert study.ended


def test_a_trial_that_took_all_memory_has_failed_at_once(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.died(handed(study).number, reason="it ran out of memory", own_fault=True)
    assert (study.trials[1].status, study.trials[1].reason) == ("failed", "it ran out of memory")


def test_the_best_trial_is_the_first_of_the_best_that_did_not_fail(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=4)
    for values, status in (((0.4,), "finished"), ((0.2, 0.9), "stopped"), ((0.2,), "finished")):
        trial = handed(study)
        hear(study, trial, *values)
        study.end(trial.number, status)  # type: ignore[arg-type]  # a literal in a loop
    failed = handed(study)
    hear(study, failed, 0.1)
    study.end(failed.number, "failed", reason="it diverged")
    assert study.best is not None
    assert (study.best.number, study.best.value, study.best.best_epoch) == (2, 0.2, 1)
    study.mode = "max"
    assert study.best.number == 1


def test_only_the_checkpoints_of_the_three_best_trials_are_kept(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=5)
    for value in (0.4, 0.2, 0.5, 0.3, 0.6):
        trial = handed(study)
        study.ledger.checkpoint_folder(trial.number, scratch=tmp_path)
        hear(study, trial, value)
        study.end(trial.number, "finished")
    kept = sorted(each.name for each in (tmp_path / "s" / "checkpoints").iterdir())
    assert kept == ["0001", "0002", "0004"]
    study.reject(2, reason="it cannot be exported")
    assert [each.number for each in study.ranked] == [4, 1, 3, 5]
    assert again(tmp_path, budget=5).trials[2].reason == "it cannot be exported"


def test_a_trial_that_ends_before_its_first_epoch_has_failed(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.end(handed(study).number, "stopped", reason="the time budget was spent")
    assert study.trials[1].status == "failed"
    assert study.best is None


def test_no_more_trials_than_asked_for_run_at_a_time(tmp_path: Path) -> None:
    study = make_study(tmp_path, concurrent=2)
    first = handed(study)
    handed(study)
    assert study.next_trial() is None
    study.end(first.number, "failed", reason="it crashed")
    assert handed(study).number == 3


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), study="s")
    ledger.write_study({"status": "running"})
    (tmp_path / "s" / "trials").mkdir()
    (tmp_path / "s" / "trials" / "0001.json").write_text("{")
    with pytest.raises(InputError, match=r"trials/0001\.json is not JSON"):
        ledger.read()


def test_random_values_depend_on_seed_and_number_alone() -> None:
    settings = TuneSettings(search="random", seed=3)
    forwards, _ = proposer(make_space(), settings, mode="min")
    backwards, _ = proposer(make_space(), settings, mode="min")
    one = [forwards(number) for number in range(1, 6)]
    other = [backwards(number) for number in reversed(range(1, 6))]
    assert one == list(reversed(other))
    assert len({each["learning_rate"] for each in one if each}) == 5


def test_a_grid_ends_with_its_last_combination() -> None:
    space = make_space({"train": {"batch_size": {"choice": [16, 32]}}})
    propose, _ = proposer(space, TuneSettings(search="grid"), mode="min")
    assert [propose(1), propose(2), propose(3)] == [{"batch_size": 16}, {"batch_size": 32}, None]


def test_a_member_of_a_population_changes_and_stays_in_the_space() -> None:
    space = make_space(
        {"train": {"learning_rate": {"log": [1e-4, 1e-1]}, "clip_norm": {"choice": [1.0, 2.0]}}}
    )
    draws = np.random.default_rng(0)
    rates = [
        mutated(space, {"learning_rate": 0.09, "clip_norm": 1.0}, draws)["learning_rate"] for _ in range(50)
    ]
    assert all(1e-4 <= float(rate) <= 1e-1 for rate in rates)
    assert len(set(rates)) > 3


@pytest.mark.parametrize(
    "train, concurrent, fits",
    [({}, 0, (1, 4)), ({"threads": 2}, 0, (2, 2)), ({"workers": 2}, 0, (3, 1)), ({}, 3, (1, 3))],
)
def test_as_many_trials_run_at_a_time_as_fit(
    train: dict[str, Any], concurrent: int, fits: tuple[int, int]
) -> None:
    room = room_for(TrainSettings(**train), concurrent=concurrent, cpus=4, gpus=0)
    assert (room.cpus, room.concurrent) == fits


@pytest.mark.parametrize(
    "train, concurrent, message",
    [
        ({"workers": 4}, 0, r"needs 5 CPUs \(1 and 4 workers of 1\), but there are 4 CPUs"),
        ({"threads": 8}, 0, r"needs 8 CPUs \(threads = 8\), but there are 4 CPUs"),
        ({"device": "cuda"}, 0, "needs 1 GPUs, but there are 0"),
        ({"threads": 2}, 3, "concurrent = 3 trials of 2 CPUs need 6, but 4 are there"),
    ],
)
def test_what_would_hang_is_refused_with_the_numbers(
    train: dict[str, Any], concurrent: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        room_for(TrainSettings(**train), concurrent=concurrent, cpus=4, gpus=0)


def test_importance_finds_the_setting_that_moves_the_metric() -> None:
    space = make_space(
        {"train": {"learning_rate": {"log": [1e-4, 1e-1]}, "batch_size": {"power_of_two": [16, 128]}}}
    )
    random = np.random.default_rng(0)
    trials = []
    for number in range(1, 25):
        values = space.sample(random)
        value = abs(np.log10(float(values["learning_rate"])) + 2)
        trials.append(Trial(number, values, status="finished", value=float(value)))
    shares = importance(space, trials)
    assert next(iter(shares)) == "learning_rate"
    assert shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert importance(space, trials[:3]) == {}


def test_each_end_of_a_trial_is_said_once_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = make_study(tmp_path)
    live = Live(study, metric="auc")
    study.told = live.show
    trial = handed(study)
    with caplog.at_level("INFO", logger="kit"):
        hear(study, trial, 0.5, 0.25, 0.75)
        study.end(trial.number, "finished")
        study.end(trial.number, "stopped", reason="too late to count")
    assert [record.getMessage() for record in caplog.records] == [line_of(study.trials[1], metric="auc")]
    assert caplog.records[0].getMessage().startswith("trial 1 finished: auc 0.2500 at epoch 2 of 3")
