"""``kit serve``: serve until interrupted, show what an endpoint does, or advise on what to serve with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kit.errors import InputError
from kit.project import Project
from kit.settings import ServeSettings

if TYPE_CHECKING:
    from serve.advise import Advice
    from serve.serve import ServeResult, ServeStatus
    from serve.watching.status import EndpointStatus

#: The word that stands where a model would. A model of that name is served as ``status@champion``.
STATUS = "status"


def serve(
    project: Project, settings: ServeSettings, *, announce: Callable[[str], None]
) -> ServeResult | EndpointStatus | Advice | None:
    """Serve until interrupted, announcing where as soon as the endpoint answers; or show, or advise.

    Raises:
        InputError: A model stands beside ``status``, or not one model beside ``--advise``.
        KitError: See ``serve.serve.serve``.
    """
    if STATUS in settings.models:
        if len(settings.models) > 1:
            raise InputError("status shows the whole endpoint", hint="run: kit serve status")
        from serve.watching.status import status

        return status(project.state)
    if settings.advise:
        if len(settings.models) != 1:
            raise InputError("advice is about one model", hint="run: kit serve MODEL --advise")
        from serve.advise import advise

        version = project.open_version(settings.models[0])[1]
        return advise(version, target_ms=settings.target_ms)
    from serve.serve import serve as run

    return run(project, settings, on_ready=lambda status: announce(_announcement(status)))


def _announcement(status: ServeStatus) -> str:
    first = status.models[0]
    models = ", ".join(f"{each.model}@{each.version}" for each in status.models)
    places = status.url + (f" and, for gRPC, at {status.grpc}" if status.grpc else "")
    lines = [
        f"{models} answers at {places} after {status.start_s:.1f} s "
        f"({status.replicas} x {status.engine}, {status.ingress} ingress)"
    ]
    if status.key_file:
        lines.append(f"key: {status.key_file}")
    lines.append(f"ask it: kit query {first.model} --input TABLE --url {status.url}    stop it: Ctrl-C")
    return "\n".join(lines)
