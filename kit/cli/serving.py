"""``kit serve``: the one command that reports before it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kit.project import Project
from kit.settings import ServeSettings

if TYPE_CHECKING:
    from serve.serve import ServeResult, ServeStatus


def serve(
    project: Project, settings: ServeSettings, *, announce: Callable[[str], None]
) -> ServeResult | None:
    """Serve until interrupted, announcing where as soon as the endpoint answers."""
    from serve.serve import serve as run

    return run(project, settings, on_ready=lambda status: announce(_announcement(status)))


def _announcement(status: ServeStatus) -> str:
    lines = [
        f"{status.model}@{status.version} answers at {status.url} after {status.start_s:.1f} s "
        f"({status.replicas} x {status.engine}, {status.ingress} ingress)"
    ]
    if status.key_file:
        lines.append(f"key: {status.key_file}")
    lines.append(f"ask it: kit query {status.model} --input TABLE --url {status.url}    stop it: Ctrl-C")
    return "\n".join(lines)
