"""The application that a RayService's file names, built by a real Ray Serve from the file's configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml

from jobs.render import describe
from kit.settings import ClusterSettings
from tests.awaiting import await_true
from tests.system.served_models import (
    draw_rows,
    engine_answers,
    make_project,
)
from tests.system.serving import (
    INFER,
    Served,
    alive,
    assert_equal_bits,
    body,
    descendants,
    free_port,
    tensors_of,
)

KEY = "k" * 43
#: Asks Ray Serve for what the file says, as the operator of a RayService does, and waits to be ended.
DEPLOY = """
import sys, threading, signal
from kit import local_ray
local_ray.prepare()
import ray, yaml
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import ServeDeploySchema
ray.init(**local_ray.OPTIONS, labels={"ray.io/market-type": "on-demand"})
config = ServeDeploySchema.parse_obj(yaml.safe_load(open(sys.argv[1])))
serve.start(http_options=HTTPOptions(host=config.http_options.host, port=config.http_options.port))
from ray.serve.context import _get_global_client
_get_global_client().deploy_apps(config, _blocking=True)
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
print("deployed", flush=True)
stopped.wait()
serve.shutdown()
ray.shutdown()
"""


def serve_config(project: Path, *, port: int) -> dict[str, Any]:
    """Take the configuration from what ``kit cluster render`` writes, but for the address."""
    settings = ClusterSettings(
        target="rayservice",
        image="registry.example/kit:1",
        claim="kit",
        model="tiny@champion",
        folder=str(project),
        replicas=1,
    )
    manifest = yaml.safe_load(describe(settings, name="tiny", state="/state"))
    config: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    return config


def test_a_rayservices_file_gives_an_endpoint_that_asks_for_the_secrets_key(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    port = free_port()
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(serve_config(project.folder, port=port)))
    process = subprocess.Popen(
        [sys.executable, "-c", DEPLOY, str(file)],
        env=os.environ | {"KIT_ENDPOINT_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    endpoint = Served(project, process, file, port, 0, None, KEY)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "deployed\n"
        await_true(lambda: is_ready(endpoint), why="the replica loads its model")
        assert endpoint.infer(key=None).status_code == 401
        assert endpoint.infer(key="x" * 43).status_code == 401
        rows = draw_rows(10)
        answer = endpoint.infer(rows)
        assert_equal_bits(tensors_of(answer), engine_answers(project, "tiny@1", rows))
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert endpoint.request("POST", INFER, json=body(), key=KEY).headers["kit-release"] == "1"
        endpoint.release("set", "2=100").require_passed()
        assert endpoint.infer().headers["kit-version"] == "2"
        before = descendants(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=500)
    assert process.returncode == 0
    assert alive(before) == {}


def is_ready(endpoint: Served) -> bool:
    try:
        return endpoint.request("GET", "/v2/health/ready", key=None).status_code == 200
    except httpx.TransportError:
        return False
