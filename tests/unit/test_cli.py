"""Rules of the command line: what it refuses, how it says so, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kit.cli import build_parser, main, overview
from kit.cli.commands import COMMANDS, Command
from kit.cli.flags import _choices, given
from kit.cli.reference import reference
from kit.errors import EXIT_CODES, KitError, SettingsError
from kit.settings import is_marked

ROOT = Path(__file__).parents[2]
HEAVY = {"jax", "numpy", "onnx", "onnxruntime", "openvino", "pandas"} | {
    "pyarrow",
    "pydantic",
    "ray",
    "rich",
    "torch",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kit", *words], capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_describes_every_setting_of_the_command(command: Command) -> None:
    text = " ".join(build_parser(command).format_help().split())
    for name, field in command.load_settings().model_fields.items():
        if is_marked(field, "in_file"):
            continue
        assert " ".join((field.description or "").rstrip(".").split()) in text, name
        typed = {f"--{name.replace('_', '-')}", name.upper(), "|".join(_choices(field)) or name.upper()}
        assert any(each in text.replace(" |", "|").replace("| ", "|") for each in typed), name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_names_things_that_exist(command: Command) -> None:
    assert callable(command.load_run())
    assert callable(command.load_show())
    assert command.summary in overview()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from kit.cli import main; main(['--help']); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & HEAVY


def test_the_reference_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == reference(), (
        "run: python -m kit.cli.reference"
    )


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_flag_is_refused_with_the_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "x", "--tmplate", "digits"]) == 2
    said = capsys.readouterr().err
    assert "--tmplate" in said
    assert "kit init --help" in said


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["train", "--epochs", "many"], "--epochs many: a whole number is expected"),
        (["train", "--epochs", "0"], "epochs = 0, but it should be greater than or equal to 1"),
        (["train", "--learning-rate", "fast"], "--learning-rate fast: a number is expected"),
        (["predict", "digits", "--input", "x.parquet"], "kit predict needs 'output'"),
        (["export", "digits", "--target", "litert-int9"], "target[1] = 'litert-int9'"),
        (["serve", "digits", "--host", "0.0.0.0", "--auth", "none"], "host '0.0.0.0' is reachable"),
        (["predict", "digits", "--engine", "litert", "--input", "a", "--output", "b"], "engine = 'litert'"),
        (["flash", "a.bundle", "usb:stick"], "device = 'usb:stick'"),
        (["submit", "--", "export"], "'export' cannot run as a job"),
    ],
)
def test_a_bad_value_is_named_before_anything_starts(
    digits_project: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], "--project", str(digits_project), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_outside_a_project_the_next_step_is_kit_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["models", "list"]) == 2
    assert "kit init NAME" in capsys.readouterr().err


def test_a_path_typed_on_the_command_line_starts_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = next(command for command in COMMANDS if command.name == "predict")
    parsed = build_parser(command).parse_args(["m", "--input", "a.parquet", "--output", "s3://b/out"])
    values = given(parsed, command.load_settings())
    assert values["input"] == str(tmp_path / "a.parquet")
    assert values["output"] == "s3://b/out"


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    direct = set(KitError.__subclasses__())
    assert {cls for cls, _ in EXIT_CODES} == direct
    codes = [code for _, code in EXIT_CODES]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 130} & set(codes)


def test_a_result_can_be_had_as_json(tmp_path: Path) -> None:
    done = run("init", str(tmp_path / "p"), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "p")


@pytest.mark.parametrize(
    "package, words",
    [
        ("pyarrow", ["train"]),
        ("pyarrow", ["init", "another"]),
        ("ray", ["train"]),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    digits_project: Path, package: str, words: list[str]
) -> None:
    blocked = (
        f"import sys; sys.modules[{package!r}] = None; from kit.cli import main; sys.exit(main({words!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked],
        cwd=digits_project,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 8
    assert package in done.stderr
    assert "pip install 'batch-edge-kit[cluster]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.cli import report_errors

    def broken() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        report_errors(broken)


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    from kit.cli import report_errors

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert report_errors(interrupted) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_settings_errors_are_input_errors_and_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    from kit.cli import report_errors

    def refused() -> int:
        raise SettingsError("epochs = 0 is too small", hint="write 1 or more")

    assert report_errors(refused) == 2
    assert capsys.readouterr().err == "kit: epochs = 0 is too small\n  -> write 1 or more\n"
