"""The documentation page: one HTML file that asks the endpoint itself what it serves.

It loads nothing from anywhere else, and its Content-Security-Policy keeps it so.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from kit.inference.card import Reply


@cache
def docs_page() -> Reply:
    """Give the page, which is the same for everybody and holds no data."""
    page = files("serve.protocol").joinpath("docs.html").read_bytes()
    script, style = (_hash_of(page, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return Reply(
        200,
        page,
        (
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache"),
        ),
    )


def _hash_of(page: bytes, tag: bytes) -> str:
    found = re.search(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    content = found.group(1) if found else b""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
