"""The public keys of an identity provider: a JSON Web Key Set, from a file or an https address.

A file is followed like the endpoint's own keys. An address is read at the start, every five minutes, and when
a token names a key that is not known: at most every 30 s, in a thread. While it does not answer, the keys
that were read last stay in force, however long that takes: the endpoint outlives the provider.
What a token says is not known here, and no token can name an address to read.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit

from kit.errors import InputError, KitError, UnavailableError
from serve.guards.following import Followed, Watch

_logger = logging.getLogger("ray.serve")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAX_BYTES = 1 << 20
_MAX_KEYS = 100
_RSA_BITS = range(2048, 8192 + 1)
#: Members of a JSON Web Key that are private (RFC 7518, sections 6.2.2, 6.3.2 and 6.4).
_PRIVATE = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))
#: What each kind of key can verify; no kind verifies HS256 and its like, so a public key is never a secret.
_FITTING: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
POLL_S = 300.0
PAUSE_S = 30.0  # at least, between two readings for the sake of a missing key or after a failure
_TIMEOUT_S = 5.0  # of each wait for bytes
_DEADLINE_S = 10.0  # of all of them


class KeySet:
    """Public keys by the id and the algorithm a token names.

    Args:
        keys: (id or None, algorithm) to a public key of ``cryptography``.
    """

    __slots__ = ("_ids", "_keys")

    def __init__(self, keys: Mapping[tuple[str | None, str], Any]) -> None:
        self._keys = dict(keys)
        self._ids = {key_id for key_id, _ in keys}

    def __len__(self) -> int:
        return len(self._ids)

    def knows(self, key_id: str | None) -> bool:
        """Say whether any key has the id; a token that names none is for the only key."""
        return key_id in self._ids or (key_id is None and len(self._ids) == 1)

    def find(self, key_id: str | None, *, algorithm: str) -> Any | None:
        """Give the public key; None where there is none for the algorithm."""
        if key_id is None and len(self._ids) == 1:
            (key_id,) = self._ids
        return self._keys.get((key_id, algorithm))


def parse_keys(data: bytes, *, place: str, algorithms: Sequence[str]) -> KeySet:
    """Read a JSON Web Key Set; keys that can verify nothing here are left out and logged.

    Args:
        data: Its bytes.
        place: Where it comes from, for messages.
        algorithms: What is accepted.

    Raises:
        InputError: It is no key set, or none of its keys can be used.
    """
    try:
        listed = json.loads(data)["keys"]
        if not isinstance(listed, list):
            raise TypeError("keys")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{place} holds no JSON Web Key Set",
            hint="name the provider's jwks_uri, or a copy of what it gives",
        ) from error
    keys: dict[tuple[str | None, str], Any] = {}
    for index, entry in enumerate(listed[:_MAX_KEYS]):
        try:
            key_id, key, fitting = _public_key(entry)
        except (ValueError, TypeError, KeyError) as error:
            _logger.warning("key %d of %s is not used: %s", index, place, _reason(error))
            continue
        for algorithm in fitting:
            if algorithm in algorithms:
                keys.setdefault((key_id, algorithm), key)
    if not keys:
        raise InputError(
            f"{place} holds no key for {', '.join(algorithms)}",
            hint="name another key set, or set algorithms",
        )
    return KeySet(keys)


class _UnfitError(ValueError):
    """A key that is well-formed but not for us; its text holds no part of the key."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _UnfitError) else "it is malformed"


def _public_key(entry: Any) -> tuple[str | None, Any, tuple[str, ...]]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from jwt import PyJWTError
    from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

    if not isinstance(entry, dict):
        raise _UnfitError("it is no object")
    kind = entry["kty"]
    fitting = _FITTING.get((kind, None if kind == "RSA" else entry.get("crv")))
    if fitting is None:
        raise _UnfitError("its kind is not accepted")
    if _PRIVATE & entry.keys():
        raise _UnfitError("it is a private key, which must be replaced, since it stands where others read")
    if entry.get("use", "sig") != "sig" or "verify" not in entry.get("key_ops", ["verify"]):
        raise _UnfitError("it is not for signatures")
    key_id, only = entry.get("kid"), entry.get("alg")
    if key_id is not None and not isinstance(key_id, str):
        raise _UnfitError("its id is no text")
    readers: dict[str, Any] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
    try:
        key: Any = readers[kind].from_jwk(entry)
    except (PyJWTError, UnsupportedAlgorithm) as error:
        raise ValueError from error
    if isinstance(key, RSAPublicKey) and key.key_size not in _RSA_BITS:
        raise _UnfitError(f"it has {key.key_size} bits; {_RSA_BITS[0]} to {_RSA_BITS[-1]} are accepted")
    return key_id, key, fitting if only is None else tuple(each for each in fitting if each == only)


class FileKeys:
    """A key set in a file, followed while serving.

    Args:
        path: The file.
        algorithms: What is accepted.
        on_change: Called after the keys have changed.

    Raises:
        InputError: The file is missing, or no key set.
    """

    def __init__(self, path: Path, *, algorithms: Sequence[str], on_change: Callable[[], None]) -> None:
        self._file: Followed[KeySet] = Followed(
            path,
            parse=lambda data: parse_keys(data, place=str(path), algorithms=algorithms),
            absent=None,
            on_change=on_change,
        )
        self._watch = Watch("kit-jwks-file", look=self._file.look)

    @property
    def keys(self) -> KeySet:
        """The keys in force."""
        return self._file.value

    def ask(self) -> Future[None] | None:
        """Give None: what the file does not hold a moment later, it does not hold."""
        return None

    def close(self) -> None:
        """Stop following."""
        self._watch.close()


class UrlKeys:
    """A key set behind an address, read again now and then and when a key is missing.

    Args:
        url: ``https://``, or ``http://`` on this machine.
        algorithms: What is accepted.
        on_change: Called after the keys have changed.

    Raises:
        InputError: The address is not one that can be trusted.
    """

    def __init__(self, url: str, *, algorithms: Sequence[str], on_change: Callable[[], None]) -> None:
        self._url = check_url(url)
        self._algorithms = tuple(algorithms)
        self._on_change = on_change
        self._lock = threading.Lock()
        self._wanted: Future[None] | None = None
        self._failing = False
        self._content: bytes = b""
        self.keys = KeySet({})
        self._read_at_s = time.monotonic()
        self._read()  # one attempt before the first request; a provider that is down does not stop a replica
        self._watch = Watch("kit-jwks", look=self._look, every_s=min(1.0, PAUSE_S / 4))

    def ask(self) -> Future[None] | None:
        """Ask for a reading, because a token names an unknown key.

        Returns:
            What is done when the keys have been read; None when they were read so lately that this
            must wait. It is read as soon as that is over, all the same.
        """
        with self._lock:
            if self._wanted is None:
                self._wanted = Future()
            wanted = self._wanted
            if self._pause_left_s() > 0:
                return None
        self._watch.wake()
        return wanted

    def close(self) -> None:
        """Stop reading."""
        self._watch.close()

    def _pause_left_s(self) -> float:
        return self._read_at_s + PAUSE_S - time.monotonic()

    def _look(self) -> None:
        due_s = PAUSE_S if self._failing else POLL_S
        with self._lock:
            waiting = self._wanted is not None and self._pause_left_s() <= 0
            if not waiting and time.monotonic() < self._read_at_s + due_s:
                return
        try:
            self._read()
        finally:
            with self._lock:
                self._read_at_s = time.monotonic()
                wanted, self._wanted = self._wanted, None
            if wanted is not None and not wanted.cancelled():
                wanted.set_result(None)

    def _read(self) -> None:
        place = shown(self._url)
        try:
            content = fetch(self._url)
            if content != self._content:
                self.keys = parse_keys(content, place=place, algorithms=self._algorithms)
                self._content = content
                self._on_change()
        except KitError as error:
            if not self._failing:
                _logger.error("%s; the %d keys read before stay in force", error.message, len(self.keys))
            self._failing = True
            return
        if self._failing:
            _logger.warning("%s answers again", place)
        self._failing = False


def check_url(url: str) -> SplitResult:
    """Refuse an address whose answer somebody on the way could change.

    Raises:
        InputError: It is not https (http on this machine is fine), or holds a password.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise InputError(
            f"the keys at {shown(parts)} could be changed on their way",
            hint="use the provider's https address",
        )
    if parts.username is not None or parts.password is not None or not parts.hostname:
        raise InputError(
            f"the address of the keys at {shown(parts)} names a user or no host",
            hint="give the address as the provider publishes it; public keys need no password",
        )
    return parts


def shown(parts: SplitResult) -> str:
    """Write an address without what could be a secret in it."""
    port = f":{parts.netloc.rpartition(':')[2]}" if parts.netloc.rpartition(":")[2].isdigit() else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: keys come from the address that was set, or not at all."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def fetch(parts: SplitResult) -> bytes:
    """Read what an address answers: at most one MiB, in at most 10 s, from nowhere else.

    Raises:
        UnavailableError: It does not answer, or with anything but 200.
    """
    place = shown(parts)
    # A proxy of the environment is for what is outside this machine.
    proxies = [urllib.request.ProxyHandler({})] if parts.hostname in _LOOPBACK else []
    opener = urllib.request.build_opener(_Stay, *proxies)
    request = urllib.request.Request(parts.geturl(), headers={"accept": "application/json"})
    deadline_s = time.monotonic() + _DEADLINE_S
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            if answer.status != 200:
                raise UnavailableError(f"{place} answers {answer.status}")
            chunks, size = [], 0
            while chunk := answer.read1(1 << 16):
                size += len(chunk)
                chunks.append(chunk)
                if size > _MAX_BYTES or time.monotonic() > deadline_s:
                    raise UnavailableError(f"{place} answers with more than a key set is, or too slowly")
            return b"".join(chunks)
    except HTTPError as error:
        error.close()
        raise UnavailableError(
            f"{place} answers {error.code}", hint="check the address of the keys"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        raise UnavailableError(
            f"{place} does not answer ({type(error).__name__})", hint="check the address of the keys"
        ) from error
