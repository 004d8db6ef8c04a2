"""Make a device known to a fleet server, with the one-time code somebody has got there.

The server's answer is a token, kept with mode 0600; where to ask goes into ``agent.json``. The code is spent
by the first device that shows it.
"""

from __future__ import annotations

import json
import platform
import socket
import string
from pathlib import Path
from typing import Any

from edge.agent.device import Device
from edge.agent.pulling.answers import BarredError, require
from edge.agent.pulling.client import Client, HttpClient, read_body
from edge.agent.pulling.credentials import check_private, check_secret, read_token, write_token
from edge.agent.pulling.source import read_source
from kit import files
from kit.errors import ConflictError, InputError, VerificationError

CONFIG_NAME = "agent.json"

_TOKEN_SIGNS = set(string.ascii_letters + string.digits + "-._~+/=")
_MAX_TOKEN = 4096


def enrol(
    folder: Path,
    *,
    server: str,
    code: str,
    name: str | None = None,
    ca_file: Path | None = None,
    plain_http: bool = False,
    again: bool = False,
    client: Client | None = None,
) -> str:
    """Show a code to a server and keep the token it gives.

    Args:
        folder: The device folder; it has pinned keys.
        server: The server's address.
        code: The one-time code.
        name: What the device would like to be called; None takes the machine's name.
        ca_file: Certificates (PEM) that sign the server's; None takes the system's.
        plain_http: Whether the token may travel without TLS to another machine.
        again: Whether a token that is there may be replaced.
        client: Carries the request; None opens a connection.

    Returns:
        What the server calls the device.

    Raises:
        NotFoundError: The folder is no device.
        ConflictError: The device has a token, and ``again`` is not set.
        VerificationError: The code is unknown, used or out of date.
        SettingsError: The address breaks a rule, or the token would travel where others can read it.
        UnavailableError: The server does not answer, or the folder cannot be written.
    """
    device = Device.open(folder)
    if read_token(folder) is not None and not again:
        raise ConflictError(
            f"{folder} has a token already, so it is enrolled somewhere", hint="enrol it anew with --again"
        )
    config_path = folder / CONFIG_NAME
    config = files.read_json(config_path) if config_path.exists() else {}
    entry: dict[str, Any] = {"server": server}
    if ca_file is not None:
        entry["ca_file"] = str(ca_file.absolute())
    if plain_http:
        entry["plain_http"] = True
    old = config.get("source")
    if isinstance(old, dict):  # what says how much and when stays
        entry = {**{key: old[key] for key in ("daily_bytes", "hours", "mqtt") if key in old}, **entry}
    source = read_source(entry, folder=folder)
    check_secret(source.offer, plain_http=plain_http)
    check_private(folder)  # before the code is spent
    wanted = {"code": code, "name": name or _own_name(), "machine": _machine()}
    url = source.url("/v1/enrol")
    asker = client or HttpClient(ca_file=source.ca_file)
    headers = {"Content-Type": "application/json"}
    response = asker.request("POST", url, headers=headers, body=json.dumps(wanted).encode())
    try:
        answer = _read(read_body(require(response, url=url, allowed=(200, 201)), url=url))
    except BarredError as error:
        raise VerificationError(
            "the server does not know this code, or it is used or out of date",
            hint="get a new one: kit devices add NAME",
        ) from error
    write_token(device.folder, answer["token"])
    device.rename(answer["device"])
    files.write_atomic(config_path, files.canonical_json({**config, "source": entry}))
    return str(answer["device"])


def _read(body: bytes) -> dict[str, str]:
    try:
        value = json.loads(body.decode("utf-8"))
        token, device = value["token"], value["device"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("the server's answer to the enrolment has no device or no token") from error
    if not isinstance(token, str) or not 16 <= len(token) <= _MAX_TOKEN or not set(token) <= _TOKEN_SIGNS:
        raise InputError("the server's answer to the enrolment holds no token")
    if not isinstance(device, str) or not device.isprintable():
        raise InputError("the server's answer to the enrolment does not name the device")
    return {"token": token, "device": device}


def _own_name() -> str:
    name = "".join(
        each if each.isascii() and each.isalnum() else "-" for each in socket.gethostname().lower()
    )
    return name.strip("-")[:63] or "device"


def _machine() -> dict[str, Any]:
    return {"machine": platform.machine(), "python": platform.python_version(), "system": platform.platform()}
