"""A disk that is really full: nothing half-written is ever visible, and the sentence says so."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kit.errors import UnavailableError
from kit.files import write_atomic
from kit.init import init
from kit.model_version import Parts, write_model_version
from kit.registry import Registry
from kit.settings import InitSettings


def test_a_file_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    path = small_disk / "record.json"
    write_atomic(path, b"old")
    with pytest.raises(UnavailableError, match=f"the disk that holds {path} is full"):
        write_atomic(path, bytes(512 << 10))
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["record.json"]


def test_a_version_that_does_not_fit_is_never_seen(
    small_disk: Path, tiny_parts: Parts, signing_key: Path
) -> None:
    parts = replace(tiny_parts, onnx=bytes(512 << 10))
    with pytest.raises(UnavailableError, match="is full"):
        write_model_version(parts, folder=small_disk / "version", key=signing_key)
    assert os.listdir(small_disk) == []


def test_a_project_that_does_not_fit_is_never_seen(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(232 << 10))
    with pytest.raises(UnavailableError, match="is full"):
        init(InitSettings(name=str(small_disk / "digits")))
    assert os.listdir(small_disk) == ["filler"]


def test_a_registry_on_a_full_disk_says_so_and_keeps_what_it_had(small_disk: Path) -> None:
    registry = Registry(small_disk / "registry.db")
    registry.register("digits", digest="a" * 64, uri="u", summary={})
    (small_disk / "filler").write_bytes(bytes(256 << 10)[: _free_bytes(small_disk)])
    with pytest.raises(UnavailableError, match=r"registry\.db cannot be used"):
        registry.register("digits", digest="b" * 64, uri="u", summary={})
    (small_disk / "filler").unlink()
    assert [record.number for record in registry.versions()] == [1]
    assert registry.register("digits", digest="b" * 64, uri="u", summary={}).number == 2
    registry.verify_log()


if os.geteuid() != 0:

    def test_a_user_runs_all_of_these_as_root_of_a_namespace(tmp_path: Path) -> None:
        inside = ["unshare", "--user", "--map-root-user", "--mount"]
        pytest_line = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", __file__]
        if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
            pytest.skip("mounting a small tmpfs is not permitted here")
        ran = subprocess.run(
            [*inside, *pytest_line, f"--basetemp={tmp_path / 'inside'}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        if "skipped" in ran.stdout:
            pytest.skip("mounting a small tmpfs is not permitted here")


def _free_bytes(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_bsize
