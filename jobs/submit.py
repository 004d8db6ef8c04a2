"""Run train, tune, compress or predict as a job on a Ray cluster, follow its log, try again when it is lost.

Ships the project and the kit through the Ray Jobs API and runs the very command there. Knows
nothing of what the command's settings mean, apart from the places that lie on this machine;
what they must be is checked where they are parsed. A job that was lost is the same command once
more: that it then goes on is the command's own doing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cluster import is_local, shipped
from jobs.submitting.dashboard import Dashboard
from jobs.submitting.following import Patience, follow, why_lost
from kit.errors import InputError, NotFoundError, UnavailableError, nearest
from kit.project import Project
from kit.settings import SubmitSettings

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails

_log = logging.getLogger("kit")

#: Commands that may run as a job, and the flags of each whose value is a place (or a glob of places) that is
#: read or written; what lies on this machine is made absolute.
COMMANDS: dict[str, dict[str, str]] = {
    "train": {},
    "tune": {"storage": "written"},
    "compress": {},
    "predict": {"input": "read", "output": "written"},
}
_LOST = 7  # exit code of UnavailableError in kit.errors
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 15.0  # of a cluster that cannot take a further try yet


@dataclass(frozen=True)
class SubmitResult:
    """Where a job is, or how it ended.

    Attributes:
        job_id: Its id on the cluster; of the last try, where there were several.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        address: The cluster's dashboard.
        exit_code: The command's own; 0 while it runs; 7 when it was lost without one, 1 when it was stopped.
        tries: How often the command was submitted; 0 with ``attach``.
    """

    job_id: str
    status: str
    address: str
    exit_code: int
    tries: int


def submit(project: Project, settings: SubmitSettings, *, patience: Patience | None = None) -> SubmitResult:
    """Start a job and follow it, or follow one that was started before; see the module.

    The job's log lines go to the logger ``kit.job``. Whoever stops following leaves the job
    running.

    Args:
        project: What travels.
        settings: The command, and where it goes.
        patience: Pauses between tries, and how long a lost connection is tried again; used with retries.

    Raises:
        InputError: The command cannot run as a job, or names a place the cluster cannot see.
        NotFoundError: The cluster does not know the job to attach to.
        UnavailableError: The cluster does not answer in time, refuses, or the connection is lost; or the
            cluster does not know the last try any more.
        KeyboardInterrupt: The user stopped following.
    """
    if settings.attach and settings.command:
        raise InputError(
            f"--attach {settings.attach} follows a job, but a command was given as well",
            hint="give one of them",
        )
    patience = patience or Patience()
    if settings.attach:
        dashboard = Dashboard(settings.address, timeout_s=settings.timeout_s)
        details = dashboard.details(settings.attach)
        if settings.wait:
            details = _followed(dashboard, settings.attach, reach_s=0)
        return _result(dashboard, details, tries=0)
    job = _planned(project, settings)
    dashboard = Dashboard(settings.address, timeout_s=settings.timeout_s)
    name = f"{settings.command[0]}-{secrets.token_hex(6)}"
    dashboard.submit(name, entrypoint=job.entrypoint, runtime_env=job.runtime_env)
    if not settings.wait:
        _log.info("submitted %s to %s", name, settings.address)
        return _result(dashboard, dashboard.details(name), tries=1)
    return _tried(dashboard, job, name=name, retries=settings.retries, patience=patience)


@dataclass(frozen=True)
class _Job:
    """What is shipped and what is run, the same in every try.

    Attributes:
        runtime_env: Ray's; the project's folder travels as it stands when a try begins.
        entrypoint: A line for the shell.
    """

    runtime_env: Mapping[str, Any]
    entrypoint: str


def _tried(dashboard: Dashboard, job: _Job, *, name: str, retries: int, patience: Patience) -> SubmitResult:
    """Follow a job that was started, and start it again while it is lost and tries are left.

    Every try has an id of its own, ``name``, ``name-2``, ``name-3``: Ray takes none twice.
    """
    most, job_id = retries + 1, name
    reach_s = patience.reach_s if retries else 0.0
    for number in range(1, most + 1):
        which = f" (try {number} of {most})" if retries else ""
        if number > 1:
            job_id = f"{name}-{number}"
            _again(dashboard, job, job_id=job_id, reach_s=reach_s)
        _log.info("submitted %s to %s%s", job_id, dashboard.address, which)
        details: JobDetails | None = None
        try:
            details = _followed(dashboard, job_id, reach_s=reach_s)
            reason = why_lost(str(details.status), details.driver_exit_code, message=details.message)
        except NotFoundError:
            reason = "is not known to the cluster any more, as after a restart of its head"
        if reason is None:
            break
        if number < most:
            pause_s = patience.pause_s(number)
            _log.warning("%s%s %s; submitting it again in %g s", job_id, which, reason, pause_s)
            _rest(pause_s)
        elif retries:
            _log.error("%s%s %s; no try is left", job_id, which, reason)
    if details is None:
        raise UnavailableError(
            f"{job_id} is lost{which}: the cluster at {dashboard.address} does not know it any more",
            hint="submit it again" if retries else "submit it again; --retries 3 does that for you",
        )
    return _result(dashboard, details, tries=number)


def _again(dashboard: Dashboard, job: _Job, *, job_id: str, reach_s: float) -> None:
    """Start a further try, whenever the cluster can take it.

    A connection that breaks may have carried the job over all the same, so its id is asked for first.
    """
    deadline_s, pause_s = time.monotonic() + reach_s, _FIRST_REST_S
    while True:
        try:
            with contextlib.suppress(NotFoundError):
                dashboard.details(job_id)
                return
            dashboard.submit(job_id, entrypoint=job.entrypoint, runtime_env=job.runtime_env)
        except UnavailableError as error:
            if time.monotonic() + pause_s > deadline_s:
                raise
            _log.warning("%s cannot be submitted yet: %s", job_id, error.message)
            _rest(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_REST_S)
        else:
            return


def _rest(seconds: float) -> None:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        _log.info("nothing runs now; the same command again goes on where the last try ended")
        raise


def _followed(dashboard: Dashboard, job_id: str, *, reach_s: float) -> JobDetails:
    """Follow a job to its end; who cannot, or does not want to any more, is told how to go on."""
    again = f"kit submit --address {dashboard.address} --attach {job_id}"
    stop = f"ray job stop --address {dashboard.address} {job_id}"
    try:
        return follow(dashboard, job_id, reach_s=reach_s)
    except KeyboardInterrupt:
        _log.info("%s goes on; follow it again: %s; stop it: %s", job_id, again, stop)
        raise
    except UnavailableError as error:
        raise UnavailableError(
            f"the connection to {dashboard.address} was lost while following {job_id}: {error.message}",
            hint=f"the job may go on; follow it again: {again}; stop it: {stop}",
        ) from error


def _result(dashboard: Dashboard, details: JobDetails, *, tries: int) -> SubmitResult:
    code = details.driver_exit_code
    if details.status == "SUCCEEDED" or not details.status.is_terminal():
        code = 0
    elif code is None:
        _log.warning("%s: %s", details.submission_id, details.message)
        code = _LOST if details.status == "FAILED" else 1
    elif code < 0:
        code = 128 - code  # a signal, as a shell counts it
    return SubmitResult(str(details.submission_id), str(details.status), dashboard.address, code, tries)


def _planned(project: Project, settings: SubmitSettings) -> _Job:
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
        if flag in from_file or value_of(words, flag) is not None:
            raise InputError(f"{name} names --{flag}, but {why}", hint=f"leave {flag} out of {name}")
    local = is_local(settings.address)
    _check_shared(project, name, local=local)
    for flag, use in COMMANDS[name].items():
        typed = value_of(words, flag)
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
    return _Job(shipped(project, state=project.state), entrypoint)


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


def value_of(words: Sequence[str], flag: str) -> str | None:
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
