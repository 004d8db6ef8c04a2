"""Records of what runs and ships a version: predict, serve, query, export, flash, demo."""

from __future__ import annotations

from kit.report.records.facts import Count, Facts, Record


class PredictRecord(Record):
    """A batch run; see ``jobs.predict``."""

    model: str
    digest: str
    engine: str
    output: str
    rows_in: Count
    rows_out: Count
    n_parts: Count
    seconds: float
    rows_per_second: float
    labels: dict[str, Count]


class ServeStatus(Facts):
    """An endpoint; see ``serve.serve``."""

    url: str
    model: str
    version: int
    digest: str
    engine: str
    replicas: int
    ingress: str
    start_s: float


class ServeRecord(Record):
    """An endpoint's life; uptime and ``stopped_by`` are None until it has ended."""

    status: ServeStatus
    uptime_s: float | None
    stopped_by: str | None


class QueryRecord(Record):
    """One ``kit query``."""

    url: str
    model: str
    version: str
    latency_ms: float
    rows: tuple[tuple[object, ...], ...]


class LatencyFacts(Facts):
    """Latency of one row in ms: median and 95th percentile."""

    p50: float
    p95: float


class ReferenceFacts(Facts):
    """The float model as it was measured beside the targets."""

    metric: str
    value: float
    size_bytes: Count
    latency_ms: LatencyFacts


class TargetFacts(Facts):
    """One target of an export; figures are None where it could not be converted."""

    target: str
    metric: str | None
    value: float | None
    agreement: float | None
    output_error: float | None
    n_rows: Count | None
    size_bytes: Count | None
    latency_ms: LatencyFacts | None
    passed: bool
    reason: str
    bundle_digest: str | None


class ExportRecord(Record):
    """An export; see ``edge.export``."""

    model: str
    digest: str
    reference: ReferenceFacts
    targets: tuple[TargetFacts, ...]


class FlashRecord(Record):
    """A bundle put on a device; see ``edge.flash``."""

    device: str
    digest: str
    name: str
    target: str
    release: int
    status: str
    detail: str


class PlaceFacts(Facts):
    """One place that answered the same rows; see ``kit.cli.demo``."""

    place: str
    accuracy: float | None
    agreement: float | None
    size_bytes: Count | None
    latency_ms: float | None


class DemoRecord(Record):
    """The same rows, answered in every place."""

    rows: tuple[PlaceFacts, ...]
    n_rows: Count | None = None
