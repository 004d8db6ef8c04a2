from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from kit.errors import ConflictError, NotFoundError, UnavailableError
from kit.keypair import generate_key
from kit.keys import keys
from kit.project import Project
from kit.settings import KeysSettings
from kit.signing import sign, verify


@pytest.fixture
def project(tmp_path: Path, project_templates: Mapping[str, Path]) -> Project:
    shutil.copytree(project_templates["digits"], tmp_path / "digits")
    return Project.open(tmp_path / "digits")


def test_init_makes_a_pair_that_signs_and_is_trusted(project: Project) -> None:
    made = keys(project, KeysSettings(action="init"))
    assert made.action == "init"
    assert made.private == project.state / "keys" / "signing.pem"
    assert made.private.stat().st_mode & 0o777 == 0o600
    assert made.public.read_bytes() in project.trusted()
    signature = sign({"a": "0" * 64}, name="toy", key=project.signing_key())
    assert verify(signature, trusted=project.trusted()).key_id == made.key_id


def test_a_public_key_laid_beside_the_signing_key_is_not_trusted(project: Project, tmp_path: Path) -> None:
    made = keys(project, KeysSettings(action="init"))
    other = generate_key(tmp_path / "other.pem")
    (made.public.parent / "other.pub").write_bytes(other)
    assert project.trusted() == (made.public.read_bytes(),)
    toml = project.folder / "kit.toml"
    text = toml.read_text(encoding="utf-8")
    for place, n_keys in (("keys", 2), ("keys/other.pub", 1)):
        toml.write_text(f'{text}\n[signing]\ntrusted = ".kit/{place}"\n', encoding="utf-8")
        trusted = Project.open(project.folder).trusted()
        assert other in trusted
        assert len(trusted) == n_keys


def test_a_file_where_the_keys_folder_should_be_is_named(project: Project) -> None:
    project.state.touch()
    with pytest.raises(UnavailableError, match=f"the folder {project.state / 'keys'} cannot be made: Not a"):
        keys(project, KeysSettings(action="init"))


def test_show_says_which_key_there_is(project: Project) -> None:
    made = keys(project, KeysSettings(action="init"))
    shown = keys(project, KeysSettings(action="show"))
    assert (shown.action, shown.keyring, shown.keys) == ("show", None, ())
    assert (shown.key_id, shown.private, shown.public) == (made.key_id, made.private, made.public)


def test_a_key_is_never_overwritten(project: Project) -> None:
    private = keys(project, KeysSettings(action="init")).private
    before = private.read_bytes()
    with pytest.raises(ConflictError, match=r"signing\.pem"):
        keys(project, KeysSettings(action="init"))
    assert private.read_bytes() == before


def test_show_without_a_key_says_how_to_make_one(project: Project) -> None:
    with pytest.raises(NotFoundError) as caught:
        keys(project, KeysSettings(action="show"))
    assert caught.value.hint == "make one: kit keys init"
