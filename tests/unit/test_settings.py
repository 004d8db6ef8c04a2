from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from kit import settings
from kit.errors import SettingsError
from kit.project import Project
from kit.project_file import build, read_project_file
from kit.settings import CommandSettings, CompressSettings, EvaluateSettings, Settings, TrainSettings

VALID = """
[project]
name = "digits"
[data]
path = "data.parquet"
label = "digit"
[[data.inputs]]
name = "image"
[model]
factory = "model:build"
"""
CLASSES = [
    kind
    for kind in vars(settings).values()
    if isinstance(kind, type) and issubclass(kind, Settings) and kind not in (Settings, CommandSettings)
]
FIELDS = [
    pytest.param(name, field, id=f"{kind.__name__}.{name}")
    for kind in CLASSES
    for name, field in kind.model_fields.items()
    if kind is not settings.ProjectFile
]
#: Numeric fields that may hold any finite number, and why.
UNBOUNDED = {
    "minimum": "a bound the user sets on data of any unit",
    "maximum": "a bound the user sets on data of any unit",
    "parameters": "arguments of the user's own function",
    "floors": "a metric may have any unit (rmse)",
    "max_loss": "a metric may have any unit (rmse); checked to be 0 or more as a whole",
    "gap": "in the unit of the user's own time column",
    "fill": "a value of the user's own column",
    "student": "arguments of the user's own function",
    "choice": "values of the user's own setting",
    "integer": "values of the user's own setting",
    "uniform": "values of the user's own setting",
    "log": "values of the user's own setting; checked to lie above 0 as a pair",
    "power_of_two": "values of the user's own setting; checked to be powers of two as a pair",
}


def refusal(tmp_path: Path, text: str) -> SettingsError:
    (tmp_path / "kit.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_project_file(tmp_path / "kit.toml")
    return caught.value


def section(name: str, line: str) -> str:
    """Put a line into a section of the valid file."""
    if f"[{name}]\n" in VALID:
        return VALID.replace(f"[{name}]\n", f"[{name}]\n{line}\n")
    return f"{VALID}\n[{name}]\n{line}\n"


@pytest.mark.parametrize(
    "where,line,message,nearest",
    [
        ("train", "epoch = 3", "[train] does not know the key 'epoch'", "did you mean 'epochs'?"),
        ("project", "nmae = 'x'", "[project] does not know the key 'nmae'", "did you mean 'name'?"),
        ("gates", "floor = 1", "[gates] does not know the key 'floor'", "did you mean 'floors'?"),
        ("[data.inputs]", "shpe = [1]", "the key 'inputs[1].shpe'", "did you mean 'shape'?"),
        ("serve", "prt = 80", "[serve] does not know the key 'prt'", "did you mean 'port'?"),
        ("gates.floors", "acuracy = 1.0", "[gates] does not know 'acuracy'", "did you mean 'accuracy'?"),
        ("trian", "epochs = 3", "[trian] is not a section", "did you mean 'train'?"),
    ],
)
def test_a_misspelt_key_comes_with_the_nearest(
    tmp_path: Path, where: str, line: str, message: str, nearest: str
) -> None:
    error = refusal(tmp_path, section(where, line))
    assert message in error.message
    assert error.message.startswith("kit.toml: ")
    assert nearest in str(error.hint)


@pytest.mark.parametrize(
    "where,line,message",
    [
        ("train", "epochs = '3'", "[train]: epochs = '3', but it should be a valid integer"),
        ("train", "epochs = 3.0", "[train]: epochs = 3.0, but it should be a valid integer"),
        ("train", "epochs = true", "[train]: epochs = True, but it should be a valid integer"),
        ("train", "promote = 1", "[train]: promote = 1, but it should be a valid boolean"),
        ("train", "epochs = 0", "epochs = 0, but it should be greater than or equal to 1"),
        ("train", "learning_rate = nan", "learning_rate = nan, but it should be a finite number"),
        ("data", "test_fraction = 1", "test_fraction = 1, but it should be less than 1"),
        ("data", "seed = -1", "seed = -1, but it should be greater than or equal to 0"),
        ("[data.inputs]", "minimum = nan", "inputs[1].minimum = nan, but it should be a finite number"),
        ("gates.floors", "accuracy = nan", "floors.accuracy = nan, but it should be a finite number"),
        ("serve", "port = 65536", "port = 65536, but it should be less than or equal to 65535"),
        ("serve", "ingress = 'nginx'", "ingress = 'nginx', but it should be 'auto', 'haproxy' or 'python'"),
        (
            "export",
            "target = ['tflite']",
            "target[1] = 'tflite', but it should be 'litert-int8', 'litert-int8-linear',",
        ),
        ("model", "preprocessing = 'model'", "preprocessing = 'model', but it should"),
        ("project", "task = 'ranking'", "task = 'ranking', but it should be 'classification' or"),
        ("store", "uri = 3", "[store]: uri = 3, but it should be a valid string"),
        ("query", "url = 'localhost'", "url = 'localhost', but it should match pattern"),
    ],
)
def test_a_value_that_breaks_its_rule_is_named(tmp_path: Path, where: str, line: str, message: str) -> None:
    assert message in refusal(tmp_path, section(where, line)).message


@pytest.mark.parametrize(
    "where,line,message",
    [
        ("[data.inputs]", "columns = ['a', 'b']\nshape = [3]", "shape [3] holds 3 values, but 2 columns are"),
        ("[data.inputs]", "minimum = 2.0\nmaximum = 1.0", "minimum 2 is above maximum 1"),
        ("[data.inputs]", "dtype = 'string'\nminimum = 0.0", "a string has no minimum or maximum"),
        ("[data.inputs]", "dtype = 'int64'\nnullable = true", "int64 cannot hold missing values"),
        ("[data.inputs]", "columns = ['digit']", "the label 'digit' is also an input column"),
        ("[data.inputs]", "columns = ['a', 'a']", "column 'a' is named twice"),
        ("[data.inputs]", "columns = ['a']\n[[data.inputs]]\nname = 'image'", "input 'image' is named twice"),
        ("serve", "host = '0.0.0.0'\nauth = 'none'", "host '0.0.0.0' is reachable from outside"),
        ("serve", "tls_cert = 'cert.pem'", "tls_cert and tls_key belong together"),
        ("serve", "replicas = 0", "nothing would ever answer; set max_replicas"),
        ("serve", "replicas = 3\nmax_replicas = 2", "max_replicas is 2, fewer than replicas, 3"),
        (
            "serve",
            "grpc_port = 1\nreplicas = 0\nmax_replicas = 2",
            "without a replica nothing listens for gRPC",
        ),
        ("serve", "grpc_port = 1\nmodel.a.own_deployment = true", "gRPC does not reach 'a'"),
        ("serve", "model.a.gpus = 1.0", "replicas and gpus are of a deployment of its own"),
        ("gates.floors", "rmse = 1.0", "[gates] floors.rmse does not measure a classification project"),
    ],
)
def test_an_impossible_combination_is_refused(tmp_path: Path, where: str, line: str, message: str) -> None:
    text = section(where, line)
    if where == "[data.inputs]":
        text = VALID.replace('name = "image"', f'name = "image"\n{line}')
    assert message in refusal(tmp_path, text).message


@pytest.mark.parametrize(
    "where, lines, message",
    [
        (
            "prepare.select",
            "method = 'mutual-information'\nkeep = 5\nthreshold = 0.5",
            "threshold = 0.5 does nothing with method = 'mutual-information'",
        ),
        (
            "prepare.select",
            "method = 'variance'\nstrength = 9.0",
            "strength = 9 does nothing with method = 'variance'",
        ),
        ("prepare.select", "method = 'l1'\nthreshold = 0.0", "set method = 'variance'"),
    ],
)
def test_a_setting_that_does_nothing_with_the_others_is_refused(
    tmp_path: Path, where: str, lines: str, message: str
) -> None:
    error = refusal(tmp_path, section(where, lines))
    assert message in error.message
    assert error.hint


COMMANDS: dict[str, type[CommandSettings]] = {"compress": CompressSettings, "evaluate": EvaluateSettings}


@pytest.mark.parametrize(
    "name, lines, flags, message",
    [
        (
            "compress",
            "method = 'quantize'\nratio = 0.9",
            {},
            "ratio = 0.9 does nothing with method = 'quantize'",
        ),
        ("compress", "", {"method": "distill", "ratio": 0.9}, "method = 'distill'"),
        ("compress", "", {"temperature": 5.0}, "temperature = 5.0 does nothing with method = 'prune'"),
        ("compress", "method = 'prune'\nstudent = { width = 4 }", {}, "student = {'width': 4} does nothing"),
        ("evaluate", "", {"folds": 9}, "folds = 9 does nothing with cross_validation = 'none'"),
        ("evaluate", "cross_validation = 'leave-one-out'\nfolds = 9", {}, "folds = 9 does nothing"),
    ],
)
def test_a_setting_that_another_one_makes_idle_is_refused(
    tmp_path: Path, name: str, lines: str, flags: dict[str, Any], message: str
) -> None:
    (tmp_path / "kit.toml").write_text(section(name, lines), encoding="utf-8")
    project = Project.open(tmp_path)
    with pytest.raises(SettingsError) as caught:
        project.command(name, COMMANDS[name], {"model": "digits", **flags})
    assert message in caught.value.message
    assert "out, or set" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name, lines, flags, expected",
    [
        ("compress", "", {"ratio": 0.3}, {"method": "prune", "ratio": 0.3}),
        ("compress", "temperature = 2.0", {"method": "quantize"}, {"temperature": 2.0}),
        ("compress", "student = { width = 4 }", {}, {"method": "prune"}),
        ("compress", "method = 'prune'\nratio = 0.3", {"method": "distill"}, {"method": "distill"}),
        ("evaluate", "folds = 9", {}, {"cross_validation": "none"}),
        ("evaluate", "folds = 9", {"cross_validation": "k-fold"}, {"folds": 9}),
    ],
)
def test_what_the_file_keeps_for_another_time_is_not_refused(
    tmp_path: Path, name: str, lines: str, flags: dict[str, Any], expected: dict[str, Any]
) -> None:
    (tmp_path / "kit.toml").write_text(section(name, lines), encoding="utf-8")
    made = Project.open(tmp_path).command(name, COMMANDS[name], {"model": "digits", **flags})
    assert {key: getattr(made, key) for key in expected} == expected


@pytest.mark.parametrize(
    "text,message",
    [
        ("[project", "kit.toml is not valid TOML"),
        ("train = 3" + VALID, "train must be a table, [train]"),
        (VALID.replace("[model]\nfactory", "#"), "the section [model] is missing"),
        (VALID.replace('label = "digit"', ""), "[data] needs 'label'"),
        (VALID.replace('"digits"', '"Digits"'), "name = 'Digits'"),
        (VALID.replace("[[data.inputs]]", "").replace('name = "image"', "inputs = []"), "inputs = []"),
    ],
)
def test_a_file_that_is_no_project_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text).message


def test_an_absent_or_unreadable_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"kit\.toml does not exist") as caught:
        read_project_file(tmp_path / "kit.toml")
    assert "kit init" in str(caught.value.hint)
    (tmp_path / "kit.toml").mkdir()
    with pytest.raises(SettingsError, match=r"kit\.toml cannot be read"):
        read_project_file(tmp_path / "kit.toml")
    (tmp_path / "latin.toml").write_bytes("name = 'ü'".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"latin\.toml is not valid TOML"):
        read_project_file(tmp_path / "latin.toml")


@pytest.mark.parametrize("command", sorted(settings.COMMAND_SECTIONS))
def test_every_command_s_section_is_checked_though_its_arguments_are_absent(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "kit.toml").write_text(section(command, ""), encoding="utf-8")
    assert read_project_file(tmp_path / "kit.toml").commands == {command: {}}
    assert (
        f"[{command}] does not know the key 'nothing'"
        in refusal(tmp_path, section(command, "nothing = 1")).message
    )


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "kit.toml").write_text(section("train", "epochs = 3\nseed = 4"), encoding="utf-8")
    project = Project.open(tmp_path)
    plain = project.command("train", TrainSettings)
    assert (plain.epochs, plain.seed, plain.workers) == (3, 4, 1)
    flagged = project.command("train", TrainSettings, {"epochs": 5})
    assert (flagged.epochs, flagged.seed) == (5, 4)
    with pytest.raises(SettingsError, match="kit train: epochs = 0"):
        project.command("train", TrainSettings, {"epochs": 0})
    with pytest.raises(SettingsError, match="kit train does not know the key 'epoch'"):
        project.command("train", TrainSettings, {"epoch": 1})


def test_settings_are_values_that_do_not_change() -> None:
    made = build(TrainSettings, {}, where="here")
    with pytest.raises(ValueError, match="frozen"):
        made.epochs = 3  # type: ignore[misc]  # what the test is about
    assert made == TrainSettings()


@pytest.mark.parametrize("name,field", FIELDS)
def test_every_setting_is_described_in_a_sentence(name: str, field: FieldInfo) -> None:
    assert field.description, name
    assert field.description.endswith("."), field.description


def _atoms(annotation: Any) -> typing.Iterator[tuple[Any, list[Any]]]:
    """Give every plain type inside an annotation with the rules that stand around it."""
    if typing.get_origin(annotation) is typing.Annotated:
        base, *rules = typing.get_args(annotation)
        flat = [each for rule in rules for each in (rule.metadata if isinstance(rule, FieldInfo) else [rule])]
        yield from ((atom, flat + inner) for atom, inner in _atoms(base))
    elif typing.get_origin(annotation) is typing.Literal:
        return
    elif typing.get_args(annotation):
        for part in typing.get_args(annotation):
            yield from _atoms(part)
    else:
        yield annotation, []


@pytest.mark.parametrize("name,field", FIELDS)
def test_every_number_has_a_bound_or_a_reason(name: str, field: FieldInfo) -> None:
    for atom, rules in _atoms(field.annotation):
        if atom in (int, float) and name not in UNBOUNDED:
            bounds = [
                rule for rule in (*rules, *field.metadata) if hasattr(rule, "ge") or hasattr(rule, "gt")
            ]
            assert bounds, f"{name} has no smallest value"


def test_every_class_says_what_it_is_for() -> None:
    for kind in CLASSES:
        assert kind.__doc__, kind
        assert kind.model_config["frozen"]
        assert kind.model_config["extra"] == "forbid"
