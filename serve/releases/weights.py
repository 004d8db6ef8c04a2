"""What an operator writes for ``kit release ENDPOINT set``, read as versions and shares.

Resolves references through the registry and holds the versions' signatures against each other. Versions that
read different inputs cannot share requests: whichever a client is made for, the other one would refuse, so
such a split is refused. Going over to other inputs altogether is an operator's right and is done with a
warning: clients must change at the same moment, and a rollback takes less than a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

from kit.errors import InputError
from kit.files import read_json
from kit.project import Project
from kit.reference import Reference, parse_reference
from kit.registry import VersionRecord
from kit.settings.serving import ReleaseSettings
from kit.signature import Signature
from kit.tensors import TensorSpec
from serve.releases.table import Change, Release, Weighted, check_shares

_EXAMPLE = "give every VERSION its share, like 3=10 champion=90"


@dataclass(frozen=True)
class Asked:
    """What shall be released, and what the operator should know of it, one sentence each."""

    change: Change
    warnings: tuple[str, ...] = ()


def asked_change(project: Project, settings: ReleaseSettings, *, previous: Release | None) -> Asked:
    """Read the weights, the shadow and the rest of what ``set`` was given.

    Args:
        project: Where the registry and the store are.
        settings: As typed.
        previous: The release in force; without weights its versions stay as they are.

    Raises:
        InputError: A text is no weight, the shares do not add up, or versions that shall share requests read
            different inputs.
        NotFoundError: The model, a version or an alias is not known, or the store lacks its files.
        UnavailableError: The registry or the store cannot be read.
        VerificationError: A version's signature cannot be read.
    """
    if not settings.weights and (previous is None or settings.sticky is settings.shadow is None):
        raise InputError(f"kit release {settings.endpoint} set needs a version", hint=_EXAMPLE)
    shadow = _shadow(project, settings)
    versions, follow = _versions(project, settings, previous=previous)
    check_shares(versions)
    standing = previous.shadow if previous is not None and isinstance(shadow, EllipsisType) else None
    unseen = standing if isinstance(shadow, EllipsisType) else shadow
    if unseen is not None and [each.digest for each in versions if each.percent] == [unseen.digest]:
        raise InputError(
            f"version {unseen.number} answers every request, it cannot be its own shadow",
            hint="name another version, or end the shadow with --shadow none",
        )
    change = Change(
        versions=versions,
        origin="set",
        sticky=settings.sticky,
        shadow=shadow,
        follow=follow,
        note=settings.note,
    )
    return Asked(change, _compare_inputs(project, versions, shadow=unseen, previous=previous))


def _versions(
    project: Project, settings: ReleaseSettings, *, previous: Release | None
) -> tuple[tuple[Weighted, ...], str | None]:
    """Give the versions with their shares, and the alias to follow."""
    if not settings.weights and previous is not None:
        return previous.versions, previous.follow
    if len(settings.weights) == 1 and "=" not in settings.weights[0]:
        reference = _reference(settings.weights[0], endpoint=settings.endpoint)
        record = project.registry().resolve(str(reference))
        return (Weighted(record.number, record.digest, 100.0),), reference.alias
    versions: list[Weighted] = []
    for text in settings.weights:
        record, percent = _weight(project, text, endpoint=settings.endpoint)
        if percent is None:
            raise InputError(f"{text!r} has no share", hint=_EXAMPLE)
        twin = next((each for each in versions if each.number == record.number), None)
        if twin is not None:
            raise InputError(
                f"{text!r} is version {record.number}, which has {twin.percent:g} % already",
                hint="give every version one share",
            )
        versions.append(Weighted(record.number, record.digest, percent))
    return tuple(versions), None


def _shadow(project: Project, settings: ReleaseSettings) -> Weighted | EllipsisType | None:
    if settings.shadow is None:
        return ...
    if settings.shadow == "none":
        return None
    record, percent = _weight(project, settings.shadow, endpoint=settings.endpoint)
    percent = 100.0 if percent is None else percent
    if not 0 < percent <= 100:
        raise InputError(
            f"the shadow cannot have {percent:g} % of the requests",
            hint="give more than 0 and at most 100, or end it with --shadow none",
        )
    return Weighted(record.number, record.digest, percent)


def _weight(project: Project, text: str, *, endpoint: str) -> tuple[VersionRecord, float | None]:
    """Read ``VERSION=PERCENT``; without a percent that is None."""
    version, equals, share = text.partition("=")
    try:
        percent = float(share) if equals else None
    except ValueError as error:
        raise InputError(f"{text!r} has no number of percent after '='", hint=_EXAMPLE) from error
    return project.registry().resolve(str(_reference(version, endpoint=endpoint))), percent


def _reference(text: str, *, endpoint: str) -> Reference:
    """Read ``3``, ``champion``, ``sha256:ab12cd`` or a whole reference to a version of the model."""
    reference = parse_reference(text if "@" in text else f"{endpoint}@{text}")
    if reference.model != endpoint:
        raise InputError(
            f"{text!r} is a version of {reference.model}, and {endpoint} answers with versions of {endpoint}",
            hint=f"serve it beside: kit serve {endpoint} {reference.model}",
        )
    return reference


def _compare_inputs(
    project: Project, versions: Sequence[Weighted], *, shadow: Weighted | None, previous: Release | None
) -> tuple[str, ...]:
    """Hold the inputs of all versions against the first one's, and those against what was in force.

    Raises:
        InputError: Two versions that shall be asked the same read different inputs.
    """
    asked = [each for each in versions if each.percent]
    before = [each for each in previous.versions if each.percent] if previous else []
    if [each.digest for each in (*asked, shadow) if each] == [each.digest for each in before]:
        return ()
    signatures = {
        each.digest: _signature(project, each.digest)
        for each in (*asked, *before, shadow)
        if each is not None
    }
    first, warnings = asked[0], []
    for other in (*asked[1:], *((shadow,) if shadow else ())):
        breaking, narrower = input_differences(signatures[first.digest], signatures[other.digest])
        if breaking:
            raise InputError(
                f"versions {first.number} and {other.number} cannot answer the same requests: "
                + "; ".join(breaking),
                hint="release one of them alone, with clients that fit it",
            )
        warnings += [f"version {other.number} refuses more than {first.number}: {each}" for each in narrower]
    new = {each.digest for each in asked} - {each.digest for each in before}
    if before and new:
        breaking, narrower = input_differences(signatures[before[0].digest], signatures[first.digest])
        said = f"version {first.number} reads other inputs than {before[0].number}, which answered until now"
        warnings += [f"{said}: {each}" for each in (*breaking, *narrower)]
    return tuple(dict.fromkeys(warnings))


def input_differences(before: Signature, after: Signature) -> tuple[list[str], list[str]]:
    """Tell how requests made for one signature fare with another.

    Returns:
        What makes every such request fail, and what makes some fail, in words.
    """
    breaking, narrower = [], []
    theirs = {spec.name: spec for spec in after.inputs}
    for spec in before.inputs:
        other = theirs.pop(spec.name, None)
        if other is None:
            breaking.append(f"input {spec.name!r} is gone")
            continue
        for what in ("dtype", "shape", "columns"):
            was, is_now = getattr(spec, what), getattr(other, what)
            if was != is_now:
                breaking.append(f"{what} of input {spec.name!r} is {_shown(is_now)} instead of {_shown(was)}")
        narrower += _narrower(spec, other)
    breaking += [f"input {name!r} is new" for name in theirs]
    return breaking, narrower


def _narrower(before: TensorSpec, after: TensorSpec) -> list[str]:
    found = []
    if before.nullable and not after.nullable:
        found.append(f"input {before.name!r} allows no missing values any more")
    if after.minimum is not None and (before.minimum is None or after.minimum > before.minimum):
        found.append(f"input {before.name!r} must be at least {after.minimum:g}")
    if after.maximum is not None and (before.maximum is None or after.maximum < before.maximum):
        found.append(f"input {before.name!r} must be at most {after.maximum:g}")
    return found


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _signature(project: Project, digest: str) -> Signature:
    """Read what a version reads; whether its files hold is checked by who loads it."""
    return Signature.from_json(read_json(project.store().fetch(digest) / "signature.json"))
