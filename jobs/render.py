"""Describe a cluster in a file: for Ray on AWS, or for KubeRay as a RayJob or a RayService.

Fills the templates in ``kit/templates/cluster`` with a project's settings; the same settings give the
same bytes. Talks to no cloud and no cluster, and knows nothing of what runs there but its command line.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.submit import COMMANDS, value_of
from kit import __version__
from kit.errors import InputError, MissingDependencyError, SettingsError, install_line, nearest
from kit.files import write_atomic
from kit.project import Project
from kit.settings import ClusterSettings
from kit.settings.batch import CLUSTER_NAME_PATTERN, n_cpus_of

_TEMPLATES = Path(__file__).parents[1] / "kit" / "templates" / "cluster"
#: What the nodes get; pyproject.toml pins the same.
RAY_VERSION = "2.60.0"
TORCH_VERSION = "2.13.0"
_ENVIRONMENT = "/opt/kit"
_UBUNTU = "resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
#: How a node of Kubernetes says which market it is from: key, then the values for spot and on-demand.
_MARKETS = {
    "karpenter": ("karpenter.sh/capacity-type", "spot", "on-demand"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT", "ON_DEMAND"),
    "label": ("ray.io/market-type", "spot", "on-demand"),
}


@dataclass(frozen=True)
class ClusterResult:
    """What was written.

    Attributes:
        target: What it describes.
        path: The file, absolute; None where the text is to be shown.
        text: The YAML.
    """

    target: str
    path: str | None
    text: str


def cluster(project: Project, settings: ClusterSettings) -> ClusterResult:
    """Write the description; see the module.

    Raises:
        InputError: The project, or the command, cannot run on such a cluster.
        MissingDependencyError: The template engine is not installed.
    """
    state = project.settings.project.state
    text = describe(settings, name=settings.name or project.name, state=state)
    if settings.output is not None:
        write_atomic(Path(settings.output), text.encode())
    return ClusterResult(settings.target, settings.output, text)


def describe(settings: ClusterSettings, *, name: str, state: str) -> str:
    """Give the description of a cluster as YAML.

    Args:
        settings: Of the cluster.
        name: What it is called.
        state: Where the project keeps its state, as kit.toml has it.

    Raises:
        InputError: The name, the state or the command is not possible there.
        MissingDependencyError: The template engine is not installed.
    """
    _check_name(name)
    values = _aws(settings) if settings.target == "aws" else _kuberay(settings, state=state)
    template = _environment().get_template(f"{settings.target}.yaml.j2")
    given = settings.model_dump()
    return str(template.render({**given, **values, "name": name, "name_of": name}))


def _check_name(name: str) -> None:
    import re

    if not re.fullmatch(CLUSTER_NAME_PATTERN, name):
        raise SettingsError(
            f"{name!r} cannot be the name of a cluster",
            hint="give one of lower-case letters, digits and dashes that starts with a letter: --name",
        )


def _aws(settings: ClusterSettings) -> dict[str, Any]:
    python = settings.python or f"{_ENVIRONMENT}/bin/python"
    if not python.startswith("/") or not python.endswith("/bin/python"):
        raise SettingsError(
            f"python = {python!r} is not the interpreter of an environment",
            hint="name its absolute path, which ends in /bin/python",
        )
    wheel = settings.wheel
    return {
        "zones": [settings.region + zone for zone in settings.zones],
        "image": settings.image or _UBUNTU,
        "python": python,
        "environment": python.removesuffix("/bin/python"),
        "head": _machine(settings.head),
        "spot": [
            {**_machine(each), "priority": 10 * (len(settings.spot) - number)}
            for number, each in enumerate(settings.spot)
        ],
        "on_demand": _machine(settings.on_demand),
        "wheel_name": Path(wheel).name if wheel else None,
        "version": __version__,
        "torch": TORCH_VERSION,
    }


def _machine(instance: str) -> dict[str, Any]:
    return {"type": instance, "cpus": n_cpus_of(instance), "name": f"spot-{instance.replace('.', '-')}"}


def _kuberay(settings: ClusterSettings, *, state: str) -> dict[str, Any]:
    if not Path(state).is_absolute():
        raise InputError(
            f"a pod cannot see the project's state, {state!r} in its folder",
            hint="set state in [project] to an absolute path; the claim is mounted there",
        )
    key, spot, on_demand = _MARKETS[settings.market]
    python = settings.python or "python"
    return {
        "ray": RAY_VERSION,
        "state": state,
        "python": python,
        "selector": {"spot": {key: spot}, "on-demand": {key: on_demand}},
        "toleration": {"key": key, "operator": "Equal", "value": spot, "effect": "NoSchedule"},
        "entrypoint": _entrypoint(settings, python=python) if settings.command else None,
        "model": settings.model if settings.target == "rayservice" else None,
    }


def _entrypoint(settings: ClusterSettings, *, python: str) -> str:
    """Give the command line of the job; refuse what a job cannot do.

    Raises:
        InputError: It is no command that runs as a job, or names a place that a pod does not have.
    """
    try:
        name, *words = shlex.split(settings.command or "")
    except ValueError as error:
        raise InputError(f"command = {settings.command!r} cannot be read: {error}") from error
    if name not in COMMANDS:
        raise InputError(f"{name!r} cannot run as a job", hint=nearest(name, COMMANDS))
    for flag in ("address", "project"):
        if value_of(words, flag) is not None:
            raise InputError(f"command names --{flag}, which the cluster knows", hint=f"leave --{flag} out")
    for flag in COMMANDS[name]:
        value = value_of(words, flag)
        if value is not None and "://" not in value and not Path(value).is_absolute():
            raise InputError(
                f"the {flag} {value!r} would lie in the pod and vanish with it",
                hint="name an s3:// address, or an absolute path on the claim",
            )
    return shlex.join([python, "-m", "kit", name, *words, "--project", settings.folder])


def _yaml(value: str | Mapping[str, Any]) -> str:
    """Write a value as YAML on one line; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "describing a cluster needs jinja2, which is not installed", hint=install_line("cluster")
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=False,  # the output is YAML; what a user gave is quoted by the filter
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["y"] = _yaml
    return environment
