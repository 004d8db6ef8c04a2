"""Joining and starting a Ray: what cannot be had is said in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import connected
from kit import local_ray
from kit.errors import UnavailableError
from kit.project import Project


def test_a_ray_that_does_not_start_is_said_in_a_sentence(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project: Project = lab.make_project(tmp_path / "blobs")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setitem(local_ray.OPTIONS, "_temp_dir", str(tmp_path / "file" / "ray"))
    with (
        pytest.raises(UnavailableError, match="Ray did not start on this machine"),
        connected(None, project=project),
    ):
        pytest.fail("it started")
