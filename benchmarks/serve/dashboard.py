"""The dashboard of serve/watching/dashboard.json with real data: a version released by steps under load.

A real Prometheus watches two replicas while version 2 gets 10, 50 and 100 % and is taken back. Every panel's
expressions are then asked over that time, as Grafana asks them, and drawn where Grafana would draw them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit_endpoint import Endpoint, Place, Setting, running
from reporting import Report, table
from subjects import mlp
from wrk import Target

_PORT, _PROMETHEUS_PORT = 18900, 18990
_CONNECTIONS = 8
_LONGEST_S = 600.0
_STEP_S = 25.0
_RESOLUTION_S = 1
_STEPS = (
    ("10 %", ("set", "1=90", "2=10")),
    ("50 %", ("set", "1=50", "2=50")),
    ("100 %", ("set", "2=100")),
    ("back", ("rollback",)),
)
_DASHBOARD = Path(__file__).resolve().parents[2] / "serve" / "watching" / "dashboard.json"
_VARIABLES = {"$__rate_interval": "5s", "$model": ".+", "$version": ".+"}
_UNITS = {
    "s": (1e3, "ms"),
    "bytes": (1e-6, "MB"),
    "percentunit": (100.0, "%"),
    "reqps": (1.0, "/s"),
    "ops": (1.0, "/s"),
}


def measure_dashboard(given: argparse.Namespace, place: Place) -> Report:
    """Release by steps under load, and draw what Prometheus saw."""
    if shutil.which("prometheus") is None:
        raise SystemExit("there is no prometheus here; apt-get install prometheus")
    setting = Setting((mlp(), mlp(seed=1)), _PORT, flags=("--replicas=2",))
    with running(place, "dashboard", setting) as endpoint, _prometheus(place.folder / "prometheus") as url:
        request = endpoint.request()
        target = Target(endpoint.url, request.file(place.bodies, "dashboard.body"), request.headers)
        began_s = time.time()
        load = target.start(connections=_CONNECTIONS, seconds=_LONGEST_S)
        marks = _release(endpoint)
        found = load.stop()
        ended_s = time.time()
        panels = json.loads(_DASHBOARD.read_text())["panels"]
        series = {panel["id"]: _series(url, panel, began_s=began_s, ended_s=ended_s) for panel in panels}
    picture = place.folder / "dashboard.png"
    _draw(picture, panels, series, marks={title: at_s - began_s for title, at_s in marks.items()})
    failed = found.refused + found.broken
    empty = [panel["title"] for panel in panels if not series[panel["id"]]]
    rows = [[title, f"{at_s - began_s:.0f}"] for title, at_s in marks.items()]
    text = (
        f"{table(['version 2', 'after s'], rows)}\n\n{failed} of {found.requests:,} requests failed. "
        f"Panels without data, because nothing of it happened: {', '.join(empty)}.\n\ndrawn in {picture}"
    )
    facts = {"requests": found.requests, "failed": failed, "empty": empty}
    return Report("dashboard", "The dashboard during a release by steps", facts, text)


def _release(endpoint: Endpoint) -> dict[str, float]:
    """Change the release step by step; gives the moment (Unix time) of each."""
    marks = {}
    time.sleep(_STEP_S)
    for title, words in _STEPS:
        endpoint.release(*words)
        marks[title] = time.time()
        print(f"version 2: {title}", file=sys.stderr, flush=True)
        time.sleep(_STEP_S)
    return marks


@contextlib.contextmanager
def _prometheus(folder: Path) -> Iterator[str]:
    """Run Prometheus on the endpoint with nothing kept from before; gives its address."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = {"targets": [f"127.0.0.1:{_PORT}"]}
    scrape = {"job_name": "kit", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [target]}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    address = f"127.0.0.1:{_PROMETHEUS_PORT}"
    words = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
    with subprocess.Popen([*words, f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"]) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def _series(
    url: str, panel: dict[str, Any], *, began_s: float, ended_s: float
) -> list[tuple[str, list[tuple[float, float]]]]:
    """Ask for what a panel shows; gives each line's name and its points, seconds since the beginning."""
    found = []
    for target in panel["targets"]:
        expression = target["expr"]
        for name, value in _VARIABLES.items():
            expression = expression.replace(name, value)
        asked = urllib.parse.urlencode(
            {"query": expression, "start": began_s, "end": ended_s, "step": _RESOLUTION_S}
        )
        with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}") as response:
            result = json.load(response)["data"]["result"]
        for each in result:
            label = re.sub(
                r"{{(\w+)}}", lambda word, line=each: line["metric"].get(word[1], ""), target["legendFormat"]
            )
            points = [(at_s - began_s, float(value)) for at_s, value in each["values"] if value != "NaN"]
            if points:
                found.append((label or panel["title"], points))
    return found


def _with_gaps(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Split points into times and values, with no value where a series was not there for a while."""
    at_s, values = [], []
    for (at, value), (after, _) in itertools.pairwise([*points, points[-1]]):
        at_s.append(at)
        values.append(value)
        if after - at > 1.5 * _RESOLUTION_S:
            at_s.append(after)
            values.append(math.nan)
    return at_s, values


def _draw(
    path: Path, panels: list[dict[str, Any]], series: dict[int, Any], *, marks: dict[str, float]
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(18, rows * 0.42), layout="none")
    for panel in panels:
        place, lines = panel["gridPos"], series[panel["id"]]
        factor, unit = _UNITS.get(panel["fieldConfig"]["defaults"].get("unit", ""), (1.0, ""))
        box = (
            place["x"] / 24 + 0.03,
            1 - (place["y"] + place["h"]) / rows + 0.012,
            place["w"] / 24 - 0.045,
            place["h"] / rows - 0.024,
        )
        axes = figure.add_axes(box)
        axes.set_title(f"{panel['title']}{f', {unit}' if unit else ''}", fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        if panel["type"] == "stat":
            axes.axis("off")
            value = f"{lines[0][1][-1][1] * factor:,.4g} {unit}" if lines else "no data"
            axes.text(0.0, 0.4, value, fontsize=20, transform=axes.transAxes)
            continue
        for name, points in lines:
            at_s, values = _with_gaps(points)
            axes.plot(at_s, [value * factor for value in values], lw=1.1, label=name)
        for at_s in marks.values():
            axes.axvline(at_s, color="0.75", lw=0.8, zorder=0)
        axes.set_ylim(bottom=0)
        if lines:
            axes.legend(fontsize=6, loc="upper left", ncols=2, frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing of this happened", ha="center", fontsize=8, transform=axes.transAxes)
    figure.savefig(path, dpi=70)
    pyplot.close(figure)
