"""agent.json: how the agent of one device runs. Read strictly, written by ``python -m edge.agent configure``.

    {
      "trial_s": 30,                                        time without a fault before a bundle is confirmed
      "poll_s": 1,                                          between two looks into incoming/
      "model": {"threads": 1, "timeout_s": 10, "max_memory_mb": 200, ...},
      "http": {"port": 8900, "host": "127.0.0.1", "open": false},
      "inbox": {"in": "/data/in", "out": "/data/out", "failed": "/data/failed"},
      "telemetry": {"window_s": 60, "max_mb": 4, "keep_inputs": 0},
      "source": {"server": "https://fleet.example.org"}     see ``edge.agent.pulling.source``
    }

Every key may be left out, and the file, too. A wrong one is refused with the name that was probably meant,
before anything starts. It opens nothing but the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.agent.running.limits import Limits
from kit.errors import InputError, SettingsError, nearest
from kit.files import canonical_json, read_json, write_atomic

NAME = "agent.json"
"""The file, in the device folder."""

_HINT = "correct agent.json, or set it with `python -m edge.agent configure DIR KEY=VALUE`"


@dataclass(frozen=True)
class Http:
    """Where the API listens beside its Unix socket: loopback alone.

    Attributes:
        port: The port.
        host: A loopback address.
        open: Whether callers need no key: every process of the machine may ask then.
    """

    port: int
    host: str = "127.0.0.1"
    open: bool = False


@dataclass(frozen=True)
class Folders:
    """A folder that is watched, where its answers go, and where files go that cannot be answered."""

    incoming: Path
    results: Path
    failed: Path


@dataclass(frozen=True)
class Config:
    """How an agent runs.

    Attributes:
        trial_s: How long a bundle must answer without a fault, after its golden rows, to be confirmed.
        poll_s: Time between two looks into ``incoming/``.
        limits: What the process that holds the model may take.
        http: Loopback HTTP; None without.
        inbox: A watched folder; None without.
        window_s: Length of a telemetry window.
        telemetry_mb: Most that undelivered telemetry may take on the disk.
        source: The entry ``source``, read by whoever opens connections; None without one.
    """

    trial_s: float = 0.0
    poll_s: float = 1.0
    limits: Limits = field(default_factory=Limits)
    http: Http | None = None
    inbox: Folders | None = None
    window_s: float = 60.0
    telemetry_mb: float = 4.0
    source: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Rule:
    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(low: float, high: float) -> _Rule:
    return _Rule(f"a number from {low:g} to {high:g}", lambda each: _is_number(each) and low <= each <= high)


def _whole(low: int, high: int) -> _Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _Rule(f"a whole number from {low} to {high}", holds)


_TRUTH = _Rule("true or false", lambda each: isinstance(each, bool))
_TEXT = _Rule("a text", lambda each: isinstance(each, str) and bool(each))
_OBJECT = _Rule("an object", lambda each: isinstance(each, dict))

#: Section to its keys; "" is the top level.
RULES: dict[str, dict[str, _Rule]] = {
    "": {
        "trial_s": _number(0, 604_800),
        "poll_s": _number(0.01, 3600),
        "model": _OBJECT,
        "http": _OBJECT,
        "inbox": _OBJECT,
        "telemetry": _OBJECT,
        "source": _OBJECT,
    },
    "model": {
        "threads": _whole(1, 64),
        "timeout_s": _number(0.05, 3600),
        "start_timeout_s": _number(1, 3600),
        "max_memory_mb": _number(16, 1 << 20),
        "max_restarts": _whole(0, 1000),
        "restarts_within_s": _number(1, 86_400),
        "max_wrong": _number(0, 1),
        "max_body_mb": _number(0.001, 1024),
        "max_waiting": _whole(1, 1000),
    },
    "http": {"port": _whole(1, 65_535), "host": _TEXT, "open": _TRUTH},
    "inbox": {"in": _TEXT, "out": _TEXT, "failed": _TEXT},
    "telemetry": {
        "window_s": _number(1, 86_400),
        "max_mb": _number(0.1, 1024),
        "keep_inputs": _whole(0, 1000),
    },
}


def read_config(folder: Path) -> Config:
    """Read the configuration of a device folder; what it leaves out is as ``Config`` says.

    Raises:
        SettingsError: A key is unknown, or a value breaks a rule.
    """
    path = folder / NAME
    if not path.exists():
        return Config()
    try:
        value = read_json(path)
    except InputError as error:
        raise SettingsError(error.message, hint=_HINT) from error
    return parse_config(value, folder=folder)


def parse_config(value: Mapping[str, Any], *, folder: Path) -> Config:
    """Read what agent.json holds.

    Args:
        value: The object.
        folder: The device folder, which relative folders in it are relative to.

    Raises:
        SettingsError: See ``read_config``.
    """
    _check("", value)
    sections: dict[str, Mapping[str, Any]] = {}
    for name in RULES:
        if name:
            sections[name] = value.get(name, {})
            _check(name, sections[name])
    model, telemetry = dict(sections["model"]), sections["telemetry"]
    if "max_body_mb" in model:
        model["max_body_bytes"] = int(model.pop("max_body_mb") * (1 << 20))
    source = value.get("source")
    if source is not None:
        from edge.agent.pulling.source import read_source  # whoever asks nobody needs no TLS in memory

        read_source(source, folder=folder)
    return Config(
        trial_s=float(value.get("trial_s", 0.0)),
        poll_s=float(value.get("poll_s", 1.0)),
        limits=Limits(max_samples=telemetry.get("keep_inputs", 0), **model),
        http=_http(sections["http"]) if "http" in value else None,
        inbox=_inbox(sections["inbox"], folder) if "inbox" in value else None,
        window_s=float(telemetry.get("window_s", 60.0)),
        telemetry_mb=float(telemetry.get("max_mb", 4.0)),
        source=source,
    )


def configure(folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """Change agent.json: all of the changes, or none when one of them is wrong.

    Args:
        folder: The device folder.
        changes: ``key=value`` each; a dot before a section's key, the value in JSON or as plain text.
            ``key=`` takes the key away.

    Returns:
        What the file holds now.

    Raises:
        SettingsError: A change is not of this form, or the result breaks a rule.
        UnavailableError: The file cannot be written.
    """
    path = folder / NAME
    value: dict[str, Any] = read_json(path) if path.exists() else {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise SettingsError(f"{change!r} is not KEY=VALUE", hint="write for example model.timeout_s=5")
        _set(value, key.strip(), text.strip())
    parse_config(value, folder=folder)
    if changes:
        write_atomic(path, canonical_json(value), mode=0o640)
    return value


def _set(value: dict[str, Any], key: str, text: str) -> None:
    section, _, name = key.rpartition(".")
    place = value
    for part in section.split(".") if section else ():
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{key!r} is inside {part!r}, which holds a value", hint=_HINT)
        place = inner
    if text:
        try:
            place[name] = json.loads(text)
        except ValueError:
            place[name] = text
        return
    place.pop(name, None)
    if section and not place and "." not in section:
        value.pop(section, None)


def _check(section: str, value: Mapping[str, Any]) -> None:
    where = f"{section}." if section else ""
    if section == "source":
        return
    for key, entry in value.items():
        rules = RULES.get(section, {})
        if key not in rules:
            raise SettingsError(f"agent.json has no setting {f'{where}{key}'!r}", hint=nearest(key, rules))
        if not rules[key].holds(entry):
            shown = json.dumps(entry)[:40]
            raise SettingsError(f"{where}{key} = {shown} is not {rules[key].words}", hint=_HINT)


def _http(value: Mapping[str, Any]) -> Http:
    from edge.agent.running.api import require_loopback

    if "port" not in value:
        raise SettingsError("http has no port", hint="set http.port=8900")
    try:
        require_loopback(value.get("host", Http.host))
    except InputError as error:
        raise SettingsError(f"http.host: {error.message}", hint=error.hint) from error
    return Http(**value)


def _inbox(value: Mapping[str, Any], folder: Path) -> Folders:
    for key in RULES["inbox"]:
        if key not in value:
            raise SettingsError(f"inbox has no {key!r}", hint=f"set inbox.{key}=FOLDER")
    places = [folder / value[key] for key in ("in", "out", "failed")]
    if len(set(places)) < 3:
        raise SettingsError(
            "inbox needs three different folders", hint="set inbox.in, inbox.out, inbox.failed"
        )
    return Folders(*places)
