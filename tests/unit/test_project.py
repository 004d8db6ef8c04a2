from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kit.errors import NotFoundError, ProjectError, SettingsError
from kit.files import read_json
from kit.project import STATE_VARIABLE, Project

TOML = """
[project]
name = "{name}"
[data]
path = "data.parquet"
label = "y"
[[data.inputs]]
name = "x"
[model]
factory = "model:build"
"""


def make(folder: Path, *, more: str = "", **modules: str) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kit.toml").write_text(TOML.format(name=folder.name) + more, encoding="utf-8")
    for name, source in modules.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
        if path.parent != folder:
            (path.parent / "__init__.py").touch()
    return Project.open(folder)


def refusal(project: Project, reference: str) -> ProjectError:
    with pytest.raises(ProjectError) as caught:
        project.load_object(reference)
    return caught.value


# where things are


def test_a_project_is_found_from_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "toy")
    (tmp_path / "toy" / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "toy" / "deep" / "er")
    assert Project.open().folder == tmp_path / "toy"
    assert Project.open().name == "toy"


def test_a_folder_that_is_named_must_be_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "toy")
    (tmp_path / "toy" / "deep").mkdir()
    with pytest.raises(SettingsError, match=r"deep/kit\.toml does not exist"):
        Project.open(tmp_path / "toy" / "deep")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"kit\.toml does not exist"):
        Project.open()


def test_opening_a_project_creates_nothing(tmp_path: Path) -> None:
    project = make(tmp_path / "toy")
    project.registry()
    project.store()
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["kit.toml"]
    assert project.state == tmp_path / "toy" / ".kit"


def test_places_are_relative_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = '[signing]\nkey = "k/sign.pem"\ntrusted = "/etc/keys"\n'
    project = make(tmp_path / "toy", more=more)
    assert project.signing_key_path() == tmp_path / "toy" / "k" / "sign.pem"
    assert project.locate("s3://bucket/x") == "s3://bucket/x"
    assert project.locate("a b/ü.csv") == str(tmp_path / "toy" / "a b" / "ü.csv")
    assert project.locate("/data/x.csv") == "/data/x.csv"
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "elsewhere"))
    assert Project.open(tmp_path / "toy").state == tmp_path / "elsewhere"


def test_a_key_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    project = make(tmp_path / "toy")
    with pytest.raises(NotFoundError, match="there is no signing key at") as caught:
        project.signing_key()
    assert caught.value.hint == "make one: kit keys init"
    with pytest.raises(NotFoundError):
        project.trusted()


def test_a_record_is_kept_under_its_kind(tmp_path: Path) -> None:
    project = make(tmp_path / "toy")
    path = project.write_record("train", "abc", {"metrics": {"accuracy": 0.5}})
    assert path == project.state / "runs" / "train" / "abc.json"
    record = read_json(path)
    assert (record["kind"], record["id"], record["metrics"]) == ("train", "abc", {"accuracy": 0.5})


# the project's own Python


def test_an_object_is_loaded_and_the_path_is_left_as_it_was(tmp_path: Path) -> None:
    before = list(sys.path)
    project = make(tmp_path / "toy", model="from layers import WIDTH\nbuild = WIDTH", layers="WIDTH = 7")
    assert project.load_object("model:build") == 7
    assert sys.path == before


def test_a_module_that_is_not_there_comes_with_the_nearest(tmp_path: Path) -> None:
    error = refusal(make(tmp_path / "toy", model=""), "modle:build")
    assert error.message == f"there is no module 'modle' in {tmp_path / 'toy'}"
    assert "did you mean 'model'?" in str(error.hint)


def test_a_name_that_is_not_there_comes_with_those_that_are(tmp_path: Path) -> None:
    error = refusal(make(tmp_path / "toy", model="def biuld(): ..."), "model:build")
    assert error.message == "model.py has no 'build'"
    assert error.hint == "it defines biuld"


@pytest.mark.parametrize(
    "source,message",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_raises_on_import_is_named(tmp_path: Path, source: str, message: str) -> None:
    error = refusal(make(tmp_path / "toy", model=source), "model:build")
    assert f"'model:build' cannot be imported from {tmp_path / 'toy'}: {message}" in error.message
    assert "model" not in sys.modules or not hasattr(sys.modules["model"], "build")


@pytest.mark.parametrize("name", ["json", "torch"])
def test_a_module_from_elsewhere_is_refused_and_stays_loaded(tmp_path: Path, name: str) -> None:
    import json

    assert f"there is no module '{name}'" in refusal(make(tmp_path / "toy"), f"{name}:dumps").message
    assert sys.modules["json"] is json


def test_a_module_named_like_one_of_python_is_refused(tmp_path: Path) -> None:
    import json

    error = refusal(make(tmp_path / "toy", json="build = 1"), "json:build")
    assert "lies outside" in error.message
    assert sys.modules["json"] is json


def test_two_projects_with_the_same_modules_do_not_mix(tmp_path: Path) -> None:
    source = "from layers import WHO\nfrom parts.inner import INNER\nbuild = (WHO, INNER)"
    projects = [
        make(tmp_path / who, model=source, layers=f"WHO = {who!r}", parts__inner=f"INNER = {who!r}")
        for who in ("one", "two")
    ]
    for _ in range(2):
        assert projects[0].load_object("model:build") == ("one", "one")
        assert projects[1].load_object("model:build") == ("two", "two")
        assert projects[0].load_object("parts.inner:INNER") == "one"
