"""The device folder: where bundles wait, run and are remembered.

    keys/*.pub          the pinned keys; only bundles signed by one of them are looked at
    incoming/           bundles to install; written under a hidden name, then renamed
    slots/<digest>/     unpacked sealed bundles: the current one and the one before it
    current             link to the current slot (a file with the same text where links cannot be)
    state.json          what has been confirmed; one atomic write of it is what confirms a bundle
    agent.lock          held by the agent that may change all this

``state.json`` decides and ``current`` follows it, so a power cut between the two is mended at the
next start. This module knows the layout and keeps each change whole; which change is allowed is for
``edge.agent.install`` to say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import files
from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError, VerificationError

IDLE, STAGED, TRIAL = "idle", "staged", "trial"
"""Phases: nothing is under way; a slot waits for its trial; a trial has begun."""

CONFIRMED, UNCHANGED, REJECTED, FELL_BACK = "confirmed", "unchanged", "rejected", "fell_back"
"""What a report can say."""

_POINTER = re.compile(r"slots/([0-9a-f]{64})\s*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LINK, _FILE = "link", "file"

if TYPE_CHECKING:
    from kit.bundle import Bundle

_Rule = Callable[[Any], bool]


@dataclass(frozen=True)
class Report:
    """Say how the last thing that happened on the device ended.

    Attributes:
        status: ``confirmed``, ``unchanged`` (it already ran), ``rejected`` or ``fell_back``.
        detail: One sentence.
        error: The class of the error behind a rejection; empty otherwise.
        digest: The bundle it is about; None when it could not be verified and so has no name.
        file: The file in ``incoming/`` it came from; None when there was none.
    """

    status: str
    detail: str
    error: str = ""
    digest: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class State:
    """Remember what a device has confirmed and what is under way.

    Attributes:
        pointer: How ``current`` is written, ``link`` or ``file``; decided once.
        phase: ``idle``, ``staged`` or ``trial``.
        current: Digest of the confirmed slot; None before the first confirmation.
        previous: Digest of the slot to fall back to.
        release: The highest release confirmed so far; 0 before the first.
        release_digest: The digest confirmed at that release.
        staged: Digest of the slot that waits for its trial or is on trial.
        attempts: Trials of the staged slot that have begun.
        source: File in ``incoming/`` the staged slot came from.
        rejected: Digest to reason, for bundles that a pinned key signed, that are whole and were refused
            since the last confirmation.
        last_report: How the last bundle ended.
    """

    pointer: str = _LINK
    phase: str = IDLE
    current: str | None = None
    previous: str | None = None
    release: int = 0
    release_digest: str | None = None
    staged: str | None = None
    attempts: int = 0
    source: str | None = None
    rejected: Mapping[str, str] = field(default_factory=dict)
    last_report: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the state as the object ``state.json`` holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> State:
        """Read the object ``state.json`` holds.

        Raises:
            VerificationError: It is not one this agent writes.
        """
        _check_fields(value, _STATE_RULES, what="the state")
        report = value.get("last_report")
        if report is not None:
            _check_fields(report, _REPORT_RULES, what="the state's last_report")
            if "status" not in report or "detail" not in report:
                raise VerificationError("the state's last_report lacks its status or its detail")
            report = Report(**report)
        return cls(**{**value, "last_report": report})


def _check_fields(value: Mapping[str, Any], rules: Mapping[str, _Rule], *, what: str) -> None:
    for key, entry in value.items():
        if key not in rules:
            raise VerificationError(f"{what} has {key[:40]!r}, which no agent writes")
        if not rules[key](entry):
            shown = repr(entry) if len(repr(entry)) <= 40 else f"{repr(entry)[:37]}..."
            raise VerificationError(f"{what} has {key} = {shown}, which no agent writes")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_digest_or_none(value: object) -> bool:
    return value is None or _is_digest(value)


def _is_file_or_none(value: object) -> bool:
    """Say whether it names a file in one folder: never a path, for the file is deleted later."""
    return value is None or (isinstance(value, str) and value not in ("", ".", "..") and "/" not in value)


def _is_rejections(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_digest, value)) and all(map(_is_text, value.values()))


#: Field of ``state.json`` to what it may hold.
_STATE_RULES: dict[str, _Rule] = {
    "pointer": lambda value: value in (_LINK, _FILE),
    "phase": lambda value: value in (IDLE, STAGED, TRIAL),
    "current": _is_digest_or_none,
    "previous": _is_digest_or_none,
    "release": _is_count,
    "release_digest": _is_digest_or_none,
    "staged": _is_digest_or_none,
    "attempts": _is_count,
    "source": _is_file_or_none,
    "rejected": _is_rejections,
    "last_report": lambda value: value is None or isinstance(value, dict),
}
_REPORT_RULES: dict[str, _Rule] = {
    "status": lambda value: value in (CONFIRMED, UNCHANGED, REJECTED, FELL_BACK),
    "detail": _is_text,
    "error": _is_text,
    "digest": _is_digest_or_none,
    "file": _is_file_or_none,
}


@dataclass(frozen=True)
class GoodSlot:
    """A slot that was verified just now.

    Attributes:
        bundle: What is in it.
        fell_back: Why the current slot is not used; empty when this is the current one.
    """

    bundle: Bundle
    fell_back: str


class Device:
    """A device folder.

    Attributes:
        folder: The folder itself.
        keys: Its pinned keys.
        incoming: Its bundles to install.
        slots: Its unpacked bundles.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.incoming = folder / "incoming"
        self.slots = folder / "slots"
        self._state_path = folder / "state.json"
        self._current_path = folder / "current"

    @classmethod
    def open(cls, folder: Path) -> Device:
        """Open a folder that has pinned keys.

        Raises:
            NotFoundError: The folder does not exist, or pins no key.
        """
        device = cls(folder)
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no device folder {folder}", hint="make one with `kit flash BUNDLE path:FOLDER`"
            )
        if not any(device.keys.glob("*.pub")):
            raise NotFoundError(
                f"{folder} pins no key, so no bundle can be believed",
                hint=f"copy the project's public key into {device.keys}, or flash a bundle onto the folder",
            )
        return device

    def prepare(self) -> None:
        """Make what a folder with pinned keys lacks; only the holder of the lock does this.

        A lost ``state.json`` is made again from the current slot, whose manifest holds the release.

        Raises:
            VerificationError: The state is lost and the current slot does not verify.
            UnavailableError: The folder cannot be written.
        """
        for folder in (self.incoming, self.slots):
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise UnavailableError(f"{folder} cannot be made: {error.strerror}") from error
        if self._state_path.exists():
            return
        state = State(pointer=_LINK if self._has_links() else _FILE)
        digest = self.pointer()
        if digest is not None:
            release = self.open_slot(digest).release
            state = dataclasses.replace(state, current=digest, release=release, release_digest=digest)
        self.save(state)

    def trusted(self) -> tuple[bytes, ...]:
        """Read the pinned keys, PEM.

        Raises:
            NotFoundError: There are none.
            InputError: One is not a P-256 public key.
        """
        from kit import signing  # in the agent's own process, which runs for months, never

        return signing.load_trusted(self.keys)

    def state(self) -> State:
        """Read the state.

        Raises:
            NotFoundError: No agent has run here yet.
            VerificationError: ``state.json`` is not one an agent writes.
        """
        if not self._state_path.exists():
            raise NotFoundError(
                f"no agent has run on {self.folder} yet", hint=f"run `python -m edge.agent run {self.folder}`"
            )
        try:
            return State.from_json(files.read_json(self._state_path))
        except (InputError, VerificationError) as error:
            raise VerificationError(
                f"{self._state_path}: {error.message}",
                hint="remove the file; the agent makes it again from the current slot",
            ) from error

    def save(self, state: State) -> None:
        """Write the state in one step.

        Raises:
            UnavailableError: The disk is full or the folder cannot be written.
        """
        files.write_atomic(self._state_path, files.canonical_json(state.to_json()))

    def pointer(self) -> str | None:
        """Read which digest ``current`` names; None when it is absent or names no slot."""
        text = ""
        try:
            text = os.readlink(self._current_path)
        except FileNotFoundError:
            return None
        except OSError:  # not a link: the plain file of a file system without them
            with contextlib.suppress(OSError):
                text = self._current_path.read_text(encoding="utf-8", errors="replace")
        match = _POINTER.fullmatch(text)
        return match.group(1) if match else None

    def point_to(self, digest: str) -> None:
        """Move ``current`` to a slot in one step; a reader sees the old slot or the new one.

        Raises:
            UnavailableError: The folder cannot be written.
        """
        target = f"slots/{digest}"
        if self.state().pointer == _FILE:
            files.write_atomic(self._current_path, target.encode() + b"\n")
            return
        work = self.folder / f".current.{secrets.token_hex(8)}"
        try:
            os.symlink(target, work)
            os.replace(work, self._current_path)
        except OSError as error:
            raise UnavailableError(f"{self._current_path} cannot be moved: {error.strerror}") from error
        files.sync_folder(self.folder)

    def open_slot(self, digest: str) -> Bundle:
        """Verify a slot against the pinned keys and its name.

        Raises:
            VerificationError: A file of it is not what was signed; the sentence names it.
        """
        from kit.bundle import open_bundle  # as above

        bundle = open_bundle(self.slots / digest, trusted=self.trusted())
        if bundle.digest != digest:
            raise VerificationError(f"slot {digest[:12]} holds another bundle, {bundle.digest[:12]}")
        return bundle

    def good_slot(self) -> GoodSlot:
        """Verify the current slot, or the previous one when the current one is damaged.

        Changes nothing; the next agent that starts makes the fall-back permanent.

        Raises:
            NotFoundError: Nothing has been confirmed here.
            VerificationError: Neither slot verifies; the sentence names the current slot's file.
        """
        state = self.state()
        if state.current is None:
            report = state.last_report
            last = f"; the last one was {report.status}: {report.detail}" if report else ""
            raise NotFoundError(
                f"{self.folder} has no confirmed bundle{last}", hint="flash a bundle onto it with `kit flash`"
            )
        try:
            return GoodSlot(self.open_slot(state.current), fell_back="")
        except VerificationError as error:
            if state.previous is not None:
                with contextlib.suppress(VerificationError):
                    return GoodSlot(self.open_slot(state.previous), fell_back=error.message)
            raise

    def waiting(self) -> list[Path]:
        """List the bundles in ``incoming/``, oldest first; hidden names are still being written.

        Raises:
            UnavailableError: The folder cannot be read: a card was pulled, say.
        """
        found = []
        try:
            for path in self.incoming.iterdir():
                if not path.name.startswith(".") and (path.is_symlink() or path.is_file()):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((path.lstat().st_mtime_ns, path.name, path))
        except OSError as error:
            raise UnavailableError(
                f"{self.incoming} cannot be read: {error.strerror}",
                hint="see whether the card or disk that holds it is there",
            ) from error
        return [path for _, _, path in sorted(found)]

    def place(self, work: Path, *, digest: str) -> None:
        """Give an unpacked folder in ``slots/`` its name, in place of a broken one that has it.

        Raises:
            UnavailableError: The folder cannot be written.
        """
        slot = self.slots / digest
        try:
            if slot.exists():
                os.rename(slot, self.slots / f".{secrets.token_hex(8)}")
            os.rename(work, slot)
        except OSError as error:
            raise UnavailableError(f"slot {slot} cannot be made: {error.strerror}") from error
        files.sync_folder(self.slots)

    def sweep(self) -> None:
        """Delete slots nothing refers to, and what an interrupted agent left behind."""
        state = self.state()
        kept = {state.current, state.previous, state.staged}
        for path in self.slots.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
        for pattern in (".current.*", ".state.json.*"):
            for path in self.folder.glob(pattern):
                path.unlink()

    @contextlib.contextmanager
    def lock(self, name: str = "agent.lock") -> Iterator[None]:
        """Hold a lock file of this folder; the system releases it however the holder ends.

        Raises:
            ConflictError: Another process holds it.
            UnavailableError: The folder cannot be written.
        """
        path = self.folder / name
        try:
            file = path.open("ab")
        except OSError as error:
            raise UnavailableError(f"{path} cannot be written: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(
                    f"another process holds {path}", hint="wait until it has ended, or stop it"
                ) from error
            yield

    def _has_links(self) -> bool:
        probe = self.folder / f".current.{secrets.token_hex(8)}"
        try:
            os.symlink("slots", probe)
        except OSError:  # FAT cards and some network shares have none
            return False
        probe.unlink()
        return True
