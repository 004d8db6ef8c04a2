"""The place an endpoint listens: is the port free, does it answer, and which HAProxy processes are ours.

Ray Serve starts HAProxy as a child of one of its workers. When Ray is killed instead of stopped, that
child lives on and keeps the port; here it is found and ended, by the folder its configuration lies in.
It knows nothing of models or of Ray.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shutil
import signal
import socket
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kit.errors import ConflictError, InputError, UnavailableError

_FOLDER_PREFIX = "kit-serve-"
_OWNER = "ray::HAProxyManager"
_DRIVER = "driver"
_GRACE_S = 2.0
_RAY_ENDS_S = 15.0
_PAUSE_S = 0.05


def new_folder() -> Path:
    """Make the folder for HAProxy's files, open to this user alone (its admin socket is in there).

    It notes this process, with which the endpoint ends.
    """
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    (folder / _DRIVER).write_text(_born(os.getpid()))
    return folder


def check_port(host: str, *, port: int) -> None:
    """Refuse a port nobody can listen on, before anything is started.

    Raises:
        ConflictError: Somebody listens there already.
        InputError: The host is not an address of this machine.
        UnavailableError: This user may not listen there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a closed endpoint's TIME_WAIT is no owner
            probe.bind(address)
    except (socket.gaierror, ValueError) as error:  # ValueError: a label that is empty or over 63 characters
        said = error.strerror if isinstance(error, OSError) else "no name looks like that"
        raise InputError(f"host {host!r} is not an address: {said}", hint="use --host 127.0.0.1") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"port {port} on {host} is taken by another process",
                hint=f"choose another port: --port {port + 1 if port < 65535 else 8000}",
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"host {host!r} is not an address of this machine", hint="use --host 127.0.0.1 or 0.0.0.0"
            ) from error
        raise UnavailableError(
            f"port {port} on {host} cannot be used: {error.strerror}", hint="choose another port: --port 8000"
        ) from error


def client_host(host: str) -> str:
    """Give the address to reach a listener at from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def answers(host: str, *, port: int, path: str, timeout_s: float, tls: bool = False) -> bool:
    """Say whether a GET is answered with 200; whose certificate it is does not matter to that."""
    connection = http.client.HTTPConnection(client_host(host), port, timeout=timeout_s)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(client_host(host), port, timeout=timeout_s, context=context)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def local_addresses() -> frozenset[str]:
    """Give the address this machine shows to others, as which HAProxy may reach a replica."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; asks the kernel which address leads outside
        return frozenset({str(probe.getsockname()[0])})
    return frozenset()


def stop_haproxy(folder: Path) -> None:
    """End every HAProxy whose configuration lies in our folder, then remove the folder."""
    _end([found.pid for found in _haproxies() if found.folder == folder])
    shutil.rmtree(folder, ignore_errors=True)


def stop_orphans() -> None:
    """End HAProxy processes of earlier endpoints of this user whose Ray is gone, and remove their folders.

    A Ray whose driver was killed takes some seconds to notice; until then it would start HAProxy again, so it
    is waited for.
    """
    deadline_s = time.monotonic() + _RAY_ENDS_S
    while True:
        found = _haproxies()
        orphans = [each for each in found if not _command(each.parent).startswith(_OWNER)]
        _end([each.pid for each in orphans])
        for each in orphans:
            shutil.rmtree(each.folder, ignore_errors=True)
        ending = [each for each in found if each not in orphans and _is_deserted(each.folder)]
        if not ending or time.monotonic() > deadline_s:
            return
        time.sleep(_PAUSE_S)


def _is_deserted(folder: Path) -> bool:
    """Say whether the process that made a folder has ended."""
    try:
        noted = (folder / _DRIVER).read_text()
    except OSError:  # it is being removed
        return False
    return bool(noted) and _born(int(noted.split()[0])) != noted


def _born(pid: int) -> str:
    """Give a process's number and when it began, which together are nobody else's; "" when it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{pid} {fields[19]}"


@dataclass(frozen=True)
class _Haproxy:
    """One running HAProxy of this user, and the folder of ``new_folder`` it was started with."""

    pid: int
    parent: int
    folder: Path


def _haproxies() -> list[_Haproxy]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):  # no /proc, no HAProxy: it exists for Linux alone
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            words = [os.fsdecode(word) for word in (entry / "cmdline").read_bytes().split(b"\0")]
            status = (entry / "status").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if Path(words[0]).name != "haproxy" or "-f" not in words:
            continue
        # FOLDER/NODE/haproxy.cfg: Ray puts a folder per node between ours and the file
        folder = Path(words[words.index("-f") + 1]).parent.parent
        if folder.name.startswith(_FOLDER_PREFIX):
            parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:"))
            found.append(_Haproxy(int(entry.name), int(parent), folder))
    return found


def _command(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return ""


def _end(pids: list[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _GRACE_S
        while pids and time.monotonic() < deadline:
            pids = [pid for pid in pids if "haproxy" in _command(pid)]  # a zombie's command is empty
            if pids:
                time.sleep(_PAUSE_S)
