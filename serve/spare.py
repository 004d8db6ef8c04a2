"""A process that waits for the next replica: Ray started it ahead, and it has imported everything.

A replica's first second or two go into starting Python and importing. Where the number of replicas may grow,
each replica that has begun asks Ray for one process more, which the next one is then given.

Ray has no public way to ask for that; it is a call of its raylet's own (``PrestartWorkers``). Where a Ray
does not know it, the next replica starts as slowly as without. It knows nothing of models.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from typing import Any

import psutil

from kit.engines import ENGINES
from kit.settings import ServeSettings

PRELOAD = "RAY_preload_python_modules"
"""Ray's variable for what each of its processes imports before it waits for work."""

_MODULES = ("ray.serve._private.replica", "serve.replica")
_KEEP_S = 366 * 24 * 3600
_ASK_S = 10.0
_AFTER_S = 2.0
_logger = logging.getLogger("ray.serve")


def modules(engine: str) -> str:
    """Name what a replica imports, as ``PRELOAD`` wants it.

    Args:
        engine: A key of ``kit.engines.ENGINES``.
    """
    return ",".join((*_MODULES, ENGINES[engine][0]))


def wanted(settings: ServeSettings) -> bool:
    """Say whether a process is kept ready."""
    return settings.spare and settings.max_replicas is not None


async def keep() -> None:
    """Have Ray start a process beside this replica, once the replica's first requests are answered.

    Called in a replica. Nothing is started where one waits already.
    """
    await asyncio.sleep(_AFTER_S)
    await asyncio.to_thread(_keep_one)


def _keep_one() -> None:
    import ray

    raylet = psutil.Process().parent()
    with contextlib.suppress(psutil.Error):
        if raylet is not None and any(_waits(each) for each in raylet.children()):
            return
    try:
        _ask(ray.get_runtime_context().get_node_id())
    except Exception as error:  # private to Ray, so it may change in any way
        _logger.warning("no process is kept ready for the next replica: %s", str(error)[:300])


def _waits(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.cmdline()[:1] == ["ray::IDLE"])
    return False


def _ask(node_id: str) -> None:
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core import generated

    common: Any = importlib.import_module(f"{generated.__name__}.common_pb2")  # made code, without types
    messages: Any = importlib.import_module(f"{generated.__name__}.node_manager_pb2")
    stubs: Any = importlib.import_module(f"{generated.__name__}.node_manager_pb2_grpc")
    environments: Any = importlib.import_module(f"{generated.__name__}.runtime_environment_pb2")

    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's gap
    node = next(each for each in nodes if each["NodeID"] == node_id)
    environment: str = ray.get_runtime_context().get_runtime_env_string()  # type: ignore[no-untyped-call]
    request = messages.PrestartWorkersRequest(
        language=common.PYTHON,
        runtime_env_info=environments.RuntimeEnvInfo(serialized_runtime_env=environment),
        keep_alive_duration_secs=_KEEP_S,
        num_workers=1,
    )
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        stubs.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_ASK_S)
