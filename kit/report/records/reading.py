"""Every record of a project, read back.

A record that is not JSON or lacks a field becomes an ``Unreadable`` that says why; it never stops
the others. Knows nothing of pages or plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from kit.errors import InputError
from kit.files import read_json
from kit.report.records.data import PrepareRecord
from kit.report.records.facts import Record
from kit.report.records.making import CompressRecord, EvaluateRecord, TrainRecord, TuneRecord
from kit.report.records.running import DemoRecord, PredictRecord, QueryRecord, ServeRecord
from kit.report.records.shipping import ExportRecord, FlashRecord

R = TypeVar("R", bound=Record)

#: Kind of a record, which is its folder and the attribute of ``Runs``, to what it is read as.
_KINDS: Mapping[str, type[Record]] = {
    "prepare": PrepareRecord,
    "train": TrainRecord,
    "tune": TuneRecord,
    "evaluate": EvaluateRecord,
    "compress": CompressRecord,
    "predict": PredictRecord,
    "serve": ServeRecord,
    "query": QueryRecord,
    "export": ExportRecord,
    "flash": FlashRecord,
    "demo": DemoRecord,
}


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

    prepare: tuple[PrepareRecord, ...]
    train: tuple[TrainRecord, ...]
    tune: tuple[TuneRecord, ...]
    evaluate: tuple[EvaluateRecord, ...]
    compress: tuple[CompressRecord, ...]
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
        return sum(len(getattr(self, each.name)) for each in fields(self) if each.name in _KINDS)


def read_runs(folder: Path) -> Runs:
    """Read every record below a folder.

    Args:
        folder: Holds ``<kind>/<id>.json``; may be absent.
    """
    found: dict[str, Found[Any]] = {kind: _read(folder, kind, cls) for kind, cls in _KINDS.items()}
    return Runs(
        **{kind: each.records for kind, each in found.items()},
        unreadable=tuple(bad for each in found.values() for bad in each.unreadable),
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
