"""A study's books: what is handed out, what a killed driver leaves, which trial is the best."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.fitting.loop import Epoch, Progress
from jobs.tuning.importance import importance
from jobs.tuning.ledger import Ledger
from jobs.tuning.live import Live, line_of
from jobs.tuning.resources import growing, room_for
from jobs.tuning.running import end_running
from jobs.tuning.search import mutated, proposer, scheduler
from jobs.tuning.space import Space
from jobs.tuning.study import MAX_DEATHS, Clock, Study, Trial
from jobs.tuning.telling import Teller
from jobs.tuning.trial import has_best, read_best
from kit.errors import InputError, UnavailableError
from kit.project import Project
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


def write_curve(folder: Path, *values: float) -> None:
    """Write what a trial's process has told of its epochs, as it lies in its checkpoint."""
    teller = make_teller(folder, [])
    for epoch, value in enumerate(values, start=1):
        teller.hear(epoch_of(epoch, value))


def epoch_of(epoch: int, value: float) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": value, "validation_loss": value}


def make_teller(folder: Path, told: list[dict[str, Any]], *, network: Any = None) -> Teller:
    folder.mkdir(parents=True, exist_ok=True)
    return Teller(
        folder,
        number=1,
        mode="min",
        measure=lambda network, figures: float(figures["validation_loss"]),
        network=lambda: network,
        keep=lambda: None,
        report=told.append,
    )


def test_what_a_killed_driver_had_heard_counts_when_the_time_is_up_before_the_next_epoch(
    tmp_path: Path,
) -> None:
    handed(make_study(tmp_path))
    write_curve(tmp_path / "s" / "checkpoints" / "0001", 0.3, 0.1, 0.2)
    resumed = again(tmp_path)
    handed(resumed)
    resumed.heard(
        1, {**epoch_of(1, 0.3), "value": 0.3, "best_epoch": 1}, parameters=resumed.trials[1].parameters
    )
    end_running(resumed, of_workers=False)
    trial = resumed.trials[1]
    assert (trial.status, trial.reason) == ("stopped", "the time budget was spent")
    assert (trial.value, trial.best_epoch, len(trial.epochs)) == (0.1, 2, 3)
    assert (tmp_path / "s" / "checkpoints" / "0001").is_dir()


def keep_of_workers(folder: Path, name: str, *losses: float, used: dict[str, Any]) -> Path:
    """Write a checkpoint as workers do, after epochs of some validation losses."""
    import torch

    kept = folder / "workers" / f"checkpoint_{name}"
    kept.mkdir(parents=True)
    best = int(np.argmin(losses)) + 1
    for name in ("best.pt", "weights.pt"):
        torch.save({"weight": torch.tensor([[float(best)]])}, kept / name)
    progress = Progress([Epoch(number, each, each) for number, each in enumerate(losses, 1)], best_epoch=best)
    (kept / "progress.json").write_text(json.dumps({**asdict(progress), **used}))
    return kept


def test_a_trial_of_workers_that_the_time_budget_ends_is_what_they_have_kept(tmp_path: Path) -> None:
    import torch

    study = make_study(tmp_path)
    first, second = handed(study), handed(study)
    homes = [tmp_path / "s" / "checkpoints" / f"{each.number:04d}" for each in (first, second)]
    for home, trial in zip(homes, (first, second), strict=True):
        write_curve(home, 0.5, 0.4, 0.2)
        hear(study, trial, 0.5, 0.4, 0.2)
    keep_of_workers(homes[0], "2026-01-01_10-00-00.000001", 0.5, used={})
    keep_of_workers(homes[0], "2026-01-01_10-00-01.000001", 0.5, 0.4, used={})
    half = keep_of_workers(homes[0], "2026-01-01_10-00-02.000001", 0.5, 0.4, 0.2, used={})
    (half / "best.pt").write_bytes((half / "best.pt").read_bytes()[:100])
    end_running(study, of_workers=True)
    trial = study.trials[1]
    assert (trial.status, trial.value, trial.best_epoch, len(trial.epochs)) == ("stopped", 0.4, 2, 2)
    assert float(torch.load(homes[0] / "best.pt", weights_only=True)["weight"]) == 2.0
    assert json.loads((homes[0] / "curve.json").read_text())[-1]["best_epoch"] == 2
    assert study.trials[2].reason == "the time budget was spent before its first checkpoint"
    assert [each.number for each in study.ranked] == [1]


def test_an_epoch_that_is_done_again_leaves_the_best_weights_and_what_was_told_of_them(
    tmp_path: Path,
) -> None:
    import torch

    network, told = torch.nn.Linear(1, 1, bias=False), []

    def train(teller: Teller, epoch: int, value: float) -> None:
        network.weight.data.fill_(float(epoch))
        teller.hear(epoch_of(epoch, value))

    before = make_teller(tmp_path / "1", told, network=network)
    for epoch, value in enumerate((0.3, 0.2, 0.4, 0.1), start=1):
        train(before, epoch, value)
    assert not any("retold" in each for each in told)
    told.clear()
    after = make_teller(tmp_path / "1", told, network=network)  # its training goes on from epoch 2
    after.begin()
    train(after, 3, 0.4)
    assert [(each["epoch"], each.get("retold")) for each in told] == [(epoch, True) for epoch in (1, 2, 3, 4)]
    assert json.loads((tmp_path / "1" / "curve.json").read_text())[-1]["value"] == 0.1
    assert float(torch.load(tmp_path / "1" / "best.pt", weights_only=True)["weight"]) == 4.0
    train(after, 4, 0.1)
    train(after, 5, 0.05)
    assert (told[-1]["epoch"], told[-1]["value"], told[-1].get("retold")) == (5, 0.05, None)
    assert len(told) == 5


def test_the_best_weights_say_what_they_were_trained_with_in_the_end(tmp_path: Path) -> None:
    toml = """
[project]
name = "one"
[data]
path = "rows.csv"
label = "y"
inputs = [{ name = "x", columns = ["a"] }]
[model]
factory = "model:build"
"""
    (tmp_path / "kit.toml").write_text(toml)
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(1, 1, bias=False)\n"
    )
    home = tmp_path / "trial"
    write_curve(home, 0.5)
    halved = {"batch_size": 8, "accumulation_steps": 4, "workers": 1, "device": "cpu"}
    kept = keep_of_workers(home, "2026-01-01_10-00-00.000001", 0.5, used=halved)
    (home / "best.pt").write_bytes((kept / "best.pt").read_bytes())
    read = read_best(Project.open(tmp_path), home, n_features=1, n_classes=0, parameters={})
    assert read.used == halved
    (home / "loop").mkdir()
    (home / "workers" / kept.name).rename(home / "loop" / "3")
    assert has_best(home)
    assert read_best(Project.open(tmp_path), home, n_features=1, n_classes=0, parameters={}).used == halved


class Running:
    """Stands for a trial of Ray Tune's in a scheduler's books."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"running-{number}", {"number": number}


class Alone:
    """Stands for Ray Tune's controller where no other trial runs."""

    def get_live_trials(self) -> list[Any]:
        return []


def curve_of(*values: float) -> tuple[dict[str, Any], ...]:
    return tuple({**epoch_of(epoch, each), "value": each} for epoch, each in enumerate(values, start=1))


def judge(rule: str, trials: list[tuple[float, ...]], **more: Any) -> Any:
    """Make a scheduler that knows trials of some curves."""
    ended = {
        number: Trial(number, {}, status="finished", value=min(values), epochs=curve_of(*values))
        for number, values in enumerate(trials, start=1)
    }
    settings = TuneSettings.model_validate({"scheduler": rule})
    return scheduler(settings, mode="min", max_epochs=30, space=make_space(), trials=ended, **more)


@pytest.mark.parametrize("rule", ["asha", "median"])
def test_an_epoch_a_trial_had_passed_is_not_judged_again_and_the_next_one_is(rule: str) -> None:
    made = judge(rule, [(0.4,) * 12] * 3)
    late, slow = Running(8), Running(9)
    epochs = curve_of(*(1.0 - 0.05 * epoch for epoch in range(10)))
    made.on_trial_add(None, late)
    assert [made.on_trial_result(Alone(), late, each) for each in epochs[:3]][-1] == "STOP"
    made.on_trial_add(None, slow)
    decisions = [made.on_trial_result(Alone(), slow, {**each, "retold": True}) for each in epochs[:8]]
    assert decisions == ["CONTINUE"] * 8
    assert made.on_trial_result(Alone(), slow, epochs[8]) == "STOP"


def test_a_trial_that_is_asked_to_end_is_asked_once_and_may_tell_of_its_end() -> None:
    asked: list[int] = []
    made, bad = judge("median", [(0.5,) * 6] * 3, ask=asked.append), Running(9)
    made.on_trial_add(None, bad)
    for figures in (*curve_of(*[0.9] * 5), {**curve_of(0.9)[0], "ended": True, "stopped": True}):
        assert made.on_trial_result(Alone(), bad, figures) == "CONTINUE"
    assert asked == [9]


def test_a_trial_that_finished_before_the_better_ones_is_told_to_the_median_rule_whole() -> None:
    made, next_one = judge("median", [*([(0.5,) * 6] * 3), (0.9,) * 6]), Running(9)
    made.on_trial_add(None, next_one)
    assert made.on_trial_result(Alone(), next_one, curve_of(*[0.1] * 3)[2]) == "CONTINUE"


def test_the_time_of_a_study_is_noted_while_it_runs_and_goes_on_from_there(tmp_path: Path) -> None:
    now = [100.0]
    ledger = Ledger(str(tmp_path), study="s")
    clock = Clock(ledger, {"status": "running", "seconds": 5.0}, now=lambda: now[0])
    for now[0] in (101.0, 112.0, 113.0):
        clock.tick()
    facts, _ = ledger.read()
    assert facts == {"status": "running", "seconds": 17.0}
    following = Clock(ledger, facts, now=lambda: now[0])
    assert (following.seconds, following.left_s(20.0), following.left_s(16.0)) == (17.0, 3.0, 0.0)
    assert following.left_s(None) is None


CLEAR = """
import os, sys
from jobs.tuning.ledger import Ledger
ledger = Ledger(sys.argv[1], study="s")
sys.addaudithook(lambda event, details: os._exit(9) if event == "shutil.rmtree" else None)
ledger.clear()
"""


def test_a_study_whose_removal_was_killed_is_no_study_and_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.ledger.write_study({"status": "running"})
    handed(study)
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", CLEAR, str(tmp_path)], cwd=root).returncode == 9
    assert (tmp_path / "s" / "trials" / "0001.json").exists()
    assert study.ledger.read() == (None, {})
    study.ledger.clear()
    assert not (tmp_path / "s").exists()


def test_a_ledger_that_cannot_be_removed_is_no_place_for_the_next_study(tmp_path: Path) -> None:
    make_study(tmp_path / "elsewhere").ledger.write_trial({"number": 1})
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere" / "s")  # a link is not followed
    with pytest.raises(UnavailableError, match="s cannot be removed"):
        Ledger(str(tmp_path), study="s").clear()


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


def test_a_cluster_may_grow_and_so_may_the_one_that_runs_a_submitted_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    assert growing(TuneSettings()) is None
    assert growing(TuneSettings(address="10.0.0.5:6379")) == "10.0.0.5:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert growing(TuneSettings()) == "auto"
    assert room_for(TrainSettings(workers=4), concurrent=2, cpus=0, gpus=0, may_grow=True).concurrent == 2


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
