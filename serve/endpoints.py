"""Which models an endpoint serves, and the release each of them begins with.

Everything is decided and written before Ray starts. It knows the registry and the releases, no process.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from kit.errors import InputError, NotFoundError
from kit.project import Project
from kit.reference import CHAMPION, parse_reference
from kit.registry import VersionRecord
from kit.settings import ServeSettings
from serve.releases import Change, Release, ReleaseStore, Weighted, next_release

_SALT_BYTES = 16


@dataclass(frozen=True)
class Served:
    """One model that is served.

    Attributes:
        release: How its traffic falls on versions.
        record: The version with most of it.
    """

    release: Release
    record: VersionRecord


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
    if head is not None and head.versions == wanted and head.follow == parsed.alias:
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
    store.append(release)
    return Served(release, record)


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
