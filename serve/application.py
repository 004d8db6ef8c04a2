"""The endpoint as an application that Ray Serve builds from a configuration: ``serve.application:build``.

For clusters that deploy by file, such as a RayService of KubeRay. Ray Serve calls ``build`` where it
likes, with the values of ``args``; how many replicas there are and where they run, the file says.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kit.errors import InputError
from kit.project import Project
from kit.project_file import build as build_settings
from kit.settings import Settings
from serve.endpoints import begin, serve_settings
from serve.guards.access import keys_path
from serve.guards.gatekeeper import GuardPlan
from serve.replica import Replica, ReplicaPlan

if TYPE_CHECKING:
    from ray.serve import Application

KEY_VARIABLE = "KIT_ENDPOINT_KEY"
_KEY_CHARACTERS = 32


class ApplicationSettings(Settings):
    """What ``args`` may hold beside the settings of ``[serve]``, which the project's kit.toml has."""

    project: str = Field(pattern=r"^/", description="Folder of the project on every node.")
    models: list[str] = Field(
        default_factory=list, description="Model versions: digits, digits@3; all champions when left out."
    )


def build(args: dict[str, Any]) -> Application:
    """Make the application; its replicas verify each model before they load it.

    Args:
        args: See ``ApplicationSettings``.

    Raises:
        InputError: The endpoint's key is missing or too short.
        NotFoundError: A model is not known.
        VerificationError: A model's files or their signature do not hold.
    """
    from ray import serve as ray_serve

    asked = build_settings(ApplicationSettings, args, where="args")
    project = Project.open(Path(asked.project))
    settings = serve_settings(project, models=tuple(asked.models))
    guards = GuardPlan(
        auth="key",
        open_to_all=False,
        endpoint_sha256=hashlib.sha256(_key()).digest(),
        keys_file=keys_path(project.state),
        jwt=settings.jwt,
        local_addresses=frozenset(),
    )
    plan = ReplicaPlan(
        project=project.folder,
        endpoints=tuple(each.release.endpoint for each in begin(project, settings)),
        trusted=project.trusted(),
        settings=settings,
        guards=guards,
    )
    deployment = ray_serve.deployment(name="endpoint")(ray_serve.ingress()(Replica))
    return deployment.bind(plan)


def _key() -> bytes:
    """Read the endpoint's key, which a Secret puts into the environment.

    Raises:
        InputError: It is missing or too short to be a key.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip().encode()
    if len(key) < _KEY_CHARACTERS:
        raise InputError(
            f"the endpoint's key in {KEY_VARIABLE} has {len(key)} characters",
            hint=f"put at least {_KEY_CHARACTERS} into the Secret that it comes from",
        )
    return key
