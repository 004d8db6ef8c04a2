"""Regular expressions as the exported graph understands them.

Training matches with Python's ``re``, the graph with RE2. The two differ in syntax and, beyond ASCII, in
what ``\\d``, ``\\w``, ``\\s``, letter case and ``$`` mean. So a pattern is read once, by Python and with
ASCII classes, and written again from its parts in a form that means one thing to both. It knows nothing
of columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import _constants as _sre  # type: ignore[attr-defined]  # the parser is the only exact reader of a pattern
from re import _parser  # type: ignore[attr-defined]  # likewise; present from Python 3.11 on
from typing import Any

from kit.errors import SettingsError

_MOST_REPEATS = 1000  # RE2 compiles no more
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_CATEGORIES: dict[Any, tuple[tuple[int, int], ...]] = {
    _sre.CATEGORY_DIGIT: ((48, 57),),
    _sre.CATEGORY_SPACE: ((9, 13), (32, 32)),
    _sre.CATEGORY_WORD: _WORD,
}
_NEGATED = {
    _sre.CATEGORY_NOT_DIGIT: _sre.CATEGORY_DIGIT,
    _sre.CATEGORY_NOT_SPACE: _sre.CATEGORY_SPACE,
    _sre.CATEGORY_NOT_WORD: _sre.CATEGORY_WORD,
}
_HINTS = {
    "ASSERT": "look-around cannot be exported; list what is allowed instead, or write two rules",
    "ASSERT_NOT": "look-around cannot be exported; list what is allowed instead, or write two rules",
    "GROUPREF": "back-references cannot be exported; write the repeated part out",
    "GROUPREF_EXISTS": "conditions on a group cannot be exported; write both cases with |",
    "GROUPREF_IGNORE": "back-references cannot be exported; write the repeated part out",
    "ATOMIC_GROUP": "atomic groups cannot be exported; write (?:...)",
    "POSSESSIVE_REPEAT": "possessive repeats cannot be exported; write the repeat without the last +",
}

Ranges = list[tuple[int, int]]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as training and cleaning read it: ASCII classes and ASCII letter case.

    Raises:
        SettingsError: It is not a regular expression under ``re.ASCII``.
    """
    try:
        return re.compile(pattern, re.ASCII)
    except (re.error, ValueError) as error:
        raise SettingsError(
            f"pattern {pattern!r} cannot be read with ASCII classes: {error}",
            hint="leave the flag u out of the pattern",
        ) from error


def portable_pattern(pattern: str) -> str:
    """Write a pattern so that RE2 matches whole strings exactly as ``re.fullmatch`` with ``re.ASCII`` does.

    Args:
        pattern: As in kit.toml.

    Returns:
        A pattern of literals, classes, groups, alternatives and repeats.

    Raises:
        SettingsError: It holds a part that RE2 does not have; the hint names the alternative.
    """
    compile_pattern(pattern)
    tree = _parser.parse(pattern, re.ASCII)
    return _Writer(pattern).sequence(tree, flags=tree.state.flags, last=True)


class _Writer:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def sequence(self, items: Sequence[Any], *, flags: int, last: bool) -> str:
        """Write parts one after the other; ``last`` says that the whole match ends where they end."""
        parts = list(items)
        return "".join(
            self.part(str(code), value, code=code, flags=flags, last=last and index == len(parts) - 1)
            for index, (code, value) in enumerate(parts)
        )

    def part(self, name: str, value: Any, *, code: Any, flags: int, last: bool) -> str:
        if name in ("LITERAL", "NOT_LITERAL"):
            return _class([(value, value)], flags=flags, negated=name == "NOT_LITERAL")
        if name == "ANY":
            return r"[\x{0}-\x{10FFFF}]" if flags & re.DOTALL else r"[^\x{A}]"
        if name == "IN":
            return self._set(value, flags=flags)
        if name == "BRANCH":
            return "(?:" + "|".join(self.sequence(each, flags=flags, last=last) for each in value[1]) + ")"
        if name == "SUBPATTERN":
            _, added, removed, inner = value
            return "(?:" + self.sequence(inner, flags=(flags | added) & ~removed, last=last) + ")"
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(value, flags=flags)
        if name == "AT":
            return self._place(code, value, flags=flags, last=last)
        raise self._refused(
            "a part that the exported graph does not have", _HINTS.get(name, "write it more simply")
        )

    def _set(self, items: Sequence[Any], *, flags: int) -> str:
        ranges: Ranges = []
        negated = False
        for code, value in items:
            if code is _sre.NEGATE:
                negated = True
            elif code is _sre.LITERAL:
                ranges.append((value, value))
            elif code is _sre.RANGE:
                ranges.append(value)
            elif value in _CATEGORIES:
                ranges.extend(_CATEGORIES[value])
            else:
                ranges.extend(_others(_CATEGORIES[_NEGATED[value]]))
        return _class(ranges, flags=flags, negated=negated)

    def _repeat(self, value: Any, *, flags: int) -> str:
        low, high, inner = value
        unbounded = high is _sre.MAXREPEAT
        if low > _MOST_REPEATS or (not unbounded and high > _MOST_REPEATS):
            raise self._refused(
                f"a repeat of more than {_MOST_REPEATS}",
                f"repeat at most {_MOST_REPEATS} times, or use + or *",
            )
        written = "(?:" + self.sequence(inner, flags=flags, last=False) + ")"
        return written + "{" + str(low) + "," + ("" if unbounded else str(high)) + "}"

    def _place(self, code: Any, value: Any, *, flags: int, last: bool) -> str:
        if value is _sre.AT_BEGINNING_STRING or (value is _sre.AT_BEGINNING and not flags & re.MULTILINE):
            return r"\A"
        # Python's $ also matches before a last line break; at the end of a whole match the two are one place.
        if value is _sre.AT_END_STRING or (value is _sre.AT_END and not flags & re.MULTILINE and last):
            return r"\z"
        if value is _sre.AT_BOUNDARY:
            return r"\b"
        raise self._refused(
            "^ or $ in the middle or with the flag m, or \\B",
            "the whole value must match anyway; leave ^, $ and \\B out",
        )

    def _refused(self, what: str, hint: str) -> SettingsError:
        return SettingsError(f"pattern {self.pattern!r} holds {what}", hint=hint)


def _class(ranges: Ranges, *, flags: int, negated: bool) -> str:
    if flags & re.IGNORECASE:
        ranges = ranges + [moved for each in ranges for moved in _other_case(each)]
    if negated:
        ranges = _others(ranges)
    if not ranges:
        return r"[^\x{0}-\x{10FFFF}]"
    return "[" + "".join(rf"\x{{{low:X}}}-\x{{{high:X}}}" for low, high in ranges) + "]"


def _other_case(each: tuple[int, int]) -> Ranges:
    moved = []
    for low, high, step in ((65, 90, 32), (97, 122, -32)):
        start, stop = max(each[0], low), min(each[1], high)
        if start <= stop:
            moved.append((start + step, stop + step))
    return moved


def _others(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Give every code point that the ranges leave out."""
    left: Ranges = []
    start = 0
    for low, high in sorted(ranges):
        if low > start:
            left.append((start, low - 1))
        start = max(start, high + 1)
    if start <= 0x10FFFF:
        left.append((start, 0x10FFFF))
    return left
