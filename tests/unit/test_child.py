"""Rules of a child process: how it ended is said in words, and nothing of it stays behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from kit.child import run_child


def child(code: str, *, timeout_s: float = 60.0):
    return run_child([sys.executable, "-c", code], folder=Path.cwd(), timeout_s=timeout_s)


def test_the_last_line_is_the_answer_whatever_was_printed_before() -> None:
    ended = child("print('a runtime says hello'); print('{\"a\": 1}')")
    assert (ended.found, ended.trouble) == ({"a": 1}, "")


@pytest.mark.parametrize(
    "code, trouble",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with signal 11 (Segmentation"),
        ("raise ValueError('no such operator')", "crashed: ValueError: no such operator"),
        ("import sys; sys.exit(3)", "crashed: it said nothing"),
        ("print('[1]')", "crashed: it said nothing"),
        ("print('{')", "crashed: it said nothing"),
    ],
)
def test_a_child_that_does_not_answer_says_why(code: str, trouble: str) -> None:
    ended = child(code)
    assert ended.found == {}
    assert ended.trouble.startswith(trouble)


def test_an_answer_counts_even_if_the_child_ends_badly() -> None:
    ended = child('import sys; print(\'{"reason": "slow"}\'); sys.exit(1)')
    assert (ended.found, ended.trouble) == ({"reason": "slow"}, "crashed: it said nothing")


def test_a_child_that_hangs_is_stopped_with_all_it_has_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(inner.pid)); time.sleep(600)"
    )
    assert child(code, timeout_s=5.0).trouble == "did not end within 5 s"
    deadline = time.monotonic() + 60
    while is_running(int(pid.read_text())):
        assert time.monotonic() < deadline


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
