"""Which models an endpoint serves, and the release each of them begins with.

Everything is decided and written before Ray starts. It knows the registry and the releases, no process.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import InputError, NotFoundError, UnavailableError
from kit.project import Project
from kit.reference import CHAMPION, parse_reference
from kit.registry import VersionRecord
from kit.settings import ServeSettings
from serve.fallback import constant_outputs
from serve.releases import Change, Release, ReleaseStore, Weighted, next_release
from serve.releases.acks import living_acks
from serve.releases.table import rolled_back

_SALT_BYTES = 16
_logger = logging.getLogger("kit")


@dataclass(frozen=True)
class Served:
    """One model that is served.

    Attributes:
        release: How its traffic falls on versions.
        record: The version with most of it.
        is_new: Whether the release is still to be written.
    """

    release: Release
    record: VersionRecord
    is_new: bool = False


def release_store(project: Project) -> ReleaseStore:
    """Open the releases of a project's endpoints."""
    return ReleaseStore(project.state / "serve" / "releases")


def begin(project: Project, settings: ServeSettings) -> tuple[Served, ...]:
    """Choose what is served, verify it, and write the releases that are missing.

    A model named alone goes on with its last release. A model named with a version or an alias begins a
    release of that.

    Args:
        project: Where registry, store and releases are.
        settings: Which models; all that have a champion when none is named.

    Raises:
        InputError: A model is named twice, or there is none.
        NotFoundError: A model or version is not known.
        VerificationError: A version's files or their signature do not hold.
    """
    references = settings.models or _champions(project)
    store = release_store(project)
    served: dict[str, Served] = {}
    for reference in references:
        each = _begin(project, store, reference)
        if each.release.endpoint in served:
            raise InputError(
                f"model {each.release.endpoint!r} is named twice",
                hint="name it once; kit release puts traffic on several versions",
            )
        served[each.release.endpoint] = each
    unknown = sorted(set(settings.model) - set(served))
    if unknown:
        raise InputError(
            f"[serve.model.{unknown[0]}] is about a model that is not served",
            hint=f"name it: kit serve {' '.join([*served, unknown[0]])}",
        )
    for name, own in settings.model.items():
        _check_fallback(project, name, own.fallback, record=served[name].record)
    for each in served.values():  # only now: what is refused changes no traffic of an endpoint that runs
        if each.is_new:
            store.append(each.release)
    return tuple(served.values())


def _begin(project: Project, store: ReleaseStore, reference: str) -> Served:
    parsed = parse_reference(reference)
    head = store.head(parsed.model)
    if head is not None and "@" not in reference:
        for each in head.all:
            if each.percent > 0:
                project.open_version(f"{parsed.model}@sha256:{each.digest}")
        main = max(head.versions, key=lambda each: each.percent)
        return Served(head, project.registry().resolve(f"{parsed.model}@sha256:{main.digest}"))
    record, _ = project.open_version(reference)
    wanted = (Weighted(record.number, record.digest, 100.0),)
    if head is not None and not head.paused and head.versions == wanted and head.follow == parsed.alias:
        return Served(head, record)
    change = Change(versions=wanted, origin="serve", follow=parsed.alias)
    release = next_release(
        record.model,
        previous=head,
        sequence=store.last(record.model) + 1,
        change=change,
        salt=secrets.token_hex(_SALT_BYTES),
        made_ns=time.time_ns(),
    )
    return Served(release, record, is_new=True)


def in_force(project: Project, served: tuple[Served, ...]) -> tuple[Served, ...]:
    """Say what really answers once the replicas have started: an older release where the newest failed.

    Raises:
        UnavailableError: A release that was begun by this start is not in force. It is taken back.
    """
    store, registry = release_store(project), project.registry()
    found = []
    for each in served:
        model, newest = each.release.endpoint, each.release.sequence
        acks = [ack.endpoints[model] for ack in living_acks(replicas_folder(project.state), endpoint=model)]
        standing = min((ack.in_force for ack in acks), default=newest)
        if standing >= newest or standing == 0:
            found.append(each)
            continue
        reason = next((ack.reason for ack in acks if ack.reason), "")
        release = store.read(model, sequence=standing)
        if each.is_new:
            last = store.last(model)
            back = rolled_back(
                each.release,
                target=release,
                sequence=last + 1,
                made_ns=time.time_ns(),
                note="it failed at the start",
            )
            store.append(back)
            raise UnavailableError(
                f"release {newest} of {model} cannot be in force: {reason}", hint="serve another version"
            )
        _logger.warning("release %d of %s is not in force, %d answers: %s", newest, model, standing, reason)
        main = max(release.versions, key=lambda version: version.percent)
        found.append(Served(release, registry.resolve(f"{model}@sha256:{main.digest}")))
    return tuple(found)


def _check_fallback(
    project: Project, model: str, fallback: int | Mapping[str, Any] | None, *, record: VersionRecord
) -> None:
    """Refuse a fallback that could not answer when it is needed.

    Raises:
        InputError: It names an output that is not there, or a value that is none of it.
        NotFoundError: There is no such version.
    """
    if isinstance(fallback, int):
        project.open_version(f"{model}@{fallback}")
    elif fallback is not None:
        signature = project.open_version(f"{model}@{record.number}")[1].signature
        constant_outputs(signature, fallback, n_rows=1)


def _champions(project: Project) -> tuple[str, ...]:
    names = sorted({each.model for each in project.registry().versions() if CHAMPION in each.aliases})
    if not names:
        raise NotFoundError(
            "no model has a champion yet", hint="train one and promote it: kit models promote MODEL@1"
        )
    return tuple(names)


def replicas_folder(state: Path) -> Path:
    """Say where replicas write what they have in force."""
    return state / "serve" / "replicas"


def serve_settings(project: Project, *, models: tuple[str, ...]) -> ServeSettings:
    """Put the settings of ``[serve]`` together for somebody else's Ray Serve, which knows its own ports."""
    return project.command("serve", ServeSettings, {"models": models} if models else {})
