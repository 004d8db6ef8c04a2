"""Flash: bring a bundle to a device and wait until the device confirms it.

The bundle is verified before the device is touched, the device is looked at before anything is written there,
and the upload goes on where an earlier one broke. It appears in ``incoming/`` under its name in one step. The
device's own agent decides: the one that already runs there, or one started for a single pass. Success is the
device's word that it runs this digest, nothing less. How programs are started there is for ``edge.flashing``
to know, and how an agent installs for the agent.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.agent.device import OVERRIDE_SUFFIX
from edge.flashing import path, ssh
from edge.flashing.checks import (
    PACKAGES,
    Found,
    check_machine,
    check_place,
    check_release,
    check_trust,
)
from edge.flashing.hand import Hand
from kit import errors, files, keypair
from kit.archive import SUFFIX, unpack
from kit.bundle import Bundle, open_bundle
from kit.keyring import KEYRING_NAME
from kit.override import sign_override
from kit.project import Project
from kit.settings import FlashSettings

_LOCKED_CODE = 6
_ROUND_S = 2.0
_LONGEST_S = 3600.0
_SENDS = 2
_REFUSALS: dict[str, type[errors.KitError]] = {
    "ConflictError": errors.ConflictError,
    "VerificationError": errors.VerificationError,
}

_log = logging.getLogger("kit.flash")


@dataclass(frozen=True)
class FlashResult:
    """What a device runs after a flash, or would.

    Attributes:
        device: The device, as it was named; a folder for ``path:``.
        digest: The bundle's digest, which the device reports as its current one.
        name: Name of the model.
        target: Target of the bundle.
        release: Release counter of the bundle.
        status: ``confirmed``; ``unchanged`` when the device already ran it; ``planned`` for a dry run.
        detail: One sentence; also says which keys a first flash has pinned.
        steps: For a dry run: what would happen, in order.
    """

    device: str
    digest: str
    name: str
    target: str
    release: int
    status: str
    detail: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Load:
    """What is carried to a device.

    Attributes:
        file: The bundle's archive.
        bundle: What is in it.
        sha256: Of the archive.
        trusted: Keys a first flash pins, PEM.
        keyring: The project's newest keyring; None where it has none.
        keyring_counter: Its counter.
        allow_older: Why an older release is let in; empty for never.
        key: The private key that signs an override; None where none is needed.
    """

    file: Path
    bundle: Bundle
    sha256: str
    trusted: tuple[bytes, ...]
    keyring: bytes | None
    keyring_counter: int
    allow_older: str
    key: Path | None

    def check(self, found: Found, *, shown: str) -> None:
        """Refuse what the device would refuse after the upload."""
        check_place(found, shown=shown, n_bytes=self.file.stat().st_size)
        check_machine(found, self.bundle, shown=shown)
        check_trust(found, self.bundle, shown=shown, keyring=self.brings_keyring(found))
        check_release(found, self.bundle, shown=shown, override=bool(self.allow_older))

    def brings_keyring(self, found: Found) -> bool:
        """Say whether the project's keyring is newer than the device's."""
        return self.keyring_counter > found.keyring_counter

    def papers(self, name: str, found: Found) -> dict[str, str]:
        """Give what lies beside the bundle in ``incoming/``, in base64."""
        papers = {}
        if self.keyring is not None and self.brings_keyring(found):
            papers[KEYRING_NAME] = base64.b64encode(self.keyring).decode()
        if self.allow_older and self.key is not None and self.bundle.release <= found.release:
            paper = sign_override(self.bundle.digest, reason=self.allow_older, key=self.key)
            papers[f"{name}{OVERRIDE_SUFFIX}"] = base64.b64encode(paper).decode()
        return papers


def flash(
    project: Project, settings: FlashSettings, *, ask: Callable[[str], bool] | None = None
) -> FlashResult:
    """Put a bundle on a device and wait until it is confirmed there.

    Args:
        project: Whose keys must have signed the bundle; a first flash pins them on the device.
        settings: The bundle and the device.
        ask: Asks whoever sits at the terminal; None when nobody does.

    Returns:
        What the device confirmed; also kept as a record of the project.

    Raises:
        InputError: The bundle cannot be read, the device's place cannot be one, or nobody has agreed to a
        first
            flash.
        VerificationError: The bundle, its signer or the host's key is not trusted by the project or the
        device. GateError: The device rejected the bundle in its trial, or did not confirm it in time.
        ConflictError: Another flash is under way, or the bundle's release is not above the device's.
        MissingDependencyError: The agent or the engine is missing on the device, or OpenSSH here.
        NotFoundError: There is no such device. UnavailableError: The device cannot be reached, has too little
        room, or cannot be written.
    """
    load = _load(project, settings)
    with _opened(project, settings) as hand:
        found = _look(hand)
        load.check(found, shown=hand.shown)
        if settings.dry_run:
            return _result(load, hand, status="planned", detail="", steps=_plan(load, found, hand))
        _agree(load, found, hand, yes=settings.yes, ask=ask)
        with hand.holding(longest_s=_LONGEST_S):
            found = _look(hand)
            load.check(found, shown=hand.shown)
            pinned = _pin(load, hand)
            report = _deliver(load, hand, found, timeout_s=settings.timeout_s)
        result = _result(load, hand, status=report["status"], detail=f"{report['detail']}{pinned}")
    place = files.sha256_bytes(result.device.encode())
    project.write_record("flash", f"{result.digest[:12]}-{place[:12]}", asdict(result))
    return result


def _load(project: Project, settings: FlashSettings) -> _Load:
    """Verify the bundle, and gather what goes with it."""
    file = Path(settings.bundle).expanduser()
    trusted = project.trusted()
    with tempfile.TemporaryDirectory(prefix="kit-flash-") as scratch:
        work = Path(scratch) / "bundle"
        unpack(file, work)
        try:
            bundle = open_bundle(work, trusted=trusted)
        except errors.VerificationError as error:  # the user knows the bundle, not where it was unpacked
            message = error.message.replace(str(work), str(file))
            raise errors.VerificationError(message, hint=error.hint) from error
    keyring = project.signing_key_path().parent / KEYRING_NAME
    data = keyring.read_bytes() if keyring.is_file() else None
    return _Load(
        file=file,
        bundle=bundle,
        sha256=files.sha256_file(file),
        trusted=trusted,
        keyring=data,
        keyring_counter=0 if data is None else _counter(data, keyring),
        allow_older=settings.allow_older or "",
        key=project.signing_key() if settings.allow_older else None,
    )


def _counter(keyring: bytes, path: Path) -> int:
    """Read a keyring's counter; whether it can be believed is for the device to say."""
    try:
        payload = json.loads(base64.b64decode(json.loads(keyring)["payload"]))
        return int(payload["counter"])
    except (ValueError, KeyError, TypeError) as error:
        raise errors.InputError(f"{path} is no keyring", hint="make one: kit keys rotate") from error


@contextlib.contextmanager
def _opened(project: Project, settings: FlashSettings) -> Iterator[Hand]:
    """Reach the device, by address or by the name it has in the project's fleet."""
    place, python = settings.device, settings.device_python or ""
    if not place.startswith((path.SCHEME, ssh.SCHEME)):
        from edge.fleet.devices import find_device

        place = find_device(project, place)
    if place.startswith(path.SCHEME):
        yield Hand(path.PathWay(place, python=python))
        return
    config = None if settings.ssh_config is None else Path(settings.ssh_config)
    way = ssh.SshWay(place, python=python, config=config)
    with contextlib.closing(way):
        way.open()
        if not python:
            _choose_interpreter(way)
        yield Hand(way)


def _choose_interpreter(way: ssh.SshWay) -> None:
    """Take the first interpreter there that has the agent, else the first that there is."""
    first = None
    for python in way.interpreters():
        way.python = python
        try:
            found = _look(Hand(way))
        except errors.NotFoundError:
            continue
        if found.agent:
            return
        first = first or python
    way.python = first or "python3"


def _look(hand: Hand) -> Found:
    return Found(**hand.call("probe", packages=list(PACKAGES)))


def _agree(load: _Load, found: Found, hand: Hand, *, yes: bool, ask: Callable[[str], bool] | None) -> None:
    """Have a first flash agreed to: from then on the device believes these keys and no others."""
    if found.place == "device" or yes:
        return
    keys = " and ".join(name[:16] for name in map(keypair.key_id, load.trusted))
    if ask is None:
        raise errors.InputError(
            f"{hand.shown} is no device yet; a first flash would pin key {keys} there, "
            "and there is nobody here to ask",
            hint="agree beforehand with --yes",
        )
    if not ask(f"{hand.shown} is no device yet. Make it one that believes key {keys} and no other?"):
        raise errors.InputError(f"{hand.shown} was left as it is", hint="agree to the question, or use --yes")


def _plan(load: _Load, found: Found, hand: Hand) -> tuple[str, ...]:
    """Say what a flash would do."""
    steps = []
    if found.place != "device":
        keys = ", ".join(keypair.key_id(pem)[:16] for pem in load.trusted)
        steps.append(f"make {hand.shown} a device and pin {keys}, after a question unless --yes is given")
    if load.brings_keyring(found):
        steps.append("send the keyring")
    if load.allow_older and load.bundle.release <= found.release:
        steps.append(f"sign an override: {load.allow_older}")
    n_bytes = load.file.stat().st_size
    steps.append(f"send {n_bytes} bytes; {found.free_bytes} are free")
    who = "the agent that runs there installs it" if found.running else "run its agent once"
    steps.append(f"{who}, on Python {found.python}, {found.machine}")
    now = f"{found.current[:12]}, release {found.release}" if found.current else "nothing"
    steps.append(f"wait until it confirms release {load.bundle.release}; it runs {now} now")
    return tuple(steps)


def _pin(load: _Load, hand: Hand) -> str:
    """Pin the project's keys on a device that has none; say so for the result."""
    keys = {f"{keypair.key_id(pem)[:16]}.pub": pem.decode() for pem in load.trusted}
    names = [name.removesuffix(".pub") for name in hand.call("pin", keys=keys)["pinned"]]
    if not names:
        return ""
    return f"; pinned {'key' if len(names) == 1 else 'keys'} {', '.join(names)} on this first flash"


def _deliver(load: _Load, hand: Hand, found: Found, *, timeout_s: float) -> dict[str, Any]:
    """Send the bundle, have it installed, and return the device's confirmation."""
    digest = load.bundle.digest
    name = f"{digest[:12]}-{secrets.token_hex(4)}{SUFFIX}"
    part = f".flash-{load.sha256[:32]}.part"
    papers = load.papers(name, found)
    for _ in range(_SENDS):  # a part whose bytes a power cut has changed comes out wrong once
        hand.send(load.file, part=part)
        if hand.call("place", part=part, name=name, sha256=load.sha256, papers=papers)["placed"]:
            break
    else:
        raise errors.VerificationError(
            f"{hand.shown} has received other bytes than were sent, {_SENDS} times",
            hint="look for a broken disk or a bad connection",
        )
    try:
        report = _await_report(hand, name, digest=digest, running=found.running, timeout_s=timeout_s)
    finally:  # what has not been taken up by now shall not be installed behind the user's back
        with contextlib.suppress(errors.KitError):
            hand.call("withdraw", names=[name, f"{name}{OVERRIDE_SUFFIX}"])
    status = None if report is None else report["status"]
    confirmed = report is not None and report.get("current") == digest and report.get("digest") == digest
    if report is None or (status in ("confirmed", "unchanged") and not confirmed):
        raise errors.GateError(
            f"{hand.shown} has not confirmed {digest[:12]} within {timeout_s:g} s",
            hint=f"ask it with `python -m edge.agent health {hand.way.folder}`",
        )
    if not confirmed or status not in ("confirmed", "unchanged"):
        kind = _REFUSALS.get(str(report.get("error")), errors.GateError)
        raise kind(f"{hand.shown} rejected {digest[:12]}: {report.get('detail')}")
    _log.info(f"{hand.shown} runs {digest[:12]}")
    return report


def _await_report(
    hand: Hand, name: str, *, digest: str, running: bool, timeout_s: float
) -> dict[str, Any] | None:
    """Wait for the report on one delivery, by the agent there or by one of our own."""
    until_s = time.monotonic() + timeout_s
    while (left_s := until_s - time.monotonic()) > 0:
        code: int | None = _LOCKED_CODE
        words = ""
        if not running:
            ran = hand.call("run", timeout_s=left_s, code=hand.way.code, within_s=left_s + 30)
            code, words = ran["code"], ran["words"]
        # An agent already runs there: watch what it writes, and look again whether it still does.
        wait_s = min(left_s, _ROUND_S) if code == _LOCKED_CODE else 0.0
        report = hand.call("verdict", name=name, digest=digest, wait_s=wait_s)["report"]
        if report is not None:
            return dict(report)
        if code not in (None, _LOCKED_CODE):
            raise errors.UnavailableError(
                f"the agent on {hand.shown} stopped with exit code {code}: {words}",
                hint=f"run there `python -m edge.agent run {hand.way.folder} --once` and read what it says",
            )
        running = False
    return None


def _result(load: _Load, hand: Hand, *, status: str, detail: str, steps: tuple[str, ...] = ()) -> FlashResult:
    bundle = load.bundle
    return FlashResult(
        device=hand.shown,
        digest=bundle.digest,
        name=str(bundle.manifest["name"]),
        target=str(bundle.manifest["target"]),
        release=bundle.release,
        status=status,
        detail=detail,
        steps=steps,
    )
