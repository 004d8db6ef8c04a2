"""What a flash does on the device itself: look, lock, receive, put into place, wait for the verdict.

Its text is handed to the device's interpreter, so it needs nothing there but Python 3.9 and its standard
library, and imports nothing of the kit. One JSON object comes in as an argument, one goes out on stdout; a
file comes in on stdin. It decides nothing: the device's agent does.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import secrets
import select
import shutil
import subprocess
import sys
import time
from typing import Any, BinaryIO

_LOCK = "flash.lock"
_PART = re.compile(r"\.flash-[0-9a-f]{32}\.part|\..*\.bundle")
_OURS = re.compile(r"(flash\.lock|\.keys\..*)")  # what an interrupted first flash leaves
_CHUNK_BYTES = 1 << 18
_MAX_STATE_BYTES = 1 << 20


def probe(folder: str, packages: list[str]) -> dict[str, Any]:
    """Say what this machine is, what it has, and what stands in the folder.

    Args:
        folder: The device folder; it need not exist.
        packages: Distributions whose versions are wanted.
    """
    place, other = _place(folder)
    exists = os.path.isdir(folder)
    near = folder if exists else os.path.dirname(os.path.abspath(folder))
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "memory_bytes": _memory(),
        "agent": importlib.util.find_spec("edge") is not None
        and importlib.util.find_spec("edge.agent") is not None,
        "packages": {name: version for name in packages for version in [_version(name)] if version},
        "place": place,
        "other": other,
        "free_bytes": shutil.disk_usage(near).free if os.path.isdir(near) else 0,
        "writable": os.access(near, os.W_OK | os.X_OK),
        "keys": {},
        "state": None,
        "running": False,
    }
    if place == "device":
        found["keys"] = _keys(os.path.join(folder, "keys"))
        found["state"] = _state(folder)
        found["running"] = _held(os.path.join(folder, "agent.lock"))
    return found


def lock(folder: str, longest_s: float) -> dict[str, Any]:
    """Hold the folder's lock for as long as stdin is open; make the folder where there is none."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, _LOCK), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return {"held": False}
        _say({"held": True})
        until_s = time.monotonic() + longest_s
        while time.monotonic() < until_s:
            ready = select.select([sys.stdin], [], [], max(0.0, until_s - time.monotonic()))[0]
            if ready and not os.read(sys.stdin.fileno(), 64):
                break
    return {"held": False}


def pin(folder: str, keys: dict[str, str]) -> dict[str, Any]:
    """Pin keys on a device that has none: all of them at once, or none."""
    place = os.path.join(folder, "keys")
    if os.path.isdir(place):
        return {"pinned": []}
    for name in os.listdir(folder):
        if name.startswith(".keys."):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    work = os.path.join(folder, ".keys." + secrets.token_hex(8))
    os.mkdir(work)
    for name, pem in keys.items():
        with open(os.path.join(work, name), "wb") as file:
            file.write(pem.encode("ascii"))
            _settle(file)
    _settle_folder(work)
    os.rename(work, place)
    _settle_folder(folder)
    return {"pinned": sorted(keys)}


def size(folder: str, part: str) -> dict[str, Any]:
    """Say how much of a file has come; what came of others goes."""
    incoming = os.path.join(folder, "incoming")
    os.makedirs(incoming, exist_ok=True)
    for name in os.listdir(incoming):
        if _PART.fullmatch(name) and name != part:
            os.unlink(os.path.join(incoming, name))
    path = os.path.join(incoming, part)
    return {"size": os.path.getsize(path) if os.path.isfile(path) else 0}


def receive(folder: str, part: str, offset: int) -> dict[str, Any]:
    """Write what comes on stdin behind what has come before; what has come stays, however this ends."""
    path = os.path.join(folder, "incoming", part)
    with open(path, "r+b" if os.path.exists(path) else "xb") as file:
        file.seek(offset)
        file.truncate()
        try:
            while True:
                data = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
                if not data:
                    break
                file.write(data)
        finally:
            file.flush()
            os.fsync(file.fileno())
        return {"size": file.tell()}


def place(folder: str, part: str, name: str, sha256: str, papers: dict[str, str]) -> dict[str, Any]:
    """Give a file that has come its name, if it is the one that was sent; its papers come before it.

    Args:
        folder: The device folder.
        part: The hidden file.
        name: What it shall be called.
        sha256: What it must be.
        papers: Other files of ``incoming/``, in base64.
    """
    incoming = os.path.join(folder, "incoming")
    path = os.path.join(incoming, part)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(data)
    if digest.hexdigest() != sha256:
        os.unlink(path)
        return {"placed": False}
    for paper, text in papers.items():
        work = os.path.join(incoming, "." + paper + "." + secrets.token_hex(4))
        with open(work, "wb") as opened:
            opened.write(base64.b64decode(text))
            _settle(opened)
        os.replace(work, os.path.join(incoming, paper))
    os.replace(path, os.path.join(incoming, name))
    _settle_folder(incoming)
    return {"placed": True}


def verdict(folder: str, name: str, digest: str, wait_s: float) -> dict[str, Any]:
    """Wait until the agent has decided on a file, for a while."""
    until_s = time.monotonic() + wait_s
    while True:
        found = _verdict(folder, name, digest)
        if found is not None or time.monotonic() >= until_s:
            return {"report": found}
        time.sleep(0.1)


def run(folder: str, timeout_s: float, code: str) -> dict[str, Any]:
    """Let this machine's agent take one pass over the folder.

    Args:
        folder: The device folder.
        timeout_s: How long it may take.
        code: Where it is started; empty for here.
    """
    command = [sys.executable, "-m", "edge.agent", "run", folder, "--once"]
    if code:
        folder, command[4] = os.path.abspath(folder), os.path.abspath(folder)
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=code or None,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"code": None, "words": ""}
    lines = ended.stderr.decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if not line.startswith("hint: ")] or ["it said nothing"]
    last = lines[-1]
    return {"code": ended.returncode, "words": last[len("error: ") :] if last.startswith("error: ") else last}


def withdraw(folder: str, names: list[str]) -> dict[str, Any]:
    """Take files out of ``incoming/`` that the agent has not taken up."""
    for name in names:
        path = os.path.join(folder, "incoming", name)
        if os.path.lexists(path):
            os.unlink(path)
    return {}


def _verdict(folder: str, name: str, digest: str) -> dict[str, Any] | None:
    gone = not os.path.lexists(os.path.join(folder, "incoming", name))
    state = _state(folder)
    if state is None:  # the agent that makes the state has not come to it yet
        return None
    report = state.get("last_report")
    if isinstance(report, dict) and report.get("file") == name:
        return {**report, "current": state.get("current")}
    if gone and state.get("phase") == "idle":  # the report on a later delivery has replaced ours
        about = {"digest": digest, "current": state.get("current"), "error": ""}
        if state.get("current") == digest:
            return {**about, "status": "confirmed", "detail": "it runs"}
        if digest in state.get("rejected", {}):
            return {**about, "status": "rejected", "detail": state["rejected"][digest]}
    return None


def _place(folder: str) -> tuple[str, str]:
    """Say what stands at the folder's place, and the name of a file that should not be there."""
    if not os.path.lexists(folder):
        return ("absent" if os.path.isdir(os.path.dirname(os.path.abspath(folder))) else "nowhere"), ""
    if not os.path.isdir(folder):
        return "file", ""
    if os.path.isdir(os.path.join(folder, "keys")):
        return "device", ""
    others = sorted(name for name in os.listdir(folder) if not _OURS.fullmatch(name))
    return ("other", others[0]) if others else ("empty", "")


def _keys(folder: str) -> dict[str, str]:
    """Give the keys that count: those of the keyring where there is one, else the pinned ones."""
    ring = os.path.join(folder, "keyring.json")
    if os.path.isfile(ring):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            with open(ring, "rb") as file:
                payload = json.loads(base64.b64decode(json.loads(file.read(_MAX_STATE_BYTES))["payload"]))
            return {str(key)[:16]: str(entry["pem"]) for key, entry in payload["keys"].items()}
    keys = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".pub"):
            with open(os.path.join(folder, name), encoding="ascii", errors="replace") as pinned:
                keys[name] = pinned.read(10_000)
    return keys


def _state(folder: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(folder, "state.json"), "rb") as file:
            state = json.loads(file.read(_MAX_STATE_BYTES).decode("utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _held(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network and FAT file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


ACTIONS = (probe, lock, pin, size, receive, place, verdict, run, withdraw)
"""What can be called."""


def main(call: str) -> None:
    """Do what a call says, ``{"action", "arguments"}`` in base64, and print its answer."""
    asked = json.loads(base64.urlsafe_b64decode(call))
    action = {each.__name__: each for each in ACTIONS}[asked["action"]]
    try:
        _say(action(**asked["arguments"]))
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else ""
        _say({"error": {"errno": error.errno, "reason": error.strerror or str(error), "place": place}})
