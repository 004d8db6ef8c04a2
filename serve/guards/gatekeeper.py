"""Who may ask, decided for one request in a few microseconds: admit says who it is, authorize what he may do.

One way to show who one is: ``Authorization: Bearer KEY-OR-TOKEN``, which every client of the protocol can
send, over HTTP and gRPC. Without authentication the peer decides: whoever opened the connection, which is the
client, or HAProxy, which then listens on this machine alone. What others say about where a request comes from
(``X-Forwarded-For``) is never believed. Which paths need no key is not known here.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from kit.errors import InputError
from kit.inference.errors import ForbiddenError, UnauthorizedError
from kit.project import Project
from kit.settings.serving import JwtSettings, ServeSettings
from serve.guards.access import Keyring, endpoint_key, keys_path, parse_keyring
from serve.guards.callers import ALL_SCOPES, Caller
from serve.guards.following import Followed, Watch
from serve.guards.tokens import MAX_TOKEN_BYTES, Tokens, UnsettledError

Headers = Sequence[tuple[bytes, bytes]]
Action = Literal["infer", "read", "admin", "metrics"]

_MAX_HEADERS = 128
_MAX_HOSTS = 64
_MAX_WAITING = 256
_WAIT_S = 2.0
_LOOPBACK = frozenset(("127.0.0.1", "::1"))
_HINT = "send it as Authorization: Bearer KEY"
#: When an endpoint is open to all, nobody loads and unloads: through the proxy, everybody is this machine.
_OPEN_SCOPES = ALL_SCOPES - {"admin"}


@dataclass(frozen=True)
class GuardPlan:
    """What a replica needs to know to let requests in; it travels to it.

    Attributes:
        auth: ``key``: a key or token; ``none``: the peer decides.
        open_to_all: Whether, without authentication, other machines are answered too.
        endpoint_sha256: Hash of the endpoint's own key, 32 bytes; None without authentication.
        keys_file: Where the hashes of the other keys lie.
        jwt: Whose tokens count; None for nobody's. ``jwks`` is an address or an absolute path.
        local_addresses: This machine's own addresses beside the loopback ones.
    """

    auth: Literal["key", "none"]
    open_to_all: bool
    endpoint_sha256: bytes | None
    keys_file: Path
    jwt: JwtSettings | None
    local_addresses: frozenset[str]


def plan_guards(project: Project, settings: ServeSettings, *, local_addresses: frozenset[str]) -> GuardPlan:
    """Say how an endpoint is guarded, and check it; makes the endpoint's own key where there is none.

    Args:
        project: Where the keys lie.
        settings: Of the endpoint.
        local_addresses: See ``GuardPlan``.

    Raises:
        InputError: A file of keys is damaged, missing or readable by others, or their address not trusted.
    """
    own = endpoint_key(project.state / "serve" / "key") if settings.auth == "key" else None
    jwt = settings.jwt
    plan = GuardPlan(
        auth=settings.auth,
        open_to_all=settings.open_to_all,
        endpoint_sha256=None if own is None else sha256(own).digest(),
        keys_file=keys_path(project.state),
        jwt=None if jwt is None else jwt.model_copy(update={"jwks": project.locate(jwt.jwks)}),
        local_addresses=local_addresses,
    )
    Gatekeeper(plan).close()  # what a replica would refuse is refused before Ray starts
    return plan


class Gatekeeper:
    """What lets requests in. It follows the files of keys in threads until it is closed.

    Args:
        plan: Who may ask.

    Raises:
        InputError: A file of keys is damaged, missing or readable by others, or their address not trusted.
    """

    def __init__(self, plan: GuardPlan) -> None:
        self._own = plan.endpoint_sha256 or b""
        self._own_caller = Caller("endpoint", ALL_SCOPES, "key")
        self._local = plan.local_addresses | _LOOPBACK
        self._open = plan.open_to_all
        #: Parsing a host takes 10 us, and nearly all requests name the same one.
        self._owned = lru_cache(maxsize=_MAX_HOSTS)(self._is_own)
        #: Whether the peer decides, which then counts for open paths as well.
        self.asks_peers = plan.auth == "none"
        self._keys: Followed[Keyring] | None = None
        self._tokens: Tokens | None = None
        self._watch: Watch | None = None
        self._waiting = 0
        if plan.auth == "key":
            self._keys = Followed(
                plan.keys_file, parse=parse_keyring(plan.keys_file), absent=Keyring([]), private=True
            )
            self._tokens = Tokens(plan.jwt) if plan.jwt is not None else None
            self._watch = Watch("kit-keys", look=self._keys.look)

    def admit(self, headers: Headers, peer: str | None) -> Caller:
        """Say who sends a request.

        Args:
            headers: Names in lower case and values, as they came.
            peer: Address of who opened the connection; None when that is not known.

        Raises:
            ForbiddenError: There is no authentication, and the peer is another machine.
            InputError: There are more headers than any client sends.
            UnauthorizedError: The key or token is missing or does not count; no message holds a part of it.
            UnsettledError: It may count in a moment; ``admit_patiently`` waits for that.
        """
        if len(headers) > _MAX_HEADERS:
            raise InputError(f"the request has {len(headers)} headers", hint=f"send at most {_MAX_HEADERS}")
        if self._keys is None:
            return self._admit_peer(headers, peer)
        credential = None
        for name, value in headers:
            if name == b"authorization":
                if credential is not None:
                    raise UnauthorizedError("the request carries two keys", hint="send one")
                credential = value
        if credential is None:
            raise UnauthorizedError("the endpoint's key is missing", hint=_HINT)
        given = credential[7:].strip() if credential.startswith(b"Bearer ") else _bearer(credential)
        if len(given) > MAX_TOKEN_BYTES:
            raise UnauthorizedError(f"the key is longer than {MAX_TOKEN_BYTES} bytes", hint=_HINT)
        digest = sha256(given).digest()
        if self._tokens is not None and (caller := self._tokens.find(digest)) is not None:
            return caller
        if (caller := self._keys.value.find(given, sha256=digest)) is not None:
            return caller
        if hmac.compare_digest(digest, self._own):
            return self._own_caller
        if self._tokens is not None and b"." in given:
            return self._tokens.verify(given, sha256=digest)
        raise UnauthorizedError("the endpoint's key is wrong", hint=_HINT)

    async def admit_patiently(self, headers: Headers, peer: str | None) -> Caller:
        """Say who sends a request that ``admit`` could not settle, after its token's key was asked for.

        Waits for at most two seconds. Raises what ``admit`` raises.
        """
        try:
            return self.admit(headers, peer)
        except UnsettledError:
            done = self._tokens.refreshing if self._tokens is not None else None
            if done is None or self._waiting >= _MAX_WAITING:
                raise
        self._waiting += 1
        try:
            await asyncio.wait([asyncio.wrap_future(done)], timeout=_WAIT_S)
        finally:
            self._waiting -= 1
        return self.admit(headers, peer)

    def authorize(self, caller: Caller, action: Action, model: str | None) -> None:
        """Let a caller do something, or refuse it.

        Args:
            caller: Who ``admit`` said it is.
            action: ``infer``; ``read`` what there is to know about a model, or about the endpoint when
                ``model`` is None; ``admin`` loads and unloads; ``metrics`` reads figures of all callers.
            model: Which model.

        Raises:
            ForbiddenError: A scope is missing; the message names it.
        """
        scopes = caller.scopes
        if action == "infer":
            if "infer:*" in scopes or f"infer:{model}" in scopes:
                return
            raise _forbidden(f"infer:{model}")
        if action == "read":
            if model is None or "infer:*" in scopes or f"infer:{model}" in scopes or "admin" in scopes:
                return
            raise _forbidden(f"infer:{model}")
        if action not in scopes:
            raise _forbidden(action)

    def close(self) -> None:
        """Stop following."""
        if self._watch is not None:
            self._watch.close()
        if self._tokens is not None:
            self._tokens.close()

    def _admit_peer(self, headers: Headers, peer: str | None) -> Caller:
        address = peer.removeprefix("::ffff:") if peer is not None else ""
        local = address in self._local
        if not (local or self._open):
            raise ForbiddenError("only requests from this machine are answered", hint="serve with a key")
        if not self._open:
            for name, value in headers:
                # A name of somebody else's that leads here is how a page of theirs would read the answers.
                if name == b"host" and not self._owned(b"//" + value):
                    raise ForbiddenError("the request is for another host", hint="ask 127.0.0.1 or localhost")
                # A page of any web site, open in a browser on this machine, is not this machine.
                if name == b"origin" and not self._owned(value):
                    raise ForbiddenError(
                        "a web page of another host asks", hint="serve with a key, and let the page send it"
                    )
        return Caller(address, _OPEN_SCOPES if self._open else ALL_SCOPES, "peer")

    def _is_own(self, origin: bytes) -> bool:
        try:
            host = urlsplit(origin.decode("ascii")).hostname
        except ValueError:
            return False
        return host is not None and (host == "localhost" or host in self._local)


def _bearer(credential: bytes) -> bytes:
    """Take a key out of a header written in another way than nearly all clients write it."""
    scheme, _, given = credential.partition(b" ")
    if scheme.lower() != b"bearer":
        raise UnauthorizedError("the endpoint's key is missing", hint=_HINT)
    return given.strip()


def _forbidden(scope: str) -> ForbiddenError:
    return ForbiddenError(
        f"this takes the scope {scope}, which the key or token does not have",
        hint="use another key: kit access create NAME --scope SCOPE",
    )
