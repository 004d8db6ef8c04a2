"""OpenTelemetry traces of sampled requests: a span for the request, one for its wait, one for the engine.

Who calls decides: a ``traceparent`` (W3C Trace Context) says whether its trace is recorded; without one a
coin does. A request that is not recorded costs the toss. Spans are made when a request has ended, and sent by
the SDK's own thread (``serve.watching.spans``); a collector that is away costs spans and nothing else.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from kit.errors import MissingDependencyError, install_line
from kit.settings.serving import TracingSettings

_TRACEPARENT = re.compile(
    rb"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


class Parent(NamedTuple):
    """What a caller's ``traceparent`` says."""

    trace_id: int
    span_id: int
    is_sampled: bool


def read_traceparent(value: bytes) -> Parent | None:
    """Read the header; None for one that breaks the standard's rules, which counts as none at all.

    Source: W3C, "Trace Context", section 3.2.
    """
    found = _TRACEPARENT.fullmatch(value)
    if found is None or found["version"] == b"ff" or (found["version"] == b"00" and found["more"]):
        return None
    trace_id, span_id = int(found["trace"], 16), int(found["span"], 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(found["flags"], 16) & 1))


class Trace:
    """One request that is recorded; whoever works on it notes what it did when.

    Args:
        parent: The caller's span, if it has one.
    """

    __slots__ = ("parent", "stages", "started_ns")

    def __init__(self, parent: Parent | None) -> None:
        self.parent = parent
        self.started_ns = time.time_ns()
        self.stages: list[tuple[str, int, int]] = []

    def stage(self, name: str, *, started_ns: int, ended_ns: int) -> None:
        """Note a part of the work, like ``queue`` or ``engine`` (Unix times in ns)."""
        self.stages.append((name, started_ns, ended_ns))


class Tracing:
    """Decides which requests of a replica are recorded, and hands over those that were.

    Args:
        settings: The collector, and the share of requests without a ``traceparent`` that is recorded.
        replica: The replica's name, which its spans carry.

    Raises:
        MissingDependencyError: OpenTelemetry is not installed.
    """

    def __init__(self, settings: TracingSettings, *, replica: str) -> None:
        try:
            from serve.watching.spans import Spans
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"[serve.tracing] needs {error.name}", hint=install_line("cluster")
            ) from error
        self._share = settings.share
        self._random = random.random
        self._spans = Spans(settings.endpoint, replica=replica)

    @property
    def dropped(self) -> int:
        """Spans that did not reach the collector."""
        return self._spans.dropped

    def begin(self, traceparent: bytes | None) -> Trace | None:
        """Decide whether a request is recorded; None if not.

        Args:
            traceparent: The request's header.
        """
        parent = read_traceparent(traceparent) if traceparent else None
        if parent is None:
            return Trace(None) if self._random() < self._share else None
        return Trace(parent) if parent.is_sampled else None

    def end(self, trace: Trace, *, name: str, outcome: str, about: Mapping[str, str | int | float]) -> None:
        """Hand a request's spans over; 0.1 ms, for the recorded ones alone.

        Args:
            trace: What was noted.
            name: Name of its span, like ``infer digits``.
            outcome: One of ``outcomes.OUTCOMES``.
            about: What else to say: model, version, rows; never a payload or a secret.
        """
        self._spans.add(trace, name=name, outcome=outcome, about=about)

    def close(self) -> None:
        """Send what waits, and end; a collector that is away is not waited for longer than one try takes."""
        self._spans.close()
