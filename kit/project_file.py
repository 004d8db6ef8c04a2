"""Make settings out of a kit.toml or of flags, and say in one sentence what is wrong with them.

What may be set, and which values are allowed, is declared in ``kit.settings``; here is no rule of its own but
one between sections.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from kit.errors import SettingsError, nearest
from kit.metrics import METRICS
from kit.settings import (
    COMMAND_SECTIONS,
    CommandSettings,
    DataSettings,
    GatesSettings,
    ModelSettings,
    ProjectFile,
    ProjectSettings,
    Settings,
    SigningSettings,
    StoreSettings,
    is_marked,
)

S = TypeVar("S", bound=Settings)

_GENERAL_SECTIONS: dict[str, type[Settings]] = {
    "project": ProjectSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "gates": GatesSettings,
    "store": StoreSettings,
    "signing": SigningSettings,
}

#: What else a candidate may cost more of than the champion.
COSTS = ("latency", "size")

#: Stands for a required argument while a section is checked alone; every such field accepts it.
_PLACEHOLDER = "path:-"

_WORD = re.compile(r"'([^']*)'")


def read_project_file(path: Path) -> ProjectFile:
    """Read and check a kit.toml.

    Raises:
        SettingsError: It is absent, is not TOML, or breaks a rule; the message names the key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"{path} does not exist",
            hint="run the command inside a project, or make one: kit init NAME",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path.name} is not valid TOML: {error}", hint="correct that place; strings stand in quotes"
        ) from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    sections = {*_GENERAL_SECTIONS, *COMMAND_SECTIONS}
    for section in raw:
        if section not in sections:
            raise SettingsError(f"{path.name}: [{section}] is not a section", hint=nearest(section, sections))
        if not isinstance(raw[section], dict):
            raise SettingsError(
                f"{path.name}: {section} must be a table, [{section}]", hint=f"write [{section}]"
            )
    for required in ("project", "data", "model"):
        if required not in raw:
            raise SettingsError(
                f"{path.name}: the section [{required}] is missing",
                hint=f"add [{required}]; docs/reference.md describes its keys",
            )
    parts: dict[str, Any] = {
        name: build(cls, raw[name], where=f"{path.name}: [{name}]")
        for name, cls in _GENERAL_SECTIONS.items()
        if name in raw
    }
    _check_task(parts["project"].task, parts.get("gates", GatesSettings()), where=path.name)
    commands = {name: raw[name] for name in COMMAND_SECTIONS if name in raw}
    for name, values in commands.items():
        _check_partial(COMMAND_SECTIONS[name], values, where=f"{path.name}: [{name}]")
    return ProjectFile(**parts, commands=commands)


def build(cls: type[S], values: Mapping[str, Any], *, where: str) -> S:
    """Make one settings object, turning pydantic's findings into one sentence.

    Args:
        cls: The class to make.
        values: Key to value, as TOML or the command line gave them.
        where: What the message shall call the place, for example ``kit.toml: [train]``.

    Raises:
        SettingsError: A key is unknown or missing, or a value breaks its rule.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise _sentence(cls, error, where=where) from error


def _check_task(task: str, gates: GatesSettings, *, where: str) -> None:
    named: dict[str, tuple[Iterable[str], Sequence[str]]] = {
        "floors": (gates.floors, METRICS[task]),
        "max_loss": (gates.max_loss, (*METRICS[task], *COSTS)),
    }
    for key, (bounds, valid) in named.items():
        for metric in bounds:
            if metric not in valid:
                raise SettingsError(
                    f"{where}: [gates] {key}.{metric} does not measure a {task} project",
                    hint=nearest(metric, valid),
                )


def _check_partial(cls: type[CommandSettings], values: Mapping[str, Any], *, where: str) -> None:
    """Check a command's section, in which required arguments may still be absent."""
    try:
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        cls.model_validate({**dict.fromkeys(required, _PLACEHOLDER), **values})
    except ValidationError as error:
        raise _sentence(cls, error, where=where) from error


def _sentence(cls: type[Settings], error: ValidationError, *, where: str) -> SettingsError:
    findings = error.errors()
    finding = next((found for found in findings if found["type"] != "missing"), findings[0])
    place = _place(finding["loc"])
    if finding["type"] == "extra_forbidden":
        owner = _owner(cls, finding["loc"])
        return SettingsError(
            f"{where} does not know the key {place!r}",
            hint=nearest(str(finding["loc"][-1]), owner.model_fields),
        )
    if finding["type"] == "missing":
        return SettingsError(f"{where} needs {place!r}", hint=f"give {place!r} a value")
    if finding["type"] == "literal_error" and finding["loc"][-1] == "[key]":
        valid = finding["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return SettingsError(
            f"{where} does not know {finding['input']!r}", hint=nearest(str(finding["input"]), valid)
        )
    hint = _help(cls, finding["loc"])
    if finding["type"] == "value_error":
        return SettingsError(f"{where}: {finding['ctx']['error']}", hint=hint)
    # A field that takes one of several kinds of value is found wrong once for each of them.
    rules = [_rule(each) for each in findings if _place(each["loc"]) == place]
    said = " or ".join(dict.fromkeys(rules))
    if finding["type"] == "literal_error":
        hint = _meant(str(finding["input"]), finding) or hint
    return SettingsError(f"{where}: {place} = {finding['input']!r}, but it should {said}", hint=hint)


def _meant(value: str, finding: Any) -> str:
    """Say which of a field's words was probably meant; empty when none is near."""
    words = _WORD.findall(str(finding["ctx"]["expected"]))
    parts = [each.strip() for each in value.split(",")]
    if len(parts) > 1 and set(parts) <= set(words):
        return "give each its own flag, or in kit.toml write a list"
    close = difflib.get_close_matches(value, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def _rule(finding: Any) -> str:
    """Give the end of "it should"."""
    if finding["type"] in ("model_type", "dict_type"):
        return "be a table"
    return str(finding["msg"]).rpartition(" should ")[2]  # "Input should be ...", "String should match ..."


def _place(location: tuple[int | str, ...]) -> str:
    """Write where a finding is: entries of a list count from 1, pydantic's names of kinds are left out."""
    parts: list[str] = []
    for part in location:
        if isinstance(part, int):
            parts[-1] += f"[{part + 1}]"
        elif "[" not in part and part.removeprefix("constrained-") not in ("str", "int", "float", "bool"):
            parts.append(part)
    return ".".join(parts)


def _help(cls: type[Settings], location: tuple[int | str, ...]) -> str:
    """Say where the key of a finding is described."""
    commands = {each.__name__: name for name, each in COMMAND_SECTIONS.items()}
    field = cls.model_fields.get(str(location[0])) if location else None
    flag = field is None or not is_marked(field, "in_file")
    if cls.__name__ in commands and flag:
        return f"correct it; kit {commands[cls.__name__]} --help describes every setting"
    return "correct it; docs/reference.md describes every key"


def _owner(cls: type[Settings], location: tuple[int | str, ...]) -> type[Settings]:
    """Find the class whose key an error's location names: inputs[1].nme belongs to InputSettings."""
    for part in location[:-1]:
        field = cls.model_fields.get(str(part))
        inner = _settings_in(field.annotation) if field is not None else None
        cls = inner or cls
    return cls


def _settings_in(annotation: Any) -> type[Settings] | None:
    """Find the settings class inside a tuple, a dict or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    found = (_settings_in(each) for each in typing.get_args(annotation))
    return next((each for each in found if each is not None), None)
