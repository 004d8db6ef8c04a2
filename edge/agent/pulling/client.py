"""The door to the network: one request, one answer, and nothing followed to another host.

Everything that pulls is given a ``Client``; ``HttpClient`` is the one that opens sockets. TLS is verified and
cannot be switched off. A redirect is followed only to the same host, port and scheme, because each request
may carry the device's token. It knows nothing of offers.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kit.errors import InputError, UnavailableError

MAX_BODY_BYTES = 1 << 20
"""Most bytes of an answer that is no file."""

TIMEOUT_S = 30.0
"""How long a connection may say nothing."""

_ANSWER_S = 120.0
_CHUNK_BYTES = 64 << 10
_MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}


@dataclass
class Response:
    """An answer whose body has not been read yet.

    Attributes:
        status: HTTP status; nothing is raised for any.
        headers: Header names in lower case to their values.
        read_some: Gives up to so many bytes of the body as soon as there are some; empty at its end. Raises
            ``OSError`` or ``http.client.HTTPException`` when the connection breaks.
        close: Ends the connection.
    """

    status: int
    headers: Mapping[str, str]
    read_some: Callable[[int], bytes]
    close: Callable[[], None] = field(default=lambda: None)

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client(Protocol):
    """Whoever carries requests."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send one request and read the head of its answer.

        Raises:
            UnavailableError: Nobody answers, the connection breaks, or TLS does not hold.
            InputError: The URL cannot be asked, or the answer leads to another host.
        """
        ...


class HttpClient:
    """Ask over HTTP and HTTPS, with the proxies of the environment.

    Args:
        ca_file: Certificates (PEM) that sign the source's; None takes the system's.
        timeout_s: How long a connection may say nothing.

    Raises:
        InputError: The file of certificates cannot be read.
    """

    def __init__(self, *, ca_file: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except OSError as error:
            raise InputError(
                f"the certificates in {ca_file} cannot be read: {error}", hint="name a file in PEM"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context),
        ):
            self._opener.add_handler(handler)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send one request; see ``Client``."""
        for _ in range(_MAX_REDIRECTS + 1):
            answer = self._once(method, url, headers=headers or {}, body=body)
            place = answer.headers.get("location")
            if (
                answer.status not in (301, 302, 303, 307, 308)
                or place is None
                or method not in ("GET", "HEAD")
            ):
                return answer
            answer.close()
            url = same_place(url, place)
        raise UnavailableError(f"{shown(url)} redirects more than {_MAX_REDIRECTS} times")

    def _once(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None) -> Response:
        check_url(url)
        request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)
        try:
            answer: Any = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.URLError as error:
            raise UnavailableError(
                f"{shown(url)} does not answer: {error.reason}", hint=_hint(error.reason)
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnavailableError(f"{shown(url)} does not answer: {_words(error)}") from error
        if answer is None:
            raise InputError(f"{shown(url)} is neither http:// nor https://")
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status, found, answer.read1, answer.close)


def read_body(response: Response, *, max_bytes: int = MAX_BODY_BYTES, url: str) -> bytes:
    """Read all of a small answer; it is closed afterwards.

    Raises:
        UnavailableError: The connection breaks, or takes longer than two minutes.
        InputError: The body is larger than it may be.
    """
    until_s = time.monotonic() + _ANSWER_S
    pieces = []
    n_bytes = 0
    with response:
        while True:
            try:
                data = response.read_some(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise UnavailableError(f"{shown(url)} broke off: {_words(error)}") from error
            if not data:
                break
            n_bytes += len(data)
            if n_bytes > max_bytes:
                raise InputError(f"{shown(url)} answers more than {max_bytes} bytes")
            if time.monotonic() > until_s:
                raise UnavailableError(f"{shown(url)} has not ended its answer within {_ANSWER_S:g} s")
            pieces.append(data)
    told = response.headers.get("content-length", "")
    if told.isdigit() and n_bytes < int(told):
        raise UnavailableError(f"{shown(url)} broke off after {n_bytes} of {told} bytes")
    return b"".join(pieces)


def check_url(url: str) -> None:
    """Refuse what is no address of a source.

    Raises:
        InputError: It is not ``http://`` or ``https://`` with a host, or carries a password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url[:200]!r} is no address: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or not url.isprintable() or " " in url:
        raise InputError(f"{url[:200]!r} is neither http:// nor https:// with a host")
    if parts.username or parts.password:
        raise InputError(f"the address of {parts.hostname} carries a name or a password", hint="use a token")


def same_place(base: str, reference: str) -> str:
    """Resolve a reference, and refuse it where it leads away from its base.

    Args:
        base: An absolute URL.
        reference: A relative or an absolute one.

    Returns:
        The absolute URL: same scheme, host and port as the base.

    Raises:
        InputError: It leads to another host or port, or from TLS to none.
    """
    url = urllib.parse.urljoin(base, reference)
    check_url(url)
    old, new = urllib.parse.urlsplit(base), urllib.parse.urlsplit(url)
    if old.hostname != new.hostname or _port(old) != _port(new) or old.scheme != new.scheme:
        raise InputError(f"{shown(base)} leads to {shown(url)}, another place", hint="keep both on one host")
    return url


def shown(url: str) -> str:
    """Give a URL as a sentence may show it: without its query, which may hold a secret."""
    return url.partition("?")[0][:200]


def _port(parts: urllib.parse.SplitResult) -> int | None:
    return parts.port or _PORTS.get(parts.scheme)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _hint(reason: object) -> str | None:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return "name the certificates that sign the source's, or repair the clock of this device"
    return None
