"""Decide how a rollout goes on: which devices are in a wave, which count as failed, when it ends.

Pure: no socket, no file, no clock. Evidence and the time are handed in, and the rollout as it stands after
them is handed back. Time is the fleet's own, in seconds, and passes only while somebody listens to devices
(``edge.fleet.store``), so that a server that was away for days calls no device silent.

A wave is the first so many devices of an order that a hash gives, counted from the first device: the next
wave is this one and more, and no device ever leaves one. A device counts once, as the last thing that is
known of it, but for a failure it caused: that one stays, however often it comes back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from edge.fleet.plan import Plan
from kit.errors import ConflictError

RUNNING, PAUSED = "running", "paused"
DONE, STOPPED, ABORTED = "done", "stopped", "aborted"
LIVE = (RUNNING, PAUSED)
"""Statuses of a rollout that goes on."""

WAITING, CONFIRMED, FAILED, SILENT = "waiting", "confirmed", "failed", "silent"
"""Outcomes of a device in a wave: none yet, it runs the bundle, it failed, it was not heard of in time."""

MIN_ANSWERS = 50
"""Answers before a share of errors says anything: at 2 %, 50 answers hold one error."""

IDLE = "idle"


@dataclass(frozen=True)
class Seen:
    """What is known of a device.

    Attributes:
        heard_s: When it last asked or told anything, on the fleet's clock.
        digest: The bundle it runs; None for none.
        phase: What it is doing.
        rejected: Digest to reason.
        answers: Answers it gave since it confirmed ``digest``.
        errors: How many of them failed.
    """

    heard_s: float
    digest: str | None = None
    phase: str = IDLE
    rejected: Mapping[str, str] = field(default_factory=dict)
    answers: int = 0
    errors: int = 0


@dataclass(frozen=True)
class Member:
    """A device in a rollout.

    Attributes:
        released_s: Since when its wave has been under way; pauses are added.
        outcome: ``waiting``, ``confirmed``, ``failed`` or ``silent``.
        reason: One sentence about a failure; empty otherwise.
        before: What it ran when its wave began; None for nothing.
    """

    released_s: float
    outcome: str = WAITING
    reason: str = ""
    before: str | None = None


@dataclass(frozen=True)
class Rollout:
    """A rollout as it stands.

    Attributes:
        id: Names it.
        digest: The bundle.
        plan: What it was told to do.
        order: Every device, the first of the first wave first; fixed when it starts.
        status: ``running``, ``paused``, ``done``, ``stopped`` (a wave failed) or ``aborted`` (somebody did).
        wave: Place of the wave under way, from 0.
        members: Device to how it stands, for devices of waves that have begun.
        soaking_s: Since when the wave has had its share; None while it has not.
        paused_s: Since when it is paused; None while it is not.
        reason: Why it ended as it did, or stands; one sentence.
    """

    id: str
    digest: str
    plan: Plan
    order: tuple[str, ...]
    status: str = RUNNING
    wave: int = 0
    members: Mapping[str, Member] = field(default_factory=dict)
    soaking_s: float | None = None
    paused_s: float | None = None
    reason: str = ""

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return self.status in LIVE


@dataclass(frozen=True)
class Count:
    """How the devices of the waves that have begun stand."""

    devices: int
    confirmed: int
    failed: int
    silent: int

    @property
    def waiting(self) -> int:
        """Those nothing is known of yet."""
        return self.devices - self.confirmed - self.failed - self.silent


@dataclass(frozen=True)
class Happened:
    """Something the log shall remember.

    Attributes:
        what: ``wave``, ``passed``, ``failed`` (a device), ``stopped`` or ``done``.
        detail: One sentence.
        device: The device it is about; empty for the whole rollout.
    """

    what: str
    detail: str
    device: str = ""


def reached(rollout: Rollout, *, wave: int, gone: Collection[str] = ()) -> tuple[str, ...]:
    """List the devices a wave reaches, those of the waves before it included.

    Args:
        rollout: Whose.
        wave: Its place, from 0.
        gone: Devices that were removed since; the next ones stand in for them.
    """
    there = [device for device in rollout.order if device not in gone]
    return tuple(there[: rollout.plan.waves[wave].bound(len(rollout.order))])


def step(rollout: Rollout, seen: Mapping[str, Seen], *, now_s: float) -> tuple[Rollout, tuple[Happened, ...]]:
    """Take in what is known of the devices, and decide.

    Args:
        rollout: As it stood.
        seen: What is known of every device that still exists.
        now_s: The time, on the fleet's clock.

    Returns:
        The rollout as it stands now, and what happened. One wave at most ends in one step.
    """
    if rollout.status != RUNNING:
        return rollout, ()
    gone = {device for device in rollout.order if device not in seen}
    there = reached(rollout, wave=rollout.wave, gone=gone)
    happened: list[Happened] = []
    members = {device: each for device, each in rollout.members.items() if device not in gone}
    begun = [device for device in there if device not in members]
    if not rollout.members:
        happened.append(_wave_begins(rollout, len(there)))
    for device in begun:
        members[device] = Member(released_s=now_s, before=seen[device].digest)
    for device in there:
        judged = _judge(members[device], seen[device], rollout=rollout, now_s=now_s)
        if judged.outcome in (FAILED, SILENT) and judged.outcome != members[device].outcome:
            happened.append(Happened("failed", judged.reason, device))
        members[device] = judged
    now = dataclasses.replace(rollout, members=members)
    after, more = _decide(now, seen, there, now_s=now_s)
    return after, (*happened, *more)


def pause(rollout: Rollout, *, now_s: float) -> Rollout:
    """Let no further device begin.

    Raises:
        ConflictError: It is not running.
    """
    if rollout.status != RUNNING:
        raise ConflictError(f"rollout {rollout.id} is {rollout.status}; only a running one can be paused")
    return dataclasses.replace(rollout, status=PAUSED, paused_s=now_s, reason="paused")


def resume(rollout: Rollout, *, now_s: float) -> Rollout:
    """Go on with a paused rollout; the pause counts for no deadline.

    Raises:
        ConflictError: It is not paused.
    """
    if rollout.status != PAUSED or rollout.paused_s is None:
        raise ConflictError(f"rollout {rollout.id} is {rollout.status}; only a paused one can be resumed")
    away_s = now_s - rollout.paused_s
    members = {
        device: dataclasses.replace(each, released_s=each.released_s + away_s)
        for device, each in rollout.members.items()
    }
    soaking_s = None if rollout.soaking_s is None else rollout.soaking_s + away_s
    return dataclasses.replace(
        rollout, status=RUNNING, paused_s=None, reason="", members=members, soaking_s=soaking_s
    )


def abort(rollout: Rollout) -> Rollout:
    """End a rollout; its devices return.

    Raises:
        ConflictError: It has ended.
    """
    if not rollout.live:
        raise ConflictError(f"rollout {rollout.id} is {rollout.status} already")
    return dataclasses.replace(rollout, status=ABORTED, paused_s=None, reason="aborted")


def count(members: Mapping[str, Member]) -> Count:
    """Count how devices stand."""
    outcomes = [member.outcome for member in members.values()]
    return Count(len(outcomes), *(outcomes.count(each) for each in (CONFIRMED, FAILED, SILENT)))


def _judge(member: Member, seen: Seen, *, rollout: Rollout, now_s: float) -> Member:
    """Say how one device stands."""
    if member.outcome == CONFIRMED and seen.digest is None and rollout.digest not in seen.rejected:
        # Nothing answers there for now: its process starts anew, say. It has to show once more that it runs.
        return dataclasses.replace(member, outcome=WAITING, released_s=now_s)
    outcome, reason = _verdict(member, seen, digest=rollout.digest, plan=rollout.plan, now_s=now_s)
    return (
        member if outcome == member.outcome else dataclasses.replace(member, outcome=outcome, reason=reason)
    )


def _verdict(member: Member, seen: Seen, *, digest: str, plan: Plan, now_s: float) -> tuple[str, str]:
    if member.outcome == FAILED:
        return FAILED, member.reason
    if digest in seen.rejected:
        return FAILED, f"rejected it: {seen.rejected[digest]}"
    if seen.digest != digest:
        if member.outcome == CONFIRMED:
            return FAILED, "confirmed it and runs it no more"
        if now_s - member.released_s > plan.silence_s:
            unheard = now_s - max(seen.heard_s, member.released_s) > plan.silence_s
            return SILENT, "was not heard of in time" if unheard else "did not confirm it in time"
        return member.outcome, member.reason
    if seen.answers >= MIN_ANSWERS and seen.errors > plan.errors * seen.answers:
        return FAILED, f"{seen.errors} of its {seen.answers} answers are errors"
    if now_s - max(seen.heard_s, member.released_s) > plan.silence_s:
        return SILENT, "has not been heard of since it confirmed it"
    if seen.phase == IDLE or member.outcome == CONFIRMED:
        return CONFIRMED, ""
    if now_s - member.released_s > plan.silence_s:
        return SILENT, "did not confirm it in time"
    return member.outcome, member.reason


def _decide(
    rollout: Rollout, seen: Mapping[str, Seen], there: tuple[str, ...], *, now_s: float
) -> tuple[Rollout, tuple[Happened, ...]]:
    """Stop the rollout, let its wave pass, or leave it where it is."""
    reached_now = count({device: rollout.members[device] for device in there})
    needed = math.ceil(rollout.plan.success * len(there))
    lost = reached_now.failed + reached_now.silent
    if not there:
        why = f"wave {rollout.wave + 1}: none of its devices is left"
    elif lost > len(there) - needed:
        silent = f", {reached_now.silent} of them silent" if reached_now.silent else ""
        lost_of = f"{lost} of {_devices(len(there))} failed{silent}"
        why = f"wave {rollout.wave + 1}: {lost_of}; {needed} had to confirm"
    else:
        why = _too_many_errors(rollout, seen, there)
    if why:
        stopped = dataclasses.replace(rollout, status=STOPPED, reason=why, soaking_s=None)
        return stopped, (Happened("stopped", why),)
    if reached_now.confirmed < needed:
        return dataclasses.replace(rollout, soaking_s=None), ()
    soaking_s = now_s if rollout.soaking_s is None else rollout.soaking_s
    if now_s - soaking_s < rollout.plan.soak_s:
        return dataclasses.replace(rollout, soaking_s=soaking_s), ()
    passed = Happened(
        "passed", f"wave {rollout.wave + 1}: {reached_now.confirmed} of {_devices(len(there))} confirmed"
    )
    if rollout.wave + 1 == len(rollout.plan.waves):
        done = dataclasses.replace(rollout, status=DONE, reason=passed.detail, soaking_s=None)
        return done, (passed, Happened("done", passed.detail))
    after = dataclasses.replace(rollout, wave=rollout.wave + 1, soaking_s=None)
    gone = {device for device in rollout.order if device not in seen}
    next_devices = reached(after, wave=after.wave, gone=gone)
    members = dict(rollout.members)
    for device in next_devices:
        members.setdefault(device, Member(released_s=now_s, before=seen[device].digest))
    after = dataclasses.replace(after, members=members)
    return after, (passed, _wave_begins(after, len(next_devices)))


def _too_many_errors(rollout: Rollout, seen: Mapping[str, Seen], there: tuple[str, ...]) -> str:
    """Look at the answers of all confirmed devices together; few of each may say much."""
    confirmed = [seen[device] for device in there if rollout.members[device].outcome == CONFIRMED]
    answers, errors = sum(each.answers for each in confirmed), sum(each.errors for each in confirmed)
    if answers >= MIN_ANSWERS and errors > rollout.plan.errors * answers:
        return f"wave {rollout.wave + 1}: {errors} of {answers} answers are errors"
    return ""


def _wave_begins(rollout: Rollout, n_devices: int) -> Happened:
    place = f"wave {rollout.wave + 1} of {len(rollout.plan.waves)}"
    return Happened("wave", f"{place}: {n_devices} of {_devices(len(rollout.order))}")


def _devices(n: int) -> str:
    return f"{n} device" if n == 1 else f"{n} devices"
