"""A real OpenSSH server on the loopback, as a process of the test with its own host key and configuration."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.awaiting import await_true

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = "needs an SSH server: apt-get install openssh-server"
_SFTP = "/usr/lib/openssh/sftp-server"


@dataclass
class Sshd:
    """The server, and a client's configuration for it under the alias ``device``."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        """The client's configuration."""
        return self.folder / "config"

    def start(self, *, sftp: bool = True, more: str = "") -> None:
        """Start it, and wait until it listens."""
        settings = self.folder / "sshd_config"
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/user.pub",
            f"PidFile {self.folder}/sshd.pid",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "MaxStartups 100",
            *([f"Subsystem sftp {_SFTP}"] if sftp else []),
            more,
        ]
        settings.write_text("\n".join(lines) + "\n")
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(settings)], stderr=log)
        await_true(self._answers, why="sshd does not listen")

    def stop(self) -> None:
        """Stop it, and what it serves."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def know(self, key: str | None = None) -> None:
        """Let the client know a host key: this host's own when None."""
        text = key or (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {' '.join(text.split()[:2])}\n")

    def configure(self, *more: str) -> None:
        """Write the client's configuration."""
        lines = [
            "Host device",
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"User {getpass.getuser()}",
            f"IdentityFile {self.folder}/user",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {self.folder}/known",
            "GlobalKnownHostsFile /dev/null",
            *more,
        ]
        self.config.write_text("\n".join(lines) + "\n")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def make_sshd(folder: Path) -> Sshd:
    """Make keys and configurations; the test is skipped where there is no OpenSSH server."""
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip(MISSING)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it parts privileges
    folder.mkdir()
    for name in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sshd = Sshd(folder, port)
    sshd.know()
    sshd.configure()
    return sshd
