"""A JSON body, read and written with the standard library, and what any reader of one must look for.

Read exactly: one value, UTF-8, no NaN, no key twice. It knows nothing of what the value means, and imports no
numpy, which not every process that reads a body has.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from kit.errors import InputError

MAX_SHOWN_CHARS = 80


def read_json(body: bytes) -> Any:
    """Read a body that holds one JSON value; of equal keys the last wins, which ``check_keys`` looks for.

    Raises:
        InputError: The body is not valid JSON; the message says where.
    """
    try:
        value = _DECODER.decode(body.decode())
        if b"\\ud" in body or b"\\uD" in body:  # half of a surrogate pair is no character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not valid JSON: {error}") from error
    return value


def write_json(value: Any) -> bytes:
    """Write a value, or an array flat in row-major order, in as few bytes as JSON takes.

    Args:
        value: What JSON holds, finite; or an array of numbers, whose values that are not finite become null
            and of whose float32 no more digits are written than tell them apart.
    """
    if not hasattr(value, "dtype"):
        return _ENCODER.encode(value).encode()
    flat = value.reshape(-1)
    if flat.dtype.kind != "f":
        return _ENCODER.encode(flat.tolist()).encode()
    words = [_NOT_FINITE.get(word, word) for word in map(str, flat)]
    return f"[{','.join(words)}]".encode()


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
    except ValueError as error:  # a number of thousands of digits, which a fast parser has read as a float
        raise InputError("the body holds a number that is too long") from error


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_NOT_FINITE = {"nan": "null", "inf": "null", "-inf": "null"}
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


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
