"""Jobs on a real Ray cluster with a dashboard of its own, reached over HTTP with its token."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.cluster import shipped, show_token
from jobs.predict import predict
from jobs.submit import SubmitResult, _planned, submit
from jobs.submitting.following import Patience
from kit.errors import InputError, NotFoundError, SettingsError, UnavailableError
from kit.keypair import generate_key
from kit.project import Project
from kit.settings import PredictSettings, SubmitSettings

ROOT = Path(__file__).resolve().parents[2]

KIT_TOML = """
[project]
name = "line"

[data]
path = "rows.parquet"
label = "side"
inputs = [{ name = "x", columns = ["a", "b"] }]

[model]
factory = "model:build"

[train]
epochs = 2
golden_rows = 4
"""

#: The factory tells, in the job's log, what travelled with it.
MODEL = """
import sys
from pathlib import Path
from torch import nn


def build(*, n_classes):
    for path in sorted(Path(__file__).parent.rglob("*")):
        print("travelled:", path.relative_to(Path(__file__).parent), file=sys.stderr)
    return nn.Linear(2, n_classes)
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster of one node.

    Attributes:
        url: Its dashboard.
        address: Where drivers join it.
    """

    url: str
    address: str


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def takes_jobs(url: str) -> bool:
    show_token()
    from ray.job_submission import JobSubmissionClient

    try:
        JobSubmissionClient(url).submit_job(entrypoint="true")
    except (ConnectionError, RuntimeError):  # nobody listens yet, or no agent is there yet
        return False
    return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("r"), dashboard=free_port()) as started:
        yield started


@contextlib.contextmanager
def running(temporary: Path, *, dashboard: int) -> Iterator[Cluster]:
    """Have a cluster of one node while the block lasts; it ends as suddenly as its machine would."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}"),
        *("--num-cpus=2", f"--temp-dir={temporary}", "--disable-usage-stats"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    log = (temporary / "start.log").open("w")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=dict(os.environ)
    )
    url = f"http://127.0.0.1:{dashboard}"
    deadline_s = time.monotonic() + 120
    try:
        while not takes_jobs(url):
            assert process.poll() is None, (temporary / "start.log").read_text()
            assert time.monotonic() < deadline_s, (temporary / "start.log").read_text()
            threading.Event().wait(0.5)
        yield Cluster(url, f"127.0.0.1:{port}")
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()  # Ray answers SIGTERM only after it has waited for its children
        process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=500)
        log.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("projects") / "line"
    folder.mkdir()
    (folder / "kit.toml").write_text(KIT_TOML)
    (folder / "model.py").write_text(MODEL)
    for name in (".env", ".env.production", "id_ed25519", "store.p12", ".netrc"):
        (folder / name).write_text("SECRET=1")
    (folder / "old.pem").write_text("private")
    points = np.random.default_rng(0).normal(size=(120, 2)).astype(np.float32)
    sides = np.where(points.sum(axis=1) > 0, "above", "below").tolist()
    parquet.write_table(
        pa.table({"a": points[:, 0], "b": points[:, 1], "side": sides}), folder / "rows.parquet"
    )
    opened = Project.open(folder)
    generate_key(opened.signing_key_path())
    return opened


def settings(project: Project, *command: str, **flags: Any) -> SubmitSettings:
    return project.command("submit", SubmitSettings, {**flags, "command": list(command)})


def refuses(project: Project, match: str, *command: str, **flags: Any) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        submit(project, settings(project, *command, **flags))
    assert "\n" not in caught.value.message
    return caught.value


def job_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "kit.job"]


def test_a_submitted_training_registers_here_shows_its_log_and_ships_no_secret(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    caplog.set_level(logging.INFO, logger="kit")
    result = submit(project, settings(project, "train", "--promote", address=cluster.url))
    assert (result.status, result.exit_code) == ("SUCCEEDED", 0), job_log(caplog)
    assert project.registry().resolve("line@champion").number == 1
    lines = job_log(caplog)
    assert any(line.startswith("epoch 2:") for line in lines)
    travelled = {line.removeprefix("travelled: ") for line in lines if line.startswith("travelled: ")}
    assert {"kit.toml", "model.py", "rows.parquet"} <= travelled
    private = (".pem", ".env", "id_", ".p12", ".netrc", ".kit", "registry.db")
    assert not [name for name in travelled if any(each in name for each in private)]

    caplog.clear()
    again = submit(project, settings(project, address=cluster.url, attach=result.job_id))
    assert again == replace(result, tries=0)
    assert job_log(caplog) == lines

    caplog.clear()
    output = submit(
        project,
        settings(
            project,
            *("predict", "line", "--input", "rows.parquet", "--output", "out/a b", "--columns", "a"),
            address=cluster.url,
        ),
    )
    assert (output.status, output.exit_code) == ("SUCCEEDED", 0), job_log(caplog)
    part = parquet.read_table(project.folder / "out" / "a b" / "part-00000.parquet")
    assert part["a"].to_pylist() == parquet.read_table(project.folder / "rows.parquet")["a"].to_pylist()


def test_a_command_joins_the_cluster_that_address_names(
    cluster: Cluster, project: Project, tmp_path: Path
) -> None:
    flags = {
        "model": "line",
        "input": "rows.parquet",
        "output": str(tmp_path / "out"),
        "address": cluster.address,
    }
    result = predict(project, project.command("predict", PredictSettings, flags))
    assert result.rows_in == result.rows_out == 120


def test_a_failed_job_ends_with_the_exit_code_of_its_command(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kit")
    command = ("predict", "nobody", "--input=rows.parquet", "--output=never")
    result = submit(project, settings(project, *command, address=cluster.url))
    assert (result.status, result.exit_code) == ("FAILED", 5)
    assert any("nobody" in line for line in job_log(caplog))


def test_whoever_stops_following_leaves_the_job_running(cluster: Cluster, project: Project) -> None:
    command = [sys.executable, "-m", "kit", "submit", "--address", cluster.url]
    words = ["--", "train", "--epochs", "500", "--patience-epochs", "500"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    client = subprocess.Popen(
        [*command, *words],
        cwd=project.folder,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    assert client.stderr is not None
    said = ""
    while "travelled" not in said:
        line = client.stderr.readline()
        assert line, said
        said += line
    client.send_signal(signal.SIGINT)
    _, rest = client.communicate(timeout=500)
    assert client.returncode == 130, said + rest
    job_id = said.partition("submitted ")[2].split()[0]
    assert f"kit submit --address {cluster.url} --attach {job_id}" in rest
    assert f"ray job stop --address {cluster.url} {job_id}" in rest
    running = submit(project, settings(project, address=cluster.url, attach=job_id, wait=False))
    assert (running.status, running.exit_code) == ("RUNNING", 0)
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", cluster.url, job_id]
    subprocess.run(stop, check=True, capture_output=True, timeout=500)
    stopped = submit(project, settings(project, address=cluster.url, attach=job_id))
    assert stopped.status == "STOPPED"
    assert stopped.exit_code != 0


#: A training that takes a while, and whose command line no other process has.
LONG = ("train", "--epochs", "12", "--patience-epochs", "12", "--checkpoint-interval-s", "0")
QUICK = Patience(first_pause_s=0.1, longest_pause_s=0.2, reach_s=90.0)


class Reaction(logging.Handler):
    """Does something once, or several times, when a line that starts so is logged."""

    def __init__(self, start: str, action: Callable[[], None], *, times: int = 1) -> None:
        super().__init__()
        self.start, self.action, self.left = start, action, times

    def emit(self, record: logging.LogRecord) -> None:
        if self.left and record.getMessage().startswith(self.start):
            self.left -= 1
            self.action()

    def __enter__(self) -> Reaction:
        logging.getLogger("kit").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("kit").removeHandler(self)


def driver() -> psutil.Process:
    """Find the process of the job that runs ``LONG``."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if tuple(process.cmdline()[1:]) == ("-m", "kit", *LONG):
                    return process
        threading.Event().wait(0.05)
    raise AssertionError("the job's driver does not run")


def supervisor() -> psutil.Process:
    """Find Ray's process that runs and watches the job; it dies together with the driver's node."""
    return next(each for each in driver().parents() if each.name().startswith("ray::"))


def submitted(project: Project, cluster: Cluster, *command: str, **flags: Any) -> SubmitResult:
    return submit(project, settings(project, *command, address=cluster.url, **flags), patience=QUICK)


def kit_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "kit"]


def test_a_job_whose_driver_is_killed_is_submitted_again_and_goes_on(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kit")
    with Reaction("epoch 3:", lambda: driver().kill()):
        result = submitted(project, cluster, *LONG, retries=3)
    assert (result.status, result.exit_code, result.tries) == ("SUCCEEDED", 0, 2), job_log(caplog)
    first, again, second = [line for line in kit_log(caplog) if "(try " in line]
    assert first.startswith(f"submitted {result.job_id.removesuffix('-2')} to {cluster.url} (try 1 of 4)")
    assert "(try 1 of 4) was killed by SIGKILL; submitting it again in 0.1 s" in again
    assert second == f"submitted {result.job_id} to {cluster.url} (try 2 of 4)"
    epochs = [line.split(":")[0] for line in job_log(caplog) if line.startswith("epoch ")]
    assert int(epochs[-1].removeprefix("epoch ")) > 3  # not every epoch has a line
    assert epochs.count("epoch 1") == 1  # the second try began where the first one ended


def test_a_job_whose_node_dies_is_lost_without_an_exit_code(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kit")
    with Reaction("Running entrypoint", lambda: supervisor().kill(), times=2):
        result = submitted(project, cluster, *LONG, retries=1)
    assert (result.status, result.exit_code, result.tries) == ("FAILED", 7, 2)
    said = [line for line in kit_log(caplog) if "without an exit code" in line]
    assert "submitting it again" in said[0]
    assert "(try 2 of 2)" in said[1]
    assert "no try is left" in said[1]


def test_a_job_that_somebody_stops_is_not_submitted_again(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kit")
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", cluster.url, "--no-wait"]

    def act() -> None:
        job_id = kit_log(caplog)[-1].split()[1]
        subprocess.run([*stop, job_id], check=True, capture_output=True, timeout=500)

    with Reaction("Running entrypoint", act):
        result = submitted(project, cluster, *LONG, retries=3)
    assert (result.status, result.exit_code, result.tries) == ("STOPPED", 1, 1)


def test_a_job_that_refuses_is_not_submitted_again(cluster: Cluster, project: Project) -> None:
    result = submitted(project, cluster, "train", "--epochs", "0", retries=3)
    assert (result.status, result.exit_code, result.tries) == ("FAILED", 2, 1)


class Forward:
    """A forwarded port that can be dropped and come back."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def drop(self) -> None:
        sockets, self._sockets = [*self._sockets, self._listener], []
        for each in sockets:
            if each is not None:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def forward(cluster: Cluster) -> Iterator[Forward]:
    forwarded = Forward(int(cluster.url.rpartition(":")[2]))
    forwarded.open()
    yield forwarded
    forwarded.drop()


def test_with_retries_a_connection_that_comes_back_finds_the_same_job(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture, forward: Forward
) -> None:
    caplog.set_level(logging.INFO, logger="kit")
    near = Cluster(f"http://127.0.0.1:{forward.port}", cluster.address)
    with Reaction("epoch 3:", forward.drop), Reaction("lost train-", forward.open) as back:
        result = submitted(project, near, *LONG, retries=1)
    assert back.left == 0
    assert (result.status, result.exit_code, result.tries) == ("SUCCEEDED", 0, 1), kit_log(caplog)
    lines = job_log(caplog)
    caplog.clear()
    submitted(project, cluster, attach=result.job_id)
    assert lines == job_log(caplog)  # nothing twice, nothing left out


def test_without_retries_a_lost_connection_says_how_to_follow_again(
    cluster: Cluster, project: Project, caplog: pytest.LogCaptureFixture, forward: Forward
) -> None:
    caplog.set_level(logging.INFO, logger="kit")
    near = Cluster(f"http://127.0.0.1:{forward.port}", cluster.address)
    with Reaction("epoch 3:", forward.drop), pytest.raises(UnavailableError, match="was lost") as caught:
        submitted(project, near, *LONG)
    job_id = str(caught.value.hint).partition("--attach ")[2].partition(";")[0]
    assert submitted(project, cluster, attach=job_id).status == "SUCCEEDED"


def test_an_unknown_job_is_not_found(cluster: Cluster, project: Project) -> None:
    with pytest.raises(NotFoundError, match="knows no job 'raysubmit_nobody'"):
        submit(project, settings(project, address=cluster.url, attach="raysubmit_nobody"))


def test_a_wrong_token_is_refused_with_what_to_set(cluster: Cluster, project: Project) -> None:
    client = subprocess.run(
        [sys.executable, "-m", "kit", "submit", "--address", cluster.url, "--", "train"],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert client.returncode == 7, client.stderr
    assert "refuses the token" in client.stderr
    assert "RAY_AUTH_TOKEN" in client.stderr
    assert "Traceback" not in client.stderr


def test_an_unreachable_cluster_is_reported_in_time(project: Project) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and never answers
        for port in (free_port(), silent.getsockname()[1]):
            started_s = time.monotonic()
            address = f"http://127.0.0.1:{port}"
            with pytest.raises(UnavailableError, match=f"no cluster answers at {address}") as caught:
                submit(project, settings(project, "train", address=address, timeout_s=1.0))
            assert time.monotonic() - started_s < 10
            assert caught.value.hint


def test_what_is_not_a_ray_dashboard_is_said_to_be_none(project: Project, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(UnavailableError, match="not a Ray dashboard"):
            submit(project, settings(project, "train", address=address))
        server.shutdown()


def test_only_train_and_predict_run_as_jobs(project: Project) -> None:
    assert "predict" in str(refuses(project, "'predikt' cannot run as a job", "predikt", "line").hint)
    refuses(project, "'serve' cannot run as a job", "serve", "line")
    refuses(project, "no command to submit")
    refuses(project, "--attach job follows a job", "train", attach="job")


@pytest.mark.parametrize("flag", ["--address", "--project"])
def test_a_job_names_neither_another_cluster_nor_another_project(project: Project, flag: str) -> None:
    for words in ((flag, "x"), (f"{flag}=x",)):
        assert "leave" in str(refuses(project, f"train names {flag}", "train", *words).hint)


def test_a_cluster_elsewhere_needs_places_it_can_see(project: Project, tmp_path: Path) -> None:
    away = {"address": "http://192.0.2.1:8265", "python": "/opt/kit/bin/python"}
    hint = refuses(project, "cannot see the project's state", "train", **away).hint
    assert "[project]" in str(hint)
    assert "s3://" in str(hint)
    folder = tmp_path / "line"
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns(".kit"))
    toml = folder / "kit.toml"
    toml.write_text(KIT_TOML.replace("[data]", f'state = "{tmp_path}/shared"\n\n[data]'))
    shared = Project.open(folder)
    words = ("predict", "line", "--input", "s3://b/in", "--output")
    refuses(shared, "would lie in the job's own copy", *words, "out", **away)
    refuses(shared, "which Python has the kit", "train", address=away["address"])
    toml.write_text(toml.read_text() + '\n[store]\nuri = "models"\n')
    refuses(Project.open(folder), "the store 'models' is relative", *words, "/shared/out", **away)


def test_a_signing_key_inside_the_project_does_not_travel(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "line"
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns(".kit"))
    (folder / "kit.toml").write_text(KIT_TOML + '\n[signing]\nkey = "secret/line.key"\n')
    other = Project.open(folder)
    refuses(other, "private keys do not travel", "train")
    # the key, and the ones before and after it
    assert {"/secret/line.key", "/secret/line-*.key"} <= set(shipped(other)["excludes"])


def test_a_typed_place_starts_where_it_is_typed_and_one_of_the_file_at_the_project(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "line"
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns(".kit"))
    state = f'state = "{tmp_path}/shared"\n\n[data]'
    (folder / "kit.toml").write_text(
        KIT_TOML.replace("[data]", state) + '\n[predict]\ninput = "rows.parquet"\n'
    )
    other = Project.open(folder)
    monkeypatch.chdir(tmp_path)
    words = ("predict", "line", "--output", "out")
    entrypoint = _planned(other, settings(other, *words)).entrypoint
    assert entrypoint.endswith(f"--input={folder}/rows.parquet --output={tmp_path}/out")
    entrypoint = _planned(other, settings(other, *words, "--input", "line/rows.parquet")).entrypoint
    assert f"--input={folder}/rows.parquet" in entrypoint

    away = {"address": "http://192.0.2.1:8265", "python": "/opt/kit/bin/python"}
    remote = ("predict", "line", "--output", "/shared/out", "--input", "rows.parquet")
    assert "s3://" in str(refuses(other, "does not travel with the project", *remote, **away).hint)
    monkeypatch.chdir(folder)
    assert _planned(other, settings(other, *remote, **away)).entrypoint.endswith("--input rows.parquet")


@pytest.mark.parametrize("address", ["http://127.0.0.1:abc", "http://[x", "http://a..b:1"])
def test_a_malformed_address_is_refused_in_one_sentence(project: Project, address: str) -> None:
    with pytest.raises((SettingsError, UnavailableError)) as caught:
        submit(project, settings(project, address=address, attach="job"))
    assert "\n" not in caught.value.message
    if "a..b" not in address:
        refuses(project, "is not an address", "train", address=address)
