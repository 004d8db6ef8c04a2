from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from kit.errors import ConflictError, InputError
from kit.init import init
from kit.project_file import read_project_file
from kit.settings import InitSettings

DATA = {"digits": "data/digits.parquet", "tabular": "data/biopsies.parquet"}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("template", sorted(DATA))
def test_a_template_writes_a_project_that_can_be_read(tmp_path: Path, template: str) -> None:
    settings = InitSettings.model_validate({"name": str(tmp_path / "deep" / "my.p-1"), "template": template})
    result = init(settings)
    assert result.folder == tmp_path / "deep" / "my.p-1"
    assert result.files == (".gitignore", DATA[template], "kit.toml", "model.py")
    assert result.files == tuple(sorted(contents(result.folder)))
    file = read_project_file(result.folder / "kit.toml")
    assert file.project.name == "my.p-1"
    assert file.data.path == DATA[template]
    module, _, name = file.model.factory.partition(":")
    defined = ast.parse((result.folder / f"{module}.py").read_text(encoding="utf-8")).body
    assert name in {node.name for node in defined if isinstance(node, ast.FunctionDef)}


def test_writing_a_template_twice_gives_the_same_bytes(
    tmp_path: Path, project_templates: Mapping[str, Path]
) -> None:
    for template, folder in project_templates.items():
        init(InitSettings.model_validate({"name": str(tmp_path / template), "template": template}))
        assert contents(tmp_path / template) == contents(folder)


def test_the_digits_are_the_real_ones(project_templates: Mapping[str, Path]) -> None:
    table = parquet.read_table(project_templates["digits"] / DATA["digits"])
    assert table.num_rows == 1797
    assert set(table.column("digit").to_pylist()) == set(range(10))
    assert table.column("image").to_pylist()[0][:6] == [0, 0, 5, 13, 9, 1]


def test_the_biopsies_are_real_with_gaps_and_groups(project_templates: Mapping[str, Path]) -> None:
    table = parquet.read_table(project_templates["tabular"] / DATA["tabular"])
    assert table.num_rows == 569
    labels = table.column("diagnosis").to_pylist()
    assert (labels.count("malignant"), labels.count("benign")) == (212, 357)
    radius = table.column("mean_radius")
    assert radius.to_pylist()[1:3] == pytest.approx([20.57, 19.69])
    assert 0 < radius.null_count < 60
    groups = table.column("size_group")
    assert set(groups.to_pylist()) == {None, "small", "medium", "large", "very large"}
    named = read_project_file(project_templates["tabular"] / "kit.toml").data.inputs[0].spec().columns
    assert set(named) == set(table.column_names) - {"id", "size_group", "diagnosis"}
    assert all(pa.types.is_float32(table.schema.field(name).type) for name in named)


@pytest.mark.parametrize("taken", ["folder", "file"])
def test_what_exists_is_left_alone(tmp_path: Path, taken: str) -> None:
    place = tmp_path / "digits"
    if taken == "folder":
        place.mkdir()
    else:
        place.write_text("mine")
    with pytest.raises(ConflictError, match="digits exists"):
        init(InitSettings(name=str(place)))
    assert os.listdir(tmp_path) == ["digits"]
    assert place.is_dir() or place.read_text() == "mine"


@pytest.mark.parametrize("name", ["Digits", "di gits", "-d", "ü", "d" * 64, "digits\n", "{name}"])
def test_a_folder_that_cannot_name_a_project_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a project") as caught:
        init(InitSettings(name=str(tmp_path / name)))
    assert caught.value.hint
    assert os.listdir(tmp_path) == []
