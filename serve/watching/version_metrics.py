"""What is counted of one version of a model, as metrics and as the protocol's statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve.watching.counters import Histogram, Lines, Tally, asked, gauge_line
from serve.watching.outcomes import ANSWERED, FAILED

if TYPE_CHECKING:
    from serve.releases.comparison import Counts

#: Upper bounds of request latencies, in seconds.
REQUEST_S = (
    *(0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
#: Upper bounds of engine calls, in seconds.
ENGINE_S = (
    *(0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
#: Upper bounds of batch sizes.
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
BATCH_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CACHE_MISSES = ("miss", "error")
BREAKER_STATES = {"closed": 0, "half-open": 1, "open": 2}

#: Outcomes whose time says how fast the endpoint is; an error that comes at once would only flatter it.
_TIMED = frozenset((*ANSWERED, "deadline", "model", "internal"))
_MOST_BATCH_SIZES = 1024


@dataclass(frozen=True)
class Statistics:
    """What the protocol's statistics say of one version; times in ns, added up.

    Attributes:
        success_count: Requests that were answered.
        success_ns: Their time from first byte to answer.
        fail_count: Requests that failed for something the client could not help.
        fail_ns: Their time.
        queue_ns: Time requests waited for the engine.
        infer_ns: Time in the engine, per batch.
        rows: Rows the engine computed.
        batches: Engine calls.
        cache_hits: Answers from the cache.
        cache_misses: Lookups that found nothing.
        last_ms: When a request last ended (Unix time in ms), 0 for never.
        by_rows: Size of a batch to how many there were and their time in the engine.
    """

    success_count: int = 0
    success_ns: int = 0
    fail_count: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    rows: int = 0
    batches: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    last_ms: int = 0
    by_rows: Mapping[int, tuple[int, int]] = field(default_factory=dict)


class VersionMetrics:
    """The counts of one version. Keep it where the version is kept: finding it again costs 0.1 us.

    Args:
        model: The model; "" for requests that name none that is served.
        version: Its number as clients write it; "" for requests that failed before one was chosen.
    """

    __slots__ = (
        *("_by_rows", "_cache", "_failed_s", "_is_known", "_labels", "_last_s", "_load_s", "_loads"),
        *("_requests", "_succeeded_s", "_waited_s", "batch_requests", "batch_rows", "breaker"),
        *("engine_seconds", "loaded_bytes", "queue_limit_rows", "queue_rows", "request_seconds", "shadow"),
    )

    def __init__(self, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        self._labels = labels
        self._is_known = bool(version)
        self._requests = Tally("kit_requests_total", labels=labels, words=("transport", "outcome"))
        self.request_seconds = Histogram("kit_request_seconds", bounds=REQUEST_S, labels=labels)
        self.batch_rows = Histogram("kit_batch_rows", bounds=BATCH_ROWS, labels=labels)
        self.batch_requests = Histogram("kit_batch_requests", bounds=BATCH_REQUESTS, labels=labels)
        self.engine_seconds = Histogram("kit_engine_seconds", bounds=ENGINE_S, labels=labels)
        self._cache = Tally("kit_cache_total", labels=labels, words=("result",))
        self._loads = Tally("kit_loads_total", labels=labels, words=("result",))
        self._succeeded_s = self._failed_s = self._waited_s = self._last_s = 0.0
        self._by_rows: dict[int, list[float]] = {}
        self._load_s: dict[str, float] = {}
        self.loaded_bytes: int | None = None
        self.queue_rows: Callable[[], float] | None = None
        self.queue_limit_rows: int | None = None
        self.breaker: Callable[[], str] | None = None
        self.shadow: Callable[[], Counts] | None = None

    def answered(self, outcome: str, seconds: float, *, transport: str) -> None:
        """Count the end of a request.

        Args:
            outcome: One of ``outcomes.OUTCOMES``.
            seconds: Time since its first byte.
            transport: ``http`` or ``grpc``.
        """
        self._requests.add(transport, outcome)
        if outcome in _TIMED:
            self.request_seconds.observe(seconds)
        if outcome in ANSWERED:
            self._succeeded_s += seconds
        elif outcome in FAILED:
            self._failed_s += seconds
        self._last_s = time.time()

    def batch(self, requests: int, rows: int, seconds: float, waited_s: float = 0.0) -> None:
        """Count one engine call; the shape of ``Batcher``'s ``on_batch``.

        Args:
            requests: Requests in it.
            rows: Rows in it.
            seconds: Time in the engine.
            waited_s: Time its requests had waited, added up.
        """
        self.batch_requests.observe(requests)
        self.batch_rows.observe(rows)
        self.engine_seconds.observe(seconds)
        self._waited_s += waited_s
        kept = self._by_rows.get(rows)
        if kept is not None:
            kept[0] += 1
            kept[1] += seconds
        elif len(self._by_rows) < _MOST_BATCH_SIZES:
            self._by_rows[rows] = [1, seconds]

    def cached(self, result: str) -> None:
        """Count a lookup of the cache.

        Args:
            result: ``hit``; ``shared``, what another replica kept; ``joined``, what was being computed;
                ``miss``; ``error``.
        """
        self._cache.add(result)

    def loaded(self, times_s: Mapping[str, float], *, n_bytes: int) -> None:
        """Note that the version was loaded: the seconds of each step, and the memory it takes."""
        self._loads.add("ok")
        self._load_s = dict(times_s)
        self.loaded_bytes = n_bytes

    def load_failed(self) -> None:
        """Count a load that failed."""
        self._loads.add("failed")

    def unloaded(self) -> None:
        """Note that the version is no longer in memory; what it counted stays."""
        self.loaded_bytes = self.queue_limit_rows = None
        self.queue_rows = self.breaker = None

    def watch(
        self, *, queue_rows: Callable[[], float], queue_limit_rows: int, breaker: Callable[[], str]
    ) -> None:
        """Say where to read what others keep.

        Args:
            queue_rows: Rows that wait now.
            queue_limit_rows: Most that may wait.
            breaker: The breaker's state now: ``closed``, ``half-open`` or ``open``.
        """
        self.queue_rows, self.queue_limit_rows, self.breaker = queue_rows, queue_limit_rows, breaker

    def watch_shadow(self, counts: Callable[[], Counts] | None) -> None:
        """Say where to read what the version was compared with as a shadow; None when it is none any more."""
        self.shadow = counts

    def statistics(self) -> Statistics:
        """Give the counts as the protocol's statistics want them."""
        requests = self._requests.counts.copy()
        cache = self._cache.counts.copy()
        by_rows = self._by_rows.copy()
        return Statistics(
            success_count=sum(n for (_, outcome), n in requests.items() if outcome in ANSWERED),
            success_ns=int(self._succeeded_s * 1e9),
            fail_count=sum(n for (_, outcome), n in requests.items() if outcome in FAILED),
            fail_ns=int(self._failed_s * 1e9),
            queue_ns=int(self._waited_s * 1e9),
            infer_ns=int(self.engine_seconds.total * 1e9),
            rows=int(self.batch_rows.total),
            batches=sum(self.engine_seconds.counts),
            cache_hits=sum(n for (result,), n in cache.items() if result not in CACHE_MISSES),
            cache_misses=sum(n for (result,), n in cache.items() if result in CACHE_MISSES),
            last_ms=int(self._last_s * 1e3),
            by_rows={rows: (int(n), int(seconds * 1e9)) for rows, (n, seconds) in sorted(by_rows.items())},
        )

    def write(self, lines: Lines) -> None:
        """Add the version's lines."""
        for tally in (self._requests, self._cache, self._loads):
            tally.write(lines)
        if not self._is_known:  # requests that failed before one was chosen
            if any(self.request_seconds.counts):
                self.request_seconds.write(lines)
            return
        for histogram in (self.request_seconds, self.batch_rows, self.batch_requests, self.engine_seconds):
            histogram.write(lines)
        state = self.breaker
        values: tuple[tuple[str, float | None], ...] = (
            ("kit_queue_wait_seconds_total", self._waited_s),
            ("kit_queue_rows", asked(self.queue_rows)),
            ("kit_queue_limit_rows", self.queue_limit_rows),
            ("kit_breaker_state", None if state is None else asked(lambda: BREAKER_STATES[state()])),
            ("kit_loaded_bytes", self.loaded_bytes),
        )
        for name, value in values:
            if value is not None:
                lines[name].append(gauge_line(name, value, self._labels))
        for step, seconds in self._load_s.copy().items():
            line = gauge_line("kit_load_seconds", seconds, self._labels | {"step": step})
            lines["kit_load_seconds"].append(line)
        if self.shadow is not None:
            self._write_shadow(self.shadow(), lines)

    def _write_shadow(self, counts: Counts, lines: Lines) -> None:
        compared = {"compared": counts.compared - counts.unlike, "unlike": counts.unlike}
        requests = compared | {"failed": counts.errors, "dropped": counts.dropped}
        labels = {"same": counts.labels_equal, "different": counts.labels - counts.labels_equal}
        for name, results in (("kit_shadow_requests_total", requests), ("kit_shadow_labels_total", labels)):
            for result, count in results.items():
                lines[name].append(gauge_line(name, count, self._labels | {"result": result}))
        name = "kit_shadow_difference_max"
        lines[name].append(gauge_line(name, counts.difference_max, self._labels))
