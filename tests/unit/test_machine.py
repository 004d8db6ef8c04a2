"""Rules of the machine's facts: what is named, what is not, and whose memory is counted."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kit.machine import cpu_name, peak_bytes, resident_bytes, this_machine


def test_a_processor_has_the_name_its_maker_gave_it(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Quick  CPU 2\n")
    assert cpu_name(tmp_path) == "Quick CPU 2"


def test_a_processor_without_a_name_is_called_after_its_board(tmp_path: Path) -> None:
    board = tmp_path / "proc" / "device-tree"
    board.mkdir(parents=True)
    (board.parent / "cpuinfo").write_text("processor\t: 0\nCPU part\t: 0xd0b\n")
    (board / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert cpu_name(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0"


def test_a_processor_nobody_names_is_called_after_its_architecture(tmp_path: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("the system itself names it")
    assert cpu_name(tmp_path) in (platform.processor(), platform.machine())


def test_facts_name_the_hardware_and_neither_the_machine_nor_its_user() -> None:
    facts = this_machine().to_json()
    assert facts["arch"] == platform.machine()
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert facts["cpu"]
    assert facts["os"]
    assert socket.gethostname() not in facts.values()


def test_a_process_is_not_charged_the_memory_of_the_one_that_started_it() -> None:
    ballast = bytearray(300_000_000)
    asked = "from kit.machine import peak_bytes; print(peak_bytes())"
    child = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert int(child.stdout) < len(ballast) < peak_bytes()


def test_the_peak_is_at_least_what_is_there_now() -> None:
    assert (resident_bytes() or 0) <= peak_bytes()
