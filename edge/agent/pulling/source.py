"""Where a device asks, and how much: the entry ``source`` of ``agent.json``.

    {"server": "https://fleet.example.org"}             a fleet server; the device has a token
    {"offer": "https://files.example.org/offer.json"}   a static web server

Beside either: ``ca_file``, ``plain_http``, ``daily_bytes``, ``hours`` and ``mqtt``. Read strictly; nothing is
opened here.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.agent.pulling.client import check_url
from kit.errors import SettingsError, nearest

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MINUTES_A_DAY = 24 * 60


@dataclass(frozen=True)
class Broker:
    """A broker whose message means "ask your source now".

    Attributes:
        host: Its name or address.
        topic: What to listen to.
        port: Its port.
        tls: Whether the connection is encrypted and the broker's certificate checked.
        ca_file: Certificates (PEM) that sign the broker's; None takes the system's.
        password_file: A file of mode 0600 with ``user:password``; None signs in without.
    """

    host: str
    topic: str
    port: int = 8883
    tls: bool = True
    ca_file: Path | None = None
    password_file: Path | None = None


@dataclass(frozen=True)
class Source:
    """Where a device asks what to run.

    Attributes:
        server: A fleet server's address; None for a static source.
        offer: Where the offer lies; derived from ``server`` when that is given.
        ca_file: Certificates (PEM) that sign the source's; None takes the system's.
        plain_http: Whether the device's token may travel without TLS to another machine.
        daily_bytes: Most bytes of bundles a day; None for no limit.
        hours: When bundles may be fetched, as ``HH:MM-HH:MM`` of local time; empty for always.
        mqtt: A broker that says when to ask; None for none.
    """

    server: str | None = None
    offer: str = ""
    ca_file: Path | None = None
    plain_http: bool = False
    daily_bytes: int | None = None
    hours: tuple[str, ...] = ()
    mqtt: Broker | None = None

    def url(self, path: str) -> str:
        """Give the address of one of the server's paths, such as ``/v1/report``."""
        return f"{(self.server or '').rstrip('/')}{path}"

    def open_at(self, minute: int) -> bool:
        """Say whether bundles may be fetched in a minute of the day, 0 to 1439."""
        return not self.hours or any(_holds(span, minute) for span in self.hours)

    def opens_in_s(self, now: datetime.datetime) -> float:
        """Say in how many seconds bundles may be fetched; 0 when they may now."""
        minute = now.hour * 60 + now.minute
        waits = (ahead for ahead in range(_MINUTES_A_DAY) if self.open_at((minute + ahead) % _MINUTES_A_DAY))
        ahead = next(waits, 0)
        return max(0.0, ahead * 60.0 - now.second) if ahead else 0.0


def read_source(value: Mapping[str, Any], *, folder: Path) -> Source:
    """Read the entry ``source`` of ``agent.json``.

    Args:
        value: The entry.
        folder: The device folder, which relative files in it are relative to.

    Raises:
        SettingsError: A key is unknown, or a value breaks a rule.
    """
    names = [field.name for field in dataclasses.fields(Source)]
    _check_names(value, names, where="source")
    server, offer = _text(value, "server"), _text(value, "offer")
    if (server is None) == (offer is None):
        raise SettingsError("source names either a server or an offer", hint='write "server": "https://..."')
    for url in (server, offer):
        if url is not None:
            check_url(url)
    if server is not None and urllib.parse.urlsplit(server).query:
        raise SettingsError(f"source.server = {server!r} has a query", hint="name the server alone")
    daily = value.get("daily_bytes")
    if daily is not None and (not isinstance(daily, int) or isinstance(daily, bool) or daily < 1):
        raise SettingsError(f"source.daily_bytes = {daily!r} is not a whole number from 1")
    hours = value.get("hours") or []
    if not isinstance(hours, Sequence) or not all(
        isinstance(each, str) and _HOURS.fullmatch(each) for each in hours
    ):
        raise SettingsError(f'source.hours = {hours!r} are not like "22:00-06:00"')
    mqtt = value.get("mqtt")
    return Source(
        server=server,
        offer=offer or f"{(server or '').rstrip('/')}/v1/offer",
        ca_file=_file(value, "ca_file", folder=folder),
        plain_http=_flag(value, "plain_http", default=False),
        daily_bytes=daily,
        hours=tuple(hours),
        mqtt=None if mqtt is None else _broker(mqtt, folder=folder),
    )


def _broker(value: Any, *, folder: Path) -> Broker:
    if not isinstance(value, Mapping):
        raise SettingsError("source.mqtt is not an object")
    _check_names(value, [field.name for field in dataclasses.fields(Broker)], where="source.mqtt")
    host, topic = _text(value, "host"), _text(value, "topic")
    if not host or not topic or any(sign in topic for sign in "#+\0"):
        raise SettingsError("source.mqtt needs a host and a topic without wildcards")
    tls = _flag(value, "tls", default=True)
    port = value.get("port", 8883 if tls else 1883)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise SettingsError(f"source.mqtt.port = {port!r} is no port")
    ca_file, password = (_file(value, key, folder=folder) for key in ("ca_file", "password_file"))
    return Broker(host, topic, port, tls, ca_file, password)


def _check_names(value: Mapping[str, Any], names: Sequence[str], *, where: str) -> None:
    for key in value:
        if key not in names:
            raise SettingsError(f"{where} has an unknown key {key[:40]!r}", hint=nearest(key, names))


def _text(value: Mapping[str, Any], key: str) -> str | None:
    found = value.get(key)
    if found is not None and (not isinstance(found, str) or not found):
        raise SettingsError(f"source's {key} = {found!r} is not a text")
    return found


def _flag(value: Mapping[str, Any], key: str, *, default: bool) -> bool:
    found = value.get(key, default)
    if not isinstance(found, bool):
        raise SettingsError(f"source's {key} = {found!r} is neither true nor false")
    return found


def _file(value: Mapping[str, Any], key: str, *, folder: Path) -> Path | None:
    found = _text(value, key)
    return None if found is None else folder / found


def _holds(span: str, minute: int) -> bool:
    match = _HOURS.fullmatch(span)
    if match is None:
        return False
    first, last = (int(match[index]) * 60 + int(match[index + 1]) for index in (1, 3))
    return first <= minute < last if first < last else minute >= first or minute < last
