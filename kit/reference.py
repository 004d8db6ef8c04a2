"""Model references: the texts that point at one version of a model.

``digits`` (its champion), ``digits@candidate``, ``digits@3`` and ``digits@sha256:ab12cd``. Whether what they
point at exists is the registry's to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kit.errors import InputError

CHAMPION = "champion"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NAME_RULE = "use 1 to 63 of a-z 0-9 . _ -, starting with a letter or a digit"
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")  # fits SQLite's 64-bit integers
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Reference:
    """Point at one version of a model: by alias, by number, or by the start of its digest.

    Exactly one of ``alias``, ``number`` and ``digest_prefix`` (6 to 64 hexadecimal digits) is not None.
    """

    model: str
    alias: str | None = None
    number: int | None = None
    digest_prefix: str | None = None

    def __str__(self) -> str:
        """Write the reference as ``parse_reference`` reads it."""
        if self.digest_prefix is not None:
            return f"{self.model}@sha256:{self.digest_prefix}"
        return f"{self.model}@{self.alias if self.number is None else self.number}"


def parse_reference(text: str) -> Reference:
    """Read a model reference.

    Args:
        text: ``digits`` (its champion), ``digits@candidate``, ``digits@3`` or ``digits@sha256:ab12cd`` (6 to
            64 lower-case hexadecimal digits).

    Returns:
        What the text points at; whether it exists is for ``Registry.resolve`` to say.

    Raises:
        InputError: The text is none of these.
    """
    model, at, selector = text.partition("@")
    check_model_name(model)
    if not at:
        return Reference(model, alias=CHAMPION)
    if _NUMBER.fullmatch(selector):
        return Reference(model, number=int(selector))
    if selector.startswith("sha256:"):
        prefix = selector.removeprefix("sha256:")
        if not _DIGEST_PREFIX.fullmatch(prefix):
            raise InputError(
                f"{text!r} does not hold a digest", hint="write 6 to 64 of 0-9 a-f after 'sha256:'"
            )
        return Reference(model, digest_prefix=prefix)
    check_alias_name(selector)
    return Reference(model, alias=selector)


def check_model_name(name: str) -> None:
    """Refuse a name no model may have.

    Raises:
        InputError: The name is not 1 to 63 of ``a-z 0-9 . _ -`` starting with a letter or a digit.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a model name", hint=_NAME_RULE)


def check_alias_name(name: str) -> None:
    """Refuse a name no alias may have.

    Raises:
        InputError: The name breaks the rule for model names, is all digits (a version number) or starts with
            ``sha256`` (a digest).
    """
    if not _NAME.fullmatch(name) or name.isdigit() or name.startswith("sha256"):
        raise InputError(
            f"{name!r} is not an alias", hint=f"{_NAME_RULE}, not all digits, not starting with sha256"
        )
