"""systemd: what it is told over its socket, and the unit that runs the agent. By hand, without its library.

Source: systemd, sd_notify(3), systemd.service(5), systemd.exec(5).
"""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from kit.child import CODE_FOLDER
from kit.errors import SettingsError


class Notify:
    """Tells systemd how the service does; nobody is told anything where it was not started by systemd.

    Args:
        environment: Where ``NOTIFY_SOCKET`` and ``WATCHDOG_USEC`` are.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._socket: socket.socket | None = None
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        watchdog = environment.get("WATCHDOG_USEC", "")
        owner = environment.get("WATCHDOG_PID", "")
        is_ours = not owner or owner == str(os.getpid())
        self.watchdog_s = int(watchdog) / 1e6 if watchdog.isdigit() and is_ours else 0.0
        """How long systemd waits for a sign of life; 0 when it waits for none."""

    def ready(self, status: str) -> None:
        """Say that the service answers."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Give a sign of life."""
        if self.watchdog_s:
            self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """Say in one line how the service does."""
        self._send(f"STATUS={status}")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start or to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(message.replace("\n\n", "\n").encode(), address)
        except OSError:  # systemd is busy or gone; the next sign of life tells it
            return


_UNIT = """\
[Unit]
Description=Models on this device ({folder})
After=local-fs.target
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
User={user}
WorkingDirectory={code}
ExecStart={command}
Restart=always
RestartSec=2
WatchdogSec=60
TimeoutStartSec=300
TimeoutStopSec=30
KillMode=mixed
UMask=0027

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
Nice=0
OOMScoreAdjust=-200

[Install]
WantedBy=multi-user.target
"""


def unit(folder: Path, *, user: str | None = None, writable: tuple[Path, ...] = ()) -> str:
    """Write the unit that runs the agent of a device folder with this Python.

    Args:
        folder: The device folder.
        user: Who runs it; None takes the folder's owner.
        writable: Other folders it writes to, those of the inbox.

    Raises:
        SettingsError: A path holds what a unit cannot.
    """
    folder = folder.resolve()
    name = user or _owner(folder)
    paths = [folder, *(each.resolve() for each in writable)]
    for path in (*paths, CODE_FOLDER, Path(sys.executable)):
        if any(each in str(path) for each in "\n\"'\\%$"):
            raise SettingsError(
                f"{path} holds a character that a unit cannot", hint="move it to another folder"
            )
    command = [sys.executable, "-m", "edge.agent", "run", str(folder)]
    at_home = any(str(path).startswith(("/home/", "/root/", "/run/user/")) for path in (*paths, CODE_FOLDER))
    return _UNIT.format(
        folder=folder,
        user=name,
        code=CODE_FOLDER,
        command=" ".join(shlex.quote(each) for each in command),
        writable=" ".join(f'"{path}"' if " " in str(path) else str(path) for path in paths),
        home="no" if at_home or str(sys.executable).startswith(("/home/", "/root/")) else "yes",
    )


def _owner(folder: Path) -> str:
    number = folder.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
