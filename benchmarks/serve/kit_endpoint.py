"""`kit serve` as a user runs it: a project made for it, its command line, and whether it answers rightly."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asking import Request, answers, natural_json, post, protocol_json, wrong
from environment import kit_words, variables
from servers import Server
from subjects import Subject, make_project

_CHECKED_ROWS = 8


@dataclass(frozen=True)
class Place:
    """Where a benchmark keeps its things.

    Attributes:
        folder: Of everything.
    """

    folder: Path

    def project(self, name: str) -> Path:
        """Say where a server's project lies."""
        return self.folder / "projects" / name

    @property
    def bodies(self) -> Path:
        """Say where requests lie for wrk."""
        return self.folder / "bodies"

    def log(self, name: str) -> Path:
        """Say where a server's words go."""
        return self.folder / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Setting:
    """How an endpoint is set up.

    Attributes:
        subjects: Versions of one model; the first is served.
        port: Where it listens.
        flags: Of ``kit serve``.
        more: Sections of kit.toml.
        headers: What a request carries so that it is let in.
    """

    subjects: tuple[Subject, ...]
    port: int
    flags: tuple[str, ...] = ()
    more: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Endpoint:
    """A `kit serve` that answers.

    Attributes:
        server: Its processes.
        setting: How it was set up.
        project: Its project's folder.
        start_s: Seconds from its start to the first answer.
    """

    server: Server
    setting: Setting
    project: Path
    start_s: float

    @property
    def subject(self) -> Subject:
        """The version it began with."""
        return self.setting.subjects[0]

    @property
    def path(self) -> str:
        """Where its model is asked."""
        return infer_path(self.subject)

    @property
    def url(self) -> str:
        """Where its model is asked, as wrk needs it."""
        return f"http://127.0.0.1:{self.setting.port}{self.path}"

    def request(self, *, seed: int = 0) -> Request:
        """Make a request of one row in JSON."""
        return protocol_json(self.subject.rows(1, seed=seed), headers=self.setting.headers)

    def release(self, *words: str) -> dict[str, Any]:
        """Run ``kit release`` on its model; gives what it printed, and ``called_s``, the command's time."""
        began = time.monotonic()
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "kit",
                "release",
                self.subject.name,
                *words,
                f"--project={self.project}",
                "--json",
                "--quiet",
            ],
            capture_output=True,
            text=True,
            env=variables(),
            check=False,
        )
        if ran.returncode:
            raise SystemExit(
                f"kit release {' '.join(words)} ended with {ran.returncode}: {ran.stderr[-1000:]}"
            )
        told: dict[str, Any] = json.loads(ran.stdout)
        return {**told, "called_s": time.monotonic() - began}


def infer_path(subject: Subject) -> str:
    """Say where the protocol asks a model."""
    return f"/v2/models/{subject.name}/infer"


@contextlib.contextmanager
def running(place: Place, name: str, setting: Setting, *, made: bool = False) -> Iterator[Endpoint]:
    """Run ``kit serve`` until its answers are right, and end it.

    Args:
        place: Where things are kept.
        name: Of the project and the log.
        setting: How.
        made: Whether the project is there already.
    """
    subject, project = setting.subjects[0], place.project(name)
    print(f"starting kit serve ({name})", file=sys.stderr, flush=True)
    if not made:
        make_project(project, setting.subjects, more=setting.more)
    words = kit_words(project, models=(subject.name,), port=setting.port, flags=setting.flags)
    with Server(words, variables=variables(), log=place.log(name)) as server:
        row, path = subject.rows(1, seed=0), infer_path(subject)

        def is_ready() -> bool:
            return answers(setting.port, path, protocol_json(row, headers=headers_of(setting, project)))

        start_s = server.wait_until(is_ready)
        filled = replace(setting, headers=headers_of(setting, project))
        check(setting.port, path, subject, headers=filled.headers)
        yield Endpoint(server, filled, project, round(start_s, 1))


def headers_of(setting: Setting, project: Path) -> dict[str, str]:
    """Give what lets a request in: what the setting says, or the key of an endpoint that asks for one."""
    key = project / ".kit" / "serve" / "key"
    if "--auth=key" in setting.flags and "authorization" not in setting.headers and key.is_file():
        return {**setting.headers, "authorization": f"Bearer {key.read_text().strip()}"}
    return dict(setting.headers)


def check(
    port: int,
    path: str,
    subject: Subject,
    *,
    natural: bool = False,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Ask for some rows and compare every answer.

    Raises:
        SystemExit: One is wrong.
    """
    for seed in range(_CHECKED_ROWS):
        row = subject.rows(1, seed=seed)
        request = natural_json(row) if natural else protocol_json(row, headers=headers)
        status, _, body = post(port, path, request)
        if reason := wrong(status, body, row=row, subject=subject):
            raise SystemExit(f"port {port} answers wrongly: {reason}")
