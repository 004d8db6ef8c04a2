from __future__ import annotations

import pickle

import pytest

from kit import errors
from kit.errors import (
    EXIT_CODES,
    DiskFullError,
    InputError,
    KitError,
    ProjectError,
    SettingsError,
    UnavailableError,
    nearest,
)

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KitError)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_pickling_with_its_hint(kind: type[KitError]) -> None:
    error = kind("port 80 is taken", hint="choose another one")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes; Ray carries errors this way
    assert type(copy) is kind
    assert (str(copy), copy.message, copy.hint) == (
        "port 80 is taken",
        "port 80 is taken",
        "choose another one",
    )


@pytest.mark.parametrize("kind", ALL)
def test_no_error_has_a_constructor_of_its_own(kind: type[KitError]) -> None:
    assert kind is KitError or "__init__" not in vars(kind)


def test_the_tree_is_the_one_the_module_draws() -> None:
    assert errors.__doc__ is not None
    drawn = [line.split()[1] for line in errors.__doc__.splitlines() if "-- " in line and "|-- " in line[:12]]
    for kind in ALL:
        assert kind.__name__ in errors.__doc__
    assert {"InputError", "NotFoundError"} <= set(drawn)
    assert issubclass(SettingsError, InputError)
    assert issubclass(ProjectError, InputError)
    assert issubclass(DiskFullError, UnavailableError)
    direct = {kind for kind in ALL if kind.__bases__ == (KitError,)}
    assert direct == set(ALL) - {KitError, SettingsError, ProjectError, DiskFullError}


def test_every_error_has_an_exit_code() -> None:
    for kind in ALL:
        if kind is not KitError:
            assert any(issubclass(kind, known) for known, _ in EXIT_CODES)
    codes = [code for _, code in EXIT_CODES]
    assert len(set(codes)) == len(codes)
    assert not {0, 1} & set(codes)


@pytest.mark.parametrize(
    "name,valid,hint",
    [
        ("epoch", ["epochs", "batch_size"], "did you mean 'epochs'? (valid: batch_size, epochs)"),
        ("zzz", ["epochs", "batch_size"], "choose another name (valid: batch_size, epochs)"),
        ("zzz", [], "choose another name (there are none)"),
    ],
)
def test_an_unknown_name_comes_with_the_valid_ones(name: str, valid: list[str], hint: str) -> None:
    assert nearest(name, valid) == hint
