"""An endpoint at a glance, from what its replicas leave in ``<state>/serve/replicas``.

Counters are looked at twice, so that rates and latencies are those of the time between the two looks; where
nothing was asked in it, latencies are those since the replicas started. Reads files and asks nobody. It shows
nothing; ``kit serve status`` does, in ``kit.cli.show.status``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from serve.releases.acks import Ack, living_acks
from serve.watching.exposition import Sample, living, read_samples
from serve.watching.outcomes import ANSWERED, OUTCOMES
from serve.watching.version_metrics import BREAKER_STATES, CACHE_MISSES

_BREAKER_NAMES = {value: name for name, value in BREAKER_STATES.items()}


@dataclass(frozen=True)
class VersionStatus:
    """One version over all replicas.

    Attributes:
        model: The model.
        version: Its number.
        share: Share of the traffic it is meant to get, 0 to 1; None for a version no release names.
        states: State to the number of replicas that have it so, like READY.
        requests_per_s: Requests in the time that was looked at.
        p50_ms: Median latency; None where nothing was answered. Interpolated within a bucket.
        p99_ms: The latency one of a hundred was above; likewise.
        errors: Outcome to requests per second, for all but the answered ones.
        queue_rows: Rows that wait.
        batch_rows: Mean rows of an engine call; None without one.
        cache_share: Share of the lookups the cache answered; None without any.
        breaker: The worst state of its breakers; None where it is not loaded.
        loaded_bytes: Memory it takes in all replicas.
    """

    model: str
    version: str
    share: float | None
    states: Mapping[str, int]
    requests_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    errors: Mapping[str, float]
    queue_rows: int
    batch_rows: float | None
    cache_share: float | None
    breaker: str | None
    loaded_bytes: int


@dataclass(frozen=True)
class ReplicaStatus:
    """One living replica.

    Attributes:
        name: The replica.
        node: Host name of its machine; "" while it has not said so.
        pid: Its process; 0 likewise.
        in_flight: Requests it works on.
        requests_per_s: Requests in the time that was looked at.
        cpu_share: CPU time per second.
        memory_bytes: Its process's memory.
        releases: Endpoint to the release in force.
        failed: Endpoint to why a newer release is not.
    """

    name: str
    node: str
    pid: int
    in_flight: int
    requests_per_s: float
    cpu_share: float
    memory_bytes: int
    releases: Mapping[str, int]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class EndpointStatus:
    """All of it.

    Attributes:
        over_s: Seconds between the two looks.
        versions: By model and number.
        replicas: The living ones, by name.
        wanted: The fewest replicas there should be.
        refused: Outcome to requests per second, of requests that named nothing that exists.
    """

    over_s: float
    versions: tuple[VersionStatus, ...]
    replicas: tuple[ReplicaStatus, ...]
    wanted: int
    refused: Mapping[str, float]


class Look(NamedTuple):
    """What all living replicas said at one moment.

    Attributes:
        at_s: When, by ``time.monotonic``.
        samples: Replica to its samples.
    """

    at_s: float
    samples: Mapping[str, tuple[Sample, ...]]


def status(state: Path, *, over_s: float = 2.0) -> EndpointStatus:
    """Look twice and say what happened between.

    Args:
        state: The project's state folder.
        over_s: Seconds between the looks; replicas write once a second.
    """
    folder = state / "serve" / "replicas"
    before = look(folder)
    if before.samples:
        time.sleep(over_s)
    return compare(before, look(folder), acks=living_acks(folder))


def look(folder: Path) -> Look:
    """Read what living replicas say now."""
    texts = living(folder)
    return Look(time.monotonic(), {name: tuple(read_samples(text)) for name, text in texts.items()})


def compare(before: Look, after: Look, *, acks: tuple[Ack, ...]) -> EndpointStatus:
    """Say what happened between two looks.

    Args:
        before: The first; replicas that were not there count from zero.
        after: The second.
        acks: What the replicas say of their releases and versions.
    """
    seconds = max(after.at_s - before.at_s, 1e-9)
    totals, earlier = _Sums(after), _Sums(before)
    moved = _Moved(totals, earlier, seconds=seconds)
    known = {(each.get("model", ""), each.get("version", "")) for each in totals.labels()}
    versions = tuple(
        _version(model, version, moved=moved, acks=acks)
        for model, version in sorted(known, key=_by_number)
        if version
    )
    return EndpointStatus(
        over_s=seconds if before.samples else 0.0,
        versions=versions,
        replicas=tuple(
            _replica(name, before=before, after=after, acks=acks, seconds=seconds) for name in after.samples
        ),
        wanted=int(totals.largest("kit_replicas_wanted") or 0),
        refused=moved.outcomes(version=""),
    )


def quantile(bounds: list[float], counts: list[float], *, q: float) -> float | None:
    """Estimate a quantile of a histogram, as Prometheus does: evenly within a bucket.

    Args:
        bounds: Upper bounds of the buckets, ascending, the last one infinite.
        counts: Cumulative counts, shape (n_bounds,).
        q: From 0 to 1.

    Returns:
        The value; the last finite bound where it is above; None for an empty histogram.
    """
    if not counts or counts[-1] <= 0:
        return None
    rank = q * counts[-1]
    index = next(place for place, count in enumerate(counts) if count >= rank)
    if index == len(bounds) - 1:
        return bounds[-2] if len(bounds) > 1 else None
    below, low = (counts[index - 1], bounds[index - 1]) if index else (0.0, 0.0)
    inside = counts[index] - below
    return low + (bounds[index] - low) * ((rank - below) / inside if inside else 1.0)


class _Sums:
    """Samples of a look, replicas added up."""

    def __init__(self, seen: Look) -> None:
        self._values: dict[str, dict[frozenset[tuple[str, str]], list[float]]] = defaultdict(dict)
        for samples in seen.samples.values():
            for name, labels, value in samples:
                self._values[name].setdefault(frozenset(labels.items()), []).append(value)

    def of(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Give the series of a name that have these labels, with their sums."""
        wanted = labels.items()
        for key, values in self._values.get(name, {}).items():
            if wanted <= key:
                yield dict(key), sum(values)

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.of(name, **labels))

    def largest(self, name: str, **labels: str) -> float | None:
        keys = self._values.get(name, {})
        found = [value for key, values in keys.items() if labels.items() <= key for value in values]
        return max(found, default=None)

    def labels(self) -> Iterator[dict[str, str]]:
        """Give the labels of every version that is known to any replica."""
        for name in ("kit_requests_total", "kit_engine_seconds_count", "kit_loads_total"):
            for labels, _ in self.of(name):
                yield labels
        for labels, _ in self.of("kit_release_share_ratio"):
            yield {"model": labels["endpoint"], "version": labels["version"]}


class _Moved:
    """Sums, and how far they moved between two looks."""

    def __init__(self, now: _Sums, before: _Sums, *, seconds: float) -> None:
        self.now, self.before, self.seconds = now, before, seconds

    def count(self, name: str, **labels: str) -> float:
        """Give the difference; a replica that ended meanwhile must not make it negative."""
        return max(0.0, self.now.total(name, **labels) - self.before.total(name, **labels))

    def outcomes(self, **labels: str) -> dict[str, float]:
        """Give requests per second by outcome, without those that were answered."""
        rates = {
            outcome: self.count("kit_requests_total", outcome=outcome, **labels) / self.seconds
            for outcome in OUTCOMES
            if outcome not in ANSWERED
        }
        return {outcome: rate for outcome, rate in rates.items() if rate}

    def ratio(self, part: str, whole: str, **labels: str) -> float | None:
        """Give a mean between the looks, or since the start where nothing moved."""
        for count in (self.count, self.now.total):
            if (of := count(whole, **labels)) > 0:
                return count(part, **labels) / of
        return None

    def latency_ms(self, q: float, **labels: str) -> float | None:
        """Give a quantile between the looks, or since the start where nothing was answered."""
        name = "kit_request_seconds_bucket"
        edges = sorted({each["le"] for each, _ in self.now.of(name, **labels)}, key=float)
        bounds = [float(edge) for edge in edges]
        for count in (self.count, self.now.total):
            found = quantile(bounds, [count(name, le=edge, **labels) for edge in edges], q=q)
            if found is not None:
                return found * 1e3
        return None


def _version(model: str, version: str, *, moved: _Moved, acks: tuple[Ack, ...]) -> VersionStatus:
    now, labels = moved.now, {"model": model, "version": version}
    states: dict[str, int] = defaultdict(int)
    for ack in acks:
        state = ack.endpoints[model].states.get(version) if model in ack.endpoints else None
        if state is not None:
            states[str(state.get("status", state) if isinstance(state, Mapping) else state)] += 1
    lookups = now.total("kit_cache_total", **labels)
    missed = sum(now.total("kit_cache_total", result=result, **labels) for result in CACHE_MISSES)
    breaker = now.largest("kit_breaker_state", **labels)
    return VersionStatus(
        model=model,
        version=version,
        share=now.largest("kit_release_share_ratio", endpoint=model, version=version),
        states=dict(states),
        requests_per_s=moved.count("kit_requests_total", **labels) / moved.seconds,
        p50_ms=moved.latency_ms(0.5, **labels),
        p99_ms=moved.latency_ms(0.99, **labels),
        errors=moved.outcomes(**labels),
        queue_rows=int(now.total("kit_queue_rows", **labels)),
        batch_rows=moved.ratio("kit_batch_rows_sum", "kit_batch_rows_count", **labels),
        cache_share=(lookups - missed) / lookups if lookups else None,
        breaker=None if breaker is None else _BREAKER_NAMES.get(int(breaker)),
        loaded_bytes=int(now.total("kit_loaded_bytes", **labels)),
    )


def _replica(name: str, *, before: Look, after: Look, acks: tuple[Ack, ...], seconds: float) -> ReplicaStatus:
    now = _Sums(Look(0.0, {name: after.samples[name]}))
    then = _Sums(Look(0.0, {name: before.samples.get(name, ())}))
    moved = _Moved(now, then, seconds=seconds)
    ack = next((each for each in acks if each.replica == name), None)
    endpoints = ack.endpoints if ack else {}
    shown = {labels["endpoint"]: int(value) for labels, value in now.of("kit_release_sequence")}
    return ReplicaStatus(
        name=name,
        node=ack.node if ack else "",
        pid=ack.pid if ack else 0,
        in_flight=int(now.total("kit_in_flight")),
        requests_per_s=moved.count("kit_requests_total") / seconds,
        cpu_share=moved.count("process_cpu_seconds_total") / seconds,
        memory_bytes=int(now.total("process_resident_memory_bytes")),
        releases={endpoint: each.in_force for endpoint, each in endpoints.items()} or shown,
        failed={endpoint: each.reason for endpoint, each in endpoints.items() if each.failed},
    )


def _by_number(key: tuple[str, str]) -> tuple[str, int, str]:
    model, version = key
    return model, int(version) if version.isdigit() else 0, version
