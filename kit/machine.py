"""What this machine is, and how much memory this process takes of it.

Names the hardware and the system, never the machine's name or its user. Runs on a device: standard library
only.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ROOT = Path("/")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on.

    Attributes:
        cpu: The processor's name, or the board's where the processor has none.
        arch: Its instruction set, as Python names it.
        cores: Cores this process may use.
        os: The system and its version.
        python: Version of the interpreter.
    """

    cpu: str
    arch: str
    cores: int
    os: str
    python: str

    def to_json(self) -> dict[str, Any]:
        """Give the facts as JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """Look at this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        cpu=cpu_name(_ROOT),
        arch=platform.machine(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        os=_system(_ROOT),
        python=platform.python_version(),
    )


def cpu_name(root: Path) -> str:
    """Name the processor, or the board: ARM kernels give processors numbers and no name.

    Args:
        root: The root folder of the system.
    """
    for line in _read(root / "proc" / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    board = _read(root / "proc" / "device-tree" / "model").strip("\0 \n")
    if board:
        return board
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        ended = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False)
        if ended.stdout.strip():
            return ended.stdout.strip()
    return platform.processor() or platform.machine()


def resident_bytes(pid: int | None = None) -> int | None:
    """Say how much of a process is in memory now.

    Args:
        pid: The process; None asks for this one.

    Returns:
        Bytes; None where the system does not tell, or the process is gone.
    """
    try:
        with open(f"/proc/{pid or 'self'}/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return None


def peak_bytes() -> int:
    """Say how much of this process has been in memory at most.

    Linux hands ``ru_maxrss`` on from the process that started this one: a child of an exporter that holds
    torch would be said to hold it too. ``VmHWM`` begins anew with each program.
    """
    for line in _read(_STATUS).splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _system(root: Path) -> str:
    for line in _read(root / "etc" / "os-release").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'")
    return f"{platform.system()} {platform.release()}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
