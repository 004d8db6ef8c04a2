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
from kit.settings import EngineName, Settings
from kit.settings.fields import Threads
from serve.endpoint import Replica, ReplicaPlan

if TYPE_CHECKING:
    from ray.serve import Application

KEY_VARIABLE = "KIT_ENDPOINT_KEY"
_KEY_CHARACTERS = 32


class ApplicationSettings(Settings):
    """What ``args`` may hold."""

    project: str = Field(pattern=r"^/", description="Folder of the project on every node.")
    model: str = Field(min_length=1, description="Model version: digits, digits@champion, digits@3.")
    engine: EngineName = Field(default="onnxruntime", description="What runs the model.")
    threads: Threads = Field(default=1, description="Engine threads per replica; 0 is the engine's choice.")
    max_body_mb: float = Field(default=16.0, gt=0, le=1024, description="Largest request body, in MB.")


def build(args: dict[str, Any]) -> Application:
    """Make the application; its replicas verify the model before they load it.

    Args:
        args: See ``ApplicationSettings``.

    Raises:
        InputError: The endpoint's key is missing or too short.
        NotFoundError: The model is not known.
        VerificationError: The model's files or their signature do not hold.
    """
    from ray import serve as ray_serve

    settings = ApplicationSettings.model_validate(args)
    project = Project.open(Path(settings.project))
    record, version = project.open_version(settings.model)
    plan = ReplicaPlan(
        folder=version.folder.resolve(),
        digest=version.digest,
        number=record.number,
        trusted=project.trusted(),
        engine=settings.engine,
        threads=settings.threads,
        max_body_bytes=int(settings.max_body_mb * 1_000_000),
        key_sha256=hashlib.sha256(_key()).hexdigest(),
        local_addresses=frozenset(),
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
