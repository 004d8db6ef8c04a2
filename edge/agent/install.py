"""Installation: an incoming bundle becomes the confirmed one, or is rejected with a reason.

Each function that changes the device is a generator that yields the name of the step it has just
taken, so that a test can cut the power after any of them. The steps of one bundle:

    unpacked    its files lie in a hidden folder, nothing believes them yet
    placed      signature, files and release hold; the slot has its name
    staged      the state says that this slot waits for its trial
    taken       the file has left ``incoming/``
    trial       the state says that a trial has begun
    confirmed   (or ``rejected``) the state names the new slot: from here on it is the current one
    switched    ``current`` follows the state
    swept       slots nothing refers to are gone

``recover`` starts from whatever a power cut left: the state is always one of these, whole. A slot is
tried at most twice, because the one that takes the machine down with it must not be tried forever.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.agent import trial
from edge.agent.device import (
    CONFIRMED,
    FELL_BACK,
    IDLE,
    REJECTED,
    STAGED,
    TRIAL,
    UNCHANGED,
    Device,
    Report,
    State,
)
from kit import archive
from kit.bundle import Bundle, open_bundle
from kit.errors import ConflictError, GateError, KitError, UnavailableError, VerificationError

MAX_TRIALS = 2
"""Trials a staged slot gets when power cuts interrupt them."""

_log = logging.getLogger("kit.agent")


def install(device: Device, path: Path, *, timeout_s: float = trial.TIMEOUT_S) -> Iterator[str]:
    """Install one bundle; the device's last report says how it ended.

    Args:
        device: A prepared device whose lock the caller holds.
        path: A file in its ``incoming/``; it is gone afterwards.
        timeout_s: Longest time its trial may take.

    Yields:
        The name of each step when it has been taken.

    Raises:
        UnavailableError: The disk is full or cannot be written; the bundle stays in ``incoming/``.
    """
    yield from _stage(device, path)
    yield from _resume(device, timeout_s=timeout_s)


def recover(device: Device, *, timeout_s: float = trial.TIMEOUT_S) -> Iterator[str]:
    """Bring the device from wherever it stopped to its last good slot, and finish what was staged.

    Args:
        device: A prepared device whose lock the caller holds.
        timeout_s: Longest time an unfinished trial may take.

    Yields:
        The name of each step when it has been taken.

    Raises:
        UnavailableError: The disk is full or cannot be written.
    """
    state = device.state()
    if state.current is not None:
        damage = _damage(device, state.current)
        if damage and state.previous is not None and not _damage(device, state.previous):
            detail = f"fell back to {state.previous[:12]}: {damage}"
            _log.warning(detail)
            report = Report(FELL_BACK, detail, error=VerificationError.__name__, digest=state.previous)
            device.save(dataclasses.replace(state, current=state.previous, previous=None, last_report=report))
            yield "fallen back"
    yield from _resume(device, timeout_s=timeout_s)


def _stage(device: Device, path: Path) -> Iterator[str]:
    work = device.slots / f".{secrets.token_hex(8)}"
    digest, refusal = None, None
    try:
        if path.is_symlink():
            raise VerificationError(f"{path.name} in incoming/ is a link, not a bundle")
        archive.unpack(path, work)
        yield "unpacked"
        bundle = open_bundle(work, trusted=device.trusted())
        digest = bundle.digest
        if digest == device.state().current and not _damage(device, digest):
            refusal = Report(UNCHANGED, "it is already running", digest=digest, file=path.name)
        else:
            _check_release(device.state(), bundle)
    except UnavailableError:
        raise
    except KitError as error:
        refusal = _refusal(error, digest=digest, file=path.name)
    if refusal is None and digest is not None:
        device.place(work, digest=digest)
        yield "placed"
        state = device.state()
        device.save(dataclasses.replace(state, phase=STAGED, staged=digest, attempts=0, source=path.name))
        yield "staged"
    elif refusal is not None:
        shutil.rmtree(work, ignore_errors=True)
        _finish(device, refusal)
        yield refusal.status
    path.unlink(missing_ok=True)
    yield "taken"


def _check_release(state: State, bundle: Bundle) -> None:
    """Refuse a replay: an older bundle, however well it is signed, may hold a mended fault."""
    release = bundle.release
    # The same bundle may come again at its own release: that is how a damaged slot is repaired.
    repeated = release == state.release and bundle.digest == state.release_digest
    if release <= state.release and not repeated:
        raise ConflictError(
            f"release {release} is not above release {state.release}, which this device has confirmed",
            hint="export the model again with a higher release",
        )


def _resume(device: Device, *, timeout_s: float) -> Iterator[str]:
    """Go on from the state, whatever it says."""
    state = device.state()
    if state.staged is not None:
        if state.source is not None:
            (device.incoming / state.source).unlink(missing_ok=True)
        yield from _try(device, state, state.staged, timeout_s=timeout_s)
    current = device.state().current
    if current is not None and device.pointer() != current:
        device.point_to(current)
        yield "switched"
    device.sweep()
    yield "swept"


def _try(device: Device, state: State, digest: str, *, timeout_s: float) -> Iterator[str]:
    """Put the staged slot on trial, and write the verdict in one step."""
    error: KitError
    if state.attempts >= MAX_TRIALS:
        error = GateError(f"its trial was interrupted {state.attempts} times")
    else:
        device.save(dataclasses.replace(state, phase=TRIAL, attempts=state.attempts + 1))
        yield "trial"
        try:
            found = trial.run_trial(device, digest=digest, timeout_s=timeout_s)
            _confirm(device, digest, found)
            yield "confirmed"
            return
        except GateError as caught:
            error = caught
    _finish(device, _refusal(error, digest=digest, file=state.source))
    yield "rejected"


def _confirm(device: Device, digest: str, found: dict[str, Any]) -> None:
    state = device.state()
    if state.staged != digest or found["digest"] != digest:
        raise GateError(f"{digest[:12]} is not the slot that was on trial")
    detail = f"{found['name']} {found['target']} release {found['release']} runs"
    _log.info(f"confirmed {digest[:12]}: {detail}")
    device.save(
        State(
            pointer=state.pointer,
            current=digest,
            previous=state.previous if state.current == digest else state.current,
            release=int(found["release"]),
            release_digest=digest,
            last_report=Report(CONFIRMED, detail, digest=digest, file=state.source),
        )
    )


def _finish(device: Device, report: Report) -> None:
    """Write the end of a bundle that was not confirmed."""
    state = device.state()
    rejected = dict(state.rejected)
    if report.status == REJECTED:
        _log.warning(f"rejected {report.file}: {report.detail}")
        if report.digest is not None:
            rejected[report.digest] = report.detail
    device.save(
        dataclasses.replace(
            state,
            phase=IDLE,
            staged=None,
            attempts=0,
            source=None,
            rejected=rejected,
            last_report=report,
        )
    )


def _refusal(error: KitError, *, digest: str | None, file: str | None) -> Report:
    detail = f"{error.message}; {error.hint}" if error.hint else error.message
    return Report(REJECTED, detail, error=type(error).__name__, digest=digest, file=file)


def _damage(device: Device, digest: str) -> str:
    """Say why a slot does not verify; empty when it does."""
    try:
        device.open_slot(digest)
    except VerificationError as error:
        return error.message
    return ""
