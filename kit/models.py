"""List, inspect, promote and verify model versions."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import GateError, InputError, NotFoundError, VerificationError
from kit.event_log import Event
from kit.files import read_json
from kit.gates import Judgement, check_floors, failures
from kit.model_version import ModelVersion
from kit.project import Project
from kit.reference import CHAMPION
from kit.registry import UNSET, Unset, VersionRecord
from kit.settings import ModelsSettings


@dataclass(frozen=True)
class ModelsResult:
    """What an action found or did.

    Attributes:
        action: Which.
        versions: The versions it is about, oldest first.
        events: For ``log``: what happened, oldest first.
        manifest: For ``show``: the version's manifest.
        checked: For ``verify``: what was found sound; the log first, with the number of its newest entry and
            the start of that entry's hash.
    """

    action: str
    versions: tuple[VersionRecord, ...] = ()
    events: tuple[Event, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    checked: tuple[str, ...] = ()


def models(project: Project, settings: ModelsSettings) -> ModelsResult:
    """Run one action on the registry.

    Raises:
        InputError: The action needs a reference and none was given.
        NotFoundError: Nobody knows the model, version or alias.
        ConflictError: The alias moved meanwhile, or has nothing to go back to.
        GateError: The version that shall become champion does not pass the gates.
        VerificationError: A file, a signature or the log does not hold.
    """
    registry = project.registry()
    action, reference = settings.action, settings.reference
    if action == "list":
        return ModelsResult(action, versions=tuple(registry.versions(reference)))
    if action == "log":
        registry.verify_log()
        return ModelsResult(action, events=tuple(registry.log(reference)))
    if action == "verify":
        return _verify(project, reference)
    if reference is None:
        raise InputError(
            f"kit models {action} needs a model", hint=f"name it: kit models {action} {project.name}"
        )
    if action == "show":
        record, version = project.open_version(reference)
        return ModelsResult(action, versions=(record,), manifest=version.manifest)
    if action == "promote":
        record, version = project.open_version(reference)
        expect: str | Unset | None = UNSET if settings.expect is None else settings.expect
        if settings.gates and settings.alias == CHAMPION:
            held_against = _ask_gates(project, record)
            expect = held_against if isinstance(expect, Unset) else expect
        exact = f"{version.name}@sha256:{version.digest}"
        moved = registry.promote(exact, alias=settings.alias, expect=expect)
    else:
        moved = registry.rollback(reference, alias=settings.alias)
    return ModelsResult(action, versions=(moved,))


def _ask_gates(project: Project, record: VersionRecord) -> str | Unset | None:
    """Hold a version's metrics against the floors, and ask how it was judged against the champion.

    Floors are decided here from the metrics in the registry. What needs the held-out rows is decided when a
    version is trained or evaluated, and only read here.

    Returns:
        The digest the champion must still have when it is replaced; None when there must be none.
    """
    gates = project.settings.gates
    floors = dict[str, float](gates.floors.items())
    metrics = record.summary.get("metrics", {})
    said = [
        f"it has no {metric}, the gate asks {floors[metric]:g}" for metric in floors if metric not in metrics
    ]
    measured = {name: bound for name, bound in floors.items() if name in metrics}
    said.append(failures(check_floors(metrics, measured)))
    expect: str | Unset | None = UNSET
    hint = "choose a better version, or promote it anyway with --no-gates"
    if gates.max_loss:
        champion = _champion(project, record.model)
        expect = champion.digest if champion is not None else None
        if champion is not None and champion.digest != record.digest:
            judgement = _judgement(project, record, champion)
            if judgement is None:
                said.append(
                    f"it was not held against the champion {champion.model}@{champion.number} by these gates"
                )
                hint = f"run kit evaluate {record.model}@{record.number}, then promote it"
            else:
                said.append(failures(each for each in judgement.results if each.kind == "max_loss"))
    reasons = "; ".join(each for each in said if each)
    if reasons:
        raise GateError(f"{record.model}@{record.number} was not promoted: {reasons}", hint=hint)
    return expect


def _champion(project: Project, model: str) -> VersionRecord | None:
    try:
        return project.registry().resolve(model)
    except NotFoundError:
        return None


def _judgement(project: Project, record: VersionRecord, champion: VersionRecord) -> Judgement | None:
    """Find how a version was judged against this champion by the gates as they are now, newest first."""
    rules = project.settings.gates.model_dump(mode="json", exclude={"floors"})
    evaluations: list[dict[str, Any]] = []
    for path in (project.state / "runs" / "evaluate").glob("*.json"):
        with contextlib.suppress(InputError):  # a damaged record is the report's business
            evaluations.append(read_json(path))
    mine = [each for each in evaluations if each.get("digest") == record.digest]
    mine.sort(key=_written_at_s, reverse=True)
    for each in (*mine, record.summary):  # it was registered before it was evaluated
        judgement = Judgement.from_json(each.get("judgement"))
        if judgement and judgement.champion == champion.digest and judgement.rules == rules:
            return judgement
    return None


def _written_at_s(evaluation: dict[str, Any]) -> float:
    written_at_s = evaluation.get("written_at_s")
    return float(written_at_s) if isinstance(written_at_s, (int, float)) else 0.0


def _verify(project: Project, reference: str | None) -> ModelsResult:
    """Check the log and every byte of the named version, or of all."""
    registry = project.registry()
    head = registry.verify_log()
    records = registry.versions() if reference is None else [registry.resolve(reference)]
    trusted = project.trusted()
    for record in records:
        # What lies in the store is checked, not what an earlier download left on this machine.
        with tempfile.TemporaryDirectory(prefix="kit-verify-") as fresh:
            folder = project.store(cache=Path(fresh)).fetch(record.digest)
            version = ModelVersion.open(folder, trusted=trusted, digest=record.digest)
        if version.name != record.model:
            raise VerificationError(f"{record.model}@{record.number} was signed as {version.name!r}")
    log = "log 0" if head is None else f"log {head.seq} {head.hash[:12]}"
    names = tuple(f"{record.model}@{record.number}" for record in records)
    return ModelsResult("verify", versions=tuple(records), checked=(log, *names))
