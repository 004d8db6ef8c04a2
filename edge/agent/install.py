"""Installation: an incoming bundle becomes the confirmed one, or is rejected with a reason.

Each function that changes the device is a generator that yields the name of the step it has just
taken, so that a test can cut the power after any of them. The steps of one bundle:

    unpacked    its files lie in a hidden folder, nothing believes them yet
    placed      signature, files, release and needs hold; the slot has its name
    staged      the state says that this slot waits for its trial
    taken       the file has left ``incoming/``
    trial       the state says that a trial has begun
    examined    its golden rows, latency and memory hold; it answers callers from now on, until ``commit``
    confirmed   (or ``rejected``) the state names the new slot: from here on it is the current one
    switched    ``current`` follows the state
    swept       slots nothing refers to are gone

Without a soak, ``examined`` is left out and ``confirmed`` follows at once. ``recover`` starts from whatever a
power cut left: the state is always one of these, whole. A slot is tried at most twice, because the one that
takes the machine down with it must not be tried forever. ``revert`` goes back to a slot that was confirmed
before; the release reached stays, so that nothing older can come in from outside.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.agent import trial
from edge.agent.admission import admit, require_disk
from edge.agent.device import KEYRING_NAME, OVERRIDE_SUFFIX, Device
from edge.agent.state import (
    CONFIRMED,
    FELL_BACK,
    IDLE,
    MAX_REJECTED,
    REFUSED,
    REJECTED,
    RETURNED,
    STAGED,
    TRIAL,
    UNCHANGED,
    Report,
    State,
)
from edge.agent.trust import accept_keyring, signer_of
from kit import archive
from kit.bundle import Bundle, open_bundle
from kit.errors import (
    ConflictError,
    GateError,
    InputError,
    KitError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from kit.override import Override, open_override

MAX_TRIALS = 2
"""Trials a staged slot gets when power cuts interrupt them."""

Examine = Callable[[Device, str], Mapping[str, Any]]
"""Examines a slot: gives at least ``digest``, or raises ``GateError`` with what it breaks."""

_MAX_PAPER_BYTES = 1 << 20

_log = logging.getLogger("kit.agent")


def install(
    device: Device, path: Path, *, examine: Examine = trial.run_trial, soak: bool = False
) -> Iterator[str]:
    """Install one bundle, or take one keyring in; the device's last report says how it ended.

    Args:
        device: A prepared device whose lock the caller holds.
        path: A file in its ``incoming/``; it is gone afterwards.
        examine: Runs the slot's golden rows.
        soak: Whether a slot that passes stays on trial until ``commit``.

    Yields:
        The name of each step when it has been taken.

    Raises:
        UnavailableError: The disk is full or cannot be written, or there is too little memory now; the
            bundle stays in ``incoming/``.
    """
    if path.name == KEYRING_NAME:
        yield from _take_keyring(device, path)
        return
    is_staged = yield from _stage(device, path)
    if is_staged:
        yield from _resume(device, examine=examine, soak=soak)
    else:  # what is on trial stays on trial
        yield from _settle(device)


def recover(device: Device, *, examine: Examine = trial.run_trial, soak: bool = False) -> Iterator[str]:
    """Bring the device from wherever it stopped to its last good slot, and finish what was staged.

    Args:
        device: A prepared device whose lock the caller holds.
        examine: Runs an unfinished trial's golden rows.
        soak: Whether a slot that passes stays on trial until ``commit``.

    Yields:
        The name of each step when it has been taken.

    Raises:
        UnavailableError: The disk is full or cannot be written.
    """
    state = device.state()
    if state.current is not None:
        damage = _damage(device, state.current)
        other = _first_whole(device, state.good[1:]) if damage else None
        if other is not None:
            _fall_back(device, state, other, status=FELL_BACK, why=damage, error=VerificationError)
            yield "fallen back"
    yield from _resume(device, examine=examine, soak=soak)


def commit(device: Device, *, running_digest: str) -> Iterator[str]:
    """Confirm the slot on trial, which has answered without a fault for as long as it had to.

    Args:
        device: A prepared device whose lock the caller holds.
        running_digest: What really runs.

    Yields:
        The name of each step when it has been taken.

    Raises:
        GateError: Something else runs than what is on trial, nothing is on trial, or its golden rows were not
            asked to the end; nothing has changed.
        UnavailableError: The disk is full or cannot be written.
    """
    state = device.state()
    if state.phase != TRIAL or state.staged != running_digest:
        on_trial = state.staged[:12] if state.phase == TRIAL and state.staged else "nothing"
        raise GateError(f"{running_digest[:12]} runs and {on_trial} is on trial; nothing is confirmed")
    if not state.examined:
        raise GateError(f"nobody has seen the golden rows of {running_digest[:12]}; nothing is confirmed")
    try:
        _confirm(device, state, running_digest)
    except VerificationError as error:
        _finish(device, _refusal(error, digest=running_digest, file=state.source))
        yield "rejected"
    else:
        yield "confirmed"
    yield from _settle(device)


def revert(device: Device, *, reason: str, digest: str | None = None, to: str | None = None) -> Iterator[str]:
    """Go back to a slot that was confirmed before.

    Args:
        device: A prepared device whose lock the caller holds.
        reason: Why, one sentence.
        digest: The slot that has failed and is not taken again: the one on trial or the current one; None
            when nothing has failed and somebody wants the last one back.
        to: The slot wanted: the previous, the factory's, or, with a slot on trial, the current one. The first
            of them that is whole when None.

    Yields:
        The name of each step when it has been taken.

    Raises:
        NotFoundError: There is no other slot, or ``to`` is none of this device's; nothing has changed.
        ConflictError: ``digest`` neither runs nor is on trial; nothing has changed.
        VerificationError: The other slots are damaged; nothing has changed.
        UnavailableError: The disk is full or cannot be written.
    """
    state = device.state()
    if digest is not None and digest not in (state.staged, state.current):
        raise ConflictError(f"{digest[:12]} neither runs nor is on trial, so it cannot be taken back")
    staged_goes = state.staged is not None and (digest == state.staged or digest is None)
    if staged_goes and to in (None, state.current):
        status = REJECTED if digest is not None else RETURNED
        error = GateError.__name__ if digest is not None else ""
        _finish(device, Report(status, reason, error=error, digest=state.staged, file=state.source))
        yield status
        yield from _settle(device)
        return
    others = [each for each in state.good if each != state.current]
    if to is not None:
        if to not in others:
            raise NotFoundError(f"{to[:12]} is no slot this device can go back to")
        others = [to]
    if not others:
        raise NotFoundError(f"there is no slot to go back to from {str(state.current)[:12]}: {reason}")
    target = _first_whole(device, others)
    if target is None:
        raise VerificationError(f"slot {others[0][:12]} is damaged: {_damage(device, others[0])}")
    failed = digest is not None
    _fall_back(
        device,
        state,
        target,
        status=FELL_BACK if failed else RETURNED,
        why=reason,
        error=GateError if failed else None,
    )
    yield "fallen back"
    yield from _settle(device)


def _take_keyring(device: Device, path: Path) -> Iterator[str]:
    state = device.state()
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_PAPER_BYTES:
            raise VerificationError(f"{path.name} in incoming/ is a link or too large, not a keyring")
        keyring = accept_keyring(
            device.keys, path.read_bytes(), counter=state.keyring_counter, now_s=device.now_s()
        )
        # The one that counts already comes again when a power cut has kept the state from noting it.
        keyring = keyring or device.trust().keyring
    except UnavailableError:
        raise
    except KitError as error:
        _log.warning(f"refused {path.name}: {error.message}")
        _finish_report(device, Report(REFUSED, error.message, error=type(error).__name__, file=path.name))
        yield "refused"
    else:
        if keyring is not None:
            floor_s = max(state.time_floor_s, keyring.issued_s)
            noted = dataclasses.replace(state, keyring_counter=keyring.counter, time_floor_s=floor_s)
            if noted != state:
                _log.info(f"keyring {keyring.counter} counts from now on")
                device.save(noted)
        yield "keyring"
    path.unlink(missing_ok=True)
    yield "taken"


def _stage(device: Device, path: Path) -> Generator[str, None, bool]:
    """Unpack, verify and admit a bundle; gives whether it waits for its trial now."""
    work = device.slots / f".{secrets.token_hex(8)}"
    digest, refusal = None, None
    try:
        if path.is_symlink():
            raise VerificationError(f"{path.name} in incoming/ is a link, not a bundle")
        require_disk(path, folder=device.folder)
        archive.unpack(path, work)
        yield "unpacked"
        bundle = _verified(device, work)
        state = device.state()
        if bundle.digest == state.current and not _damage(device, bundle.digest):
            digest = bundle.digest
            refusal = Report(UNCHANGED, "it is already running", digest=digest, file=path.name)
        else:
            override = _override(device, path)
            digest = bundle.digest
            admit(bundle, state=state, override=override, device_id=device.name)
    except UnavailableError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except KitError as error:
        refusal = _refusal(error, digest=digest, file=path.name)
    if refusal is None and digest is not None:
        if (device.slots / digest).exists() and not _damage(device, digest):
            shutil.rmtree(work, ignore_errors=True)  # a slot one may fall back to is never missing
        else:
            device.place(work, digest=digest)
        yield "placed"
        staged = dataclasses.replace(
            device.state(), phase=STAGED, staged=digest, attempts=0, examined=False, source=path.name
        )
        device.save(staged)
        yield "staged"
    elif refusal is not None:
        shutil.rmtree(work, ignore_errors=True)
        device.save(_with_report(device.state(), refusal))
        yield refusal.status
    _paper_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    yield "taken"
    return refusal is None


def _verified(device: Device, work: Path) -> Bundle:
    """Open what was unpacked with the keys that may let something new in; name one that no longer may."""
    trust, now_s = device.trust(), device.now_s()
    try:
        return open_bundle(work, trusted=trust.new(now_s) or trust.every[:0])
    except VerificationError:
        signer = signer_of(work, trust)
        why = trust.why_not(signer, now_s) if signer is not None else ""
        if signer is None or not why:
            raise
        raise VerificationError(
            f"the bundle is signed by key {signer[:16]}, which {why}",
            hint="sign the bundle with a key that counts, or see whether the device's clock is right",
        ) from None


def _override(device: Device, path: Path) -> Override | None:
    paper = _paper_of(path)
    if not paper.is_file() or paper.is_symlink() or paper.stat().st_size > _MAX_PAPER_BYTES:
        return None
    return open_override(paper.read_bytes(), trusted=device.trusted())


def _paper_of(path: Path) -> Path:
    return path.with_name(path.name + OVERRIDE_SUFFIX)


def _resume(device: Device, *, examine: Examine, soak: bool) -> Iterator[str]:
    """Go on from the state, whatever it says."""
    state = device.state()
    if state.staged is not None:
        # Once its trial has begun the file has gone, and what lies under its name is another one.
        if state.source is not None and state.phase == STAGED:
            (device.incoming / state.source).unlink(missing_ok=True)
        yield from _try(device, state, state.staged, examine=examine, soak=soak)
    yield from _settle(device)


def _settle(device: Device) -> Iterator[str]:
    """Have ``current`` follow the state, and delete what nothing refers to."""
    current = device.state().current
    if current is not None and device.pointer() != current:
        device.point_to(current)
        yield "switched"
    device.sweep()
    yield "swept"


def _try(device: Device, state: State, digest: str, *, examine: Examine, soak: bool) -> Iterator[str]:
    """Put the staged slot on trial, and write the verdict in one step."""
    error: KitError
    if state.attempts >= MAX_TRIALS:
        error = GateError(f"its trial was interrupted {state.attempts} times")
    else:
        device.save(dataclasses.replace(state, phase=TRIAL, attempts=state.attempts + 1, examined=False))
        yield "trial"
        try:
            found = examine(device, digest)
            if found.get("digest") != digest:
                raise GateError(f"the trial ran {str(found.get('digest'))[:12]} instead of {digest[:12]}")
            if soak:
                device.save(dataclasses.replace(device.state(), examined=True))
                yield "examined"
                return
            _confirm(device, device.state(), digest)
            yield "confirmed"
            return
        except (GateError, VerificationError) as caught:
            error = caught
    _finish(device, _refusal(error, digest=digest, file=state.source))
    yield "rejected"


def _confirm(device: Device, state: State, digest: str) -> None:
    if state.staged != digest or state.phase != TRIAL:
        raise GateError(f"{digest[:12]} is not the slot that was on trial")
    bundle = device.open_slot(digest)
    manifest = bundle.manifest
    detail = f"{manifest['name']} {manifest['target']} release {bundle.release} runs"
    _log.info(f"confirmed {digest[:12]}: {detail}")
    newest = bundle.release >= state.release
    device.save(
        dataclasses.replace(
            state,
            phase=IDLE,
            current=digest,
            previous=state.previous if state.current == digest else state.current,
            factory=state.factory or state.current or digest,
            # After an override let an older one in, what had been reached stays the mark for all others.
            release=bundle.release if newest else state.release,
            release_digest=digest if newest else state.release_digest,
            staged=None,
            attempts=0,
            examined=False,
            source=None,
            rejected={},
            last_report=Report(CONFIRMED, detail, digest=digest, file=state.source),
        )
    )


def _fall_back(
    device: Device,
    state: State,
    target: str,
    *,
    status: str,
    why: str,
    error: type[KitError] | None,
) -> None:
    """Make another confirmed slot the current one; the one that has failed is not taken again."""
    detail = (
        f"fell back to {target[:12]}: {why}" if status == FELL_BACK else f"went back to {target[:12]}: {why}"
    )
    _log.warning(detail)
    rejected = dict(state.rejected)
    if error is GateError and state.current is not None:
        rejected[state.current] = why
    device.save(
        dataclasses.replace(
            state,
            current=target,
            previous=state.factory if state.factory != target else None,
            rejected=_newest(rejected),
            last_report=Report(
                status, detail, error=error.__name__ if error is not None else "", digest=target
            ),
        )
    )


def _finish(device: Device, report: Report) -> None:
    """Write the end of a staged slot that was not confirmed."""
    state = dataclasses.replace(
        device.state(), phase=IDLE, staged=None, attempts=0, examined=False, source=None
    )
    device.save(_with_report(state, report))


def _with_report(state: State, report: Report) -> State:
    rejected = dict(state.rejected)
    if report.status == REJECTED:
        _log.warning(f"rejected {report.file}: {report.detail}")
        if report.digest is not None:
            rejected.pop(report.digest, None)
            rejected[report.digest] = report.detail
    return dataclasses.replace(state, rejected=_newest(rejected), last_report=report)


def _finish_report(device: Device, report: Report) -> None:
    device.save(dataclasses.replace(device.state(), last_report=report))


def _newest(rejected: Mapping[str, str]) -> dict[str, str]:
    return dict(list(rejected.items())[-MAX_REJECTED:])


def _refusal(error: KitError, *, digest: str | None, file: str | None) -> Report:
    detail = f"{error.message}; {error.hint}" if error.hint else error.message
    return Report(REJECTED, detail, error=type(error).__name__, digest=digest, file=file)


def _first_whole(device: Device, digests: Any) -> str | None:
    return next((digest for digest in digests if not _damage(device, digest)), None)


def _damage(device: Device, digest: str) -> str:
    """Say why a slot does not verify; empty when it does."""
    try:
        device.open_slot(digest)
    except (VerificationError, InputError) as error:
        return error.message
    return ""
