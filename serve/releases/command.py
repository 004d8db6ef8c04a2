"""``kit release``: show, change and undo how an endpoint's traffic falls on versions.

Works on files alone, with the endpoint running or not: it writes a release and waits until the replicas say
that they have it in force. It never speaks to a replica and loads no model.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from kit.errors import NotFoundError, UnavailableError, VerificationError, nearest
from kit.project import Project
from kit.settings.serving import ReleaseSettings
from serve.releases.acks import Ack, living_acks
from serve.releases.comparison import Counts, total
from serve.releases.store import Damage, ReleaseStore
from serve.releases.table import Release, next_release, rolled_back, switched, target_of_rollback
from serve.releases.weights import asked_change

_logger = logging.getLogger("kit")
_PAUSE_S = 0.02


@dataclass(frozen=True)
class ReplicaView:
    """Describe one living replica and what it has of the endpoint.

    Attributes:
        replica: Its name.
        node: Host name of its machine.
        pid: Its process.
        in_force: Sequence number of the release it has in force; 0 for none.
        since_ns: Since when, Unix time in nanoseconds.
        loading: Sequence number of the release it is loading; 0 for none.
        failed: Sequence number of the newest release that it could not bring in force; 0 for none.
        reason: Why it could not.
    """

    replica: str
    node: str
    pid: int
    in_force: int
    since_ns: int
    loading: int
    failed: int
    reason: str


@dataclass(frozen=True)
class ReleaseResult:
    """What an action found or did.

    Attributes:
        action: Which.
        endpoint: Of which endpoint.
        release: The newest release.
        replicas: Living replicas that serve the endpoint.
        shadow: What the shadow was compared with, all replicas together; None without a shadow.
        history: For ``history``: all releases, oldest first, and those whose file is damaged.
        warnings: What the operator should know, one sentence each.
        waited_s: For ``set`` and ``rollback``: seconds until all replicas had answered.
    """

    action: str
    endpoint: str
    release: Release
    replicas: tuple[ReplicaView, ...] = ()
    shadow: Counts | None = None
    history: tuple[Release | Damage, ...] = ()
    warnings: tuple[str, ...] = ()
    waited_s: float | None = None

    @property
    def failed(self) -> tuple[ReplicaView, ...]:
        """Replicas that could not bring the release in force; the one before answers there."""
        return tuple(each for each in self.replicas if _state(each, self.release.sequence) == "failed")

    @property
    def pending(self) -> tuple[ReplicaView, ...]:
        """Replicas that have not answered yet."""
        return tuple(each for each in self.replicas if _state(each, self.release.sequence) == "pending")

    def require_passed(self) -> None:
        """Refuse to call a change done that is not in force everywhere.

        Raises:
            UnavailableError: A replica failed, or did not answer in time.
        """
        if self.waited_s is None:
            return
        number, n_replicas = self.release.sequence, len(self.replicas)
        if self.failed:
            kept = sorted({each.in_force for each in self.failed})
            raise UnavailableError(
                f"release {number} of {self.endpoint} failed on {len(self.failed)} of {n_replicas} replicas, "
                f"which go on with release {', '.join(map(str, kept))}: {self.failed[0].reason}",
                hint=f"go back everywhere: kit release {self.endpoint} rollback",
            )
        if self.pending:
            raise UnavailableError(
                f"release {number} of {self.endpoint} is not in force on {len(self.pending)} of {n_replicas} "
                f"replicas after {self.waited_s:.1f} s; they go on loading it",
                hint=f"look again, or go back: kit release {self.endpoint} show|rollback",
            )


def release(project: Project, settings: ReleaseSettings) -> ReleaseResult:
    """Run one action on an endpoint's releases.

    Raises:
        ConflictError: Somebody else made a release meanwhile, or there is nothing to go back to.
        InputError: A weight breaks a rule, or versions that shall share requests read different inputs.
        NotFoundError: Nobody knows the endpoint, a version, an alias or a release.
        UnavailableError: A folder cannot be read or written.
        VerificationError: The release to go back to is damaged.
    """
    desk = _Desk(project, settings)
    return desk.actions()[settings.action]()


def switch(project: Project, endpoint: str, *, on: bool, wait_s: float) -> ReleaseResult:
    """Load an endpoint's model in every replica, or unload it; see ``release``.

    Args:
        project: Where the releases are.
        endpoint: The served model's name.
        on: Whether it shall answer.
        wait_s: How long to wait for the replicas.

    Raises:
        UnavailableError: A replica failed, or did not answer in time.
    """
    result = _Desk(project, ReleaseSettings(endpoint=endpoint, wait_s=wait_s)).switch(paused=not on)
    result.require_passed()
    return result


class _Desk:
    """One call of the command."""

    def __init__(self, project: Project, settings: ReleaseSettings) -> None:
        self._project = project
        self._settings = settings
        self._endpoint = settings.endpoint
        self._store = ReleaseStore(project.state / "serve" / "releases")
        self._acks = project.state / "serve" / "replicas"

    def actions(self) -> dict[str, Callable[[], ReleaseResult]]:
        """Give what can be done, by name."""
        return {"show": self._show, "set": self._set, "history": self._history, "rollback": self._rollback}

    def _head(self) -> Release:
        head = self._store.head(self._endpoint)
        if head is None:
            known = self._store.endpoints()
            hint = nearest(self._endpoint, known) if known else None
            raise NotFoundError(
                f"{self._endpoint} has no release yet",
                hint=hint or f"make the first: kit release {self._endpoint} set VERSION, or kit serve it",
            )
        return head

    def _show(self) -> ReleaseResult:
        head = self._head()
        return self._result(head, self._living())

    def _history(self) -> ReleaseResult:
        head = self._head()
        return ReleaseResult("history", self._endpoint, head, history=self._store.history(self._endpoint))

    def _set(self) -> ReleaseResult:
        last = self._store.last(self._endpoint)
        head = self._store.head(self._endpoint)
        asked = asked_change(self._project, self._settings, previous=head)
        made = next_release(
            self._endpoint,
            previous=head,
            sequence=last + 1,
            change=asked.change,
            salt=secrets.token_hex(8),
            made_ns=time.time_ns(),
        )
        return self._put(made, warnings=asked.warnings)

    def switch(self, *, paused: bool) -> ReleaseResult:
        """Make the release that unloads the model, or loads it again."""
        last = self._store.last(self._endpoint)
        return self._put(
            switched(self._head(), paused=paused, sequence=last + 1, made_ns=time.time_ns()), warnings=()
        )

    def _rollback(self) -> ReleaseResult:
        last = self._store.last(self._endpoint)
        head = self._head()
        number = self._settings.to or self._standing(head) or target_of_rollback(head, read=self._read)
        target = self._read(number)
        made = rolled_back(
            head, target=target, sequence=last + 1, made_ns=time.time_ns(), note=self._settings.note
        )
        warnings = []
        if head.follow:
            warnings.append(
                f"{head.follow} is no longer followed; follow it again: "
                f"kit release {self._endpoint} set {head.follow}"
            )
        return self._put(made, warnings=tuple(warnings))

    def _standing(self, head: Release) -> int:
        """Give what answers where the newest release failed, the newest such; 0 where it failed nowhere."""
        views = [_view(each, self._endpoint) for each in self._living()]
        return max((each.in_force for each in views if _state(each, head.sequence) == "failed"), default=0)

    def _read(self, sequence: int) -> Release:
        try:
            return self._store.read(self._endpoint, sequence=sequence)
        except VerificationError as error:
            raise VerificationError(
                error.message, hint=f"choose another: kit release {self._endpoint} rollback --to SEQUENCE"
            ) from error

    def _put(self, made: Release, *, warnings: tuple[str, ...]) -> ReleaseResult:
        began_s = time.monotonic()
        self._store.append(made)
        shares = ", ".join(f"{each.number} {each.percent:g} %" for each in made.versions)
        _logger.info("release %d of %s: %s", made.sequence, self._endpoint, shares)
        living = self._wait(made.sequence, until_s=began_s + self._settings.wait_s)
        waited_s = round(time.monotonic() - began_s, 3) if self._settings.wait_s else None
        if not living:
            warnings += ("no replica serves it now; the release counts from the next kit serve on",)
        return self._result(made, living, warnings=warnings, waited_s=waited_s)

    def _wait(self, sequence: int, *, until_s: float) -> tuple[Ack, ...]:
        """Wait until every living replica has the release in force or has failed; tell what is new."""
        told: dict[str, str] = {}
        while True:
            living = self._living()
            states = {each.replica: _state(_view(each, self._endpoint), sequence) for each in living}
            for each in living:
                state = states[each.replica]
                if state != "pending" and told.get(each.replica) != state:
                    reason = each.endpoints[self._endpoint].reason
                    _logger.info("%s: %s%s", each.replica, state, f": {reason}" if state == "failed" else "")
            told = states
            if "pending" not in states.values() or time.monotonic() >= until_s:
                return living
            time.sleep(_PAUSE_S)

    def _living(self) -> tuple[Ack, ...]:
        return living_acks(self._acks, endpoint=self._endpoint)

    def _result(
        self,
        release: Release,
        living: tuple[Ack, ...],
        *,
        warnings: tuple[str, ...] = (),
        waited_s: float | None = None,
    ) -> ReleaseResult:
        counts = None
        if release.shadow is not None:
            told = [each.endpoints[self._endpoint].shadow for each in living]
            digest = release.shadow.digest
            counts = total(Counts.from_json(each) for each in told if each.get("digest") == digest)
        return ReleaseResult(
            self._settings.action,
            self._endpoint,
            release,
            replicas=tuple(_view(each, self._endpoint) for each in living),
            shadow=counts,
            warnings=warnings,
            waited_s=waited_s,
        )


def _view(ack: Ack, endpoint: str) -> ReplicaView:
    said = ack.endpoints[endpoint]
    return ReplicaView(
        replica=ack.replica,
        node=ack.node,
        pid=ack.pid,
        in_force=said.in_force,
        since_ns=said.since_ns,
        loading=said.loading,
        failed=said.failed,
        reason=said.reason,
    )


def _state(view: ReplicaView, sequence: int) -> str:
    """Say how far a replica is with a release: in force, failed or pending. A newer one settles it, too."""
    if view.in_force >= sequence:
        return "in force"
    return "failed" if view.failed >= sequence else "pending"
