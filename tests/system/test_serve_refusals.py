"""What ``kit serve`` refuses before Ray starts, and what ``kit query`` says of an endpoint."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from kit.errors import InputError, KitError, NotFoundError, UnavailableError
from kit.project import Project
from kit.query import query
from kit.settings import QuerySettings, ServeSettings
from tests.system.credentials import write_certificate
from tests.system.served_models import CLASSES, COLUMNS, ONE_ROW, draw_rows
from tests.system.serving import Served, free_port, kit, tensors_of


def objects(rows: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows]


def test_query_shows_class_names_for_the_rows_of_a_table(served: Served, tmp_path: Path) -> None:
    rows = draw_rows(300, seed=3)
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({**row, "y": "low"}) + "\n" for row in objects(rows)))
    result = query(served.project, QuerySettings(model="tiny", input=str(table), url=served.url, rows=290))
    expected = tensors_of(served.infer(rows[:290]))
    assert result.columns == ("row", "label", "probability")
    assert [row[1] for row in result.rows] == [CLASSES[index] for index in expected["label"]]
    assert [row[2] for row in result.rows] == expected["probabilities"].max(axis=1).tolist()
    assert result.version == "1"


def test_query_says_what_to_do_about_each_failure(served: Served, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps(objects(ONE_ROW)[0]) + "\n")
    wrong = tmp_path / "key"
    wrong.write_text("not-the-key")
    settings = QuerySettings(model="tiny", input=str(table), url=served.url)
    with pytest.raises(InputError) as refused:
        query(served.project, settings.model_copy(update={"api_key": str(wrong)}))
    assert "--api-key" in str(refused.value.hint)
    with pytest.raises(NotFoundError, match="not served here"):
        query(served.project, settings.model_copy(update={"model": "other"}))
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError, match=nowhere) as silent:
        query(served.project, settings.model_copy(update={"url": nowhere}))
    assert "kit serve" in str(silent.value.hint)


def refusal(project: Project, *models: str, **settings: Any) -> KitError:
    """Have ``serve`` refuse in this process, where a Ray that was started would be seen."""
    import ray

    from serve.serve import serve

    asked = project.command("serve", ServeSettings, {"models": models, "port": free_port(), **settings})
    with pytest.raises(KitError) as refused:
        serve(project, asked, on_ready=lambda status: pytest.fail("it started"))
    assert not ray.is_initialized()
    assert "ray.serve" not in sys.modules
    return refused.value


def test_what_cannot_be_served_is_refused_before_ray_starts(served: Served, tmp_path: Path) -> None:
    project = served.project
    both = ("tiny", "twin")
    assert "is taken by another process" in refusal(project, *both, port=served.port).message
    assert "is taken by another process" in refusal(project, *both, grpc_port=served.grpc_port).message
    releases = served.state / "releases"
    before = sorted(releases.rglob("*.json"))
    assert "tyni" in refusal(project, "tyni", "twin").message
    assert "named twice" in refusal(project, "tiny", "tiny@2", "twin").message
    assert "named twice" in refusal(project, "tiny@2", "tiny@3", "twin").message
    assert "not served" in refusal(project, "tiny").message  # [serve.model.twin] would be about nothing
    cert, key = write_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = write_certificate(tmp_path / "other")
    assert "cannot be used" in refusal(project, *both, tls_cert=str(cert), tls_key=str(other)).message
    assert (
        "cannot be used" in refusal(project, *both, tls_cert=str(tmp_path / "none"), tls_key=str(key)).message
    )
    assert sorted(releases.rglob("*.json")) == before  # nor was any traffic changed


def test_a_tampered_model_is_refused_before_ray_starts(served: Served, tmp_path: Path) -> None:
    shutil.copytree(served.project.folder, tmp_path / "copy")
    project = Project.open(tmp_path / "copy")
    model = project.store().fetch(project.registry().resolve("tiny").digest) / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(bytes(data))
    assert "model.onnx" in refusal(project, "tiny", "twin").message


def test_the_command_refuses_with_a_sentence_and_a_code(served: Served) -> None:
    both = ("serve", "tiny", "twin")
    assert "is taken" in kit(served.project, *both, f"--port={served.port}", code=6)
    assert "open_to_all" in kit(served.project, *both, "--host=0.0.0.0", "--auth=none", code=2)
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"{served.url}/v2/health/live").status_code == 200
