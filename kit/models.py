"""List, inspect, promote and verify model versions."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import GateError, InputError, VerificationError
from kit.event_log import Event
from kit.gates import check_floors
from kit.model_version import ModelVersion
from kit.project import Project
from kit.reference import CHAMPION
from kit.registry import UNSET, VersionRecord
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
        if settings.gates and settings.alias == CHAMPION:
            _ask_gates(project, record)
        expect = UNSET if settings.expect is None else settings.expect
        exact = f"{version.name}@sha256:{version.digest}"
        moved = registry.promote(exact, alias=settings.alias, expect=expect)
    else:
        moved = registry.rollback(reference, alias=settings.alias)
    return ModelsResult(action, versions=(moved,))


def _ask_gates(project: Project, record: VersionRecord) -> None:
    """Hold a version's metrics against the project's floors."""
    floors = dict[str, float](project.settings.gates.floors.items())
    metrics = record.summary.get("metrics", {})
    said = [
        f"it has no {metric}, the gate asks {floors[metric]:g}" for metric in floors if metric not in metrics
    ]
    said += [
        f"{gate.metric} is {gate.value:.4f}, the gate {gate.bound:g}"
        for gate in check_floors(metrics, {name: floors[name] for name in floors if name in metrics})
        if not gate.passed
    ]
    if said:
        raise GateError(
            f"{record.model}@{record.number} was not promoted: {'; '.join(said)}",
            hint="choose a better version, or promote it anyway with --no-gates",
        )


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
