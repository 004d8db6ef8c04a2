"""Records of past runs, read back with the fields the report shows.

A record that is not JSON or lacks a field becomes an ``Unreadable`` that says why; it never stops
the others. Knows nothing of pages or plots, and ignores fields it does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kit.errors import InputError
from kit.files import read_json

R = TypeVar("R", bound="Record")


def _as_text(value: object) -> object:
    """Read a class name that is a number as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ClassText = Annotated[str, BeforeValidator(_as_text)]
Count = Annotated[int, Field(ge=0)]
#: 31 December 9999 in Unix time: later moments have no calendar date.
_LAST_S = 253_402_300_799


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Record(_Facts):
    """What every record has."""

    id: str
    written_at_s: float = Field(ge=0, le=_LAST_S)

    @property
    def written_at(self) -> datetime:
        """When it was written, in UTC."""
        return datetime.fromtimestamp(self.written_at_s, tz=UTC)


class Epoch(_Facts):
    """One pass over the training rows."""

    epoch: int
    train_loss: float
    validation_loss: float


class Gate(_Facts):
    """A candidate at one gate."""

    metric: str
    value: float
    bound: float
    passed: bool


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


class ServeStatus(_Facts):
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


class LatencyFacts(_Facts):
    """Latency of one row in ms: median and 95th percentile."""

    p50: float
    p95: float


class ReferenceFacts(_Facts):
    """The float model as it was measured beside the targets."""

    metric: str
    value: float
    size_bytes: Count
    latency_ms: LatencyFacts


class TargetFacts(_Facts):
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


class PlaceFacts(_Facts):
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


@dataclass(frozen=True)
class Unreadable:
    """A record that could not be shown.

    Attributes:
        name: Its place below the folder of runs, ``kind/id.json``.
        reason: One sentence.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Found(Generic[R]):
    """The records of one kind.

    Attributes:
        records: Those that could be read, newest first.
        unreadable: The others.
    """

    records: tuple[R, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class Runs:
    """Every record of a project, each kind newest first."""

    train: tuple[TrainRecord, ...]
    predict: tuple[PredictRecord, ...]
    serve: tuple[ServeRecord, ...]
    query: tuple[QueryRecord, ...]
    export: tuple[ExportRecord, ...]
    flash: tuple[FlashRecord, ...]
    demo: tuple[DemoRecord, ...]
    unreadable: tuple[Unreadable, ...]

    @property
    def n_runs(self) -> int:
        """How many could be read."""
        kinds: tuple[Sequence[Record], ...] = (
            *(self.train, self.predict, self.serve, self.query, self.export, self.flash, self.demo),
        )
        return sum(len(kind) for kind in kinds)


def read_runs(folder: Path) -> Runs:
    """Read every record below a folder.

    Args:
        folder: Holds ``<kind>/<id>.json``; may be absent.
    """
    train = _read(folder, "train", TrainRecord)
    predict = _read(folder, "predict", PredictRecord)
    serve = _read(folder, "serve", ServeRecord)
    query = _read(folder, "query", QueryRecord)
    export = _read(folder, "export", ExportRecord)
    flash = _read(folder, "flash", FlashRecord)
    demo = _read(folder, "demo", DemoRecord)
    return Runs(
        train=train.records,
        predict=predict.records,
        serve=serve.records,
        query=query.records,
        export=export.records,
        flash=flash.records,
        demo=demo.records,
        unreadable=train.unreadable
        + predict.unreadable
        + serve.unreadable
        + query.unreadable
        + export.unreadable
        + flash.unreadable
        + demo.unreadable,
    )


def _read(folder: Path, kind: str, cls: type[R]) -> Found[R]:
    records: list[R] = []
    unreadable: list[Unreadable] = []
    for path in sorted((folder / kind).glob("*.json")):
        try:
            records.append(cls.model_validate(read_json(path)))
        except InputError as error:
            reason = error.message.replace(str(path), "it")
        except ValidationError as error:
            reason = _first_problem(error)
        else:
            continue
        unreadable.append(Unreadable(f"{kind}/{path.name}", reason))
    records.sort(key=lambda record: (record.written_at_s, record.id), reverse=True)
    return Found(tuple(records), tuple(unreadable))


def _first_problem(error: ValidationError) -> str:
    """Say what is wrong with a record's first wrong field."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    return f"{where!r} is {str(problem['input'])[:60]!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
