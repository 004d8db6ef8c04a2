"""Dashboard and alerts ask for metrics and labels that exist; a real Prometheus has data for every panel."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import serve.watching
from serve.releases.comparison import Counts
from serve.watching.exposition import CONTENT_TYPE, Publisher, merge
from serve.watching.metrics import FAMILIES, Metrics
from serve.watching.outcomes import ANSWERED, FAILED, OUTCOMES

FOLDER = Path(serve.watching.__file__).parent
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

LABELS = {
    *("model", "version", "transport", "outcome", "result", "step", "endpoint", "deployment", "replica"),
    *("kind", "le", "__name__"),
}


def dashboard_expressions() -> list[str]:
    panels = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [
        *panels,
        *(each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"),
        *(each["expr"] for each in DASHBOARD["annotations"]["list"]),
    ]


def alert_expressions() -> list[str]:
    return [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"(?<![\w:])(?:kit|process)_[a-z_]+", expression))


def series() -> Iterator[str]:
    for family in FAMILIES:
        if family.kind == "histogram":
            yield from (f"{family.name}_{suffix}" for suffix in ("bucket", "sum", "count"))
        else:
            yield family.name


@pytest.mark.parametrize("expression", [*dashboard_expressions(), *alert_expressions()])
def test_every_metric_and_label_that_is_asked_for_exists(expression: str) -> None:
    assert metrics_in(expression) <= set(series())
    for names in re.findall(r"(?:by|on|group_left) \(([^)]*)\)", expression):
        assert {name.strip() for name in names.split(",") if name.strip()} <= LABELS
    for name in re.findall(r'[{,]\s*(\w+)\s*(?:=~|!~|!=|=)"', expression):
        assert name in LABELS


def test_every_outcome_that_an_expression_names_exists() -> None:
    named = re.findall(
        r'outcome(?:=~|!~)"([^"]*)"', "\n".join([*dashboard_expressions(), *alert_expressions()])
    )
    assert named
    for each in named:
        assert set(each.split("|")) <= set(OUTCOMES)
    assert "|".join(FAILED) in named
    assert "|".join((*ANSWERED, *FAILED)) in named


def test_every_metric_is_shown_somewhere() -> None:
    shown = set().union(*(metrics_in(each) for each in [*dashboard_expressions(), *alert_expressions()]))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {family.name for family in FAMILIES} - shown == {"process_start_time_seconds"}


def test_grafana_can_import_it() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "model", "version"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
def test_prometheus_can_read_the_dashboards_expressions(tmp_path: Path) -> None:
    expressions = [each for each in dashboard_expressions() if not each.startswith("label_values")]
    rules = [
        {"record": f"dashboard:{number}", "expr": each.replace("$__rate_interval", "1m")}
        for number, each in enumerate(expressions)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def ask(url: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}{path}?{query}", timeout=10) as response:
        return json.load(response)["data"]


@contextlib.contextmanager
def scraped(folder: Path) -> Iterator[str]:
    """Answer /metrics from a folder of replicas; gives host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = merge(folder)
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def prometheus(folder: Path, *, target: str) -> Iterator[str]:
    """Run Prometheus with our rules on one target; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(FOLDER / "alerts.yaml")],
        "scrape_configs": [{"job_name": "kit", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"),
        *(f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"),
    ]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def live(metrics: Metrics, *, chance: random.Random) -> None:
    """Let a replica see a little of everything."""
    for number, latency_s in ((3, 0.001), (4, 0.004)):
        version = metrics.of("digits", str(number))
        for _ in range(20):
            version.answered("ok", chance.expovariate(1 / latency_s), transport="http")
        version.answered(chance.choice(FAILED), 0.1, transport="http")
        version.answered("invalid", 0.1, transport="grpc")
        version.batch(5, 20, latency_s, 0.0005)
        version.cached(chance.choice(("hit", "miss")))
    metrics.of("", "").answered("unauthorized", 0.0001, transport="http")
    metrics.rate_limited("digits")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus: apt-get install prometheus")
def test_a_real_prometheus_has_data_for_every_panel(tmp_path: Path) -> None:
    replicas = {name: Metrics(replicas_wanted=2) for name in ("a", "b")}
    publishers = [
        Publisher(each.render, folder=tmp_path / "replicas", replica=name) for name, each in replicas.items()
    ]
    for each in replicas.values():
        each.release("digits", sequence=4, shares={"3": 0.9, "4": 0.1}, failed=lambda: 5)
        each.watch_dropped("log", count=lambda: 0)
        for number in ("3", "4"):
            version = each.of("digits", number)
            version.loaded({"open": 0.1, "verify": 0.2}, n_bytes=1_000_000)
            version.load_failed()
            version.watch_shadow(lambda: Counts(compared=5))
            version.watch(queue_rows=lambda: 4, queue_limit_rows=2048, breaker=lambda: "closed")
    chance = random.Random(0)
    for publisher in publishers:
        publisher.start()
    try:
        with scraped(tmp_path / "replicas") as target, prometheus(tmp_path, target=target) as url:
            expressions = {each for panel in PANELS for each in (one["expr"] for one in panel["targets"])}
            until_s = time.monotonic() + 60
            while expressions and time.monotonic() < until_s:
                for each in replicas.values():
                    live(each, chance=chance)
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    expressions = {each for each in expressions if not has_data(url, each)}
                time.sleep(0.25)
            assert not expressions
            rules = [rule for group in ask(url, "/api/v1/rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} == {"ok"}
    finally:
        for publisher in publishers:
            publisher.close()


def has_data(url: str, expression: str) -> bool:
    """Ask as Grafana would with everything chosen: for a number that is one."""
    for variable, value in (("$__rate_interval", "5s"), ("$model", ".+"), ("$version", ".+")):
        expression = expression.replace(variable, value)
    found = ask(url, "/api/v1/query", query=expression)["result"]
    return any(each["value"][1] != "NaN" for each in found)
