"""Flags derived from types: unions of numbers, words and text, and how each is described."""

from __future__ import annotations

import argparse
from typing import Any, Literal

import pytest
from pydantic import Field

from kit.cli.flags import add_flags, describe_type, given
from kit.errors import SettingsError
from kit.settings import PredictSettings
from kit.settings.fields import CommandSettings, argument


class Example(CommandSettings):
    """Settings of every shape."""

    action: Literal["list", "show"] = argument("What is done.", default="list")
    size: int | Literal["auto"] = Field(default="auto", description="Rows, or auto.")
    most: int | str = Field(default="1%", description="A count or a share.")
    limit: int | None = Field(default=None, description="At most.")
    ratio: float | Literal["none", "all"] = Field(default="none", description="A ratio.")
    number: int | float = Field(default=0, description="A number.")
    codec: Literal["zstd", "none"] = Field(default="zstd", description="A word.")
    names: tuple[str, ...] = Field(default=(), description="Names.", strict=False)
    sizes: tuple[int, ...] = Field(default=(), description="Sizes.", strict=False)
    on: bool = Field(default=False, description="Whether.")


def parsed(*words: str, cls: type[CommandSettings] = Example) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser, cls)
    return given(parser.parse_args(words), cls)


@pytest.mark.parametrize(
    "words, value",
    [
        (["--size", "auto"], {"size": "auto"}),
        (["--size", "64"], {"size": 64}),
        (["--most", "100"], {"most": 100}),
        (["--most", "0.5%"], {"most": "0.5%"}),
        (["--most", ""], {"most": ""}),
        (["--limit", "3"], {"limit": 3}),
        (["--ratio", "0.5"], {"ratio": 0.5}),
        (["--ratio", "all"], {"ratio": "all"}),
        (["--number", "3"], {"number": 3}),
        (["--codec", "none"], {"codec": "none"}),
        (["--names", "a", "--names", "b"], {"names": ["a", "b"]}),
        (["--sizes", "1", "--sizes", "2"], {"sizes": [1, 2]}),
        (["--on"], {"on": True}),
        (["--no-on"], {"on": False}),
        ([], {}),
        (["show"], {"action": "show"}),
    ],
)
def test_a_value_becomes_what_its_type_says(words: list[str], value: dict[str, Any]) -> None:
    assert parsed(*words) == value
    Example.model_validate(parsed(*words))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--size", "many"], "--size many: a whole number"),
        (["--size", "AUTO"], "--size AUTO: a whole number"),
        (["--size", "1.5"], "--size 1.5: a whole number"),
        (["--limit", "none"], "--limit none: a whole number is expected"),
        (["--ratio", "some"], "--ratio some: a number"),
        (["--sizes", "x"], "--sizes x: a whole number is expected"),
    ],
)
def test_a_value_that_is_none_of_its_types_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parsed(*words)
    assert caught.value.message.startswith(said)


@pytest.mark.parametrize(
    "name, described",
    [
        ("action", "`list` or `show`"),
        ("size", "whole number or `auto`"),
        ("most", "whole number or text"),
        ("limit", "whole number"),
        ("ratio", "number or `none` or `all`"),
        ("number", "number"),
        ("codec", "`zstd` or `none`"),
        ("names", "list of text"),
        ("on", "true or false"),
    ],
)
def test_a_type_is_described_in_words(name: str, described: str) -> None:
    assert describe_type(Example.model_fields[name]) == described


def test_the_flags_of_predict_take_unions() -> None:
    words = ["m", "--output", "s3://b/o", "--batch-rows", "auto", "--max-bad-rows", "0.5%"]
    values = parsed(*words, "--columns", "id", "--partition-by", "id", cls=PredictSettings)
    assert (values["batch_rows"], values["max_bad_rows"]) == ("auto", "0.5%")
    assert (values["columns"], values["partition_by"]) == (["id"], ["id"])
    assert "prices" not in values


def test_the_default_of_a_union_is_in_its_help() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Example)
    text = " ".join(parser.format_help().split())
    for said in ("Rows, or auto (default: auto)", "A count or a share (default: 1%)", "--codec zstd|none"):
        assert said in text
