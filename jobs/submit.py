"""Run train, tune, compress or predict as a job on a Ray cluster, and follow its log.

Ships the project and the kit through the Ray Jobs API and runs the very command there. Knows
nothing of what the command's settings mean, apart from the places that lie on this machine;
what they must be is checked where they are parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cluster import is_local, shipped, show_token
from kit.errors import (
    InputError,
    MissingDependencyError,
    NotFoundError,
    UnavailableError,
    install_line,
    nearest,
)
from kit.project import Project
from kit.settings import SubmitSettings

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

_log = logging.getLogger("kit")
_job_log = logging.getLogger("kit.job")

#: Commands that may run as a job, and the flags of each whose value is a place that is read or
#: written; what lies on this machine is made absolute.
COMMANDS: dict[str, dict[str, str]] = {
    "train": {},
    "tune": {"storage": "written"},
    "compress": {},
    "predict": {"input": "read", "output": "written"},
}
_POLL_S = 0.2
_START_HINT = "start it (ray up ray-cluster.yaml; ray dashboard ray-cluster.yaml), or correct --address"
_TOKEN_HINT = "set RAY_AUTH_TOKEN to the cluster's token, or write it to ~/.ray/auth_token"


@dataclass(frozen=True)
class SubmitResult:
    """Where a job is, or how it ended.

    Attributes:
        job_id: Its id on the cluster.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        address: The cluster's dashboard.
        exit_code: The command's own, 0 while it runs, 1 when it ended without one.
    """

    job_id: str
    status: str
    address: str
    exit_code: int


def submit(project: Project, settings: SubmitSettings) -> SubmitResult:
    """Start a job and follow it, or follow one that was started before; see the module.

    The job's log lines go to the logger ``kit.job``. Whoever stops following leaves the job
    running.

    Raises:
        InputError: The command cannot run as a job, or names a place the cluster cannot see.
        NotFoundError: The cluster does not know the job to attach to.
        UnavailableError: The cluster does not answer in time, refuses, or the connection is lost.
        KeyboardInterrupt: The user stopped following.
    """
    if settings.attach and settings.command:
        raise InputError(
            f"--attach {settings.attach} follows a job, but a command was given as well",
            hint="give one of them",
        )
    runtime_env, entrypoint = ({}, "") if settings.attach else _planned(project, settings)
    client = _connect(settings.address, timeout_s=settings.timeout_s)
    if settings.attach:
        job_id = settings.attach
        _details(client, job_id)
    else:
        with _reached(settings.address):
            job_id = str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
        _log.info("submitted %s to %s", job_id, settings.address)
    if settings.wait:
        _follow(client, job_id, settings=settings)
    details = _details(client, job_id)
    return SubmitResult(job_id, str(details.status), settings.address, _exit_code(details))


def _planned(project: Project, settings: SubmitSettings) -> tuple[dict[str, object], str]:
    """Decide what is shipped and what is run; refuse what a job cannot do."""
    if not settings.command:
        raise InputError("no command to submit", hint="write it after --: kit submit -- train")
    name, *words = settings.command
    if name not in COMMANDS:
        raise InputError(f"{name!r} cannot run as a job", hint=nearest(name, COMMANDS))
    from_file = project.settings.commands.get(name, {})
    for flag, why in (
        ("address", "a job runs on the cluster it is submitted to"),
        ("project", "a job runs the project it is submitted from"),
    ):
        if flag in from_file or _value(words, flag) is not None:
            raise InputError(f"{name} names --{flag}, but {why}", hint=f"leave {flag} out of {name}")
    local = is_local(settings.address)
    _check_shared(project, name, local=local)
    for flag, use in COMMANDS[name].items():
        typed = _value(words, flag)
        value = typed or from_file.get(flag)
        if value is None or "://" in value:
            continue
        place = os.path.abspath(Path(typed).expanduser()) if typed else project.locate(value)
        if local:
            words = _with_value(words, flag, place)
        elif use == "read" and not Path(value).is_absolute() and place != project.locate(value):
            raise InputError(
                f"the {flag} {value!r} means {place}, which does not travel with the project",
                hint="name an s3:// address, or type a path of the project in the project's folder",
            )
        elif use == "written" and not Path(value).is_absolute():
            raise InputError(
                f"the {flag} {value!r} would lie in the job's own copy of the project and vanish with it",
                hint="name an absolute path of a shared folder, or s3://bucket/prefix",
            )
    interpreter = settings.python or (sys.executable if local else None)
    if interpreter is None:
        raise InputError(
            f"which Python has the kit on the cluster at {settings.address} is not known",
            hint="name it: --python /opt/kit/bin/python, or python in [submit] of kit.toml",
        )
    entrypoint = shlex.join([interpreter, "-m", "kit", name, *words])
    return shipped(project, state=project.state), entrypoint


def _check_shared(project: Project, name: str, *, local: bool) -> None:
    """Refuse places the job could not reach, or would lose with its copy of the project."""
    settings = project.settings
    if not local and not Path(settings.project.state).is_absolute():
        raise InputError(
            f"the cluster cannot see the project's state, {settings.project.state!r} on this machine",
            hint="set state in [project] to an absolute path of a shared folder, and uri in [store] to it "
            'or to "s3://bucket/prefix"',
        )
    store = settings.store.uri
    if store is not None and "://" not in store and not Path(store).expanduser().is_absolute():
        raise InputError(
            f"the store {store!r} is relative, and would lie in the job's own copy of the project",
            hint='set uri in [store] to an absolute path or to "s3://bucket/prefix"',
        )
    key = settings.signing.key
    if name != "predict" and key is not None and not Path(key).expanduser().is_absolute():
        raise InputError(
            f"the signing key {key!r} lies in the project, and private keys do not travel",
            hint="set key in [signing] to an absolute path, or leave it out for <state>/keys",
        )


def _value(words: Sequence[str], flag: str) -> str | None:
    """Find the value the command line gives a flag; the last one counts."""
    found = None
    for index, word in enumerate(words):
        if word == f"--{flag}":
            found = words[index + 1] if index + 1 < len(words) else ""
        elif word.startswith(f"--{flag}="):
            found = word.partition("=")[2]
    return found


def _with_value(words: Sequence[str], flag: str, value: str) -> list[str]:
    return [*words, f"--{flag}={value}"]


def _connect(address: str, *, timeout_s: float) -> JobSubmissionClient:
    """Reach the dashboard; asked first with a deadline, because Ray's client has none."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise MissingDependencyError(
            f"this command needs Ray, which cannot be imported: {error}", hint=install_line("cluster")
        ) from error
    url = f"{address.rstrip('/')}/api/version"
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            is_ray = "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        is_ray = error.code in (401, 403)  # the client below has the token and the words for it
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(
            f"no cluster answers at {address} within {timeout_s:g} s: {reason}", hint=_START_HINT
        ) from error
    if not is_ray:
        raise UnavailableError(f"what answers at {address} is not a Ray dashboard", hint=_START_HINT)
    show_token()
    with _reached(address):
        client = JobSubmissionClient(address)
    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return client


@contextlib.contextmanager
def _reached(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into ours."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UnavailableError(f"the cluster at {address} refuses the token", hint=_TOKEN_HINT) from error
    except (ConnectionError, requests.RequestException) as error:
        raise UnavailableError(
            f"the cluster at {address} does not answer any more: {type(error).__name__}", hint=_START_HINT
        ) from error
    except (RuntimeError, ValueError) as error:
        if "No available agent" in str(error):
            raise UnavailableError(
                f"the cluster at {address} is still starting", hint="run the same command again in a minute"
            ) from error
        raise UnavailableError(
            f"the cluster at {address} refuses the job: {str(error)[:300]}",
            hint="correct what it names; large data belongs on s3:// or a shared folder, not in the project",
        ) from error


def _details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    with _reached(client.get_address()):
        try:
            return client.get_job_info(job_id)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            raise NotFoundError(
                f"the cluster at {client.get_address()} knows no job {job_id!r}",
                hint="list its jobs: ray job list --address " + client.get_address(),
            ) from error


def _follow(client: JobSubmissionClient, job_id: str, *, settings: SubmitSettings) -> None:
    """Log the job's output from its beginning until the job has ended."""
    again = f"kit submit --address {settings.address} --attach {job_id}"
    stop = f"ray job stop --address {settings.address} {job_id}"
    try:
        asyncio.run(_tail(client, job_id))
        while not _details(client, job_id).status.is_terminal():
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        _log.info("%s goes on; follow it again: %s; stop it: %s", job_id, again, stop)
        raise
    except (RuntimeError, OSError, UnavailableError) as error:  # aiohttp's connection errors are OSErrors
        raise UnavailableError(
            f"the connection to {settings.address} was lost while following {job_id}: {error}",
            hint=f"the job may go on; follow it again: {again}; stop it: {stop}",
        ) from error


async def _tail(client: JobSubmissionClient, job_id: str) -> None:
    rest = ""
    async for chunk in client.tail_job_logs(job_id):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            _job_log.info("%s", line)
    if rest:
        _job_log.info("%s", rest)


def _exit_code(details: JobDetails) -> int:
    if details.status == "SUCCEEDED" or not details.status.is_terminal():
        return 0
    code = details.driver_exit_code
    if code is None:
        _log.warning("%s: %s", details.submission_id, details.message)
        return 1
    return code if code > 0 else 128 - code  # a signal, as a shell counts it
