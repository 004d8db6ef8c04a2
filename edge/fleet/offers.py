"""Decide what a device is offered: to stay, to install the bundle of its group, or to return.

Pure, like ``edge.fleet.rollout``. What an offer means to a device is written in docs/device-protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.fleet.rollout import FAILED, RUNNING, Member, Seen

FORMAT = 1
STAY, INSTALL, RETURN = "stay", "install", "return"


@dataclass(frozen=True)
class BundleFacts:
    """A bundle the fleet can offer.

    Attributes:
        digest: Names its content.
        name: Of its model.
        target: What it was built for.
        release: Its release counter.
        size_bytes: Of its archive.
        sha256: Of its archive.
    """

    digest: str
    name: str
    target: str
    release: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class DeltaFacts:
    """A file that makes one bundle's archive out of another's."""

    base: str
    digest: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Standing:
    """A device, as far as its offer depends on it.

    Attributes:
        id: Its id.
        name: What people call it.
        group: The group it is in.
        seen: What it last told.
        previous: The bundle it can go back to; None for none.
        release: The highest release it has confirmed.
        seq: Number of its newest status.
        withdrawn: Bundles that were taken back from it, to what it ran before each; see
            ``edge.fleet.rollouts``.
    """

    id: str
    name: str
    group: str
    seen: Seen
    previous: str | None = None
    release: int = 0
    seq: int = -1
    withdrawn: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupView:
    """A group, as far as its devices' offers depend on it.

    Attributes:
        confirmed: The bundle of its last rollout that was done; None before the first.
        rollout: Id of the rollout that goes on; empty for none.
        digest: The bundle of that rollout; None for none.
        status: Of that rollout.
        members: Its devices.
        overrides: Bundle to the paper that lets it in though its release is not above a device's.
    """

    confirmed: str | None = None
    rollout: str = ""
    digest: str | None = None
    status: str = ""
    members: Mapping[str, Member] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What a device shall do: ``kind`` with ``digest``, as part of ``rollout`` where it is."""

    kind: str = STAY
    digest: str | None = None
    rollout: str = ""


def wanted(device: Standing, group: GroupView, bundles: Mapping[str, BundleFacts]) -> Wanted:
    """Decide what a device shall do."""
    runs = device.seen.digest
    member = group.members.get(device.id)
    if group.digest is not None and member is not None:
        if member.outcome == FAILED and runs == group.digest:
            return _back(device, group, before=member.before, rollout=group.rollout)
        if runs == group.digest:
            return Wanted()
        if group.status == RUNNING and member.outcome != FAILED:
            return Wanted(INSTALL, group.digest, group.rollout)
    if runs is not None and runs in device.withdrawn and runs != group.digest:
        return _back(device, group, before=device.withdrawn[runs], rollout="")
    confirmed = None if group.confirmed is None else bundles.get(group.confirmed)
    if confirmed is None or confirmed.digest in (runs, *device.withdrawn, *device.seen.rejected):
        return Wanted()
    # A device takes no release below one it has confirmed: it would refuse, and remember that it did.
    fits = confirmed.release > device.release or confirmed.digest in group.overrides
    return Wanted(INSTALL, confirmed.digest) if fits else Wanted()


def _back(device: Standing, group: GroupView, *, before: str | None, rollout: str) -> Wanted:
    """Send a device back to what it ran before; nowhere, when there was nothing."""
    barred = {device.seen.digest, *device.withdrawn}
    for digest in (device.previous, before, group.confirmed):
        if digest is not None and digest not in barred:
            return Wanted(RETURN, digest, rollout)
    return Wanted()


def offer(
    what: Wanted,
    *,
    bundles: Mapping[str, BundleFacts],
    delta: DeltaFacts | None,
    override: Mapping[str, Any] | None,
    keyring: int | None,
    poll_s: int,
) -> dict[str, Any]:
    """Write an offer as docs/device-protocol.md has it.

    Args:
        what: What the device shall do.
        bundles: Every bundle by digest.
        delta: What makes it out of the bundle the device runs; None for nothing.
        override: The paper that goes with it.
        keyring: Counter of the newest keyring; None when there is none.
        poll_s: When to ask again.
    """
    body: dict[str, Any] = {"format": FORMAT, "kind": what.kind, "poll_s": poll_s}
    if keyring is not None:
        body["keyring"] = {"counter": keyring, "url": "keyring.json"}
    if what.rollout:
        body["rollout"] = what.rollout
    if what.kind == STAY or what.digest is None:
        return body
    body["digest"] = what.digest
    if what.kind == INSTALL:
        facts = bundles[what.digest]
        body |= {
            "release": facts.release,
            "url": f"bundles/{facts.digest}.bundle",
            "size_bytes": facts.size_bytes,
            "sha256": facts.sha256,
            "override": None if override is None else dict(override),
            "deltas": [],
        }
        if delta is not None:
            body["deltas"] = [
                {
                    "from": delta.base,
                    "url": f"deltas/{delta.base}-{delta.digest}.delta",
                    "size_bytes": delta.size_bytes,
                    "sha256": delta.sha256,
                }
            ]
    return body
