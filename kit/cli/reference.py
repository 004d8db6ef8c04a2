"""docs/reference.md, written from the settings classes: ``python -m kit.cli.reference``.

A test compares the file with what this gives, so the two cannot drift apart.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kit.cli import INTERRUPTED, overview
from kit.cli.commands import COMMANDS
from kit.errors import EXIT_CODES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from kit.settings import Settings

PATH = Path("docs/reference.md")
#: Sections that may stand in a kit.toml more than once.
_LISTS = ("data.inputs", "prepare.rules", "prepare.windows", "prepare.features")
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """Give the text of docs/reference.md."""
    parts = [
        "# Reference",
        "",
        "Written from the settings classes by `python -m kit.cli.reference`; a test keeps it current.",
        "",
        "Every setting of a command is a flag of that command and a key of its section in `kit.toml`.",
        "The default counts least, then `kit.toml`, then the flag. A key nobody knows is refused with",
        "the nearest name. A relative path in `kit.toml` starts at the project's folder; one typed on",
        "the command line starts where it is typed.",
        "",
        "```console",
        "$ kit --help",
        overview(),
        "```",
        "",
        "## Exit codes",
        "",
        "| code | means |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | a bug, with a traceback; or a job that failed without a code of its own |",
        *(
            f"| {code} | {(cls.__doc__ or '').splitlines()[0].rstrip('.').lower()} |"
            for cls, code in EXIT_CODES
        ),
        f"| {INTERRUPTED} | interrupted |",
        "",
        "## The project: kit.toml",
    ]
    for section, cls in _sections().items():
        title = f"[[{section}]]" if section in _LISTS else f"[{section}]"
        parts += ["", f"### {title}", "", *_table(cls, flags=False)]
    parts += ["", "## Commands"]
    for command in COMMANDS:
        cls = command.load_settings()
        parts += ["", f"### kit {command.name}", "", (cls.__doc__ or "").strip(), ""]
        parts += _table(cls, flags=True) if cls.model_fields else ["It has no settings."]
    return "\n".join(parts) + "\n"


def _sections() -> dict[str, type[Settings]]:
    """Give the sections of kit.toml that are no command's flags."""
    from kit import settings
    from kit.settings import serving

    return {
        "project": settings.ProjectSettings,
        "data": settings.DataSettings,
        "data.inputs": settings.InputSettings,
        "model": settings.ModelSettings,
        "gates": settings.GatesSettings,
        "prepare.rules": settings.RuleSettings,
        "prepare.duplicates": settings.DuplicatesSettings,
        "prepare.windows": settings.WindowSettings,
        "prepare.features": settings.FeatureSettings,
        "prepare.select": settings.SelectSettings,
        "tune.space": settings.SpaceSettings,
        "tune.space.train.KEY": settings.RangeSettings,
        "store": settings.StoreSettings,
        "signing": settings.SigningSettings,
        "serve.jwt": serving.JwtSettings,
        "serve.rates": serving.RateSettings,
        "serve.breaker": serving.BreakerSettings,
        "serve.prediction_log": serving.PredictionLogSettings,
        "serve.tracing": serving.TracingSettings,
        "serve.model.NAME": serving.ServedModelSettings,
        "serve.model.NAME.cache": serving.CacheSettings,
    }


def _table(cls: type[Settings], *, flags: bool) -> list[str]:
    from kit.settings import is_marked

    lines = ["| name | type | default | what it is |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        if flags and is_marked(field, "in_file"):
            continue
        if flags and is_marked(field, "positional"):
            shown = f"`{name.upper()}`"
        else:
            shown = f"`--{name.replace('_', '-')}`" if flags else f"`{name}`"
        default = "required" if field.is_required() else _default(field)
        lines.append(f"| {shown} | {_type(field)} | {default} | {field.description} |")
    return lines


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: FieldInfo) -> str:
    from kit.cli.flags import describe_type

    bounds = [
        f"{sign} {getattr(each, key)}"
        for each in field.metadata
        for key, sign in _BOUNDS.items()
        if getattr(each, key, None) is not None
    ]
    return ", ".join([describe_type(field), *bounds])


def main() -> int:
    """Write the file below the current folder."""
    PATH.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
