"""Run the quarantine again: the rows a finished run set aside, as they stand there or corrected.

A retry is a run of its own in the same output folder, with the first run's columns, so that the folder
stays one table. It may use another model version: that is often the fix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.batch.actor import ORIGIN_FILE, ORIGIN_ROW
from jobs.batch.ledger import QUARANTINE, Ledger, PartFile, ledgers, require_run
from jobs.batch.places import Place
from jobs.batch.plan import Plan, make_shards, shaping
from jobs.batch.sources import cut
from kit.errors import ConflictError, InputError, SettingsError
from kit.files import canonical_json
from kit.images import list_data
from kit.model_version import ModelVersion
from kit.project import Project
from kit.registry import VersionRecord
from kit.settings import PredictSettings
from kit.tables import TableFile, list_files, read_file, read_table

if TYPE_CHECKING:
    import pyarrow as pa

#: Settings a retry shares with its run, or its parts would be another table.
_SHARED = ("columns", "outputs", "origin", "partition_by", "codec", "row_group_rows")


def prepared(
    project: Project,
    settings: PredictSettings,
    record: VersionRecord,
    version: ModelVersion,
    place: Place,
) -> tuple[PredictSettings, Ledger, Plan]:
    """Plan the next retry of a finished run, or take up the last one where it was not finished.

    Returns:
        The settings with those of the run, the retry's ledger and its plan.

    Raises:
        ConflictError: The run is not finished, or an unfinished retry is another one.
        InputError: There is no run, nothing was refused, or the corrected rows are not those in the
            quarantine.
        SettingsError: A setting differs that the run and its retry share.
    """
    first = require_run(place)
    original = _plan_of(first)
    if first.read("manifest") is None:
        raise ConflictError(
            f"the run in {place.uri} is not finished, so its quarantine is not either",
            hint="finish it: run its command again without --retry-quarantine",
        )
    rounds = list(ledgers(place))
    last = rounds[-1]
    resumed = last.retry is not None and last.read("manifest") is None
    ledger = last if resumed else Ledger(place, retry=(last.retry or 0) + 1)
    previous = rounds[-2] if resumed else last
    aside = [each.quarantine for each in previous.commits().values() if each.quarantine is not None]
    if not aside:
        raise InputError(f"no row of {place.uri} is in quarantine", hint="there is nothing to retry")
    settings = _shared(settings, original)
    plan = _planned(project, settings, record, version, original=original, aside=aside, ledger=ledger)
    kept = ledger.read("plan")
    if kept is None:
        ledger.create("plan", plan.to_json())
        return settings, ledger, plan
    before = Plan.from_json(kept)
    if before.run_id == plan.run_id:
        return settings, ledger, before
    if ledger.commits():
        raise ConflictError(
            f"an unfinished retry in {place.uri} is another one ({before.model}, run {before.run_id})",
            hint="repeat its own command to finish it first",
        )
    ledger.put("plan", canonical_json(plan.to_json()))
    return settings, ledger, plan


def _planned(
    project: Project,
    settings: PredictSettings,
    record: VersionRecord,
    version: ModelVersion,
    *,
    original: Plan,
    aside: Sequence[PartFile],
    ledger: Ledger,
) -> Plan:
    uri = f"{ledger.place.uri}/{QUARANTINE}"
    names = {file.name.removeprefix(f"{QUARANTINE}/") for file in aside}
    held = tuple(file for file in list_files(uri) if file.name in names)
    layout = original.reading.layout
    needed = dict.fromkeys((*version.signature.columns, *settings.columns))
    columns = tuple(needed)
    if layout is not None:
        if settings.input is not None:
            raise SettingsError("a retry of images takes no input", hint="replace the images where they lie")
        uri, files = original.reading.uri, _images(original.reading.uri, _origins(uri, held))
    else:
        files = held
        columns = (*columns, ORIGIN_FILE, ORIGIN_ROW)
        if settings.input is not None:
            corrected = project.locate(settings.input)
            _check_same_rows(corrected, uri, held)
            uri, files = corrected, list_files(corrected)
    reading = replace(original.reading, uri=uri, columns=columns)
    groups = cut(reading, files, shard_rows=settings.shard_rows)
    return Plan(
        model=f"{record.model}@{record.number}",
        digest=record.digest,
        settings=shaping(settings),
        reading=reading,
        files=tuple(files),
        shards=make_shards(groups, prefix=ledger.prefix, files=files),
    )


def _shared(settings: PredictSettings, original: Plan) -> PredictSettings:
    """Take over what the run and its retry share; refuse what was set differently."""
    mine: dict[str, Any] = shaping(settings)
    for name in _SHARED:
        if name in settings.model_fields_set and mine[name] != original.settings[name]:
            raise SettingsError(
                f"{name} is {mine[name]!r}, and the run's was {original.settings[name]!r}",
                hint=f"leave {name} out: a retry writes the same columns as its run",
            )
    taken = {name: original.settings[name] for name in _SHARED}
    return settings.model_copy(
        update={name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()}
    )


def _origins(uri: str, files: Sequence[TableFile]) -> set[tuple[str, int]]:
    """Read which rows the quarantine holds."""
    found: set[tuple[str, int]] = set()
    for file in files:
        table = read_file(uri, file, columns=(ORIGIN_FILE, ORIGIN_ROW))
        found.update(_pairs(table))
    return found


def _pairs(table: pa.Table) -> list[tuple[str, int]]:
    files, rows = (table.column(index).to_pylist() for index in range(2))
    for file, row in zip(files, rows, strict=True):
        if file is None or not re.fullmatch(r"\d+", str(row)):
            raise InputError(
                f"{ORIGIN_FILE} = {file!r} with {ORIGIN_ROW} = {row!r} does not name a row",
                hint=f"leave {ORIGIN_FILE} and {ORIGIN_ROW} as the quarantine has them",
            )
    return [(str(file), int(str(row))) for file, row in zip(files, rows, strict=True)]


def _images(uri: str, origins: set[tuple[str, int]]) -> tuple[TableFile, ...]:
    names = {name for name, _ in origins}
    files = tuple(file for file in list_data(uri) if file.name in names)
    gone = names - {file.name for file in files}
    if gone:
        raise InputError(
            f"{uri} has no image {min(gone)!r} any more",
            hint="put the image back, or leave the row in quarantine",
        )
    return files


def _check_same_rows(corrected: str, uri: str, held: Sequence[TableFile]) -> None:
    """Refuse corrected rows that are not those in quarantine: a row would be forgotten, or be there twice."""
    table = read_table(corrected, columns=(ORIGIN_FILE, ORIGIN_ROW))
    rows = _pairs(table)
    wanted, given = _origins(uri, held), set(rows)
    for what, which in (("lacks", wanted - given), ("holds", given - wanted)):
        if which:
            file, row = min(which)
            also = ", which is not in quarantine" if what == "holds" else ", which is in quarantine"
            raise InputError(
                f"{corrected} {what} row {row} of {file}{also}",
                hint=f"give every row of {uri} once, with its {ORIGIN_FILE} and {ORIGIN_ROW}",
            )
    if len(rows) != len(given):
        raise InputError(
            f"{corrected} holds {len(rows)} rows for {len(given)} in quarantine", hint="give every row once"
        )


def _plan_of(ledger: Ledger) -> Plan:
    value = ledger.read("plan")
    assert value is not None  # a ledger is found by its plan
    return Plan.from_json(value)
