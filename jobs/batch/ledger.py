"""The ledger of a batch run: what its output folder holds, and what was done.

    part-00000.parquet          answers, in input order
    _quarantine/part-00000...   rows that were refused, with the reason
    _run/plan.json              the frozen plan
    _run/engine.json            the batch size found, what the engine alone can do
    _run/commits/part-00000...  one record per shard, written after its files
    _run/manifest.json          last, and only if every row is accounted for

A retry of the quarantine is a run of its own in the same folder; its names start with
``retry-001``. Knows nothing of models, engines or Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

from jobs.batch.places import Place
from kit.errors import ConflictError, InputError, VerificationError
from kit.files import canonical_json

QUARANTINE = "_quarantine"
RUN = "_run"
_CHUNK_BYTES = 1 << 20
_READERS = 8


@dataclass(frozen=True)
class PartFile:
    """A file of the output.

    Attributes:
        name: Relative to the output folder.
        size_bytes: Its size.
        sha256: Of its bytes.
        rows: Rows it holds.
    """

    name: str
    size_bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Commit:
    """What became of a shard; written once, after its files are in place.

    Attributes:
        shard: Its name.
        rows_in: Rows read.
        rows_out: Rows answered.
        rows_refused: Rows in the quarantine.
        files: Its parts; several where rows are partitioned, none where all were refused.
        quarantine: Its refused rows; None where there are none.
        reasons: Reason to how many rows were refused for it.
        seconds: Time spent in ``read``, ``prepare``, ``infer`` and ``write``.
        started_s: When it was begun, in seconds since 1970.
        ended_s: When its files were in place.
        node: Id of the node, in hexadecimal.
        market: spot, on-demand or local.
        batch_rows: Rows per call of the engine at its end.
        labels: Rows by answered class, in the order of the classes; empty for regression.
        observed: What rows and answers looked like; see ``kit.observed``.
    """

    shard: str
    rows_in: int
    rows_out: int
    rows_refused: int
    files: tuple[PartFile, ...]
    quarantine: PartFile | None
    reasons: dict[str, int]
    seconds: dict[str, float]
    started_s: float
    ended_s: float
    node: str
    market: str
    batch_rows: int
    labels: tuple[int, ...]
    observed: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Give the record's bytes: one line, because a run has thousands of them."""
        value = {
            **vars(self),
            "files": [vars(each) for each in self.files],
            "quarantine": vars(self.quarantine) if self.quarantine else None,
        }
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, *, name: str) -> Commit:
        """Read a record.

        Raises:
            VerificationError: It is not one a kit writes.
        """
        try:
            value = json.loads(data)
            known = {each.name: value[each.name] for each in fields(cls)}
            quarantine = known.pop("quarantine")
            return cls(
                **{
                    **known,
                    "files": tuple(PartFile(**each) for each in known["files"]),
                    "labels": tuple(known["labels"]),
                    "quarantine": PartFile(**quarantine) if quarantine else None,
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise VerificationError(
                f"the commit record {name} cannot be read: {error}", hint="see kit runs verify"
            ) from error


class Ledger:
    """The records of one run in an output folder.

    Args:
        place: The output folder.
        retry: Number of the retry of the quarantine; None is the run itself.
    """

    def __init__(self, place: Place, *, retry: int | None = None) -> None:
        self.place = place
        self.retry = retry
        self.prefix = f"retry-{retry:03d}-" if retry is not None else ""
        self._folder = f"{RUN}/retry-{retry:03d}" if retry is not None else RUN

    def name(self, record: str) -> str:
        """Give a record's place: plan, engine, manifest; what has no suffix is JSON."""
        return f"{self._folder}/{record if '.' in record else f'{record}.json'}"

    def read(self, record: str) -> dict[str, Any] | None:
        """Read a JSON record; None where there is none.

        Raises:
            VerificationError: It is not a JSON object.
        """
        data = self.place.read(self.name(record))
        if data is None:
            return None
        try:
            value = json.loads(data)
        except ValueError as error:
            raise VerificationError(
                f"{self.place.uri}/{self.name(record)} is damaged: {error}",
                hint="remove the output folder, or restore the file",
            ) from error
        if not isinstance(value, dict):
            raise VerificationError(f"{self.place.uri}/{self.name(record)} is damaged: no object")
        return value

    def create(self, record: str, value: Mapping[str, Any]) -> bool:
        """Write a JSON record once; False where it was there."""
        return self.place.create(self.name(record), canonical_json(value))

    def put(self, record: str, data: bytes) -> None:
        """Write a record, in place of an earlier one."""
        self.place.put(self.name(record), data)

    def commit_name(self, shard: str) -> str:
        """Give the place of a shard's commit record."""
        return self.name(f"commits/{shard}.json")

    def commit_of(self, shard: str) -> Commit | None:
        """Read a shard's commit record; None where it has none."""
        data = self.place.read(self.commit_name(shard))
        return None if data is None else Commit.from_json(data, name=self.commit_name(shard))

    def commit(self, record: Commit) -> Commit:
        """Write a shard's commit record once.

        Returns:
            The record that stands: this one, or the one that was there first.
        """
        if self.place.create(self.commit_name(record.shard), record.to_json()):
            return record
        return self.commit_of(record.shard) or record

    def commits(self) -> dict[str, Commit]:
        """Read all commit records, by shard, in their order."""
        prefix = f"{self._folder}/commits/"
        names = [entry.name for entry in self.place.entries(prefix) if entry.name.endswith(".json")]
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(self.place.read, names)
            found = [
                Commit.from_json(data, name=name)
                for name, data in zip(names, read, strict=True)
                if data is not None
            ]
        return {each.shard: each for each in sorted(found, key=lambda each: each.shard)}


def ledgers(place: Place) -> Iterator[Ledger]:
    """List the ledgers of an output folder: the run's, then those of its retries, in order."""
    if place.read(f"{RUN}/plan.json") is None:
        return
    yield Ledger(place)
    number = 1
    while place.read(f"{RUN}/retry-{number:03d}/plan.json") is not None:
        yield Ledger(place, retry=number)
        number += 1


def check_unused(place: Place) -> None:
    """Refuse an output folder that holds anything.

    Raises:
        ConflictError: It does; the message names what.
    """
    there = place.entries()
    if there:
        raise ConflictError(
            f"the output folder {place.uri} is not empty (it holds {there[0].name})",
            hint="choose another folder, or empty this one",
        )


@dataclass(frozen=True)
class Verified:
    """What hashing a run's files again showed.

    Attributes:
        n_files: Files that were hashed.
        n_bytes: Their size.
        rows: Rows the sound files hold.
        wrong: A sentence per file that is not as it was committed.
    """

    n_files: int
    n_bytes: int
    rows: int
    wrong: tuple[str, ...]


def verify(ledger: Ledger, commits: Sequence[Commit]) -> Verified:
    """Hash every file of a run again and compare it with its commit record."""
    files = [file for each in commits for file in (*each.files, *filter(None, [each.quarantine]))]
    sizes = {entry.name: entry.size_bytes for entry in ledger.place.entries()}
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda file: _wrong_with(ledger.place, file, sizes.get(file.name)), files))
    wrong = [each for each in found if each]
    sound = [file for file, said in zip(files, found, strict=True) if not said]
    return Verified(
        len(files), sum(file.size_bytes for file in files), sum(each.rows for each in sound), tuple(wrong)
    )


def _wrong_with(place: Place, file: PartFile, size_bytes: int | None) -> str | None:
    if size_bytes is None:
        return f"{file.name} is missing"
    if size_bytes != file.size_bytes:
        return f"{file.name} has {size_bytes:,} bytes, and {file.size_bytes:,} were committed"
    digest = hashlib.sha256()
    with place.open(file.name) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        found = digest.hexdigest()
        return f"{file.name} has the sha256 {found[:16]}..., and {file.sha256[:16]}... was committed"
    return None


def require_run(place: Place) -> Ledger:
    """Give the ledger of a run.

    Raises:
        InputError: The folder holds none.
    """
    found = next(ledgers(place), None)
    if found is None:
        raise InputError(f"{place.uri} holds no batch run", hint="name the output folder of a kit predict")
    return found
