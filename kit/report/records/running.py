"""Records of what runs a version: predict, serve, query, demo."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kit.report.records.facts import ClassText, Count, Facts, Record


class Throughput(Facts):
    """Rows per second in equal spans of working time, and where in it a sitting began again."""

    bucket_s: float = 0.0
    rows_per_second: tuple[float, ...] = ()
    resumed_at_s: tuple[float, ...] = ()


class Stage(Facts):
    """Time all shards together spent in a stage, and its share of all stages."""

    seconds: float
    share: float


class RunCost(Facts):
    """What a batch run cost; see ``jobs.batch.cost``."""

    node_seconds: dict[str, float] = Field(default_factory=dict)
    usd_by_market: dict[str, float | None] = Field(default_factory=dict)
    usd: float = 0.0
    usd_per_million_rows: float | None = None
    unpriced: tuple[str, ...] = ()


class NodeFacts(Facts):
    """What one node did in a batch run."""

    node: str
    market: str
    seconds: float
    rows: Count = 0
    n_shards: Count = 0


class ObservedFacts(Facts):
    """How much of a batch run was looked at."""

    n_rows: Count = 0
    n_sampled: Count = 0
    n_columns: Count = 0
    n_columns_left: Count = 0


class ProfileFacts(Facts):
    """What a batch run was compared with; ``n_held_out`` is None where answers were not described."""

    n_rows: Count | None = None
    n_held_out: Count | None = None


class DriftFacts(Facts):
    """One column beside the model's profile; see ``kit.drift.Drift``.

    Counts are there for the most moved columns: of numbers with a bin below and one above the edges, of
    categories with a last one for all others.
    """

    name: str
    role: Literal["input", "answer"] = "input"
    index: float | None = None
    threshold: float | None = None
    drifted: bool = False
    n: Count = 0
    distance: float | None = None
    missing: float = 0.0
    missing_before: float = 0.0
    unseen: float | None = None
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    reference: tuple[Count, ...] = ()
    observed: tuple[Count, ...] = ()


class PredictRecord(Record):
    """A batch run; see ``jobs.batch.report``. What earlier kits did not write is optional."""

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
    input: str | None = None
    retry: int | None = None
    classes: tuple[ClassText, ...] = ()
    batch_rows: int | None = None
    rows_refused: Count = 0
    n_shards: Count | None = None
    n_bytes: Count | None = None
    n_sittings: int = 1
    throughput: Throughput = Throughput()
    stages: dict[str, Stage] = Field(default_factory=dict)
    bare_rows_per_second: float | None = None
    actors: float | None = None
    efficiency: float | None = None
    cost: RunCost | None = None
    reasons: dict[str, Count] = Field(default_factory=dict)
    n_reasons: Count = 0
    nodes: tuple[NodeFacts, ...] = ()
    observed: ObservedFacts | None = None
    profile: ProfileFacts | None = None
    drift: tuple[DriftFacts, ...] = ()

    def answer(self, name: str) -> DriftFacts | None:
        """Give ``label``, ``confidence`` or ``value`` beside the profile; None where it is not known."""
        return next((each for each in self.drift if (each.role, each.name) == ("answer", name)), None)


class ServedVersion(Facts):
    """One model of an endpoint; the version with most of its traffic when it began."""

    model: str
    version: int
    digest: str
    release: int


class ServeStatus(Facts):
    """An endpoint; see ``serve.serve``."""

    url: str
    models: tuple[ServedVersion, ...]
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
