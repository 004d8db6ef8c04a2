"""The one door to Ray: start or join it, say what travels there, turn its error shapes into ours.

Knows nothing of what runs there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kit import local_ray
from kit.errors import (
    InputError,
    KitError,
    MissingDependencyError,
    SettingsError,
    UnavailableError,
    install_line,
)
from kit.project import STATE_VARIABLE, Project

_log = logging.getLogger("kit")

#: Left out of what travels to a cluster, as in a .gitignore (which counts as well): private keys
#: and secrets, state, environments, version control, results.
EXCLUDES = (
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "id_*",
    ".env*",
    ".netrc",
    ".aws/",
    ".ssh/",
    ".kit/",
    ".git/",
    ".venv*/",
    "__pycache__/",
    "bundles/",
    "report.html",
)
_PACKAGES = ("kit", "jobs", "serve", "edge")
_CONNECT_TIMEOUT_S = 5.0
_MAX_DEPTH = 6  # of errors wrapped in errors
_NO_SPACE = os.strerror(errno.ENOSPC)


@contextlib.contextmanager
def connected(address: str | None, *, project: Project) -> Iterator[None]:
    """Have a Ray to run on while the block lasts.

    Args:
        address: ``host:port`` of a cluster; None starts a Ray on this machine, or, inside a
            submitted job, joins the cluster that runs it.
        project: Travels to a cluster's workers together with the kit.

    Raises:
        UnavailableError: The cluster does not answer, or Ray did not start on this machine.
        MissingDependencyError: Ray is not installed.
    """
    _set_environment()
    local_ray.prepare()
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            f"this command needs Ray, which cannot be imported: {error}", hint=install_line("cluster")
        ) from error
    if ray.is_initialized():  # inside a trial of a study, which runs on Ray already
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and inside_job():
        show_token()
        ray.init(**quiet)
    elif address is not None:
        check_reachable(address)
        show_token()
        _log.info("joining the cluster at %s", address)
        try:
            ray.init(address=address, runtime_env=shipped(project), **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(
                f"the cluster at {address} cannot be joined: {str(error)[:300]}",
                hint="check the address and RAY_AUTH_TOKEN, or submit from outside: kit submit",
            ) from error
    else:
        # Nobody reclaims this machine: spare the process that would watch for it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        _log.info("starting Ray on this machine")
        local_ray.start()
    try:
        yield
    finally:
        ray.shutdown()


def _set_environment() -> None:
    """Set what Ray reads from the environment when it starts or joins, where the user has not."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    # A worker's report waits for the controller's next look, every 2 s unless told otherwise.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A training worker stays in the shipped project instead of a folder of the run.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")


def show_token() -> None:
    """Have Ray show this machine's token to a cluster it joins, where there is one.

    Whoever starts a Ray asks for a token by default; whoever joins one shows it only when told to.
    """
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_MODE" in os.environ or not ("RAY_AUTH_TOKEN" in os.environ or token.is_file()):
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    from ray._raylet import Config  # type: ignore[attr-defined]  # missing from Ray's stub

    Config.initialize("")  # Ray has read the environment when it was imported; its own way to read again


def inside_job() -> bool:
    """Say whether this process is the entrypoint of a submitted job; Ray sets both for it.

    The address alone does not count: a user's shell may name a cluster for other purposes.
    """
    return "RAY_ADDRESS" in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def shipped(project: Project, *, state: Path | None = None) -> dict[str, Any]:
    """Say what travels to a cluster: the project's folder and the kit's own packages.

    Args:
        project: Its folder becomes the working folder of every process there, without its state,
            its signing key and what ``EXCLUDES`` names.
        state: Where the job keeps its state; sets ``KIT_STATE``.
    """
    root = Path(__file__).resolve().parents[1]
    environment = {STATE_VARIABLE: str(state)} if state is not None else {}
    key = project.signing_key_path()
    private = [
        "/" + place.relative_to(project.folder).as_posix()
        for place in (project.state, key, key.with_name(f"{key.stem}-*{key.suffix}"))  # earlier and next keys
        if place.is_relative_to(project.folder)
    ]
    return {
        "working_dir": str(project.folder),
        "py_modules": [str(root / package) for package in _PACKAGES],
        "excludes": [*EXCLUDES, *private],
        "env_vars": environment,
    }


def check_reachable(address: str) -> None:
    """Refuse an address where nobody listens, before Ray tries for minutes.

    Args:
        address: ``host:port``, with or without a scheme; ``auto`` is not checked.

    Raises:
        UnavailableError: Nobody answers there within five seconds.
    """
    if address == "auto":
        return
    host, _, port = address.split("://")[-1].split("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        raise UnavailableError(
            f"{address!r} is not host:port", hint="give an address like 10.0.0.5:6379 or http://10.0.0.5:8265"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError, OverflowError) as error:  # a name no DNS takes, a port beyond 65535
        raise UnavailableError(
            f"no cluster answers at {address}: {getattr(error, 'strerror', None) or error}",
            hint="start it (ray up ray-cluster.yaml), or leave --address out to run on this machine",
        ) from error


def n_cpus() -> int:
    """Count the CPUs of the Ray that is connected; an autoscaler may add more."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's gap
    return int(resources.get("CPU", 0))


def check_room(workers: int, *, threads: int, address: str | None) -> None:
    """Refuse more workers than this machine has CPUs for; a cluster may grow, so it is asked for all.

    Args:
        workers: Processes that run at a time.
        threads: CPUs each of them takes.
        address: The cluster's; None is this machine, or the cluster that runs this job.

    Raises:
        InputError: They do not fit on this machine.
    """
    cpus = n_cpus()
    if workers * threads <= cpus:
        return
    each = f" of {threads} threads" if threads > 1 else ""
    if address is not None or inside_job():
        _log.info("asking for %d workers%s; the cluster has %d CPUs now", workers, each, cpus)
        return
    if threads > cpus:
        raise InputError(
            f"threads = {threads}, but this machine has {cpus} CPUs", hint=f"set threads to {cpus} or less"
        )
    raise InputError(
        f"workers = {workers}{each}, but this machine has {cpus} CPUs",
        hint=f"set workers to {cpus // threads} or less",
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether a full disk is behind an error, however many times it was wrapped on the way."""
    for _ in range(_MAX_DEPTH):
        if error is None:
            return False
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_local(address: str) -> bool:
    """Say whether an address, ``host:port`` or a URL, lies on this machine.

    Raises:
        SettingsError: It is not an address.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        _ = parts.port  # looked at here, because it is parsed when it is asked for
    except ValueError as error:
        raise SettingsError(
            f"{address!r} is not an address: {error}", hint="give an address like http://10.0.0.5:8265"
        ) from error
    return parts.hostname in ("127.0.0.1", "localhost", "::1")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn a failure that crossed Ray back into the error that was raised there.

    Ray wraps one failure in several shapes; ours is dug out of each. What is not ours stays as
    it came.
    """
    try:
        yield
    except Exception as error:  # every shape Ray gives an error is its own class
        ours = _ours(error, depth=0)
        if ours is not None and ours is not error:
            raise ours from error
        raise


def _ours(error: object, *, depth: int) -> KitError | None:
    if isinstance(error, KitError):
        return error
    if depth > _MAX_DEPTH or not isinstance(error, BaseException):
        return None
    inner = [getattr(error, "cause", None), error.__cause__]
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict):
        inner += list(failures.values())
    inner += [getattr(error, "training_failed_error", None), getattr(error, "controller_failure", None)]
    return next((found for each in inner if (found := _ours(each, depth=depth + 1)) is not None), None)
