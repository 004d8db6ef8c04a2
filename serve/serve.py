"""Serve models until somebody says stop.

The driver: it checks everything that can be checked before Ray starts, starts a local Ray and Ray Serve
in the presets' environment, deploys the replicas, waits until the endpoint answers, and at the end leaves no
process behind. What a request means is ``serve.protocol``'s business.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from kit import local_ray
from kit.errors import InputError, UnavailableError
from kit.project import Project
from kit.settings import ServeSettings
from serve import deploy, ingress, presets
from serve.draining import drain
from serve.endpoints import Served, begin, in_force
from serve.guards.gatekeeper import plan_guards
from serve.guards.rates import open_rates
from serve.haproxy import Edits, write_pem
from serve.replica import ReplicaPlan

_logger = logging.getLogger("kit")
_SLACK_S = 10
_DRAIN_S = 20.0
#: How often the driver looks whether its Ray lives: a driver without one would wait for ever.
_LOOK_S = 1.0


@dataclass(frozen=True)
class ServedVersion:
    """One model of an endpoint that answers.

    Attributes:
        model: Its name.
        version: The number of the version with most traffic.
        digest: That version's digest.
        release: Sequence number of the release in force.
    """

    model: str
    version: int
    digest: str
    release: int


@dataclass(frozen=True)
class ServeStatus:
    """Describe an endpoint that answers.

    Attributes:
        url: Where it listens.
        grpc: Where it listens for gRPC, ``host:port``; None when it does not.
        models: What it serves.
        engine: What runs the models.
        replicas: How many replicas there are, at least.
        ingress: The HTTP proxy in front, ``haproxy`` or ``python``.
        key_file: The file that holds the key; None when no key is asked for.
        start_s: Seconds from the call to the first answer.
    """

    url: str
    grpc: str | None
    models: tuple[ServedVersion, ...]
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
    """Serve models and block until SIGINT, SIGTERM or ``stop``.

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
        ConflictError: A port is taken.
        InputError: A setting, a certificate or a file of keys cannot be used.
        MissingDependencyError: The ingress or Ray is not installed.
        NotFoundError: A model is not known.
        UnavailableError: Ray or the endpoint did not start, or Ray ended.
        VerificationError: A model's files or their signature do not hold.
    """
    began_s = time.monotonic()
    chosen = presets.choose_ingress(settings)
    ingress.stop_orphans()
    for port in (settings.port, *([settings.grpc_port] if settings.grpc_port else ())):
        ingress.check_port(settings.host, port=port)
    local = ingress.local_addresses()
    guards = plan_guards(project, settings, local_addresses=local)
    open_rates(settings.rates, space=project.name)  # a missing package is said before Ray starts
    _check_tls(settings)
    served = begin(project, settings)
    plan = ReplicaPlan(
        project=project.folder.resolve(),
        endpoints=tuple(each.release.endpoint for each in served),
        trusted=project.trusted(),
        settings=settings,
        guards=guards,
    )
    folder = ingress.new_folder() if chosen == "haproxy" else None
    plan = replace(plan, sockets=folder)
    stopper = _Stopper(stop or threading.Event())
    try:
        presets.apply(
            chosen, settings, folder=folder, edits=_edits(plan, folder), longest_s=_longest_s(settings)
        )
        with stopper.signals(), _local_ray(stopper) as node:
            _start(plan, settings, chosen=chosen, stopper=stopper)
            status = _status(project, settings, in_force(project, served), chosen)
            status = replace(status, start_s=round(time.monotonic() - began_s, 3))
            result = _answer_until_stopped(project, status, on_ready=on_ready, stopper=stopper, node=node)
            if folder is not None:
                left = drain(folder, limit_s=min(_longest_s(settings), _DRAIN_S))
                if left:
                    _logger.warning("%d requests were still in work after %g s", left, _DRAIN_S)
            return result
    except _StoppedError:
        return None
    finally:
        if folder is not None:
            ingress.stop_haproxy(folder)


def _status(
    project: Project, settings: ServeSettings, served: tuple[Served, ...], chosen: str
) -> ServeStatus:
    host = ingress.client_host(settings.host)
    shown = f"[{host}]" if ":" in host else host
    return ServeStatus(
        url=f"{'https' if settings.tls_cert else 'http'}://{shown}:{settings.port}",
        grpc=f"{shown}:{settings.grpc_port}" if settings.grpc_port else None,
        models=tuple(
            ServedVersion(each.record.model, each.record.number, each.record.digest, each.release.sequence)
            for each in served
        ),
        engine=settings.engine,
        replicas=settings.replicas,
        ingress=chosen,
        key_file=str(project.state / "serve" / "key") if settings.auth == "key" else None,
        start_s=0.0,
    )


def _check_tls(settings: ServeSettings) -> None:
    """Refuse a certificate and a key that do not belong together, before anything is started."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            settings.tls_cert,
            settings.tls_key,
            password=lambda: b"",  # never asks at the terminal
        )
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"certificate {settings.tls_cert} and key {settings.tls_key} cannot be used: "
            f"{error.strerror or error}",
            hint="give the certificate chain and its own private key, both PEM",
        ) from error


def _edits(plan: ReplicaPlan, folder: Path | None) -> Edits:
    settings = plan.settings
    pem = None
    if folder is not None and settings.tls_cert and settings.tls_key:
        pem = write_pem(folder, cert=Path(settings.tls_cert), key=Path(settings.tls_key))
    return Edits(pem=pem, own=deploy.own_models(plan.endpoints, settings))


def _longest_s(settings: ServeSettings) -> int:
    """Say how long the proxy waits for a replica: longer than any request may take."""
    own = [each.deadline_ms for each in settings.model.values() if each.deadline_ms is not None]
    return math.ceil(max(settings.deadline_ms, *own, 0.0) / 1000) + _SLACK_S


def _answer_until_stopped(
    project: Project,
    status: ServeStatus,
    *,
    on_ready: Callable[[ServeStatus], None],
    stopper: _Stopper,
    node: _Node,
) -> ServeResult:
    ready_s = time.monotonic()
    first = status.models[0]
    identity = f"{first.model}-{first.digest[:12]}-{time.time_ns()}"
    project.write_record("serve", identity, {"status": asdict(status), "uptime_s": None, "stopped_by": None})
    _logger.info(
        "serving %s at %s", ", ".join(f"{each.model}@{each.version}" for each in status.models), status.url
    )
    on_ready(status)
    while not stopper.event.wait(_LOOK_S):
        node.check()
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


class _Node:
    """The Ray on this machine, by the two processes without which there is none."""

    def __init__(self) -> None:
        import psutil

        children = psutil.Process().children()
        self._parts = [each for each in children if each.name() in ("gcs_server", "raylet")]

    def lives(self) -> bool:
        """Say whether both run."""
        import psutil

        try:
            return all(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in self._parts)
        except psutil.NoSuchProcess:
            return False

    def check(self) -> None:
        """Raise ``UnavailableError`` when one has ended."""
        if not self.lives():
            raise UnavailableError(
                "Ray ended on this machine, and the endpoint with it", hint="run kit serve again"
            )


@contextlib.contextmanager
def _local_ray(stopper: _Stopper) -> Iterator[_Node]:
    """Run a Ray of our own on this machine, and end it with everything that runs on it."""
    import ray
    from ray import serve as ray_serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)  # its notices are not this command's output
    _logger.info("starting Ray")
    node: _Node | None = None
    try:
        try:
            local_ray.start()
        except SystemExit as exit_by_ray:  # while Ray starts, SIGTERM is its own and ends in sys.exit
            raise _StoppedError from exit_by_ray
        stopper.install()
        stopper.check()
        node = _Node()
        yield node
    finally:
        # On the way down Ray prints a notice that Serve's controller was killed; stdout is the caller's.
        # A Serve that is already gone is as good as shut down.
        with contextlib.redirect_stdout(io.StringIO()):
            if node is not None and node.lives():
                with contextlib.suppress(Exception):
                    ray_serve.shutdown()  # type: ignore[no-untyped-call]  # Ray declares no types for it
            ray.shutdown()


def _start(plan: ReplicaPlan, settings: ServeSettings, *, chosen: str, stopper: _Stopper) -> None:
    """Start Ray Serve with the applications and wait until they answer.

    Raises:
        UnavailableError: They did not answer in time, or a replica failed.
    """
    from ray import serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    # The access log takes a fifth of a replica.
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    tls: dict[str, Any] = {}
    if chosen == "python" and settings.tls_cert:
        tls = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
    options = HTTPOptions(host=settings.host, port=settings.port, **tls)
    try:
        ray_serve.start(http_options=options, logging_config=quiet)
    except RayError as error:  # it ends so when it is interrupted, too
        stopper.check()
        raise UnavailableError(
            f"Ray Serve's proxy did not start: {str(error)[:300]}", hint="run: kit doctor"
        ) from error
    stopper.check()
    deploy.run(
        plan,
        logging=quiet,
        check=stopper.check,
        pause=stopper.event.wait,
        answers=lambda: ingress.answers(
            settings.host,
            port=settings.port,
            path="/v2/health/ready",
            timeout_s=2.0,
            tls=settings.tls_cert is not None,
        ),
    )
