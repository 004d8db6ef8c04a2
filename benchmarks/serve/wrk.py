"""The load generator of closed loops: wrk, one thread; a connection asks again as soon as it is answered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("post.lua")
_TIMEOUT_S = 10  # what is slower has failed
_SLACK_S = 30.0


@dataclass(frozen=True)
class Load:
    """What wrk counted.

    Attributes:
        requests: Answers that came.
        seconds: In so long.
        p50_ms: Median latency.
        p99_ms: Latency that one of a hundred exceeds.
        max_ms: The longest.
        refused: Answers of another status than 2xx or 3xx.
        broken: Connections that could not be made, read or written, or took longer than 10 s.
        counts: ``STATUS VALUE`` of a response header to the number of such answers.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused: int
    broken: int
    counts: dict[str, int]

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def obstacle() -> str | None:
    """Say why there is no load generator; None when there is one."""
    return None if shutil.which("wrk") else "there is no wrk here; apt-get install wrk"


@dataclass(frozen=True)
class Driving:
    """A wrk that runs."""

    process: subprocess.Popen[str]
    seconds: float

    def stop(self) -> Load:
        """End it now."""
        self.process.send_signal(signal.SIGINT)
        return self.result()

    def result(self) -> Load:
        """Wait until it ends."""
        out, err = self.process.communicate(timeout=self.seconds + _SLACK_S)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if self.process.returncode or not lines:
            raise SystemExit(f"wrk ended with {self.process.returncode}:\n{out[-500:]}{err[-1500:]}")
        return Load(**json.loads(lines[-1]))


@dataclass(frozen=True)
class Target:
    """What is asked.

    Attributes:
        url: Where to post.
        body: File of the request's body.
        headers: Beside the length.
        fresh: Whether each body differs, by a number in the place of ``@@``.
        count: Response header whose values are counted; costs wrk some time.
    """

    url: str
    body: Path
    headers: Mapping[str, str]
    fresh: bool = False
    count: str = ""

    def start(self, *, connections: int, seconds: float) -> Driving:
        """Begin to ask as fast as it is answered, on so many connections, and return."""
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
        words += [f"--timeout={_TIMEOUT_S}s", "-s", str(_SCRIPT), self.url]
        variables = {
            "BODY": str(self.body),
            "HEADERS": "\n".join(f"{name}: {value}" for name, value in self.headers.items()),
            "FRESH": "1" if self.fresh else "",
            "COUNT": self.count,
        }
        process = subprocess.Popen(
            words,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Driving(process, seconds)

    def drive(self, *, connections: int, seconds: float) -> Load:
        """Ask as ``start`` does, and wait for the end."""
        return self.start(connections=connections, seconds=seconds).result()
