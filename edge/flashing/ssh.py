"""The way ``ssh://[user@]host[:port]/folder``: the system's OpenSSH with the user's own configuration.

Aliases, jump hosts, agents and keys are those of ``~/.ssh/config``. Nothing is asked (BatchMode), and a host
whose key is unknown or has changed is refused, whatever the configuration says. One connection serves a whole
flash. A folder that begins with ``/~/`` is relative to the user's home there.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from kit.errors import InputError, MissingDependencyError, NotFoundError, UnavailableError, VerificationError

SCHEME = "ssh://"

_CONNECT_S = 15
_FAILED = 255
_NO_PROGRAM = (126, 127)
# Never an option of ssh, and nothing that a shell or ssh itself would expand.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


class SshWay:
    """Starts programs on another machine; see ``edge.flashing.hand.Way``.

    Args:
        uri: ``ssh://[user@]host[:port]/folder``.
        python: The interpreter there; empty to try the usual ones.
        config: A configuration file in place of the user's own; None for that.

    Raises:
        InputError: The address breaks a rule.
        MissingDependencyError: OpenSSH is not installed here.
    """

    def __init__(self, uri: str, *, python: str = "", config: Path | None = None) -> None:
        user, self.host, port, self.folder = _parts(uri)
        self.shown = uri
        self.code = ""
        self.python = python or "python3"
        if shutil.which("ssh") is None:
            raise MissingDependencyError(
                "ssh:// needs OpenSSH, which is not installed", hint="apt-get install openssh-client"
            )
        self._scratch = tempfile.TemporaryDirectory(prefix="kit-ssh-")
        self._socket = Path(self._scratch.name) / "master"
        self._master: subprocess.Popen[bytes] | None = None
        options = ["BatchMode=yes", f"ConnectTimeout={_CONNECT_S}", "ServerAliveInterval=15", "ForwardX11=no"]
        options += ["ForwardAgent=no", "RequestTTY=no", "RemoteCommand=none", "ClearAllForwardings=yes"]
        options += ["ControlMaster=no", f"ControlPath={self._socket}", "ControlPersist=no"]
        self._ssh = ["ssh", *([] if config is None else ["-F", str(config)])]
        self._ssh += [word for option in options for word in ("-o", option)]
        self._ssh += [*(["-p", port] if port else []), *(["-l", user] if user else [])]
        if not self._checks_keys():
            self._ssh += ["-o", "StrictHostKeyChecking=yes"]

    def open(self) -> None:
        """Connect, so that what follows needs no connection of its own.

        Raises:
            VerificationError: The host's key is unknown or has changed.
            UnavailableError: The host cannot be reached, or does not let this user in.
        """
        log = Path(self._scratch.name) / "said"
        # Options given first win, in ssh as in its configuration.
        # It reads what never comes, and so ends with this process, however that ends.
        command = ["ssh", "-o", "ControlMaster=yes", *self._ssh[1:], "--", self.host, "cat"]
        with log.open("wb") as said:
            self._master = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        while not self._socket.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._master.wait(0.02)
                self.refuse(code or _FAILED, log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        """End the connection."""
        if self._master is not None:
            try:
                self._master.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.communicate()
        self._scratch.cleanup()

    def interpreters(self) -> list[str]:
        """Give the interpreters worth trying, when none was named."""
        inside = [f"{self.folder}/{name}/bin/python" for name in ("venv", ".venv")]
        return ["python3", *inside, "/opt/kit/bin/python"]

    def words(self, program: Sequence[str]) -> list[str]:
        """Give the command that starts a Python there."""
        return [*self._ssh, "--", self.host, shlex.join([self.python, *program])]

    def refuse(self, code: int, said: str) -> None:
        """Raise what an ending of ssh, or of the shell there, means."""
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {code}"
        if code in _NO_PROGRAM:
            raise NotFoundError(
                f"{self.shown} has no interpreter {self.python!r}",
                hint="name the one that has the agent: --device-python /opt/kit/bin/python",
            )
        if code != _FAILED:
            return
        if "HOST IDENTIFICATION HAS CHANGED" in said:
            raise VerificationError(
                f"the host key of {self.host} is not the one that is known",
                hint=f"find out why; only if you know, forget the old one: ssh-keygen -R {self.host}",
            )
        if "Host key verification failed" in said:
            raise VerificationError(
                f"the host key of {self.host} is not known",
                hint=f"connect once by hand and compare its fingerprint: ssh {self.host}",
            )
        if "Permission denied" in said:
            raise UnavailableError(
                f"{self.host} does not let you in: {last[:200]}",
                hint="no password is asked for; add your key to ssh-agent, or there to authorized_keys",
            )
        raise UnavailableError(f"{self.host} cannot be reached: {last[:300]}")

    def _checks_keys(self) -> bool:
        """Ask OpenSSH whether the configuration has host keys checked."""
        asked = subprocess.run(
            [*self._ssh, "-G", "--", self.host], capture_output=True, text=True, timeout=30, check=False
        )
        if asked.returncode:
            last = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"ssh cannot read its configuration for {self.host}: {last[:300]}")
        answers = dict(line.partition(" ")[::2] for line in asked.stdout.splitlines())
        return answers.get("stricthostkeychecking") not in ("no", "off", "false")


def _parts(uri: str) -> tuple[str, str, str, str]:
    """Take an address apart: user, host, port, folder."""
    try:
        parts = urllib.parse.urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{uri!r} is no address: {error}", hint="write ssh://user@host:22/folder") from error
    host, user = parts.hostname or "", urllib.parse.unquote(parts.username or "")
    if parts.netloc.rpartition("@")[2].partition(":")[0].lower() == host:
        host = parts.netloc.rpartition("@")[2].partition(":")[0]  # aliases are written as the user has them
    folder = urllib.parse.unquote(parts.path)
    if not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)):
        raise InputError(f"{uri!r} has no host that can be asked", hint="write ssh://user@host:22/folder")
    if parts.password is not None or parts.query or parts.fragment:
        raise InputError(
            f"the address of {host} carries more than a folder", hint="use a key, not a password"
        )
    if len(folder) < 2 or not folder.isprintable():
        raise InputError(f"{uri!r} names no folder", hint="write ssh://user@host:22/folder")
    if folder.startswith("/~/"):
        folder = folder[3:]
    folder = folder.rstrip("/")
    if not folder or folder.startswith("-"):
        raise InputError(f"{uri!r} names no folder", hint="write ssh://user@host:22/folder")
    return user, host, str(port) if port else "", folder
