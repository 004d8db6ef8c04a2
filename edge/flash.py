"""Flash: bring a bundle to a device folder and wait until the device confirms it.

The bundle is verified before the device is touched, copied under a hidden name and renamed into
``incoming/``. The device's own agent decides: the one that already runs there, or one started here
for a single pass. Success is the device's word that it runs this digest, nothing less. It knows
nothing of how an agent installs.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from edge.agent.device import CONFIRMED, IDLE, REJECTED, UNCHANGED, Device, Report
from kit import errors, files, signing
from kit.archive import SUFFIX, unpack
from kit.bundle import Bundle, open_bundle
from kit.child import CODE_FOLDER
from kit.project import Project
from kit.settings import FlashSettings

TIMEOUT_S = 90.0
"""Longest wait for the device's verdict: a trial of 60 s, and what is around it."""

_LOCKED_CODE = 6
_POLL_S = 0.1
_ROUND_S = 2.0
_REFUSALS: dict[str, type[errors.KitError]] = {
    "ConflictError": errors.ConflictError,
    "VerificationError": errors.VerificationError,
}

_log = logging.getLogger("kit.flash")


@dataclass(frozen=True)
class FlashResult:
    """What a device runs after a flash.

    Attributes:
        device: The device's folder.
        digest: The bundle's digest, which the device reports as its current one.
        name: Name of the model.
        target: Target of the bundle.
        release: Release counter of the bundle.
        status: ``confirmed``, or ``unchanged`` when the device already ran it.
        detail: One sentence; also says which keys a first flash has pinned.
    """

    device: str
    digest: str
    name: str
    target: str
    release: int
    status: str
    detail: str


def flash(project: Project, settings: FlashSettings) -> FlashResult:
    """Put a bundle on a device folder and wait until it is confirmed there.

    Args:
        project: Whose keys must have signed the bundle; a first flash pins them on the device.
        settings: The bundle and the device.

    Returns:
        What the device confirmed; also kept as a record of the project.

    Raises:
        InputError: The bundle cannot be read, or the device's folder cannot be one.
        VerificationError: The bundle or its signer is not trusted by the project or by the device.
        GateError: The device rejected the bundle in its trial, or did not confirm it in time.
        ConflictError: Another flash is under way, or the bundle's release is not above the device's.
        UnavailableError: The device has not twice the bundle's size free, or cannot be written.
    """
    bundle = Path(settings.bundle).expanduser()
    folder = Path(settings.device.removeprefix("path:")).expanduser().absolute()
    with tempfile.TemporaryDirectory(prefix="kit-flash-") as scratch:
        work = Path(scratch) / "bundle"
        unpack(bundle, work)
        trusted = project.trusted()
        try:
            opened = open_bundle(work, trusted=trusted)
        except errors.VerificationError as error:  # the user knows the bundle, not where it was unpacked
            message = error.message.replace(str(work), str(bundle))
            raise errors.VerificationError(message, hint=error.hint) from error
    _check_place(folder, n_bytes=bundle.stat().st_size)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise errors.UnavailableError(f"{folder} cannot be made: {error.strerror}") from error
    with Device(folder).lock("flash.lock"):
        pinned = _pin(folder, trusted)
        device = Device.open(folder)
        _check_signer(device, opened)
        report = _deliver(device, bundle, digest=opened.digest)
    result = FlashResult(
        device=str(folder),
        digest=opened.digest,
        name=str(opened.manifest["name"]),
        target=str(opened.manifest["target"]),
        release=opened.release,
        status=report.status,
        detail=f"{report.detail}{pinned}",
    )
    place = files.sha256_bytes(str(folder).encode())
    project.write_record("flash", f"{opened.digest[:12]}-{place[:12]}", asdict(result))
    return result


def _check_place(folder: Path, *, n_bytes: int) -> None:
    """Refuse a place that cannot become a device, before anything is written there."""
    if folder.exists() and not folder.is_dir():
        raise errors.InputError(f"{folder} is not a folder", hint="name a folder: path:FOLDER")
    if not folder.exists() and not folder.parent.is_dir():
        raise errors.NotFoundError(
            f"neither {folder} nor its parent exists", hint="make the parent folder, or correct the path"
        )
    if folder.is_dir() and not (folder / "keys").is_dir():
        # A first flash that was interrupted leaves its lock and nothing else.
        others = sorted(entry.name for entry in folder.iterdir() if entry.name != "flash.lock")
        others = [name for name in others if not name.startswith(".keys.")]
        if others:
            raise errors.InputError(
                f"{folder} is no device folder: it holds {others[0]!r} and no keys",
                hint="name an empty or a new folder",
            )
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < 2 * n_bytes:
        raise errors.UnavailableError(
            f"{folder} has {free} bytes free; the bundle and its slot need {2 * n_bytes}",
            hint="free some space on the device",
        )


def _pin(folder: Path, trusted: tuple[bytes, ...]) -> str:
    """Pin the project's keys on a device that has none; say so for the result."""
    keys = folder / "keys"
    if keys.is_dir():
        return ""
    names = []
    with files.atomic_folder(keys) as work:
        for pem in trusted:
            name = signing.key_id(pem)[:16]
            (work / f"{name}.pub").write_bytes(pem)
            names.append(name)
    return f"; pinned {'key' if len(names) == 1 else 'keys'} {', '.join(names)} on this first flash"


def _check_signer(device: Device, bundle: Bundle) -> None:
    pinned = [signing.key_id(pem) for pem in device.trusted()]
    if bundle.key_id not in pinned:
        raise errors.VerificationError(
            f"the bundle is signed by key {bundle.key_id[:16]}; "
            f"{device.folder} trusts {', '.join(key[:16] for key in pinned)} only",
            hint=f"sign with a key the device has pinned, or add the new one to {device.keys} by hand",
        )


def _deliver(device: Device, bundle: Path, *, digest: str) -> Report:
    """Copy the bundle in, have it installed, and return the device's confirmation."""
    name = f"{digest[:12]}-{secrets.token_hex(4)}{SUFFIX}"
    _copy(bundle, device.incoming, name)
    try:
        report = _await_report(device, name, digest=digest)
    finally:  # what has not been taken up by now shall not be installed behind the user's back
        (device.incoming / name).unlink(missing_ok=True)
    state = device.state()
    if report is None or (report.status in (CONFIRMED, UNCHANGED) and state.current != digest):
        raise errors.GateError(
            f"{device.folder} has not confirmed {digest[:12]} within {TIMEOUT_S:g} s",
            hint=f"ask it with `python -m edge.agent health {device.folder}`",
        )
    if report.status == REJECTED or report.digest != digest:
        kind = _REFUSALS.get(report.error, errors.GateError)
        raise kind(f"{device.folder} rejected {digest[:12]}: {report.detail}")
    _log.info(f"{device.folder} runs {digest[:12]}")
    return report


def _copy(bundle: Path, incoming: Path, name: str) -> None:
    """Put the bundle into ``incoming/`` in one step; what an interrupted flash left there goes."""
    try:
        incoming.mkdir(exist_ok=True)
        for left in incoming.glob(f".*{SUFFIX}"):
            left.unlink()
        work = incoming / f".{name}"
        with bundle.open("rb") as source, work.open("xb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        os.replace(work, incoming / name)
    except OSError as error:
        raise errors.UnavailableError(
            f"the bundle cannot be copied to {incoming}: {error.strerror}",
            hint="free some space on the device, or make its folder writable",
        ) from error
    files.sync_folder(incoming)


def _await_report(device: Device, name: str, *, digest: str) -> Report | None:
    """Wait for the report on one delivery, with the agent there or with one of our own."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        code, words = _run_agent(device, timeout_s=deadline_s - time.monotonic())
        if code != _LOCKED_CODE:
            report = _report_on(device, name, digest=digest)
            if report is None and code is not None:
                raise errors.UnavailableError(
                    f"the agent on {device.folder} stopped with exit code {code}: {words}",
                    hint=f"run `python -m edge.agent run {device.folder} --once` and read what it says",
                )
            return report
        # An agent already runs there: watch what it writes, and look again whether it still does.
        round_s = min(deadline_s, time.monotonic() + _ROUND_S)
        while time.monotonic() < round_s:
            report = _report_on(device, name, digest=digest)
            if report is not None:
                return report
            time.sleep(_POLL_S)
    return None


def _run_agent(device: Device, *, timeout_s: float) -> tuple[int | None, str]:
    """Run this machine's agent once; returns its exit code (None: it did not end) and last words."""
    command = [sys.executable, "-m", "edge.agent", "run", str(device.folder), "--once"]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=CODE_FOLDER,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("hint: ")]
    return ended.returncode, lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _report_on(device: Device, name: str, *, digest: str) -> Report | None:
    """Give the device's verdict on a delivery; None as long as there is none."""
    gone = not (device.incoming / name).exists()
    try:
        state = device.state()
    except errors.NotFoundError:  # the agent that makes the state has not come to it yet
        return None
    report = state.last_report
    if report is not None and report.file == name:
        return report
    if gone and state.phase == IDLE:  # the report on a later delivery has replaced ours
        if state.current == digest:
            return Report(CONFIRMED, "it runs", digest=digest, file=name)
        if digest in state.rejected:
            return Report(REJECTED, state.rejected[digest], digest=digest, file=name)
    return None
