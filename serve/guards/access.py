"""The keys of a project's endpoints: made, listed and revoked here, believed by every replica.

A key is ``kit_<id>_<secret>``: the id says which entry of keys.json to look at, the secret is 256 random
bits. The file holds the key's plain sha256. A slow hash (bcrypt, argon2) makes guessing dear where people
choose the secret; nobody guesses one of 2^256, so it would only cost 100 ms per request. What a request asks
for is not known here.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kit.errors import ConflictError, InputError, NotFoundError, SettingsError, nearest
from kit.files import canonical_json, create_once, disk_errors, write_atomic
from kit.inference.errors import UnauthorizedError
from kit.project import Project
from kit.settings.serving import AccessSettings
from serve.guards.callers import ALL_SCOPES, SCOPE, Caller
from serve.guards.following import check_private

_FORMAT = 1
_SECRET_BYTES = 32
_PREFIX = b"kit_"
_ID = slice(len(_PREFIX), len(_PREFIX) + 8)
_LOCK_TIMEOUT_S = 5.0
_HASH = re.compile(r"[0-9a-f]{64}")
_KEY_ID = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True)
class AccessKey:
    """What may be shown of a key.

    Attributes:
        name: Who uses it.
        id: Its public part.
        scopes: What it may do.
        created_s: When it was made, Unix time in seconds.
        expires_s: From when on it does not count; None for never.
    """

    name: str
    id: str
    scopes: tuple[str, ...]
    created_s: int
    expires_s: int | None


@dataclass(frozen=True)
class AccessResult:
    """What ``kit access`` did.

    Attributes:
        action: ``list``, ``create`` or ``revoke``.
        keys: All keys, or the one that was made or revoked.
        secret: The key itself, of one just made; it is nowhere else.
    """

    action: str
    keys: tuple[AccessKey, ...]
    secret: str | None = None

    def __repr__(self) -> str:
        return f"AccessResult(action={self.action!r}, keys={self.keys!r})"


class _Stored(NamedTuple):
    key: AccessKey
    sha256: str


def keys_path(state: Path) -> Path:
    """Say where a project keeps the hashes of its endpoints' keys."""
    return state / "serve" / "keys.json"


def access(project: Project, settings: AccessSettings) -> AccessResult:
    """Make, list or revoke a key.

    Running replicas follow within a second.

    Raises:
        ConflictError: The name is taken, or somebody else changes the keys all the time.
        InputError: The file of the keys is damaged, or others can read it.
        NotFoundError: No key has the name.
        SettingsError: The name or a scope is missing or wrong.
    """
    path = keys_path(project.state)
    if settings.action == "list":
        return AccessResult("list", tuple(each.key for each in _read(path)))
    if settings.name is None:
        raise SettingsError(
            f"kit access {settings.action} needs a name", hint=f"write: kit access {settings.action} NAME"
        )
    if settings.action == "revoke":
        return AccessResult("revoke", (_revoke(path, settings.name),))
    for scope in settings.scope:
        if SCOPE.fullmatch(scope) is None:
            raise SettingsError(
                f"there is no scope {scope!r}", hint=nearest(scope, ("infer:MODEL", *sorted(ALL_SCOPES)))
            )
    return _create(path, settings.name, scopes=settings.scope, days=settings.days)


def _create(path: Path, name: str, *, scopes: tuple[str, ...], days: float | None) -> AccessResult:
    now_s = int(time.time())
    with _changing(path) as stored:
        if any(each.key.name == name for each in stored):
            raise ConflictError(
                f"there is a key {name!r} already",
                hint=f"choose another name, or first run: kit access revoke {name}",
            )
        taken = {each.key.id for each in stored}
        key_id = next(made for made in iter(lambda: secrets.token_hex(4), "") if made not in taken)
        secret = f"kit_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        made = AccessKey(
            name=name,
            id=key_id,
            scopes=tuple(sorted(set(scopes))),
            created_s=now_s,
            expires_s=None if days is None else now_s + max(1, round(days * 86_400)),
        )
        stored.append(_Stored(made, hashlib.sha256(secret.encode()).hexdigest()))
    return AccessResult("create", (made,), secret)


def _revoke(path: Path, name: str) -> AccessKey:
    with _changing(path) as stored:
        found = next((each for each in stored if each.key.name == name), None)
        if found is None:
            raise NotFoundError(
                f"there is no key {name!r}", hint=nearest(name, [each.key.name for each in stored])
            )
        stored.remove(found)
    return found.key


@contextmanager
def _changing(path: Path) -> Iterator[list[_Stored]]:
    """Read the keys, let the block change them and write them, while nobody else does."""
    with _locked(path.with_suffix(".lock")):
        stored = _read(path)
        yield stored
        entries = [{**asdict(each.key), "sha256": each.sha256} for each in stored]
        write_atomic(path, canonical_json({"format": _FORMAT, "keys": entries}), mode=0o600)


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)  # it stays, so that all lock the same file
    try:
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline_s:
                    raise ConflictError(
                        f"somebody else has held {lock} for {_LOCK_TIMEOUT_S:.0f} s", hint="try again"
                    ) from error
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> list[_Stored]:
    try:
        check_private(path, path.stat())
        return _parse(path.read_bytes(), path=path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", hint="repair its owner or mode"
        ) from error


def _parse(data: bytes, *, path: Path) -> list[_Stored]:
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT:
            raise InputError(
                f"{path} has format {content['format']!r}, this kit reads {_FORMAT}", hint="update the kit"
            )
        stored = [_stored(entry) for entry in content["keys"]]
        if len({each.key.id for each in stored}) != len(stored):
            raise ValueError("two keys have one id")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"the keys in {path} are damaged ({type(error).__name__})",
            hint="restore the file, or remove it and make the keys again",
        ) from error
    return stored


def _stored(entry: Mapping[str, Any]) -> _Stored:
    key = AccessKey(
        name=entry["name"],
        id=entry["id"],
        scopes=tuple(entry["scopes"]),
        created_s=entry["created_s"],
        expires_s=entry["expires_s"],
    )
    fits = (
        isinstance(key.name, str)
        and _KEY_ID.fullmatch(key.id)
        and _HASH.fullmatch(entry["sha256"])
        and isinstance(entry["scopes"], list)
        and all(SCOPE.fullmatch(scope) for scope in key.scopes)
        and type(key.created_s) is int
        and (key.expires_s is None or type(key.expires_s) is int)
    )
    if not fits:
        raise ValueError("a field has a wrong type or form")
    return _Stored(key, entry["sha256"])


class Keyring:
    """The keys as a replica believes them: by id, hashed.

    Args:
        stored: Content of keys.json.
    """

    __slots__ = ("_known",)

    def __init__(self, stored: list[_Stored]) -> None:
        self._known = {
            each.key.id.encode(): (
                bytes.fromhex(each.sha256),
                float("inf") if each.key.expires_s is None else each.key.expires_s,
                Caller(each.key.id, frozenset(each.key.scopes), "key"),
            )
            for each in stored
        }

    def find(self, given: bytes, *, sha256: bytes) -> Caller | None:
        """Say whose key was given; None when it is nobody's.

        Args:
            given: What a request carries.
            sha256: Its hash.

        Raises:
            UnauthorizedError: The key has expired.
        """
        known = self._known.get(given[_ID])
        # Comparing hashes in constant time: a replica holds no key, and the time says nothing about one.
        if known is None or not hmac.compare_digest(sha256, known[0]):
            return None
        if time.time() >= known[1]:
            raise UnauthorizedError("the key has expired", hint="ask for a new one: kit access create")
        return known[2]


def parse_keyring(path: Path) -> Callable[[bytes], Keyring]:
    """Give what makes a ``Keyring`` of keys.json's bytes, naming the file when they are damaged."""
    return lambda data: Keyring(_parse(data, path=path))


def endpoint_key(path: Path) -> bytes:
    """Read the key an endpoint has by itself, or make one that this user alone can read.

    Raises:
        InputError: Others can read the file, or what it holds is too short to be a key.
    """
    # Where somebody was faster, theirs counts.
    create_once(path, secrets.token_urlsafe(_SECRET_BYTES).encode() + b"\n", mode=0o600)
    check_private(path, path.stat())
    key = path.read_bytes().strip()
    if len(key) < _SECRET_BYTES:
        raise InputError(
            f"the key {path} is shorter than {_SECRET_BYTES} characters",
            hint="remove the file to get a new key",
        )
    return key
