"""The command ``kit fleet``: serve devices, begin a rollout, watch it, pause it, resume it, abort it."""

from __future__ import annotations

import contextlib
import getpass
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.fleet import enrolment, rollouts, shelf, views
from edge.fleet.devices import open_fleet
from edge.fleet.offers import BundleFacts
from edge.fleet.plan import Plan, in_order, parse_duration_s, parse_share, parse_waves
from edge.fleet.rollout import DONE
from edge.fleet.store import Store, is_served
from kit.bundle import Bundle
from kit.errors import ConflictError, GateError, InputError, NotFoundError
from kit.keyring import KEYRING_NAME
from kit.project import Project
from kit.settings import FleetSettings

INTERRUPTED = 130
_LOOK_S = 0.5
_MOST_BASES = 8
_Announce = Callable[[str], None]


@dataclass(frozen=True)
class Intent:
    """What a rollout would do.

    Attributes:
        bundle: The verified bundle.
        group: Whose devices.
        waves: Label of each wave, and how many devices it reaches.
        devices: How many there are.
        success: Share that must confirm.
        errors: Share of errors that is too much.
        silence_s: How long a device may take.
        soak_s: How long a wave must hold.
        notes: What to know before it begins.
    """

    bundle: BundleFacts
    group: str
    waves: tuple[tuple[str, int], ...]
    devices: int
    success: str
    errors: str
    silence_s: float
    soak_s: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FleetResult:
    """What an action found or did.

    Attributes:
        action: Which.
        intent: For ``rollout``: what it does.
        rollout: The rollout it is about, as ``edge.fleet.views.rollout_row`` describes it; None for none.
        overview: For ``status`` without one: the whole fleet.
        followed: Whether its end was waited for.
        exit_code: 130 when that was interrupted.
    """

    action: str
    intent: Intent | None = None
    rollout: Mapping[str, Any] | None = None
    overview: Mapping[str, Any] | None = None
    followed: bool = False
    exit_code: int = 0

    def require_passed(self) -> None:
        """Raise when a rollout that was followed to its end did not reach every device.

        Raises:
            GateError: It was stopped or aborted.
        """
        if self.followed and not self.exit_code and self.rollout and self.rollout["status"] != DONE:
            raise GateError(
                f"rollout {self.rollout['id']} was {self.rollout['status']}: {self.rollout['reason']}"
            )


def fleet(project: Project, settings: FleetSettings, *, announce: _Announce) -> FleetResult:
    """Serve, roll out, or look after a rollout.

    Args:
        project: Whose fleet, and whose keys must have signed a bundle.
        settings: What to do.
        announce: Told what happens while the command goes on.

    Raises:
        InputError: The bundle or a word of the plan cannot be read.
        VerificationError: The bundle is not one that the project trusts.
        GateError: The rollout that was followed did not end well.
        ConflictError: Another rollout of the group goes on, or this one is not where the action needs it.
        NotFoundError: There is no such group or rollout, or no fleet yet.
        UnavailableError: The database or the port cannot be used.
    """
    if settings.action == "serve":
        return _serve(project, settings, announce=announce)
    if settings.action == "rollout":
        return _roll_out(project, settings, announce=announce)
    with open_fleet(project) as store:
        if settings.action == "status":
            return _status(store, settings, announce=announce)
        with store.changing() as db:
            name = settings.subject or _only_live(db)
            kept = rollouts.ACTIONS[settings.action](db, name, by=_operator())
            return FleetResult(settings.action, rollout=views.rollout_row(db, kept))


def _serve(project: Project, settings: FleetSettings, *, announce: _Announce) -> FleetResult:
    from edge.fleet import server
    from edge.fleet.desk import Desk, Limits

    with open_fleet(project, make=True) as store, server.only_server(store.folder):
        path, token = server.admin_token(store.folder)
        limits = Limits(
            poll_s=settings.poll_s, max_telemetry_bytes=round(settings.max_telemetry_mb * (1 << 20))
        )
        desk = Desk(store, limits=limits, keyring=keyring_path(project))
        tls = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            tls = (settings.tls_cert, settings.tls_key)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve(
                server.Application(desk, token=token),
                host=settings.host,
                port=settings.port,
                tls=tls,
                on_ready=lambda url: announce(
                    f"the fleet of {project.name} answers at {url}\n"
                    f"page: {url}    its token: {path}    stop it: Ctrl-C"
                ),
            )
    return FleetResult("serve")


def keyring_path(project: Project) -> Path:
    """Say where a project keeps its newest keyring."""
    return project.signing_key_path().with_name(KEYRING_NAME)


def _roll_out(project: Project, settings: FleetSettings, *, announce: _Announce) -> FleetResult:
    plan = read_plan(settings)
    path = Path(settings.subject or "").expanduser()
    with shelf.opened(path, trusted=project.trusted()) as bundle:  # before anything else
        facts = shelf.facts_of(path, bundle)
        with open_fleet(project) as store:
            intent = _intend(store, facts, bundle, plan=plan, settings=settings)
            if settings.dry_run:
                return FleetResult("rollout", intent=intent)
            override = _signed_override(project, facts, settings.allow_older)
            shelf.place(store.folder, path, facts)
            deltas = shelf.make_deltas(store.folder, facts, bases=_bases(store, settings.group))
            with store.changing() as db:
                shelf.remember(db, facts, bundle)
                for delta in deltas:
                    shelf.add_delta(db, delta)
                made = rollouts.begin(
                    db,
                    group=settings.group,
                    digest=facts.digest,
                    name=facts.name,
                    plan=plan,
                    override=override,
                )
            for line in intent_lines(intent):
                announce(line)
            follow = sys.stdout.isatty() if settings.follow is None else settings.follow
            if follow:
                return _follow(store, made.id, intent=intent, action="rollout", announce=announce)
            with store.reading() as db:
                row = views.rollout_row(db, rollouts.load(db, made.id))
    return FleetResult("rollout", intent=intent, rollout=row)


def read_plan(settings: FleetSettings) -> Plan:
    """Read the plan's words.

    Raises:
        InputError: A wave, a share or a duration cannot be read, or no device would have to confirm.
    """
    plan = Plan(
        waves=parse_waves(settings.waves),
        success=parse_share(settings.success),
        errors=parse_share(settings.errors),
        silence_s=parse_duration_s(settings.silence),
        soak_s=parse_duration_s(settings.soak),
    )
    if not plan.success:
        raise InputError("with --success 0% every wave would pass", hint="give a share above 0%, like 95%")
    if not plan.silence_s:
        raise InputError("with --silence 0 every device would count as silent", hint="give a time, like 30m")
    return plan


def intent_lines(intent: Intent) -> list[str]:
    """Write a plan for people."""
    bundle = intent.bundle
    lines = [
        f"{bundle.name} {bundle.target} release {bundle.release} ({bundle.digest[:12]}, verified) to "
        f"{intent.devices:,} devices of group {intent.group}",
        *(
            f"wave {place} of {len(intent.waves)}: {n:,} {'device' if n == 1 else 'devices'} ({label})"
            for place, (label, n) in enumerate(intent.waves, start=1)
        ),
        f"a wave passes when {intent.success} confirm"
        + (f" and hold for {intent.soak_s:g} s" if intent.soak_s else "")
        + f"; a device fails that rejects it, has more than {intent.errors} errors, or is silent for "
        f"{intent.silence_s / 60:g} min",
    ]
    return [*lines, *(f"note: {each}" for each in intent.notes)]


def _intend(
    store: Store, facts: BundleFacts, bundle: Bundle, *, plan: Plan, settings: FleetSettings
) -> Intent:
    with store.reading() as db:
        order = in_order(rollouts.roster(db, settings.group), salt=facts.digest)
        rollouts.check_free(db, group=settings.group, digest=facts.digest)
        devices = [each for each in enrolment.known(db, group=settings.group) if each.id in set(order)]
        served = is_served(db)
    notes = []
    higher = sum(
        each.standing.release >= facts.release and each.standing.seen.digest != facts.digest
        for each in devices
    )
    if higher and settings.allow_older is None:
        notes.append(
            f"{higher:,} devices have confirmed release {facts.release} or a higher one and will refuse "
            "this; see --allow-older"
        )
    refused = sum(facts.digest in each.standing.seen.rejected for each in devices)
    if refused:
        notes.append(f"{refused:,} devices have rejected this bundle before and count as failed")
    engine = str(bundle.manifest["engine"])
    without = sum(_lacks(each.status, engine) for each in devices)
    if without:
        notes.append(f"{without:,} devices have no {engine}, which the bundle needs")
    now_ns = time.time_ns()
    silent = sum(views.health(each, now_ns=now_ns) == views.QUIET for each in devices)
    if silent:
        notes.append(f"{silent:,} devices have not been heard of for {views.QUIET_S / 60:g} min")
    if not served:
        notes.append("no server listens to devices; nothing happens before `kit fleet serve` runs")
    return Intent(
        bundle=facts,
        group=settings.group,
        waves=tuple((str(wave), wave.bound(len(order))) for wave in plan.waves),
        devices=len(order),
        success=settings.success,
        errors=settings.errors,
        silence_s=plan.silence_s,
        soak_s=plan.soak_s,
        notes=tuple(notes),
    )


def _bases(store: Store, group: str) -> list[BundleFacts]:
    """List the bundles a group's devices run, the most frequent first."""
    with store.reading() as db:
        counted = Counter(each.standing.seen.digest for each in enrolment.known(db, group=group))
        there = shelf.facts(db)
    return [there[digest] for digest, _ in counted.most_common(_MOST_BASES) if digest in there]


def _lacks(status: Mapping[str, Any], engine: str) -> bool:
    """Say whether a device has told its engines and this is none of them."""
    engines = status.get("machine", {}).get("engines")
    return isinstance(engines, dict) and bool(engines) and engine not in engines


def _status(store: Store, settings: FleetSettings, *, announce: _Announce) -> FleetResult:
    with store.reading() as db:
        if settings.subject is None and not settings.follow:
            return FleetResult("status", overview=views.overview(db))
        name = settings.subject or _only_live(db)
        row = views.rollout_row(db, rollouts.load(db, name))
    if settings.follow:
        return _follow(store, name, intent=None, action="status", announce=announce)
    return FleetResult("status", rollout=row)


def _follow(
    store: Store, name: str, *, intent: Intent | None, action: str, announce: _Announce
) -> FleetResult:
    """Say what happens to a rollout until it ends; an interrupt ends the telling and not the rollout."""
    said, row = "", None
    try:
        while row is None or row["status"] in ("running", "paused"):
            if row is not None:
                time.sleep(_LOOK_S)
            with store.reading() as db:
                row = views.rollout_row(db, rollouts.load(db, name))
            line = progress(row)
            if line != said:
                announce(line)
            said = line
    except KeyboardInterrupt:
        announce(f"\nrollout {name} goes on without this command; see kit fleet status, or kit fleet abort")
        return FleetResult(action, intent=intent, rollout=row, exit_code=INTERRUPTED)
    return FleetResult(action, intent=intent, rollout=row, followed=True)


def progress(row: Mapping[str, Any]) -> str:
    """Write how a rollout stands in one line."""
    counts = ", ".join(
        f"{row[each]:,} {each}" for each in ("confirmed", "waiting", "failed", "silent") if row[each]
    )
    place = f"wave {row['wave'] + 1} of {len(row['waves'])}"
    reason = f": {row['reason']}" if row["status"] in ("stopped", "aborted") else ""
    return f"{row['id']} {row['status']}, {place}: {counts or 'nothing yet'}{reason}"


def _only_live(db: sqlite3.Connection) -> str:
    live = [each.rollout.id for each in rollouts.listed(db, live=True)]
    if not live:
        raise NotFoundError("no rollout goes on", hint="see the last ones: kit fleet status")
    if len(live) > 1:
        raise ConflictError(f"{len(live)} rollouts go on: {', '.join(live)}", hint="name one of them")
    return live[0]


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "command line"


def _signed_override(project: Project, facts: BundleFacts, reason: str | None) -> str | None:
    """Sign the paper that lets a bundle in though its release is not above a device's."""
    if reason is None:
        return None
    from kit.override import sign_override

    return sign_override(facts.digest, reason=reason, key=project.signing_key()).decode()
