"""Tokens of an identity provider: whose they are and what they allow.

Everything that can be forged is decided by settings, never by the token: the algorithms, the issuer, the
audience and where keys come from (``jku``, ``x5u`` and ``jwk`` in a header are not looked at). A verified
token is remembered by its hash until it expires or the provider's keys change, because a signature costs tens
of microseconds.

Times are the wall clock's, as the provider's are: when the clock is put forward by more than the leeway,
tokens expire early; when it is put back, they live longer by as much.
"""

from __future__ import annotations

import binascii
import json
import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from kit.inference.errors import UnauthorizedError
from kit.settings.serving import JwtSettings
from serve.guards.callers import SCOPE, Caller
from serve.guards.keyset import FileKeys, UrlKeys

MAX_TOKEN_BYTES = 8192
_MAX_HEADER_CHARACTERS = 2048
_MAX_SUBJECT_CHARACTERS = 256
_MAX_REMEMBERED = 10_000


class UnsettledError(UnauthorizedError):
    """A token names a key that is being asked for; a moment later it may count."""


class Tokens:
    """What believes an identity provider.

    Args:
        settings: Of the provider; ``jwks`` is an address or an absolute path.

    Raises:
        InputError: The file of the keys is missing or holds none, or their address cannot be trusted.
    """

    def __init__(self, settings: JwtSettings) -> None:
        self._algorithms = settings.algorithms
        self._leeway_s = settings.leeway_s
        self._audience = settings.audience
        self._issuer = settings.issuer
        # "scp" is how some providers call "scope"; who names a claim means that one.
        self._claims = ("scope", "scp") if settings.scope_claim == "scope" else (settings.scope_claim,)
        self._verified: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._refreshing: Future[None] | None = None
        self.keys: FileKeys | UrlKeys
        if "://" in settings.jwks:
            self.keys = UrlKeys(settings.jwks, algorithms=self._algorithms, on_change=self._forget)
        else:
            self.keys = FileKeys(Path(settings.jwks), algorithms=self._algorithms, on_change=self._forget)

    def find(self, sha256: bytes) -> Caller | None:
        """Give whose token has a hash, when it was verified before and has not expired; about 0.2 us."""
        known = self._verified.get(sha256)
        return known[1] if known is not None and time.time() < known[0] else None

    def verify(self, token: bytes, *, sha256: bytes) -> Caller:
        """Verify a token that was not seen before.

        Args:
            token: Its bytes.
            sha256: Its hash.

        Raises:
            UnauthorizedError: It does not count; the message holds no part of it.
            UnsettledError: Its key is not known yet; see ``refreshing``.
        """
        verified = self._verified  # the one these keys belong to: a change of keys puts another in its place
        keys = self.keys.keys
        header = _header(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms:
            raise _refused("is signed in a way that is not accepted", f"use {', '.join(self._algorithms)}")
        if not (key_id is None or isinstance(key_id, str)):
            raise _refused("is malformed")
        if not keys.knows(key_id):
            self._refreshing = self.keys.ask()
            if self._refreshing is not None:
                raise UnsettledError("the token's key is not known yet", hint="send it again in a moment")
            raise _refused("is signed with a key that is not known")
        key = keys.find(key_id, algorithm=str(algorithm))
        if key is None:
            raise _refused("is signed in a way its key is not for")
        claims = self._decode(token, key, str(algorithm))
        caller = Caller(_subject(claims), self._scopes(claims), "token")
        verified[sha256] = (int(claims["exp"]) + self._leeway_s, caller)
        if len(verified) > _MAX_REMEMBERED:
            verified.popitem(last=False)
        return caller

    @property
    def refreshing(self) -> Future[None] | None:
        """What is done when the keys, asked for by an unsettled token, have been read."""
        return self._refreshing

    def close(self) -> None:
        """Stop following the keys."""
        self.keys.close()

    def _forget(self) -> None:
        """Verify all tokens anew: the key of some may have been withdrawn."""
        self._verified = OrderedDict()

    def _decode(self, token: bytes, key: Any, algorithm: str) -> Mapping[str, Any]:
        import jwt

        try:
            return jwt.decode(
                token,
                key=key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise _refused("has expired", "ask the provider for a new one") from None
        except jwt.ImmatureSignatureError:
            raise _refused("is not valid yet", "check the clocks of the provider and the endpoint") from None
        except jwt.InvalidAudienceError:
            raise _refused("is meant for another audience") from None
        except jwt.InvalidIssuerError:
            raise _refused("is from another issuer") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"lacks the claim {error.claim}") from None
        except jwt.InvalidSignatureError:
            raise _refused("has a signature that does not hold") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise _refused("is malformed") from None

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        given = next((claims[name] for name in self._claims if name in claims), "")
        listed: Sequence[Any] = given.split() if isinstance(given, str) else given
        if not isinstance(listed, list):
            return frozenset()
        return frozenset(each for each in listed if isinstance(each, str) and SCOPE.fullmatch(each))


def _header(token: bytes) -> Mapping[str, Any]:
    """Read what a token says of itself; nothing in it is believed."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _refused(f"is longer than {MAX_TOKEN_BYTES} bytes")
    first, _, rest = token.partition(b".")
    if rest.count(b".") != 1 or not 0 < len(first) <= _MAX_HEADER_CHARACTERS:
        raise _refused("is malformed")
    try:
        header = json.loads(urlsafe_b64decode(first + b"=" * (-len(first) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        raise _refused("is malformed") from None
    if not isinstance(header, dict):
        raise _refused("is malformed")
    return header


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims["sub"]
    # It becomes part of logs and of Redis keys: no control characters, no lengths without end.
    if not 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS or not subject.isprintable():
        raise _refused("has a subject that is empty, too long or unprintable")
    return str(subject)


def _refused(why: str, hint: str = "ask the provider for a token for this endpoint") -> UnauthorizedError:
    return UnauthorizedError(f"the token {why}", hint=hint)
