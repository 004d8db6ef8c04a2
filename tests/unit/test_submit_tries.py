"""What is decided without a cluster: which end of a job is a loss, what is run, what is refused."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.submit import COMMANDS, _planned
from jobs.submitting.following import Patience, why_lost
from kit.cli import SUBMITTED
from kit.errors import InputError, SettingsError
from kit.project import Project
from kit.settings import SubmitSettings

AWAY = {"address": "http://192.0.2.1:8265", "python": "/opt/kit/bin/python"}


@pytest.mark.parametrize("exit_code", [None, -9, 137, -15, 143, -11, 139, 7])
def test_a_job_without_its_commands_verdict_is_lost(exit_code: int | None) -> None:
    assert why_lost("FAILED", exit_code, message="the actor died\nand so on")


@pytest.mark.parametrize("exit_code", [1, 2, 3, 4, 5, 6, 8, 126, 127, 130, -2, 255])
def test_a_job_whose_command_has_decided_or_was_interrupted_is_not_lost(exit_code: int) -> None:
    assert why_lost("FAILED", exit_code, message=None) is None


@pytest.mark.parametrize("exit_code", [None, -9, 143, 0])
def test_a_job_that_was_stopped_or_succeeded_is_never_lost(exit_code: int | None) -> None:
    assert why_lost("STOPPED", exit_code, message=None) is None
    assert why_lost("SUCCEEDED", exit_code, message=None) is None


def test_a_loss_names_the_signal_or_the_first_line_of_rays_reason() -> None:
    assert why_lost("FAILED", -signal.SIGKILL, message=None) == "was killed by SIGKILL"
    assert why_lost("FAILED", 143, message=None) == "was killed by SIGTERM"
    assert "(the actor died)" in str(why_lost("FAILED", None, message="the actor died\nand so on"))


def test_pauses_grow_up_to_a_longest_one() -> None:
    patience = Patience(first_pause_s=5.0, longest_pause_s=300.0)
    pauses = [patience.pause_s(tries) for tries in range(1, 101)]
    assert pauses[:3] == [5.0, 10.0, 20.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300.0


@pytest.mark.parametrize("flags", [{"wait": False}, {"attach": "train-1"}])
def test_retries_are_refused_where_nobody_follows(digits_project: Path, flags: dict[str, Any]) -> None:
    project = Project.open(digits_project)
    with pytest.raises(SettingsError, match="retries = 2 does nothing with"):
        project.command("submit", SubmitSettings, {"retries": 2, **flags})
    toml = digits_project / "kit.toml"
    toml.write_text(toml.read_text() + "\n[submit]\nretries = 2\n")
    waiting = Project.open(digits_project)  # in the file they wait for the next command that follows
    assert waiting.command("submit", SubmitSettings, flags).retries == 2


def planned(project: Project, *command: str, **flags: Any) -> list[str]:
    settings = project.command("submit", SubmitSettings, {**flags, "command": list(command)})
    return shlex.split(_planned(project, settings).entrypoint)


def test_a_glob_travels_unexpanded_from_where_it_is_typed(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (digits_project / "data" / "day=1").mkdir(parents=True, exist_ok=True)
    (digits_project / "data" / "day=1" / "a.parquet").touch()
    monkeypatch.chdir(digits_project / "data")
    project = Project.open(digits_project)
    words = ("predict", "digits", "--output", "s3://b/out", "--input")
    assert f"--input={digits_project}/data/day=*/[a-z].parquet" in planned(
        project, *words, "day=*/[a-z].parquet"
    )
    assert planned(project, *words, "s3://b/in/**/*.parquet")[-1] == "s3://b/in/**/*.parquet"


def test_a_glob_on_another_machine_travels_only_with_the_project(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toml = digits_project / "kit.toml"
    toml.write_text(toml.read_text().replace("[project]", '[project]\nstate = "/mnt/shared/digits"'))
    project = Project.open(digits_project)
    words = ("predict", "digits", "--output", "s3://b/out", "--input")
    monkeypatch.chdir(digits_project)
    assert planned(project, *words, "data/*.parquet", **AWAY)[-1] == "data/*.parquet"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not travel with the project"):
        planned(project, *words, "data/*.parquet", **AWAY)


def test_the_quarantine_is_retried_without_an_input(
    digits_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits_project)
    project = Project.open(digits_project)
    command = planned(project, "predict", "digits", "--retry-quarantine", "--output", "out")
    assert not [word for word in command if word.startswith("--input")]
    assert command[-1] == f"--output={digits_project}/out"


@pytest.mark.parametrize("name", ["evaluate", "prepare"])
def test_what_runs_beside_the_registry_is_no_job(digits_project: Path, name: str) -> None:
    assert name not in COMMANDS
    with pytest.raises(InputError, match=f"{name!r} cannot run as a job"):
        planned(Project.open(digits_project), name)


def test_the_settings_of_every_command_that_travels_are_checked_before_it_does() -> None:
    assert set(SUBMITTED) == set(COMMANDS)
