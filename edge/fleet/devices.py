"""The command ``kit devices``: who is in the fleet, who may come in, and who goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.fleet import enrolment, telemetry, views
from edge.fleet.enrolment import PULL
from edge.fleet.store import Store
from kit.errors import ConflictError, NotFoundError
from kit.project import Project
from kit.settings import DevicesSettings

DEFAULT_GROUP = "default"


@dataclass(frozen=True)
class DevicesResult:
    """What an action found or did.

    Attributes:
        action: Which.
        devices: The devices it is about, as ``edge.fleet.views.device_row`` describes them.
        invited: For ``list``: names that have a code nobody has used, with group and end in Unix ns.
        device: For ``show``: all that is known of it.
        code: For ``add``: the one-time code; it is nowhere else.
        name: The device's name, but for ``list``.
    """

    action: str
    devices: tuple[Mapping[str, Any], ...] = ()
    invited: tuple[tuple[str, str, int], ...] = ()
    device: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = None
    name: str = ""

    def __repr__(self) -> str:
        return f"DevicesResult(action={self.action!r}, name={self.name!r})"


def devices(project: Project, settings: DevicesSettings) -> DevicesResult:
    """List, show, add or remove devices.

    Raises:
        ConflictError: The name is taken.
        InputError: A name breaks the rule.
        NotFoundError: Nobody knows the device, or there is no fleet yet.
        UnavailableError: The database cannot be used.
    """
    action, name = settings.action, settings.name or ""
    with open_fleet(project, make=action == "add") as store:
        if action == "list":
            return _list(store, group=settings.group)
        if action == "show":
            with store.reading() as db:
                return DevicesResult(action, device=views.device_page(db, name), name=name)
        if action == "remove":
            return _remove(store, name)
        group = settings.group or DEFAULT_GROUP
        with store.changing() as db:
            if settings.at is not None:
                place = _absolute(settings.at)
                enrolment.add_place(db, name=name, place=place, group=group)
                found = views.device_row(enrolment.find(db, name), now_ns=time.time_ns())
                return DevicesResult(action, devices=(found,), name=name)
            code = enrolment.make_code(db, name=name, group=group, hours=settings.hours)
        return DevicesResult(action, code=code, name=name)


def find_device(project: Project, name: str) -> str:
    """Say where ``kit flash`` finds a device that was added by name.

    Args:
        project: Whose fleet.
        name: What ``kit devices add NAME --at PLACE`` called it.

    Returns:
        The place, ``path:...`` or ``ssh://...``.

    Raises:
        ConflictError: The device asks for bundles itself, so it gets one by a rollout.
        NotFoundError: Nobody knows the name, or there is no fleet yet.
    """
    with open_fleet(project) as store, store.reading() as db:
        known = enrolment.find(db, name)
    if known.kind == PULL:
        raise ConflictError(
            f"{name} fetches its bundles itself",
            hint=f"roll one out to its group: kit fleet rollout BUNDLE --group {known.group}",
        )
    return known.place


def fleet_folder(project: Project) -> Path:
    """Say where a project keeps its fleet."""
    return project.state / "fleet"


@contextlib.contextmanager
def open_fleet(project: Project, *, make: bool = False) -> Iterator[Store]:
    """Open a project's fleet for the length of a block.

    Args:
        project: Whose.
        make: Whether to make one where there is none.

    Raises:
        NotFoundError: There is none, and none shall be made.
        UnavailableError: The database cannot be used.
    """
    folder = fleet_folder(project)
    if not make and not (folder / "fleet.db").exists():
        raise NotFoundError(
            f"{project.name} has no fleet yet", hint="let the first device in: kit devices add NAME"
        )
    with contextlib.closing(Store(folder)) as store:
        yield store


def _list(store: Store, *, group: str | None) -> DevicesResult:
    now_ns = time.time_ns()
    with store.reading() as db:
        rows = [views.device_row(each, now_ns=now_ns) for each in enrolment.known(db, group=group)]
        invited = [each for each in enrolment.invited(db) if group in (None, each[1])]
    return DevicesResult("list", devices=tuple(rows), invited=tuple(invited))


def _remove(store: Store, name: str) -> DevicesResult:
    with store.changing() as db:
        withdrawn = enrolment.withdraw_code(db, name)
        try:
            gone = enrolment.remove(db, name)
        except NotFoundError:
            if not withdrawn:
                raise
            return DevicesResult("remove", name=name)
        telemetry.recount(db)
    return DevicesResult("remove", devices=(views.device_row(gone, now_ns=time.time_ns()),), name=gone.name)


def _absolute(place: str) -> str:
    """Make a folder typed on the command line one that holds from everywhere."""
    if not place.startswith("path:"):
        return place
    return f"path:{Path(place.removeprefix('path:')).expanduser().absolute()}"
