"""The device's token: kept where its owner alone can read it, sent where others cannot.

Its file holds the token and nothing else. It is never logged.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
import urllib.parse
from pathlib import Path

from edge.agent.pulling.source import Source
from kit.errors import SettingsError, UnavailableError
from kit.files import disk_errors, write_atomic

TOKEN_NAME = "token"


def read_token(folder: Path) -> str | None:
    """Read the token of the device in a folder; None when it has none."""
    try:
        text = (folder / TOKEN_NAME).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text or None


def write_token(folder: Path, token: str) -> None:
    """Keep the token of the device in a folder, with mode 0600.

    Raises:
        UnavailableError: The folder cannot be written, or its file system knows no permissions.
    """
    check_private(folder)
    write_atomic(folder / TOKEN_NAME, token.encode("ascii") + b"\n", mode=0o600)


def check_private(folder: Path) -> None:
    """Refuse a folder in which no file can be kept from others.

    Raises:
        UnavailableError: It cannot be written, or its file system knows no permissions.
    """
    with disk_errors(folder):
        handle, name = tempfile.mkstemp(prefix=f".{TOKEN_NAME}.", dir=folder)
        try:
            mode = os.fstat(handle).st_mode
        finally:
            os.close(handle)
            os.unlink(name)
    if mode & 0o077:
        raise UnavailableError(
            f"others could read a token in {folder} (mode {mode & 0o777:04o})",
            hint="keep the device folder on a file system with permissions, or mount the card with umask=077",
        )


def authorization(folder: Path, source: Source) -> dict[str, str]:
    """Give the header that says who asks; empty for a static source, and without a token.

    Raises:
        SettingsError: The token would travel where others can read it.
    """
    token = read_token(folder) if source.server is not None else None
    if token is None:
        return {}
    check_secret(source.offer, plain_http=source.plain_http)
    return {"Authorization": f"Bearer {token}"}


def check_secret(url: str, *, plain_http: bool) -> None:
    """Refuse to send a secret where others can read it.

    Raises:
        SettingsError: The address is another machine's, without TLS, and nobody has allowed that.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if parts.scheme != "https" and not local and not plain_http:
        raise SettingsError(
            f"the device's token would travel to {host} without TLS, where others can read it",
            hint='use https://, or set "plain_http": true where the network itself is encrypted',
        )
