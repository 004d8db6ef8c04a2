"""Patterns are written so that the exported graph's engine reads them as Python does, or refused."""

from __future__ import annotations

import pytest

from jobs.preparation.patterns import compile_pattern, portable_pattern
from kit.errors import SettingsError


@pytest.mark.parametrize(
    "pattern, written",
    [
        ("a", r"[\x{61}-\x{61}]"),
        (r"\d+", r"(?:[\x{30}-\x{39}]){1,}"),
        (".", r"[^\x{A}]"),
        ("(?s).", r"[\x{0}-\x{10FFFF}]"),
        ("(?i)k", r"[\x{6B}-\x{6B}\x{4B}-\x{4B}]"),
        ("[ü東]", r"[\x{FC}-\x{FC}\x{6771}-\x{6771}]"),
        ("ab|c", r"(?:[\x{61}-\x{61}][\x{62}-\x{62}]|[\x{63}-\x{63}])"),
        ("^a$", r"\A[\x{61}-\x{61}]\z"),
    ],
)
def test_every_part_is_written_out(pattern: str, written: str):
    assert portable_pattern(pattern) == written


@pytest.mark.parametrize(
    "pattern, hint",
    [
        ("(?=a)a", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"(a)\1", "back-references"),
        ("(a)?(?(1)b|c)", "conditions"),
        ("(?>a)b", "atomic"),
        ("a++", "possessive"),
        ("a{1001}", "at most 1000"),
        (r"a$\n", "leave ^, $"),
        (r"a\B", "leave ^, $"),
        ("(?m)^a", "leave ^, $"),
        ("(?u)a", "flag u"),
    ],
)
def test_what_the_graph_does_not_have_is_refused_with_the_alternative(pattern: str, hint: str):
    with pytest.raises(SettingsError, match="pattern") as caught:
        portable_pattern(pattern)
    assert hint in str(caught.value.hint)


def test_classes_are_those_of_ascii():
    assert compile_pattern(r"\d").fullmatch("٣") is None
    assert compile_pattern(r"(?i)k").fullmatch("\u212a") is None
