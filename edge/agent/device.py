"""The device folder: where bundles wait, run and are remembered.

    keys/               whose signatures count; see ``edge.agent.trust``
    incoming/           bundles to install, and keyrings; written under a hidden name, then renamed
    slots/<digest>/     unpacked sealed bundles: the current one, the one before it and the factory's
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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.agent.state import FILE, LINK, State
from kit import files
from kit.errors import ConflictError, InputError, NotFoundError, UnavailableError, VerificationError

_NAME = "device.name"
_POINTER = re.compile(r"slots/([0-9a-f]{64})\s*")

KEYRING_NAME = "keyring.json"
"""The keyring, in ``keys/`` and on its way in ``incoming/``."""

OVERRIDE_SUFFIX = ".override"
"""What follows a bundle's name in that of the paper that lets an older release in."""

if TYPE_CHECKING:
    from edge.agent.trust import Trust
    from kit.bundle import Bundle


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
        state = State(pointer=LINK if self._has_links() else FILE)
        digest = self.pointer()
        if digest is not None:
            release = self.open_slot(digest).release
            state = dataclasses.replace(
                state, current=digest, factory=digest, release=release, release_digest=digest
            )
        self.save(state)

    @property
    def name(self) -> str:
        """What its source calls the device; empty before it was enrolled."""
        try:
            return (self.folder / _NAME).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def rename(self, name: str) -> None:
        """Remember what the source calls the device."""
        files.write_atomic(self.folder / _NAME, f"{name}\n".encode())

    def trust(self) -> Trust:
        """Read whose signatures count; see ``edge.agent.trust.read_trust`` for what it raises."""
        from edge.agent.trust import read_trust  # in the agent's own process, which runs for months, never

        return read_trust(self.keys)

    def now_s(self) -> float:
        """Tell the time, Unix seconds: what the clock shows, unless it must be later."""
        with contextlib.suppress(NotFoundError, VerificationError):
            return max(time.time(), float(self.state().time_floor_s))
        return time.time()

    def trusted(self) -> tuple[bytes, ...]:
        """Read the keys that may let something new in, PEM; see ``trust``."""
        return self.trust().new(self.now_s())

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
        if self.state().pointer == FILE:
            files.write_atomic(self._current_path, target.encode() + b"\n")
            return
        work = self.folder / f".current.{secrets.token_hex(8)}"
        try:
            os.symlink(target, work)
            os.replace(work, self._current_path)
        except OSError as error:
            raise UnavailableError(f"{self._current_path} cannot be moved: {error.strerror}") from error
        files.sync_folder(self.folder)

    def open_slot(self, digest: str, *, even_revoked: bool = False) -> Bundle:
        """Verify a slot against its name and the keys under which a confirmed slot may run.

        Args:
            digest: The slot.
            even_revoked: Whether a revoked key will do, for a device that has nothing else.

        Raises:
            VerificationError: A file of it is not what was signed; the sentence names it.
        """
        from kit.bundle import open_bundle  # as above

        trust = self.trust()
        bundle = open_bundle(self.slots / digest, trusted=trust.every if even_revoked else trust.running)
        if bundle.digest != digest:
            raise VerificationError(f"slot {digest[:12]} holds another bundle, {bundle.digest[:12]}")
        return bundle

    def good_slot(self) -> GoodSlot:
        """Verify the current slot, or when it does not hold the previous one, or the factory's.

        A slot whose key was revoked is the last choice. Changes nothing; the next agent that starts makes the
        fall-back permanent.

        Raises:
            NotFoundError: Nothing has been confirmed here.
            VerificationError: No slot verifies; the sentence names the current slot's file.
        """
        state = self.state()
        if state.current is None:
            report = state.last_report
            last = f"; the last one was {report.status}: {report.detail}" if report else ""
            raise NotFoundError(
                f"{self.folder} has no confirmed bundle{last}", hint="flash a bundle onto it with `kit flash`"
            )
        first: VerificationError | None = None
        for even_revoked in (False, True):
            for digest in state.good:
                try:
                    bundle = self.open_slot(digest, even_revoked=even_revoked)
                except VerificationError as error:
                    first = first or error
                    continue
                fell_back = first.message if first is not None and digest != state.current else ""
                return GoodSlot(bundle, fell_back=fell_back)
        assert first is not None
        raise first

    def waiting(self) -> list[Path]:
        """List what waits in ``incoming/``: a keyring, then bundles, oldest first.

        Hidden names are still being written, and overrides go with their bundles.

        Raises:
            UnavailableError: The folder cannot be read: a card was pulled, say.
        """
        found = []
        try:
            for path in self.incoming.iterdir():
                if path.name.startswith(".") or path.name.endswith(OVERRIDE_SUFFIX):
                    continue
                if path.is_symlink() or path.is_file():
                    with contextlib.suppress(FileNotFoundError):
                        is_bundle = path.name != KEYRING_NAME
                        found.append((is_bundle, path.lstat().st_mtime_ns, path.name, path))
        except OSError as error:
            raise UnavailableError(
                f"{self.incoming} cannot be read: {error.strerror}",
                hint="see whether the card or disk that holds it is there",
            ) from error
        return [path for *_, path in sorted(found)]

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
        kept = {*state.good, state.staged}
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
