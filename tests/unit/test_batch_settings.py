"""Settings of batch prediction: what is allowed, what is refused, and with which sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.cli import main
from kit.errors import SettingsError
from kit.project import Project
from kit.settings import PredictSettings, RunsSettings

NEEDED = {"model": "m", "input": "in", "output": "out"}


@pytest.fixture
def project(digits_project: Path) -> Project:
    return Project.open(digits_project)


def predict(project: Project, **changed: Any) -> PredictSettings:
    return project.command("predict", PredictSettings, {**NEEDED, **changed})


def refusal(project: Project, **changed: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        predict(project, **changed)
    return caught.value.message


@pytest.mark.parametrize(
    "allowed", [0, 100, 10**12, "0", "100", "0%", "0.5%", "1%", "99.99%", "100%", "100.0%"]
)
def test_bad_rows_are_allowed_as_a_count_or_a_share(project: Project, allowed: int | str) -> None:
    assert predict(project, max_bad_rows=allowed).max_bad_rows == allowed


@pytest.mark.parametrize(
    "allowed",
    [-1, "-1", "101%", "100.1%", "1 %", "%", "", "1.5", ".5%", "5.%", "1e2", "half", "0x10", "1%\n", "10%%"],
)
def test_another_allowance_is_refused_with_its_value(project: Project, allowed: int | str) -> None:
    said = refusal(project, max_bad_rows=allowed)
    assert f"max_bad_rows = {allowed!r}, but it should be" in said


@pytest.mark.parametrize("allowed", [True, 0.5, None])
def test_an_allowance_of_another_type_is_refused(project: Project, allowed: Any) -> None:
    assert "max_bad_rows" in refusal(project, max_bad_rows=allowed)


@pytest.mark.parametrize("batch_rows", ["auto", 1, 1 << 20])
def test_a_batch_has_a_size_or_is_found(project: Project, batch_rows: int | str) -> None:
    assert predict(project, batch_rows=batch_rows).batch_rows == batch_rows


@pytest.mark.parametrize("batch_rows", [0, -1, (1 << 20) + 1, "some", "64", True, 1.0])
def test_another_batch_size_is_refused(project: Project, batch_rows: Any) -> None:
    assert "batch_rows" in refusal(project, batch_rows=batch_rows)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"engine": "openvino", "device": "cuda"}, "device = 'cuda' is onnxruntime's; engine is 'openvino'"),
        ({"device": "gpu"}, "device = 'gpu'"),
        ({"codec": "brotli"}, "codec = 'brotli'"),
        ({"outputs": []}, "outputs"),
        ({"row_group_rows": 0}, "row_group_rows = 0"),
        ({"shard_rows": 0}, "shard_rows = 0"),
        ({"workers": -1}, "workers = -1"),
        ({"prices": {"spot": -0.1}}, "prices"),
        ({"model": ""}, "model"),
        ({"output": ""}, "output"),
    ],
)
def test_what_cannot_be_is_refused(project: Project, changed: dict[str, Any], said: str) -> None:
    assert said in refusal(project, **changed)


def test_a_retry_of_the_quarantine_needs_no_input(project: Project) -> None:
    settings = project.command(
        "predict", PredictSettings, {"model": "m", "output": "out", "retry_quarantine": True}
    )
    assert settings.input is None


def test_settings_of_a_batch_may_stand_in_the_file(project: Project) -> None:
    file = project.folder / "kit.toml"
    text = file.read_text(encoding="utf-8")
    assert "[predict]" not in text
    lines = "\n[predict]\nmax_bad_rows = '0.5%'\nbatch_rows = 64\n[predict.prices]\nspot = 0.1\n"
    file.write_text(text + lines, encoding="utf-8")
    settings = predict(Project.open(project.folder), batch_rows="auto")
    assert (settings.max_bad_rows, settings.batch_rows) == ("0.5%", "auto")
    assert settings.prices == {"spot": 0.1}


@pytest.mark.parametrize("action", ["show", "verify", "clean"])
def test_an_action_on_a_run_needs_its_folder(project: Project, action: str) -> None:
    with pytest.raises(SettingsError, match=f"{action} needs the output folder of a run"):
        project.command("runs", RunsSettings, {"action": action})
    assert project.command("runs", RunsSettings, {"action": "list"}).output is None


def test_an_action_nobody_knows_is_refused(project: Project) -> None:
    with pytest.raises(SettingsError, match="action = 'remove'"):
        project.command("runs", RunsSettings, {"action": "remove"})


@pytest.mark.parametrize(
    "words, said",
    [
        (["--max-bad-rows", "many"], "max_bad_rows = 'many', but it should be"),
        (["--max-bad-rows", "-1"], "max_bad_rows = -1, but it should be greater than or equal to 0"),
        (["--batch-rows", "many"], "--batch-rows many: a whole number or auto is expected"),
        (["--batch-rows", "0"], "batch_rows = 0, but it should be greater than or equal to 1 or be 'auto'"),
        (["--device", "gpu"], "device = 'gpu'"),
        (["--codec", "zip"], "codec = 'zip'"),
    ],
)
def test_a_bad_flag_is_refused_before_anything_starts(
    digits_project: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--project", str(digits_project), "m", "--input", "in", "--output", "out", *words]
    assert main(["predict", *given]) == 2
    assert said in capsys.readouterr().err
