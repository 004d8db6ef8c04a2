"""Serve one model over HTTP until somebody says stop.

The driver: it checks everything that can be checked before Ray starts, starts a local Ray and Ray Serve
in the presets' environment, deploys one replica class, waits until the endpoint answers, and at the end
leaves no process behind. What a request means is ``serve.protocol``'s business.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from kit import local_ray
from kit.errors import InputError, UnavailableError
from kit.files import create_once
from kit.model_version import ModelVersion
from kit.project import Project
from kit.settings import ServeSettings
from serve import ingress, presets
from serve.endpoint import Replica, ReplicaPlan

_logger = logging.getLogger("kit")
_APPLICATION = "kit"
_START_TIMEOUT_S = 180.0
_PAUSE_S = 0.1
_KEY_BYTES = 32


@dataclass(frozen=True)
class ServeStatus:
    """Describe an endpoint that answers.

    Attributes:
        url: Where it listens.
        model: The served model's name.
        version: The version's number in the registry.
        digest: The version's digest.
        engine: What runs the model.
        replicas: How many replicas there are.
        ingress: The HTTP proxy in front, ``haproxy`` or ``python``.
        key_file: The file that holds the key; None when no key is asked for.
        start_s: Seconds from the call to the first answer.
    """

    url: str
    model: str
    version: int
    digest: str
    engine: str
    replicas: int
    ingress: str
    key_file: str | None
    start_s: float


@dataclass(frozen=True)
class ServeResult:
    """Describe an endpoint that has ended.

    Attributes:
        status: What it was.
        uptime_s: Seconds between the first answer and the stop.
        stopped_by: ``SIGINT``, ``SIGTERM`` or ``stop``.
    """

    status: ServeStatus
    uptime_s: float
    stopped_by: str


class _StoppedError(Exception):
    """Somebody said stop before the endpoint was ready."""


def serve(
    project: Project,
    settings: ServeSettings,
    *,
    on_ready: Callable[[ServeStatus], None],
    stop: threading.Event | None = None,
) -> ServeResult | None:
    """Serve a model and block until SIGINT, SIGTERM or ``stop``.

    Sets environment variables for the rest of this process's life (``presets.apply``); ``ray.serve``
    must not have been imported before. Signals are handled when called from the main thread.

    Args:
        project: Where the registry, the store and the keys are.
        settings: What to serve and where.
        on_ready: Called once, when the endpoint answers.
        stop: Ends the endpoint when set.

    Returns:
        What was served and for how long; None when it was stopped before it answered.

    Raises:
        ConflictError: The port is taken.
        MissingDependencyError: The ingress or Ray is not installed.
        NotFoundError: The model is not known.
        UnavailableError: Ray or the endpoint did not start.
        VerificationError: The model's files or their signature do not hold.
    """
    began_s = time.monotonic()
    record, version = project.open_version(settings.model)
    chosen = presets.choose_ingress(settings)
    ingress.stop_orphans()
    ingress.check_port(settings.host, port=settings.port)
    key_file = project.state / "serve" / "key" if settings.auth == "key" else None
    plan = _plan(project, settings, version=version, number=record.number, key_file=key_file)
    folder = ingress.new_folder() if chosen == "haproxy" else None
    presets.apply(chosen, folder=folder)
    host = ingress.client_host(settings.host)
    status = ServeStatus(
        url=f"http://{f'[{host}]' if ':' in host else host}:{settings.port}",
        model=version.name,
        version=record.number,
        digest=version.digest,
        engine=settings.engine,
        replicas=settings.replicas,
        ingress=chosen,
        key_file=str(key_file) if key_file else None,
        start_s=0.0,
    )
    stopper = _Stopper(stop or threading.Event())
    try:
        with stopper.signals(), _local_ray(stopper):
            _deploy(plan, settings, stopper=stopper)
            status = replace(status, start_s=round(time.monotonic() - began_s, 3))
            return _answer_until_stopped(project, status, on_ready=on_ready, stopper=stopper)
    except _StoppedError:
        return None
    finally:
        if folder is not None:
            ingress.stop_haproxy(folder)


def _plan(
    project: Project, settings: ServeSettings, *, version: ModelVersion, number: int, key_file: Path | None
) -> ReplicaPlan:
    return ReplicaPlan(
        folder=version.folder.resolve(),
        digest=version.digest,
        number=number,
        trusted=project.trusted(),
        engine=settings.engine,
        threads=settings.threads,
        max_body_bytes=int(settings.max_body_mb * 1_000_000),
        key_sha256=hashlib.sha256(_endpoint_key(key_file)).hexdigest() if key_file else None,
        local_addresses=ingress.local_addresses(),
    )


def _answer_until_stopped(
    project: Project, status: ServeStatus, *, on_ready: Callable[[ServeStatus], None], stopper: _Stopper
) -> ServeResult:
    ready_s = time.monotonic()
    identity = f"{status.model}-{status.digest[:12]}-{time.time_ns()}"
    project.write_record("serve", identity, {"status": asdict(status), "uptime_s": None, "stopped_by": None})
    _logger.info("serving %s@%d at %s", status.model, status.version, status.url)
    on_ready(status)
    stopper.event.wait()
    _logger.info("stopping (%s)", stopper.reason)
    result = ServeResult(status, round(time.monotonic() - ready_s, 3), stopper.reason)
    project.write_record("serve", identity, asdict(result))
    return result


class _Stopper:
    """One event that a caller or a signal sets, and which of them it was."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event
        self.reason = "stop"

    def check(self) -> None:
        """Raise ``_StoppedError`` when the event is set."""
        if self.event.is_set():
            raise _StoppedError

    def install(self) -> None:
        """Handle the signals from now on; Ray takes SIGTERM for itself when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._received)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Handle the signals inside the block and give them back after it."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        self.event.set()


@contextlib.contextmanager
def _local_ray(stopper: _Stopper) -> Iterator[None]:
    """Run a Ray of our own on this machine, and end it with everything that runs on it."""
    import ray
    from ray import serve as ray_serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)  # its notices are not this command's output
    _logger.info("starting Ray")
    try:
        try:
            ray.init(**local_ray.OPTIONS)
        except SystemExit as exit_by_ray:  # while Ray starts, SIGTERM is its own and ends in sys.exit
            raise _StoppedError from exit_by_ray
        except Exception as error:  # Ray reports a failed start in many shapes
            raise UnavailableError(
                f"Ray did not start on this machine: {str(error)[:300]}", hint="run: kit doctor"
            ) from error
        stopper.install()
        stopper.check()
        yield
    finally:
        # On the way down Ray prints a notice that Serve's controller was killed; stdout is the caller's.
        # A Serve that is already gone is as good as shut down.
        with contextlib.redirect_stdout(io.StringIO()):
            if ray.is_initialized():
                with contextlib.suppress(Exception):
                    ray_serve.shutdown()  # type: ignore[no-untyped-call]  # Ray declares no types for it
            ray.shutdown()


def _deploy(plan: ReplicaPlan, settings: ServeSettings, *, stopper: _Stopper) -> None:
    """Start Ray Serve with the one application and wait until it answers.

    Raises:
        UnavailableError: It did not answer in time, or its replica failed.
    """
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    quiet = LoggingConfig(
        enable_access_log=False, log_level="WARNING"
    )  # the access log takes a fifth of a replica
    ray_serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port), logging_config=quiet)
    stopper.check()
    deployment = ray_serve.deployment(
        name="endpoint",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        ray_actor_options={
            "num_cpus": 0
        },  # more replicas than cores is the operator's choice, not a deadlock
        logging_config=quiet,
    )(ray_serve.ingress()(Replica))
    target = ray_serve.RunTarget(deployment.bind(plan), name=_APPLICATION, route_prefix="/")
    ray_serve.run_many(
        [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        stopper.check()
        state = ray_serve.status().applications.get(_APPLICATION)
        if state is not None and state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise UnavailableError(f"the endpoint did not start: {_cause(state.message)}")
        if state is not None and state.status == "RUNNING" and _answers(settings):
            return
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"the endpoint did not answer within {_START_TIMEOUT_S:.0f} s", hint="run: kit doctor"
            )
        stopper.event.wait(_PAUSE_S)


def _answers(settings: ServeSettings) -> bool:
    return ingress.answers(settings.host, port=settings.port, path="/v2/health/ready", timeout_s=2.0)


def _cause(message: str) -> str:
    """Take the last line of a replica's traceback, which names the error."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "Ray Serve gives no reason"


def _endpoint_key(path: Path) -> bytes:
    """Read the endpoint's key, or make one that this user alone can read.

    Raises:
        InputError: Others can read the file, or what it holds is too short to be a key.
    """
    # Where somebody was faster, theirs counts.
    create_once(path, secrets.token_urlsafe(_KEY_BYTES).encode() + b"\n", mode=0o600)
    mode = path.stat().st_mode
    if mode & 0o077:
        raise InputError(
            f"others can read the key {path} (mode {mode & 0o777:04o})", hint=f"run: chmod 600 {path}"
        )
    key = path.read_bytes().strip()
    if len(key) < _KEY_BYTES:
        raise InputError(
            f"the key {path} is shorter than {_KEY_BYTES} characters", hint="remove the file to get a new key"
        )
    return key
