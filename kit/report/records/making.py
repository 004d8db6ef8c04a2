"""Records of what makes a version: train, tune, evaluate, compress."""

from __future__ import annotations

from pydantic import Field

from kit.report.records.facts import ClassText, Count, Facts, Record, Scalar


class Epoch(Facts):
    """One pass over the training rows; a loss is None where it was not a number."""

    epoch: int
    train_loss: float | None
    validation_loss: float | None


class Gate(Facts):
    """A candidate at one gate; see ``kit.gates``."""

    metric: str
    value: float | None
    bound: float
    passed: bool
    kind: str = "floor"
    champion: float | None = None
    low: float | None = None
    high: float | None = None
    n_rows: Count | None = None
    reason: str = ""


class TrainRecord(Record):
    """A training run; see ``jobs.train``."""

    model: str
    number: int
    digest: str
    task: str
    classes: tuple[ClassText, ...]
    epochs: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, float]
    gates: tuple[Gate, ...]
    promoted: bool
    n_rows: dict[str, Count]
    parity: float
    confusion: tuple[tuple[Count, ...], ...]

    @property
    def version(self) -> str:
        """The version it registered, ``name@number``."""
        return f"{self.model}@{self.number}"

    @property
    def has_confusion(self) -> bool:
        """Whether the counts are a square table with the classes' side, and not empty."""
        side = len(self.classes)
        return side > 1 and len(self.confusion) == side and all(len(row) == side for row in self.confusion)


class Trial(Facts):
    """One trial of a study."""

    number: int
    status: str
    reason: str = ""
    parameters: dict[str, Scalar]
    value: float | None = None
    epochs: tuple[Epoch, ...] = ()
    best_epoch: int | None = None
    seconds: float | None = None


class Dimension(Facts):
    """What a study may vary."""

    kind: str


class TuneRecord(Record):
    """A study; see ``jobs.tune``."""

    model: str
    study: str
    search: str
    scheduler: str
    metric: str
    mode: str
    trials: tuple[Trial, ...]
    best: int | None = None
    importance: dict[str, float] = Field(default_factory=dict)
    space: dict[str, Dimension] = Field(default_factory=dict)
    seconds: float | None = None
    version: int | None = None

    @property
    def best_trial(self) -> Trial | None:
        """The trial that became a candidate; None where none finished."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


class ClassFacts(Facts):
    """How a version does on the rows of one class."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: Count


class Calibration(Facts):
    """Mean confidence and accuracy by bin of confidence; None in an empty bin."""

    edges: tuple[float, ...] = ()
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    counts: tuple[Count, ...]


class Slice(Facts):
    """The rows that have one value in a column, and how much worse they are answered."""

    column: str
    value: Scalar
    n_rows: Count
    metric: str
    score: float | None
    worse_by: float | None


class Importance(Facts):
    """How much worse answers become when a column is shuffled."""

    column: str
    mean: float
    std: float = 0.0


class Shap(Facts):
    """Mean absolute SHAP value of a column."""

    column: str
    mean_abs: float


class ChampionFacts(Facts):
    """The version that was compared with."""

    number: int
    metrics: dict[str, float | None] = Field(default_factory=dict)


class Fold(Facts):
    """One fold of a cross-validation."""

    metrics: dict[str, float | None]


class CrossValidation(Facts):
    """Metrics by fold."""

    kind: str
    folds: tuple[Fold, ...]
    mean: dict[str, float | None]
    std: dict[str, float | None]


class CurvePoint(Facts):
    """A metric on training and validation rows, by rows or by the value of a setting."""

    n_rows: Count | None = None
    value: Scalar = None
    train: float | None
    validation: float | None


class ValidationCurve(Facts):
    """A metric by the value of one setting."""

    name: str
    values: tuple[CurvePoint, ...]


class Intervals(Facts):
    """Where metrics may lie on other rows of the same kind: low and high end by metric."""

    confidence: float
    bounds: dict[str, tuple[float, float]] = Field(default_factory=dict)


class EvaluateRecord(Record):
    """A measured version; see ``jobs.evaluate``."""

    model: str
    number: int
    digest: str
    task: str
    n_rows: Count
    metric: str = "score"
    metrics: dict[str, float | None]
    undefined: dict[str, str] = Field(default_factory=dict)
    intervals: Intervals | None = None
    notes: tuple[str, ...] = ()
    by_class: dict[str, ClassFacts] = Field(default_factory=dict)
    calibration: Calibration | None = None
    slices: tuple[Slice, ...] = ()
    importance: tuple[Importance, ...] = ()
    gates: tuple[Gate, ...] = ()
    champion: ChampionFacts | None = None
    cross_validation: CrossValidation | None = None
    learning_curve: tuple[CurvePoint, ...] = ()
    validation_curve: ValidationCurve | None = None
    shap: tuple[Shap, ...] = ()

    @property
    def version(self) -> str:
        """The version that was measured, ``name@number``."""
        return f"{self.model}@{self.number}"


class VersionRef(Facts):
    """A version, by number and digest."""

    number: int
    digest: str


class Cost(Facts):
    """What a version costs and is worth; None where it was not measured."""

    size_bytes: Count | None = None
    operations: float | None = None
    parameters: float | None = None
    metrics: dict[str, float | None] = Field(default_factory=dict)
    latency_ms: float | None = None
    batch_latency_ms: float | None = None
    batch_rows: Count | None = None
    int8_metric: float | None = None
    int8_metrics: dict[str, float | None] = Field(default_factory=dict)
    int8_error: float | None = None


class CompressRecord(Record):
    """A version made smaller; see ``jobs.compress``."""

    model: str
    number: int | None
    digest: str | None
    parent: VersionRef
    method: str
    before: Cost
    after: Cost
    pays: bool
    reason: str = ""
