"""Ask a child process: run one command, and read the JSON object it prints last.

A runtime can crash or hang whoever loads a file into it, and what a process has loaded before changes what
it measures; so a trial and a gauge each run in a process of their own. It knows nothing of what is asked.
Runs on a device: standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CODE_FOLDER = Path(__file__).resolve().parents[1]
"""Where a child of this interpreter starts, so that it imports this kit and nothing of the caller's."""

_MAX_WORDS = 300


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        found: The object it printed last; empty when it printed none.
        trouble: What went wrong, as the end of a sentence; empty when it ended with 0 and an object.
    """

    found: dict[str, Any]
    trouble: str


def run_child(command: Sequence[str], *, folder: Path, timeout_s: float) -> Ended:
    """Run a command and wait for it; nothing of it is left running.

    Args:
        command: The program and its arguments.
        folder: Where it is started.
        timeout_s: How long it may take before it is killed, and with it what it has started.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Ended({}, f"did not end within {timeout_s:g} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    found = _last_object(output)
    if process.returncode < 0:
        number = -process.returncode
        return Ended(found, f"crashed with signal {number} ({signal.strsignal(number)})")
    if process.returncode != 0 or not found:
        last_words = errors.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        return Ended(found, f"crashed: {last_words[0][:_MAX_WORDS]}")
    return Ended(found, "")


def _last_object(output: bytes) -> dict[str, Any]:
    """Read the last line a child printed; runtimes may have printed before it."""
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
