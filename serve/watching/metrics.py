"""What a replica measures of itself, in Prometheus' terms; FAMILIES is the list of it.

Counts are plain Python (``serve.watching.counters``) and the text is written here. prometheus_client takes
29 ms to write 1,800 lines, during which the event loop waits for the interpreter; this takes 1.2 ms.

Labels are models and versions that exist, never what a client wrote: requests for a model nobody knows are
counted with both labels empty.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping

from kit import __version__
from kit.machine import peak_bytes, resident_bytes
from serve.watching.counters import Family, Lines, Tally, asked, gauge_line
from serve.watching.version_metrics import Statistics, VersionMetrics

FAMILIES = tuple(
    Family(*each)
    for each in (
        ("kit_build_info", "gauge", "Always 1; the labels say which kit runs here."),
        ("kit_replicas_wanted", "gauge", "The fewest replicas the deployment is meant to have."),
        ("kit_requests_total", "counter", "Requests by transport and outcome."),
        ("kit_request_seconds", "histogram", "Time to an answer; requests that were refused are left out."),
        ("kit_in_flight", "gauge", "Requests for predictions that are being worked on."),
        ("kit_queue_rows", "gauge", "Rows that wait for the engine."),
        ("kit_queue_limit_rows", "gauge", "Most rows that may wait."),
        ("kit_queue_wait_seconds_total", "counter", "Time that requests waited for the engine, added up."),
        ("kit_batch_rows", "histogram", "Rows of one engine call."),
        ("kit_batch_requests", "histogram", "Requests of one engine call."),
        ("kit_engine_seconds", "histogram", "Time of one engine call."),
        ("kit_cache_total", "counter", "Lookups of the response cache: hit, shared, joined, miss, error."),
        ("kit_breaker_state", "gauge", "Circuit breaker: 0 closed, 1 half-open, 2 open."),
        ("kit_rate_limited_total", "counter", "Requests over their client's own limit."),
        ("kit_loads_total", "counter", "Versions that were loaded, by result."),
        ("kit_load_seconds", "gauge", "Time of the last load, by step."),
        ("kit_loaded_bytes", "gauge", "Memory a loaded version takes."),
        ("kit_release_sequence", "gauge", "Sequence number of the release in force."),
        ("kit_release_failed", "gauge", "Sequence number of a newer release that cannot be in force, or 0."),
        ("kit_release_share_ratio", "gauge", "Share of the traffic that a version is meant to get."),
        ("kit_shadow_requests_total", "counter", "Requests for a shadow: compared, unlike, failed, dropped."),
        ("kit_shadow_labels_total", "counter", "Labels a shadow gave beside those given: same, different."),
        ("kit_shadow_difference_max", "gauge", "Largest absolute difference of a shadow's answers."),
        ("kit_records_dropped_total", "counter", "Log lines, samples and spans there was no room for."),
        ("process_cpu_seconds_total", "counter", "CPU time of the replica's process."),
        ("process_resident_memory_bytes", "gauge", "Memory of the replica's process."),
        ("process_start_time_seconds", "gauge", "When the replica's process started (Unix time)."),
    )
)

# Handing the interpreter's lock over between pieces keeps the event loop from waiting for a whole text.
_VERSIONS_AT_ONCE = 8


class Metrics:
    """All counts of one replica.

    Args:
        replicas_wanted: The fewest replicas its deployment is meant to have.
        deployment: Its deployment.
    """

    def __init__(self, *, replicas_wanted: int = 1, deployment: str = "endpoint") -> None:
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._releases: dict[str, tuple[int, dict[str, float], Callable[[], int]]] = {}
        self._rate_limited = Tally("kit_rate_limited_total", labels={}, words=("model",))
        self._dropped: dict[str, Callable[[], int]] = {}
        self._deployment = {"deployment": deployment}
        self._replicas_wanted = replicas_wanted
        self._started_s = time.time()
        #: Requests that are being worked on; whoever starts and ends them counts.
        self.in_flight = 0

    def of(self, model: str, version: str) -> VersionMetrics:
        """Give the counts of a version; "" for both where a request names nothing that exists."""
        found = self._versions.get((model, version))
        if found is None:  # in one step: versions are loaded in threads
            found = self._versions.setdefault((model, version), VersionMetrics(model, version))
        return found

    def observe(self, model: str, version: str, transport: str, outcome: str, seconds: float) -> None:
        """Count the end of a request; see ``VersionMetrics.answered``."""
        self.of(model, version).answered(outcome, seconds, transport=transport)

    def forget(self, model: str, version: str) -> None:
        """Drop the counts of a version that will not come back."""
        self._versions.pop((model, version), None)

    def rate_limited(self, model: str) -> None:
        """Count a request over its client's own limit."""
        self._rate_limited.add(model)

    def release(
        self, endpoint: str, *, sequence: int, shares: Mapping[str, float], failed: Callable[[], int]
    ) -> None:
        """Note an endpoint's release.

        Args:
            endpoint: Its name.
            sequence: The release in force.
            shares: Version to its share of the traffic, from 0 to 1.
            failed: Tells the sequence number of a newer one that cannot be in force, or 0.
        """
        self._releases[endpoint] = (sequence, dict(shares), failed)

    def watch_dropped(self, kind: str, *, count: Callable[[], int]) -> None:
        """Say where to read how many records of a kind there was no room for: log, samples, spans."""
        self._dropped[kind] = count

    def statistics(self, model: str, version: str) -> Statistics:
        """Give a version's counts as the protocol's statistics want them; zeros for one never asked."""
        found = self._versions.get((model, version))
        return Statistics() if found is None else found.statistics()

    def render(self) -> bytes:
        """Write everything as Prometheus reads it; may be called from any thread."""
        lines: Lines = {each.name: [] for each in FAMILIES}
        self._write_process(lines)
        self._rate_limited.write(lines)
        for endpoint, (sequence, shares, failed) in self._releases.copy().items():
            labels = {"endpoint": endpoint}
            lines["kit_release_sequence"].append(gauge_line("kit_release_sequence", sequence, labels))
            lines["kit_release_failed"].append(gauge_line("kit_release_failed", asked(failed) or 0, labels))
            for version, share in shares.items():
                line = gauge_line("kit_release_share_ratio", share, labels | {"version": version})
                lines["kit_release_share_ratio"].append(line)
        for index, version_metrics in enumerate(list(self._versions.values())):
            if index % _VERSIONS_AT_ONCE == _VERSIONS_AT_ONCE - 1:
                time.sleep(0)
            version_metrics.write(lines)
        text = [line for each in FAMILIES if lines[each.name] for line in (*each.heads, *lines[each.name])]
        return ("\n".join(text) + "\n").encode()

    def _write_process(self, lines: Lines) -> None:
        about = {"version": __version__, "python": platform.python_version(), **self._deployment}
        values: tuple[tuple[str, float, dict[str, str] | None], ...] = (
            ("kit_build_info", 1, about),
            ("kit_replicas_wanted", self._replicas_wanted, self._deployment),
            ("kit_in_flight", self.in_flight, None),
            ("process_cpu_seconds_total", time.process_time(), None),
            ("process_resident_memory_bytes", resident_bytes() or peak_bytes(), None),
            ("process_start_time_seconds", self._started_s, None),
            *(
                ("kit_records_dropped_total", count(), {"kind": kind})
                for kind, count in self._dropped.copy().items()
            ),
        )
        for name, value, labels in values:
            lines[name].append(gauge_line(name, value, labels))
