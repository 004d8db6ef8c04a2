"""JSON bodies of an endpoint, read and written by orjson: a device does both with the standard library.

It knows nothing of what a value means.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson

from kit.errors import InputError

write_json = partial(orjson.dumps, default=None, option=orjson.OPT_SERIALIZE_NUMPY)
"""Write a value or an array; NaN becomes null, and arrays orjson cannot write raise ``TypeError``."""


def read_json(body: bytes) -> Any:
    """Read a body that holds one JSON value.

    orjson refuses NaN, Infinity, numbers beyond a double, text that is not UTF-8 and more than 1024
    levels, but lets the last of two equal keys win, which ``kit.inference.body.check_keys`` then looks for.

    Raises:
        InputError: The body is not valid JSON; the message says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not valid JSON: {error}") from error
