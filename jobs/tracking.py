"""What MLflow is told of a run: its parameters, its curves, its files and the version it made.

Where MLFLOW_TRACKING_URI is not set nothing is imported and nothing happens. A server that cannot be
reached is found before work starts; one that fails later costs a warning, never the training: from
then on the run is no longer told of. It knows nothing of training, of Ray or of what is exported,
and changes nothing of mlflow's own that a user's Python shares (no active run, no autologging).

Variables this sets where the user has not: MLFLOW_DISABLE_TELEMETRY (mlflow otherwise tells its makers
of its use), no links printed to standard output, and fewer and shorter retries than mlflow's own, which
keep a training waiting for minutes.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kit.errors import MissingDependencyError, UnavailableError, install_line
from kit.project import Project
from kit.registry import VersionRecord

_log = logging.getLogger("kit")

#: Where MLflow is; without it nothing is told.
URI_VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
#: Where a run keeps the files of the version it made.
_MODEL_FOLDER = "model"
# The most that mlflow's log_batch takes.
_PARAMETERS_A_CALL = 100
_METRICS_A_CALL = 1000


@dataclass
class _Run:
    """One run of mlflow's, and whether it is still told of."""

    project: Project
    client: Any
    experiment_id: str
    run_id: str
    uri: str
    known: set[str] = field(default_factory=set)
    lost: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


class Tracker:
    """Tells MLflow of one run; without MLFLOW_TRACKING_URI every method does nothing.

    Safe to use from several threads. No method raises because of MLflow: the first failure is logged
    as a warning, and the run is left alone from then on.
    """

    def __init__(self, run: _Run | None = None) -> None:
        self._run = run

    @property
    def on(self) -> bool:
        """Whether anything is listening still."""
        return self._run is not None and not self._run.lost

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Tell what decides the outcome.

        Args:
            parameters: Name to value; a mapping inside becomes ``name.key``. Passwords in addresses are
                masked. What the run knows from before an interruption is left as it is.
        """

        def tell(run: _Run) -> None:
            from mlflow.entities import Param

            flat = {name: value for name, value in _flat(parameters) if name not in run.known}
            told = [Param(name, masked(str(value))) for name, value in flat.items()]
            for start in range(0, len(told), _PARAMETERS_A_CALL):
                run.client.log_batch(run.run_id, params=told[start : start + _PARAMETERS_A_CALL])
            run.known.update(flat)

        self._tell(tell)

    def log_epoch(self, figures: Mapping[str, Any]) -> None:
        """Add a point to each curve.

        Args:
            figures: ``epoch``, from 1, and the figures of that epoch; what is no number is left out.
        """
        step = int(figures.get("epoch", 0))
        self.log_metrics({name: value for name, value in figures.items() if name != "epoch"}, step=step)

    def log_metrics(self, metrics: Mapping[str, Any], *, step: int = 0) -> None:
        """Tell what was measured.

        Args:
            metrics: Name to number; a mapping inside becomes ``name.key``, what is no number is left out.
            step: Position on the curve.
        """

        def tell(run: _Run) -> None:
            from mlflow.entities import Metric

            now_ms = int(time.time() * 1000)
            told = [
                Metric(name, float(value), now_ms, step)
                for name, value in _flat(metrics)
                if isinstance(value, (int, float)) and math.isfinite(value)
            ]
            for start in range(0, len(told), _METRICS_A_CALL):
                run.client.log_batch(run.run_id, metrics=told[start : start + _METRICS_A_CALL])

        self._tell(tell)

    def log_artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Keep a file or a folder with the run.

        Args:
            path: What is kept; a path where nothing lies is left out.
            folder: Where in the run; at the top when None.
        """

        def tell(run: _Run) -> None:
            if path.is_dir():
                run.client.log_artifacts(run.run_id, str(path), folder or path.name)
            elif path.is_file():
                run.client.log_artifact(run.run_id, str(path), folder)

        self._tell(tell)

    def register(self, version: VersionRecord) -> None:
        """Keep a version's files with the run, and register them as a version of the same model there.

        MLflow counts versions of its own; the tags of its version hold the kit's number, the digest and
        the key that signed it. All files go along, so that a copy from MLflow still verifies. A digest
        that is registered there already is not registered again.

        Args:
            version: As the kit registered it.
        """

        def tell(run: _Run) -> None:
            from mlflow.entities import RunTag

            _, files = run.project.open_version(f"{version.model}@{version.number}")
            run.client.log_artifacts(run.run_id, str(files.folder), _MODEL_FOLDER)
            facts = run.client.get_run(run.run_id)
            tags = {
                "kit.number": str(version.number),
                "kit.digest": version.digest,
                "kit.key_id": files.key_id,
            }
            _register(run, version, tags=tags, source=f"{facts.info.artifact_uri}/{_MODEL_FOLDER}")
            run.client.log_batch(run.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            kind = facts.data.tags.get("kit.kind", "")
            run.client.update_run(run.run_id, name=f"{kind} {version.model}@{version.number}".strip())

        self._tell(tell)

    @contextmanager
    def child(self, name: str) -> Iterator[Tracker]:
        """Open a run inside this one, such as a trial of a study; it ends with the block.

        Args:
            name: What the inner run is called.
        """
        inner: list[_Run] = []

        def tell(run: _Run) -> None:
            made = run.client.create_run(
                run.experiment_id, run_name=name, tags={"mlflow.parentRunId": run.run_id}
            )
            inner.append(_Run(run.project, run.client, run.experiment_id, made.info.run_id, run.uri))

        self._tell(tell)
        with _ended(Tracker(inner[0] if inner else None)) as tracker:
            yield tracker

    def _tell(self, say: Callable[[_Run], None]) -> None:
        run = self._run
        if run is None:
            return
        with run.lock:
            if run.lost:
                return
            try:
                say(run)
            except Exception as error:  # mlflow raises many kinds; none of them may cost the training
                run.lost = True
                _log.warning(
                    "MLflow at %s failed and is told nothing more of this run: %s",
                    masked(run.uri),
                    _sentence(error),
                )

    def end(self, status: str) -> None:
        """Say how the run ended: FINISHED, FAILED or KILLED."""
        self._tell(lambda run: run.client.set_terminated(run.run_id, status=status))


@contextmanager
def tracked(project: Project, kind: str, *, identity: str | None = None) -> Iterator[Tracker]:
    """Tell MLflow of a command, where MLFLOW_TRACKING_URI says so.

    The experiment is the project, the run is named after the command and, once there is one, the
    version. It ends as FINISHED, FAILED (an error leaves the block) or KILLED (an interrupt).

    Args:
        project: Gives the experiment its name.
        kind: The command.
        identity: Names the work (see ``jobs.candidate.run_identity``): an unfinished run of the same
            work is continued instead of a new one being made.

    Yields:
        What to tell it with.

    Raises:
        MissingDependencyError: MLFLOW_TRACKING_URI is set and mlflow is not installed.
        UnavailableError: The tracking server does not answer, or does not take a run.
    """
    uri = os.environ.get(URI_VARIABLE, "").strip()
    if not uri:
        yield Tracker()
        return
    with _reaching(uri):
        run = _open(project, kind, uri=uri, identity=identity)
    with _ended(Tracker(run)) as tracker:
        yield tracker


def check_tracking() -> None:
    """Ask MLflow once, where MLFLOW_TRACKING_URI is set, before hours of work need it.

    Raises:
        MissingDependencyError: mlflow is not installed.
        UnavailableError: The tracking server does not answer.
    """
    uri = os.environ.get(URI_VARIABLE, "").strip()
    if uri:
        with _reaching(uri):
            _client(uri).search_experiments(max_results=1)


def masked(text: str) -> str:
    """Hide passwords: those inside addresses, and those MLflow reads from the environment."""
    secrets = [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    words = text.split(" ")
    for index, word in enumerate(words):
        if "://" not in word or "@" not in word:
            continue
        try:
            parts = urlsplit(word)
            password = parts.password
        except ValueError:  # not an address after all
            continue
        if password:
            secrets.append(password)
            host = parts.netloc.rpartition("@")[2]
            words[index] = urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
    hidden = " ".join(words)
    for secret in secrets:
        if len(secret) > 3:
            hidden = hidden.replace(secret, "***")
    return hidden


@contextmanager
def _ended(tracker: Tracker) -> Iterator[Tracker]:
    try:
        yield tracker
    except BaseException as error:  # an interrupt ends the run as well; raised again
        tracker.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.end("FINISHED")


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Say what keeps MLflow from answering; without its package nothing else is tried."""
    if importlib.util.find_spec("mlflow") is None:
        raise _missing("mlflow")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every table it creates
    try:
        yield
    except ModuleNotFoundError as error:  # a database needs packages of its own
        raise _missing(error.name or "mlflow") from error
    except Exception as error:  # mlflow raises many kinds, for addresses, answers and permissions
        raise UnavailableError(
            f"MLflow at {masked(uri)} cannot be told of this run: {_sentence(error)}",
            hint=f"start the tracking server, correct {URI_VARIABLE}, or unset it",
        ) from error


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def _open(project: Project, kind: str, *, uri: str, identity: str | None) -> _Run:
    client = _client(uri)
    experiment = client.get_experiment_by_name(project.name)
    if experiment is None:
        # A database's default is a folder beside whatever the current folder is.
        local = (project.state / "mlflow").as_uri() if uri.partition(":")[0] in _DATABASES else None
        experiment_id = client.create_experiment(project.name, artifact_location=local)
    else:
        experiment_id = experiment.experiment_id
    tags = {"kit.kind": kind, **({"kit.identity": identity} if identity else {})}
    if identity:
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        unfinished = client.search_runs(
            [experiment_id], filter_string=f"{wanted} and attributes.status != 'FINISHED'", max_results=1
        )
        if unfinished:
            run = unfinished[0]
            client.update_run(run.info.run_id, status="RUNNING")
            return _Run(project, client, experiment_id, run.info.run_id, uri, known=set(run.data.params))
    run = client.create_run(experiment_id, run_name=kind, tags=tags)
    return _Run(project, client, experiment_id, run.info.run_id, uri)


_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{URI_VARIABLE} is set, but the package {package} is not installed",
        hint=f"run {install_line('mlflow')}, or unset {URI_VARIABLE}",
    )


def _sentence(error: Exception) -> str:
    """Give the first line of an error, without a password in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return masked(lines[0])[:300] if lines else type(error).__name__


def _register(run: _Run, version: VersionRecord, *, tags: Mapping[str, str], source: str) -> None:
    client, name = run.client, f"name = '{version.model}'"
    if not client.search_registered_models(filter_string=name):
        client.create_registered_model(version.model)
    same = f"{name} and tags.`kit.digest` = '{version.digest}'"
    if not client.search_model_versions(filter_string=same):
        client.create_model_version(version.model, source=source, run_id=run.run_id, tags=dict(tags))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
