"""Records of what ships a version: export, flash. What earlier kits did not write is optional."""

from __future__ import annotations

from kit.report.records.facts import ClassText, Count, Facts, Record


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


class MachineFacts(Facts):
    """What measured."""

    cpu: str
    arch: str
    cores: int
    threads: int


class CalibrationFacts(Facts):
    """The training rows that ranges were taken from; ``n_left_out`` rows were not fit for it."""

    n_rows: Count
    fingerprint: str = ""
    n_left_out: Count = 0


class BudgetFacts(Facts):
    """What a target might cost; see ``kit.settings.ExportSettings``."""

    max_metric_drop: float | None = None
    max_output_error: float | None = None
    max_size_mb: float | None = None
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None


class RungFacts(Facts):
    """One recipe that was tried; figures are None where it could not be built.

    ``kept`` names the layers that stayed in float.
    """

    recipe: str
    says: str = ""
    value: float | None = None
    drop: float | None = None
    agreement: float | None = None
    output_error: float | None = None
    size_bytes: Count | None = None
    model_bytes: Count | None = None
    latency_ms: LatencyFacts | None = None
    memory_mb: float | None = None
    load_s: float | None = None
    passed: bool = False
    reason: str = ""
    kept: tuple[str, ...] = ()


class ConfusionFacts(Facts):
    """Held-out rows by the reference's class (rows) and the target's (columns)."""

    labels: tuple[ClassText, ...]
    counts: tuple[tuple[Count, ...], ...]

    @property
    def is_square(self) -> bool:
        """Whether the counts are a table with the labels' side, and not empty."""
        side = len(self.labels)
        return side > 1 and len(self.counts) == side and all(len(row) == side for row in self.counts)


class ErrorFacts(Facts):
    """Histogram of signed output errors, in standard deviations of the reference's outputs."""

    edges: tuple[float, ...]
    counts: tuple[Count, ...]

    @property
    def can_be_drawn(self) -> bool:
        """Whether there are counts, each between two ascending edges."""
        ascending = all(left < right for left, right in zip(self.edges, self.edges[1:], strict=False))
        return any(self.counts) and len(self.edges) == len(self.counts) + 1 and ascending


class LayerFacts(Facts):
    """One layer beside itself in float; see ``edge.layers.Layer``."""

    name: str
    kind: str = ""
    error: float
    added: float


class TargetFacts(Facts):
    """One target of an export; figures are None where it could not be converted.

    ``float_latency_ms`` is that of the same engine in float32, the two taking turns; ``model_bytes`` is the
    size of the model files in the bundle, ``float_bytes`` that of the same engine's in float32; ``memory_mb``
    the peak of a process that loads and runs it.
    """

    target: str
    engine: str = ""
    precision: str = ""
    recipe: str | None = None
    metric: str | None
    value: float | None
    drop: float | None = None
    agreement: float | None
    output_error: float | None
    n_rows: Count | None
    size_bytes: Count | None
    model_bytes: Count | None = None
    float_bytes: Count | None = None
    latency_ms: LatencyFacts | None
    float_latency_ms: LatencyFacts | None = None
    memory_mb: float | None = None
    load_s: float | None = None
    measured_in: str = ""
    note: str = ""
    passed: bool
    reason: str
    bundle_digest: str | None
    ladder: tuple[RungFacts, ...] = ()
    confusion: ConfusionFacts | None = None
    errors: ErrorFacts | None = None
    layers: tuple[LayerFacts, ...] = ()


class ExportRecord(Record):
    """An export; see ``edge.export``."""

    model: str
    digest: str
    settings: BudgetFacts = BudgetFacts()
    machine: MachineFacts | None = None
    calibration: CalibrationFacts | None = None
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
