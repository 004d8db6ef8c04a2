"""Deployments on Ray Serve: which there are, how many replicas each has, and when all of them answer.

A model with needs of its own is a deployment of its own, which Ray finds by the start of the path, so that
clients ask the same address. It knows nothing of requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kit.errors import UnavailableError
from kit.project import Project
from kit.settings import ServeSettings
from kit.settings.serving import ServedModelSettings
from serve.endpoints import replicas_folder
from serve.releases.acks import read_acks
from serve.replica import Replica, ReplicaPlan
from serve.scaling import by_requests

_SHARED = "kit"
_START_TIMEOUT_S = 300.0
_PAUSE_S = 0.05
#: Beyond what waits by our own rules; Ray's own refusals are no answers of the protocol.
_MAX_ONGOING = 1 << 16


def targets(plan: ReplicaPlan, *, logging: Any) -> list[Any]:
    """Make what Ray Serve runs: one deployment for all models, and one for each that wants its own.

    Args:
        plan: Of a replica that serves all of them.
        logging: Ray's logging configuration.
    """
    from ray import serve as ray_serve

    settings = plan.settings
    own = own_models(plan.endpoints, settings)
    shared = tuple(each for each in plan.endpoints if each not in own)
    made = []
    # The shared one is there even without a model: it answers what is about the endpoint as a whole.
    for name, prefix, endpoints in (
        (_SHARED, "/", shared),
        *((f"{_SHARED}-{model}", f"/v2/models/{model}", (model,)) for model in own),
    ):
        needs = settings.model.get(endpoints[0], ServedModelSettings()) if name != _SHARED else None
        deployment = ray_serve.deployment(
            name="endpoint",
            max_ongoing_requests=_MAX_ONGOING,
            graceful_shutdown_timeout_s=20.0,
            # More replicas than cores is the operator's choice, not a deadlock.
            ray_actor_options={"num_cpus": 0, **({"num_gpus": needs.gpus} if needs and needs.gpus else {})},
            logging_config=logging,
            **_scale(settings, needs),
        )(ray_serve.ingress()(Replica))
        hosted = replace(plan, endpoints=endpoints, others=() if needs else own, leads=needs is None)
        made.append(ray_serve.RunTarget(deployment.bind(hosted), name=name, route_prefix=prefix))
    return made


def own_models(endpoints: Sequence[str], settings: ServeSettings) -> tuple[str, ...]:
    """Name the models that run in deployments of their own."""
    return tuple(each for each in endpoints if each in settings.model and settings.model[each].own_deployment)


def run(
    plan: ReplicaPlan,
    *,
    logging: Any,
    check: Callable[[], None],
    pause: Callable[[float], Any],
    answers: Callable[[], bool],
) -> None:
    """Deploy, and wait until everything answers.

    Args:
        plan: Of a replica that serves all models.
        logging: Ray's logging configuration.
        check: Raises when somebody said stop.
        pause: Waits so many seconds, less when somebody says stop.
        answers: Says whether the address answers.

    Raises:
        UnavailableError: It did not answer in time, or a replica failed.
    """
    from ray import serve as ray_serve

    made = targets(plan, logging=logging)
    began_ns = time.time_ns()
    ray_serve.run_many(made, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        check()
        states = ray_serve.status().applications
        for state in states.values():
            if state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise UnavailableError(f"the endpoint did not start: {cause(state.message)}")
        failure = _failure(plan, since_ns=began_ns)
        if failure:  # Ray would try twice more, for a minute, and not say why
            raise UnavailableError(f"the endpoint did not start: {failure}")
        running = all(target.name in states and states[target.name].status == "RUNNING" for target in made)
        if running and answers():
            return
        if time.monotonic() > deadline_s:
            raise UnavailableError(
                f"the endpoint did not answer within {_START_TIMEOUT_S:.0f} s", hint="run: kit doctor"
            )
        pause(_PAUSE_S)


def _failure(plan: ReplicaPlan, *, since_ns: int) -> str:
    """Read in a replica's file why it cannot serve a model at all; "" while none says so."""
    for ack in read_acks(replicas_folder(Project.open(plan.project).state)):
        for name, endpoint in ack.endpoints.items() if ack.beat_ns >= since_ns else ():
            if endpoint.failed and not endpoint.in_force and not endpoint.loading:
                return f"model {name!r} cannot be served: {endpoint.reason}"
    return ""


def cause(message: str) -> str:
    """Take the last line of a replica's traceback, which names the error."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "Ray Serve gives no reason"


def _scale(settings: ServeSettings, needs: ServedModelSettings | None) -> dict[str, Any]:
    """Say how many replicas a deployment has."""
    if needs is not None and needs.replicas is not None:
        return {"num_replicas": needs.replicas}
    if settings.max_replicas is None:
        return {"num_replicas": settings.replicas}
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    return {
        "autoscaling_config": AutoscalingConfig(
            policy=AutoscalingPolicy(policy_function=by_requests),  # type: ignore[no-untyped-call]  # Ray's gap
            min_replicas=settings.replicas,
            initial_replicas=max(settings.replicas, 1),
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_in_flight,
            upscale_delay_s=2.0,
            downscale_delay_s=settings.scale_down_s,
            # A request that finds no replica waits for the next time the proxy tells how many there are.
            metrics_interval_s=0.1 if settings.replicas == 0 else 1.0,
            look_back_period_s=3.0,
        )
    }
