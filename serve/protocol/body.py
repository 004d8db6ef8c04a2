"""A JSON body, read exactly: one value, no NaN, no key twice.

It knows nothing of what the value means.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from kit.errors import InputError

MAX_SHOWN_CHARS = 80


def read_json(body: bytes) -> Any:
    """Read a body that holds one JSON value.

    orjson refuses NaN, Infinity, numbers beyond a double, text that is not UTF-8 and more than 1024
    levels, but lets the last of two equal keys win, which ``check_keys`` then looks for.

    Raises:
        InputError: The body is not valid JSON; the message says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not valid JSON: {error}") from error


def check_keys(body: bytes, value: Any) -> None:
    """Refuse a body with a key twice in one object.

    Every key is followed by a colon. When a body has as many colons as its value has keys and colons in
    strings, nothing was written twice; only an escaped colon takes a second parser.

    Args:
        body: What ``value`` was read from.
        value: The value.

    Raises:
        InputError: A key is there twice; the message names it.
    """
    if b"\\u003" not in body and body.count(b":") == _count_colons(value):
        return
    try:
        json.loads(body, object_pairs_hook=_refuse_twice)
    except RecursionError as error:
        raise InputError("the body is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, which orjson has read as a float
        raise InputError("the body holds a number that is too long") from error


def _count_colons(value: Any) -> int:
    """Count the colons that a value without keys written twice takes in JSON."""
    count = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind is str:
            count += item.count(":")
        elif kind is list:
            waiting += item
        elif kind is dict:
            count += len(item)
            waiting += item
            waiting += item.values()
    return count


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [key for key, _ in pairs]
        name = next(key for key in value if names.count(key) > 1)
        raise InputError(f"the key {name[:MAX_SHOWN_CHARS]!r} is there twice in one object")
    return value
