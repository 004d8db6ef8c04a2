"""The frozen plan of a batch run: which rows make which shard, and what the run may be told from.

Made once, kept in the ledger, and taken up by whoever resumes, so that a shard is the same rows
whatever the machine. A run is named by the model's digest, the input's fingerprint and the settings
that shape the output; how many workers there are is not among them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.batch.sources import Piece, Reading
from kit.errors import ConflictError, VerificationError
from kit.files import canonical_json, sha256_bytes
from kit.images import ImageLayout
from kit.tables import TableFile

if TYPE_CHECKING:
    from kit.settings import PredictSettings

_FORMAT = 1
#: Settings that shape what is written; two runs that differ in one of them are two runs.
SHAPING = (
    "engine",
    "device",
    "columns",
    "outputs",
    "origin",
    "partition_by",
    "codec",
    "row_group_rows",
    "batch_rows",
    "shard_rows",
)


@dataclass(frozen=True)
class Shard:
    """The rows that become one part.

    Attributes:
        name: Its name, which is the part's without suffix.
        pieces: Where its rows are, in order.
        n_bytes: Their share of the input, about; for progress.
    """

    name: str
    pieces: tuple[Piece, ...]
    n_bytes: int

    @property
    def n_rows(self) -> int | None:
        """Its rows; None where they are not known without reading."""
        counts = [piece.n_rows for piece in self.pieces]
        return None if None in counts else sum(each for each in counts if each is not None)

    @property
    def place(self) -> str:
        """Say where its rows are, for messages."""
        first, more = self.pieces[0], len(self.pieces) - 1
        at = f"{first.file.name} from row {first.row}"
        return f"{at} and {more} more files" if more else at


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        model: The version, as ``name@number``.
        digest: Its digest.
        settings: Those of ``SHAPING``.
        reading: How the input is read.
        files: The input's files, sorted.
        shards: What is to be done, in input order.
    """

    model: str
    digest: str
    settings: Mapping[str, Any]
    reading: Reading
    files: tuple[TableFile, ...]
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Name the input by its files' names, sizes and times of writing."""
        return fingerprint(self.files)

    @property
    def run_id(self) -> str:
        """Name the run by what it is made of."""
        made_of = {"model": self.digest, "input": self.fingerprint, "settings": dict(self.settings)}
        return sha256_bytes(canonical_json(made_of))[:16]

    @property
    def n_rows(self) -> int | None:
        """Rows of the input; None where they are not known without reading."""
        counts = [shard.n_rows for shard in self.shards]
        return None if None in counts else sum(each for each in counts if each is not None)

    def found_at(self, uri: str, *, files: Sequence[TableFile]) -> Plan:
        """Give the same plan for an input that has been moved.

        Args:
            uri: Where it is now.
            files: The same files, by name, as they lie there.
        """
        now = {file.name: file for file in files}
        shards = tuple(
            replace(shard, pieces=tuple(replace(each, file=now[each.file.name]) for each in shard.pieces))
            for shard in self.shards
        )
        return replace(self, reading=replace(self.reading, uri=uri), files=tuple(files), shards=shards)

    def to_json(self) -> dict[str, Any]:
        """Give the plan as the ledger keeps it."""
        index = {file.name: number for number, file in enumerate(self.files)}
        reading = {**asdict(self.reading), "types": dict(self.reading.types)}
        value: dict[str, Any] = {
            "format": _FORMAT,
            "run_id": self.run_id,
            "model": self.model,
            "digest": self.digest,
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "reading": reading,
            "files": [
                [each.path, each.name, each.format, each.size_bytes, each.modified_ns] for each in self.files
            ],
            "shards": [
                {
                    "name": shard.name,
                    "n_bytes": shard.n_bytes,
                    "pieces": [
                        [index[piece.file.name], piece.first, piece.length, piece.row, piece.n_rows]
                        for piece in shard.pieces
                    ],
                }
                for shard in self.shards
            ],
        }
        return {**value, "sha256": _seal(value)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Read a plan.

        Raises:
            VerificationError: It is not one this kit writes, or it was changed.
        """
        try:
            if value["format"] != _FORMAT:
                raise ValueError(f"format {value['format']}")
            if _seal({key: each for key, each in value.items() if key != "sha256"}) != value["sha256"]:
                raise ValueError("it was changed since it was written")
            files = tuple(TableFile(*each) for each in value["files"])
            reading = dict(value["reading"])
            layout = reading.pop("layout")
            if layout is not None:
                layout = ImageLayout(**{**layout, "shape": tuple(layout["shape"])})
            return cls(
                model=value["model"],
                digest=value["digest"],
                settings=value["settings"],
                reading=Reading(**{**reading, "columns": tuple(reading["columns"]), "layout": layout}),
                files=files,
                shards=tuple(
                    Shard(
                        each["name"],
                        tuple(Piece(files[number], *rest) for number, *rest in each["pieces"]),
                        each["n_bytes"],
                    )
                    for each in value["shards"]
                ),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise VerificationError(
                f"the run's plan cannot be read: {reason}",
                hint="restore _run/plan.json, use the kit version that made it, or another output folder",
            ) from error


def _seal(value: Mapping[str, Any]) -> str:
    """Hash a plan's values; without the indentation of ``canonical_json``, which costs seconds here."""
    return sha256_bytes(json.dumps(value, sort_keys=True, allow_nan=False).encode())


def fingerprint(files: Sequence[TableFile]) -> str:
    """Name files by their names, sizes and times of writing, in 16 hexadecimal digits."""
    lines = [f"{file.name}\0{file.size_bytes}\0{file.modified_ns}" for file in files]
    return sha256_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))[:16]


def shaping(settings: PredictSettings) -> dict[str, Any]:
    """Pick the settings that shape what is written, as JSON holds them."""
    chosen = {name: getattr(settings, name) for name in SHAPING}
    value: dict[str, Any] = json.loads(canonical_json(chosen))
    return value


def make_shards(
    groups: Sequence[Sequence[Piece]], *, prefix: str, files: Sequence[TableFile]
) -> tuple[Shard, ...]:
    """Name groups of pieces.

    Args:
        groups: From ``jobs.batch.sources.cut``.
        prefix: What every name starts with.
        files: All files, to share their bytes out over their pieces.
    """
    pieces = Counter(piece.file.name for group in groups for piece in group)
    share = {file.name: file.size_bytes // max(pieces[file.name], 1) for file in files}
    width = max(5, len(str(max(len(groups) - 1, 0))))
    return tuple(
        Shard(f"{prefix}part-{index:0{width}d}", tuple(group), sum(share[each.file.name] for each in group))
        for index, group in enumerate(groups)
    )


def require_same(kept: Plan, now: Plan, *, output: str) -> None:
    """Refuse to go on with another run's folder.

    Raises:
        ConflictError: The runs differ; the message names in what.
    """
    if kept.run_id == now.run_id:
        return
    differences = []
    if kept.digest != now.digest:
        differences.append(
            f"the model is {now.model} ({now.digest[:12]}) and was {kept.model} ({kept.digest[:12]})"
        )
    if kept.fingerprint != now.fingerprint:
        differences.append(_other_input(kept.files, now.files))
    differences += [
        f"{name} is {now.settings.get(name)!r} and was {kept.settings.get(name)!r}"
        for name in SHAPING
        if kept.settings.get(name) != now.settings.get(name)
    ]
    raise ConflictError(
        f"{output} holds another run: {'; '.join(differences)}",
        hint="choose another folder, repeat the run's own command to resume it, or remove it: kit runs clean",
    )


def _other_input(kept: Sequence[TableFile], now: Sequence[TableFile]) -> str:
    before = {file.name: file for file in kept}
    after = {file.name: file for file in now}
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    if gone and new:
        return f"the input has {new[0]} and had {gone[0]}"
    if gone or new:
        return f"the input has {len(after)} files and had {len(before)} ({(gone or new)[0]})"
    for name, file in after.items():
        if file.size_bytes != before[name].size_bytes:
            return f"{name} has {file.size_bytes:,} bytes and had {before[name].size_bytes:,}"
        if file.modified_ns != before[name].modified_ns:
            return f"{name} was written again since"
    return "the input's files are in another order"
