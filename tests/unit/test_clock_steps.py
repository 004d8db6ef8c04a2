"""A machine's clock that is set forward or back while an endpoint answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kit.project import Project
from tests.system.served_models import make_project
from tests.unit.test_replica import Asked, run

HOUR_S = 3600.0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_clock_that_is_set_changes_no_answer_no_limit_and_no_cache(
    project: Project, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    now_s = time.time

    async def check(asked: Asked) -> None:
        assert (await asked.infer("tiny")).status == 200
        monkeypatch.setattr(time, "time", lambda: now_s() + step_s)
        monkeypatch.setattr(time, "time_ns", lambda: int((now_s() + step_s) * 1e9))
        again = await asked.infer("tiny")  # the same row: kept, and still fresh
        assert again.status == 200
        assert await asked.counted('kit_cache_total result="hit"') == 1
        other = await asked.infer("tiny", 1.0, 2.0, 3.0, 4.0)
        assert other.status == 429, "the limit of the client began anew"

    run(
        project,
        check,
        rates={"requests": "2/hour"},
        model={"tiny": {"cache": {"max_mb": 1.0, "ttl_s": 60.0}}},
    )
