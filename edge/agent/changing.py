"""Change the device in a process of its own: recover, install, commit, return to what ran before.

What checks signatures and unpacks archives takes more memory than the agent itself, and is needed for seconds
in months; so it lives in a child, ``python -m edge.agent.changing``. The child inherits the agent's lock,
which therefore is held until the last of the two has ended. Every change is safe against being cut off
(``edge.agent.install``), so a child that takes too long is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kit.child import CODE_FOLDER
from kit.errors import EXIT_CODES, ConflictError, InputError, KitError, UnavailableError

TIMEOUT_S = 900.0
"""Longest time for one change: a large bundle on a slow card, and its trial."""

_LOCK_NAME = "agent.lock"
_BEAT_S = 1.0
_MAX_ANSWER_BYTES = 1 << 16
_KINDS = {kind.__name__: kind for kind, _ in EXIT_CODES}

_log = logging.getLogger("kit.agent")


class StoppedError(Exception):
    """The agent is to end; the change is taken up again at the next start."""


class Changes:
    """Changes one device; the caller holds its lock.

    Args:
        folder: The device folder.
        stopping: Set when the agent is to end.
        beat: Called every second while a change is under way.
    """

    def __init__(
        self, folder: Path, *, stopping: threading.Event | None = None, beat: Callable[[], None] | None = None
    ) -> None:
        self._folder = folder.resolve()
        self._stopping = stopping or threading.Event()
        self._beat = beat or (lambda: None)
        self._lock = _held(self._folder / _LOCK_NAME)

    def recover(self) -> None:
        """Bring the device from wherever it stopped to its last good slot.

        Raises:
            KitError: What the child raised.
            StoppedError: The agent is to end.
        """
        self._change("recover")

    def install(self, path: Path) -> None:
        """Install a file of ``incoming/``; see ``recover`` for what it raises."""
        self._change("install", file=path.name)

    def commit(self, running_digest: str) -> None:
        """Confirm the slot on trial, which has run without a fault; see ``recover``."""
        self._change("commit", digest=running_digest)

    def revert(self, reason: str, *, failed: str | None = None, to: str | None = None) -> None:
        """Go back to a slot that was confirmed before; see ``recover``.

        Args:
            reason: Why.
            failed: The slot that has failed and is rejected; None when somebody wants another one back.
            to: The slot that is wanted back; None for the last good one.
        """
        self._change("revert", reason=reason, digest=failed, to=to)

    def _change(self, action: str, **arguments: Any) -> None:
        asked = {"folder": str(self._folder), "lock": self._lock, "action": action, **arguments}
        process = subprocess.Popen(
            [sys.executable, "-m", "edge.agent.changing", json.dumps(asked)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=CODE_FOLDER,
            pass_fds=[self._lock],
            start_new_session=True,
        )
        try:
            said = self._await(process)
        finally:
            if process.returncode is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        refusal = said.get("error")
        if refusal:
            kind = _KINDS.get(str(refusal.get("kind")), KitError)
            raise kind(str(refusal.get("message")), hint=refusal.get("hint"))
        if process.returncode:
            raise UnavailableError(f"the change {action!r} ended with exit code {process.returncode}")

    def _await(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout is not None
        end_s = time.monotonic() + TIMEOUT_S
        data = b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], _BEAT_S)
            if ready:
                part = os.read(process.stdout.fileno(), _MAX_ANSWER_BYTES)
                data = (data + part)[-_MAX_ANSWER_BYTES:]
                if not part:
                    process.wait()
                    break
            self._beat()
            if self._stopping.is_set():
                raise StoppedError
            if time.monotonic() > end_s:
                raise UnavailableError(f"a change took longer than {TIMEOUT_S:g} s")
        lines = data.decode(errors="replace").strip().splitlines()
        with contextlib.suppress(ValueError):
            value = json.loads(lines[-1]) if lines else {}
            if isinstance(value, dict):
                return value
        return {}


def main(arguments: list[str] | None = None) -> int:
    """Be the child: make one change, and say as one line of JSON what was wrong."""
    from edge.agent import install
    from edge.agent.config import read_config
    from edge.agent.device import Device

    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    (given,) = sys.argv[1:] if arguments is None else arguments
    asked = json.loads(given)
    folder, action = Path(asked["folder"]), asked["action"]
    try:
        _require_lock(folder / _LOCK_NAME, asked["lock"])
        device = Device.open(folder)
        device.prepare()
        soak = read_config(folder).trial_s > 0
        steps: Iterator[str]
        if action == "recover":
            steps = install.recover(device, soak=soak)
        elif action == "install":
            steps = install.install(device, device.incoming / asked["file"], soak=soak)
        elif action == "commit":
            steps = install.commit(device, running_digest=asked["digest"])
        elif action == "revert":
            steps = install.revert(device, reason=asked["reason"], digest=asked["digest"], to=asked["to"])
        else:
            raise InputError(f"there is no change {action!r}")
        for step in steps:
            _log.debug(step)
    except KitError as error:
        refusal = {"kind": _kind(error), "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": refusal}) + "\n")
        return 1
    sys.stdout.write("{}\n")
    return 0


def _kind(error: KitError) -> str:
    return next((kind.__name__ for kind, _ in EXIT_CODES if isinstance(error, kind)), "KitError")


def _held(path: Path) -> int:
    """Find the open file that holds the agent's lock in this process."""
    wanted = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), wanted):
                return int(name)
    raise ConflictError(f"nobody here holds {path}", hint="lock the device first")


def _require_lock(path: Path, number: int) -> None:
    """Refuse to change a device whose lock was not handed over."""
    import fcntl

    try:
        if not os.path.samestat(os.fstat(number), os.stat(path)):
            raise OSError
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConflictError(f"{path} is not held by who asks for a change") from error


if __name__ == "__main__":
    sys.exit(main())
