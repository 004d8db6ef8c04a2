"""Flags of the command line, derived from the settings classes.

A field becomes ``--its-name``; its description, unit and default become the help text. Values
stay text or become what the field's type says; whether they are allowed is decided by the class.
"""

from __future__ import annotations

import argparse
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kit.errors import SettingsError
from kit.settings import is_marked

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from kit.settings import CommandSettings


def add_flags(parser: argparse.ArgumentParser, cls: type[CommandSettings]) -> None:
    """Add one argument or flag for each field of a settings class."""
    for name, field in cls.model_fields.items():
        if is_marked(field, "in_file"):
            continue
        if is_marked(field, "positional"):
            _add_argument(parser, name, field)
        else:
            _add_flag(parser, name, field)


def given(arguments: argparse.Namespace, cls: type[CommandSettings]) -> dict[str, Any]:
    """Pick what the command line gave, as values the settings class can check.

    Raises:
        SettingsError: A value is not of the field's type.
    """
    values = {}
    for name, field in cls.model_fields.items():
        value = getattr(arguments, name, None)
        if value is None or value == []:
            continue
        many = isinstance(value, list)
        values[name] = [_typed(name, each, field) for each in value] if many else _typed(name, value, field)
    return values


_WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "dict": "table"}


def describe_type(field: FieldInfo) -> str:
    """Say in a word or two what a field holds."""
    listed = _is_list(field)
    inner = typing.get_args(_optional(field))[0] if listed else field.annotation
    one = " or ".join(_kinds(inner))
    return f"list of {one}" if listed else one


def _kinds(annotation: Any) -> list[str]:
    """Name every kind of value an annotation allows; a whole number is a number."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin is Literal:
        return [f"`{choice}`" for choice in typing.get_args(annotation)]
    if origin is tuple:
        return ["list of " + " or ".join(_kinds(typing.get_args(annotation)[0]))]
    if origin in (types.UnionType, typing.Union):
        kinds = [
            kind for each in typing.get_args(annotation) if each is not type(None) for kind in _kinds(each)
        ]
        return [kind for kind in kinds if kind != "whole number" or "number" not in kinds]
    return [_WORDS.get(getattr(annotation, "__name__", "dict"), "table")]


def _add_argument(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    nargs = "*" if _is_list(field) else None if field.is_required() else "?"
    choices = _choices(field)
    metavar = "|".join(choices) if choices else name.upper()
    parser.add_argument(name, nargs=nargs, metavar=metavar, help=_help(field))


def _add_flag(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    if _kind(field) is bool:
        parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=_help(field))
    else:
        choices = _choices(field)
        parser.add_argument(
            flag,
            dest=name,
            action="append" if _is_list(field) else "store",
            metavar="|".join(choices or _metavars(field)),
            help=_help(field),
        )


def _help(field: FieldInfo) -> str:
    return _described(field).replace("%", "%%")  # argparse fills in what follows a lone one


def _described(field: FieldInfo) -> str:
    text = (field.description or "").rstrip(".")
    if field.is_required():
        return text + " (required)" if not is_marked(field, "positional") else text
    default = field.get_default()
    if default is None or default == () or default == "":
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()
    return f"{text} (default: {shown if not isinstance(default, str) else default})"


def _metavars(field: FieldInfo) -> list[str]:
    """Name the kinds of value a flag takes, as usage lines do."""
    inner = typing.get_args(_optional(field))[0] if _is_list(field) else field.annotation
    words = {"whole number": "INT", "number": "FLOAT", "text": "TEXT", "table": "TABLE"}
    return [words.get(kind, kind.strip("`")) for kind in _kinds(inner)]


def _inner(field: FieldInfo) -> Any:
    """Strip Optional, tuple and Annotated from a field's type."""
    kind = _optional(field)
    while typing.get_origin(kind) in (tuple, Annotated):
        kind = typing.get_args(kind)[0]
    return dict if typing.get_origin(kind) is dict else kind


def _optional(field: FieldInfo) -> Any:
    """Strip ``| None`` from a field's type."""
    kind: Any = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(each for each in typing.get_args(kind) if each is not type(None))
    return kind


def _kind(field: FieldInfo) -> type:
    inner = _inner(field)
    return inner if isinstance(inner, type) else str


def _choices(field: FieldInfo) -> tuple[str, ...]:
    """Give the words a field allows; none where it allows others as well."""
    inner = typing.get_args(_optional(field))[0] if _is_list(field) else field.annotation
    kinds = _kinds(inner)
    return tuple(kind.strip("`") for kind in kinds) if all(kind.startswith("`") for kind in kinds) else ()


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(_optional(field)) is tuple


def _typed(name: str, value: Any, field: FieldInfo) -> Any:
    kind = _kind(field)
    if is_marked(field, "path") and "://" not in value:
        return str(Path(value).expanduser().absolute())
    if not isinstance(value, str) or kind is str:
        return value
    try:
        return kind(value)
    except ValueError as error:
        if any(each == "text" or each.strip("`") == value for each in _kinds(field.annotation)):
            return value
        word = {"int": "a whole number", "float": "a number"}.get(kind.__name__, kind.__name__)
        more = [each.strip("`") for each in _kinds(field.annotation) if each.startswith("`")]
        word = " or ".join([word, *more])
        flag = f"--{name.replace('_', '-')}"
        hint = f"give each its own {flag}" if "," in value and _is_list(field) else None
        raise SettingsError(f"{flag} {value}: {word} is expected", hint=hint) from error
