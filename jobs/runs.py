"""Batch runs by their ledgers: list, show, verify, clean.

Reads what ``kit predict`` left in the output folders. A run is found by its folder; the project
remembers the folders it has written to.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.batch.ledger import QUARANTINE, RUN, Commit, Ledger, ledgers, require_run, verify
from jobs.batch.places import HOLDS, Place, open_place
from jobs.batch.plan import Plan
from kit.errors import ConflictError, InputError, KitError, VerificationError
from kit.files import canonical_json, read_json, sha256_bytes, write_atomic
from kit.project import Project
from kit.settings import RunsSettings

_log = logging.getLogger("kit")
_FOLDERS = "outputs"


@dataclass(frozen=True)
class RunFacts:
    """A run, or a retry of its quarantine.

    Attributes:
        output: Its folder.
        name: run, or retry and its number.
        run_id: Its id.
        model: The version.
        input: The table.
        status: finished, unfinished, or gone where the folder holds no run any more.
        shards: How many there are.
        shards_done: How many are committed.
        rows_in: Rows read so far.
        rows_out: Rows answered so far.
        rows_refused: Rows in quarantine so far.
        changed: When it was last worked at, UTC; empty where nothing was done.
        settings: Those that shape what is written.
        reasons: Reason to how many rows were refused for it.
    """

    output: str
    name: str
    run_id: str = ""
    model: str = ""
    input: str = ""
    status: str = "gone"
    shards: int = 0
    shards_done: int = 0
    rows_in: int = 0
    rows_out: int = 0
    rows_refused: int = 0
    changed: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunsResult:
    """What ``kit runs`` found or did.

    Attributes:
        action: As it was asked.
        runs: The runs.
        files: Files that were hashed, or removed.
        n_bytes: Bytes that were hashed.
        wrong: A sentence for each thing that is not as it was committed.
    """

    action: str
    runs: tuple[RunFacts, ...]
    files: int = 0
    n_bytes: int = 0
    wrong: tuple[str, ...] = ()

    def require_passed(self) -> None:
        """Raise where something was wrong.

        Raises:
            VerificationError: Something was.
        """
        if self.wrong:
            raise VerificationError(
                f"{len(self.wrong)} of {self.files} files are not as they were committed",
                hint="restore them, or remove their records in _run/commits and run kit predict again",
            )


def runs(project: Project, settings: RunsSettings) -> RunsResult:
    """List, show, verify or clean; see the module.

    Raises:
        ConflictError: A finished run would be removed, or a driver holds it.
        InputError: The folder holds no run.
        VerificationError: The ledger is damaged.
        UnavailableError: S3 or the disk fails.
    """
    if settings.action == "list":
        return RunsResult("list", tuple(_listed(project)))
    place = open_place(output_of(project, str(settings.output)))
    require_run(place)
    if settings.action == "show":
        return RunsResult("show", tuple(_facts(each) for each in ledgers(place)))
    if settings.action == "verify":
        return _verified(place)
    return _cleaned(place, finished=settings.finished)


def output_of(project: Project, output: str) -> str:
    """Give the one way to write an output folder: absolute, without links and dots; an address as it is."""
    place = project.locate(output)
    return place if "://" in place else str(Path(place).resolve())


def remember(project: Project, output: str) -> None:
    """Have the project remember where a run is written, from its start.

    Raises:
        UnavailableError: The project's state cannot be written.
    """
    name = f"{sha256_bytes(output.encode())[:16]}.json"
    write_atomic(project.state / _FOLDERS / name, canonical_json({"output": output}))


def _listed(project: Project) -> Iterator[RunFacts]:
    found = []
    for path in sorted((project.state / _FOLDERS).glob("*.json")):
        output = str(read_json(path).get("output"))
        try:
            known = [_facts(each) for each in ledgers(open_place(output))]
        except KitError as error:
            _log.warning("%s cannot be read: %s", output, error.message)
            continue
        found += known or [RunFacts(output, "run")]
    return iter(sorted(found, key=lambda each: (each.changed, each.output, each.name), reverse=True))


def _plan_of(ledger: Ledger) -> Plan:
    value = ledger.read("plan")
    if value is None:
        raise InputError(f"{ledger.place.uri} holds no plan any more")
    return Plan.from_json(value)


def _facts(ledger: Ledger) -> RunFacts:
    plan = _plan_of(ledger)
    commits = ledger.commits()
    reasons: dict[str, int] = {}
    for each in commits.values():
        for reason, number in each.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + number
    last_s = max((each.ended_s for each in commits.values()), default=None)
    return RunFacts(
        output=ledger.place.uri,
        name="run" if ledger.retry is None else f"retry {ledger.retry}",
        run_id=plan.run_id,
        model=plan.model,
        input=plan.reading.uri,
        status="finished" if ledger.read("manifest") is not None else "unfinished",
        shards=len(plan.shards),
        shards_done=len(commits),
        rows_in=sum(each.rows_in for each in commits.values()),
        rows_out=sum(each.rows_out for each in commits.values()),
        rows_refused=sum(each.rows_refused for each in commits.values()),
        changed="" if last_s is None else datetime.fromtimestamp(last_s, UTC).isoformat(timespec="seconds"),
        settings=dict(plan.settings),
        reasons=dict(sorted(reasons.items(), key=lambda each: -each[1])),
    )


def _verified(place: Place) -> RunsResult:
    n_files, n_bytes = 0, 0
    found: list[RunFacts] = []
    wrong: list[str] = []
    known: set[str] = set()
    for ledger in ledgers(place):
        held, plan = ledger.commits(), _plan_of(ledger)
        commits = tuple(held.values())
        checked = verify(ledger, commits)
        known |= {file.name for each in commits for file in (*each.files, *filter(None, [each.quarantine]))}
        n_files, n_bytes = n_files + checked.n_files, n_bytes + checked.n_bytes
        wrong += checked.wrong
        left = [shard.name for shard in plan.shards if shard.name not in held]
        manifest = ledger.read("manifest")
        if manifest is None:  # parts of shards that are not committed yet are nobody's fault
            known |= set(written(place, plan, shards=left))
        else:
            wrong += [f"{name} has no commit record, and the run is finished" for name in left]
            wrong += _against_manifest(ledger, manifest, commits)
        found.append(_facts(ledger))
    wrong += [
        f"{entry.name} belongs to no commit record"
        for entry in place.entries()
        if entry.name not in known
        and not entry.name.startswith(f"{RUN}/")
        and entry.name.endswith(".parquet")
    ]
    return RunsResult("verify", tuple(found), n_files, n_bytes, tuple(wrong))


def written(place: Place, plan: Plan, *, shards: Collection[str]) -> list[str]:
    """List the files in the output that have the place and the name of these shards' parts.

    Args:
        place: The output folder.
        plan: The run's.
        shards: Names of the shards.
    """
    names = {f"{shard}.parquet" for shard in shards}
    columns = tuple(plan.settings["partition_by"])

    def is_part(name: str) -> bool:
        *folders, file = name.split("/")
        partition = len(folders) == len(columns) and all(
            folder.startswith(f"{column}=") for folder, column in zip(folders, columns, strict=True)
        )
        return file in names and (partition or folders == [QUARANTINE])

    return [entry.name for entry in place.entries() if is_part(entry.name)]


def _against_manifest(ledger: Ledger, manifest: dict[str, Any], commits: tuple[Commit, ...]) -> list[str]:
    """Compare the commit records with the manifest, which was written last."""
    try:
        named = {each["name"]: each["sha256"] for each in (*manifest["parts"], *manifest["quarantine"])}
    except (KeyError, TypeError):
        return [f"{ledger.name('manifest.json')} is damaged"]
    held = {
        file.name: file.sha256 for each in commits for file in (*each.files, *filter(None, [each.quarantine]))
    }
    return [
        f"{name} is {'not in the manifest' if name not in named else 'in the manifest with another digest'}"
        if name in held
        else f"{name} is in the manifest, and no commit record names it"
        for name in sorted(named.keys() | held.keys())
        if named.get(name) != held.get(name)
    ]


def _cleaned(place: Place, *, finished: bool) -> RunsResult:
    """Remove a run: what its ledgers name, half-written files, and the ledgers themselves, last."""
    with place.held():
        all_ledgers = list(ledgers(place))
        facts = tuple(_facts(each) for each in all_ledgers)
        if facts[0].status == "finished" and not finished:
            raise ConflictError(
                f"the run in {place.uri} is finished: {facts[0].rows_out:,} rows are answered there",
                hint="add --finished to remove it all the same",
            )
        place.clear_leftovers()
        plans_read = [_plan_of(each) for each in all_ledgers]
        parts = [
            name
            for plan in plans_read
            for name in written(place, plan, shards=[shard.name for shard in plan.shards])
        ]
        records = [entry.name for entry in place.entries(f"{RUN}/")]
        plans = [name for name in records if name.endswith("plan.json")]
        place.delete(parts)
        place.delete(name for name in records if name not in plans)
        place.delete(sorted(plans, reverse=True))
        place.delete(HOLDS)
    return RunsResult("clean", facts, files=len(parts) + len(records))
