"""How a Ray of our own on this machine is started; ``jobs`` and ``serve`` start it alike.

Ray is imported when it is started, after ``prepare``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from kit.errors import UnavailableError

#: Read by Ray when it is imported, so set before.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_worker_niceness": "0",  # Ray runs workers at nice 15; endpoint 5547 -> 8048 requests/s without
    # Two pages of metrics that would listen on every address and ask nobody for a key. Ray has no switch
    # for them; with an impossible port it notes that they did not start and goes on.
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}

#: Arguments of ``ray.init``. The third page of metrics does have a switch.
OPTIONS: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "_system_config": {"enable_metrics_collection": False},
}


_TOO_SLOW = "timed out during startup"


def prepare() -> None:
    """Set the environment; what an operator has set already stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start() -> None:
    """Start a Ray of our own on this machine.

    Ray gives its processes 30 s, a number it lets nobody set. A busy machine of two cores takes longer the
    first time, when everything is read from the disk, and so it is started a second time.

    Raises:
        UnavailableError: It did not start.
    """
    import ray

    try:
        ray.init(**OPTIONS)
        return
    except Exception as error:  # Ray reports a failed start in many shapes, a bare Exception among them
        if _TOO_SLOW not in str(error):
            raise _failed(error) from error
    try:
        ray.init(**OPTIONS)
    except Exception as error:  # as above
        raise _failed(error) from error


def _failed(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"Ray did not start on this machine: {str(error)[:300]}",
        hint="run it again when the machine is less busy, or: kit doctor",
    )
