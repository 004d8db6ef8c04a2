"""A release: which version answers which requests, and how the next release follows from it.

Pure decisions: no files, no clock, no registry, no transport. A user is a point on a line, found by hashing
the endpoint's salt and what the release is sticky by; the versions hold pieces of that line (``segments``).
A request without that header, subject or field falls on a version by chance.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import EllipsisType
from typing import NamedTuple

from kit.errors import ConflictError, InputError
from serve.releases.segments import UNITS, Segment, lay_out, share_out, shares_of
from serve.version_key import VersionKey

STICKY = re.compile(r"none|subject|header:[A-Za-z0-9-]+|field:[\w.-]+")
ORIGIN = re.compile(r"serve|set|load|unload|rollback [1-9]\d{0,7}|alias \S+")
_HASH_BYTES = 8
_PER_PERCENT = UNITS // 100
_ROUNDING = 1e-6  # of a unit: what a decimal loses as a float


@dataclass(frozen=True)
class Weighted:
    """A version and its share of the requests.

    Attributes:
        number: In the registry.
        digest: 64 lower-case hexadecimal digits.
        percent: 0 to 100 in steps of 0.001. A version with 0 is answered only where a request names it.
    """

    number: int
    digest: str
    percent: float

    @property
    def units(self) -> int:
        """The share in units of ``segments``."""
        return round(self.percent * _PER_PERCENT)


@dataclass(frozen=True)
class Change:
    """What the next release shall be; None and the empty are as in ``Release``.

    Attributes:
        versions: Their shares add up to 100.
        origin: Who asks: ``serve``, ``set`` or ``alias NAME``.
        sticky: None keeps what was.
        shadow: ``...`` keeps what was.
        follow: Alias that is followed from now on; None follows none.
        note: Why.
    """

    versions: tuple[Weighted, ...]
    origin: str
    sticky: str | None = None
    shadow: Weighted | EllipsisType | None = ...
    follow: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Release:
    """An endpoint's traffic at one moment.

    Attributes:
        endpoint: The served model's name.
        sequence: From 1, without gaps.
        versions: Who answers, in the order given.
        segments: Who holds which part of the line; the owners are version numbers.
        sticky: What keeps a user on one version: ``none``, ``subject``, ``header:NAME`` or ``field:NAME``.
        salt: Of the hash; made once for an endpoint and kept, so that a user keeps a place.
        shadow: Who answers unseen, and for how much of the requests.
        follow: The alias whose version takes all, as it moves; None when the table is fixed.
        made_ns: Unix time in nanoseconds.
        note: Why.
        origin: ``serve``, ``set``, ``load``, ``unload``, ``rollback 3`` or ``alias champion``.
        paused: Whether the model is unloaded, and nothing of it answers.
    """

    endpoint: str
    sequence: int
    versions: tuple[Weighted, ...]
    segments: tuple[Segment, ...]
    sticky: str
    salt: str
    shadow: Weighted | None
    follow: str | None
    made_ns: int
    note: str
    origin: str
    paused: bool = False

    def choose(self, key: bytes | None) -> VersionKey:
        """Give the version that answers a request.

        Args:
            key: What the release is sticky by, from ``key_of``; None leaves it to chance.
        """
        line = self._line
        if line.only is not None:
            return line.only
        if key is None:
            return line.keys[bisect_right(line.bounds, random.randbytes(_HASH_BYTES))]
        hashed = line.salted.copy()
        hashed.update(key)
        return line.keys[bisect_right(line.bounds, hashed.digest())]

    def key_of(
        self,
        *,
        subject: str | None,
        headers: Iterable[tuple[bytes, bytes]],
        field: Callable[[str], str | None],
    ) -> bytes | None:
        """Find what the release is sticky by; None where the request does not have it, or has it empty.

        Args:
            subject: Who asks: a token's subject or a key's name; None for nobody in particular.
            headers: Names in lower case, as ASGI gives them; the first of a name counts.
            field: Gives a field of the request's body by name.
        """
        kind, name, header = self._sticky
        if kind == "none":
            return None
        if kind == "header":
            return next((value for each, value in headers if each == header), None) or None
        value = subject if kind == "subject" else field(name)
        return value.encode("utf-8", "surrogatepass") if value else None

    def shadows(self) -> bool:
        """Say, by chance, whether this request goes to the shadow as well."""
        return self.shadow is not None and random.random() * 100 < self.shadow.percent

    def version_key(self, version: Weighted) -> VersionKey:
        """Name one of the versions."""
        return VersionKey(self.endpoint, version.number, version.digest)

    @property
    def all(self) -> tuple[Weighted, ...]:
        """Every version it names, the shadow last."""
        return (*self.versions, self.shadow) if self.shadow else self.versions

    def needed(self) -> tuple[VersionKey, ...]:
        """Name what must be loaded before the release comes in force: who has a share, and the shadow."""
        if self.paused:
            return ()
        weighted = [each for each in self.versions if each.percent > 0]
        if self.shadow is not None and self.shadow.percent > 0:
            weighted.append(self.shadow)
        return tuple(dict.fromkeys(self.version_key(each) for each in weighted))

    @cached_property
    def _sticky(self) -> tuple[str, str, bytes]:
        kind, _, name = self.sticky.partition(":")
        return kind, name, name.lower().encode()

    @cached_property
    def _line(self) -> _Line:
        by_number = {each.number: self.version_key(each) for each in self.versions}
        keys = tuple(by_number[each.owner] for each in self.segments)
        # The first 64-bit hash that lies beyond a segment: hashes compare as bytes as they do as numbers.
        bounds = [(-(-(each.end << 64) // UNITS)).to_bytes(_HASH_BYTES, "big") for each in self.segments[:-1]]
        return _Line(
            only=keys[0] if len(keys) == 1 else None,
            keys=keys,
            bounds=bounds,
            salted=hashlib.blake2b(self.salt.encode(), digest_size=_HASH_BYTES),
        )


class _Line(NamedTuple):
    """The segments as ``choose`` reads them; a copy of the salted state is half the price of a new hash."""

    only: VersionKey | None
    keys: tuple[VersionKey, ...]
    bounds: list[bytes]
    salted: hashlib.blake2b


def next_release(
    endpoint: str,
    *,
    previous: Release | None,
    sequence: int,
    change: Change,
    salt: str,
    made_ns: int,
) -> Release:
    """Make the release that follows, moving as few users as the change takes.

    Args:
        endpoint: The served model's name.
        previous: What is in force; None for the first.
        sequence: The next number; more than one above ``previous`` where a release between is damaged.
        change: What shall be.
        salt: Taken for the first release; later ones keep theirs.
        made_ns: Now, Unix time in nanoseconds.

    Raises:
        InputError: The shares break a rule.
    """
    check_shares(change.versions)
    shares = {each.number: each.units for each in change.versions}
    sticky = change.sticky or (previous.sticky if previous else "none")
    kept = previous.shadow if previous else None
    shadow = kept if isinstance(change.shadow, EllipsisType) else change.shadow
    return Release(
        endpoint=endpoint,
        sequence=sequence,
        versions=change.versions,
        segments=lay_out(shares) if previous is None else share_out(_held(previous, change.versions), shares),
        sticky=sticky,
        salt=previous.salt if previous else salt,
        shadow=shadow,
        follow=change.follow,
        made_ns=made_ns,
        note=change.note,
        origin=change.origin,
        paused=previous is not None and previous.paused and change.origin.startswith("alias "),
    )


def switched(head: Release, *, paused: bool, sequence: int, made_ns: int) -> Release:
    """Make the release that unloads an endpoint's model, or loads it again with the same table.

    Args:
        head: What is in force.
        paused: Whether it shall be unloaded.
        sequence: The next number.
        made_ns: Now, Unix time in nanoseconds.
    """
    origin = "unload" if paused else "load"
    return replace(head, paused=paused, origin=origin, sequence=sequence, made_ns=made_ns, note="")


def rolled_back(head: Release, *, target: Release, sequence: int, made_ns: int, note: str) -> Release:
    """Make the release that restores an earlier one, to the last user.

    An alias is no longer followed, or the next look at it would undo the rollback.

    Args:
        head: What is in force.
        target: What shall be again.
        sequence: The next number.
        made_ns: Now, Unix time in nanoseconds.
        note: Why.
    """
    return replace(
        target,
        sequence=sequence,
        salt=head.salt,
        follow=None,
        made_ns=made_ns,
        note=note,
        origin=f"rollback {target.sequence}",
    )


def target_of_rollback(head: Release, *, read: Callable[[int], Release]) -> int:
    """Find what a rollback without a number goes back to; doing it again goes further back.

    Args:
        head: What is in force.
        read: Gives a release by sequence number.

    Raises:
        ConflictError: There is nothing before it.
    """
    base = head
    while base.origin.startswith("rollback "):
        base = read(int(base.origin.removeprefix("rollback ")))
    if base.sequence == 1:
        raise ConflictError(
            f"{head.endpoint} has no release before {base.sequence}, it cannot go back",
            hint=f"choose versions yourself: kit release {head.endpoint} set VERSION=PERCENT ...",
        )
    return base.sequence - 1


def check_shares(versions: Sequence[Weighted]) -> None:
    """Refuse shares that cannot be had.

    Raises:
        InputError: A share is not 0 to 100 in steps of 0.001, a version comes twice, or the sum is not 100.
    """
    for each in versions:
        if not math.isfinite(each.percent) or not 0 <= each.percent <= 100:
            raise InputError(
                f"version {each.number} cannot have {each.percent:g} %", hint="give 0 to 100 percent"
            )
        if abs(each.percent * _PER_PERCENT - each.units) > _ROUNDING:
            raise InputError(
                f"version {each.number} cannot have {each.percent!r} %", hint="give steps of 0.001 percent"
            )
    numbers = [each.number for each in versions]
    for number in numbers:
        if numbers.count(number) > 1:
            raise InputError(f"version {number} is named twice", hint="give every version one share")
    total = sum(each.units for each in versions)
    if total != UNITS:
        raise InputError(
            f"the shares add up to {total / _PER_PERCENT:g} %, not 100",
            hint="change a share, or name one VERSION alone to give it all",
        )


def holds_together(release: Release) -> bool:
    """Say whether the segments are the whole line and give every version exactly its share."""
    shares = {each.number: each.units for each in release.versions if each.units}
    return shares == shares_of(release.segments)


def _held(previous: Release, versions: Sequence[Weighted]) -> tuple[Segment, ...]:
    """Give who holds what; a number that now stands for another digest is another version."""
    digests = {each.number: each.digest for each in versions}
    before = {each.number: each.digest for each in previous.versions}
    return tuple(
        each._replace(owner=-each.owner) if digests.get(each.owner) != before[each.owner] else each
        for each in previous.segments
    )
