"""Keyrings: the signed paper that says which keys count from now on.

A keyring takes the place of the pinned keys of a device, and of the keyring before it. An expired key lets
nothing new in, and what it let in goes on running; under a revoked key nothing runs. A device that has
missed some keyrings takes the newest when any key that it knows has signed it: so every key at hand signs.
Which keyring is the newest is for who keeps one (``edge.agent``, ``kit.keys``). Runs on a device: standard
library and cryptography only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit import keypair
from kit.errors import InputError, VerificationError
from kit.paper import Kind, is_count, open_paper, shown, sign_paper

KEYRING_NAME = "keyring.json"
"""What the file of a keyring is called wherever it lies."""

MAX_KEYRING_BYTES = 64 << 10
"""Room for 64 keys that all sign; little enough to read on a device."""

_KEY_ID = re.compile(r"[0-9a-f]{64}")
_LAST_S = 253_402_300_799  # the end of the year 9999, the last that time.gmtime shows in four digits


def _is_time(value: object) -> bool:
    return is_count(value) and isinstance(value, int) and value <= _LAST_S


def _is_counter(value: object) -> bool:
    return is_count(value) and value != 0


_KIND = Kind(
    name="the keyring",
    payload_type="application/vnd.kit.keyring+json",
    max_bytes=MAX_KEYRING_BYTES,
    rules={
        "counter": _is_counter,
        "issued_s": _is_time,
        "keys": lambda value: isinstance(value, dict) and len(value) > 0,
        "revoked": lambda value: isinstance(value, list),
    },
)


@dataclass(frozen=True)
class KeyEntry:
    """One key that counts.

    Attributes:
        pem: The public key.
        not_after_s: The last second, Unix time, in which it lets something new in; None for ever.
    """

    pem: bytes
    not_after_s: int | None = None


@dataclass(frozen=True)
class Keyring:
    """Which keys count.

    Attributes:
        counter: Rises with every keyring of a project, from 1.
        issued_s: When it was made, Unix seconds; for people, nothing depends on it.
        keys: Key id to the key, at least one.
        revoked: Ids of keys that count no more; none of them is in ``keys``.
    """

    counter: int
    issued_s: int
    keys: Mapping[str, KeyEntry]
    revoked: tuple[str, ...] = field(default=())

    def trusted(self, now_s: float) -> tuple[bytes, ...]:
        """Give the keys, PEM, that may let something new in: neither revoked nor expired."""
        return tuple(entry.pem for entry in self.keys.values() if not _expired(entry, now_s))

    def known(self) -> tuple[bytes, ...]:
        """Give the keys, PEM, under which what was confirmed goes on running: not revoked."""
        return tuple(entry.pem for entry in self.keys.values())

    def why_not(self, key_id: str, now_s: float) -> str:
        """Say, as the second half of a sentence, why a key lets nothing new in; empty when it does."""
        if key_id in self.revoked:
            return "is revoked"
        if key_id not in self.keys:
            return f"is not in keyring {self.counter}"
        entry = self.keys[key_id]
        if entry.not_after_s is not None and _expired(entry, now_s):
            return f"has expired on {time.strftime('%Y-%m-%d %H:%M', time.gmtime(entry.not_after_s))} UTC"
        return ""


def make_keyring(keyring: Keyring, *, key: Path, also: Sequence[Path] = ()) -> bytes:
    """Sign a keyring.

    Args:
        keyring: What it says.
        key: The private key file that signs; devices must trust it already.
        also: More private keys that sign, for devices that have missed the keyrings in between.

    Returns:
        The paper; the same bytes every time for the same inputs.

    Raises:
        InputError: The keyring or a key file breaks a rule.
        NotFoundError: A key file does not exist.
    """
    fields = {
        "counter": keyring.counter,
        "issued_s": keyring.issued_s,
        "keys": {
            key_id: {"pem": entry.pem.decode("ascii", errors="replace"), "not_after_s": entry.not_after_s}
            for key_id, entry in keyring.keys.items()
        },
        "revoked": list(keyring.revoked),
    }
    _read(fields)
    return sign_paper(_KIND, fields, key=key, also=also)


def open_keyring(data: bytes, *, trusted: Sequence[bytes]) -> Keyring:
    """Verify a keyring and read it.

    Args:
        data: The paper.
        trusted: Public keys, PEM, that may say which keys count from now on.

    Raises:
        VerificationError: It is no keyring, none of these keys has signed it as it is, or it breaks a rule.
    """
    fields, _ = open_paper(_KIND, data, trusted=trusted)
    try:
        return _read(fields)
    except InputError as error:
        raise VerificationError(error.message, hint=error.hint) from error


def _read(fields: Mapping[str, Any]) -> Keyring:
    """Read what a keyring says about its keys.

    Raises:
        InputError: It breaks a rule.
    """
    keys = {key_id: _entry(key_id, value) for key_id, value in fields["keys"].items()}
    revoked = fields["revoked"]
    for number, key_id in enumerate(revoked):
        if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
            raise InputError(f"the keyring revokes {shown(key_id)}, which is no key's id")
        if key_id in revoked[:number]:
            raise InputError(f"the keyring revokes key {key_id[:12]} twice")
        if key_id in keys:
            raise InputError(f"the keyring both holds and revokes key {key_id[:12]}")
    return Keyring(fields["counter"], fields["issued_s"], keys, tuple(revoked))


def _entry(key_id: object, value: object) -> KeyEntry:
    if not isinstance(value, dict) or set(value) != {"pem", "not_after_s"}:
        raise InputError(f"the keyring's key {shown(key_id)} is no object with a pem and a not_after_s")
    pem, not_after_s = value["pem"], value["not_after_s"]
    if not_after_s is not None and not _is_time(not_after_s):
        raise InputError(f"the keyring's key {shown(key_id)} has not_after_s = {shown(not_after_s)}")
    if not isinstance(pem, str):
        raise InputError(f"the keyring's key {shown(key_id)} has no pem")
    data = pem.encode("ascii", errors="replace")
    actual = keypair.key_id(data)
    if actual != key_id:
        raise InputError(f"the keyring calls key {actual[:12]} {shown(key_id)}")
    if data != keypair.normal_pem(data):  # the same key in two spellings would count as two
        raise InputError(f"the keyring's key {actual[:12]} has more in its pem than the key")
    return KeyEntry(data, not_after_s)


def _expired(entry: KeyEntry, now_s: float) -> bool:
    return entry.not_after_s is not None and now_s > entry.not_after_s
